"""The pairwise preference model: a language model that answers one letter, A or B (RLHF Workflow, section 2.2).

Trained as supervised fine-tuning on one letter; read from the logits of the two letters, in both orders, averaged.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax import losses
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import Message, PromptGroup, Response, Text
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.packing import PackedBatch, unpack_slots
from rlhf_jax.data.rows import BadRow, Example
from rlhf_jax.data.rrm import NEUTRAL
from rlhf_jax.data.template_reading import unrendered
from rlhf_jax.models import CheckpointError, DecoderConfig, Params, vocab_logits
from rlhf_jax.parallel import bound
from rlhf_jax.scoring.base import Progress, Verdicts, Weights
from rlhf_jax.scoring.replies import reply_ids
from rlhf_jax.scoring.tournament import Method, tournament
from rlhf_jax.training.evaluate import PackedMap
from rlhf_jax.training.objectives import Compute

LETTERS = ("A", "B")


def letters_with(neutral: str | None) -> tuple[str, ...]:
    """The answers of a model: A, B and, if it knows one, that neither is better."""
    return LETTERS if neutral is None else (*LETTERS, neutral)


def context_text(prompt: Text) -> str:
    """The conversation before the two answers, as the published preference models expect it.

    A newline, then for each turn a newline, `<turn> role`, a newline, a space and the text; a newline at the end.
    """
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return "\n" + "".join(f"\n<turn> {m['role']}\n {m['content']}" for m in messages) + "\n"


def comparison(prompt: Text, first: Text, second: Text) -> list[Message]:
    """The user turn that asks which of two answers is better.

    Raises:
      BadRow: tool_calls_not_rendered, several_turns; a comparison holds texts alone, and one turn of each answer.
    """
    check_texts_alone(prompt, first, second)
    a, b = answer_text(first), answer_text(second)
    content = f"[CONTEXT] {context_text(prompt)} [RESPONSE A] {a} [RESPONSE B] {b} \n"
    return [{"role": "user", "content": content}]


def check_texts_alone(*texts: Text) -> None:
    """Raises BadRow (tool_calls_not_rendered) for what a question about texts alone cannot hold."""
    messages = [message for text in texts if not isinstance(text, str) for message in text]
    if any("tool_calls" in message for message in messages):
        raise unrendered("tool_calls", " (a question about answers holds texts alone)")


def answer_text(response: Text) -> str:
    """The text of a response of one turn. Raises BadRow (several_turns) where the rest would not be seen."""
    if isinstance(response, str):
        return response
    if len(response) > 1:
        raise BadRow("several_turns", f"the answer has {len(response)} turns, and a question about answers shows one "
                                      "of each; put the turns that the answers share into the prompt")
    return response[0]["content"]


def _coin(prompt_id: str, seed: int) -> bool:
    return hashlib.sha256(f"{seed} {prompt_id}".encode()).digest()[0] % 2 == 0


def letter_examples(examples: Iterable[Example], seed: int, funnel: Funnel, letters: Sequence[str] = LETTERS
                    ) -> Sequence[Example]:
    """Preference examples as one-letter conversations; a coin seeded by the prompt id puts chosen at A or B.

    letters: of A, of B and, where examples may be marked as NEUTRAL, of neither.
    """
    out = OnDisk[Example]()
    for example in examples:
        try:
            found = [_letter_example(example, number, pair, seed, letters) for number, pair in enumerate(example.pairs)]
        except BadRow as error:
            funnel.refuse(example.origin, error)
            continue
        funnel.read += len(found) - 1  # from here on every comparison is a row
        out.extend(found)
    funnel.notes["comparisons"] += len(out)
    return out


def _letter_example(example: Example, number: int, pair: tuple[int, int], seed: int, letters: Sequence[str]) -> Example:
    name = f"{example.prompt_id}/{number}"
    first = _coin(name, seed)
    question = comparison(example.prompt, *(example.responses[i] for i in (pair if first else pair[::-1])))
    answer = letters[2 if example.extra.get(NEUTRAL) is True else 0 if first else 1]
    return Example(question, (answer,), prompt_id=name, origin=example.origin)


def letter_ids(renderer: Renderer, letters: Sequence[str] = LETTERS) -> tuple[int, ...]:
    """Token ids of the letters where a reply begins; each must be a single token of its own."""
    instead = dict.fromkeys(letters[len(LETTERS):], "neutral_answer, such as C")
    return reply_ids(renderer, letters, "pairwise preference model", instead)


def letter_outputs(compute: Compute, letters: tuple[int, ...], params: Params, batch: PackedBatch) -> Any:
    """[B, S, 2]: P(A against B), and the probability that falls on any of the letters; a third one stands for both."""
    hidden = compute.hidden(params, batch)
    ends = jnp.take_along_axis(hidden, batch.slot_end[..., None], axis=1)
    logits = vocab_logits(params, compute.config, ends)
    probs = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    mass = sum(probs[..., letter] for letter in letters) / jnp.sum(probs, axis=-1)
    return jnp.stack([losses.pairwise_preference(*(logits[..., letter] for letter in letters)), mass], axis=-1)


class PairwiseScorer:
    """P(first is better), both orders averaged, and scores of n responses from a tournament.

    Args:
      params, config: of a causal language model trained on letters; see `Weights`.
      method: "round_robin" plays all pairs, score = mean probability of winning; "knock_out" plays about 2n games to
        find the best (score 1) and the worst (score 0), the others have 0.5.
      min_letter_mass: a comparison in which A and B together have less probability is a failure, not a coin flip.
      neutral: what the model answers where neither is better, which counts half for each; None if it knows no such
        answer.

    Raises:
      CheckpointError: if the model is a classifier or its letters are no single tokens.
    """

    def __init__(self, params: Params | Callable[[], Params], config: DecoderConfig, renderer: Renderer, mesh: Mesh, *,
                 name: str = "proxy", key: str | Callable[[], str] = "",
                 method: Method = "round_robin", rows_per_batch: int = 4, min_letter_mass: float = 0.5,
                 neutral: str | None = None):
        if config.is_classifier:
            raise CheckpointError("a pairwise preference model is a causal language model and this checkpoint is a "
                                  f"classifier of {config.num_labels} output(s); for it set kind: bradley_terry")
        self.name, self._key, self.method = name, key, method
        self.failures: Counter[str] = Counter()
        self._weights, self._renderer = Weights(params), renderer
        self._compute = Compute(config, mesh=mesh)
        self._letters, self._mass = letter_ids(renderer, letters_with(neutral)), min_letter_mass
        outputs = bound(letter_outputs, self._compute, self._letters)
        self._map = PackedMap(outputs, mesh, unpack_slots, rows_per_batch=rows_per_batch)

    def _question(self, prompt: Text, first: Text, second: Text) -> PromptGroup | None:
        """The rendered question, its last token (where the reply begins) as the one branch."""
        try:
            ids = self._renderer.render_prompt(comparison(prompt, first, second))
            limit = self._renderer.max_length
            if limit is not None and len(ids) > limit:
                raise BadRow("prompt_too_long", f"the comparison has {len(ids)} tokens, max_length is {limit}")
        except BadRow as error:
            self.failures[error.reason] += 1
            return None
        return PromptGroup("", ids[:-1], (Response(ids[-1:], np.ones(1, bool)),))

    def orders(self, games: Sequence[tuple[Text, Text, Text]], progress: Progress | None = None
               ) -> list[tuple[float, float] | None]:
        """P(first better than second) of each (prompt, first, second) in both orders; None on failure."""
        questions: list[PromptGroup] = []
        places: list[tuple[int, int] | None] = []
        for prompt, first, second in games:
            one = self._question(prompt, first, second)
            other = None if one is None else self._question(prompt, second, first)
            if one is None or other is None:
                places.append(None)
                continue
            places.append((len(questions), len(questions) + 1))
            questions += [one, other]
        if not questions:
            return [None] * len(games)
        found = self._map(self._weights(), questions, progress)
        out: list[tuple[float, float] | None] = []
        for place in places:
            if place is None:
                out.append(None)
                continue
            (p_ab, mass_ab), (p_ba, mass_ba) = (np.asarray(found[i][0], np.float64) for i in place)
            if not min(mass_ab, mass_ba) >= self._mass:
                self.failures["no_letter"] += 1
                out.append(None)
                continue
            out.append((float(p_ab), 1 - float(p_ba)))
        return out

    def compare(self, games: Sequence[tuple[Text, Text, Text]], progress: Progress | None = None) -> list[float | None]:
        """P(first better than second) of each (prompt, first, second), averaged over both orders; None on failure."""
        return [None if both is None else self.joined(both) for both in self.orders(games, progress)]

    def joined(self, both: tuple[float, float]) -> float:
        """The mean of both orders."""
        return sum(both) / 2

    @property
    def key(self) -> str:
        """Changes when the scores would."""
        return self._key() if callable(self._key) else self._key

    def release(self) -> None:
        self._weights.release()

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        """Scores of all responses from the games of the configured tournament."""
        return tournament(self, self.method, groups, progress)


