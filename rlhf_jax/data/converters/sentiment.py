"""Preference rows out of sentences that are labelled positive or negative."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def sentiment_pairs(labelled: Iterable[tuple[str, int]], seed: int, max_pairs: int,
                    prompt_text: str = "") -> list[dict[str, Any]]:
    """Preference rows out of labelled sentences: a positive one chosen over a negative one.

    Args:
      labelled: (sentence, label) with label 1 for positive and 0 for negative.
      seed: of the matching; the same seed and sentences give the same rows.
      max_pairs: number of rows at most; there are no more than sentences of the rarer label, each used once.
      prompt_text: prompt of every row; empty rows need `ParseOptions(allow_empty_prompt=True)`.

    Raises:
      ValueError: a label is not 0 or 1, or one of the labels does not occur.
    """
    by_label: dict[int, list[str]] = {0: [], 1: []}
    for sentence, label in labelled:
        if label not in by_label:
            raise ValueError(f"label {label!r} of {sentence[:40]!r} is neither 0 (negative) nor 1 (positive)")
        by_label[label].append(sentence)
    if not by_label[0] or not by_label[1]:
        raise ValueError(f"{len(by_label[1])} positive and {len(by_label[0])} negative sentences make no pair")
    rng = np.random.default_rng(seed)
    positive, negative = (rng.permutation(len(by_label[label])).tolist() for label in (1, 0))
    return [
        {"prompt_id": f"sentiment-{i}", "prompt": prompt_text, "chosen": by_label[1][p], "rejected": by_label[0][n]}
        for i, (p, n) in enumerate(zip(positive, negative, strict=False)) if i < max_pairs
    ]
