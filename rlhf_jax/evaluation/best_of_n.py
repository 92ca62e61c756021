"""The best-of-n curve: what the reward of the best of n samples is, by the proxy and by the gold scorer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.evaluation.per_prompt import measured, prompt_name, score_of
from rlhf_jax.evaluation.statistics import Estimate, mean_estimate


@dataclasses.dataclass(frozen=True)
class BestOfN:
    """One point of the curve.

    Attributes:
      n: samples to choose from.
      proxy: expected proxy score of the sample the proxy chooses.
      gold: expected gold score of the sample the proxy chooses; None without a gold scorer.
      kl: log n - (n - 1) / n in nats, an upper bound on the divergence from the sampled policy.
    """

    n: int
    proxy: Estimate
    gold: Estimate | None
    kl: float

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, "proxy": self.proxy.to_json(), "gold": self.gold.to_json() if self.gold else None,
                "kl": self.kl}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> BestOfN:
        gold = row.get("gold")
        return BestOfN(row["n"], Estimate.from_json(row["proxy"]), Estimate.from_json(gold) if gold else None,
                       row["kl"])


def best_of_n_kl(n: int) -> float:
    """Computes log n - (n - 1) / n, in nats: KL(best-of-n || policy) is at most this.

    Exact for continuous scores, else an upper bound. Source: A. Beirami et al., "Theoretical guarantees on the
    best-of-n alignment policy", arXiv 2401.01879.
    """
    return math.log(n) - (n - 1) / n


def expected_best_of_n(proxy: ArrayLike, values: ArrayLike, n: int) -> float:
    """The mean, over all subsets of size n, of the value of the subset's best by proxy; [N] and [N] to a number.

    Closed form by ranks: the response of rank i (from 1, worst first) is the best of C(i - 1, n - 1) of the C(N, n)
    subsets. Ties in the proxy are broken at random, so tied responses share the subsets of their ranks a..b evenly:
    (C(b, n) - C(a - 1, n)) / (b - a + 1) each.

    Raises:
      ValueError: n is not in 1..N.
    """
    proxy, values = np.asarray(proxy, np.float64), np.asarray(values, np.float64)
    if not 1 <= n <= len(proxy):
        raise ValueError(f"best of n = {n} needs n from 1 to the {len(proxy)} samples there are")
    first = scipy.stats.rankdata(proxy, method="min").astype(int).tolist()
    last = scipy.stats.rankdata(proxy, method="max").astype(int).tolist()
    subsets = math.comb(len(proxy), n)
    weights = [(math.comb(b, n) - math.comb(a - 1, n)) / (subsets * (b - a + 1))
               for a, b in zip(first, last, strict=True)]
    return float(np.dot(weights, values))


def best_of_n_curve(groups: Sequence[PromptGroup], proxy: str, gold: str | None = None, max_n: int | None = None,
                    seed: int = 0, confidence: float = 0.95, resamples: int = 2000) -> list[BestOfN]:
    """Points for n = 1, 2, 4, ... and max_n, each an exact expectation per prompt and an Estimate over prompts.

    All points use the same prompts: those with at least `max_n` responses that have every score asked for.

    Args:
      proxy: name of the score that chooses. gold: name of the score that judges the choice, or None.
      max_n: the largest n; None for the largest number of responses a prompt has.

    Raises:
      ValueError: no prompt has enough scored responses.
    """
    top = max_n if max_n is not None else max((len(group.responses) for group in groups), default=0)
    names = (proxy,) if gold is None else (proxy, gold)
    tables = [(group, measured(group, *map(score_of, names))) for group in groups]
    tables = [(group, table) for group, table in tables if len(table) >= max(top, 1)]
    if not tables:
        raise ValueError(f"no prompt has {top} responses scored by {' and '.join(names)}; score more responses or set "
                         "a smaller max_n")
    sizes = sorted({2**power for power in range(top.bit_length())} | {top})

    def point(column: int, n: int) -> Estimate:
        values = [expected_best_of_n(table[:, 0], table[:, column], n) for _, table in tables]
        return mean_estimate(values, seed, confidence, resamples, [prompt_name(group) for group, _ in tables])

    return [BestOfN(n, point(0, n), point(1, n) if gold is not None else None, best_of_n_kl(n)) for n in sizes]
