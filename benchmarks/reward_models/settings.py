"""On what reward models are trained and measured: the embedded world, and graded answers of real models.

A setting has training pairs, rated answers with holes, and held-out answers with numbers that say which is better.
"""

import dataclasses
import gzip
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import rlhf_jax
from rlhf_jax.config.run import ScratchOptions
from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.converters import find_converter
from rlhf_jax.data.jsonl import read_jsonl, write_jsonl_atomic
from rlhf_jax.data.ratings import Scale
from rlhf_jax.data.world import gold_judge, write_world
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.stages.scratch import ScratchStage

VERBOSITY = "verbosity"
"""The rating that ArmoRM frees the others of."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where the rows are, and with what keys commands read them.

    Attributes:
      title: in the page. folder: of what is made.
      start: the model that reward models start from.
      pairs, rated, held_out: files of preference rows, of rated rows, and of the answers that are scored at the end.
      truths: number of a held-out answer -> what a person reads. The first is what the labels say.
      overall: the rating that a regression's score is; ridge serves it.
      rows: keys of reading and rendering. train: of training; own: more of them by kind. probe: of `probe`.
      scoring: keys of every scorer.
    """

    title: str
    folder: Path
    start: Path
    pairs: Path
    rated: Path
    held_out: Path
    truths: Mapping[str, str]
    overall: str
    train: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]]
    probe: Mapping[str, Any]
    rows: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scoring: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def world(folder: Path, rows: int, taste: float) -> Setting:
    """Postcards whose labels like long answers more than the judge does; the start is a tiny model that read some."""
    data = folder / "world"
    config = WorldConfig(sft_rows=rows, preference_rows=rows, rated_rows=rows // 2, length_taste=taste)
    if not (data / "tokenizer").is_dir():
        write_world(data, config)
    start = folder / "start"
    if not (start / "model").is_dir():
        options = ScratchOptions(str(data / "tokenizer"), embed=96, layers=3, heads=4, kv_heads=2, mlp=256)
        ScratchStage(options=options, tokenizer=Checkpoint(data / "tokenizer"), seed=0).run(start, None)
    train = {"train_batch_size": 16, "micro_rows": 4, "row_length": 160, "num_train_epochs": 2, "warmup_steps": 0.1}
    rlhf_jax.run("sft", model_name_or_path=start / "model", dataset_name=data / "sft.jsonl", learning_rate=3e-3,
                 output_dir=folder / "sft", **train)
    held_out = folder / "held_out.jsonl"
    write_jsonl_atomic(held_out, _world_answers(data))
    own = {"odin": {"train_batch_size": 32, "micro_rows": 32, "num_train_epochs": 3},
           "pairwise": {"row_length": 256, "learning_rate": 1e-3, "num_train_epochs": 1},
           "regression": {"row_length": 256}}  # four answers to a prompt
    return Setting(
        "The embedded world", folder, folder / "sft/model", data / "preference.jsonl", data / "rated.jsonl", held_out,
        {"label": "labels", "gold": "truth"}, "overall", {**train, "learning_rate": 4e-4, "weight_decay": 0.01},
        own, {"gate_hidden": 64, "gate_steps": 1000, "gate_batch_size": 256, "tree_depth": 5})


def _world_answers(data: Path) -> Iterator[dict[str, Any]]:
    """Rated answers, and those of the held-out pairs with their label; all with the judge's score."""
    for row in read_jsonl(data / "rated_eval.jsonl"):
        yield {**row, "responses": [_judged(row["prompt"], answer["text"], answer["scores"])
                                    for answer in row["responses"]]}
    for row in read_jsonl(data / "preference_eval.jsonl"):
        yield {"id": row["id"], "prompt": row["prompt"],
               "responses": [_judged(row["prompt"], row[side], {"label": label})
                             for side, label in (("chosen", 1.0), ("rejected", 0.0))]}


def _judged(prompt: Any, text: Any, scores: Mapping[str, float]) -> dict[str, Any]:
    return {"text": text, "scores": {**scores, "gold": gold_judge([prompt], [text])[0]}}


SOURCES = {
    "alpacaeval": ("alpacaeval-graded", "alpacaeval_graded", Scale()),
    "best_of_n": ("bon-tulu2-dpo-13b", "bon_graded", Scale()),
    "arena": ("arena-bench-graded", None, Scale(1, 10, False)),
    "webgpt": ("webgpt", "webgpt", None),
}
"""Objective -> its folder, its converter, the scale of its scores (None: what training rows span)."""
TITLES = {"alpacaeval": "AlpacaEval", "best_of_n": "best of n", "arena": "Arena", "webgpt": "WebGPT"}


def graded(folder: Path, data: Path, backbone: Path, prompts: int, answers: int, characters: int) -> Setting:
    """Answers that judges and people graded, four sets as four objectives: an answer has the one of its set.

    Args:
      data: has a folder for each of `SOURCES`, with train.jsonl.gz and valid.jsonl.gz.
      backbone: model to start from.
      prompts: of each set's training part at most. answers: of each prompt, drawn from those that are no longer with
        their prompt than so many characters.
    """
    limits = {name: _span(name, data) for name in SOURCES}
    for part, most in (("train", prompts), ("valid", None)):
        write_jsonl_atomic(folder / f"{part}.jsonl", [row for name, scale in limits.items() for row in _graded_rows(
            name, data, part, scale, answers, characters)[:most]])
    rows = {"text_as_chat": True, "chat_template_path": "zephyr", "max_length": 256, "overlong": "drop"}
    train = {"train_batch_size": 16, "micro_rows": 2, "num_train_epochs": 1, "learning_rate": 2e-4, "warmup_steps": 0.1,
             "weight_decay": 0.01}
    file = folder / "train.jsonl"
    return Setting(
        "Graded answers", folder, backbone, file, file, folder / "valid.jsonl", TITLES, "alpacaeval", train,
        {"odin": {"micro_rows": 16}, "pairwise": {"pair_rule": "best_worst"}},
        {"few_rows": True, "gate_hidden": 64, "gate_steps": 500, "gate_batch_size": 256}, rows,
        {"text_as_chat": True, "max_length": 256})


def _read(name: str, data: Path, part: str) -> list[Mapping[str, Any]]:
    folder, converter, _ = SOURCES[name]
    convert = (lambda row: row) if converter is None else find_converter(converter)
    with gzip.open(data / folder / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [convert(json.loads(line)) for line in lines]


def _span(name: str, data: Path) -> Scale:
    """The scale of a set's scores."""
    scale = SOURCES[name][2]
    if scale is None:
        scores = [answer["score"] for row in _read(name, data, "train") for answer in row["responses"]]
        scale = Scale(min(scores), max(scores), False)
    return scale


def _graded_rows(name: str, data: Path, part: str, scale: Scale, answers: int, characters: int) -> list[dict[str, Any]]:
    """Rows with a score for pairs, and the rating of the set in 0 to 1; only prompts with two answers that fit."""
    rng, rows = random.Random(f"{name} {part}"), []
    for number, row in enumerate(_read(name, data, part)):
        fitting = [answer for answer in row["responses"] if answer["score"] is not None
                   and answer["text"].strip() and len(row["prompt"]) + len(answer["text"]) <= characters]
        if len(fitting) > 1:
            drawn = rng.sample(fitting, min(answers, len(fitting)))
            rows.append({"id": f"{name}-{part}-{number}", "prompt": row["prompt"], "responses": [
                {"text": answer["text"], "score": answer["score"],
                 "scores": {name: scale.to_unit(min(max(answer["score"], scale.low), scale.high)),
                            VERBOSITY: min(1.0, len(answer["text"]) / characters)}} for answer in drawn]})
    rng.shuffle(rows)
    return rows


def graded_answers(name: str, data: Path, count: int, answers: int) -> list[dict[str, Any]]:
    """`count` answers of a set's training part as rows of `answers` each; a prompt with more comes again.

    Raises:
      ValueError: it has fewer.
    """
    scale, rows = _span(name, data), []
    for row in _graded_rows(name, data, "train", scale, 1000, 700):
        for start in range(0, len(row["responses"]) - answers + 1, answers):
            rows.append({**row, "id": f"{row['id']}/{start}", "responses": row["responses"][start : start + answers]})
    if len(rows) * answers < count:
        raise ValueError(f"{SOURCES[name][0]} has {len(rows) * answers:,} short answers, and {count:,} are to be "
                         "timed; give smaller --sizes")
    return rows[: -(-count // answers)]
