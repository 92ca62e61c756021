"""Process and outcome models that answer with a sign: P(+) after each step, all steps of a solution in one pass.

RLHFlow's code runs the model once per step over all steps before it, whose signs it fills in as +. A causal model gives
the same numbers in one pass over the conversation with + everywhere, since no sign is seen before it is predicted.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from rlhf_jax import losses
from rlhf_jax.config.scorer import Reduce
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup, Verdict
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.packing import PackedBatch, unpack_targets
from rlhf_jax.data.prompt_text import plain_text
from rlhf_jax.data.rows import BadRow, Example
from rlhf_jax.data.steps import LABELS, MINUS, PLUS, STEPS, judged_steps, steps_of
from rlhf_jax.models import CheckpointError, DecoderConfig, Params, output_head
from rlhf_jax.models.attention import capped
from rlhf_jax.parallel import bound
from rlhf_jax.scoring.base import Progress, Verdicts, Weights
from rlhf_jax.scoring.pairwise import check_texts_alone
from rlhf_jax.scoring.replies import reply_ids
from rlhf_jax.training.evaluate import PackedMap
from rlhf_jax.training.objectives import Compute

REDUCTIONS: dict[Reduce, Callable[[Sequence[float]], float]] = {
    "mean": lambda steps: sum(steps) / len(steps), "min": min, "last": lambda steps: steps[-1], "product": math.prod}
"""Name -> what it makes of the P(+) of all steps."""


def sign_ids(renderer: Renderer) -> tuple[int, int]:
    """Token ids of + and - where a reply begins. Raises CheckpointError unless each is one token of its own."""
    plus, minus = reply_ids(renderer, (PLUS, MINUS), "process or outcome model")
    return plus, minus


def sign_outputs(compute: Compute, signs: tuple[int, int], params: Params, batch: PackedBatch) -> Array:
    """[B, M, 2] at each target's source: P(+) among the two signs, and the probability that falls on either."""
    hidden = jnp.take_along_axis(compute.hidden(params, batch), batch.source[..., None], axis=1)
    head = output_head(params)
    logits = jnp.einsum("bmd,vd->bmv", hidden, head[jnp.asarray(signs)], preferred_element_type=jnp.float32)
    gap = jnp.diff(-capped(logits, compute.config.logit_softcap), axis=-1)[..., 0]
    logp = losses.token_logps(hidden, head, jnp.full_like(batch.target, signs[0]), **compute.vocabulary)
    return jnp.stack([jax.nn.sigmoid(gap), jnp.exp(logp - jax.nn.log_sigmoid(gap))], axis=-1)


class ProcessScorer:
    """P(+) of each step of a solution, with every sign before it a +; the score is one number made of them.

    Args:
      params, config: of a causal language model trained on signs; see `Weights`.
      cut: (group, place of a response) -> its steps; raises BadRow for one without.
      reduce: what of the steps' numbers is the score.
      names: "min", "last", "product", "mean" and "step-1", "step-2" ... are stored beside the score.
      min_sign_mass: a step at which both signs together have less probability is a failure, not a coin flip.

    Raises:
      CheckpointError: if the model is a classifier, or a sign is no single token.
    """

    probabilities: Literal[True] = True

    def __init__(self, params: Params | Callable[[], Params], config: DecoderConfig, renderer: Renderer, mesh: Mesh, *,
                 name: str = "proxy", key: str | Callable[[], str] = "", cut: Callable[[PromptGroup, int], list[str]],
                 reduce: Reduce = "mean", names: bool = True, rows_per_batch: int = 4, min_sign_mass: float = 0.5):
        if config.is_classifier:
            raise CheckpointError("a process or generative outcome model is a causal language model and this "
                                  f"checkpoint is a classifier of {config.num_labels} output(s); for a scalar outcome "
                                  "model set kind: outcome, for another kind: bradley_terry")
        self.name, self._key = name, key
        self.failures: Counter[str] = Counter()
        self._weights, self._renderer, self._cut = Weights(params), renderer, cut
        self._reduce, self._names, self._mass = reduce, names, min_sign_mass
        self._signs = sign_ids(renderer)
        outputs = bound(sign_outputs, Compute(config, mesh=mesh), self._signs)
        self._map = PackedMap(outputs, mesh, unpack_targets, rows_per_batch=rows_per_batch)

    @property
    def key(self) -> str:
        """Changes when the scores would."""
        return self._key() if callable(self._key) else self._key

    def release(self) -> None:
        self._weights.release()

    def rendered(self, group: PromptGroup, place: int) -> PromptGroup:
        """The conversation about a response with + after every step; trained on are sign, stop, sign, stop ...

        Raises:
          BadRow: no_steps, sign_not_found, and those of rendering.
        """
        check_texts_alone(group.prompt, group.responses[place].text)
        steps = self._cut(group, place)
        prompt, response = judged_steps(group.prompt, steps, [PLUS] * len(steps))
        tools = {name: value for name, value in group.extra.items() if name == "tools"}
        found = self._renderer.render(Example(prompt, (response,), prompt_id=f"{group.prompt_id}/{place}", extra=tools))
        said = found.responses[0].ids[found.responses[0].loss_mask]
        if said[::2].tolist() != [self._signs[0]] * len(steps):
            raise BadRow("sign_not_found", f"of {len(steps)} steps the template does not answer each with the one "
                                           f"token {PLUS!r} and a stop token; use another chat template")
        return found

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        """A response that cannot be cut or rendered, or after a step of which no sign is likely, gets None."""
        verdicts: Verdicts = [[None] * len(group.responses) for group in groups]
        conversations, places = [], []
        for index, group in enumerate(groups):
            for place in range(len(group.responses)):
                try:
                    conversations.append(self.rendered(group, place))
                    places.append((index, place))
                except BadRow as error:
                    self.failures[error.reason] += 1
        if not conversations:
            return verdicts
        for (index, place), found in zip(places, self._map(self._weights(), conversations, progress), strict=True):
            numbers = np.asarray(found[0], np.float64)[::2]
            if not (numbers[:, 1] >= self._mass).all():
                self.failures["no_sign"] += 1
                continue
            verdicts[index][place] = self._verdict(numbers[:, 0].tolist())
        return verdicts

    def _verdict(self, steps: list[float]) -> Verdict:
        reduced = {str(name): function(steps) for name, function in REDUCTIONS.items()}
        if not self._names:
            return {"": reduced[self._reduce]}
        return {"": reduced[self._reduce], **reduced, **{f"step-{i}": p for i, p in enumerate(steps, start=1)}}


def cut_at(separator: str) -> Callable[[PromptGroup, int], list[str]]:
    """Steps of the row a response was read from, else of its text."""
    return lambda group, place: steps_of(group, place, separator)


def whole_solution(group: PromptGroup, place: int) -> list[str]:
    """The solution as one step."""
    text = plain_text(group.responses[place].text).strip()
    if not text:
        raise BadRow("no_steps", "the response is empty")
    return [text]


def _signed(example: Example, steps: Sequence[str], worth: Iterable[bool]) -> Example:
    prompt, response = judged_steps(example.prompt, steps, [PLUS if right else MINUS for right in worth])
    return dataclasses.replace(example, prompt=prompt, responses=(response,), scores=())


def signed_examples(examples: Sequence[Example], funnel: Funnel, label_threshold: float | None) -> Sequence[Example]:
    """Solutions as conversations with the signs of their labels, of which signs and stop tokens are trained on.

    label_threshold: of each step's label, above which it is a +; None for whole solutions with their outcomes.
    """
    out = OnDisk[Example]()
    for example in examples:
        try:
            check_texts_alone(example.prompt, *example.responses)
            if label_threshold is None:
                steps, worth = [plain_text(example.responses[0]).strip()], [example.scores[0]["label"] == 1.0]
            else:
                steps = example.extra[STEPS]
                worth = [label > label_threshold for label in example.extra[LABELS]]
            out.append(_signed(example, steps, worth))
            funnel.notes.update({"steps": len(steps), "steps_right": sum(worth)})
        except BadRow as error:
            funnel.refuse(example.origin, error)
    return out
