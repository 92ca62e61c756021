"""From games between two responses to scores of n: round-robin and knock-out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.scoring.base import Comparing, Progress, Verdicts, verdicts_of

Points = list[list[float | None]]
"""Per group, per response; None where it has none."""
Games = Callable[[Sequence[tuple[int, int, int]]], list[float | None]]
"""Plays games (group, i, j) in one batch: P(i better than j), None where a game failed."""
Method = Literal["round_robin", "knock_out"]


def tournament(scorer: Comparing, method: Method, groups: Sequence[PromptGroup], progress: Progress | None = None
               ) -> Verdicts:
    """Scores of all responses of each group, from games that the scorer judges."""

    def games(asked: Sequence[tuple[int, int, int]]) -> list[float | None]:
        return scorer.compare([(groups[g].prompt, groups[g].responses[i].text, groups[g].responses[j].text)
                               for g, i, j in asked], progress)

    play = round_robin if method == "round_robin" else knock_out
    return verdicts_of(play([len(group.responses) for group in groups], games))


def round_robin(sizes: Sequence[int], play: Games) -> Points:
    """All pairs of each group, n (n - 1) / 2 games; a response's score is its mean probability of winning.

    A game is both orders together, so i beating j with p means j beating i with 1 - p.
    A response all of whose games failed gets None.
    """
    asked = [(g, i, j) for g, size in enumerate(sizes) for i, j in itertools.combinations(range(size), 2)]
    won: list[list[list[float]]] = [[[] for _ in range(size)] for size in sizes]
    for (g, i, j), p in zip(asked, play(asked), strict=True):
        if p is not None:
            won[g][i].append(p)
            won[g][j].append(1.0 - p)
    return [[sum(games) / len(games) if games else None for games in group] for group in won]


def _knock_out_once(fields: list[list[int]], play: Games, keep_winner: bool) -> tuple[list[int | None], list[set[int]]]:
    """One survivor a group: pairs meet, the winner (or the loser) goes on, an odd one out waits for the next round.

    A failed game puts both out. Returns the survivors (None where nobody is left) and who was put out.
    """
    fields, out = [list(field) for field in fields], [set[int]() for _ in fields]
    while any(len(field) > 1 for field in fields):
        asked = [(g, field[k], field[k + 1]) for g, field in enumerate(fields) for k in range(0, len(field) - 1, 2)]
        results = iter(zip(asked, play(asked), strict=True))
        for g, field in enumerate(fields):
            survivors = field[len(field) // 2 * 2 :]
            for _ in range(len(field) // 2):
                (_, i, j), p = next(results)
                if p is None:
                    out[g] |= {i, j}
                else:
                    survivors.append(i if (p >= 0.5) == keep_winner else j)  # a tie: the earlier response wins
            fields[g] = survivors
    return [field[0] if field else None for field in fields], out


def knock_out(sizes: Sequence[int], play: Games) -> Points:
    """Best and worst of each group by two knock-out cups, about 2 n games: score 1, 0, and 0.5 for all others.

    A group of one response scores [0.5]. A response one of whose games failed gets None.
    """
    best, failed = _knock_out_once([list(range(size)) for size in sizes], play, keep_winner=True)
    rest = [[i for i in range(size) if i != b and i not in out]
            for size, b, out in zip(sizes, best, failed, strict=True)]
    worst, later = _knock_out_once(rest, play, keep_winner=False)

    def score(i: int, g: int) -> float | None:
        if i in failed[g] | later[g]:
            return None
        return 1.0 if i == best[g] and sizes[g] > 1 else 0.0 if i == worst[g] else 0.5

    return [[score(i, g) for i in range(size)] for g, size in enumerate(sizes)]
