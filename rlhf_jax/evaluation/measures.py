"""Every measure of a policy and of a preference model, once: its name, its words, its function, which way is better.

What a run computes, the page's columns and marks, the Markdown tables, the tables over seeds and docs/numbers.md follow
from the two tables below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from rlhf_jax.evaluation import answers, calibration
from rlhf_jax.evaluation.answers import JudgedAnswers, PromptValues
from rlhf_jax.evaluation.calibration import Predictions, Sums

Function = TypeVar("Function")


@dataclasses.dataclass(frozen=True)
class Measure(Generic[Function]):
    """A number with an interval.

    Attributes:
      name: key in results.json.
      title: heading of its column.
      help: what it is, in a sentence.
      formula: how it is computed, for docs/numbers.md.
      function: computes it.
      better: which way is better, and so which value a table marks; None where neither is by itself.
      percent: shown times 100.
      digits: shown after the point.
      unit: label of an axis.
    """

    name: str
    title: str
    help: str
    formula: str
    function: Function
    better: Literal["higher", "lower"] | None = None
    percent: bool = False
    digits: int = 2
    unit: str = ""


PolicyMeasure = Measure[Callable[[JudgedAnswers], PromptValues | None]]
"""Its function gives one value per row of prompts, of which the mean over prompts is taken; None for not measured."""
PairMeasure = Measure[Callable[[Predictions], Sums]]
"""Its function gives what each pair adds to some sums, and the number that follows from their totals."""

POLICY_MEASURES: dict[str, PolicyMeasure] = {measure.name: measure for measure in (
    PolicyMeasure("gold", "Gold reward", "Mean score by the judge that no policy was trained against.",
                  "mean of `scores.gold`", answers.gold_reward, better="higher", unit="mean score"),
    PolicyMeasure("proxy", "Proxy reward", "Mean score by the first scorer: in a run of rounds, the reward model "
                  "the policies were trained against.",
                  "mean of `scores.proxy`", answers.proxy_reward, better="higher", unit="mean score"),
    PolicyMeasure("best_of_n", "Best of n", "The judge's score of the answer the proxy picks among all samples of a "
                  "prompt.", "the judge's score of the response with the highest proxy score; ties shared",
                  answers.best_of_all, better="higher", unit="mean score"),
    PolicyMeasure("win_rate", "Win rate", "Share of sample pairs won against the baseline, as the judge sees it; ties "
                  "half.", "share of the K x K pairs (response, response of the baseline) with the higher score by the "
                  "judge; ties count one half", answers.wins, better="higher", percent=True, digits=1,
                  unit="% of comparisons"),
    PolicyMeasure("proxy_win_rate", "Win rate by proxy", "The same, as the proxy sees it.", "the same, with the scores "
                  "of the proxy", answers.proxy_wins, better="higher", percent=True, digits=1,
                  unit="% of comparisons"),
    PolicyMeasure("kl_k1", "KL, k1", "Divergence from the start in nats per answer, over the answers drawn at "
                  "temperature 1 with no token left out; unbiased.", "sum over tokens of `log p - log q`, nats per "
                  "response (`rlhf_jax.losses.kl.kl_k1`)", answers.kl_k1, unit="nats per answer"),
    PolicyMeasure("kl_k3", "KL, k3", "The same by a second estimator, never negative; blind to what is no longer "
                  "sampled.", "sum over tokens of `exp(r) - 1 - r`, `r = log q - log p` (`rlhf_jax.losses.kl.kl_k3`)",
                  answers.kl_k3, unit="nats per answer"),
    PolicyMeasure("length", "Length", "Tokens per answer.", "number of `ids`, stop token included", answers.lengths,
                  digits=1, unit="tokens"),
    PolicyMeasure("clipped_ratio", "Cut off", "Share of answers that ran out of budget.", "share of responses with "
                  "finish reason `length`", answers.clipped, percent=True, digits=1, unit="% of answers"),
    PolicyMeasure("distinct_ratio", "Distinct", "Different answers over answers to one prompt; low means little "
                  "variety.", "different responses / K, by ids; prompts with one response left out",
                  answers.distinct, percent=True, digits=1, unit="% of answers"),
    PolicyMeasure("length_correlation", "Reward-length r", "Correlation of proxy reward and length within a prompt: "
                  "the proxy's taste for long answers.", "Pearson correlation of proxy score and length; prompts with "
                  "fewer than three responses left out", answers.length_correlation, unit="correlation"),
)}

PAIR_MEASURES: dict[str, PairMeasure] = {measure.name: measure for measure in (
    PairMeasure("accuracy", "Accuracy", "Share of pairs where the chosen response gets the higher score.", "share of "
                "pairs with `m > 0`; a tie counts one half", calibration.accuracy, better="higher", percent=True,
                digits=1),
    PairMeasure("nll", "Negative log-likelihood", "In nats per pair; 0.69 is an even guess.", "mean of `-log P`, nats "
                "per pair; an even guess has 0.693", calibration.negative_log_likelihood, better="lower", digits=3),
    PairMeasure("brier", "Brier score", "0.25 is an even guess.", "mean of `(1 - P)^2`; an even guess has 0.25",
                calibration.brier_score, better="lower", digits=3),
    PairMeasure("ece", "Expected calibration error", "How far confidence and accuracy lie apart. Sampling noise alone "
                "makes it positive, so its interval lies above that of a larger data set.", "sum over 15 bins of "
                "`abs(hits - confidence)`, over all pairs; confidence is `max(P, 1 - P)`",
                calibration.expected_calibration_error, better="lower", percent=True, digits=1),
)}
