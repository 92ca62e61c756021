"""From scored responses to preference pairs: penalise, select, order, all by the same score."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import LENGTH, PromptGroup, Response
from rlhf_jax.data.jsonl import SourceError, read_groups
from rlhf_jax.workflow.options import PairOptions


def _length(response: Response, unit: str) -> int:
    if unit == "tokens":
        return len(response.ids)
    text = response.text if isinstance(response.text, str) else "".join(m["content"] for m in response.text)
    return len(text)


def penalised(response: Response, scorer: str, options: PairOptions) -> float:
    """score - length_penalty x length (RLHF Workflow, equation 9)."""
    return response.scores[scorer] - options.length_penalty * _length(response, options.length_unit)


def candidates(group: PromptGroup, scorer: str, options: PairOptions) -> list[int]:
    """Indices of the responses that may take part: scored, and finished where that is asked."""
    return [i for i, r in enumerate(group.responses)
            if scorer in r.scores and not (options.drop_truncated and r.finish_reason == LENGTH)]


def _select(ranked: list[int], rule: str, rng: random.Random) -> tuple[int, int]:
    """Two of the responses, ranked from best to worst, as (better, worse)."""
    if rule == "max_min":
        return ranked[0], ranked[-1]
    if rule == "max_max":
        return ranked[0], ranked[1]
    if rule == "max_random":
        return ranked[0], rng.choice(ranked[1:])
    first, second = sorted(rng.sample(range(len(ranked)), 2))
    return ranked[first], ranked[second]


def make_pair(group: PromptGroup, scorer: str, options: PairOptions) -> tuple[PromptGroup | None, str]:
    """The group reduced to its pair (response 0 chosen, margin the penalised gap), or the reason why not."""
    able = candidates(group, scorer, options)
    if len(able) < 2:
        return None, "fewer_than_two_scored"
    value = {i: penalised(group.responses[i], scorer, options) for i in able}
    ranked = sorted(able, key=lambda i: (-value[i], i))
    rng = random.Random(f"{options.seed} {group.prompt_id}")
    chosen, rejected = _select(ranked, options.rule, rng)
    gap = value[chosen] - value[rejected]
    if gap <= 0:
        return None, "tie"
    if gap < options.min_gap:
        return None, "gap_too_small"
    if group.responses[chosen].ids.tolist() == group.responses[rejected].ids.tolist():
        return None, "identical_responses"
    responses = (group.responses[chosen], group.responses[rejected])
    extra = {**group.extra, "response_indices": [chosen, rejected]}
    return dataclasses.replace(group, responses=responses, pairs=((0, 1),), margins=(gap,), extra=extra), ""


def make_pairs(groups: Sequence[PromptGroup], scorer: str, options: PairOptions) -> tuple[list[PromptGroup], Funnel]:
    """A pair for every group that has one, and how many had none, by reason. Raises ValueError where none has one."""
    funnel = Funnel(read=len(groups))
    out = []
    for group in groups:
        pair, reason = make_pair(group, scorer, options)
        if pair is None:
            funnel.dropped[reason] += 1
        else:
            out.append(pair)
    _some(out, groups, scorer, funnel)
    return out, funnel


def read_pairs(path: str | Path, vocab_size: int) -> list[PromptGroup]:
    """The groups of a pairs.jsonl, each with a pair to learn from, in the tokens of a model of `vocab_size` rows.

    Raises:
      SourceError: if there is no such file or it holds something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise SourceError(f"pairs = {str(path)!r} is {'a folder' if path.is_dir() else 'no file'}; give the "
                          "pairs.jsonl that `rlhf-jax pairs` wrote")
    groups = read_groups(path)
    if not groups:
        raise SourceError(f"{path} holds no pairs")
    for number, group in enumerate(groups, start=1):
        if not group.pairs:
            raise SourceError(f"{path}: group {number} ({group.prompt_id!r}) has no pair, so there is nothing to learn "
                              "from it. What `generate` and `score` write goes through `rlhf-jax pairs` first")
        largest = max(int(ids.max()) for ids in (group.prompt_ids, *(r.ids for r in group.responses)))
        if largest >= vocab_size:
            raise SourceError(f"{path}: group {number} ({group.prompt_id!r}) holds the token id {largest} and the "
                              f"model has {vocab_size} tokens. The pairs were sampled from another model; train that")
    return groups


def _some(kept: Sequence[PromptGroup], groups: Sequence[PromptGroup], scorer: str, funnel: Funnel) -> None:
    if not kept:
        names = sorted({name for group in groups for r in group.responses for name in r.scores})
        if scorer not in names:
            raise ValueError(f"no response has a score {scorer!r}; there are {names or 'no scores at all'}. Run "
                             "`rlhf-jax score` first, or name the scores that are there")
        raise ValueError(f"no prompt gave a pair by the scores {scorer!r} (there are scores by {names}):\n{funnel}\n"
                         "Raise temperature or num_generations, lower min_gap, or look at the scores: a reward model "
                         "that gives equal scores is broken")


def best_of_n(groups: Sequence[PromptGroup], scorer: str, options: PairOptions) -> tuple[list[PromptGroup], Funnel]:
    """Each group reduced to its best response (RAFT, arXiv 2304.06767; best-of-n)."""
    funnel = Funnel(read=len(groups))
    out = []
    for group in groups:
        able = candidates(group, scorer, options)
        if not able:
            funnel.dropped["none_scored"] += 1
            continue
        best = max(able, key=lambda i: (penalised(group.responses[i], scorer, options), -i))
        out.append(dataclasses.replace(group, responses=(group.responses[best],), pairs=(), margins=()))
    _some(out, groups, scorer, funnel)
    return out, funnel
