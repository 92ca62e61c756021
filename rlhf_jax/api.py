"""The public Python API: `load` opens a model, `run` does what a verb of the command line does.

    policy, judge = rlhf_jax.load("runs/sft/model"), rlhf_jax.load("runs/rm/model")
    groups = policy.generate(["Write a story about a fox."], n=8, temperature=1.0)
    judge.scored(groups)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_args

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax import arguments
from rlhf_jax.cli.parser import instead
from rlhf_jax.cli.verbs import VERBS, named
from rlhf_jax.config.build import UnknownKeys, build
from rlhf_jax.config.commands import Dtype
from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.example import Example, as_text
from rlhf_jax.data.groups import Message, PromptGroup, Text
from rlhf_jax.data.load import unique_prompt_ids
from rlhf_jax.data.render_all import rendered
from rlhf_jax.data.rows import Kind, parse_row
from rlhf_jax.models import DecoderConfig, Params
from rlhf_jax.parallel import make_mesh, reshard_for_sampling, sampling_layout
from rlhf_jax.sampling import Sampler, shape_settings
from rlhf_jax.scoring import Comparing, Scorer, preference
from rlhf_jax.training.evaluate import logps_map
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.kinds import KINDS, open_scorer
from rlhf_jax.workflow.products import RECORD, RESULTS
from rlhf_jax.workflow.stages.sample import with_capacity
from rlhf_jax.workflow.verbs import STAGES

Conversation = str | list[Message] | tuple[Text, Text]
"""Whole text, messages that end with the assistant's, or (prompt, response)."""
T = TypeVar("T")


def load(name_or_path: str | Path, *, mesh: Mesh | Mapping[str, int] | None = None, dtype: Dtype = "float32",
         chat_template_path: str | None = None, text_as_chat: bool = False) -> Model:
    """Opens a policy, a reward model, a preference model or a LoRA adapter over one; weights are read when needed.

    Args:
      name_or_path: a folder in Hugging Face or PEFT layout, or a hub name, `owner/name@revision`.
      mesh: of devices, or sizes of its axes, as {"data": 2, "tensor": 4}; None spreads weights and batches over all.
      dtype: of weights and computation.
      chat_template_path: replaces the tokenizer's template: a name, a file or a folder.
      text_as_chat: string prompts become user messages instead of plain text.

    Raises:
      ValueError: there is no such model or dtype, or its files are not what its config.json says.
    """
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype = {dtype!r}; choose from {', '.join(get_args(Dtype))}")
    checkpoint = Checkpoint.find(name_or_path, chat_template_path)
    render = RenderOptions(max_length=None, overlong="error", text_as_chat=text_as_chat)
    devices = mesh if isinstance(mesh, Mesh) else make_mesh(_built(MeshConfig, mesh or {}))
    _ = checkpoint.config
    return Model(checkpoint, devices, dtype, render)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model that was opened by `load`. Batches may be of any length; rows are cut over all devices of the mesh.

    Attributes:
      checkpoint: its files.
      mesh, dtype: see `load`.
      render: how text becomes token ids.
      weights: what stands in the place of the files' own.
    """

    checkpoint: Checkpoint
    mesh: Mesh
    dtype: Dtype
    render: RenderOptions
    weights: Params | None = None
    _samplers: dict[Any, Sampler] = dataclasses.field(default_factory=dict, repr=False)  # serve all weights
    _scorers: dict[Any, Scorer] = dataclasses.field(default_factory=dict, repr=False, init=False)  # hold these

    @property
    def config(self) -> DecoderConfig:
        """Shape of the model."""
        return self.checkpoint.config

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, with the chat template in use."""
        return self.checkpoint.tokenizer

    @cached_property
    def params(self) -> Params:
        """The weights, a plain tree of arrays on the mesh; an adapter is merged."""
        return self.checkpoint.params(self.mesh, jnp.dtype(self.dtype)) if self.weights is None else self.weights

    def with_params(self, params: Params) -> Model:
        """The same model with other weights, say after a step of training; compiled programs are shared.

        Args:
          params: a tree as `params` gives it.
        """
        return dataclasses.replace(self, weights=params)

    def groups(self, prompts: Iterable[Text], responses: Iterable[Text]) -> list[PromptGroup]:
        """Each prompt with its response as token ids, for `losses` and loops of one's own.

        A template that rewrites earlier turns makes several groups of one response, `ID/0`, `ID/2` ..., one per turn.

        Args:
          prompts, responses: N of each; a string is plain text, a list is chat messages.
        """
        return [group for some in self._rendered("groups", prompts, responses) for group in some]

    def logps(self, prompts: Iterable[Text], responses: Iterable[Text]) -> np.ndarray:
        """[N] float64 log-probability of each response after its prompt, in nats: the sum over its own tokens.

        Args:
          prompts, responses: N of each; a string is plain text, a list is chat messages.
        """
        return np.array([values.sum(dtype=np.float64) for values in self.token_logps(prompts, responses)])

    def token_logps(self, prompts: Iterable[Text], responses: Iterable[Text]) -> list[np.ndarray]:
        """Per response the float32 log-probabilities of its own tokens, stop token included.

        Args:
          prompts, responses: N of each; a string is plain text, a list is chat messages.

        Raises:
          ValueError: one of them cannot be rendered, says which and why; or the model is a reward model.
        """
        self.checkpoint.as_policy()
        rows = self._rendered("logps", prompts, responses)
        groups = [group for row in rows for group in row]
        logps = logps_map(Compute(self.config, mesh=self.mesh), self.mesh)
        found = iter(logps(self.params, groups) if groups else [])
        return [np.concatenate([next(found)[0] for _ in row]) for row in rows]

    def generate(self, prompts: Iterable[Text], n: int = 1, **sampling: Any) -> list[PromptGroup]:
        """Draws n responses to each prompt: `group.responses[i].text`, `.ids`, `.logps`, `.finish_reason`.

        The samples are those of `rlhf-jax generate` under the same settings and seed.

        Args:
          prompts: a string is plain text, a list is chat messages.
          n: samples for each prompt.
          sampling: temperature, top_p, max_new_tokens, seed ...: the keys of `config.sampling.SamplingConfig`.

        Raises:
          ValueError: a prompt cannot be rendered or has no room, a key is unknown, or the model is a reward model.
        """
        prompts = arguments.texts("prompts", prompts, 'generate(["the cat"])')
        policy, settings = self.checkpoint.as_policy(), _built(SamplingConfig, {"num_generations": n, **sampling})
        if settings.engine is not None:
            raise ValueError("engine: a stage hands weights over to an engine and checks what it gives; use rlhf-jax "
                             "generate, or run(\"generate\", ...)")
        examples = unique_prompt_ids([_parsed("prompts", i, "prompt", {"prompt": prompt})
                                      for i, prompt in enumerate(prompts)])
        groups = [group for i, example in enumerate(examples) for group in self._render("prompts", i, example)]
        if not groups:
            return []
        settings, dtype = with_capacity(settings, groups, self.config.max_position), jnp.dtype(self.dtype)
        mesh = sampling_layout(self.config, dtype, self.mesh, settings).mesh
        shape = shape_settings(settings)
        if shape not in self._samplers:
            self._samplers[shape] = Sampler(self.config, settings, policy.stop_ids, mesh, policy.decode_text, dtype)
        params = reshard_for_sampling(self.params, self.config, dtype, mesh).params
        done = dict(self._samplers[shape].with_settings(settings).generate(params, groups))
        return [done[i] for i in range(len(groups))]

    def score(self, conversations: Iterable[Conversation], **scorer: Any) -> list[float | None]:
        """A reward model's score of each conversation; None where it has none, as for one that is too long.

        Args:
          conversations: lists of messages that end with the assistant's, (prompt, response) pairs, or whole texts.
          scorer: output, score_at, max_length ...: the keys of `rlhf-jax score` for this kind of model.

        Raises:
          ValueError: a conversation is none, a key is unknown, or the model gives no scores (see `prefers`).
        """
        given = arguments.conversations(conversations)
        if isinstance(self._scorer("score", scorer), Comparing):
            raise ValueError("a preference model compares answers to one prompt and gives a lone one no score; use "
                             "prefers, or scored for groups of answers")
        groups = [_conversation(i, one) for i, one in enumerate(given)]
        scored = self.scored(groups, name="score", **scorer)
        return [group.responses[0].scores.get("score") for group in scored]

    def scored(self, groups: Iterable[PromptGroup], name: str = "proxy", **scorer: Any) -> list[PromptGroup]:
        """The groups with a score for each response, in `response.scores[name]`, as `rlhf-jax score` gives them.

        A response that cannot be scored has none.

        Args:
          groups: as `generate` or `read_groups` gives them.
          name: of the score.
          scorer: output, score_at, max_length ...: the keys of `rlhf-jax score` for this kind of model.
        """
        groups = arguments.groups(groups)
        return [group.with_scores(name, scores) for group, scores in zip(
            groups, self._scorer(name, scorer).score(groups), strict=True)]

    def prefers(self, prompts: Iterable[Text], first: Iterable[Text], second: Iterable[Text], **scorer: Any
                ) -> list[float | None]:
        """P(first response is better than the second) of each prompt; None where that could not be told.

        A preference model is asked in both orders; of a reward model it is the sigmoid of the difference of scores,
        or of log-odds where scores are probabilities.

        Args:
          prompts, first, second: N of each; a string is plain text, a list is chat messages.
          scorer: as for `score`.
        """
        given = {what: arguments.texts(what, some, 'prefers(["the cat"], [" sat."], [" flew."])') for what, some in
                 (("prompts", prompts), ("first", first), ("second", second))}
        if len({*map(len, given.values())}) > 1:
            counts = ", ".join(f"{len(some)} {what}" for what, some in given.items())
            raise ValueError(f"{counts}; give as many of each")
        asked = self._scorer("score", scorer)
        if isinstance(asked, Comparing):
            return asked.compare(list(zip(*given.values(), strict=True)))
        sides = zip(*(self.score(list(zip(given["prompts"], given[side], strict=True)), **scorer)
                      for side in ("first", "second")), strict=True)
        return [preference(asked, *pair) for pair in sides]

    def _rendered(self, call: str, prompts: Iterable[Text], responses: Iterable[Text]) -> list[list[PromptGroup]]:
        example = f'{call}(["the cat"], [" sat."])'
        prompts = arguments.texts("prompts", prompts, example)
        responses = arguments.texts("responses", responses, example)
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses; give one response for each, and "
                             "a prompt again for another response to it")
        examples = [_parsed("responses", i, "sft", {"prompt": prompt, "completion": response})
                    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))]
        return [self._render("responses", i, example) for i, example in enumerate(unique_prompt_ids(examples))]

    def _render(self, what: str, number: int, example: Example) -> list[PromptGroup]:
        try:
            return rendered(self._renderer, example)[0]
        except BadRow as error:
            raise ValueError(f"{what}[{number}]: {error}") from error

    @cached_property
    def _renderer(self) -> Any:
        return self.checkpoint.renderer(self.render)

    def _scorer(self, name: str, options: Mapping[str, Any]) -> Scorer:
        model = self.checkpoint
        kind = str(options.get("kind", "multi_objective" if self.config.gate is not None else "bradley_terry"))
        if kind not in KINDS or KINDS[kind].outputs is None:
            raise ValueError(f"kind = {kind!r} is no kind of model; choose one of "
                             f"{', '.join(name for name, row in KINDS.items() if row.outputs is not None)}")
        given: Any = _built(KINDS[kind].options, {
            "model_name_or_path": str(model.adapter or model.folder), "chat_template_path": model.chat_template_path,
            "text_as_chat": self.render.text_as_chat, "max_length": None, "dtype": self.dtype, **options})
        if (name, given) not in self._scorers:
            self._scorers[name, given] = open_scorer(given, self.mesh, name, weights=lambda: self.params)
        return self._scorers[name, given]


def run(verb: str, **keys: Any) -> dict[str, Any]:
    """Does what `rlhf-jax VERB` does, with the same keys, and continues or reuses what was done before.

    Args:
      verb: one that does a single stage (data, sft, reward, generate, score, probe ...), compare or iterate.
      keys: as in a config file; sections are mappings.

    Returns:
      The report of the stage, as `stage.json` in the output folder holds it; of compare and iterate, results.json.

    Raises:
      ValueError: there is no such verb or key, or a value is refused.
    """
    able = (*STAGES, "compare", "iterate")
    if verb not in able:
        raise ValueError(f"no verb {verb!r} to run from Python; choose one of {', '.join(able)}")
    row = VERBS[verb]
    options = named(row.options)
    command = _built(options, keys)
    named(row.run)(verb, command)
    folder = Path(command.output_dir).expanduser()
    made: dict[str, Any] = json.loads((folder / (RECORD if verb in STAGES else RESULTS)).read_text())
    return made["report"] if verb in STAGES else made


def _built(options: type[T], given: Mapping[str, Any]) -> T:
    """Options of what Python gives. Raises ValueError also for objects that are no plain values."""
    tree = {key: arguments.plain(key, value) for key, value in given.items()}
    try:
        return build(options, tree)
    except UnknownKeys as error:
        said = "; ".join(f"{key}: {_nested(key) if '.' in key and key in tree else instead(key, value, options)}"
                         for key, value in error.given.items())
        raise ValueError(f"no such key: {said}") from error


def _nested(key: str) -> str:
    section, _, name = key.partition(".")
    return f"sections are mappings: {section}={{{name!r}: ...}}"


def _parsed(what: str, number: int, kind: Kind, row: Mapping[str, Any]) -> Example:
    try:
        return parse_row(row, kind)
    except BadRow as error:
        raise ValueError(f"{what}[{number}]: {error}") from error


def _conversation(number: int, given: Conversation) -> PromptGroup:
    if isinstance(given, str):
        row: dict[str, Any] = {"text": given}
    elif len(given) == 2 and not any(isinstance(part, Mapping) for part in given):
        row = dict(zip(("prompt", "completion"), given, strict=True))
    else:
        row = {"messages": list(given)}
    return as_text(_parsed("conversations", number, "sft", row))
