"""Options of the chat benchmarks."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.config.mesh import MeshChoice, MeshConfig
from rlhf_jax.config.sampling import StoredDtype
from rlhf_jax.config.scorer import ScorerOptions, check_numbers_given
from rlhf_jax.config.server import Server
from rlhf_jax.fields import COUNT, SEED, Flat, Options, above, at_least, between, only_if


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialJudging(Options):
    """A served model that is asked with the benchmark's own prompts.

    Attributes:
      kind: official, or that of a scorer of answers: bradley_terry, pairwise, multi_objective, function ...
      server: which model.
      max_tokens: of a reply; None for the benchmark's own number.
    """

    server: Flat[Server]
    kind: Literal["official"] = "official"
    max_tokens: Annotated[int | None, COUNT] = None


BenchmarkJudging = OfficialJudging | ScorerOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answering(Options):
    """How a policy answers a benchmark's questions.

    Attributes:
      temperature: None for the benchmark's own; where it has none (AlpacaEval, Arena-Hard), 0.7.
      top_p: among the fewest tokens that have this probability together; 1.0 for all.
      max_new_tokens: of an answer; None for the benchmark's own (AlpacaEval 2,048, Arena-Hard 4,096, MT-Bench 1,024).
      slots: questions in flight, over all devices.
      block: tokens decoded between two looks by the host.
      cache_dtype: of the keys and values that decoding remembers; "auto" is the compute dtype.
      seed: with the question and the position it decides every token.
    """

    temperature: Annotated[float | None, between(0, 1e4)] = None
    top_p: Annotated[float, above(0, 1)] = 1.0
    max_new_tokens: Annotated[int | None, COUNT] = None
    slots: Annotated[int, at_least(1, 65_536)] = 16
    block: Annotated[int, at_least(1, 65_536)] = 32
    cache_dtype: StoredDtype = "auto"
    seed: Annotated[int, SEED] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkCommand(Options):
    """A chat benchmark: a policy answers its questions, a judge compares or rates the answers, and they are scored.

    Attributes:
      name: alpaca_eval (AlpacaEval 2), arena_hard or mt_bench.
      data_dir: folder of the benchmark's official files.
      output_dir: where answers, judgements and figures go.
      model_name_or_path: the policy that answers.
      outputs: its answers in the benchmark's official file, instead of a policy; beside annotations they are needed for
        style control alone.
      annotations: judgements in the official file, instead of a judge; they are only scored.
      judge: who judges.
      accept_missing: questions that got no reply because the judge's server failed have no verdict; else the command
        ends, and asks them when it is given again.
      label: what the model is called in the official files; None for the name of its folder or file. Of mt_bench's
        annotations, which may be of several models: whose are scored.
      version: of Arena-Hard.
      style_tokenizer: folder of the tokenizer that counts tokens for style control; None for the counts in the files.
      max_samples: questions, from the start, for a trial; None for all.
      chat_template_path: replaces the template of the policy's tokenizer.
      answering: how the policy answers.
      dtype: of the policy's weights and computation.
      seed: of the bootstrap.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
    """

    name: Literal["alpaca_eval", "arena_hard", "mt_bench"]
    data_dir: str
    output_dir: str
    model_name_or_path: str | None = None
    outputs: str | None = None
    annotations: str | None = None
    judge: BenchmarkJudging | None = None
    accept_missing: bool = False
    label: str | None = None
    version: Annotated[Literal["v0.1", "v2.0"], only_if(name="arena_hard")] = "v2.0"
    style_tokenizer: Annotated[str | None, only_if(name="arena_hard")] = None
    max_samples: Annotated[int | None, COUNT] = None
    chat_template_path: str | None = None
    answering: Answering = Answering()
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: Annotated[int, SEED] = 0
    mesh: MeshChoice = MeshConfig()

    def conflicts(self) -> None:
        if self.annotations is not None:
            self._refuse("annotations", "they are scored as they are", model_name_or_path=None, judge=None,
                         accept_missing=False)
        elif (self.model_name_or_path is None) == (self.outputs is None):
            raise ValueError("give exactly one of model_name_or_path (a policy that answers), outputs (its answers) "
                             "and annotations (what a judge said of them)")
        elif self.judge is None:
            raise ValueError("answers need a judge: give judge.url and judge.model for a served model that is asked as "
                             "the benchmark says, or judge.kind for a scorer")
        if self.outputs is not None and self.annotations is not None and self.name != "arena_hard":
            self._refuse("annotations", f"they hold all that {self.name} scores", outputs=None)
        if self.model_name_or_path is None:
            self._refuse("outputs" if self.annotations is None else "annotations", "no policy answers",
                         answering=Answering(), chat_template_path=None, dtype="float32")
        if self.annotations is not None:
            if self.name != "mt_bench":
                self._refuse("annotations", "nothing is written under a name", label=None)
            if self.outputs is None:
                self._refuse("annotations alone", "style control needs outputs", style_tokenizer=None)
        if not isinstance(self.judge, OfficialJudging):
            check_numbers_given(self.judge, "judge")
        if self.name == "mt_bench" and self.answering.temperature is not None:
            raise ValueError(f"answering.temperature = {self.answering.temperature} has no effect on mt_bench, whose "
                             "questions are answered at the temperature of their category; leave it out")
        if self.name == "alpaca_eval" and isinstance(self.judge, OfficialJudging) and self.judge.max_tokens is not None:
            raise ValueError(f"judge.max_tokens = {self.judge.max_tokens} has no effect on alpaca_eval, whose judge "
                             "says one token; leave it out")

    def _refuse(self, given: str, why: str, **defaults: object) -> None:
        """Raises ValueError if one of these options is set, where `given` is."""
        for name, default in defaults.items():
            if getattr(self, name) != default:
                raise ValueError(f"{name} has no effect beside {given}: {why}; leave it out")
