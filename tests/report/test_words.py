import copy

import pytest

from rlhf_jax import report
from rlhf_jax.evaluation import Estimate, Results
from rlhf_jax.report import write_seeds_markdown


def headline(results):
    return report.headline(Results.from_json(results))


def write_markdown(results):
    return report.write_markdown(Results.from_json(results))


def aggregate(runs):
    return report.aggregate([Results.from_json(results) for results in runs])


def change(results, label, **values):
    row = next(row for row in results["policies"] if row["label"] == label)
    for name, value in values.items():
        shift = value - row[name]["value"]
        row[name] = {**row[name], "value": value, "low": row[name]["low"] + shift, "high": row[name]["high"] + shift}


def test_the_winner_and_the_matched_control(results):
    text = " ".join(headline(results))
    assert "online-3 (round 3 of online iterative DPO) has the highest gold reward, 1.80 [1.70, 1.90]." in text
    assert "better than matched one-round DPO (difference +0.50 [+0.36, +0.64])" in text
    assert "excludes zero, so sampling anew in rounds helped, perhaps only by going further" in text
    assert "treat the two policies' samples as independent" in text
    assert "1.46 times sft's 74" in text


def test_the_first_sentence_compares_at_equal_divergence(results):
    """Matched: 1.3 at 9.0 nats. Online there, linear in the root of the divergence between rounds 1 and 2: 1.435."""
    first = headline(results)[0]
    assert first.startswith("At equal divergence from the start and in gold reward, online iterative DPO is ")
    share = (9.0**0.5 - 5.2**0.5) / (9.5**0.5 - 5.2**0.5)
    assert f"one-round DPO (difference {0.9 + share * 0.6 - 1.3:+.2f} [" in first
    assert "at 9.00 nats" in first
    assert "not distinguishable from matched one-round DPO" in first
    change(results, "online-2", gold=2.5)
    assert "better than matched one-round DPO" in headline(results)[0]
    assert "sampling anew in rounds helped, and at equal divergence too" in " ".join(headline(results))


def test_without_divergences_nothing_is_said_of_them(results):
    for row in results["policies"]:
        row["kl_k1"] = None
    assert headline(results)[0].startswith("online-3 (round 3 of online iterative DPO) has the highest gold reward")
    assert "so sampling anew in rounds is what helped" in " ".join(headline(results))


def test_it_says_so_when_the_control_cannot_be_told_apart(results):
    change(results, "matched_dpo-1", gold=1.85)
    text = " ".join(headline(results))
    assert "matched_dpo-1 (matched one-round DPO) has the highest gold reward" in text
    assert "online-3, reaches 1.80 [1.70, 1.90] and cannot be told apart from it." in text
    assert "holds zero: this run does not show" in text
    change(results, "matched_dpo-1", gold=2.5)
    assert "did harm" in " ".join(headline(results))


def test_paired_differences_are_preferred(results):
    paired = Estimate(0.5, 0.4, -0.3, 1.3, 400).to_json()
    results["differences"] = [
        {"policy": "online-3", "against": "matched_dpo-1", "measure": "gold", "estimate": paired}]
    text = " ".join(headline(results))
    assert "not distinguishable from matched one-round DPO (difference +0.50 [-0.30, +1.30])" in text


def rename(results, **families):
    for row in results["policies"]:
        row["family"] = families.get(row["family"], row["family"])
    return results


def test_a_start_that_was_only_given_is_not_called_fine_tuned(results):
    assert "better than supervised fine-tuning (difference" in " ".join(headline(results))
    text = " ".join(headline(rename(results, sft="start")))
    assert "better than the model it starts from (difference" in text
    assert "supervised" not in text


def test_rounds_of_raft_are_not_called_dpo(results):
    results["policies"] = [row for row in results["policies"] if row["family"] not in ("raft", "offline_dpo")]
    text = " ".join(headline(rename(results, online="online_raft", matched_dpo="matched_raft")))
    assert "online-3 (round 3 of online iterative RAFT) has the highest gold reward" in text
    assert "better than matched one-round RAFT (difference" in text
    assert "so sampling anew in rounds helped" in text
    assert "DPO" not in text
    change(results, "matched_dpo-1", gold=1.85)
    assert "The last round of online iterative RAFT, online-3, reaches" in headline(results)[1]
    assert "minus the matched one-round RAFT control in gold reward" in write_seeds_markdown(aggregate([results]))


def test_over_optimisation_is_named(results):
    change(results, "online-3", gold=1.0)
    assert any(s.startswith("Over-optimisation: from online-2 to online-3") for s in headline(results))


def test_without_gold_the_proxy_speaks_and_says_it_flatters(results):
    for row in results["policies"]:
        row["gold"] = None
    sentences = headline(results)
    assert "highest proxy reward" in sentences[1]
    assert sentences[-1].endswith("scores are those of the reward model the policies were trained against, which "
                                  "flatters them.")


def test_who_was_trained_against_the_scorer_is_not_guessed(results):
    results["policies"] = results["policies"][:2]
    for row, family in zip(results["policies"], ("baseline", "policy"), strict=True):
        row |= {"gold": None, "family": family}
    assert headline(results)[-1] == (
        "No gold scorer judged this run: the scores flatter a policy that was trained against this scorer.")
    assert "flatters them" in headline(rename(results, policy="raft"))[-1]
    assert "were trained against" not in headline(rename(results, raft="offline_dpo"))[-1]


def test_with_one_round_the_matched_control_says_nothing(results):
    results["policies"] = [row for row in results["policies"] if row["label"] not in ("online-2", "online-3")]
    sentences = headline(results)
    told = " ".join(sentences)
    assert "With one round, the matched control is that round itself, so there is nothing to compare." in sentences
    assert "matched one-round DPO (difference" not in told
    assert "anew in rounds" not in told
    assert "offline DPO (difference" in told
    assert "matched" not in " ".join(headline({**results, "policies": [
        row for row in results["policies"] if row["family"] != "matched_dpo"]}))
    text = write_seeds_markdown(aggregate([results, results]))
    assert "sampling anew" not in text
    assert "− matched" not in text


def test_one_win_rate_is_shown_where_the_judge_is_the_proxy(results):
    assert "| Win rate | Win rate by proxy |" in write_markdown(results)
    for row in results["policies"]:
        row |= {"gold": None, "win_rate": row["proxy_win_rate"]}
    for text in (write_markdown(results), write_seeds_markdown(aggregate([results]))):
        assert "| Win rate |" in text
        assert "by proxy" not in text


def test_nothing_scored_says_nothing():
    assert headline({"title": "x", "policies": []}) == []


def test_markdown_table(results):
    results["policies"][0]["label"] = "s|ft"
    text = write_markdown(results)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(results["policies"])
    assert lines[2].startswith("| s\\|ft | 0.00 (-0.10 to 0.10) |")
    assert "| policy | Gold reward | Proxy reward |" in lines[0]
    assert text.endswith("\n")
    assert write_markdown({"title": "x", "policies": []}) == "## x\n"


def test_html_in_titles_and_labels_is_text_in_markdown(results):
    results = {**results, "title": "<script>a & b</script>", "subtitle": "<img src=x>", "policies": [
        {**policy, "label": f"<b>{policy['label']}"} for policy in results["policies"]]}
    for text in (write_markdown(results), write_seeds_markdown(aggregate([results]))):
        assert "&lt;script&gt;a &amp; b&lt;/script&gt;" in text
        assert "<" not in text


def seeds(results, golds):
    runs = []
    for gold in golds:
        runs.append(copy.deepcopy(results))
        change(runs[-1], "online-3", gold=gold)
    return runs


def test_seeds_worked_by_hand(results):
    total = aggregate(seeds(results, [1.7, 1.8, 1.9]))
    online = next(p for p in total.policies if p.label == "online-3").get("gold")
    assert online.value == pytest.approx(1.8)
    assert online.standard_error == pytest.approx(0.1 / 3**0.5)
    row = next(d for d in total.differences["matched_dpo"] if d.measure == "gold")
    assert (row.policy, row.against) == ("online-3", "matched_dpo-1")
    assert row.estimate.value == pytest.approx(0.5)
    assert row.estimate.low == pytest.approx(0.5 - 4.302653 * 0.1 / 3**0.5)
    text = write_seeds_markdown(total)
    assert "over 3 seeds [+0.25, +0.75], which excludes zero: sampling anew in rounds helps" in text
    assert "| online-3 | 1.80 ± 0.06 |" in text
    assert "| online-3 − sft | +1.80 (+1.55 to +2.05) |" in text


def test_equal_divergence_stands_first_and_is_worked_by_hand(results):
    """The control is at 9.0 nats with 1.3; online has 0.9 at 5.2 and 1.5 at 9.5, and moved further in the end."""
    runs = seeds(results, [1.7, 1.8, 1.9])
    share = (9.0**0.5 - 5.2**0.5) / (9.5**0.5 - 5.2**0.5)
    found = {one.against: one for one in aggregate(runs).equal_kl}
    assert found["matched_dpo"].kl.value == 9.0
    assert found["matched_dpo"].difference.value == pytest.approx(0.9 + 0.6 * share - 1.3)
    assert found["raft"].kl.value == 5.0
    text = write_seeds_markdown(aggregate(runs))
    assert text.index("At equal divergence") < text.index("minus the matched one-round DPO control")
    assert "better than matched one-round DPO (difference +0.14 [+0.14, +0.14] at 9.00 nats)" in text
    assert "| online iterative DPO − matched one-round DPO | 9.00 | 1.44 | 1.30 | +0.14 (+0.14 to +0.14) |" in text
    for run in runs:
        for policy in run["policies"]:
            policy["kl_k1"] = None
    assert "equal divergence" not in write_seeds_markdown(aggregate(runs))


def test_seeds_that_disagree_and_one_seed(results):
    assert "holds zero" in write_seeds_markdown(aggregate(seeds(results, [0.5, 1.8, 1.9])))
    one = write_seeds_markdown(aggregate([results]))
    assert "+0.50 with one seed, so no interval" in one
    assert "nan" not in one
    with pytest.raises(ValueError, match="at least one seed"):
        aggregate([])


def test_a_policy_missing_in_one_seed_counts_fewer(results):
    runs = seeds(results, [1.7, 1.9])
    runs[1]["policies"] = [p for p in runs[1]["policies"] if p["family"] != "raft"]
    raft = next(p for p in aggregate(runs).policies if p.label == "raft-3")
    assert raft.get("gold").count == 1
