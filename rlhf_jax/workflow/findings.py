"""What a stage found, in words for a line of its own: on the terminal, on the page, and for those who watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FOUND: tuple[tuple[str, str], ...] = (
    ("prompts", "{:,} prompts"), ("responses", "{:,} answers"), ("completions/mean_length", "{:.0f} tokens each"),
    ("completions/clipped_ratio", "{:.0%} cut off"), ("reward", "mean score {:.3g}"),
    ("reward_best_of_n", "best of n {:.3g}"), ("funnel/kept", "{:,} kept"), ("funnel/read", "of {:,} read"),
    ("pairs", "{:,} pairs"), ("mean_gap", "mean gap {:.3g}"), ("scores/proxy", "proxy {:.3g}"),
    ("scores/gold", "gold {:.3g}"), ("scores/kl_k1", "KL {:.3g} nats"), ("steps", "{:,} steps"),
    ("train/loss", "loss {:.4f}"), ("train/accuracy", "accuracy {:.1%}"),
    ("train/rewards/accuracies", "accuracy {:.1%}"), ("eval/eval_loss", "held-out loss {:.4f}"),
    ("eval/eval_accuracy", "held-out accuracy {:.1%}"), ("eval/eval_rewards/accuracies", "held-out accuracy {:.1%}"),
    ("steps_labelled", "{:,} labelled steps"), ("steps_right", "{:.1%} of them right"),
    ("kept_share", "{:.1%} kept"), ("flip_rate", "{:.1%} of them flipped"),
    ("verdict", "{}"), ("judged/value", "judged {:.3g}"), ("gain/value", "{:+.3g} against the last accepted"),
    ("accuracy/value", "accuracy {:.1%}"), ("nll/value", "{:.3f} nats per pair"), ("parameters", "{:,} parameters"),
)
"""What a person wants to know of a stage's report: the number's place in it, and how it is said; in this order."""


def found(report: Mapping[str, Any]) -> str:
    """What a stage found, in words; empty where it found nothing worth a line."""
    flat = dict(_flat(report))
    said = (words.format(flat[key]) for key, words in FOUND
            if isinstance(flat.get(key), str if words == "{}" else int | float))
    return ", ".join(said).replace(" kept, of ", " kept of ")


def _flat(report: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    return [pair for key, value in report.items() for pair in (
        _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)])]
