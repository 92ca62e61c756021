"""The chat template a run is given: what was made with one is not taken for what another would make."""

import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.data.tokenizer import TEMPLATES
from rlhf_jax.data.world import CHAT_TEMPLATE
from rlhf_jax.models import save_hf
from rlhf_jax.workflow.experiment import Experiment
from rlhf_jax.workflow.products import MODEL
from rlhf_jax.workflow.stages.dpo import DpoStage
from rlhf_jax.workflow.stages.reward import RewardStage
from rlhf_jax.workflow.stages.sft import SftStage

TRAIN = {"train_batch_size": 2, "micro_rows": 2, "row_length": 160, "num_train_epochs": 1}


@pytest.fixture
def make_experiment(make_context, world, model, tmp_path):
    """make_experiment(template, reward=..., **changes): a run on four rows per stage, in the same folder every time.
    reward: more options of the reward model's training."""

    def make(template, reward=None, **changes):
        def rows(name):
            return {"dataset_name": f"{world}/{name}.jsonl", "max_samples": 4}

        sections = {"sft": {"data": rows("sft"), "train": TRAIN}, "prompts": rows("prompts"),
                    "reward": {"data": rows("preference"), "train": {**TRAIN, **(reward or {})}},
                    "dpo": TRAIN, "baselines": ["offline_dpo"]}
        config = build(ExperimentConfig, {"output_dir": str(tmp_path / "run"), "model_name_or_path": str(model),
                                          "chat_template_path": template, **sections, **changes})
        return Experiment(config, make_context(tmp_path / "run"))

    return make


def own(mark):
    """The world's template, users' turns marked."""
    return CHAT_TEMPLATE.replace("<|user|>", f"<|user|>{mark} ")


def redone(experiment):
    """Names of the stages that had to be run."""
    start = experiment.start(experiment._base())
    experiment._reward_model(experiment.config.reward, start)
    experiment._offline(start)
    return [stage.name for stage in experiment.context.run.stages if not stage.reused]


def test_another_template_makes_every_stage_of_a_run_anew(make_experiment, monkeypatch, tmp_path):
    def train(stage, folder, context):
        start = stage.start
        save_hf(folder / MODEL, context.params(start), start.config, tokenizer_from=start.folder)
        return {}

    for stage in (SftStage, RewardStage, DpoStage):
        monkeypatch.setattr(stage, "run", train)
    everything = ["sft", "reward", "offline_dpo/pairs", "offline_dpo/dpo"]
    here, there = tmp_path / "here.jinja", tmp_path / "there.jinja"
    for path in (here, there):
        path.write_text(own("A"))
    assert redone(make_experiment(str(here))) == everything
    assert redone(make_experiment(str(there))) == []
    here.write_text(own("B"))
    assert redone(make_experiment(str(here))) == everything
    assert redone(make_experiment(None)) == everything


@pytest.mark.longer
@pytest.mark.parametrize("use_peft", [False, True])
def test_a_model_carries_the_template_it_was_trained_with_and_its_scorer_reads_it_there(make_experiment, use_peft):
    experiment = make_experiment("zephyr", {"use_peft": use_peft}, sft=None)
    start = experiment.start(experiment._base())
    scorer, _ = experiment.scorer(start)
    assert start.tokenizer.chat_template == TEMPLATES["zephyr"]
    assert scorer._renderer.tokenizer.chat_template == TEMPLATES["zephyr"]
    folder = next(experiment.folder.glob("stages/reward-*/model"))
    written = [path.read_text() for path in sorted(folder.rglob("chat_template.jinja"))]
    assert written == [TEMPLATES["zephyr"]] * (2 if use_peft else 1)
