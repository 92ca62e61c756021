"""`kind: judge` and `kind: local_judge`: a language model that is asked which of two answers is better, or how good."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.scorer import JudgeScoring, Judging, LocalJudgeScoring
from rlhf_jax.sampling import Sampler
from rlhf_jax.scoring import JudgeScorer, LocalModel, RatingScorer, ServedModel
from rlhf_jax.scoring.rubric import read_rubric
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind
from rlhf_jax.workflow.remote import open_client
from rlhf_jax.workflow.stage import fingerprint

Judge = JudgeScorer | RatingScorer


def open_served(options: JudgeScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> Judge:
    """The served judge as a scorer; nothing is asked yet."""
    del mesh, weights
    judging = options.judging
    rubric = read_rubric(judging.rubric, judging.judges == "pairs")
    settings: dict[str, Any] = {"temperature": judging.temperature, "max_tokens": judging.max_tokens}
    key = fingerprint({"server": options.server.asked, "rubric": rubric, "settings": settings, "judges": judging.judges,
                       "method": judging.method, "endpoint": judging.endpoint})
    replies = ServedModel(open_client(options.server), options.server.model, judging.endpoint, settings)
    return _judge(judging, replies, rubric=rubric, name=name, key=lambda: key)


def open_local(options: LocalJudgeScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> Judge:
    """The judge on these devices; no weights are loaded yet.

    Raises:
      ValueError: it is no language model, or its replies leave no room for a question.
    """
    judging, dtype = options.judging, jnp.dtype(options.dtype)
    rubric = read_rubric(judging.rubric, judging.judges == "pairs")
    model = Checkpoint.find(options.model_name_or_path, options.chat_template_path).as_policy()
    longest = min(options.max_length or model.config.max_position, model.config.max_position)
    if longest <= judging.max_tokens:
        raise ValueError(f"max_tokens = {judging.max_tokens} of the judge's reply leave no room for a question within "
                         f"{longest} tokens (max_length, or the positions of {model.folder}); lower max_tokens")
    renderer = model.renderer(RenderOptions(max_length=longest - judging.max_tokens, overlong="drop"))
    sampling = SamplingConfig(num_generations=1, temperature=judging.temperature, max_new_tokens=judging.max_tokens,
                              slots=options.slots, seed=options.seed)
    sampler = Sampler(model.config, sampling, model.stop_ids, mesh, model.decode_text, dtype)
    settings = {"judging": rubric, "judges": judging.judges, "method": judging.method, "endpoint": judging.endpoint,
                "temperature": judging.temperature, "max_tokens": judging.max_tokens, "seed": options.seed,
                "max_length": longest, "dtype": options.dtype}
    replies = LocalModel(str(model.folder), weights or partial(model.params, mesh, dtype), renderer, sampler,
                         judging.endpoint)
    return _judge(judging, replies, rubric=rubric, name=name,
                  key=lambda: fingerprint({"settings": settings, "model": model.key}))


def _judge(judging: Judging, replies: ServedModel | LocalModel, **more: Any) -> Judge:
    return (RatingScorer(replies, **more) if judging.judges == "single" else
            JudgeScorer(replies, method=judging.method, **more))


SERVED = Kind(options=JudgeScoring, open=open_served)
LOCAL = Kind(options=LocalJudgeScoring, open=open_local)
