"""Trackers get the rows of trainer_state.json, each once, and change nothing else."""

import json
import math
import struct
import sys
import types

import numpy as np
import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.trackers import PACKAGES, TrackerOptions
from rlhf_jax.config.training import SftOptions
from rlhf_jax.workflow import trackers
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import no_tick
from rlhf_jax.workflow.datasets import GivenGroups
from rlhf_jax.workflow.stage import Run, hash_path
from rlhf_jax.workflow.stages.sft import SftStage
from rlhf_jax.workflow.trackers import package, tracking

OPTIONS = build(SftOptions, {"train_batch_size": 2, "micro_rows": 2, "row_length": 64, "save_steps": 3, "eval_steps": 3,
                             "logging_steps": 2})
CONFIG = {"learning_rate": 0.5, "sizes": (1, 2)}
ROWS = [{"step": 2, "epoch": 0.5, "loss": 1.0}, {"step": 4, "epoch": 1.0, "loss": 0.5},
        {"step": 4, "epoch": 1.0, "eval_loss": 2.0}]


class Killed(Exception):
    """Stands for the end of a process."""


def dies_at(last):
    def tick(name, step, steps, words):
        if step == last:
            raise Killed

    return tick


@pytest.fixture(scope="module")
def train(model, make_context, make_groups):
    """train(folder, names, tick): eight steps of a tiny model, tracked; gives trainer_state.json's rows."""
    groups = make_groups(16, 1, k=(1, 1), pairs="none")
    stage = SftStage(start=Checkpoint(model), data=(GivenGroups(groups),), evaluation=GivenGroups(groups[:3]),
                     options=OPTIONS)

    def run(folder, names=(), tick=no_tick):
        stage.run(folder, make_context(folder, run=Run(folder, CONFIG), tick=tick, trackers=names))
        return json.loads((folder / "model" / "trainer_state.json").read_text())["log_history"]

    return run


@pytest.fixture
def calls(monkeypatch):
    """What a made-up wandb and trackio were told, in order: (what, arguments)."""
    told = []

    def module(name):
        def note(what):
            return lambda *args, **named: told.append((f"{name}.{what}", args, named))

        def init(**named):
            told.append((f"{name}.init", (), named))
            return types.SimpleNamespace(log=note("log"), finish=note("finish"), define_metric=note("define_metric"))

        return types.SimpleNamespace(init=init, finish=note("finish"))

    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, module(name))
        monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    return told


def events(folder):
    """(tag, value, step) of all scalars in a folder's event files, and the text of its config."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, texts = [], []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (size,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + size])
            place += 16 + size
            for value in event.summary.value:
                if value.HasField("tensor"):
                    texts.append(value.tensor.string_val[0].decode())
                else:
                    scalars.append((value.tag, value.simple_value, event.step))
    return scalars, texts


def as_scalars(rows):
    """The same of a log."""
    return [(name, float(np.float32(value)), row["step"]) for row in rows for name, value in row.items()
            if name != "step" and not math.isnan(value)]


def timeless(scalars):
    """Without what a clock measured: rows that are made again differ in it."""
    return [scalar for scalar in scalars if scalar[0] not in ("tokens_per_second", "tflops_per_device", "mfu")]


@pytest.mark.longer
def test_tensorboards_events_are_the_rows_of_the_trainer_state_and_the_model_is_the_same(train, tmp_path):
    pytest.importorskip("tensorboardX")
    rows = train(tmp_path / "tracked", ("tensorboard",))
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 6, 8, 8]
    scalars, texts = events(tmp_path / "tracked")
    assert scalars == as_scalars(rows)
    assert {"loss", "eval_loss", "epoch", "learning_rate"} <= {tag for tag, _, _ in scalars}
    assert "learning_rate: 0.5" in texts[0]
    train(tmp_path / "plain")
    assert hash_path(tmp_path / "tracked" / "model") == hash_path(tmp_path / "plain" / "model")
    names = [{p.name for p in (tmp_path / name / "model").iterdir()} for name in ("tracked", "plain")]
    assert names[0] == names[1]


@pytest.mark.longer
def test_after_restarts_each_row_is_written_once(train, calls, tmp_path):
    pytest.importorskip("tensorboardX")
    names = ("tensorboard", "wandb", "trackio")
    for step in (3, 5, 8):  # before those steps are saved: rows of steps 2 and 4 are made again
        with pytest.raises(Killed):
            train(tmp_path / "s", names, dies_at(step))
    rows = train(tmp_path / "s", names)
    scalars, texts = events(tmp_path / "s")
    assert timeless(scalars) == timeless(as_scalars(rows))
    assert len(texts) == 1
    sent = [(args[0]["step"], "eval_loss" in args[0]) for what, args, _ in calls if what == "wandb.log"]
    assert sent == [(row["step"], "eval_loss" in row) for row in rows]
    assert [named["step"] for what, _, named in calls if what == "trackio.log"] == [row["step"] for row in rows]
    starts = [named for what, _, named in calls if what == "wandb.init"]
    assert len(starts) == 4
    assert all(start == starts[0] for start in starts)
    assert [named["resume"] for what, _, named in calls if what == "trackio.init"] == ["never", *["allow"] * 3]


@pytest.mark.longer
def test_a_tracker_turned_on_after_a_restart_gets_the_earlier_rows_too(train, calls, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, (), dies_at(7))
    rows = train(tmp_path, ("trackio",))
    assert [named["step"] for what, _, named in calls if what == "trackio.log"] == [row["step"] for row in rows]


def test_wandb_and_trackio_are_told_project_name_and_config(calls, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    folder = tmp_path / "sft-0123"
    folder.mkdir()
    with tracking(("wandb", "trackio"), folder, CONFIG) as on_row:
        for row in [*ROWS, {"step": 6, "epoch": 1.5, "loss": float("nan")}]:
            on_row(row)
    told = {what: named for what, _, named in calls if what.endswith("init")}
    identity = told["wandb.init"].pop("id")
    assert json.loads((folder / trackers.SENT).read_text())["wandb"] == {"id": identity, "opened": 1, "rows": 4}
    config = {"learning_rate": 0.5, "sizes": [1, 2]}
    assert told == {
        "wandb.init": {"project": "rlhf_jax", "name": "sft-0123", "resume": "allow", "config": config},
        "trackio.init": {"project": "mine", "name": "sft-0123", "resume": "never", "config": config}}
    assert ("wandb.define_metric", ("*",), {"step_metric": "step"}) in calls
    assert [args[0] for what, args, _ in calls if what == "wandb.log"] == [*ROWS, {"step": 6, "epoch": 1.5}]
    assert [{**args[0], **named} for what, args, named in calls if what == "trackio.log"] == [
        *ROWS, {"step": 6, "epoch": 1.5}]
    assert {what for what, _, _ in calls[-2:]} == {"wandb.finish", "trackio.finish"}


def test_the_ids_of_two_stages_differ_and_all_trackers_are_closed_whatever_happens(calls, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        with pytest.raises(Killed), tracking(("wandb",), tmp_path / name, {}):
            raise Killed
    first, second = [named["id"] for what, _, named in calls if what == "wandb.init"]
    assert first != second
    assert [what for what, _, _ in calls].count("wandb.finish") == 2


def test_a_process_that_is_not_the_main_one_writes_nothing(calls, monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "is_main_process", lambda: False)
    monkeypatch.setattr(trackers, "on_main", lambda fn: None)
    with tracking(("wandb",), tmp_path, {}) as on_row:
        on_row(ROWS[0])
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_the_names_are_checked():
    def names(report_to):
        return TrackerOptions(report_to).names

    assert names("none") == names(("none",)) == names(()) == ()
    assert names("wandb") == names(["wandb"]) == ("wandb",)
    assert names(("tensorboard", "trackio")) == ("tensorboard", "trackio")
    with pytest.raises(ValueError, match="report_to is null; leave it out"):
        names(None)
    for wrong in ("mlflow", ("wandb", "mlflow")):
        with pytest.raises(ValueError, match=r"choose none, or one or several of tensorboard, wandb, trackio"):
            names(wrong)
    for wrong in (("wandb", "none"), ("wandb", "wandb")):
        with pytest.raises(ValueError, match="contradicts itself"):
            names(wrong)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_an_error_that_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)  # an import of it fails
    with pytest.raises(ValueError, match=rf'pip install "rlhf_jax\[{name}\]"'):
        package(name)
