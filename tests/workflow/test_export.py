"""Export, inspect and doctor on the world's own model and on checkpoints that are wrong in one way each."""

import dataclasses
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

from rlhf_jax.config.build import build
from rlhf_jax.config.commands import ExportCommand
from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.training import SftOptions
from rlhf_jax.models import CheckpointError, init_lora, load_params, merge_lora, param_specs, read_config, save_adapter
from rlhf_jax.parallel import make_mesh
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.datasets import GivenGroups
from rlhf_jax.workflow.doctor import examine
from rlhf_jax.workflow.inspection import inspect_model
from rlhf_jax.workflow.stage import Run
from rlhf_jax.workflow.stages.export import _lora_of, find_source
from rlhf_jax.workflow.stages.sft import SftStage

LORA = LoraConfig(True, 2, 4.0, ("q_proj", "down_proj"))


@pytest.mark.parametrize("stabilised", [False, True])
def test_the_adapter_of_an_unfinished_training_keeps_its_scale(stabilised, tmp_path):
    options = {"lora_r": 4, "lora_alpha": 6.0, "lora_target_modules": ["q_proj"], "use_rslora": stabilised}
    (tmp_path / "inputs.json").write_text(json.dumps({"inputs": {"options": options}}))
    assert _lora_of(tmp_path).scale == (3.0 if stabilised else 1.5)


@pytest.fixture
def model(make_model, tmp_path):
    """A folder with a tiny random model and the world's tokenizer."""
    return make_model(tmp_path / "model", tie_embeddings=False)


def source(model, **options):
    """What `rlhf-jax export` of a model writes, in float32 if nothing else is asked for."""
    return find_source(ExportCommand(**{"model_name_or_path": str(model), "output_dir": "o", "dtype": "float32",
                                        **options}))


@pytest.fixture
def export(make_context):
    """export(stage, folder, **changes): the stage in that folder, on one device if no other mesh is given."""
    return lambda stage, folder, **changes: stage.run(folder, make_context(folder, **changes))


@pytest.mark.longer
def test_an_adapter_is_merged_into_the_base_it_names(model, export, tmp_path):
    config = read_config(model)
    adapter = jax.tree.map(lambda x: x + 0.1, init_lora(jax.random.key(1), config, LORA))
    save_adapter(tmp_path / "adapter", adapter, config, LORA, str(model), chat_template="{# its own #}")
    report = export(source(tmp_path / "adapter"), tmp_path / "out")
    expected = merge_lora(jax.tree.map(jnp.asarray, load_params(model)), adapter, LORA.scale)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "out" / "model"), jax.device_get(expected))
    assert {"model.safetensors", "tokenizer.json", "README.md", "generation_config.json"} <= set(report["files"])
    assert (tmp_path / "out" / "model" / "chat_template.jinja").read_text() == "{# its own #}"
    assert "adapter `adapter` merged" in (tmp_path / "out" / "model" / "README.md").read_text()


@pytest.mark.longer
@pytest.mark.parametrize(("labels", "tied"), [(1, False), (1, True), (3, True)])
def test_an_adapter_with_a_head_makes_a_classifier_of_the_language_model_under_it(labels, tied, make_model, export,
                                                                                  tmp_path):
    base = make_model(tmp_path / "base", tie_embeddings=tied)
    shape = dataclasses.replace(Checkpoint(base).reward_model, num_labels=labels)
    score = np.linspace(-1, 1, labels * shape.embed, dtype=np.float32).reshape(labels, shape.embed)
    adapter = jax.tree.map(lambda x: x + 0.1, init_lora(jax.random.key(1), shape, LORA))
    save_adapter(tmp_path / "adapter", adapter, shape, LORA, str(base), score)
    export(source(tmp_path / "adapter"), tmp_path / "out")
    made = Checkpoint(tmp_path / "out" / "model").config
    assert (made.num_labels, made.pad_token_id, made.score_at) == (labels, shape.pad_token_id, "last_token")
    merged = merge_lora(jax.tree.map(jnp.asarray, load_params(base)), adapter, LORA.scale)
    expected = {**{name: merged[name] for name in ("embed", "layers", "final_norm")}, "score": score}
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "out" / "model"), jax.device_get(expected))


@pytest.mark.parametrize(("labels", "score", "said"), [
    (0, None, "is an adapter of a classifier, and neither it nor its base has the head"),
    (0, np.zeros((1, 5), np.float32), r"score.weight in adapter_model.safetensors has shape \(1, 5\)"),
    (0, np.zeros((16,), np.float32), r"score.weight in adapter_model.safetensors has shape \(16,\)"),
    (0, np.zeros((), np.float32), r"score.weight in adapter_model.safetensors has shape \(\)"),
    (1, np.zeros((2, 16), np.float32), r"score.weight in adapter_model.safetensors has shape \(2, 16\)")])
def test_an_adapter_whose_head_is_missing_or_another_models_is_refused(labels, score, said, make_model, export,
                                                                       tmp_path):
    base = make_model(tmp_path / "base", num_labels=labels, tie_embeddings=not labels)
    shape = Checkpoint(base).reward_model
    save_adapter(tmp_path / "adapter", init_lora(jax.random.key(1), shape, LORA), shape, LORA, str(base), score)
    with pytest.raises(CheckpointError, match=said):
        export(source(tmp_path / "adapter"), tmp_path / "out")


@pytest.fixture
def bare_adapter(model, tmp_path):
    """An adapter of the model, with nothing beside it."""
    config = read_config(model)
    save_adapter(tmp_path / "adapter", init_lora(jax.random.key(1), config, LORA), config, LORA, str(model))
    return tmp_path / "adapter"


@pytest.mark.parametrize("written", ["own", [{"name": "tool_use", "template": "t"}, {"name": "default",
                                                                                    "template": "own"}]], ids=str)
def test_the_template_inside_an_adapters_tokenizer_config_is_kept(written, bare_adapter, export, tmp_path):
    (bare_adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": written}))
    export(source(bare_adapter), tmp_path / "out")
    assert (tmp_path / "out" / "model" / "chat_template.jinja").read_text() == "own"


def test_an_adapters_own_tokenizer_and_the_sampling_defaults_of_its_base_are_kept(model, bare_adapter, export,
                                                                                  tmp_path):
    tokenizer = Checkpoint(model).tokenizer
    tokenizer.eos_token = tokenizer.pad_token
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare_adapter)
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    export(source(bare_adapter), tmp_path / "out")
    written = tmp_path / "out" / "model"
    assert json.loads((written / "tokenizer_config.json").read_text())["eos_token"] == tokenizer.pad_token
    assert json.loads((written / "generation_config.json").read_text())["temperature"] == 0.6
    assert not any("chat_template" in path.name or "message" in path.read_text() for path in written.glob("tok*"))
    assert not (written / "adapter_config.json").exists()


def test_an_adapters_tokenizer_with_tokens_that_its_base_has_no_rows_for_is_refused(model, bare_adapter):
    tokenizer = Checkpoint(model).tokenizer
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(bare_adapter)
    with pytest.raises(ValueError, match=r"adapter has 1 tokens without a row .*'<new>'"):
        source(bare_adapter)


def test_an_adapter_that_names_no_base_needs_one(model, bare_adapter):
    raw = json.loads((bare_adapter / "adapter_config.json").read_text())
    (bare_adapter / "adapter_config.json").write_text(json.dumps(raw | {"base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match=r"does not name its base; .* takes the model as base_model"):
        source(bare_adapter)
    assert source(bare_adapter, base_model=str(model)).base.adapter == bare_adapter


def test_dtype_and_file_size_are_what_was_asked_for(model, export, tmp_path):
    export(source(model, dtype="float16", max_shard_size=5e-6), tmp_path / "out")
    files = sorted((tmp_path / "out" / "model").glob("*.safetensors"))
    assert len(files) > 2
    assert {x.dtype for file in files for x in load_file(file).values()} == {np.dtype(np.float16)}
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["dtype"] == "float16"


def test_sources_that_cannot_be_told_are_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match="is neither a folder on this machine nor a hub name"):
        source(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="whole model and needs no base_model"):
        source(model, base_model=str(model))
    save_adapter(tmp_path / "adapter", init_lora(jax.random.key(1), read_config(model), LORA), read_config(model), LORA,
                 str(model))
    with pytest.raises(CheckpointError, match=r"adapter, not a whole model; merge it .*rlhf-jax export"):
        read_config(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="so does an adapter"):
        source(tmp_path / "adapter", checkpoint=str(model))


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


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x.astype(np.int32)], ids=["shape", "dtype"])
def test_inspect_and_doctor_see_a_wrong_shape_and_a_wrong_dtype(change, model, lone_mesh):
    tensors = load_file(model / "model.safetensors")
    save_file(tensors | {"model.norm.weight": change(tensors["model.norm.weight"])}, model / "model.safetensors")
    found = inspect_model(model, MeshConfig(), 1)
    assert not found.loads
    assert found.wrong[0].startswith("model.norm.weight in model.safetensors")
    assert verdicts(Checkpoint(model), lone_mesh)["weights"] == "fail"


def test_inspect_and_doctor_name_a_missing_shard(model, export, lone_mesh, tmp_path):
    export(source(model, max_shard_size=3e-6), tmp_path / "out")
    first = min((tmp_path / "out" / "model").glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(CheckpointError, match=first.name):
        inspect_model(tmp_path / "out" / "model", MeshConfig(), 1)
    finding = next(f for f in examine(Checkpoint(tmp_path / "out" / "model"), lone_mesh) if "weights" in f.check)
    assert (finding.verdict, first.name in finding.seen) == ("fail", True)


def verdicts(checkpoint, mesh):
    return {check: one.verdict for one in examine(checkpoint, mesh) for check in one.check.split(", ")}


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
def killed(model, make_groups, make_context, tmp_path):
    """killed(mesh, use_peft): tmp_path/sft becomes a training of `model` that died after its checkpoint of step 2."""

    def train(mesh, use_peft):
        (tmp_path / "own.jinja").write_text("{# of this run #}")
        adapter = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj"]} if use_peft else {}
        options = build(SftOptions, {"train_batch_size": 2, "micro_rows": 2, "row_length": 64, "save_steps": 2,
                                     "learning_rate": 1e-2, **adapter})

        def tick(name, step, steps, words):
            if step == 4:
                raise Killed

        groups = GivenGroups(make_groups(16, 1, k=(1, 1), pairs="none"))
        context = make_context(tmp_path, run=Run(tmp_path / "sft", {}, single=True), mesh=mesh, tick=tick)
        with pytest.raises(Killed):
            context.do("sft", SftStage(start=Checkpoint(model, str(tmp_path / "own.jinja")), data=(groups,),
                                       options=options))

    return train


@pytest.mark.longer
@pytest.mark.parametrize("use_peft", [False, True])
def test_the_last_checkpoint_of_a_killed_training_is_exported(use_peft, model, killed, export, lone_mesh, tmp_path):
    killed(lone_mesh, use_peft)
    found = export(source(model, checkpoint=str(tmp_path / "sft")), tmp_path / "out")
    assert found["exported"] == "step 2 of the unfinished training in `sft`"
    assert (tmp_path / "out" / "model" / "chat_template.jinja").read_text() == "{# of this run #}"
    before, after = load_params(model), load_params(tmp_path / "out" / "model")
    changed = {jax.tree_util.keystr(path) for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True) if not np.array_equal(a, b)}
    everything = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(before)}
    assert changed == ({"['layers']['attention']['q']"} if use_peft else everything)
    with pytest.raises(CheckpointError, match="holds no folder 'checkpoints'"):
        export(source(model, checkpoint=str(tmp_path / "out")), tmp_path / "again")


@pytest.mark.longer
@pytest.mark.parametrize("use_peft", [False, True])
def test_a_checkpoint_of_eight_devices_is_exported_where_there_is_one(use_peft, model, killed, export, xla_flags,
                                                                      tmp_path):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    killed(mesh, use_peft)
    export(source(model, checkpoint=str(tmp_path / "sft")), tmp_path / "here", mesh=mesh)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(1)}
    there = subprocess.run([sys.executable, "-m", "rlhf_jax.cli.main", "export", model, "--checkpoint",
                            tmp_path / "sft", "--dtype", "float32", "--output_dir", tmp_path / "there"],
                           env=env, capture_output=True, text=True, check=False)
    assert there.returncode == 0, there.stderr
    found, expected = (load_params(tmp_path / name / "model") for name in ("there", "here"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=use_peft * 1e-6, rtol=0), found, expected)


@pytest.mark.longer
def test_a_checkpoint_over_another_base_is_refused(model, killed, make_model, export, lone_mesh, tmp_path):
    killed(lone_mesh, use_peft=False)
    other = make_model(tmp_path / "other", embed=32, tie_embeddings=False)
    with pytest.raises(CheckpointError, match=r"embed.* is \(\d+, 16\) .*, 32\) .* give the model that it"):
        export(source(other, checkpoint=str(tmp_path / "sft")), tmp_path / "out")
    tied = make_model(tmp_path / "tied")
    with pytest.raises(CheckpointError, match=r"head.* and missing in the base; give the model that it"):
        export(source(tied, checkpoint=str(tmp_path / "sft")), tmp_path / "out")


def test_an_adapter_over_an_adapter_is_refused(model, bare_adapter, make_context, tmp_path):
    options = SftOptions(lora=LORA)
    stage = SftStage(start=Checkpoint.find(bare_adapter), data=(GivenGroups([]),), options=options)
    with pytest.raises(ValueError, match="is an adapter, and use_peft would train a second one over it"):
        stage.preview(make_context(tmp_path / "out"))
