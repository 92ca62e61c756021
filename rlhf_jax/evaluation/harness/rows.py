"""A user's files as the harness's tasks want them: the columns of the hub's data sets, by split."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.files import read_file
from rlhf_jax.data.jsonl import SourceError

Row = Mapping[str, Any]
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet")
SUBJECTS = {"Algebra": "algebra", "Counting & Probability": "counting_and_probability", "Geometry": "geometry",
            "Intermediate Algebra": "intermediate_algebra", "Number Theory": "number_theory",
            "Prealgebra": "prealgebra", "Precalculus": "precalculus"}
"""MATH's types -> the hub's names of its parts."""


class Data(NamedTuple):
    """A benchmark's files and rows.

    Attributes:
      files: split -> places below the data folder, without their endings; the first that is there is read.
      row: a row of the files -> as the hub's data set has it; KeyError names a column that is missing.
      part: a row -> the name of the part (subject, type) that it belongs to; None where there are no parts.
      optional: splits that may be missing: examples for few-shot prompts.
    """

    files: Mapping[str, tuple[str, ...]]
    row: Callable[[Row], dict[str, Any]]
    part: Callable[[Row], str] | None = None
    optional: tuple[str, ...] = ()


def taken(*columns: str) -> Callable[[Row], dict[str, Any]]:
    """These columns as they are."""
    return lambda row: {column: row[column] for column in columns}


def choice_question(row: Row) -> dict[str, Any]:
    """MMLU: the answer as a place; files have it as a letter or as a place."""
    answer = row["answer"]
    place = "ABCD".index(answer) if isinstance(answer, str) else int(answer)
    return {"question": row["question"], "choices": list(row["choices"]), "answer": place, "subject": row["subject"]}


def science_question(row: Row) -> dict[str, Any]:
    """ARC: choices as lists of texts and labels; files may have {label: text}."""
    choices = row["choices"]
    if "text" not in choices:
        choices = {"text": list(choices.values()), "label": list(choices)}
    return {"question": row["question"], "choices": {name: list(choices[name]) for name in ("text", "label")},
            "answerKey": row["answerKey"] if "answerKey" in row else row["answer"]}


def truthful_question(row: Row) -> dict[str, Any]:
    """TruthfulQA: choices and labels as lists, right ones first; the authors' file has {choice: label}."""
    targets = {}
    for name in ("mc1_targets", "mc2_targets"):
        given = row[name]
        pairs = list(zip(given["choices"], given["labels"], strict=True)) if "choices" in given else given.items()
        pairs = sorted(pairs, key=lambda pair: -pair[1])
        targets[name] = {"choices": [choice for choice, _ in pairs], "labels": [int(label) for _, label in pairs]}
    return {"question": row["question"], **targets}


def math_problem(row: Row) -> dict[str, Any]:
    return {"problem": row["problem"], "solution": row["solution"], "type": row.get("type", row.get("subject", ""))}


MBPP_TESTS = range(11, 511)
"""Task ids of its 500 tests."""
_CODE = taken("task_id", "prompt", "canonical_solution", "test", "entry_point")

DATA: dict[str, Data] = {
    "gsm8k": Data({"train": ("gsm8k/train",), "test": ("gsm8k/test",)}, taken("question", "answer")),
    "math": Data({"train": ("math/train",), "test": ("math/test",)}, math_problem,
                 lambda row: SUBJECTS.get(row["type"], str(row["type"])), ("train",)),
    "math500": Data({"test": ("math500/test",)}, math_problem),
    "mmlu": Data({"dev": ("mmlu/dev",), "test": ("mmlu/test",), "validation": ("mmlu/val", "mmlu/validation")},
                 choice_question, lambda row: row["subject"], ("validation",)),
    "arc_challenge": Data({"train": ("arc-challenge/train",), "validation": ("arc-challenge/validation",),
                           "test": ("arc-challenge/test", "arc-challenge/arc_challenge")}, science_question,
                          optional=("train", "validation")),
    "arc_easy": Data({"train": ("arc-easy/train",), "validation": ("arc-easy/validation",), "test": ("arc-easy/test",)},
                     science_question, optional=("train", "validation")),
    "truthfulqa": Data({"validation": ("truthfulqa/mc_task",)}, truthful_question),
    "humaneval": Data({"test": ("humaneval/HumanEval",)}, _CODE),
    "humaneval_plus": Data({"test": ("humaneval/HumanEvalPlus",)}, _CODE),
    "mbpp": Data({"test": ("mbpp/mbpp",)}, taken("task_id", "text", "code", "test_list"),
                 lambda row: "test" if row["task_id"] in MBPP_TESTS else "other"),
}
"""Benchmark -> where its rows lie in a data folder (docs/evaluating.md has the table)."""


def find_files(benchmark: str, data_dir: str | Path) -> dict[str, Path]:
    """Split -> its file, for the splits that are there.

    Raises SourceError, which names the places, where one that is needed is missing.
    """
    data, found = DATA[benchmark], {}
    for split, places in data.files.items():
        paths = [Path(data_dir).expanduser() / (place + ending) for place in places for ending in ENDINGS]
        if there := [path for path in paths if path.is_file()]:
            found[split] = there[0]
        elif split not in data.optional:
            raise SourceError(f"{data_dir} holds no {' and no '.join(places)} ({', '.join(ENDINGS)}), the {split} rows "
                              f"of {benchmark}; put them there, or leave its tasks out")
    return found


def splits(*, benchmark: str, data_dir: str, part: str | None = None, **other: Any) -> dict[str, Any]:
    """Split -> its rows as a `datasets.Dataset`: what the harness calls as a task's `custom_dataset`.

    part: of the benchmark, where a task is about one. other: what the harness says besides.

    Raises:
      SourceError: a file is missing or holds other rows.
    """
    del other
    import datasets

    found = {split: _rows(benchmark, path, path.stat().st_mtime_ns)
             for split, path in find_files(benchmark, data_dir).items()}
    made = {}
    for split, rows in found.items():
        kept = [row for name, row in rows if part is None or name == part]
        if not kept:
            whose = benchmark if part is None else f"{benchmark}'s {part!r}"
            raise SourceError(f"the {split} file in {data_dir} holds no row of {whose}; see that it is whole")
        made[split] = datasets.Dataset.from_list(kept)
    return made


@functools.lru_cache(maxsize=8)
def _rows(benchmark: str, path: Path, changed: int) -> list[tuple[str | None, dict[str, Any]]]:
    """(part, row) of each row of a file, which stays as it is between the tasks that read it."""
    del changed
    data, rows = DATA[benchmark], []
    for number, row in read_file(path):
        if isinstance(row, BadRow):
            raise SourceError(f"{path}, row {number}: {row.message}")
        try:
            rows.append((None if data.part is None else data.part(row), data.row(row)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceError(f"{path}, row {number} is no row of {benchmark}: {type(error).__name__}: {error}; its "
                              f"columns are {', '.join(row)}") from error
    return rows
