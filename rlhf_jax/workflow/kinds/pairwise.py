"""`kind: pairwise`: a language model that answers which of two responses is better, A or B (section 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from jax.sharding import Mesh

from rlhf_jax.config.scorer import PairwiseScoring, ScorerModel
from rlhf_jax.config.training import PairwiseOptions
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.rows import Example
from rlhf_jax.data.rrm import ROWS, augmented
from rlhf_jax.fields import replaced
from rlhf_jax.models import DecoderConfig, Params
from rlhf_jax.scoring import PairwiseScorer, letter_examples, letter_ids
from rlhf_jax.scoring.pairwise import letter_outputs, letters_with
from rlhf_jax.training.objectives import Compute, Objective, Sft
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind, Passes, TrainedKind, open_model


def open_scorer(options: PairwiseScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> PairwiseScorer:
    """The preference model as a scorer."""
    model = open_model(options, mesh, weights)
    return PairwiseScorer(model.weights, model.config, model.renderer, mesh, name=name, key=model.key,
                          method=options.method, neutral=options.neutral_answer)


def language_model(options: PairwiseOptions, params: Params, config: DecoderConfig) -> tuple[Params, DecoderConfig]:
    """The language model it starts from, which keeps its head."""
    del options
    if config.is_classifier:
        raise ValueError("a pairwise preference model answers with a letter, and this checkpoint is a classifier "
                         f"({config.num_labels} output(s)) without a next-token head; start from a language model")
    return params, config


def letters(options: PairwiseOptions, examples: Sequence[Example], funnel: Funnel, renderer: Renderer
            ) -> Sequence[Example]:
    """Pairs, or what augmentation makes of them, as questions that a letter answers."""
    answers = letters_with(neutral_of(options))
    letter_ids(renderer, answers)  # that they cannot be told apart is said now, not when the trained model is asked
    if options.augment != "none":
        examples = augmented(examples, options.train.seed, funnel, keep=options.augment == "rrm+")
    return letter_examples(examples, options.train.seed, funnel, answers)


def neutral_of(options: PairwiseOptions) -> str | None:
    """The word that a model trained with these options answers where neither is better."""
    return None if options.augment == "none" else options.neutral_answer


def served(options: PairwiseOptions, model: ScorerModel) -> PairwiseScoring:
    """The scorer that the trained model is."""
    return PairwiseScoring(model, neutral_answer=neutral_of(options))


def examples_per_pair(options: PairwiseOptions) -> int:
    return {"none": 1, "rrm": ROWS, "rrm+": ROWS + 1}[options.augment]


def not_augmented(options: PairwiseOptions) -> PairwiseOptions:
    """Held-out pairs are asked as they are."""
    return replaced(options, augment="none")


def objective(options: PairwiseOptions) -> Callable[[Compute], Objective]:
    """Fine-tuning on the letter."""
    del options
    return Sft


def passes(options: PairwiseScoring, responses: int) -> Passes:
    """Each game is read in both orders, each a row's question of its own, with both answers in it."""
    games = responses * (responses - 1) / 2 if options.method == "round_robin" else 2 * responses
    return Passes(2 * games, 1, quoted=2, response_tokens=1)


KIND = Kind(
    options=PairwiseScoring, open=open_scorer, passes=passes,
    outputs=lambda compute: partial(letter_outputs, compute, (0, 1)),
    training=TrainedKind(options=PairwiseOptions, examples=letters, model=language_model,
                         shape=lambda options, config: config, objective=objective, responses=1, quoted=2,
                         served=served, held_out=not_augmented, examples_per_pair=examples_per_pair))
