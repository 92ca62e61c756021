"""The options of a whole run: one YAML, one frozen dataclass."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, TypeVar

from rlhf_jax.config.data import DataOptions, GradedOptions, PreferenceData, RowOptions
from rlhf_jax.config.exploration import check_exploration
from rlhf_jax.config.loop import LoopOptions
from rlhf_jax.config.mesh import MeshChoice, MeshConfig
from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.scorer import ScorerOptions, check_numbers_given
from rlhf_jax.config.trackers import TrackerOptions
from rlhf_jax.config.training import (
    OF_SOLUTIONS,
    BradleyTerryOptions,
    RewardOptions,
    SftOptions,
    TrainConfig,
    check_graded,
)
from rlhf_jax.config.world import WorldConfig
from rlhf_jax.fields import COUNT, POSITIVE, SEED, Flat, Options

T = TypeVar("T")
Baseline = Literal["offline_dpo", "matched_dpo", "raft"]


@dataclasses.dataclass(frozen=True)
class ScratchOptions(Options):
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
    embed: Annotated[int, COUNT] = 96
    layers: Annotated[int, COUNT] = 3
    heads: Annotated[int, COUNT] = 4
    kv_heads: Annotated[int, COUNT] = 2
    mlp: Annotated[int, COUNT] = 256
    max_position: Annotated[int, COUNT] = 256
    initializer_range: Annotated[float, POSITIVE] = 0.08


@dataclasses.dataclass(frozen=True)
class SftSection(Options):
    """Supervised fine-tuning of the start.

    Attributes:
      data: prompts and completions.
      train: how to optimise.
      eval_data: held-out rows of the same layout.
    """

    data: DataOptions
    train: SftOptions = SftOptions()
    eval_data: DataOptions | None = None


@dataclasses.dataclass(frozen=True)
class ScorerData(Options):
    """Held-out preference rows for a scorer, which renders them by itself.

    Attributes:
      rows: which rows.
      graded: which pairs graded rows make.
    """

    rows: Flat[RowOptions] = RowOptions()
    graded: Flat[GradedOptions] = GradedOptions()


@dataclasses.dataclass(frozen=True)
class RewardSection(Options):
    """A reward model trained in the run.

    Attributes:
      data: preference rows, graded ones for a regression, or solutions with labels.
      train: which kind of model, and how to optimise.
      eval_data: held-out preference rows; accuracy, likelihood and calibration on them go into the report.
      init: what it starts from: the "policy" (after SFT), or a model folder, which then has the
        template of its own tokenizer, or `data.chat_template_path`.
    """

    data: PreferenceData
    train: RewardOptions = BradleyTerryOptions()
    eval_data: ScorerData | None = None
    init: str = "policy"


@dataclasses.dataclass(frozen=True)
class EvaluationSection(Options):
    """Held-out prompts and how to sample on them.

    Attributes:
      data: the prompts.
      sampling: how the policies answer.
      seed: of the bootstrap.
    """

    data: DataOptions
    sampling: SamplingConfig = SamplingConfig()
    seed: Annotated[int, SEED] = 0


@dataclasses.dataclass(frozen=True)
class SelectionSection(Options):
    """Choosing the policy by validation prompts: a round that does harm is rejected, and the best one is published.

    Attributes:
      data: validation prompts, none of which is trained or tested on.
      sampling: how the policies answer them.
      judge: what judges the answers, beside the run's scorer; its score is stored as `judge`. null for none.
      measure: the number that decides; null for `judge`, or `proxy` where there is no judge.
      pessimistic: a round is rejected where `proxy` clearly rises and this number does not: judge, or of an ensemble
        proxy/worst_case or proxy/uncertainty_weighted; null for no such check.
      kl_limit: a round is rejected above so many nats per answer from the start; null for no limit.
      patience: rounds rejected in a row after which the loop stops; null to do all rounds. The next one goes on from
        the last accepted.
      seed: of the bootstrap.
    """

    data: DataOptions
    sampling: SamplingConfig = SamplingConfig()
    judge: ScorerOptions | None = None
    measure: str | None = None
    pessimistic: str | None = None
    kl_limit: Annotated[float | None, POSITIVE] = None
    patience: Annotated[int | None, COUNT] = 1
    seed: Annotated[int, SEED] = 0

    def conflicts(self) -> None:
        for name in ("measure", "pessimistic"):
            number = getattr(self, name)
            if number is None or number.split("/")[0] == PairOptions.scorer:
                continue
            if number.split("/")[0] != "judge":
                raise ValueError(f"{name} = {number!r}; the run's scorer stores its score as 'proxy', the judge its as "
                                 "'judge', and numbers beside them as proxy/NAME and judge/NAME. Name one of those")
            if self.judge is None:
                raise ValueError(f"{name} = {number!r} is a number of the judge, and there is none; give a judge, or "
                                 "name a number of the run's scorer")
        if self.pessimistic == PairOptions.scorer:
            raise ValueError("pessimistic = 'proxy' is held against the proxy itself and never rejects; name another "
                             "number, such as judge or proxy/worst_case, or leave it out")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig(Options):
    """A whole run: fine-tuning, a reward model, online rounds, baselines, evaluation, report.

    Attributes:
      output_dir: the run folder.
      prompts: prompts of the loop, each once (drop_duplicate_prompts is on), so that no round sees a prompt of another.
      evaluation: how policies are compared; None for no comparison.
      selection: how the policy is chosen among the rounds; None for the last one, whatever it is.
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
      trackers: who else gets the metrics.
    """

    output_dir: str
    prompts: DataOptions = DataOptions(RowOptions(drop_duplicate_prompts=True))
    evaluation: EvaluationSection | None = None
    selection: SelectionSection | None = None
    title: str = "Online iterative RLHF"
    model_name_or_path: str | None = None
    chat_template_path: str | None = None
    scratch: ScratchOptions | None = None
    world: WorldConfig | None = None
    sft: SftSection | None = None
    reward: RewardSection | None = None
    scorer: ScorerOptions | None = None
    gold: ScorerOptions | None = None
    loop: LoopOptions = LoopOptions()
    sampling: SamplingConfig = SamplingConfig()
    pairs: PairOptions = PairOptions()
    dpo: PreferenceOptions = PreferenceOptions()
    raft: SftOptions = SftOptions()
    baselines: tuple[Baseline, ...] = ()
    mesh: MeshChoice = MeshConfig()
    trackers: Flat[TrackerOptions] = TrackerOptions()

    def conflicts(self) -> None:
        if (self.model_name_or_path is None) == (self.scratch is None):
            raise ValueError("give exactly one of model_name_or_path (a model folder) and scratch (fresh weights); "
                             f"given were {self.model_name_or_path!r} and {self.scratch!r}")
        if (self.reward is None) == (self.scorer is None):
            raise ValueError("give exactly one of reward (train a reward model in this run) and scorer (open one)")
        if self.scratch is not None and self.sft is None:
            raise ValueError("scratch gives random weights, so the run needs an sft section")
        if "offline_dpo" in self.baselines and self.reward is None:
            raise ValueError("the baseline offline_dpo trains on the reward section's preference data; add one")
        if "offline_dpo" in self.baselines and self.reward and isinstance(self.reward.train, OF_SOLUTIONS):
            raise ValueError("the baseline offline_dpo trains on preference data, and the reward section of kind = "
                             f"{self.reward.train.kind!r} has solutions with labels; leave the baseline out")
        self._check_templates()
        self._check_idle()

    @property
    def data(self) -> dict[str, RowOptions]:
        """The rows that the run reads, by the key of their section."""
        sections: dict[str, DataOptions | PreferenceData | ScorerData | None] = {"prompts": self.prompts}
        for name, section in (("sft", self.sft), ("reward", self.reward)):
            if section is not None:
                sections |= {f"{name}.data": section.data, f"{name}.eval_data": section.eval_data}
        if self.evaluation is not None:
            sections["evaluation.data"] = self.evaluation.data
        if self.selection is not None:
            sections["selection.data"] = self.selection.data
        return {name: data.rows for name, data in sections.items() if data is not None}

    @property
    def reads_raft(self) -> bool:
        """Whether the raft section has an effect."""
        return self.loop.method == "raft" or "raft" in self.baselines

    def _check_templates(self) -> None:
        """Raises ValueError for a section's own template where its model already has one: the run's, or its own."""
        sections: list[tuple[str, DataOptions | PreferenceData | None]] = [("prompts", self.prompts)]
        if self.sft is not None:
            sections += [("sft.data", self.sft.data), ("sft.eval_data", self.sft.eval_data)]
        if self.evaluation is not None:
            sections += [("evaluation.data", self.evaluation.data)]
        if self.selection is not None:
            sections += [("selection.data", self.selection.data)]
        if self.reward is not None and self.reward.init == "policy":
            sections += [("reward.data", self.reward.data)]
        for name, data in sections:
            template = None if data is None else data.render.chat_template_path
            if template is not None:
                raise ValueError(f"{name}.chat_template_path = {template!r} has no effect: a model writes all "
                                 "conversations by one template. Set chat_template_path of the run itself instead")

    def _check_idle(self) -> None:
        """Raises ValueError for sections and keys that nothing in this run would read, or that read nothing."""
        check_numbers_given(self.scorer, "scorer")
        check_numbers_given(self.gold, "gold")
        self._check_directions()
        self._check_exploration()
        if self.gold is not None and self.evaluation is None:
            raise ValueError("gold judges policies in the evaluation, and the config has no evaluation section; add "
                             "one or leave gold out")
        if self.pairs.scorer.split("/")[0] != PairOptions.scorer:
            raise ValueError(f"pairs.scorer = {self.pairs.scorer!r}; the run's scorer stores its score as 'proxy' and "
                             "numbers beside it as proxy/NAME. Name one of those")
        if self.raft != SftOptions() and not self.reads_raft:
            raise ValueError("the raft section has no effect without loop.method: raft or the baseline raft; leave it "
                             "out")
        if self.dpo.loss.of_responses and not self.dpo.split_pairs:
            raise ValueError(f"dpo.loss_type = {self.dpo.loss.loss_type!r} reads single responses, and the loop makes "
                             "pairs; set dpo.split_pairs")
        if self.reward is not None and "offline_dpo" not in self.baselines:
            check_graded(self.reward.train, self.reward.data.graded)
        trained: dict[str, TrainConfig] = {"dpo": self.dpo.train, "raft": self.raft.train}
        if self.reward is not None:
            trained["reward.train"] = self.reward.train.train
        if self.sft is not None and self.sft.eval_data is None:
            trained["sft.train"] = self.sft.train.train
        for name, options in trained.items():
            if options.eval_steps is not None:
                raise ValueError(f"{name}.eval_steps = {options.eval_steps} has no effect: nothing is evaluated while "
                                 "that stage trains; leave it out")

    def _check_directions(self) -> None:
        """Raises ValueError for keys that loop.directions takes the place of."""
        if self.loop.directions is None:
            return
        if self.pairs.scorer != PairOptions.scorer:
            raise ValueError(f"pairs.scorer = {self.pairs.scorer!r} has no effect with loop.directions, which choose "
                             "by the ratings of loop.directions.objectives; leave it out")
        if self.prompts.render.system_prompt is not None:
            raise ValueError("prompts.system_prompt has no effect with loop.directions, which write each prompt's "
                             "system message; leave it out")

    def _check_exploration(self) -> None:
        """Raises ValueError for a way of exploring that lacks what it reads."""
        judge = self.scorer if self.reward is None else self.reward.train
        assert judge is not None
        if self.loop.method == "dpo":
            check_exploration(self.loop, self.sampling, self.pairs, self.dpo, judge.kind)
        if "offline_dpo" in self.baselines and self.dpo.loss.needs_wins:
            raise ValueError(f"dpo.loss_type = {self.dpo.loss.loss_type!r} reads probabilities of winning, and the "
                             "labelled pairs of the baseline offline_dpo have none; leave the baseline out")


def reseeded(config: T, shift: int) -> T:
    """A config with `shift` added to every field called `seed`, at any depth: another repetition of the same run."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    idle = isinstance(config, ExperimentConfig) and not config.reads_raft  # a changed section that nothing reads
    changed = {f.name: getattr(config, f.name) + shift if f.name == "seed" else reseeded(getattr(config, f.name), shift)
               for f in dataclasses.fields(config) if not (idle and f.name == "raft")}
    return dataclasses.replace(config, **changed)
