"""The arithmetic corner of the embedded world: sums of small numbers, worked out step by step, whose truth is known.

A problem is a number from 1 to 40 and two to four numbers to add or subtract. A writer works it out one operation a
step and at times gets one wrong: a sum is off by a little, or a last digit is written twice; he goes on from what he
wrote. A step is right where the value it ends with is the true one, so that all steps behind a slip are wrong, as
rollouts of a careful writer would find.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from typing import Any

from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.answers import RULES
from rlhf_jax.data.prompt_text import plain_text
from rlhf_jax.data.steps import BETWEEN, MINUS, PLUS

QUESTION = "What is {}?"
SLIPS = (-10, -2, -1, 1, 2, 10)
OF_THE_PEN = 0.5
"""Share of the slips that write the last digit twice, which is seen in the number; the others are sums done wrong."""
SFT_SLIP, STEP_SLIP = 0.06, 0.2
"""How often a step goes wrong in what the policy learns from, and in the solutions that are judged."""
BYTES = 261
"""Tokens of a tokenizer without merges: 256 bytes and five special ones. Digits are tokens of their own."""

Problem = tuple[int, ...]
"""The first number, then those that are added, or subtracted where negative."""


def values(problem: Problem) -> list[int]:
    """The true value after each step."""
    return list(itertools.accumulate(problem))[1:]


def question(problem: Problem) -> str:
    """The problem as it is asked."""
    return QUESTION.format(" ".join([str(problem[0]), *(f"{'-' if x < 0 else '+'} {abs(x)}" for x in problem[1:])]))


def problem_of(text: str) -> Problem:
    """The inverse of `question`."""
    return tuple(int(sign + number) for sign, number in re.findall(r"([+-]?) ?(\d+)", text))


def written_twice(value: int) -> int:
    """The number with its last digit twice."""
    return int(f"{value}{abs(value) % 10}")


def solve(rng: random.Random, problem: Problem, slip: float) -> tuple[list[str], list[bool]]:
    """A writer's steps, and which are right; the last one ends with the answer behind ####."""
    value, steps, right = problem[0], [], []
    for number, truth in zip(problem[1:], values(problem), strict=True):
        result = value + number
        if rng.random() < slip:
            result = written_twice(result) if rng.random() < OF_THE_PEN else result + rng.choice(SLIPS)
        steps.append(f"{value} {'-' if number < 0 else '+'} {abs(number)} = {result}")
        right.append(result == truth)
        value = result
    steps[-1] += f"\n#### {value}"
    return steps, right


def answer_judge(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 where a solution ends with the right answer, else 0; in the signature of reward functions."""
    del columns
    answers = [RULES["gsm8k"].find(plain_text(completion)) for completion in completions]
    return [float(answer == str(values(problem_of(plain_text(prompt)))[-1]))
            for prompt, answer in zip(prompts, answers, strict=True)]


def _problems(rng: random.Random, count: int, taken: set[Problem]) -> list[Problem]:
    """Problems that nobody was given yet."""
    found: list[Problem] = []
    while len(found) < count:
        problem = (rng.randint(1, 40), *(rng.choice((-1, 1)) * rng.randint(1, 9) for _ in range(rng.randint(2, 4))))
        if problem not in taken and min(values(problem)) >= 0:
            taken.add(problem)
            found.append(problem)
    return found


def _row(name: str, problem: Problem, **columns: Any) -> dict[str, Any]:
    return {"id": name, "prompt": [{"role": "user", "content": question(problem)}], **columns,
            "answer": str(values(problem)[-1])}


def _judged(rng: random.Random, name: str, problem: Problem) -> dict[str, Any]:
    steps, right = solve(rng, problem, STEP_SLIP)
    return _row(name, problem, steps=steps, labels=[PLUS if good else MINUS for good in right], label=right[-1])


def _pair(rng: random.Random, name: str, problem: Problem) -> dict[str, Any]:
    """A right and a wrong solution of a problem."""
    good, bad = solve(rng, problem, 0.0), solve(rng, problem, 0.5)
    while bad[1][-1]:
        bad = solve(rng, problem, 0.5)
    chosen, rejected = ([{"role": "assistant", "content": BETWEEN.join(steps)}] for steps, _ in (good, bad))
    return _row(name, problem, chosen=chosen, rejected=rejected)


def arithmetic_rows(config: WorldConfig) -> dict[str, list[dict[str, Any]]]:
    """All data sets, no problem in two of them: sft (solutions with some slips), steps and steps_eval (solutions whose
    steps are judged), preference_eval (a right and a wrong solution), prompts and eval_prompts with their answers."""
    rng, taken = random.Random(f"arithmetic {config.seed}"), set[Problem]()
    held_out = max(100, config.preference_rows // 10)

    def each(name: str, count: int, make: Any) -> list[dict[str, Any]]:
        return [make(f"{name}-{i}", problem) for i, problem in enumerate(_problems(rng, count, taken))]

    def solved(name: str, problem: Problem) -> dict[str, Any]:
        text = BETWEEN.join(solve(rng, problem, SFT_SLIP)[0])
        return _row(name, problem, completion=[{"role": "assistant", "content": text}])

    return {"sft": each("sft", config.sft_rows, solved),
            "steps": each("steps", config.preference_rows, lambda name, problem: _judged(rng, name, problem)),
            "steps_eval": each("held-out", held_out, lambda name, problem: _judged(rng, name, problem)),
            "preference_eval": each("pair", held_out, lambda name, problem: _pair(rng, name, problem)),
            "prompts": each("prompts", config.prompt_rows, _row),
            "eval_prompts": each("eval_prompts", config.eval_prompts, _row)}
