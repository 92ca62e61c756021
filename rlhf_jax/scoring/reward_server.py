"""A reward model behind HTTP: one number a conversation, from vLLM's classify, pooling or score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlhf_jax.data.groups import PromptGroup, Text, Verdict
from rlhf_jax.data.rows import BadRow
from rlhf_jax.remote import Client, Question
from rlhf_jax.scoring.base import Progress, Verdicts
from rlhf_jax.scoring.judge import question_text
from rlhf_jax.scoring.pairwise import answer_text, check_texts_alone

Endpoint = Literal["classify", "pooling", "score"]


class RewardServerScorer:
    """Scores conversations with a served reward model, whose server renders them by its own template.

    Args:
      endpoint: "classify" and "pooling" are given the conversation and asked for the head's number without a sigmoid or
        softmax; "score" is given prompt and response as two texts.
      output: which of several outputs is the score.
    """

    def __init__(self, client: Client, model: str, *, endpoint: Endpoint, output: int | None, name: str, key: str):
        self.name, self.key = name, key
        self.failures: Counter[str] = Counter()
        self._client, self._model, self._endpoint, self._output = client, model, endpoint, output

    def release(self) -> None:
        """Nothing lies on the devices."""

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        """A response that gets no finite number gets None."""
        asked: list[Question | None] = []
        for group in groups:
            for response in group.responses:
                try:
                    check_texts_alone(group.prompt, response.text)
                    asked.append(self._question(group.prompt, response.text))
                except BadRow as error:
                    self.failures[error.reason] += 1
                    asked.append(None)
        found = iter(self._client.ask([question for question in asked if question is not None], self._read,
                                      self.failures, progress))
        verdicts = iter([None if question is None else next(found) for question in asked])
        return [[next(verdicts) for _ in group.responses] for group in groups]

    def _question(self, prompt: Text, response: Text) -> Question:
        if self._endpoint == "score":
            return Question("score", {"model": self._model, "text_1": question_text(prompt),
                                      "text_2": answer_text(response)})
        body: dict[str, Any] = {"model": self._model, "use_activation": False}
        if isinstance(prompt, str):
            body["input"] = prompt + answer_text(response)
        else:
            turns = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
            body["messages"] = [*prompt, *turns]
        return Question(self._endpoint, body)

    def _read(self, answer: Mapping[str, Any]) -> Verdict:
        """The score, and the other outputs. Raises ValueError where there is none, or several and none was chosen."""
        (entry,) = answer["data"]
        values = [entry["score"]] if self._endpoint == "score" else entry[
            "probs" if self._endpoint == "classify" else "data"]
        if values and isinstance(values[0], list):  # one entry a token: the last one's
            values = values[-1]
        if self._output is None and len(values) != 1:
            raise ValueError(f"{len(values)} numbers; say which one is the score with output: 0, 1, ...")
        numbers = [float(value) for value in values]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{numbers} holds no score")
        chosen = self._output or 0
        return {"": numbers[chosen], **{str(i): x for i, x in enumerate(numbers) if i != chosen}}
