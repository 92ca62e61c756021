"""Stored features: hidden states of answers and prompts in numbered shards, read in pieces.

    shard-00000.safetensors   response [R, D], prompt [G, D], in the order of the rows of
    shard-00000.jsonl         prompt_id, text, gate, responses [{id, scores}], pairs [[chosen, rejected], ...]

A shard is there when its .jsonl is, which is written last. Features are mapped into memory, never read whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.jsonl import SourceError, read_jsonl, write_jsonl_atomic
from rlhf_jax.data.rows import canonical_prompt

RESPONSE, PROMPT = "response", "prompt"
_DTYPES: dict[str, Any] = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16)}


class FeatureRow(NamedTuple):
    """A prompt of a shard.

    prompt_id: its name. text: hash of what it says, the same for all rows with this prompt. gate: whether its hidden
    state was read where an end of turn is; else it is zeros.
    responses: their ids. scores: their named numbers. pairs: (chosen, rejected) places among them.
    """

    prompt_id: str
    text: str
    gate: bool
    responses: tuple[str, ...]
    scores: tuple[Mapping[str, float], ...]
    pairs: tuple[tuple[int, int], ...]


class FeatureShard(NamedTuple):
    """A shard. rows: its G prompts. response: [R, D] states of all their answers, in order. prompt: [G, D]."""

    rows: tuple[FeatureRow, ...]
    response: np.ndarray
    prompt: np.ndarray


def response_id(response: Response) -> str:
    """16 hex digits of the hash of an answer's token ids; of its text where it is text alone."""
    ids = np.ascontiguousarray(response.ids, np.int32).tobytes()
    return hashlib.sha256(ids or canonical_prompt(response.text).encode()).hexdigest()[:16]


def write_features(path: Path, groups: Sequence[PromptGroup], states: Sequence[Sequence[np.ndarray]],
                   dtype: Any) -> None:
    """Writes a shard, whole or not at all.

    Args:
      path: of its .jsonl.
      states: per group and response [2, D]: of the answer, and of its prompt, NaN where that has no end of turn.

    Raises:
      ValueError: if an answer's state holds NaN or infinity.
    """
    answers = np.stack([state[0] for some in states for state in some]).astype(dtype)
    prompts = np.stack([some[0][1] for some in states])
    gate = np.isfinite(prompts).all(-1)
    if not np.isfinite(answers.astype(np.float32)).all():
        raise ValueError("the hidden states of some answers hold NaN or infinity; the model is broken, or its numbers "
                         "are beyond the range of this dtype")
    tensors = {RESPONSE: answers, PROMPT: np.where(gate[:, None], prompts, 0.0).astype(dtype)}
    temporary = path.with_name(f".{path.stem}.safetensors.tmp")
    temporary.touch()
    rights = temporary.stat().st_mode
    save_file(tensors, temporary)  # puts a file of its own in the place, of mode 0600
    temporary.chmod(rights)
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path.with_suffix(".safetensors"))
    write_jsonl_atomic(path, (_row(group, bool(seen)) for group, seen in zip(groups, gate, strict=True)))


def _row(group: PromptGroup, gate: bool) -> dict[str, Any]:
    text = hashlib.sha256(canonical_prompt(group.prompt).encode()).hexdigest()[:16]
    return {"prompt_id": group.prompt_id, "text": text, "gate": gate, "pairs": [list(pair) for pair in group.pairs],
            "responses": [{"id": response_id(r), "scores": dict(r.scores)} for r in group.responses]}


def read_features(path: Path) -> FeatureShard:
    """The shard of a .jsonl, its tensors mapped into memory.

    Raises:
      SourceError: the files are missing or not what `write_features` wrote.
    """
    try:
        rows = tuple(FeatureRow(
            row["prompt_id"], row["text"], row["gate"], tuple(r["id"] for r in row["responses"]),
            tuple(r["scores"] for r in row["responses"]), tuple(map(tuple, row["pairs"]))) for row in read_jsonl(path))
        tensors = _mapped(path.with_suffix(".safetensors"))
        shard = FeatureShard(rows, tensors[RESPONSE], tensors[PROMPT])
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{path} and its .safetensors are no features ({type(error).__name__}: {error}); give the "
                          "output_dir of a finished `rlhf-jax features`") from error
    counts = sum(len(row.responses) for row in rows), len(rows)
    if (len(shard.response), len(shard.prompt)) != counts:
        raise SourceError(f"{path} names {counts[0]} answers of {counts[1]} prompts, and its .safetensors holds "
                          f"{len(shard.response)} and {len(shard.prompt)}; make the features again")
    return shard


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, mapped into memory."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    whole = np.memmap(path, np.uint8, mode="r", offset=8 + size)
    return {name: whole[slice(*tensor["data_offsets"])].view(_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
            for name, tensor in header.items() if name != "__metadata__"}
