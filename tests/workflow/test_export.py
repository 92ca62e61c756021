"""Export, inspect and doctor on the world's own model and on checkpoints that are wrong in one way each."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import (
    CheckpointError,
    LoraConfig,
    init_lora,
    load_params,
    merge_lora,
    param_specs,
    read_config,
    save_adapter,
)
from rlhf_jax.parallel import MeshConfig, make_mesh
from rlhf_jax.workflow.doctor import examine
from rlhf_jax.workflow.export import export_stage, find_source
from rlhf_jax.workflow.inspection import inspect_model
from rlhf_jax.workflow.options import SftOptions
from rlhf_jax.workflow.policy import Checkpoint
from rlhf_jax.workflow.stage import run_stage
from rlhf_jax.workflow.train import Setting, sft_stage

LORA = LoraConfig(2, 4.0, ("q_proj", "down_proj"))


@pytest.fixture
def model(make_model, tmp_path):
    """A folder with a tiny random model and the world's tokenizer."""
    return make_model(tmp_path / "model", tie_embeddings=False)


def export(source, folder, mesh, **changes):
    options = {"dtype": "float32", "max_shard_bytes": 10**9, **changes}
    return export_stage(folder, source=source, mesh=mesh, **options)


def test_an_adapter_is_merged_into_the_base_it_names(model, lone_mesh, tmp_path):
    config = read_config(model)
    adapter = jax.tree.map(lambda x: x + 0.1, init_lora(jax.random.key(1), config, LORA))
    save_adapter(tmp_path / "adapter", adapter, config, LORA, str(model), chat_template="{# its own #}")
    report = export(find_source(str(tmp_path / "adapter"), None, None), tmp_path / "out", lone_mesh)
    expected = merge_lora(jax.tree.map(jnp.asarray, load_params(model)), adapter, LORA.scale)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "out" / "model"), jax.device_get(expected))
    assert {"model.safetensors", "tokenizer.json", "README.md", "generation_config.json"} <= set(report["files"])
    assert (tmp_path / "out" / "model" / "chat_template.jinja").read_text() == "{# its own #}"
    assert "adapter `adapter` (rank 2)" in (tmp_path / "out" / "model" / "README.md").read_text()


def test_dtype_and_file_size_are_what_was_asked_for(model, lone_mesh, tmp_path):
    export(find_source(str(model), None, None), tmp_path / "out", lone_mesh, dtype="float16", max_shard_bytes=5000)
    files = sorted((tmp_path / "out" / "model").glob("*.safetensors"))
    assert len(files) > 2
    assert {x.dtype for file in files for x in load_file(file).values()} == {np.dtype(np.float16)}
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["dtype"] == "float16"


def test_sources_that_cannot_be_told_are_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match="is no folder on this machine and no hub name"):
        find_source(str(tmp_path / "nothing"), None, None)
    with pytest.raises(CheckpointError, match="whole model and needs no base_model"):
        find_source(str(model), str(model), None)
    save_adapter(tmp_path / "adapter", init_lora(jax.random.key(1), read_config(model), LORA), read_config(model), LORA,
                 str(model))
    with pytest.raises(CheckpointError, match=r"adapter, not a whole model; merge it .*rlhf-jax export"):
        read_config(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="so does an adapter"):
        find_source(str(tmp_path / "adapter"), None, str(model))


def test_inspect_counts_what_there_is_and_what_one_device_holds(model):
    found = inspect_model(model, MeshConfig(fsdp=2, tensor=2), 4)
    assert found.loads
    config = Checkpoint(model).config
    whole = sum(np.prod(s.shape) for s in jax.tree.leaves(param_specs(config), is_leaf=lambda x: hasattr(x, "hf_name")))
    assert whole / 4 * 4 < found.memory["weights, float32"] < whole / 4 * 4 * 1.2  # all but the norms are cut in four
    assert found.memory["weights, bfloat16"] * 2 == found.memory["weights, float32"]
    assert found.facts["architecture"] == "LlamaForCausalLM"
    tensors = load_file(model / "model.safetensors")
    tensors["extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, model / "model.safetensors")
    wrong = inspect_model(model, MeshConfig(), 1)
    assert (wrong.missing, wrong.unexpected, wrong.loads) == (["model.norm.weight"], ["extra.weight"], False)


def verdicts(checkpoint, mesh):
    return {one.check: one.verdict for one in examine(checkpoint, mesh)}


def test_a_sound_model_passes_every_check_and_an_untrained_one_is_noted(model, lone_mesh):
    found = verdicts(Checkpoint(model), lone_mesh)
    assert found.pop("step 0") in ("note", "fail")  # fresh weights: about chance
    assert set(found.values()) == {"ok"}


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_end_of_turn(model):
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")


def repeat_bos(model):
    (model / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}")
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template.replace("{{ bos_token }}", "{{ bos_token + bos_token }}"))


def foreign_stop(model):
    change_json(model / "generation_config.json", eos_token_id=[5])


def pad_is_stop(model):
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    change_json(model / "tokenizer_config.json", pad_token=tokenizer["eos_token"])


def lose_a_tensor(model):
    tensors = load_file(model / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, model / "model.safetensors")


def broken_weights(model):
    tensors = load_file(model / "model.safetensors")
    save_file({name: value * np.float32(400) for name, value in tensors.items()}, model / "model.safetensors")


@pytest.mark.parametrize(("damage", "check", "verdict"), [
    (drop_end_of_turn, "stop token", "fail"),
    (repeat_bos, "BOS", "fail"),
    (foreign_stop, "stop token", "note"),
    (pad_is_stop, "padding", "note"),
    (lose_a_tensor, "weights", "fail"),
    (broken_weights, "step 0", "fail"),
])
def test_each_fault_is_found_by_its_check(damage, check, verdict, model, lone_mesh, tmp_path):
    shutil.copytree(model, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    assert verdicts(Checkpoint(tmp_path / "damaged"), lone_mesh)[check] == verdict


@pytest.mark.parametrize(("special", "configured", "advice"), [
    ("eos_token", "eos_token", "vLLM reads it at the last token"),
    ("eos_token", "pad_token", "reads a padded batch at the wrong token"),
    ("pad_token", "pad_token", ""),
])
def test_the_padding_of_a_classifier_is_not_called_harmless(special, configured, advice, make_model, lone_mesh,
                                                            tmp_path):
    folder = make_model(tmp_path / "model", num_labels=1)
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}")
    tokenizer = Checkpoint(folder).tokenizer
    names = {name: getattr(tokenizer, name) for name in ("eos_token", "pad_token")}
    change_json(folder / "tokenizer_config.json", pad_token=names[special])
    change_json(folder / "config.json", pad_token_id=tokenizer.convert_tokens_to_ids(names[configured]))
    found = next(one for one in examine(Checkpoint(folder), lone_mesh) if one.check == "padding")
    assert advice in found.advice
    assert found.verdict == ("note" if advice else "ok")


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.fixture
def killed(model, make_groups, tmp_path):
    """killed(mesh, use_peft): tmp_path/sft becomes a training of `model` that died after its checkpoint of step 2."""

    def train(mesh, use_peft):
        checkpoint = Checkpoint(model)
        adapter = {"use_peft": True, "lora_r": 2, "lora_target_modules": ("q_proj",)} if use_peft else {}
        options = SftOptions(train_batch_size=2, micro_rows=2, row_length=64, save_steps=2, learning_rate=1e-2,
                             **adapter)

        def report(step, steps, metrics):
            if step == 4:
                raise Killed

        def body(folder):
            return sft_stage(folder, options=options, params=checkpoint.params(mesh), config=checkpoint.config,
                             groups=make_groups(16, 1, k=(1, 1), pairs="none"), tokenizer_from=model, base=str(model),
                             setting=Setting(mesh, report), chat_template="{# of this run #}")

        with pytest.raises(Killed):
            run_stage(tmp_path / "sft", "sft", {"options": options}, body)

    return train


@pytest.mark.parametrize("use_peft", [False, True])
def test_the_last_checkpoint_of_a_killed_training_is_exported(use_peft, model, killed, lone_mesh, tmp_path):
    killed(lone_mesh, use_peft)
    found = export(find_source(str(model), None, str(tmp_path / "sft")), tmp_path / "out", lone_mesh)
    assert found["exported"] == "step 2 of the unfinished training in `sft`"
    assert (tmp_path / "out" / "model" / "chat_template.jinja").read_text() == "{# of this run #}"
    before, after = load_params(model), load_params(tmp_path / "out" / "model")
    changed = {jax.tree_util.keystr(path) for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True) if not np.array_equal(a, b)}
    everything = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(before)}
    assert changed == ({"['layers']['attention']['q']"} if use_peft else everything)
    with pytest.raises(CheckpointError, match="holds no folder 'checkpoints'"):
        export(find_source(str(model), None, str(tmp_path / "out")), tmp_path / "again", lone_mesh)


@pytest.mark.parametrize("use_peft", [False, True])
def test_a_checkpoint_of_eight_devices_is_exported_where_there_is_one(use_peft, model, killed, tmp_path):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    killed(mesh, use_peft)
    export(find_source(str(model), None, str(tmp_path / "sft")), tmp_path / "here", mesh)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    there = subprocess.run([sys.executable, "-m", "rlhf_jax.cli.main", "export", model, "--checkpoint",
                            tmp_path / "sft", "--dtype", "float32", "--output_dir", tmp_path / "there"],
                           env=env, capture_output=True, text=True, check=False)
    assert there.returncode == 0, there.stderr
    found, expected = (load_params(tmp_path / name / "model") for name in ("there", "here"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=use_peft * 1e-6, rtol=0), found, expected)


def test_a_checkpoint_over_another_base_is_refused(model, killed, make_model, lone_mesh, tmp_path):
    killed(lone_mesh, use_peft=False)
    other = make_model(tmp_path / "other", embed=32, tie_embeddings=False)
    with pytest.raises(CheckpointError, match=r"embed.* is \(\d+, 16\) .*, 32\) .* give the model that it"):
        export(find_source(str(other), None, str(tmp_path / "sft")), tmp_path / "out", lone_mesh)
    tied = make_model(tmp_path / "tied")
    with pytest.raises(CheckpointError, match=r"head.* and missing in the base; give the model that it"):
        export(find_source(str(tied), None, str(tmp_path / "sft")), tmp_path / "out", lone_mesh)
