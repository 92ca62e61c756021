"""A language model as a judge: which of two answers is better, asked in both orders, or a rating of one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from rlhf_jax.data.groups import PromptGroup, Text
from rlhf_jax.data.rows import BadRow
from rlhf_jax.remote import Client, Question, chat, chat_text, completion, completion_text
from rlhf_jax.scoring.base import Progress, Verdicts, verdicts_of
from rlhf_jax.scoring.pairwise import answer_text, check_texts_alone, context_text
from rlhf_jax.scoring.rubric import Rubric
from rlhf_jax.scoring.tournament import Method, tournament

Endpoint = Literal["chat", "completions"]
NEVER = 8
"""So many replies at once without a single verdict, and the judge does not keep to the format."""


class Replies(Protocol):
    """A language model that answers questions, here or on a server."""

    model: str

    def ask(self, conversations: Sequence[list[dict[str, str]]], failures: Counter[str],
            progress: Progress | None = None) -> list[str | None]:
        """The reply to each conversation, in order; None, counted in `failures`, where there is none."""
        ...

    def release(self) -> None:
        """Frees what lies on the devices."""


def continued(conversation: Sequence[Mapping[str, str]]) -> str:
    """A conversation as text that a model without a template continues."""
    return "\n\n".join(turn["content"] for turn in conversation) + "\n"


class ServedModel:
    """A model behind HTTP.

    Args:
      endpoint: "chat", or "completions" for a model without a template.
      settings: temperature, max_tokens.
    """

    def __init__(self, client: Client, model: str, endpoint: Endpoint, settings: dict[str, Any]):
        self.model = model
        self._client, self._endpoint, self._settings = client, endpoint, settings

    def ask(self, conversations: Sequence[list[dict[str, str]]], failures: Counter[str],
            progress: Progress | None = None) -> list[str | None]:
        read = chat_text if self._endpoint == "chat" else completion_text
        return self._client.ask([self._question(turns) for turns in conversations], read, failures, progress)

    def _question(self, turns: list[dict[str, str]]) -> Question:
        if self._endpoint == "chat":
            return chat(self.model, turns, **self._settings)
        return completion(self.model, continued(turns), **self._settings)

    def release(self) -> None:
        """Nothing lies on the devices."""


class _Judge:
    """Asks a rubric's questions. key: finds the judge's key, which may take reading all weights."""

    def __init__(self, replies: Replies, rubric: Rubric, *, name: str, key: Callable[[], str]):
        self.name, self._key = name, key
        self.failures: Counter[str] = Counter()
        self._replies, self._rubric = replies, rubric

    @property
    def key(self) -> str:
        """Changes when the verdicts would."""
        return self._key()

    def release(self) -> None:
        self._replies.release()

    def _verdicts(self, asked: Sequence[dict[str, str] | None], progress: Progress | None) -> list[float | None]:
        """The rubric's verdict on each; NaN for a reply without one, None for what could not be asked or got no reply.

        Raises:
          ValueError: the judge never keeps to the format.
        """
        questions = [self._rubric.conversation(**values) for values in asked if values is not None]
        replies = self._replies.ask(questions, self.failures, progress)
        found = [None if reply is None else self._outcome(reply) for reply in replies]
        given = [reply for reply in replies if reply is not None]
        undecided = sum(outcome is not None and math.isnan(outcome) for outcome in found)
        if len(given) >= NEVER and undecided == len(given):
            raise ValueError(f"the judge {self._replies.model!r} never answered in the format that its rubric asks for "
                             f"({self._rubric.verdict}): {len(given)} replies hold no verdict, the first begins "
                             f"{given[0][:200]!r}. Change the rubric, or use a judge that follows it")
        self.failures["no_verdict"] += undecided
        self.failures = +self.failures
        verdicts = iter(found)
        return [None if values is None else next(verdicts) for values in asked]

    def _outcome(self, reply: str) -> float:
        outcome = self._rubric.outcome(reply)
        return math.nan if outcome is None else outcome

    def _values(self, prompt: Text, answers: dict[str, Text]) -> dict[str, str] | None:
        """What a question says; None, counted, where a text cannot stand in it."""
        try:
            check_texts_alone(prompt, *answers.values())
            texts = {place: answer_text(answer) for place, answer in answers.items()}
        except BadRow as error:
            self.failures[error.reason] += 1
            return None
        return {"question": question_text(prompt), **texts}


class JudgeScorer(_Judge):
    """P(first is better) from a judge that sees both orders: 1 or 0 where both say so, else a half (Zheng et al., arXiv
    2306.05685: a win in one order alone is none).

    Scores of n responses come from a tournament, as those of a pairwise preference model.
    """

    def __init__(self, replies: Replies, rubric: Rubric, *, method: Method = "round_robin", **options: Any):
        super().__init__(replies, rubric, **options)
        self.method = method

    def orders(self, games: Sequence[tuple[Text, Text, Text]], progress: Progress | None = None
               ) -> list[tuple[float, float] | None]:
        """The judge's verdict on each game in both orders, as P(first is better): NaN for a reply without one, None for
        both where it could not be asked or did not answer."""
        asked = []
        for prompt, first, second in games:
            values = self._values(prompt, {"answer_a": first, "answer_b": second})
            turned = values and {**values, "answer_a": values["answer_b"], "answer_b": values["answer_a"]}
            asked += [values, turned]
        found = self._verdicts(asked, progress)
        return [None if one is None or other is None else (one, 1 - other)
                for one, other in zip(found[::2], found[1::2], strict=True)]

    def compare(self, games: Sequence[tuple[Text, Text, Text]], progress: Progress | None = None) -> list[float | None]:
        """P(first better than second) of each (prompt, first, second): 1, 0, or a half where the orders do not agree;
        None on failure, a reply without verdict among them."""
        return [None if both is None or _undecided(both) else self.joined(both)
                for both in self.orders(games, progress)]

    def joined(self, both: tuple[float, float]) -> float:
        """Of the verdicts in both orders: what both say, else a half.

        So a game without a verdict is even, as RewardBench has it for judges: to leave it out would raise the accuracy
        of a judge that decides only what is easy.
        """
        return both[0] if both[0] == both[1] else 0.5

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        """Scores of all responses from the games of the configured tournament."""
        return tournament(self, self.method, groups, progress)


class RatingScorer(_Judge):
    """The number that a judge gives a response by itself."""

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        """A response without a rating gets None."""
        said = self._verdicts([self._values(group.prompt, {"answer": response.text})
                               for group in groups for response in group.responses], progress)
        found = iter(None if rating is None or math.isnan(rating) else rating for rating in said)
        return verdicts_of([[next(found) for _ in group.responses] for group in groups])


def _undecided(both: tuple[float, float]) -> bool:
    return any(map(math.isnan, both))


def question_text(prompt: Text) -> str:
    """What was asked: the text of a single user's turn, else the conversation turn by turn."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return str(prompt[0]["content"])
    return context_text(prompt).strip()
