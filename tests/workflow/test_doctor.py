"""What `doctor` finds: one finding for each check that can be made, and one for each cause that prevents some."""

import shutil

import pytest

from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.doctor import examine

CHECKS = ["weights", "vocabulary", "chat template", "BOS", "stop token", "stop token trained", "padding", "step 0"]
NO_STOP = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}. {% endfor %}"


@pytest.fixture
def copy(model, tmp_path):
    return Checkpoint(shutil.copytree(model, tmp_path / "model"))


def test_a_sound_model_passes_every_check(model, lone_mesh):
    found = examine(Checkpoint(model), lone_mesh)
    assert [one.check for one in found] == CHECKS
    assert [one.check for one in found if one.verdict == "fail" and one.check != "step 0"] == []  # fresh weights


@pytest.mark.parametrize(("spoil", "blocked", "said"), [
    (lambda folder: (folder / "tokenizer.json").unlink(), CHECKS[1:-1], "no tokenizer can be loaded"),
    (lambda folder: (folder / "config.json").unlink(), CHECKS, "holds no config.json"),
    (lambda folder: (folder / "chat_template.jinja").write_text(NO_STOP), CHECKS[1:], "could not learn to stop"),
    (lambda folder: (folder / "model.safetensors").unlink(), ["weights", "step 0"], "holds neither model.safetensors"),
])
def test_one_cause_is_said_once_with_all_it_prevents(spoil, blocked, said, copy, lone_mesh):
    spoil(copy.folder)
    found = examine(copy, lone_mesh)
    failed = [one for one in found if said in one.seen]
    assert len(failed) == 1
    assert failed[0].verdict == "fail"
    assert set(failed[0].check.split(", ")) >= {name for name in blocked if name != "padding"}
    names = ", ".join(one.check for one in found).split(", ")
    assert sorted(names) == sorted(CHECKS)
