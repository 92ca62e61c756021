"""The kinds of reward models: how each is made in a setting, and by what keys it is served. One row each."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from settings import VERBOSITY, Setting

import rlhf_jax

RATED = "features-rated"
"""Folder of the features of rated answers."""
Make = Callable[[Setting], Mapping[str, Any]]
"""Makes a model in a setting, or finds it made; the keys of `score` that open it."""


class Row(NamedTuple):
    """made_by: the command, for a person. make: does it."""

    made_by: str
    make: Make


def trained(kind: str) -> Make:
    """A model that `reward` trains on the setting's pairs."""

    def make(setting: Setting) -> Mapping[str, Any]:
        folder = setting.folder / kind
        rlhf_jax.run("reward", kind=kind, model_name_or_path=setting.start, dataset_name=setting.pairs,
                     output_dir=folder, **{**setting.rows, **setting.train, **setting.own.get(kind, {})})
        return {"kind": kind, "model_name_or_path": folder / "model"}

    return make


def features(setting: Setting) -> tuple[Path, Path]:
    """Folders of the features of rated answers and of pairs, read from the setting's Bradley-Terry model."""
    backbone = trained("bradley_terry")(setting)["model_name_or_path"]
    rows = {key: value for key, value in setting.rows.items() if key != "chat_template_path"}  # the model has it
    files = {RATED: ("graded", setting.rated), "features-pairs": ("preference", setting.pairs)}
    if setting.pairs == setting.rated:
        files = {RATED: ("preference", setting.rated)}  # graded rows that have a score as well make pairs
    for name, (kind, file) in files.items():
        rlhf_jax.run("features", kind=kind, model_name_or_path=backbone, dataset_name=file,
                     output_dir=setting.folder / name, **rows)
    return setting.folder / RATED, setting.folder / list(files)[-1]


def regressed(setting: Setting) -> Mapping[str, Any]:
    """A regression of the setting's ratings, all weights trained; served by the one that is the score."""
    folder = setting.folder / "regression"
    rlhf_jax.run("reward", kind="regression", objectives=objectives(features(setting)[0]), output_dir=folder,
                 model_name_or_path=setting.start, dataset_name=setting.rated,
                 **{**setting.rows, **setting.train, **setting.own.get("regression", {})})
    return {"kind": "regression", "model_name_or_path": folder / "model", "objective": setting.overall}


def probed(kind: str, served: str, *keys: str, **more: Any) -> Make:
    """A model that `probe` makes on the features. keys: those of the setting's that it reads. served: its scorer."""

    def make(setting: Setting) -> Mapping[str, Any]:
        rated, pairs = features(setting)
        folder = setting.folder / kind
        given = {key: setting.probe[key] for key in (*keys, "few_rows") if key in setting.probe}
        if kind != "ridge":
            given["pairs"] = pairs
        rlhf_jax.run("probe", kind=kind, model_name_or_path=setting.folder / "bradley_terry/model", ratings=rated,
                     output_dir=folder, objectives=objectives(rated), **given, **more)
        scorer = {"kind": served, "model_name_or_path": folder / "model"}
        if served == "bradley_terry":
            scorer["output"] = [name.removeprefix("data/") for name in objectives(rated)].index(setting.overall)
        return scorer

    return make


def objectives(rated: Path) -> list[str]:
    """The ratings by name, in one order; not the score that pairs were made of."""
    found = {name for file in sorted(rated.glob("shard-*.jsonl")) for line in file.read_text().splitlines()
             for answer in json.loads(line)["responses"] for name in answer["scores"]}
    return sorted(name for name in found if name.startswith("data/"))


ROWS: dict[str, Row] = {
    "bradley_terry": Row("reward --kind bradley_terry", trained("bradley_terry")),
    "pairwise": Row("reward --kind pairwise", trained("pairwise")),
    "odin": Row("reward --kind odin", trained("odin")),
    "ensemble": Row("reward --kind ensemble", trained("ensemble")),
    "regression": Row("reward --kind regression", regressed),
    "ridge": Row("probe --kind ridge", probed("ridge", "bradley_terry")),
    "armorm": Row("probe --kind armorm", probed("armorm", "multi_objective", "gate_hidden", "gate_steps",
                                                  "gate_batch_size", debias=VERBOSITY)),
    "tree": Row("probe --kind tree", probed("tree", "tree", "tree_depth")),
}

