"""One round of online DPO in Python: sample, score, choose, train, compare. Given again, it continues.

    python examples/online_round.py POLICY REWARD_MODEL prompts.jsonl runs/round
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

import rlhf_jax


def best_and_worst(group):
    """The group with its best response preferred to its worst; None where all have one score."""
    scored = [r for r in group.responses if "proxy" in r.scores]
    best, worst = (pick(scored, key=lambda r: r.scores["proxy"], default=None) for pick in (max, min))
    if best is None or best.scores["proxy"] == worst.scores["proxy"]:
        return None
    gap = best.scores["proxy"] - worst.scores["proxy"]
    return dataclasses.replace(group, responses=(best, worst), pairs=((0, 1),), margins=(gap,))


def mean_score(groups):
    return float(np.mean([r.scores["proxy"] for group in groups for r in group.responses if "proxy" in r.scores]))


def main(policy, judge, prompts, folder, **training):
    texts = [json.loads(line)["prompt"] for line in Path(prompts).read_text().splitlines()]
    start, reward = rlhf_jax.load(policy), rlhf_jax.load(judge)
    sampling = {"n": 4, "max_new_tokens": 32, "temperature": 1.0, "seed": 1}  # one seed: policies alone differ
    before = reward.scored(start.generate(texts, **sampling))

    pairs = [pair for group in before if (pair := best_and_worst(group)) is not None]
    Path(folder).mkdir(parents=True, exist_ok=True)
    rlhf_jax.write_groups(Path(folder) / "pairs.jsonl", pairs)
    report = rlhf_jax.run("dpo", model_name_or_path=policy, pairs=Path(folder) / "pairs.jsonl",
                          output_dir=Path(folder) / "dpo", beta=0.1, **training)

    trained = rlhf_jax.load(Path(folder) / "dpo" / "model")
    after = reward.scored(trained.generate(texts, **sampling))
    print(f"{len(pairs)} pairs of {len(texts)} prompts, {report['steps']} steps; "
          f"mean reward {mean_score(before):.3f} -> {mean_score(after):.3f}")
    return mean_score(before), mean_score(after)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
