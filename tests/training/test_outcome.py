"""The scalar outcome model's objective: cross-entropy of the labels there are, whatever shares a row."""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax.config.training import TrainConfig
from rlhf_jax.models import init_params
from rlhf_jax.training.evaluate import make_evaluator
from rlhf_jax.training.fit import make_plan
from rlhf_jax.training.objectives import Compute
from rlhf_jax.training.outcome import Outcome


@pytest.mark.longer
def test_the_loss_is_the_mean_over_labelled_responses(tiny, make_groups, lone_mesh, plain, exact_matmul):
    config = tiny(num_labels=1, layers=1)
    rng = np.random.default_rng(0)
    groups = [dataclasses.replace(group, pairs=(), margins=(), responses=tuple(
        dataclasses.replace(r, scores={"label": float(rng.integers(2))} if i + j else {})
        for j, r in enumerate(group.responses))) for i, group in enumerate(make_groups(6, 3))]
    objective, params = Outcome(Compute(config, mesh=lone_mesh)), init_params(jax.random.key(0), config)
    train = TrainConfig(train_batch_size=6, micro_rows=2, row_length=24)
    plan = make_plan(groups, train, lone_mesh, objective=objective)
    found = make_evaluator(objective, groups, plan, lone_mesh)(params, {})
    values, right = [], []
    for group in groups:
        for response in group.responses:
            if response.scores:
                hidden = plain(params, config, np.concatenate([group.prompt_ids, response.ids]))
                logit = float(np.asarray(hidden[-1], np.float64) @ np.asarray(params["score"][0], np.float64))
                label = response.scores["label"]
                values.append(np.logaddexp(0, -logit if label else logit))
                right.append((logit > 0) == bool(label))
    assert len(values) == 11
    assert found["loss"] == pytest.approx(np.mean(values), rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(right))
