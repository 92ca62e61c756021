"""Options of the verbs that evaluate scorers: evaluate, agreement and verify."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.config.data import GradedOptions, RowOptions, Sources, as_sources
from rlhf_jax.config.harness import PolicyOptions
from rlhf_jax.config.mesh import MeshChoice, MeshConfig
from rlhf_jax.config.scorer import ScorerOptions
from rlhf_jax.config.steps import Answers
from rlhf_jax.fields import COUNT, SEED, Flat, Options, at_least, changed, only_if, only_with


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateCommand(Options):
    """Evaluating a reward or preference model on pairs, a benchmark or what it scored; or a policy on academic tasks.

    Attributes:
      scorer: what is evaluated on the rows of dataset_name.
      output_dir: where the results go.
      input: folder of scored shards, instead of scorer and dataset_name.
      measure: of input: length_bias (how much scores grow with length), voting (pass@n, majority and best of n sampled
        solutions), or steps (a process model's numbers against the labels of steps).
      score: name of the scores in input; null for votes without scores.
      length_unit: of the lengths in input.
      answers: how answers are found and compared: gsm8k (a number behind ####), gsm8k_flexible (the last number), or
        math (LaTeX in a box; needs the extra `math`).
      answer_column: of the prompts' rows, which holds the reference.
      max_n: samples of a prompt to choose among; null for the most that a prompt has.
      policy: what is evaluated on tasks, instead of scorer and dataset_name.
      tasks: names of lm-evaluation-harness, separated by commas, or `paper` for the paper's set; needs the extra
        `lm-eval`.
      data_dir: folder of the tasks' rows, such as gsm8k/test.jsonl (docs/evaluating.md has all); null for the hub's.
      num_fewshot: examples in the tasks' prompts; null for what each task says.
      allow_code_execution: programs that the policy wrote may be run here, as humaneval and mbpp need.
      benchmark: whose rows dataset_name holds, as its authors publish them: rewardbench, rewardbench2, rm_bench ...
        (docs/evaluating.md has all); or preference, any preference rows, with a column `subset` or without.
      tie_rule: what an equal score counts, half or nothing (strict); null as the benchmark's authors have it.
      seed: of the bootstrap, and of answers to tasks that are not greedy.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
      trained_on: rows that the scorer was trained on, in any layout: how many of their prompts the evaluated rows ask
        too (13 words in a row) is said.
      rows: held-out preference rows; of tasks, max_samples alone has an effect: rows of each task, from the start.
      graded: which pairs graded rows make.
    """

    scorer: ScorerOptions | None = None
    output_dir: str
    input: str | None = None
    measure: Annotated[Literal["length_bias", "voting", "steps"], only_with("input")] = "length_bias"
    score: Annotated[str | None, only_with("input")] = "proxy"
    length_unit: Annotated[Literal["characters", "tokens"], only_with("input")] = "tokens"
    answers: Annotated[Answers, only_if(measure="voting")] = "gsm8k"
    answer_column: Annotated[str, only_if(measure="voting")] = "answer"
    max_n: Annotated[int | None, COUNT, only_if(measure="voting")] = None
    policy: PolicyOptions | None = None
    tasks: Annotated[str | tuple[str, ...], only_with("policy")] = ()
    data_dir: Annotated[str | None, only_with("policy")] = None
    num_fewshot: Annotated[int | None, at_least(0), only_with("policy")] = None
    allow_code_execution: Annotated[bool, only_with("policy")] = False
    benchmark: str = "preference"
    tie_rule: Literal["half", "strict"] | None = None
    seed: Annotated[int, SEED] = 0
    trained_on: RowOptions | None = None
    mesh: MeshChoice = MeshConfig()
    rows: Flat[RowOptions] = RowOptions()
    graded: Flat[GradedOptions] = GradedOptions()

    def conflicts(self) -> None:
        """Raises ValueError for keys of rows beside scored shards, and of reading them beside a benchmark."""
        if sum(given is not None for given in (self.scorer, self.input, self.policy)) != 1:
            raise ValueError("give one of scorer, to be evaluated on the rows of dataset_name, input, a folder of "
                             "scored shards whose scores are held against their lengths, and policy, to be evaluated "
                             "on tasks")
        if self.policy is not None and not self.task_names:
            raise ValueError("policy is given and tasks is not; name some, such as tasks: gsm8k,mmlu or tasks: paper")
        if self.score is None and self.measure != "voting":
            raise ValueError(f"score is null and measure = {self.measure!r} reads scores; name them, or set measure: "
                             "voting")
        if self.measure != "length_bias" and self.length_unit != "tokens":
            raise ValueError(f"length_unit = {self.length_unit!r} has no effect with measure = {self.measure!r}; leave "
                             "it out")
        if self.trained_on is not None and not self.trained_on.sources:
            raise ValueError("trained_on names no rows; set trained_on.dataset_name, or leave trained_on out")
        own = [name for name in ("benchmark", "tie_rule", "trained_on") if name in changed(self)]
        if self.policy is not None:
            why = "policy, which reads the rows of its tasks"
            idle = [*own, *(name for name in changed(self.rows) if name != "max_samples"), *changed(self.graded)]
        elif self.input is not None:
            why = f"input = {self.input!r}, whose shards are read as they are"
            idle = [*own, *changed(self.rows), *changed(self.graded)]
        else:
            why = f"benchmark = {self.benchmark!r}, whose rows are read in one way"
            reading = [name for name in changed(self.rows) if name == "converter"] + changed(self.graded)
            idle = reading if self.benchmark != "preference" else []
        if idle:
            raise ValueError(f"{', '.join(idle)} has no effect with {why}; leave it out")

    @property
    def task_names(self) -> tuple[str, ...]:
        """Of tasks, each by itself."""
        given = (self.tasks,) if isinstance(self.tasks, str) else self.tasks
        return tuple(name.strip() for names in given for name in names.split(",") if name.strip())


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgreementCommand(Options):
    """Judges of the same pairs held against each other and against the pairs' labels: agreement and kappa.

    Attributes:
      verdicts: output folders of `evaluate`, one for each judge; or files of rows with id, pair and result (1 for the
        chosen answer, 0 for the other, 0.5 for a tie), as people's judgements may be collected.
      output_dir: where the results go.
      seed: of the bootstrap.
    """

    verdicts: Sources
    output_dir: str
    seed: Annotated[int, SEED] = 0

    def conflicts(self) -> None:
        """Raises ValueError for no judge, and for one that is given twice."""
        given = as_sources(self.verdicts)
        if not given or len(set(given)) < len(given):
            raise ValueError(f"verdicts = {list(given)}; give one folder for each judge, at least one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyCommand(Options):
    """Recomputing every published figure that the files in a folder allow, ours beside theirs.

    Attributes:
      data: folder with the files: eval/alpaca-eval, preference/rm-bench and so on.
      output: JSON file for the same figures.
    """

    data: str
    output: str | None = None
