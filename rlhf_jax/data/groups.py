"""The prompt group: one prompt and k continuations, the one type that flows through every stage.

k = 1 in supervised fine-tuning, 2 in DPO and Bradley-Terry, n in sampling and scoring. Token ids are decided once,
by the chat template or by the sampler, and never re-tokenised afterwards.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Message = dict[str, Any]
"""{"role": "system" | "developer" | "user" | "assistant" | "tool", "content": text}, and fields as `message_fields` has
them."""
SYSTEM_ROLES = ("system", "developer")
"""Who may speak before the first user: OpenAI's newer name for a system message is kept as a role of its own."""
Text = str | list[Message]
"""A prompt or a response as people write it: plain text, or a list of chat messages."""

Verdict = Mapping[str, float]
"""What a scorer says of a response: "" is the score, other keys are numbers beside it (objectives, steps, ...)."""
SHOWN = 40
"""Characters of a text that a group is printed with."""
STOP, LENGTH = "stop", "length"
"""Why a response ended: it produced a stop token or string, or it ran out of budget (then it has no EOS)."""
BY_OTHER = "by_other"
"""The number of a response that two policies were asked for: 1 if the other one gave it, 0 if the policy itself did."""


@dataclasses.dataclass(frozen=True, eq=False)
class Response:
    """One continuation of a prompt.

    Attributes:
      ids: [n] int32 token ids, stop token included when the response stopped by itself.
      loss_mask: [n] bool, True where the token is the assistant's own and is trained on.
      text: the decoded response, or the messages it was rendered from.
      finish_reason: "stop", "length", or None for responses that came from a data set.
      logps: [n] float32 log-probabilities the sampler reported at temperature 1, or None.
      scores: all numbers about it, by name: `proxy` and `proxy/quality` of a scorer, `data` and `data/helpfulness` of a
        data set's grades, `label` of unpaired data (1 desirable, 0 not). What has no number is absent, never 0.
    """

    ids: np.ndarray
    loss_mask: np.ndarray
    text: Text = ""
    finish_reason: str | None = None
    logps: np.ndarray | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """Its text shortened, its tokens counted."""
        return (f"Response({_short(self.text)}, tokens={len(self.ids)}, logps={self.logps is not None}, "
                f"finish_reason={self.finish_reason!r}, scores={dict(self.scores)!r})")

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
        return row

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Response:
        """The inverse of `to_json`. Raises ValueError, naming the column, for what `to_json` never writes."""
        ids = _token_ids(row, "ids")
        mask = _numbers(row["loss_mask"], "loss_mask", "bi", ids) if "loss_mask" in row else np.ones(len(ids), bool)
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("loss_mask holds other numbers than 0 and 1")
        logps = _numbers(row["logps"], "logps", "fi", ids).astype(np.float32) if "logps" in row else None
        reason, scores = row.get("finish_reason"), row.get("scores", {})
        if reason not in (None, STOP, LENGTH):
            raise ValueError(f"finish_reason is {reason!r}; it is {STOP!r}, {LENGTH!r} or left out")
        if not isinstance(scores, dict) or not all(_finite(score) for score in scores.values()):
            raise ValueError("scores holds something else than a finite number per name")
        return Response(ids, mask.astype(bool), _text(row, "text"), reason, logps, scores)


@dataclasses.dataclass(frozen=True, eq=False)
class PromptGroup:
    """A prompt, rendered once, and its k responses.

    Attributes:
      prompt_id: stable name of the prompt; random keys and shards are derived from it.
      prompt_ids: [p] int32 token ids, BOS and generation header included. Empty, as the responses' ids, in a group of
        text alone: rows that were scored and not rendered.
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

    def __repr__(self) -> str:
        """Its prompt shortened, its tokens, responses and pairs counted."""
        return (f"PromptGroup({self.prompt_id!r}, {_short(self.prompt)}, tokens={len(self.prompt_ids)}, "
                f"responses={len(self.responses)}, pairs={len(self.pairs)}, extra={[*self.extra]!r})")

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
        """The inverse of `to_json`. Raises ValueError, naming the column, for what `to_json` never writes."""
        if missing := [name for name in ("prompt_id", "prompt_ids", "responses") if name not in row]:
            raise ValueError(f"there is no {' and no '.join(missing)}; the columns are {', '.join(row)}")
        if not isinstance(row["prompt_id"], str):
            raise ValueError(f"prompt_id is {row['prompt_id']!r} and no text")
        responses, extra = _responses(row["responses"]), row.get("extra", {})
        prompt_ids = _token_ids(row, "prompt_ids")
        if odd := [i for i, response in enumerate(responses) if bool(len(response.ids)) != bool(len(prompt_ids))]:
            raise ValueError(f"prompt_ids has {len(prompt_ids)} numbers and the ids of responses[{odd[0]}] "
                             f"{len(responses[odd[0]].ids)}; either all are empty (text alone) or none")
        if not len(prompt_ids) and not row.get("prompt"):
            raise ValueError("prompt_ids is empty and there is no prompt as text either")
        pairs = tuple(_pair(pair, len(responses)) for pair in _listed(row.get("pairs", []), "pairs"))
        margins = tuple(_listed(row.get("margins", []), "margins"))
        if not all(_finite(margin) for margin in margins) or len(margins) not in (0, len(pairs)):
            raise ValueError(f"margins is {list(margins)!r}; it is one finite number for each of the {len(pairs)} "
                             "pairs, or left out")
        if not isinstance(extra, dict):
            raise ValueError(f"extra is {type(extra).__name__} and no object of columns")
        return PromptGroup(row["prompt_id"], prompt_ids, responses, _text(row, "prompt"), pairs, margins, extra)

    def with_scores(self, name: str, verdicts: Sequence[Verdict | None]) -> PromptGroup:
        """This group with what one more scorer says: its score as `name`, its other numbers as `name/key`.

        A verdict of None (the scorer failed) adds nothing.
        """
        responses = tuple(
            r if verdict is None else dataclasses.replace(r, scores={**r.scores, **named(name, verdict)})
            for r, verdict in zip(self.responses, verdicts, strict=True)
        )
        return dataclasses.replace(self, responses=responses)


def text_group(prompt_id: str, prompt: Text, responses: Iterable[tuple[Text, Verdict]], **more: Any) -> PromptGroup:
    """A group of text alone, of (text, scores) responses; `more` are its other fields."""
    nothing = np.zeros(0, np.int32)
    return PromptGroup(prompt_id, nothing, tuple(Response(nothing, nothing.astype(bool), text, scores=scores)
                                                 for text, scores in responses), prompt, **more)


def same_answer(a: Response, b: Response) -> bool:
    """The same tokens; of responses that are text alone, the same text."""
    return a.ids.tolist() == b.ids.tolist() and (len(a.ids) > 0 or a.text == b.text)


def named(name: str, verdict: Verdict) -> dict[str, float]:
    """A verdict as it lies in `Response.scores`."""
    return {f"{name}/{key}" if key else name: float(value) for key, value in verdict.items()}


def _short(text: Text) -> str:
    """The first characters of a text, or of the last of several messages."""
    said = text if isinstance(text, str) else str(text[-1]["content"])
    before = "" if isinstance(text, str) or len(text) == 1 else f"... {len(text)} messages, the last "
    return before + (repr(said) if len(said) <= SHOWN else f"{said[:SHOWN]!r}...")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _listed(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {type(value).__name__} and no list")
    return value


def _numbers(value: Any, name: str, kinds: str, ids: np.ndarray | None = None) -> np.ndarray:
    """[n] finite numbers of one of numpy's `kinds` (b, i, f); as many as `ids`, if given."""
    numbers = _listed(value, name)
    try:
        found = np.asarray(numbers)
    except ValueError as error:  # lists of unequal length
        raise ValueError(f"{name} is no flat list of numbers") from error
    if len(found) and (found.ndim != 1 or found.dtype.kind not in kinds or not (
            np.abs(found) <= np.finfo(np.float32).max).all()):
        raise ValueError(f"{name} holds something else than {'whole' if 'f' not in kinds else 'finite'} numbers")
    if ids is not None and len(found) != len(ids):
        raise ValueError(f"{name} has {len(found)} numbers and ids {len(ids)}; there is one per token")
    return found


def _token_ids(row: Mapping[str, Any], name: str) -> np.ndarray:
    """[n] int32, from 0."""
    if name not in row:
        raise ValueError(f"there is no {name}; the columns are {', '.join(row)}")
    found = _numbers(row[name], name, "i")
    if len(found) and not 0 <= found.min() <= found.max() < 2**31:
        raise ValueError(f"{name} holds {found.min() if found.min() < 0 else found.max()}, which is no token id")
    return found.astype(np.int32)


def _text(row: Mapping[str, Any], name: str) -> Text:
    value = row.get(name, "")
    if not isinstance(value, str) and not (isinstance(value, list) and value and all(
            isinstance(message, dict) and isinstance(message.get(key), str)
            for message in value for key in ("role", "content"))):
        raise ValueError(f"{name} is neither text nor a list of messages, each with a role and its content")
    return value


def _responses(value: Any) -> tuple[Response, ...]:
    found = []
    for number, row in enumerate(_listed(value, "responses")):
        if not isinstance(row, dict):
            raise ValueError(f"responses[{number}] is {type(row).__name__} and no object")
        try:
            found.append(Response.from_json(row))
        except ValueError as error:
            raise ValueError(f"responses[{number}]: {error}") from error
    return tuple(found)


def _pair(value: Any, count: int) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(i) is int and 0 <= i < count for i in value):
        raise ValueError(f"pairs holds {value!r}; a pair is the places of two of the {count} responses, from 0")
    return value[0], value[1]


def check_ids(groups: Iterable[PromptGroup], rows: int) -> None:
    """Raises ValueError, naming the prompt, for a token id that an embedding of `rows` rows has no row for."""
    for group in groups:
        for ids in (group.prompt_ids, *(response.ids for response in group.responses)):
            if len(ids) and not 0 <= ids.min() <= ids.max() < rows:
                raise ValueError(f"prompt {group.prompt_id!r} has token ids from {ids.min()} to {ids.max()}; the "
                                 f"model's embedding has {rows:,} rows. They are another tokenizer's: render or sample "
                                 "the data anew with this model's")
