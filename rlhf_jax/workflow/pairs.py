"""From scored responses to preference pairs: penalise, select, order, all by the same score."""

from __future__ import annotations

import dataclasses
import heapq
import operator
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np

from rlhf_jax.config.pairs import ENHANCER, TWO_POLICIES, PairOptions
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import BY_OTHER, LENGTH, PromptGroup, Response, same_answer
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.plugins import check_call, is_plugin, load_function
from rlhf_jax.workflow.enhancer import Enhancer


def _length(response: Response, unit: str) -> int:
    if unit == "tokens":
        if not len(response.ids):
            raise ValueError("length_unit = 'tokens', and these responses are text alone; sample them with `rlhf-jax "
                             "generate`, or set length_unit: characters")
        return len(response.ids)
    text = response.text if isinstance(response.text, str) else "".join(m["content"] for m in response.text)
    return len(text)


def penalised(response: Response, options: PairOptions) -> float:
    """score - length_penalty x length (RLHF Workflow, equation 9)."""
    return response.scores[options.scorer] - options.length_penalty * _length(response, options.length_unit)


def candidates(group: PromptGroup, options: PairOptions) -> list[int]:
    """Indices of the responses that may take part: scored, and finished where that is asked."""
    return [i for i, r in enumerate(group.responses)
            if options.scorer in r.scores and not (options.drop_truncated and r.finish_reason == LENGTH)]


Rule = Callable[[Sequence[float], random.Random], tuple[int, int] | None]
"""(values of a prompt's responses, best first; a source of randomness) -> places of chosen and rejected, or None."""


def max_min(values: Sequence[float], rng: random.Random) -> tuple[int, int]:
    """Best and worst: the paper's."""
    del rng
    return 0, len(values) - 1


def max_max(values: Sequence[float], rng: random.Random) -> tuple[int, int]:
    """Best and second best."""
    del values, rng
    return 0, 1


def max_random(values: Sequence[float], rng: random.Random) -> tuple[int, int]:
    """Best and another."""
    return 0, rng.choice(range(1, len(values)))


def two_at_random(values: Sequence[float], rng: random.Random) -> tuple[int, int]:
    """Any two, the better one chosen."""
    first, second = sorted(rng.sample(range(len(values)), 2))
    return first, second


PAIR_RULES: dict[str, Rule] = {"max_min": max_min, "max_min_p": max_min, "max_max": max_max,
                               "max_random": max_random, "random": two_at_random}
"""Rules that see values alone; max_min_p is max_min of penalised ones, and orders the pair by them too."""


def best_of_each(group: PromptGroup, ranked: Sequence[int]) -> tuple[int, int] | None:
    """Places of the best answer of the policy itself and of the other one among `ranked`; None if one gave none."""
    by_other = [group.responses[i].scores.get(BY_OTHER) == 1.0 for i in ranked]
    return (by_other.index(False), by_other.index(True)) if len({*by_other}) == 2 else None


def _places(group: PromptGroup, options: PairOptions, ranked: Sequence[int], values: Sequence[float],
            enhancer: Enhancer | None) -> tuple[int, int] | None:
    """Where chosen and rejected stand among the answers `ranked`, best first."""
    if options.rule in TWO_POLICIES:
        places = best_of_each(group, ranked)
        return places if places is None or options.rule == "delta" else (min(places), max(places))
    if options.rule == ENHANCER:
        assert enhancer is not None
        return enhancer.places(group, ranked, values)
    rng = random.Random(f"{options.seed} {group.prompt_id}")
    return _own_places(options.rule, values, rng) if is_plugin(options.rule) else PAIR_RULES[options.rule](values, rng)


def _own_places(name: str, values: Sequence[float], rng: random.Random) -> tuple[int, int] | None:
    """What a rule of the user's own returns; ValueError if that is neither two places of `values` nor None."""
    rule = load_function(name)
    check_call(rule, "f(values, rng)", values, rng)
    if (places := rule(values, rng)) is None:
        return None
    try:
        chosen, rejected = map(operator.index, places)
        _ = values[chosen], values[rejected]
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"the pair rule {name!r} returned {places!r} for {len(values)} responses; it returns the "
                         f"places of chosen and rejected, from 0 (the best) to {len(values) - 1}, or None for no pair"
                         ) from error
    return chosen, rejected


def make_pair(group: PromptGroup, options: PairOptions, enhancer: Enhancer | None = None
              ) -> tuple[PromptGroup | None, str]:
    """The group reduced to its pair (response 0 chosen, margin the scaled penalised gap), or the reason why not.

    enhancer: for the rule of that name.
    """
    able = candidates(group, options)
    if len(able) < 2:
        return None, "fewer_than_two_scored"
    value = {i: penalised(group.responses[i], options) for i in able}
    ranked = sorted(able, key=lambda i: (-value[i], i))
    places = _places(group, options, ranked, [value[i] for i in ranked], enhancer)
    if places is None:
        return None, "one_policy_alone" if options.rule in TWO_POLICIES else "rule_gave_none"
    chosen, rejected = (ranked[place] for place in places)
    gap = value[chosen] - value[rejected]
    if options.rule != "delta":  # whose label is who answered
        if gap <= 0:
            return None, "tie"
        if gap < options.min_gap:
            return None, "gap_too_small"
    if same_answer(group.responses[chosen], group.responses[rejected]):
        return None, "identical_responses"
    responses = (group.responses[chosen], group.responses[rejected])
    extra = {**group.extra, "response_indices": [chosen, rejected]}
    return dataclasses.replace(group, responses=responses, pairs=((0, 1),), margins=(options.margin_scale * gap,),
                               extra=extra), ""


def make_pairs(groups: Iterable[PromptGroup], options: PairOptions, enhancer: Enhancer | None = None
               ) -> tuple[Sequence[PromptGroup], Funnel]:
    """A pair for every group that has one, within the budget, and how many had none, by reason.

    Groups are looked at once and none is kept; pairs lie on disk (see `OnDisk`).

    Raises:
      ValueError: no group has one, or its responses lack what the rule or the budget reads.
    """
    funnel, scores = Funnel(), set[str]()
    pairs = OnDisk(_kept(groups, lambda group: make_pair(group, options, enhancer), funnel, scores))
    if options.rule in TWO_POLICIES and BY_OTHER not in scores:
        raise ValueError(f"rule = {options.rule!r} needs the answers of two policies, and no response says whose it is "
                         f"({BY_OTHER}); set loop.from_start, or give the other policy's samples as `against`")
    _check_some(pairs, scores, options.scorer, funnel)
    kept = within_budget(pairs, options)
    if len(kept) < len(pairs):
        funnel.dropped["over_budget"] = len(pairs) - len(kept)
    return kept, funnel


def _kept(groups: Iterable[PromptGroup], reduced: Callable[[PromptGroup], tuple[PromptGroup | None, str]],
          funnel: Funnel, scores: set[str]) -> Iterator[PromptGroup]:
    """What groups are reduced to, where they are to anything; counts them, and notes the names of all scores."""
    for group in groups:
        funnel.read += 1
        scores.update(name for response in group.responses for name in response.scores)
        found, reason = reduced(group)
        if found is None:
            funnel.dropped[reason] += 1
        else:
            yield found


def disagreement(pair: PromptGroup, scorer: str) -> float:
    """Standard deviation over the members of an ensemble of their gap chosen - rejected.

    Raises:
      ValueError: the responses carry no members' scores.
    """
    chosen, rejected = (response.scores for response in pair.responses)
    members = [name for name in chosen if name.startswith(f"{scorer}/member-") and name in rejected]
    if len(members) < 2:
        raise ValueError(f"budget_by = 'disagreement' reads the scores of an ensemble's members ({scorer}/member-0, "
                         f"...), and a response to {pair.prompt_id!r} has {', '.join(chosen)}; score with kind: "
                         "ensemble, or set budget_by: random")
    return float(np.std([chosen[name] - rejected[name] for name in members]))


def within_budget(pairs: Sequence[PromptGroup], options: PairOptions) -> Sequence[PromptGroup]:
    """At most `budget` of the pairs, in their order: the ones that are disagreed on most, or a random draw of them.

    Each pair's number depends on itself, the seed and its prompt's id alone.
    """
    if options.budget is None:
        return pairs

    def rank(pair: PromptGroup) -> float:
        if options.budget_by == "disagreement":
            return -disagreement(pair, options.scorer.split("/")[0])
        return random.Random(f"{options.seed} budget {pair.prompt_id}").random()

    ranked = ((rank(pair), pair.prompt_id, place) for place, pair in enumerate(pairs))
    return OnDisk(pairs[place] for place in sorted(place for *_, place in heapq.nsmallest(options.budget, ranked)))


def _check_some(kept: Sequence[PromptGroup], scores: Collection[str], scorer: str, funnel: Funnel) -> None:
    if not kept:
        names = sorted(scores)
        if scorer not in names:
            raise ValueError(f"no response has a score {scorer!r}; there are {names or 'no scores at all'}. Run "
                             "`rlhf-jax score` first, or name the scores that are there")
        raise ValueError(f"no prompt gave a pair by the scores {scorer!r} (there are scores by {names}):\n{funnel}\n"
                         "Raise temperature or num_generations, lower min_gap, or look at the scores: a reward model "
                         "that gives equal scores is broken")


def best_of_n(groups: Iterable[PromptGroup], options: PairOptions) -> tuple[Sequence[PromptGroup], Funnel]:
    """Each group reduced to its best response (RAFT, arXiv 2304.06767; best-of-n); as `make_pairs`."""

    def best(group: PromptGroup) -> tuple[PromptGroup | None, str]:
        able = candidates(group, options)
        if not able:
            return None, "none_scored"
        place = max(able, key=lambda i: (penalised(group.responses[i], options), -i))
        return dataclasses.replace(group, responses=(group.responses[place],), pairs=(), margins=()), ""

    funnel, scores = Funnel(), set[str]()
    out = OnDisk(_kept(groups, best, funnel, scores))
    _check_some(out, scores, options.scorer, funnel)
    return out, funnel
