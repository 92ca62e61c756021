"""The tokenizer: loading, chat templates, and the three facts the rest needs: BOS, stop tokens, padding.

`tokenizer` is a transformers tokenizer throughout; transformers itself is imported only where one is loaded.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_jax.data.templates import TEMPLATES, rendered
from rlhf_jax.models.folder import TOKENIZER_CONFIG, find_model, own_template, read_json

PAD_CANDIDATES = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>",
                  "<|endoftext|>", "<unk>")
"""Special tokens that may serve as padding, first found first taken, when the tokenizer names none of its own."""

_PROBE = "zqjx"


@dataclasses.dataclass(frozen=True)
class EndOfTurn:
    """How a chat template ends an assistant turn.

    Attributes:
      stop_id: the token by which the assistant stops, e.g. `<|eot_id|>`, `<|im_end|>`, `<end_of_turn>`.
      trailing_ids: what the template writes after it, e.g. the newline after `<|im_end|>`.
      markers: the special tokens, one of which may end a turn that calls tools, e.g. `<|call|>`.
    """

    stop_id: int
    trailing_ids: tuple[int, ...] = ()
    markers: frozenset[int] = frozenset()

    @property
    def trailing(self) -> int:
        return len(self.trailing_ids)


def load_tokenizer(path: str, chat_template_path: str | None = None) -> Any:
    """The tokenizer in a local folder (nothing is fetched), or of a hub name where there is a hub. No code of it runs.

    Args:
      path: folder with tokenizer.json and tokenizer_config.json, or a hub name.
      chat_template_path: replaces the tokenizer's chat template: see `load_template`.

    A missing padding token, or one equal to a stop token, is replaced by a spare special token where there is one.

    Raises:
      ValueError: the tokenizer or the template cannot be found or read.
    """
    tokenizer = read_tokenizer(find_model(path, weights=False))
    if chat_template_path is not None:
        tokenizer.chat_template = load_template(chat_template_path)
    pad = pad_token_id(tokenizer)
    if pad != tokenizer.pad_token_id and pad in _special_ids(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return tokenizer


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder as other software sees it; ValueError where it cannot be read or reads no text."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer

    if (folder / TOKENIZER_CONFIG).is_file():
        read_json(folder / TOKENIZER_CONFIG)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokenizer(_PROBE)  # some settings are looked at when the first text is read, not before
    except Exception as error:  # the tokenizers library raises nothing narrower for a file that it cannot read
        reason = f"{type(error).__name__}: {str(error).rstrip('. ')[:500]}"
        raise ValueError(f"no tokenizer can be loaded from {str(folder)!r}: {_why_not(folder) or reason}. Give a "
                         "folder that holds tokenizer.json and tokenizer_config.json") from error
    return tokenizer


def _why_not(folder: Path) -> str | None:
    """The cause that transformers' own words hide, if it is one of those."""
    if (folder / "tokenizer.json").is_file():
        return None
    lacking = [name for name in ("sentencepiece", "google.protobuf") if find_spec(name) is None]
    if lacking and any(folder.glob("*.model")):
        packages = " ".join(name.removeprefix("google.") for name in lacking)
        return f"it is a sentencepiece model without tokenizer.json, which is read with: pip install {packages}"
    config = folder / TOKENIZER_CONFIG
    if any(folder.glob("*.py")) or (config.is_file() and "auto_map" in read_json(config)):
        return "it is read by code in its own folder, and code from model folders is never run; convert it elsewhere"
    return None


def load_template(source: str) -> str:
    """The text of a chat template: a name in TEMPLATES, a .jinja file, or the template of a model's or adapter's
    folder."""
    if source in TEMPLATES:
        return TEMPLATES[source]
    path = Path(source).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = own_template(path) if path.is_dir() else None
    if found is None:
        raise ValueError(f"there is no chat template {source!r}: it is neither a file, a folder with a chat template, "
                         f"nor one of {', '.join(TEMPLATES)}")
    return found


def check_vocabulary(tokenizer: Any, rows: int, where: Path) -> None:
    """Raises ValueError unless every token that text can be made of has a row in the embedding table of `rows` rows.

    A special token beyond them is let pass if it neither begins, ends nor stands for the unknown: Gemma 3's smaller
    models have one for images, which no text holds. A text that does hold it is refused where it is rendered.
    """
    reserved = special_token_ids(tokenizer)
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    beyond = sorted((token_id, token) for token, token_id in tokenizer.get_vocab().items()
                    if token_id >= rows and (token_id not in reserved or token_id in used))
    if beyond:
        names = ", ".join(f"{token!r} ({token_id})" for token_id, token in beyond[:5])
        raise ValueError(f"the tokenizer of {where} has {len(beyond)} tokens without a row in the model's embedding of "
                         f"{rows:,} rows: {names}. The model cannot read or write them: use the tokenizer it was "
                         "trained with, or give it rows for them (transformers' resize_token_embeddings)")


def special_token_ids(tokenizer: Any) -> set[int]:
    """Ids of the special tokens that were added to the vocabulary: markers, not words."""
    return {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}


def template_of(tokenizer: Any, tools: Any = None) -> str:
    """The text of the chat template that messages with these tools are rendered by; ValueError where there is none."""
    if not tokenizer.chat_template:
        whose = f" The tokenizer is that of {tokenizer.name_or_path}" if tokenizer.name_or_path else ""
        raise ValueError("the tokenizer has no chat template, so messages cannot be rendered; set chat_template_path "
                         "(of a scorer in `evaluate` or a run: scorer.chat_template_path) to "
                         f"{template_choices(tokenizer)}.{whose}")
    return str(tokenizer.get_chat_template(None, tools))


def template_choices(tokenizer: Any) -> str:
    """What `chat_template_path` may be for a tokenizer: a file, or the templates by name that fit it."""
    fitting = [name for name in TEMPLATES if _fits(tokenizer, TEMPLATES[name])]
    others = ", ".join(name for name in TEMPLATES if name not in fitting)
    lacking = f" (it lacks the special tokens of {others})" if others else ""
    return (f"a file or to one of {', '.join(fitting)}" if fitting else "a file") + lacking


def _fits(tokenizer: Any, template: str) -> bool:
    """Whether a turn of the template ends with a special token of the tokenizer."""
    other = copy.copy(tokenizer)
    other.chat_template = template
    try:
        end_of_turn(other)
    except ValueError:
        return False
    return True


def template_ids(tokenizer: Any, messages: list[dict[str, Any]], *, generation: bool, **variables: Any) -> list[int]:
    """Token ids of messages by the chat template, which alone writes BOS and headers. `variables` go to the template.

    Raises:
      TemplateRefused: the template does not take these messages (no system turn, say).
      ValueError: the tokenizer has no chat template, or the template takes too long.
    """
    text = template_text(tokenizer, messages, generation=generation, **variables)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def template_text(tokenizer: Any, messages: list[dict[str, Any]], *, generation: bool, **variables: Any) -> str:
    """The text that `template_ids` makes tokens of. Errors as there."""
    template_of(tokenizer, variables.get("tools"))
    return rendered(tokenizer, messages, {**variables, "add_generation_prompt": generation})


def end_of_turn(tokenizer: Any) -> EndOfTurn:
    """How the chat template ends an assistant turn, found by rendering one.

    Raises:
      ValueError: no chat template, or no special token follows the assistant's text, so a model could not learn to
        stop.
    """
    user, assistant = ({"role": role, "content": _PROBE} for role in ("user", "assistant"))
    template_ids(tokenizer, [user], generation=True)
    text = template_text(tokenizer, [user, assistant], generation=False)
    if _PROBE not in text:
        raise ValueError("the chat template does not write the text of an assistant's turn (templates of models for "
                         "pictures want it in parts); use another with chat_template_path")
    ending = text[text.rindex(_PROBE) + len(_PROBE) :]
    ids = tokenizer(ending, add_special_tokens=False)["input_ids"]
    special = _special_ids(tokenizer)
    for place, token in enumerate(ids):
        if token in special:
            return EndOfTurn(token, tuple(ids[place + 1 :]), frozenset(special_token_ids(tokenizer)))
    raise ValueError(f"the chat template ends an assistant turn with {ending!r}, in which the tokenizer knows no "
                     "special token; the model could not learn to stop. Use a template whose end of turn is in the "
                     "vocabulary")


def stop_token_ids(tokenizer: Any, generation_config: Mapping[str, Any] | None = None) -> tuple[int, ...]:
    """All ids that end a response, each once: the tokenizer's EOS, the generation config's `eos_token_id` (a number
    or a list), and the chat template's end of turn. Raises ValueError where there is none."""
    configured = (generation_config or {}).get("eos_token_id")
    ids = [tokenizer.eos_token_id, *(configured if isinstance(configured, list | tuple) else [configured])]
    if tokenizer.chat_template:
        ids.append(end_of_turn(tokenizer).stop_id)
    stops = tuple(dict.fromkeys(int(i) for i in ids if i is not None))
    if not stops:
        raise ValueError("the tokenizer has no EOS token, the generation config no eos_token_id and there is no chat "
                         "template; sampling would never stop. Set eos_token in tokenizer_config.json")
    return stops


def pad_token_id(tokenizer: Any) -> int:
    """An id to fill rows with that ends no response. Masks come from lengths, so any other id does."""
    ends = _last_ids(tokenizer)
    vocabulary = tokenizer.get_vocab()
    candidates = [tokenizer.pad_token_id, *(vocabulary.get(token) for token in PAD_CANDIDATES), *range(len(ends) + 1)]
    return next(int(i) for i in candidates if i is not None and i not in ends)


def classifier_pad_id(tokenizer: Any, configured: int | None = None) -> int | None:
    """The padding id of a sequence classifier, whose head transformers reads at the last token of another id.

    It is `configured` (a classifier's own, part of how it is read) where that is a special token, else a special token
    that ends no conversation, BOS where there is no other; EOS where every special token ends one.
    """
    special, vocabulary = _special_ids(tokenizer), tokenizer.get_vocab()
    if configured in special:
        return configured
    spare = special - _last_ids(tokenizer)
    candidates = [tokenizer.pad_token_id, *(vocabulary.get(token) for token in PAD_CANDIDATES), tokenizer.bos_token_id]
    return next((int(i) for i in candidates if i in spare), tokenizer.eos_token_id)


def write_pad_token(folder: Path, pad_id: int) -> None:
    """Makes `pad_id` the padding token of the tokenizer files in `folder`, if it is not already."""
    tokenizer = read_tokenizer(folder)
    if tokenizer.pad_token_id == pad_id:
        return
    token = tokenizer.convert_ids_to_tokens(pad_id)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.is_file():
            raw = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({**raw, "pad_token": token}, indent=2, ensure_ascii=False) + "\n",
                            encoding="utf-8")


def _last_ids(tokenizer: Any) -> set[int | None]:
    """Ids that a response, or the text a template writes behind it, ends with."""
    if not tokenizer.chat_template:
        return {tokenizer.eos_token_id}
    end = end_of_turn(tokenizer)
    return {tokenizer.eos_token_id, end.stop_id, *end.trailing_ids}


def has_bos_for_text(tokenizer: Any) -> bool:
    """True when plain text begins with BOS: there is one, and the chat template does not use it to open each turn.

    Some ChatML tokenizers name `<|im_start|>` as BOS; that token opens turns and no plain text.
    """
    if tokenizer.bos_token_id is None:
        return False
    if not tokenizer.chat_template:
        return True
    user = [{"role": "user", "content": _PROBE}]
    closed, opened = (template_ids(tokenizer, user, generation=generation) for generation in (False, True))
    return tokenizer.bos_token_id not in opened[len(closed) :]


def plain_ids(tokenizer: Any, text: str, *, continues: bool) -> list[int]:
    """Token ids of text as it stands, with no special token added.

    SentencePiece-style tokenizers put a space before every text. Text that `continues` a prompt must not get one, its
    own leading space is kept as given; so it is tokenised after a newline, whose ids are then taken off.
    """
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not text or not continues or not adds_leading_space(tokenizer):
        return ids
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    ids = list(tokenizer("\n" + text, add_special_tokens=False)["input_ids"])
    if ids[: len(newline)] != newline:
        raise ValueError(f"the tokenizer joins a newline with what follows it, so the ids of {text[:40]!r} as a "
                         "continuation cannot be found; give message lists instead of plain text")
    return ids[len(newline) :]


def adds_leading_space(tokenizer: Any) -> bool:
    """True for tokenizers that begin every text with a space of their own (Llama-2's, for one)."""
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0]
    return first.startswith(("▁", "Ġ"))


def _special_ids(tokenizer: Any) -> set[int]:
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
