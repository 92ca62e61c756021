"""The options of a whole run: one YAML, one frozen dataclass."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from rlhf_jax.data.world import WorldConfig
from rlhf_jax.parallel import MeshChoice, MeshConfig
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.training.config import TrainConfig
from rlhf_jax.workflow.iterate import LoopOptions, Recipe
from rlhf_jax.workflow.options import (
    DataOptions,
    PairOptions,
    PreferenceOptions,
    PromptOptions,
    RewardOptions,
    ScorerOptions,
    SftOptions,
    TrackerOptions,
)

Baseline = Literal["offline_dpo", "matched_dpo", "raft"]


@dataclasses.dataclass(frozen=True)
class ScratchOptions:
    """A tiny Llama with fresh weights: where the tokenizer is, and the model's sizes.

    Attributes:
      tokenizer: its folder, or world:tokenizer.
      embed: width of the model.
      layers: number of them.
      heads: of attention.
      kv_heads: of keys and values.
      mlp: inner width of the feed-forward layers.
      max_position: the longest sequence, in tokens.
      initializer_range: standard deviation of the fresh weights.
    """

    tokenizer: str
    embed: int = 96
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 256
    max_position: int = 256
    initializer_range: float = 0.08


@dataclasses.dataclass(frozen=True)
class SftSection:
    """Supervised fine-tuning of the start.

    Attributes:
      data: prompts and completions.
      train: how to optimise.
      eval_data: held-out rows of the same layout.
    """

    data: DataOptions
    train: SftOptions = dataclasses.field(default_factory=SftOptions)
    eval_data: DataOptions | None = None


@dataclasses.dataclass(frozen=True)
class RewardSection:
    """A reward model trained in the run.

    Attributes:
      data: preference rows.
      train: which kind of model, and how to optimise.
      eval_data: held-out preference rows; accuracy, likelihood and calibration on them go into the report.
      init: what it starts from: the "policy" (after SFT), or a model folder, which then has the
        template of its own tokenizer, or `data.chat_template_path`.
    """

    data: DataOptions
    train: RewardOptions = dataclasses.field(default_factory=RewardOptions)
    eval_data: DataOptions | None = None
    init: str = "policy"


@dataclasses.dataclass(frozen=True)
class EvaluationSection:
    """Held-out prompts and how to sample on them.

    Attributes:
      data: the prompts.
      sampling: how the policies answer.
      seed: of the bootstrap.
    """

    data: DataOptions
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ExperimentConfig(TrackerOptions):
    """A whole run: fine-tuning, a reward model, online rounds, baselines, evaluation, report.

    Attributes:
      output_dir: the run folder.
      prompts: prompts of the loop, each once unless drop_duplicate_prompts is off.
      evaluation: how policies are compared; None for no comparison.
      title: of the report.
      model_name_or_path: the policy to start from; or `scratch` for fresh weights.
      chat_template_path: replaces the template of the policy's tokenizer, in all sections; models made here carry it.
      scratch: a tiny model with fresh weights instead of model_name_or_path.
      world: write the embedded world's data into the run folder; data sets then may be named `world:NAME`.
      sft: fine-tune the start first.
      reward: train the scorer in the run; or `scorer` opens an existing one.
      scorer: what the loop's responses are scored by; or `reward` trains one.
      gold: a judge the loop never sees, for evaluation.
      loop: the online rounds.
      sampling: how each round samples.
      pairs: how scored responses become pairs.
      dpo: training in each round.
      raft: training options of the RAFT baseline and of method: raft.
      baselines: offline_dpo (the reward data), matched_dpo (as many pairs, all from the start, same labels), raft.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
    """

    output_dir: str
    prompts: PromptOptions
    evaluation: EvaluationSection | None = None
    title: str = "Online iterative RLHF"
    model_name_or_path: str | None = None
    chat_template_path: str | None = None
    scratch: ScratchOptions | None = None
    world: WorldConfig | None = None
    sft: SftSection | None = None
    reward: RewardSection | None = None
    scorer: ScorerOptions | None = None
    gold: ScorerOptions | None = None
    loop: LoopOptions = dataclasses.field(default_factory=LoopOptions)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    pairs: PairOptions = dataclasses.field(default_factory=PairOptions)
    dpo: PreferenceOptions = dataclasses.field(default_factory=PreferenceOptions)
    raft: SftOptions = dataclasses.field(default_factory=SftOptions)
    baselines: tuple[Baseline, ...] = ()
    mesh: MeshChoice = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        _ = self.trackers  # raises for what is no tracker
        if (self.model_name_or_path is None) == (self.scratch is None):
            raise ValueError("give exactly one of model_name_or_path (a model folder) and scratch (fresh weights); "
                             f"given were {self.model_name_or_path!r} and {self.scratch!r}")
        if (self.reward is None) == (self.scorer is None):
            raise ValueError("give exactly one of reward (train a reward model in this run) and scorer (open one)")
        if self.scratch is not None and self.sft is None:
            raise ValueError("scratch gives random weights, so the run needs an sft section")
        if "offline_dpo" in self.baselines and self.reward is None:
            raise ValueError("the baseline offline_dpo trains on the reward section's preference data; add one")
        self._check_templates()
        self._check_idle()

    @property
    def data(self) -> dict[str, DataOptions]:
        """What the run reads, by the key of its section."""
        sections: dict[str, DataOptions | None] = {"prompts": self.prompts}
        for name, section in (("sft", self.sft), ("reward", self.reward)):
            if section is not None:
                sections |= {f"{name}.data": section.data, f"{name}.eval_data": section.eval_data}
        if self.evaluation is not None:
            sections["evaluation.data"] = self.evaluation.data
        return {name: data for name, data in sections.items() if data is not None}

    def _check_templates(self) -> None:
        """Raises ValueError for a section's own template where its model already has one: the run's, or its own."""
        run, own = "chat_template_path of the run itself", "reward.data.chat_template_path"
        foreign = self.reward is not None and self.reward.init != "policy"
        for name, data in self.data.items():
            if data.chat_template_path is not None and not (foreign and name == "reward.data"):
                right = own if foreign and name == "reward.eval_data" else run
                raise ValueError(f"{name}.chat_template_path = {data.chat_template_path!r} has no effect: a model "
                                 f"writes all conversations by one template. Set {right} instead")

    def _check_idle(self) -> None:
        """Raises ValueError for sections and keys that nothing in this run would read."""
        if self.gold is not None and self.evaluation is None:
            raise ValueError("gold judges policies in the evaluation, and the config has no evaluation section; add "
                             "one or leave gold out")
        if self.raft != SftOptions() and self.loop.method != "raft" and "raft" not in self.baselines:
            raise ValueError("the raft section has no effect without loop.method: raft or the baseline raft; leave it "
                             "out")
        trained: dict[str, TrainConfig] = {"dpo": self.dpo, "raft": self.raft}
        if self.reward is not None:
            trained["reward.train"] = self.reward.train
        if self.sft is not None and self.sft.eval_data is None:
            trained["sft.train"] = self.sft.train
        for name, options in trained.items():
            if options.eval_steps is not None:
                raise ValueError(f"{name}.eval_steps = {options.eval_steps} has no effect: nothing is evaluated while "
                                 "that stage trains; leave it out")

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.loop, self.sampling, self.pairs, self.dpo, self.raft)


def reseeded(config: Any, shift: int) -> Any:
    """A config with `shift` added to every field called `seed`, at any depth: another repetition of the same run."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    changed = {f.name: getattr(config, f.name) + shift if f.name == "seed" else reseeded(getattr(config, f.name), shift)
               for f in dataclasses.fields(config)}
    return dataclasses.replace(config, **changed)
