"""What the code tasks in `tasks/` call: programs from a model's answers, and the share of them that pass."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation.harness.programs import all_pass
from rlhf_jax.evaluation.voting import Ballot, pass_at

_FENCED = re.compile(r"```(?:\w+)?\n?(.*?)\n?```", re.DOTALL)


def continued(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """HumanEval: the prompt, a function's head, with what continues it."""
    return [[doc["prompt"] + answer for answer in answers] for answers, doc in zip(resps, docs, strict=True)]


def continued_to_fence(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """HumanEval of chat models: up to the end of the code block that the prompt opened."""
    return continued([[answer.split("```")[0] for answer in answers] for answers in resps], docs)


def fenced(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """MBPP of chat models: the first code block, of which the prompt wrote the opening; "" where it never closes."""
    del docs
    return [[found[0] if (found := _FENCED.findall("```" + answer)) else "" for answer in answers] for answers in resps]


def pass_at_k(references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> dict[str, float]:
    """{"pass@k": the chance that one of k programs passes the tests}, for one problem with all its programs."""
    (tests,), (programs,) = references, predictions
    correct = np.array(all_pass([f"{program}\n{tests}" for program in programs]))
    ballot = Ballot(np.full(len(correct), -1), correct)
    return {f"pass@{n}": pass_at(ballot, n) for n in k if n <= len(correct)}


def pass_at_1(references: Sequence[str], predictions: Sequence[Any]) -> float:
    """The share of a problem's programs that pass its tests."""
    (programs,) = predictions
    return pass_at_k(references, [[programs] if isinstance(programs, str) else programs], [1])["pass@1"]
