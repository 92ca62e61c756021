"""The prompt group: one prompt and k continuations, the one type that flows through every stage.

k = 1 in supervised fine-tuning, 2 in DPO and Bradley-Terry, n in sampling and scoring. Token ids are decided once,
by the chat template or by the sampler, and never re-tokenised afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""
Text = str | list[Message]
"""A prompt or a response as people write it: plain text, or a list of chat messages."""

STOP, LENGTH = "stop", "length"
"""Why a response ended: it produced a stop token or string, or it ran out of budget (then it has no EOS)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Response:
    """One continuation of a prompt.

    Attributes:
      ids: [n] int32 token ids, stop token included when the response stopped by itself.
      loss_mask: [n] bool, True where the token is the assistant's own and is trained on.
      text: the decoded response, or the messages it was rendered from.
      finish_reason: "stop", "length", or None for responses that came from a data set.
      logps: [n] float32 log-probabilities the sampler reported at temperature 1, or None.
      scores: score by scorer name; a scorer that failed is absent, never 0.
      label: desirability for unpaired data (KTO), else None.
    """

    ids: np.ndarray
    loss_mask: np.ndarray
    text: Text = ""
    finish_reason: str | None = None
    logps: np.ndarray | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    label: bool | None = None

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"ids": self.ids.tolist(), "text": self.text}
        if not self.loss_mask.all():
            row["loss_mask"] = self.loss_mask.astype(int).tolist()
        if self.finish_reason is not None:
            row["finish_reason"] = self.finish_reason
        if self.logps is not None:
            row["logps"] = [float(x) for x in self.logps]
        if self.scores:
            row["scores"] = dict(self.scores)
        if self.label is not None:
            row["label"] = self.label
        return row

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Response:
        ids = np.asarray(row["ids"], np.int32)
        mask = np.asarray(row["loss_mask"], bool) if "loss_mask" in row else np.ones(len(ids), bool)
        logps = np.asarray(row["logps"], np.float32) if "logps" in row else None
        return Response(ids, mask, row.get("text", ""), row.get("finish_reason"), logps,
                        row.get("scores", {}), row.get("label"))


@dataclasses.dataclass(frozen=True, eq=False)
class PromptGroup:
    """A prompt, rendered once, and its k responses.

    Attributes:
      prompt_id: stable name of the prompt; random keys and shards are derived from it.
      prompt_ids: [p] int32 token ids, BOS and generation header included.
      responses: the k continuations.
      prompt: the prompt as text or messages, for scorers with another tokenizer.
      pairs: (chosen, rejected) indices into `responses`.
      margins: one number a pair (reward gap), or empty.
      extra: other columns of the source row, kept for scorers.
    """

    prompt_id: str
    prompt_ids: np.ndarray
    responses: tuple[Response, ...]
    prompt: Text = ""
    pairs: tuple[tuple[int, int], ...] = ()
    margins: tuple[float, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "prompt_id": self.prompt_id,
            "prompt": self.prompt,
            "prompt_ids": self.prompt_ids.tolist(),
            "responses": [r.to_json() for r in self.responses],
        }
        if self.pairs:
            row["pairs"] = [list(p) for p in self.pairs]
        if self.margins:
            row["margins"] = list(self.margins)
        if self.extra:
            row["extra"] = dict(self.extra)
        return row

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> PromptGroup:
        return PromptGroup(
            prompt_id=row["prompt_id"],
            prompt_ids=np.asarray(row["prompt_ids"], np.int32),
            responses=tuple(Response.from_json(r) for r in row["responses"]),
            prompt=row.get("prompt", ""),
            pairs=tuple((int(a), int(b)) for a, b in row.get("pairs", ())),
            margins=tuple(row.get("margins", ())),
            extra=row.get("extra", {}),
        )

    def with_scores(self, name: str, scores: list[float | None]) -> PromptGroup:
        """This group with one more scorer's verdicts; `None` (the scorer failed) adds nothing."""
        responses = tuple(
            r if s is None else dataclasses.replace(r, scores={**r.scores, name: float(s)})
            for r, s in zip(self.responses, scores, strict=True)
        )
        return dataclasses.replace(self, responses=responses)


def check_ids(groups: Iterable[PromptGroup], rows: int) -> None:
    """Raises ValueError, naming the prompt, for a token id that an embedding of `rows` rows has no row for."""
    for group in groups:
        for ids in (group.prompt_ids, *(response.ids for response in group.responses)):
            if len(ids) and not 0 <= ids.min() <= ids.max() < rows:
                raise ValueError(f"prompt {group.prompt_id!r} has token ids from {ids.min()} to {ids.max()}; the "
                                 f"model's embedding has {rows:,} rows. They are another tokenizer's: render or sample "
                                 "the data anew with this model's")
