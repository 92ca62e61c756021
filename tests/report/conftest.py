import copy

import numpy as np
import pytest

from rlhf_jax.evaluation import Estimate, PolicySummary, best_of_n_kl, preference_accuracy


def estimate(value, error=0.05, count=400):
    return Estimate(value, error, value - 1.96 * error, value + 1.96 * error, count)


def policy(label, family, number, gold, proxy, kl, length):
    return PolicySummary(label, family, number, 400, 3200, {
        "gold": estimate(gold), "proxy": estimate(proxy, 0.03),
        "best_of_n": estimate(gold + 0.6), "win_rate": estimate(0.5 + gold / 8, 0.015),
        "proxy_win_rate": estimate(0.5 + proxy / 7, 0.012), "kl_k1": estimate(kl, 0.2),
        "kl_k3": estimate(0.9 * kl, 0.1),
        "length": estimate(length, 1.5), "clipped_ratio": estimate(0.02 + length / 4000, 0.005),
        "distinct_ratio": estimate(0.95 - kl / 60, 0.01), "length_correlation": estimate(0.06, 0.02)}).to_json()


POLICIES = [
    policy("sft", "sft", 0, 0.0, 0.0, 0.0, 74), policy("offline_dpo", "offline_dpo", 1, 0.7, 0.8, 6.1, 92),
    policy("matched_dpo-1", "matched_dpo", 1, 1.3, 1.7, 9.0, 99), policy("raft-1", "raft", 1, 0.5, 0.6, 2.0, 76),
    policy("raft-2", "raft", 2, 0.8, 1.0, 3.6, 78), policy("raft-3", "raft", 3, 0.95, 1.2, 5.0, 80),
    policy("online-1", "online", 1, 0.9, 1.0, 5.2, 84), policy("online-2", "online", 2, 1.5, 1.8, 9.5, 95),
    policy("online-3", "online", 3, 1.8, 2.5, 13.8, 108),
]


def log(seed, preference):
    rng, rows = np.random.default_rng(seed), []
    for step in range(10, 210, 10):
        row = {"step": step, "epoch": step / 200, "loss": 0.69 - 0.3 * (1 - np.exp(-step / 80)) + 0.02 * rng.normal()}
        if preference:
            row |= {"rewards/accuracies": 0.5 + 0.3 * (1 - np.exp(-step / 60)), "rewards/margins": step / 150,
                    "rewards/chosen": step / 400, "rewards/rejected": -step / 240}
        rows.append({k: float(v) for k, v in row.items()})
        if step % 50 == 0:
            rows.append({"step": step, "eval_loss": row["loss"] + 0.03})
    return [*rows, {"step": 200, "loss": float("nan")}]


@pytest.fixture
def results():
    """A made-up run with every part."""
    rng = np.random.default_rng(0)
    margins = rng.normal(0.9, 1.2, 900)
    funnel = {"read": 1200, "valid": 1180, "kept": 1100, "invalid": {"empty_response": 20}, "dropped": {"too_long": 80},
              "notes": {"response_truncated": 5}}
    hostile = "<script>alert('x')</script> & <b>bold</b> answer, and </pre></div> closes nothing"
    return {
        "title": "Quickstart: the whole workflow on a <small> world", "subtitle": "A decoder of 3 million parameters",
        "created": "2025-01-31T10:00:00+00:00", "versions": {"rlhf_jax": "0.1.0", "jax": "0.10.0"}, "baseline": "sft",
        "policies": copy.deepcopy(POLICIES),
        "best_of_n": [{"n": n, "proxy": estimate(0.55 * np.log2(n), 0.03).to_json(),
                       "gold": estimate(0.42 * np.log2(n), 0.04).to_json(), "kl": best_of_n_kl(n)}
                      for n in (1, 2, 4, 8)],
        "reward_model": preference_accuracy(margins, resamples=50).to_json(),
        "training": {"sft": log(0, False), "reward": log(1, False), "online-1/dpo": log(2, True),
                     "online-2/dpo": log(3, True), "matched_dpo-1/dpo": log(4, True)},
        "funnels": {"sft": funnel, "reward": {**funnel, "kept": 900, "dropped": {"tie": 200, "too_long": 80}},
                    "online-1/pairs": {**funnel, "valid": 1200, "kept": 1120, "invalid": {}}},
        "stages": [{"name": "sft", "seconds": 41.2}, {"name": "online-1/sample", "seconds": 312.0},
                   {"name": "online-1/dpo", "seconds": 4000.0}],
        "samples": [{"prompt": f"How do I {task}?", "answers": [
            {"label": label, "text": hostile if label == "sft" else "First, take your time. " * 6,
             "scores": {"proxy": 1.25, "gold": 0.5, "kl_k1": 3.2}, "finish_reason": "length" if i == 2 else "stop"}
            for i, label in enumerate(("sft", "offline_dpo", "matched_dpo-1", "raft-3", "online-3"))]}
            for task in ("boil an egg", "compare <i> and <em>")],
        "notes": ["One seed; see the table over seeds."],
        "config": {"loop": {"rounds": 3, "reference": "sft"}, "dpo": {"beta": 0.1, "learning_rate": 5e-7}},
    }
