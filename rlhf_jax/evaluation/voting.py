"""Choosing among n sampled solutions: pass@n, majority, weighted majority, best-of-n, as expectations over subsets.

From N samples of a prompt every number is the mean over all C(N, n) subsets of n, not over one draw of them. A vote
that is tied is shared by the candidates in front; a sample without an answer votes for nobody.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from rlhf_jax.data.answers import AnswerRule, candidates, group_reference
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.prompt_text import plain_text
from rlhf_jax.evaluation.best_of_n import expected_best_of_n
from rlhf_jax.evaluation.per_prompt import prompt_name
from rlhf_jax.evaluation.statistics import Estimate, mean_estimate

MOST_SUBSETS = 20_000
"""Weighted votes have no closed form: up to so many subsets are all counted, of more `DRAWN_SUBSETS` are drawn."""
DRAWN_SUBSETS = 2_000
_TIE = 1e-9


class Ballot(NamedTuple):
    """The N sampled solutions of a prompt.

    Attributes:
      candidates: [N] int, which answer each votes for; -1 for none. correct: [N] bool.
      scores: [N] float64 of a reward model, None where none is read.
    """

    candidates: np.ndarray
    correct: np.ndarray
    scores: np.ndarray | None = None


def pass_at(ballot: Ballot, n: int) -> float:
    """P(at least one of n samples is correct): 1 - C(N - c, n) / C(N, n). Chen et al., arXiv 2107.03374."""
    total = len(ballot.correct)
    return 1 - math.comb(total - int(ballot.correct.sum()), n) / math.comb(total, n)


def majority(ballot: Ballot, n: int) -> float:
    """P(the answer that most of n samples give is correct), ties shared; exact for any N.

    The votes of a random subset are independent binomials given their sum. So for each correct candidate j and each
    number t of its votes, the others' chances of at most t votes are multiplied as polynomials in the votes given, with
    a second index that counts who else has t. Source: the generating function of the multivariate hypergeometric.
    """
    total, share = len(ballot.candidates), n / len(ballot.candidates)
    names, sizes = np.unique(ballot.candidates[ballot.candidates >= 0], return_counts=True)
    if n == total:  # there is one subset
        ahead = names[sizes == sizes.max(initial=0)]
        rights = [ballot.correct[ballot.candidates == name].mean() for name in ahead]
        return float(np.mean(rights)) if rights else 0.0
    chances = [scipy.stats.binom.pmf(np.arange(min(n, size) + 1), size, share) for size in sizes]
    silent = scipy.stats.binom.pmf(np.arange(n + 1), total - int(sizes.sum()), share)
    value = 0.0
    for j, name in enumerate(names):
        worth = ballot.correct[ballot.candidates == name].mean()
        for votes in range(1, min(int(sizes[j]), n) + 1 if worth else 1):
            ways = np.zeros((n // votes, n - votes + 1))
            ways[0] = silent[: n - votes + 1]
            for k in range(len(names)):
                ways = ways if k == j else _with_candidate(ways, chances[k], votes)
            value += worth * chances[j][votes] * float(np.sum(ways[:, -1] / np.arange(1, len(ways) + 1)))
    return value / float(scipy.stats.binom.pmf(n, total, share))


def _with_candidate(ways: np.ndarray, chance: np.ndarray, votes: int) -> np.ndarray:
    """One more candidate that gets fewer than `votes`, or as many; ways [ties, votes given + 1]."""
    out = np.zeros_like(ways)
    width = ways.shape[1]
    for own in range(min(votes, width, len(chance))):
        out[:, own:] += chance[own] * ways[:, : width - own]
    if votes < min(width, len(chance)):
        out[1:, votes:] += chance[votes] * ways[:-1, : width - votes]
    return out


@lru_cache(maxsize=64)
def subsets(total: int, n: int) -> np.ndarray:
    """[subsets, total] 0 or 1: all of n members, or `DRAWN_SUBSETS` where there are more than `MOST_SUBSETS`."""
    if math.comb(total, n) <= MOST_SUBSETS:
        chosen = np.array(list(combinations(range(total), n)))
    else:
        chosen = np.random.default_rng((total, n)).random((DRAWN_SUBSETS, total)).argsort(axis=1)[:, :n]
    members = np.zeros((len(chosen), total))
    np.put_along_axis(members, chosen, 1.0, axis=1)
    return members


def weighted_majority(ballot: Ballot, n: int) -> float | None:
    """P(the answer whose samples have the largest sum of scores among n is correct), ties shared.

    None without scores, or where one is negative: a vote that counts against its own answer is none.
    """
    if ballot.scores is None or (ballot.scores < 0).any():
        return None
    voting = ballot.candidates >= 0
    names = np.unique(ballot.candidates[voting])
    if not len(names):
        return 0.0
    weights = np.where(ballot.candidates[:, None] == names, ballot.scores[:, None], 0.0)  # [N, K]
    worth = np.array([ballot.correct[ballot.candidates == name].mean() for name in names])
    members = subsets(len(voting), n)
    sums, present = members @ weights, members @ (ballot.candidates[:, None] == names)
    sums = np.where(present > 0, sums, -np.inf)  # whom nobody names cannot win, not even with nothing
    best = sums.max(axis=1, keepdims=True)
    ahead = (sums >= best - _TIE * np.abs(best)) & (present > 0)
    return float((ahead @ worth / np.maximum(ahead.sum(axis=1), 1)).mean())


def best_of(ballot: Ballot, n: int) -> float | None:
    """P(the sample with the highest score among n is correct), ties shared; None without scores."""
    return None if ballot.scores is None else expected_best_of_n(ballot.scores, ballot.correct, n)


def ballot_of(group: PromptGroup, rule: AnswerRule, column: str, score: str | None) -> Ballot | None:
    """The votes of a group's responses, of those that have the score if one is read; None where none is left.

    Raises:
      ValueError: the group has no such column, or no answer in it.
    """
    reference = group_reference(rule, group, column)
    kept = [r for r in group.responses if score is None or score in r.scores]
    if not kept:
        return None
    answers = [rule.find(plain_text(response.text)) for response in kept]
    correct = np.array([answer is not None and rule.same(reference, answer) for answer in answers])
    scores = None if score is None else np.array([response.scores[score] for response in kept])
    return Ballot(np.array(candidates(rule, answers)), correct, scores)


@dataclasses.dataclass(frozen=True)
class Voting:
    """n -> name of a measure -> its Estimate over prompts; and what was counted.

    Attributes:
      points: for n = 1, 2, 4, ... and N.
      prompts: that have N samples. left_out: that have fewer.
      no_answer: share of their samples without an answer.
      drawn: the n whose weighted votes are the mean over drawn subsets, since there are too many.
    """

    points: Mapping[int, Mapping[str, Estimate]]
    prompts: int
    left_out: int
    no_answer: float
    drawn: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        numbers = {f"{name}@{n}": estimate.to_json() for n, point in self.points.items()
                   for name, estimate in point.items()}
        return {"numbers": numbers, "prompts": self.prompts, "left_out": self.left_out, "no_answer": self.no_answer,
                "drawn": list(self.drawn)}


VOTES = {"pass": pass_at, "majority": majority, "weighted_majority": weighted_majority, "best_of": best_of}
"""Name of a number -> its function of a ballot and n."""


def voting(groups: Sequence[PromptGroup], ballots: Sequence[Ballot | None], max_n: int | None = None, seed: int = 0
           ) -> Voting:
    """All numbers for n = 1, 2, 4, ... and N, over the prompts that have N samples: by default the most that one has.

    Raises:
      ValueError: no prompt has so many.
    """
    top = max_n or max((len(b.correct) for b in ballots if b is not None), default=0)
    kept = [(prompt_name(group), ballot) for group, ballot in zip(groups, ballots, strict=True)
            if ballot is not None and len(ballot.correct) >= max(top, 1)]
    if not kept:
        raise ValueError(f"no prompt has {max(top, 1)} solutions to vote with; sample or score more, or set a smaller "
                         "max_n")
    points: dict[int, dict[str, Estimate]] = {}
    for n in sorted({2**power for power in range(top.bit_length())} | {top}):
        points[n] = {}
        for name, function in VOTES.items():
            values = [function(ballot, n) for _, ballot in kept]
            numbers = [value for value in values if value is not None]
            if len(numbers) == len(kept):
                points[n][name] = mean_estimate(numbers, seed, clusters=[prompt for prompt, _ in kept])
    silent = np.concatenate([ballot.candidates < 0 for _, ballot in kept])
    drawn = [n for n in points if "weighted_majority" in points[n] and any(
        math.comb(len(ballot.correct), n) > MOST_SUBSETS for _, ballot in kept)]
    return Voting(points, len(kept), len(groups) - len(kept), float(silent.mean()), tuple(drawn))
