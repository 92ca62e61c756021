"""A served language model as a judge: which of two answers is better, asked in both orders, or a rating of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from rlhf_jax.data.groups import PromptGroup, Text
from rlhf_jax.data.rows import BadRow
from rlhf_jax.remote import Client, Question, chat, chat_text, completion, completion_text
from rlhf_jax.scoring.base import Progress, Verdicts, verdicts_of
from rlhf_jax.scoring.pairwise import check_texts_alone, context_text, last_text
from rlhf_jax.scoring.rubric import Rubric
from rlhf_jax.scoring.tournament import Method, tournament

Endpoint = Literal["chat", "completions"]
NEVER = 8
"""So many replies at once without a single verdict, and the judge does not keep to the format."""


class _Judge:
    """Asks a rubric's questions.

    Args:
      endpoint: "chat", or "completions" for a model without a template.
      settings: temperature, max_tokens.
    """

    def __init__(self, client: Client, model: str, rubric: Rubric, *, name: str, key: str, settings: dict[str, Any],
                 endpoint: Endpoint = "chat"):
        self.name, self.key = name, key
        self.failures: Counter[str] = Counter()
        self._client, self._model, self._rubric, self._settings = client, model, rubric, settings
        self._endpoint = endpoint

    def release(self) -> None:
        """Nothing lies on the devices."""

    def _verdicts(self, asked: Sequence[dict[str, str] | None], progress: Progress | None) -> list[float | None]:
        """The rubric's verdict on each; None for what could not be asked, was not answered, or has no verdict.

        Raises:
          ValueError: the judge never keeps to the format.
        """
        questions = [self._question(values) for values in asked if values is not None]
        read = chat_text if self._endpoint == "chat" else completion_text
        replies = self._client.ask(questions, read, self.failures, progress)
        found = [None if reply is None else self._rubric.outcome(reply) for reply in replies]
        given = [reply for reply in replies if reply is not None]
        if len(given) >= NEVER and all(outcome is None for outcome in found):
            raise ValueError(f"the judge {self._model!r} never answered in the format that its rubric asks for "
                             f"({self._rubric.verdict}): {len(given)} replies hold no verdict, the first begins "
                             f"{given[0][:200]!r}. Change the rubric, or use a judge that follows it")
        self.failures["no_verdict"] += sum(reply is not None and outcome is None
                                           for reply, outcome in zip(replies, found, strict=True))
        self.failures = +self.failures
        verdicts = iter(found)
        return [None if values is None else next(verdicts) for values in asked]

    def _question(self, values: dict[str, str]) -> Question:
        turns = self._rubric.conversation(**values)
        if self._endpoint == "chat":
            return chat(self._model, turns, **self._settings)
        return completion(self._model, "\n\n".join(turn["content"] for turn in turns) + "\n", **self._settings)

    def _values(self, prompt: Text, answers: dict[str, Text]) -> dict[str, str] | None:
        """What a question says; None, counted, where a text cannot stand in it."""
        try:
            check_texts_alone(prompt, *answers.values())
        except BadRow as error:
            self.failures[error.reason] += 1
            return None
        return {"question": question_text(prompt), **{place: last_text(answer) for place, answer in answers.items()}}


class JudgeScorer(_Judge):
    """P(first is better) from a judge that sees both orders: 1 or 0 where they agree, else between.

    Scores of n responses come from a tournament, as those of a pairwise preference model.
    """

    def __init__(self, client: Client, model: str, rubric: Rubric, *, method: Method = "round_robin", **options: Any):
        super().__init__(client, model, rubric, **options)
        self.method, self.disagreements = method, 0

    def compare(self, games: Sequence[tuple[Text, Text, Text]], progress: Progress | None = None) -> list[float | None]:
        """P(first better than second) of each (prompt, first, second), averaged over both orders; None on failure."""
        asked = []
        for prompt, first, second in games:
            values = self._values(prompt, {"answer_a": first, "answer_b": second})
            turned = values and {**values, "answer_a": values["answer_b"], "answer_b": values["answer_a"]}
            asked += [values, turned]
        found = self._verdicts(asked, progress)
        out: list[float | None] = []
        for one, other in zip(found[::2], found[1::2], strict=True):
            if one is None or other is None:
                out.append(None)
                continue
            self.disagreements += one != 1 - other
            out.append((one + 1 - other) / 2)
        return out

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        """Scores of all responses from the games of the configured tournament."""
        return tournament(self, self.method, groups, progress)


class RatingScorer(_Judge):
    """The number that a judge gives a response by itself."""

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        """A response without a rating gets None."""
        found = iter(self._verdicts([self._values(group.prompt, {"answer": response.text})
                                     for group in groups for response in group.responses], progress))
        return verdicts_of([[next(found) for _ in group.responses] for group in groups])


def question_text(prompt: Text) -> str:
    """What was asked: the text of a single user's turn, else the conversation turn by turn."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return str(prompt[0]["content"])
    return context_text(prompt).strip()
