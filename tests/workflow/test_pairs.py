"""Pair selection: one number selects, orders and makes the margin; every prompt left out has a reason."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.data.groups import LENGTH, STOP, PromptGroup, Response
from rlhf_jax.data.jsonl import SourceError, write_groups
from rlhf_jax.workflow.datasets import PairFile
from rlhf_jax.workflow.pairs import best_of_n, disagreement, make_pair, make_pairs


def response(score, text="x", ids=None, finish=STOP):
    ids = np.array([7, 8, 9] if ids is None else ids, np.int32)
    return Response(ids, np.ones(len(ids), bool), text, finish, scores={} if score is None else {"proxy": score})


def group(*scores, name="p", **keywords):
    """Responses of these scores, each with ids of its own."""
    return PromptGroup(name, np.array([1], np.int32),
                       tuple(response(s, ids=[7, i + 10], **keywords) for i, s in enumerate(scores)))


def chosen_rejected(found):
    return tuple(found.extra["response_indices"])


def test_the_length_penalty_comes_before_selection_and_ordering():
    """Fact 10 of the specification: 5.0 - 4.0 < 4.9 - 0.5, so the shorter response is chosen (fails on defect D7)."""
    long, short = response(5.0, "x" * 4000, [1]), response(4.9, "x" * 500, [2])
    pair, reason = make_pair(PromptGroup("p", np.array([1], np.int32), (long, short)),
                             PairOptions(length_penalty=0.001))
    assert reason == ""
    assert pair.responses == (short, long)
    assert pair.pairs == ((0, 1),)
    assert chosen_rejected(pair) == (1, 0)
    np.testing.assert_allclose(pair.margins, [4.4 - 1.0])


def test_the_penalty_selects_who_is_best_and_who_is_worst():
    texts = ["x" * 3000, "x" * 10, "x" * 1000, "x" * 200]
    members = tuple(response(s, t, [i]) for i, (s, t) in enumerate(zip([3.0, 1.0, 2.5, 2.0], texts, strict=True)))
    pair, _ = make_pair(PromptGroup("p", np.array([1], np.int32), members), PairOptions(length_penalty=0.001))
    assert chosen_rejected(pair) == (3, 0)  # penalised: 0.0, 0.99, 1.5, 1.8
    np.testing.assert_allclose(pair.margins, [1.8])


def test_the_penalty_counts_characters_or_tokens_as_asked():
    wordy = response(1.0, "x" * 100, [1, 2])
    many = response(1.0, "x", list(range(50)))
    both = PromptGroup("p", np.array([1], np.int32), (wordy, many))
    characters, _ = make_pair(both, PairOptions(length_penalty=0.01))
    tokens, _ = make_pair(both, PairOptions(length_penalty=0.01, length_unit="tokens"))
    assert chosen_rejected(characters) == (1, 0)
    assert chosen_rejected(tokens) == (0, 1)
    np.testing.assert_allclose(tokens.margins, [0.48])
    messages = dataclasses.replace(wordy, text=[{"role": "assistant", "content": "x" * 100}])
    again, _ = make_pair(dataclasses.replace(both, responses=(messages, many)), PairOptions(length_penalty=0.01))
    assert again.margins == characters.margins


SCORES = (0.5, 3.0, -1.0, 2.0, 1.0)


@pytest.mark.parametrize(("rule", "expected"), [("max_min", (1, 2)), ("max_max", (1, 3))])
def test_rules_choose_the_pair_they_name(rule, expected):
    assert chosen_rejected(make_pair(group(*SCORES), PairOptions(rule=rule))[0]) == expected


def test_max_random_is_the_best_against_any_other_and_random_is_any_two_in_order():
    best, pairs = collections.Counter(), collections.Counter()
    for i in range(300):
        best[chosen_rejected(make_pair(group(*SCORES, name=f"p{i}"), PairOptions(rule="max_random"))[0])] += 1
        pairs[chosen_rejected(make_pair(group(*SCORES, name=f"p{i}"), PairOptions(rule="random"))[0])] += 1
    assert set(best) == {(1, j) for j in (0, 2, 3, 4)}
    assert min(best.values()) > 40  # 75 expected
    assert len(pairs) == 10
    assert min(pairs.values()) > 10  # 30 expected
    assert all(SCORES[a] > SCORES[b] for a, b in pairs)


@pytest.mark.parametrize("rule", ["max_random", "random"])
def test_a_random_rule_depends_on_seed_and_prompt_id_alone(rule):
    groups = [group(*SCORES, name=f"p{i}") for i in range(30)]

    def chosen(some, seed=0):
        return {g.prompt_id: chosen_rejected(g) for g in make_pairs(some, PairOptions(rule=rule, seed=seed))[0]}

    whole = chosen(groups)
    assert chosen(groups[::-1][:10]) == {name: whole[name] for name in (f"p{i}" for i in range(20, 30))}
    assert chosen(groups, seed=1) != whole


@pytest.mark.parametrize("rule", ["max_min", "max_max", "max_random", "random"])
def test_equal_scores_make_no_pair(rule):
    assert make_pair(group(1.0, 1.0, 1.0), PairOptions(rule=rule)) == (None, "tie")


def test_a_tie_made_by_the_penalty_makes_no_pair():
    tied = PromptGroup("p", np.array([1], np.int32), (response(2.0, "xx", [1]), response(1.0, "x", [2])))
    assert make_pair(tied, PairOptions(length_penalty=1.0)) == (None, "tie")


@pytest.mark.parametrize(("gap", "kept"), [(0.5, True), (0.49, False)])
def test_min_gap_is_the_smallest_gap_that_stays(gap, kept):
    pair, reason = make_pair(group(gap, 0.0), PairOptions(min_gap=0.5))
    assert (pair is not None) == kept
    assert reason == ("" if kept else "gap_too_small")


def test_min_gap_is_measured_after_the_penalty():
    pair = PromptGroup("p", np.array([1], np.int32), (response(2.0, "x" * 10, [1]), response(1.0, "", [2])))
    assert make_pair(pair, PairOptions(length_penalty=0.08, min_gap=0.5))[1] == "gap_too_small"


def test_identical_responses_make_no_pair_even_with_different_scores():
    same = PromptGroup("p", np.array([1], np.int32), (response(2.0), response(1.0)))
    assert make_pair(same, PairOptions()) == (None, "identical_responses")


def test_truncated_responses_take_no_part_where_asked():
    members = (response(3.0, ids=[1], finish=LENGTH), response(2.0, ids=[2]), response(1.0, ids=[3]))
    whole = PromptGroup("p", np.array([1], np.int32), members)
    assert chosen_rejected(make_pair(whole, PairOptions())[0]) == (0, 2)
    assert chosen_rejected(make_pair(whole, PairOptions(drop_truncated=True))[0]) == (1, 2)


def test_a_response_without_a_score_takes_no_part():
    assert chosen_rejected(make_pair(group(None, 1.0, 2.0), PairOptions())[0]) == (2, 1)
    assert make_pair(group(None, 1.0), PairOptions()) == (None, "fewer_than_two_scored")
    assert make_pair(group(1.0, 2.0), PairOptions(scorer="other")) == (None, "fewer_than_two_scored")


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([None, 0.0, 0.3, 1.0]), min_size=1, max_size=4), min_size=1, max_size=12))
def test_the_funnel_adds_up_and_every_pair_is_better_by_its_margin(scores):
    groups = [group(*s, name=f"p{i}") for i, s in enumerate([*scores, [0.0, 1.0]])]
    pairs, funnel = make_pairs(groups, PairOptions(min_gap=0.5))
    assert funnel.read == len(groups)
    assert funnel.kept == len(pairs)
    assert funnel.read == funnel.kept + funnel.dropped.total()
    for pair in pairs:
        chosen, rejected = (r.scores["proxy"] for r in pair.responses)
        assert pair.margins == (chosen - rejected,)
        assert chosen - rejected >= 0.5


def test_no_pair_at_all_is_an_error_that_shows_the_funnel_and_the_scorers_there_are():
    with pytest.raises(ValueError, match=r"by the scores 'proxy'[\s\S]*'proxy'[\s\S]*tie"):
        make_pairs([group(1.0, 1.0)], PairOptions())
    with pytest.raises(ValueError, match=r"'wrong'.*\['proxy'\]"):
        make_pairs([group(1.0, 2.0)], PairOptions(scorer="wrong"))
    with pytest.raises(ValueError, match=r"no response has a score 'wrong'"):
        best_of_n([group(1.0, 2.0)], PairOptions(scorer="wrong"))


def test_best_of_n_keeps_the_first_of_the_best_by_the_penalised_score():
    groups = [group(0.5, 3.0, 3.0, name="a"), group(None, None, name="b")]
    found, funnel = best_of_n(groups, PairOptions())
    assert [g.prompt_id for g in found] == ["a"]
    assert [r.to_json() for r in found[0].responses] == [groups[0].responses[1].to_json()]
    assert found[0].pairs == ()
    assert funnel.dropped == {"none_scored": 1}
    long, short = response(5.0, "x" * 4000, [1]), response(4.9, "x" * 500, [2])
    both = PromptGroup("p", np.array([1], np.int32), (long, short))
    (best,) = best_of_n([both], PairOptions(length_penalty=0.001))[0]
    assert [r.to_json() for r in best.responses] == [short.to_json()]


@pytest.mark.parametrize(("groups", "vocab_size", "said"), [
    ([], 12, "pairs.jsonl holds no pairs"),
    ([group(2.0, 1.0)], 12, r"group 1 \('p'\) has no pair.*goes through `rlhf-jax pairs` first"),
    ([make_pair(group(2.0, 1.0), PairOptions())[0]], 11, "holds the token id 11 and the model has 11 tokens"),
])
def test_a_file_of_no_pairs_or_of_another_models_tokens_is_not_trained_on(groups, vocab_size, said, tmp_path):
    write_groups(tmp_path / "pairs.jsonl", groups)
    with pytest.raises(SourceError, match=said):
        PairFile(tmp_path / "pairs.jsonl", vocab_size=vocab_size).read()


def test_the_pairs_of_a_model_are_read_and_a_folder_of_them_is_not(tmp_path):
    pair, _ = make_pair(group(2.0, 1.0), PairOptions())
    write_groups(tmp_path / "pairs.jsonl", [pair])
    assert [found.to_json() for found in PairFile(tmp_path / "pairs.jsonl", vocab_size=12).read()] == [pair.to_json()]
    with pytest.raises(SourceError, match=r"is a folder; give the pairs\.jsonl"):
        PairFile(tmp_path, vocab_size=12).read()


def both(own, others, name="p"):
    """A prompt with answers of these scores by the policy itself, then by another one."""
    whole = group(*own, *others, name=name)
    flags = [0.0] * len(own) + [1.0] * len(others)
    return dataclasses.replace(whole, responses=tuple(
        dataclasses.replace(r, scores={**r.scores, "by_other": flag})
        for r, flag in zip(whole.responses, flags, strict=True)))


def test_max_min_p_is_max_min_of_penalised_scores_and_is_not_flipped_back():
    """The published code orders the pair by the raw score again (defect D7), which would choose the long one here."""
    long, short = response(5.0, "x" * 4000, [1]), response(4.9, "x" * 500, [2])
    prompt = PromptGroup("p", np.array([1], np.int32), (long, short))
    pair, _ = make_pair(prompt, PairOptions(rule="max_min_p", length_penalty=0.001))
    assert pair.responses == (short, long)
    np.testing.assert_allclose(pair.margins, [3.4])
    with pytest.raises(ValueError, match="'max_min_p' is max_min by penalised scores, and length_penalty is 0"):
        PairOptions(rule="max_min_p")


@pytest.mark.parametrize(("own", "others", "across", "delta"), [
    ((1.0, 3.0), (2.0, -5.0), (1, 2), (1, 2)),
    ((1.0, 0.0), (2.0, 4.0), (3, 0), (0, 3)),  # delta chooses by who answered, whatever the score
])
def test_pairs_of_two_policies_hold_the_best_of_each(own, others, across, delta):
    prompt = both(own, others)
    found, _ = make_pair(prompt, PairOptions(rule="across"))
    assert chosen_rejected(found) == across
    found, _ = make_pair(prompt, PairOptions(rule="delta"))
    assert chosen_rejected(found) == delta
    assert found.margins == (max(own) - max(others),)


def test_delta_needs_no_score_but_who_answered():
    prompt = both((None, None), (None,))
    assert chosen_rejected(make_pair(prompt, PairOptions(rule="delta", scorer="by_other"))[0]) == (0, 2)
    with pytest.raises(ValueError, match="min_gap = 1 has no effect with rule = 'delta'"):
        PairOptions(rule="delta", min_gap=1.0)


@pytest.mark.parametrize("rule", ["across", "delta"])
def test_two_policies_are_asked_for_where_one_answered(rule):
    with pytest.raises(ValueError, match=rf"rule = '{rule}' needs the answers of two policies.*`against`"):
        make_pairs([group(1.0, 2.0)], PairOptions(rule=rule))
    alone = both((1.0, 2.0), (None,), name="q")
    pairs, funnel = make_pairs([both((1.0,), (2.0,)), alone], PairOptions(rule=rule))
    assert len(pairs) == 1
    assert funnel.dropped == {"one_policy_alone": 1}


def test_margins_are_scaled_after_the_smallest_gap_was_looked_at():
    (pair,), _ = make_pairs([group(2.0, 0.5), group(1.0, 0.5, name="q")], PairOptions(margin_scale=10.0, min_gap=1.0))
    assert pair.margins == (15.0,)


def ensemble(*members, name):
    """Two answers, of which each of the members says so much."""
    scores = [{"proxy": float(np.mean(own)), **{f"proxy/member-{i}": m for i, m in enumerate(own)}} for own in members]
    return PromptGroup(name, np.array([1], np.int32), tuple(
        dataclasses.replace(response(0.0, ids=[i]), scores=some) for i, some in enumerate(scores)))


def test_a_budget_by_disagreement_keeps_the_gaps_that_members_see_most_differently():
    sure = ensemble((3.0, 3.0), (1.0, 1.0), name="sure")  # gaps 2, 2
    split = ensemble((9.0, 0.0), (1.0, 1.0), name="split")  # gaps 8, -1
    shifted = ensemble((3.0, 7.0), (1.0, 4.0), name="shifted")  # gaps 2, 3: members of other means agree
    assert [disagreement(make_pair(g, PairOptions())[0], "proxy") for g in (sure, split, shifted)] == [0.0, 4.5, 0.5]
    for budget, kept in ((1, ["split"]), (2, ["split", "shifted"]), (3, ["sure", "split", "shifted"])):
        pairs, funnel = make_pairs([sure, split, shifted], PairOptions(budget=budget, budget_by="disagreement"))
        assert [pair.prompt_id for pair in pairs] == kept
        assert (funnel.kept, funnel.dropped["over_budget"]) == (budget, 3 - budget)


def test_a_random_budget_depends_on_seed_and_prompts_alone():
    groups = [group(1.0, 2.0, name=f"p{i}") for i in range(40)]

    def kept(some, seed=0):
        return {pair.prompt_id for pair in make_pairs(some, PairOptions(budget=10, seed=seed))[0]}

    assert len(kept(groups)) == 10
    assert kept(groups) == kept(groups[::-1])
    assert kept(groups) != kept(groups, seed=1)
    assert kept(groups) & {f"p{i}" for i in range(20)} <= kept(groups[:20])  # who is first of all is first of fewer


def test_a_budget_by_disagreement_needs_an_ensemble():
    with pytest.raises(ValueError, match=r"scores of an ensemble's members \(proxy/member-0, .*'p' has proxy"):
        make_pairs([group(1.0, 2.0)], PairOptions(budget=1, budget_by="disagreement"))
    with pytest.raises(ValueError, match="budget_by = 'disagreement' has no effect with budget"):
        PairOptions(budget_by="disagreement")
