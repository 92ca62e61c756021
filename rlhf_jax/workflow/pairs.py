"""From scored responses to preference pairs: penalise, select, order, all by the same score."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import LENGTH, PromptGroup, Response, same_answer
from rlhf_jax.plugins import is_plugin, load_function


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


PAIR_RULES: dict[str, Rule] = {"max_min": max_min, "max_max": max_max, "max_random": max_random,
                               "random": two_at_random}


def make_pair(group: PromptGroup, options: PairOptions) -> tuple[PromptGroup | None, str]:
    """The group reduced to its pair (response 0 chosen, margin the penalised gap), or the reason why not."""
    able = candidates(group, options)
    if len(able) < 2:
        return None, "fewer_than_two_scored"
    value = {i: penalised(group.responses[i], options) for i in able}
    ranked = sorted(able, key=lambda i: (-value[i], i))
    rule = load_function(options.rule) if is_plugin(options.rule) else PAIR_RULES[options.rule]
    places = rule([value[i] for i in ranked], random.Random(f"{options.seed} {group.prompt_id}"))
    if places is None:
        return None, "rule_gave_none"
    chosen, rejected = (ranked[place] for place in places)
    gap = value[chosen] - value[rejected]
    if gap <= 0:
        return None, "tie"
    if gap < options.min_gap:
        return None, "gap_too_small"
    if same_answer(group.responses[chosen], group.responses[rejected]):
        return None, "identical_responses"
    responses = (group.responses[chosen], group.responses[rejected])
    extra = {**group.extra, "response_indices": [chosen, rejected]}
    return dataclasses.replace(group, responses=responses, pairs=((0, 1),), margins=(gap,), extra=extra), ""


def make_pairs(groups: Sequence[PromptGroup], options: PairOptions) -> tuple[list[PromptGroup], Funnel]:
    """A pair for every group that has one, and how many had none, by reason. Raises ValueError where none has one."""
    funnel = Funnel(read=len(groups))
    out = []
    for group in groups:
        pair, reason = make_pair(group, options)
        if pair is None:
            funnel.dropped[reason] += 1
        else:
            out.append(pair)
    _some(out, groups, options.scorer, funnel)
    return out, funnel


def _some(kept: Sequence[PromptGroup], groups: Sequence[PromptGroup], scorer: str, funnel: Funnel) -> None:
    if not kept:
        names = sorted({name for group in groups for r in group.responses for name in r.scores})
        if scorer not in names:
            raise ValueError(f"no response has a score {scorer!r}; there are {names or 'no scores at all'}. Run "
                             "`rlhf-jax score` first, or name the scores that are there")
        raise ValueError(f"no prompt gave a pair by the scores {scorer!r} (there are scores by {names}):\n{funnel}\n"
                         "Raise temperature or num_generations, lower min_gap, or look at the scores: a reward model "
                         "that gives equal scores is broken")


def best_of_n(groups: Sequence[PromptGroup], options: PairOptions) -> tuple[list[PromptGroup], Funnel]:
    """Each group reduced to its best response (RAFT, arXiv 2304.06767; best-of-n)."""
    funnel = Funnel(read=len(groups))
    out = []
    for group in groups:
        able = candidates(group, options)
        if not able:
            funnel.dropped["none_scored"] += 1
            continue
        best = max(able, key=lambda i: (penalised(group.responses[i], options), -i))
        out.append(dataclasses.replace(group, responses=(group.responses[best],), pairs=(), margins=()))
    _some(out, groups, options.scorer, funnel)
    return out, funnel
