"""The options of the single verbs, one frozen dataclass each."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.config.data import DataOptions, PreferenceData, RowOptions, Sources
from rlhf_jax.config.mesh import MeshChoice, MeshConfig
from rlhf_jax.config.pairs import ENHANCER, PairOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.scorer import WITH_HEADS, ScorerOptions, check_numbers_given
from rlhf_jax.config.trackers import TrackerOptions
from rlhf_jax.config.training import BradleyTerryOptions, RewardOptions, SftOptions, check_evaluated, check_graded
from rlhf_jax.fields import COUNT, POSITIVE, SEED, Flat, Options, changed

Dtype = Literal["float32", "bfloat16"]
SHARD_SIZE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftCommand(Options):
    """Supervised fine-tuning of a language model on prompts and completions; the result is OUTPUT_DIR/model.

    Attributes:
      model_name_or_path: folder of the model to start from.
      output_dir: where the model, its metrics and the quarantine file go.
      eval_dataset_name: held-out rows of the same layout, read as those of dataset_name (columns, converter ...).
      eval_split: which split of eval_dataset_name to read, where it has several.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
      data: rows to train on.
      options: how to train.
      trackers: who else gets the metrics.
    """

    model_name_or_path: str
    output_dir: str
    eval_dataset_name: Sources = ()
    eval_split: str | None = None
    mesh: MeshChoice = MeshConfig()
    data: Flat[DataOptions] = DataOptions()
    options: Flat[SftOptions] = SftOptions()
    trackers: Flat[TrackerOptions] = TrackerOptions()

    def conflicts(self) -> None:
        check_evaluated(self.options.train, self.data.rows, self.eval_dataset_name, self.eval_split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardCommand(Options):
    """Training a reward model: of pairs, of ratings (regression), or of solutions (process, outcome); OUTPUT_DIR/model.

    Attributes:
      model_name_or_path: folder of the model to start from.
      output_dir: where the model, its metrics and the quarantine file go.
      eval_dataset_name: held-out rows of the same layout, read as those of dataset_name (columns, converter ...); the
        loss and its metrics on them end the stage.
      eval_split: which split of eval_dataset_name to read, where it has several.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
      data: rows to train on: pairs, graded rows for a regression, or solutions with labels.
      options: which kind of model, and how to train it.
      trackers: who else gets the metrics.
    """

    model_name_or_path: str
    output_dir: str
    eval_dataset_name: Sources = ()
    eval_split: str | None = None
    mesh: MeshChoice = MeshConfig()
    data: Flat[PreferenceData] = PreferenceData()
    options: Flat[RewardOptions] = BradleyTerryOptions()
    trackers: Flat[TrackerOptions] = TrackerOptions()

    def conflicts(self) -> None:
        check_evaluated(self.options.train, self.data.rows, self.eval_dataset_name, self.eval_split)
        check_graded(self.options, self.data.graded)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateCommand(Options):
    """Sampling n continuations of every prompt, with log-probs and finish reasons, into OUTPUT_DIR/shard-*.jsonl.

    Attributes:
      model_name_or_path: folder of the policy.
      output_dir: where the shards go.
      dtype: of weights, caches and computation.
      shard_size: prompts in one shard file; what a killed run loses at most.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
      data: the prompts.
      sampling: how to sample.
    """

    model_name_or_path: str
    output_dir: str
    dtype: Dtype = "float32"
    shard_size: Annotated[int, COUNT] = SHARD_SIZE
    mesh: MeshChoice = MeshConfig()
    data: Flat[DataOptions] = DataOptions()
    sampling: Flat[SamplingConfig] = SamplingConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreCommand(Options):
    """Scoring responses, sampled ones or those of a data set, with a reward or preference model or a Python function.

    Attributes:
      input: folder of shards that `rlhf-jax generate` or an earlier `score` wrote; or give dataset_name.
      output_dir: where the scored shards go.
      name: under which the scores are stored.
      layout: "rlhflow" also writes OUTPUT_DIR/rlhflow.jsonl, rows of prompt, responses and rewards.
      features: also writes the reward model's hidden states of all answers, OUTPUT_DIR/features/shard-*; the pair rule
        enhancer reads them.
      shard_size: rows of a data set in one shard file; what a killed run loses at most.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
      rows: prompts with responses, in any layout, instead of input.
      scorer: what scores.
    """

    input: str | None = None
    output_dir: str
    name: str = "proxy"
    layout: Literal["groups", "rlhflow"] = "groups"
    features: bool = False
    shard_size: Annotated[int, COUNT] = SHARD_SIZE
    mesh: MeshChoice = MeshConfig()
    rows: Flat[RowOptions] = RowOptions()
    scorer: Flat[ScorerOptions]

    def conflicts(self) -> None:
        if (self.input is None) == (not self.rows.sources):
            both = "" if self.input is None else f"input = {self.input!r} and dataset_name are both given; "
            raise ValueError(f"{both}give either input, a folder of shards, or dataset_name, rows with responses")
        if self.features and self.scorer.kind not in WITH_HEADS:
            raise ValueError(f"features = true writes the hidden states of a reward model, and kind = "
                             f"{self.scorer.kind!r} has none; choose one of {', '.join(WITH_HEADS)}")
        idle = changed(self.rows) + (["shard_size"] if self.shard_size != SHARD_SIZE else [])
        if self.input is not None and idle:
            raise ValueError(f"{', '.join(idle)} has no effect with input, whose shards stay as they are; leave it "
                             "out, or give dataset_name instead")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsCommand(Options):
    """Choosing preference pairs from scored responses, with a printed funnel; OUTPUT_DIR/pairs.jsonl.

    Attributes:
      input: folder of scored shards.
      output_dir: where pairs.jsonl goes.
      against: folder of another policy's scored shards of the same prompts, for the rules across and delta; its answers
        carry the number by_other = 1, those of input 0.
      earlier: output_dir of the round before, for the rule enhancer; None for the first.
      layout: "trl" also writes OUTPUT_DIR/trl.jsonl, rows of prompt, chosen, rejected and margin.
      pairs: which responses make a pair.
    """

    input: str
    output_dir: str
    against: str | None = None
    earlier: str | None = None
    layout: Literal["groups", "trl"] = "groups"
    pairs: Flat[PairOptions] = PairOptions()

    def conflicts(self) -> None:
        enhanced = self.pairs.rule == ENHANCER
        if self.earlier is not None and not enhanced:
            raise ValueError(f"earlier = {self.earlier!r} has no effect with rule = {self.pairs.rule!r}; leave it out, "
                             "or set rule: enhancer")
        if self.against is not None and enhanced:
            raise ValueError("rule = 'enhancer' reads the features beside one folder of shards, and against is another "
                             "one; leave it out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareCommand(Options):
    """Comparing a policy with a baseline on held-out prompts: fresh answers, judged; rewards, win rates, KL, a report.

    Attributes:
      model_name_or_path: the policy.
      baseline_model: the policy to win against and to measure KL from, say the start.
      scorer: the judge.
      output_dir: where the results go.
      gold: a second judge.
      sampling: how the policies answer.
      dtype: of the policies' weights and computation.
      seed: of the bootstrap.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
      data: the prompts.
    """

    model_name_or_path: str
    baseline_model: str
    scorer: ScorerOptions
    output_dir: str
    gold: ScorerOptions | None = None
    sampling: SamplingConfig = SamplingConfig()
    dtype: Dtype = "float32"
    seed: Annotated[int, SEED] = 0
    mesh: MeshChoice = MeshConfig()
    data: Flat[DataOptions] = DataOptions()

    def conflicts(self) -> None:
        check_numbers_given(self.scorer, "scorer")
        check_numbers_given(self.gold, "gold")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand(Options):
    """Writing a model as a Hugging Face folder: an adapter merged, another dtype, a killed run's last checkpoint.

    Attributes:
      model_name_or_path: a model, or a LoRA adapter in PEFT's layout.
      output_dir: the model becomes OUTPUT_DIR/model.
      base_model: the model an adapter belongs to, if not the one it names.
      checkpoint: folder of a training stage that did not finish; its last checkpoint replaces the model's own weights,
        whatever devices it was saved on.
      dtype: of the written weights.
      max_shard_size: gigabytes of one file.
      mesh: of devices, over which the weights are spread meanwhile.
    """

    model_name_or_path: str
    output_dir: str
    base_model: str | None = None
    checkpoint: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_shard_size: Annotated[float, POSITIVE] = 4.0
    mesh: MeshChoice = MeshConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectCommand(Options):
    """What a checkpoint is, from its headers alone: family, head, tensors, bytes per device; nothing is loaded.

    Attributes:
      model_name_or_path: a model folder or hub name.
      devices: how many devices the mesh is laid over, present or not.
      mesh: of those devices; "auto" chooses by their number and the model.
    """

    model_name_or_path: str
    devices: Annotated[int, COUNT] = 1
    mesh: MeshChoice = MeshConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorCommand(Options):
    """Checking what ruins runs silently: template, BOS, stop token, padding, and the loss before any training.

    Attributes:
      model_name_or_path: a model folder or hub name.
      kind: layout of the rows of dataset_name, whose step-0 loss is measured; without them an embedded conversation is.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
      data: rows to measure on.
    """

    model_name_or_path: str
    kind: Literal["sft", "preference"] = "sft"
    mesh: MeshChoice = MeshConfig()
    data: Flat[PreferenceData] = PreferenceData()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertCommand(Options):
    """A config of TRL's command line as one of ours; what was computed and what has no counterpart is said.

    Attributes:
      file: TRL's YAML file.
      verb: which of TRL's commands it is for.
      num_processes: devices that TRL ran on, of which each had per_device_train_batch_size examples.
      output: the file to write; null prints it.
    """

    file: str
    verb: Literal["sft", "reward", "dpo"]
    num_processes: Annotated[int, COUNT] = 1
    output: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchCommand(Options):
    """Following a run from another terminal: what each stage found, what is at work; ends when the run does.

    Attributes:
      run: the run folder, or the output folder of a single verb.
      every: seconds between two looks.
      once: look once.
    """

    run: str
    every: Annotated[float, POSITIVE] = 5.0
    once: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportCommand(Options):
    """Drawing the report of a finished run again, from its results.json; or holding two runs against each other.

    Attributes:
      run: the run folder.
      compare: folder of another finished run: prints both runs' policies side by side and the settings that differ.
    """

    run: str
    compare: str | None = None
