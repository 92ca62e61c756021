"""Options of the stages, as frozen dataclasses; keys carry TRL's names where TRL has one."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from rlhf_jax.data.chat import Overlong
from rlhf_jax.data.graded_pairs import PairRule
from rlhf_jax.losses import PreferenceLoss
from rlhf_jax.models import LoraConfig, ScoreAt
from rlhf_jax.training.config import TrainConfig
from rlhf_jax.workflow.trackers import tracker_names


def part(command: Any, options: type) -> Any:
    """The fields of `command` that make up one of its option groups."""
    return options(**{f.name: getattr(command, f.name) for f in dataclasses.fields(options)})


def refuse_idle(command: Any, options: type, why: str) -> None:
    """Raises ValueError for fields of the group `options` that are set and would have no effect."""
    for field in dataclasses.fields(options):
        value = getattr(command, field.name)
        if value != field.default:
            raise ValueError(f"{field.name} = {value!r} has no effect {why}; leave it out")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which rows, and how they become tokens.

    Attributes:
      dataset_name: files, folders, globs, `tfds:name` or hub names; one, or several read in this order.
      split: of sources that have splits.
      converter: name of a row converter (`rlhf_jax.data.converters`).
      pair_rule: which pairs graded rows make as preferences.
      min_gap: the smallest score gap of such a pair.
      drop_duplicate_prompts: keep the first row of each prompt (the same text up to white space), before max_samples.
      max_samples: rows kept, from the start; None for all.
      max_bad_rows: budget of unusable rows, a number (int) or a share (float); they go to a quarantine file.
      max_length: tokens of prompt and response together; None for no limit.
      max_prompt_length: tokens of the prompt; None for no limit.
      overlong: what becomes of longer rows.
      chat_template_path: replaces the tokenizer's template: a name, a file or a folder.
      text_as_chat: string prompts become user messages instead of plain text.
      allow_empty_prompt: an empty prompt means the BOS token alone.
    """

    dataset_name: str | tuple[str, ...] = ()
    split: str | None = None
    converter: str | None = None
    pair_rule: PairRule = "all"
    min_gap: float = 0.0
    drop_duplicate_prompts: bool = False
    max_samples: int | None = None
    max_bad_rows: int | float = 0.02
    max_length: int | None = 1024
    max_prompt_length: int | None = None
    overlong: Overlong = "drop"
    chat_template_path: str | None = None
    text_as_chat: bool = False
    allow_empty_prompt: bool = False

    def __post_init__(self) -> None:
        for name in ("max_samples", "max_length", "max_prompt_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; it must be 1 or more, or null for no limit")
        for name in ("max_bad_rows", "min_gap"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}; it must be 0 or more")

    @property
    def sources(self) -> tuple[str, ...]:
        """`dataset_name` as a tuple."""
        return (self.dataset_name,) if isinstance(self.dataset_name, str) else tuple(self.dataset_name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackerOptions:
    """Experiment trackers. They are no part of what names a stage: to turn one on redoes nothing.

    Attributes:
      report_to: none, or one or several of tensorboard, wandb and trackio; they get the rows of trainer_state.json.
    """

    report_to: str | tuple[str, ...] = "none"

    @property
    def trackers(self) -> tuple[str, ...]:
        """`report_to` as a tuple, empty for none; ValueError for what is no tracker."""
        return tracker_names(self.report_to)


@dataclasses.dataclass(frozen=True)
class PromptOptions(DataOptions):
    """Prompts of a loop. drop_duplicate_prompts: on, so that no round sees a prompt of an earlier one."""

    drop_duplicate_prompts: bool = True


@dataclasses.dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters.

    Attributes:
      use_peft: train an adapter instead of all weights; the exported model is merged, the adapter lies beside it.
      lora_r: rank.
      lora_alpha: the update is scaled by lora_alpha / lora_r.
      lora_target_modules: projections that get an update.
    """

    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: float = 32.0
    lora_target_modules: tuple[str, ...] = LoraConfig.lora_target_modules

    def _check_adapter(self) -> None:
        if not self.use_peft:
            refuse_idle(self, LoraOptions, "without use_peft: true, which trains an adapter")

    @property
    def lora(self) -> LoraConfig | None:
        return LoraConfig(self.lora_r, self.lora_alpha, self.lora_target_modules) if self.use_peft else None


@dataclasses.dataclass(frozen=True)
class SftOptions(LoraOptions, TrainConfig):
    """Supervised fine-tuning. learning_rate: TRL's default."""

    learning_rate: float = 2e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_adapter()


@dataclasses.dataclass(frozen=True)
class RewardOptions(LoraOptions, TrainConfig):
    """A reward model.

    Attributes:
      kind: "bradley_terry" (a scalar head) or "pairwise" (a language model that answers A or B).
      center_rewards_coefficient: weight of (r_chosen + r_rejected)^2 (Bradley-Terry only).
      use_margin: subtract the rows' margins, which every pair must have (Bradley-Terry only).
    """

    kind: Literal["bradley_terry", "pairwise"] = "bradley_terry"
    learning_rate: float = 5e-6
    center_rewards_coefficient: float = 0.0
    use_margin: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_adapter()
        if self.kind == "pairwise" and (self.center_rewards_coefficient or self.use_margin):
            raise ValueError("center_rewards_coefficient and use_margin belong to kind: bradley_terry and have no "
                             "effect on a pairwise model; leave them out")


@dataclasses.dataclass(frozen=True)
class PreferenceOptions(LoraOptions, TrainConfig, PreferenceLoss):
    """Direct preference optimisation; the loss keys are those of `losses.PreferenceLoss`.

    Attributes:
      ld_alpha: LD-DPO: weight of the tokens beyond the length both responses reach; None for plain sums.
      use_weighting: WPO: pairs count by how likely the policy itself finds both responses.
    """

    learning_rate: float = 5e-7
    ld_alpha: float | None = None
    use_weighting: bool = False

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        self._check_adapter()
        checked = self.loss  # raises for values and knobs that cannot work
        object.__setattr__(self, "loss_type", checked.loss_type)
        object.__setattr__(self, "loss_weights", checked.loss_weights)
        if self.ld_alpha is not None and not 0 <= self.ld_alpha <= 1:
            raise ValueError(f"ld_alpha = {self.ld_alpha}; it weighs the tokens beyond the shared length, 0 to 1")
        if self.use_weighting and checked.compares_pairs:
            raise ValueError(f"use_weighting weighs each pair on its own and loss_type {checked.loss_type!r} sorts "
                             "pairs against each other; leave one of them out")

    @property
    def loss(self) -> PreferenceLoss:
        return PreferenceLoss(**{f.name: getattr(self, f.name) for f in dataclasses.fields(PreferenceLoss)})


@dataclasses.dataclass(frozen=True)
class ScorerOptions:
    """What scores responses.

    Attributes:
      kind: "bradley_terry", "pairwise", "multi_objective" (these take `model_name_or_path`) or "function" (takes
        `function`).
      model_name_or_path: folder of the reward or preference model.
      function: "package.module:function" with the signature f(prompts, completions, **columns) -> scores.
      method: tournament of the pairwise model.
      output: of a classifier with several outputs, which one is the score; ODIN's quality is 1.
      score_at: where the head of a classifier is read: "last_token" of the rendered conversation that is no padding, as
        transformers and TRL do, or "end_of_turn", its stop token; None for what the model's config.json says
        (rlhf_jax_score_at), else the last token.
      chat_template_path: replaces the template of the scorer's own tokenizer.
      text_as_chat: string prompts become user messages instead of plain text.
      max_length: tokens of prompt and response together, in the scorer's tokens; longer ones get no score.
      dtype: of the model's weights and computation; its score heads are float32 in any case.
    """

    kind: Literal["bradley_terry", "pairwise", "multi_objective", "function"] = "bradley_terry"
    model_name_or_path: str | None = None
    function: str | None = None
    method: Literal["round_robin", "knock_out"] = "round_robin"
    output: int | None = None
    score_at: ScoreAt | None = None
    chat_template_path: str | None = None
    text_as_chat: bool = False
    max_length: int | None = 1024
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        wanted, other = ("function", "model_name_or_path") if self.kind == "function" else (
            "model_name_or_path", "function")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"a scorer of kind {self.kind!r} takes {wanted} and not {other}; given were "
                             f"{wanted} = {getattr(self, wanted)!r}, {other} = {getattr(self, other)!r}")
        if self.method != "round_robin" and self.kind != "pairwise":
            raise ValueError(f"method = {self.method!r} is the pairwise model's tournament and has no effect on kind "
                             f"{self.kind!r}; leave it out")
        if self.dtype != "float32" and self.kind == "function":
            raise ValueError(f"dtype = {self.dtype!r} has no effect on kind 'function', which has no weights; leave it "
                             "out")
        if self.score_at is not None and self.kind not in ("bradley_terry", "multi_objective"):
            raise ValueError(f"score_at = {self.score_at!r} says where a classifier's head is read and has no effect "
                             f"on kind {self.kind!r}, which has none; leave it out")
        if self.output is not None and self.kind != "bradley_terry":
            raise ValueError(f"output = {self.output} chooses an output of a classifier (kind: bradley_terry) and has "
                             f"no effect on kind {self.kind!r}; leave it out")


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """How scored responses become a preference pair (the seed's `choose_type`).

    Attributes:
      rule: max_min (best and worst, the paper's), max_random (best and another), max_max (best and second best),
        random (two at random).
      min_gap: the smallest penalised score gap of a pair.
      length_penalty: subtracted from the score for each unit of length, *before* selection and ordering.
      length_unit: "characters" (the paper's) or "tokens".
      drop_truncated: responses that ran out of budget take no part.
      seed: of the random rules; a prompt's draw depends on the seed and its id alone.
    """

    rule: Literal["max_min", "max_random", "max_max", "random"] = "max_min"
    min_gap: float = 0.0
    length_penalty: float = 0.0
    length_unit: Literal["characters", "tokens"] = "characters"
    drop_truncated: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_gap < 0:
            raise ValueError(f"min_gap = {self.min_gap}; a gap is 0 or more")
        if self.length_unit != "characters" and self.length_penalty == 0:
            raise ValueError("length_unit has no effect while length_penalty is 0; set a penalty or leave it out")
