"""Implicit rewards against an independent decoder, one sequence at a time; zero at the reference."""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax.data.chat import Renderer
from rlhf_jax.models import CheckpointError
from rlhf_jax.scoring import ImplicitScorer
from rlhf_jax.scoring.base import scores_in

TEXTS = ("The cat sat on the mat.", "No.", "I do not know, and it is late.")


@pytest.fixture(scope="module")
def config(policy_tokenizer, make_config):
    return make_config(policy_tokenizer)


@pytest.fixture
def scorer(policy_tokenizer, config, make_params, mesh):
    """scorer(policy's seed, **settings); the reference has seed 1."""

    def make(seed=0, max_length=512, shape=config, **settings):
        renderer = Renderer(policy_tokenizer, max_length=max_length, overlong="drop")
        return ImplicitScorer(make_params(shape, seed), shape, make_params(config, 1), config, renderer, mesh,
                              name="proxy", key=lambda: "k", **settings)

    return make


def alone(plain, params, config, group, answer):
    """Sum of log-probs of one answer from one plain forward pass over one sequence."""
    ids = np.concatenate([group.prompt_ids, answer.ids])
    head = params["head"] if "head" in params else params["embed"]
    logits = plain(params, config, ids) @ np.asarray(head)[: config.vocab_size].T
    logps = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(ids) - 1), ids[1:]][len(group.prompt_ids) - 1 :]
    return float(logps[answer.loss_mask].sum()), int(answer.loss_mask.sum())


@pytest.mark.longer
@pytest.mark.parametrize("over", ["sum", "mean"])
def test_scores_are_beta_times_the_log_ratio(scorer, config, make_params, make_group, plain, exact_matmul, over):
    group = make_group("Write about a cat.", *TEXTS)
    (verdicts,) = scorer(beta=0.3, over=over).score([group])
    for answer, verdict in zip(group.responses, verdicts, strict=True):
        (ours, count), (theirs, _) = (alone(plain, make_params(config, seed), config, group, answer) for seed in (0, 1))
        assert verdict["policy"] == pytest.approx(ours, abs=1e-4)
        assert verdict["reference"] == pytest.approx(theirs, abs=1e-4)
        assert verdict[""] == pytest.approx(0.3 * (ours - theirs) / (count if over == "mean" else 1), abs=1e-4)
    assert len({round(verdict[""], 3) for verdict in verdicts}) == 3


@pytest.mark.longer
def test_the_reference_itself_has_no_reward(scorer, make_group):
    assert scores_in(scorer(seed=1).score([make_group("q", *TEXTS)]))[0] == [0.0, 0.0, 0.0]


@pytest.mark.longer
def test_what_is_too_long_gets_no_score_and_is_counted(scorer, make_group):
    one = scorer(max_length=40)
    scores = scores_in(one.score([make_group("q", "Short.", "long " * 60)]))[0]
    assert scores[0] is not None
    assert scores[1] is None
    assert sum(one.failures.values()) == 1


def test_a_classifier_is_refused(scorer, config):
    with pytest.raises(CheckpointError, match=r"this policy is a classifier of 1 output.*kind: bradley_terry"):
        scorer(shape=dataclasses.replace(config, num_labels=1))
