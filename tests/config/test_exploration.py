"""What a way of exploring needs is asked for when the config is read."""

import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.commands import PairsCommand, ScoreCommand
from rlhf_jax.config.loop import LoopOptions
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.config.sampling import SamplingConfig

BASE = {"output_dir": "o", "model_name_or_path": "m", "prompts": {"dataset_name": "p"},
        "scorer": {"kind": "bradley_terry", "model_name_or_path": "rm"}}
GAMES = {"kind": "pairwise", "model_name_or_path": "pm"}


def run(**changes):
    return build(ExperimentConfig, {**BASE, **changes})


@pytest.mark.parametrize(("changes", "message"), [
    ({"pairs": {"rule": "across"}}, "rule = 'across' needs the answers of two policies.*set loop.from_start"),
    ({"pairs": {"rule": "delta"}}, "rule = 'delta' needs the answers of two policies"),
    ({"dpo": {"xpo_alpha": 1e-5}}, "xpo_alpha = 1e-05 .* the start is not asked; set loop.from_start"),
    ({"loop": {"from_start": 0.3}}, "from_start = 0.3 of num_generations = 8 is 2.4 samples; give a share"),
    ({"loop": {"from_start": 0.5}, "sampling": {"num_generations": 2, "temperature": [1.0, 0.7]}},
     "temperature has 2 values for num_generations = 1"),
    ({"loop": {"from_start": 0.5, "method": "raft"}}, "from_start = 0.5 has no effect with method = 'raft'"),
    ({"pairs": {"rule": "enhancer"}, "scorer": GAMES}, "'enhancer' reads the features.*'pairwise' has none; choose"),
    ({"pairs": {"width": 1.0}}, "width = 1.0 has no effect with rule = 'max_min'"),
    ({"pairs": {"budget": 5, "budget_by": "disagreement"}}, "scores of an ensemble's members.*'bradley_terry'"),
    ({"dpo": {"loss_type": "sppo"}}, "'sppo' reads probabilities of winning, and the score of kind = 'bradley_terry'"),
    ({"pairs": {"margin_scale": 2.0}}, "margin_scale = 2 has no effect with dpo.loss_type = 'sigmoid'"),
    ({"dpo": {"win_rate": "gold"}}, "win_rate = 'gold' has no effect with loss_type = 'sigmoid'"),
    ({"dpo": {"xpo_alpha": 1.0, "loss_type": "aot"}}, "xpo_alpha adds a mean over single responses, and loss_type"),
    ({"dpo": {"xpo_alpha": 1.0, "loss_type": "kto", "split_pairs": True}}, "xpo_alpha is about pairs"),
])
def test_what_is_lacking_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


@pytest.mark.parametrize("changes", [
    {"loop": {"from_start": 0.5}, "pairs": {"rule": "across"}, "dpo": {"xpo_alpha": 1e-5}},
    {"loop": {"from_start": 0.25}},
    {"pairs": {"rule": "enhancer", "width": 0.0, "ridge": 0.1, "projection": None}},
    {"pairs": {"budget": 5, "budget_by": "disagreement"}, "scorer": {"kind": "ensemble", "model_name_or_path": "rm"}},
    {"dpo": {"loss_type": "sppo"}, "scorer": GAMES},
    {"dpo": {"loss_type": "sppo", "win_rate": "proxy/won"}},
    {"pairs": {"margin_scale": 2.0}, "dpo": {"loss_type": "rev_kl"}},
], ids=str)
def test_what_goes_together_is_taken(changes):
    assert run(**changes)


def test_the_samples_are_divided():
    sampling = SamplingConfig(num_generations=8, seed=3)
    own, theirs = LoopOptions(from_start=0.25).divided(sampling)
    assert (own.num_generations, theirs.num_generations) == (6, 2)
    assert own.seed == 3
    assert theirs.seed != own.seed
    assert LoopOptions().divided(sampling) == (sampling, None)


@pytest.mark.parametrize(("verb", "given", "message"), [
    (PairsCommand, {"input": "i", "earlier": "e"}, "earlier = 'e' has no effect with rule = 'max_min'"),
    (PairsCommand, {"input": "i", "against": "a", "rule": "enhancer"}, "features beside one folder"),
    (ScoreCommand, {"input": "i", "features": True, **GAMES}, "'pairwise' has none; choose one of bradley_terry"),
])
def test_verbs_say_what_does_not_go_together(verb, given, message):
    with pytest.raises(ValueError, match=message):
        build(verb, {"output_dir": "o", **given})


def test_plain_dpo_is_what_alpha_0_gives():
    assert build(PreferenceOptions, {"xpo_alpha": 0.0}) == PreferenceOptions()
