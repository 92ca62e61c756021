"""Options of what scores responses: one class per kind, with the keys that mean something to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.server import Server
from rlhf_jax.fields import COUNT, POSITIVE, SEED, Flat, Options, at_least, between, only_if

ScoreAt = Literal["last_token", "end_of_turn"]
Reduce = Literal["mean", "min", "last", "product"]
Aggregate = Literal["mean", "worst_case", "uncertainty_weighted"]
WITH_HEADS = ("bradley_terry", "ensemble", "regression", "odin", "multi_objective", "outcome")
"""Kinds that read answers by a head, so that their hidden states are features."""
NO_WIN_RATES = ("bradley_terry", "ensemble", "regression", "odin", "multi_objective", "implicit")
"""Kinds whose score is no probability of winning."""


@dataclasses.dataclass(frozen=True)
class ScorerModel(Options):
    """A scorer with weights.

    Attributes:
      model_name_or_path: folder of the reward or preference model.
      chat_template_path: replaces the template of the scorer's own tokenizer.
      text_as_chat: string prompts become user messages instead of plain text.
      system_prompt: system message of conversations that have none of their own; string prompts become user messages.
      max_length: tokens of prompt and response together, in the scorer's tokens; longer ones get no score.
      dtype: of the model's weights and computation; its score heads are float32 in any case.
    """

    model_name_or_path: str
    chat_template_path: str | None = None
    text_as_chat: bool = False
    system_prompt: str | None = None
    max_length: Annotated[int | None, COUNT] = 1024
    dtype: Literal["float32", "bfloat16"] = "float32"

    @staticmethod
    def trained(folder: str, render: RenderOptions) -> ScorerModel:
        """A model that was trained on rows rendered so, which conversations are then rendered as too."""
        return ScorerModel(folder, text_as_chat=render.text_as_chat, system_prompt=render.system_prompt,
                           max_length=render.max_length)


@dataclasses.dataclass(frozen=True)
class BradleyTerryScoring(Options):
    """A reward model: one number at a response's last token.

    Attributes:
      kind: bradley_terry, pairwise, multi_objective, odin, ensemble, regression, tree, process, outcome_generative,
        outcome, implicit or local_judge (models), function (Python), judge or reward_server (HTTP), combine (a sum of
        numbers).
      model: the reward model.
      output: of a classifier with several outputs, which one is the score; ODIN's quality is 1.
      score_at: where the head is read: "last_token" of the rendered conversation that is no padding, as transformers
        and TRL do, or "end_of_turn", its stop token; None for what the model's config.json says (rlhf_jax_score_at),
        else the last token.
    """

    model: Flat[ScorerModel]
    kind: Literal["bradley_terry"] = "bradley_terry"
    output: Annotated[int | None, at_least(0)] = None
    score_at: ScoreAt | None = None


@dataclasses.dataclass(frozen=True)
class PairwiseScoring(Options):
    """A preference model that answers which of two responses is better.

    Attributes:
      kind: "pairwise".
      model: the preference model.
      method: tournament of n responses: round_robin plays all pairs, knock_out about 2n to find best and worst.
      neutral_answer: the word for neither, of a model that was trained with augment: rrm; it counts half for each.
    """

    model: Flat[ScorerModel]
    kind: Literal["pairwise"] = "pairwise"
    method: Literal["round_robin", "knock_out"] = "round_robin"
    neutral_answer: str | None = None


@dataclasses.dataclass(frozen=True)
class MultiObjectiveScoring(Options):
    """ArmoRM: many regressed objectives, weighed by a gate that reads the prompt.

    Attributes:
      kind: "multi_objective".
      model: the reward model.
      score_at: where the head is read, as of kind bradley_terry.
    """

    model: Flat[ScorerModel]
    kind: Literal["multi_objective"] = "multi_objective"
    score_at: ScoreAt | None = None


@dataclasses.dataclass(frozen=True)
class OdinScoring(Options):
    """ODIN: the quality head of a reward model whose other head took the length, which is stored beside it.

    Attributes:
      kind: "odin".
      model: the reward model.
      score_at: where the heads are read, as of kind bradley_terry.
    """

    model: Flat[ScorerModel]
    kind: Literal["odin"] = "odin"
    score_at: ScoreAt | None = None


@dataclasses.dataclass(frozen=True)
class RegressionScoring(Options):
    """A regression of several ratings; each is stored by its name beside the score.

    Attributes:
      kind: "regression".
      model: the reward model.
      objective: name of the rating that is the score; None for the mean of all.
      score_at: where the heads are read, as of kind bradley_terry.
    """

    model: Flat[ScorerModel]
    kind: Literal["regression"] = "regression"
    objective: str | None = None
    score_at: ScoreAt | None = None


@dataclasses.dataclass(frozen=True)
class EnsembleScoring(Options):
    """An ensemble of reward heads; mean, worst_case, uncertainty_weighted and std are stored beside the score.

    Attributes:
      kind: "ensemble".
      model: the reward model, of which every output is a member.
      members: further reward models with the same tokenizer and template, whose outputs are members too.
      aggregate: which number is the score: the mean of the members, the least (worst_case), or the mean less
        uncertainty_weight standard deviations.
      uncertainty_weight: what the members' standard deviation takes off uncertainty_weighted.
      score_at: where the heads are read, as of kind bradley_terry.
    """

    model: Flat[ScorerModel]
    kind: Literal["ensemble"] = "ensemble"
    members: tuple[str, ...] = ()
    aggregate: Aggregate = "mean"
    uncertainty_weight: Annotated[float, between(0, 1e6)] = 1.0
    score_at: ScoreAt | None = None


@dataclasses.dataclass(frozen=True)
class TreeScoring(Options):
    """A decision tree over regressed ratings: a response's mean probability of being better than the prompt's others.

    Attributes:
      kind: "tree".
      model: the regression, with tree.json beside its weights.
      score_at: where the heads are read, as of kind bradley_terry.
    """

    model: Flat[ScorerModel]
    kind: Literal["tree"] = "tree"
    score_at: ScoreAt | None = None


@dataclasses.dataclass(frozen=True)
class ProcessScoring(Options):
    """A process reward model: a language model that answers each step of a solution with + or -.

    Attributes:
      kind: "process".
      model: the process model.
      reduce: what of the steps' probabilities is the score; each step's and all four of these are stored beside it.
      step_separator: where the text of a solution is cut into steps: a blank line, else RLHFlow's marker "ки", a line
        end (TRL's) ...
    """

    model: Flat[ScorerModel]
    kind: Literal["process"] = "process"
    reduce: Reduce = "mean"
    step_separator: str = "\n\n"

    def conflicts(self) -> None:
        if not self.step_separator:
            raise ValueError("step_separator is empty; give what stands between two steps, such as a line end")


@dataclasses.dataclass(frozen=True)
class OutcomeGenerativeScoring(Options):
    """A generative outcome model: a language model that answers a whole solution with + or -.

    Attributes:
      kind: "outcome_generative".
      model: the outcome model.
    """

    model: Flat[ScorerModel]
    kind: Literal["outcome_generative"] = "outcome_generative"


@dataclasses.dataclass(frozen=True)
class OutcomeScoring(Options):
    """A scalar outcome model: the probability that a solution is right; its logit is stored beside it.

    Attributes:
      kind: "outcome".
      model: the outcome model.
      score_at: where the head is read, as of kind bradley_terry.
    """

    model: Flat[ScorerModel]
    kind: Literal["outcome"] = "outcome"
    score_at: ScoreAt | None = None


@dataclasses.dataclass(frozen=True)
class FunctionScoring(Options):
    """A Python function.

    Attributes:
      kind: "function".
      function: "package.module:function" with the signature f(prompts, completions, **columns) -> scores.
    """

    function: str
    kind: Literal["function"] = "function"


@dataclasses.dataclass(frozen=True)
class ImplicitScoring(Options):
    """A policy against its reference: beta times the log-ratio of a response, the reward that DPO gives it implicitly.

    Attributes:
      model: the policy.
      reference_model: folder of what it started from, of the same vocabulary.
      kind: "implicit".
      beta: scale of the log-ratio; of a policy that DPO trained, its beta.
      over: sum over the response's tokens, as DPO's own reward, or their mean (per token), which length does not scale.
    """

    model: Flat[ScorerModel]
    reference_model: str
    kind: Literal["implicit"] = "implicit"
    beta: Annotated[float, POSITIVE] = 0.1
    over: Literal["sum", "mean"] = "sum"


@dataclasses.dataclass(frozen=True)
class Judging(Options):
    """What a language model is asked that judges answers, and how it replies.

    Attributes:
      judges: pairs (which of two answers is better, asked in both orders) or single (a rating of each answer).
      rubric: YAML file of what the judge is asked and how its reply is read; None for the one that comes with this
        program.
      method: tournament of n responses: round_robin plays all pairs, knock_out about 2n to find best and worst.
      endpoint: chat (the rubric is rendered by the model's template), or completions (the rubric's text is continued as
        it is, for models without one).
      temperature: at which it replies.
      max_tokens: of its reply.
    """

    judges: Literal["pairs", "single"] = "pairs"
    rubric: str | None = None
    method: Annotated[Literal["round_robin", "knock_out"], only_if(judges="pairs")] = "round_robin"
    endpoint: Literal["chat", "completions"] = "chat"
    temperature: Annotated[float, between(0, 1e4)] = 0.0
    max_tokens: Annotated[int, COUNT] = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeScoring(Options):
    """A served language model that judges answers.

    Attributes:
      server: which model, and what asking it may cost.
      kind: "judge".
      judging: what it is asked.
    """

    server: Flat[Server]
    kind: Literal["judge"] = "judge"
    judging: Flat[Judging] = Judging()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalJudgeScoring(Options):
    """A language model that judges answers on these devices, with our own sampler.

    Attributes:
      model_name_or_path: folder of the judge.
      kind: "local_judge".
      chat_template_path: replaces the template of the judge's tokenizer.
      max_length: tokens of question and reply together; longer questions get no verdict. None for the model's
        positions.
      dtype: of its weights and computation.
      slots: questions that are answered at a time.
      seed: of its replies at a temperature above 0.
      judging: what it is asked.
    """

    model_name_or_path: str
    kind: Literal["local_judge"] = "local_judge"
    chat_template_path: str | None = None
    max_length: Annotated[int | None, COUNT] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    slots: Annotated[int, COUNT] = 32
    seed: Annotated[int, SEED] = 0
    judging: Flat[Judging] = Judging(max_tokens=512)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardServerScoring(Options):
    """A reward model behind HTTP, as vLLM serves one; the server renders conversations.

    Attributes:
      kind: "reward_server".
      server: which model; its url is the one before /classify, /pooling or /score.
      endpoint: classify or pooling (given the conversation), or score (given prompt and response as two texts).
      output: of a model with several outputs, which one is the score.
    """

    server: Flat[Server]
    kind: Literal["reward_server"] = "reward_server"
    endpoint: Literal["classify", "pooling", "score"] = "classify"
    output: Annotated[int | None, at_least(0)] = None


SingleScoring = (BradleyTerryScoring | PairwiseScoring | MultiObjectiveScoring | OdinScoring
                 | EnsembleScoring | RegressionScoring | TreeScoring
                 | ProcessScoring | OutcomeGenerativeScoring | OutcomeScoring
                 | ImplicitScoring | FunctionScoring | JudgeScoring | LocalJudgeScoring | RewardServerScoring)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CombineScoring(Options):
    """A weighted sum of numbers that responses carry already, without a forward pass.

    Attributes:
      kind: "combine".
      weights: of each number, by the name it is stored under: {proxy/helpfulness: 0.9, proxy/verbosity: -0.4}.
      scorer: gives the numbers first, where they are not stored: its score as NAME, those beside it as NAME/..., NAME
        being what the sum is stored as.
    """

    weights: Annotated[Mapping[str, float], between(-1e6, 1e6)]
    kind: Literal["combine"] = "combine"
    scorer: SingleScoring | None = None

    def conflicts(self) -> None:
        if not self.weights:
            raise ValueError("weights is empty; give each number its weight, such as {proxy/helpfulness: 1.0}")


ScorerOptions = SingleScoring | CombineScoring


def check_numbers_given(options: ScorerOptions | None, key: str) -> None:
    """Raises ValueError for a sum of stored numbers where fresh samples are scored, which carry none."""
    if isinstance(options, CombineScoring) and options.scorer is None:
        raise ValueError(f"{key}.kind = 'combine' adds numbers that responses carry, and fresh samples carry none; set "
                         f"{key}.scorer to what gives them")
