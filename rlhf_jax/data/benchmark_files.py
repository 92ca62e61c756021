"""The official files of AlpacaEval 2, Arena-Hard and MT-Bench: questions, answers, judgements, prompts of judges."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.files import read_file
from rlhf_jax.data.jsonl import SourceError

T = TypeVar("T")
Rows = Sequence[Mapping[str, Any]]
Labels = tuple[str | None, str | None]
"""Of the two games of a question."""


class Question(NamedTuple):
    """A question of a benchmark. turns: what the user says, one after the other."""

    uid: str
    category: str
    turns: tuple[str, ...]


class Answer(NamedTuple):
    """A model's answer, turn by turn. metadata: what the file says of its style."""

    turns: tuple[str, ...]
    metadata: Mapping[str, Any] = {}


def find_file(folder: Path, what: str, *names: str) -> Path:
    """The first of some files, compressed or not, that lies in a folder.

    Raises:
      SourceError: none does; lists them.
    """
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise SourceError(f"{folder} holds no {what}: {' or '.join(names)}. Put the benchmark's official file there "
                      "(docs/chat-benchmarks.md says where each comes from)")


def read_official(path: str | Path, *columns: str) -> Rows:
    """The rows of a file (JSON list, JSON lines, CSV), each with these columns. Raises SourceError."""
    path = Path(path)
    rows: list[Mapping[str, Any]] = []
    if not path.is_file():
        raise SourceError(f"there is no file {str(path)!r}")
    for number, row in read_file(path):
        if isinstance(row, BadRow):
            raise SourceError(f"{path}, row {number}: {row.message}") from row
        if missing := [column for column in columns if column not in row]:
            raise SourceError(f"{path}, row {number} has no {missing[0]!r}; its columns are {', '.join(row)}. Is it "
                              "the file of another benchmark?")
        rows.append(row)
    if not rows:
        raise SourceError(f"{path} holds no rows")
    return rows


def check_same(found: Iterable[str], questions: Sequence[Question], where: str | Path) -> None:
    """Raises SourceError unless a file holds exactly the questions of the benchmark, each once."""
    uids, wanted = list(found), [question.uid for question in questions]
    if len(uids) != len(set(uids)):
        twice = next(uid for uid in uids if uids.count(uid) > 1)
        raise SourceError(f"{where} holds the question {twice!r} twice")
    if set(uids) != set(wanted):
        missing, foreign = set(wanted) - set(uids), set(uids) - set(wanted)
        first = f"the first that is missing is {min(missing)!r}" if missing else f"one too many is {min(foreign)!r}"
        raise SourceError(f"{where} is about other questions: of {len(wanted)} questions {len(missing)} are missing, "
                          f"and {len(foreign)} are none of this benchmark's; {first}. A score of other questions would "
                          "mean nothing")


def of_these(found: Mapping[str, T], questions: Sequence[Question], where: str | Path, some: bool) -> dict[str, T]:
    """uid -> value of each question, in their order. some: they are a part, so that a file may hold others too.

    Raises:
      SourceError: as `check_same`.
    """
    wanted = {question.uid for question in questions}
    check_same([uid for uid in found if uid in wanted or not some], questions, where)
    return {question.uid: found[question.uid] for question in questions}


def filled(template: str, **values: str) -> str:
    """A template with {name} replaced by its value; other braces stay, also those in values."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found.group(1), found.group(0)), template)


def _add(found: dict[str, T], uid: str, value: T, path: str | Path) -> None:
    if uid in found:
        raise SourceError(f"{path} holds the question {uid!r} twice")
    found[uid] = value


def _text(row: Mapping[str, Any], column: str, path: Path | str) -> str:
    if not isinstance(row[column], str):
        raise SourceError(f"{path}: column {column!r} holds {type(row[column]).__name__} where it should be text")
    return row[column]


# AlpacaEval 2


def read_alpaca_outputs(path: str | Path) -> list[tuple[str, str]]:
    """(instruction, output) of each row of a model_outputs.json."""
    return [(_text(row, "instruction", path), _text(row, "output", path))
            for row in read_official(path, "instruction", "output")]


def by_instruction(rows: Sequence[tuple[str, Any]], questions: Sequence[Question]) -> dict[str, Any]:
    """uid -> value, from (instruction, value); an instruction that occurs again belongs to the next question of it."""
    uids: dict[str, list[str]] = {}
    for question in questions:
        uids.setdefault(question.turns[0], []).append(question.uid)
    return {(uids[text].pop(0) if uids.get(text) else f"? {text[:60]}"): value for text, value in rows}


def alpaca_output_rows(questions: Sequence[Question], answers: Mapping[str, Answer], model: str) -> Rows:
    """A model_outputs.json, in the baseline's order."""
    return [{"instruction": q.turns[0], "output": answers[q.uid].turns[0], "generator": model, "dataset": q.category}
            for q in questions]


# Arena-Hard


def read_arena_questions(path: Path) -> list[Question]:
    """`question.jsonl` of v0.1 or v2."""
    return [Question(str(row["uid"]), str(row["category"]), (_text(row, "prompt", path),))
            for row in read_official(path, "uid", "category", "prompt")]


def read_arena_answers(path: str | Path) -> dict[str, Answer]:
    """`model_answer/MODEL.jsonl` in the layout of v2, or in the old one of v0.1. Raises SourceError."""
    found: dict[str, Answer] = {}
    for number, row in enumerate(read_official(path), start=1):
        try:
            if "messages" in row:
                uid, content = str(row["uid"]), row["messages"][-1]["content"]
                text, metadata = content["answer"] if isinstance(content, dict) else content, row.get("metadata") or {}
            else:
                uid, turn = str(row["question_id"]), row["choices"][0]["turns"][0]
                text, metadata = turn["content"], {"token_len": turn["token_len"]} if "token_len" in turn else {}
        except (KeyError, IndexError, TypeError) as error:
            raise SourceError(f"{path}, row {number} is no answer in Arena-Hard's layout ({error!r})") from error
        if not isinstance(text, str):
            raise SourceError(f"{path}, row {number}: the answer to question {uid!r} is no text")
        _add(found, uid, Answer((text,), metadata), path)
    return found


def arena_answer_rows(questions: Sequence[Question], answers: Mapping[str, Answer], model: str) -> Rows:
    """A `model_answer/MODEL.jsonl` in the layout of v2."""
    return [{"uid": q.uid, "ans_id": _answer_id(model, q.uid), "model": model,
             "messages": [{"role": "user", "content": q.turns[0]},
                          {"role": "assistant", "content": {"answer": answers[q.uid].turns[0]}}],
             "tstamp": 0.0, "metadata": dict(answers[q.uid].metadata)} for q in questions]


def read_arena_labels(path: str | Path) -> dict[str, Labels]:
    """uid -> the labels of the two games, from a `model_judgment/JUDGE/MODEL.jsonl` of v0.1 or v2."""
    found: dict[str, Labels] = {}
    for number, row in enumerate(read_official(path, "games"), start=1):
        try:
            uid = str(row["uid"] if "uid" in row else row["question_id"])
            first, second = (None if game is None else game["score"] for game in row["games"])
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{path}, row {number} is no judgement of two games ({error!r})") from error
        _add(found, uid, (first, second), path)
    return found


# MT-Bench


def read_mt_questions(path: Path) -> list[Question]:
    """`question.jsonl`."""
    return [Question(str(row["question_id"]), str(row["category"]), tuple(row["turns"]))
            for row in read_official(path, "question_id", "category", "turns")]


def read_mt_answers(path: str | Path) -> dict[str, Answer]:
    """`model_answer/MODEL.jsonl`, or a file of reference answers. Raises SourceError."""
    found: dict[str, Answer] = {}
    for number, row in enumerate(read_official(path, "question_id", "choices"), start=1):
        try:
            turns = tuple(row["choices"][0]["turns"])
        except (LookupError, TypeError) as error:
            raise SourceError(f"{path}, row {number} is no answer in MT-Bench's layout ({error!r})") from error
        if len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
            raise SourceError(f"{path}, row {number} has {len(turns)} turns; MT-Bench has two, each a text")
        _add(found, str(row["question_id"]), Answer(turns), path)
    return found


def mt_answer_rows(questions: Sequence[Question], answers: Mapping[str, Answer], model: str) -> Rows:
    """A `model_answer/MODEL.jsonl`."""
    return [{"question_id": _number(q.uid), "answer_id": _answer_id(model, q.uid), "model_id": model,
             "choices": [{"index": 0, "turns": list(answers[q.uid].turns)}], "tstamp": 0.0} for q in questions]


def _number(uid: str) -> int | str:
    return int(uid) if uid.isdecimal() else uid


def _answer_id(model: str, uid: str) -> str:
    return hashlib.sha256(f"{model} {uid}".encode()).hexdigest()[:22]
