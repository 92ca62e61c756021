"""How a sequence classifier is read, as its files say it: the place of its head's token, and the padding token.

transformers reads a head at the last token that is not `pad_token_id` of config.json, TRL first takes that id from the
tokenizer, and vLLM reads the last token whatever it is. All three read what was trained here where the padding token
ends no conversation and is the same in both files.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rlhf_jax.data.tokenizer import write_pad_token
from rlhf_jax.models import DecoderConfig, read_config
from rlhf_jax.models.folder import CONFIG, TOKENIZER_CONFIG

_PLACES = {"last_token": "last token that is not padding", "end_of_turn": "stop token of the last turn"}


def reward_config(config: DecoderConfig) -> DecoderConfig:
    """The shape of a reward model on a language model's backbone; a classifier keeps its own."""
    return config if config.is_classifier else dataclasses.replace(config, num_labels=1, tie_embeddings=False)


def reading_key(config: DecoderConfig) -> dict[str, Any]:
    """What of a classifier's reading names the stage that trains it; nothing for a language model."""
    return {"reads": [config.score_at, config.pad_token_id]} if config.is_classifier else {}


def reading_note(config: DecoderConfig, base: Path) -> str:
    """What a model card says of where a classifier's head is read, and of the padding id, with that of its base."""
    if not config.is_classifier:
        return ""
    before = read_config(base).pad_token_id if (base / CONFIG).is_file() else None
    note = (f"\n\nThe head is read at the {_PLACES[config.score_at]} of the rendered conversation "
            f"(`apply_chat_template` without generation prompt). The padding id is {config.pad_token_id}")
    note += f" (of the model it was made from: {before}).\n" if before != config.pad_token_id else ".\n"
    if config.score_at != "last_token":
        note += "\ntransformers, TRL and vLLM read the last token, so their scores are others.\n"
    return note


def pad_as_config(folder: Path, config: DecoderConfig) -> None:
    """Gives the tokenizer of a classifier's folder the padding token of its config."""
    if config.is_classifier and config.pad_token_id is not None and (folder / TOKENIZER_CONFIG).is_file():
        write_pad_token(folder, config.pad_token_id)
