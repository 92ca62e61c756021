"""A model as the stages use it: weights, config, tokenizer, stop tokens and how text becomes ids."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.data.chat import Renderer, load_tokenizer, render_all, stop_token_ids
from rlhf_jax.data.funnel import Funnel, load_examples
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.rows import Example, Kind, ParseOptions
from rlhf_jax.data.sources import read_rows, source_paths
from rlhf_jax.data.tokenizer import classifier_pad_id, load_template
from rlhf_jax.models import DecoderConfig, Params, find_model, load_params, read_config
from rlhf_jax.parallel import is_main_process, param_shardings
from rlhf_jax.workflow.options import DataOptions
from rlhf_jax.workflow.reward_model import reward_config
from rlhf_jax.workflow.stage import fingerprint, hash_path

VOCAB_MULTIPLE, LARGE_VOCAB_MULTIPLE = 128, 256
"""The vocabulary's rows are padded to a multiple of this, so that any usual mesh divides them; files keep the rows
they have. Large vocabularies, of which a mesh that does not divide them would hold two whole tables and their moments
on every device, are divided up to 256 ways; of the small ones more padding would cost time."""
LARGE_VOCAB = 32_768


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder, opened lazily."""

    folder: Path
    chat_template_path: str | None = None

    @classmethod
    def find(cls, name_or_path: str | Path, chat_template_path: str | None = None) -> Checkpoint:
        """The checkpoint of a local folder or a hub name."""
        return cls(find_model(name_or_path), chat_template_path)

    @cached_property
    def config(self) -> DecoderConfig:
        config = read_config(self.folder)
        multiple = LARGE_VOCAB_MULTIPLE if config.vocab_size >= LARGE_VOCAB else VOCAB_MULTIPLE
        return dataclasses.replace(config, vocab_multiple=multiple)

    @cached_property
    def chat_template(self) -> str | None:
        """Text of the template that replaces the tokenizer's own, if one does."""
        return None if self.chat_template_path is None else load_template(self.chat_template_path)

    @cached_property
    def key(self) -> str:
        """Stands for the model and how it writes a conversation: a hash of its files and of the template over them."""
        files = hash_path(self.folder)
        return files if self.chat_template is None else fingerprint([files, self.chat_template])

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(str(self.folder), self.chat_template_path)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a response: the model's own if it names any, and the chat template's end of turn."""
        if self.tokenizer.chat_template or not self.config.eos_token_ids:
            return stop_token_ids(self.tokenizer, {"eos_token_id": list(self.config.eos_token_ids)})
        return self.config.eos_token_ids

    def as_policy(self) -> Checkpoint:
        """This checkpoint, if it can speak; ValueError if it is a reward model, which has no next-token head."""
        if self.config.is_classifier:
            raise ValueError(f"{self.folder} is a sequence classifier ({self.config.num_labels} output(s)), as reward "
                             "models are, and what is asked for needs a language model; give the one it was made from")
        return self

    def params(self, mesh: Mesh, dtype: Any = jnp.float32) -> Params:
        """The weights, sharded over the mesh."""
        return load_params(self.folder, self.config, dtype, param_shardings(self.config, mesh))

    @cached_property
    def reward_model(self) -> DecoderConfig:
        """The reward model that is trained from this checkpoint: its head, where that is read, and the padding id.

        A classifier goes on as it is read; a language model's padding id is replaced where a conversation ends with it,
        since transformers would read the head before it.
        """
        config, own = self.config, None
        if config.is_classifier:
            own = config.pad_token_id
        else:
            config = reward_config(config)
        return dataclasses.replace(config, pad_token_id=classifier_pad_id(self.tokenizer, own))

    def renderer(self, data: DataOptions, *, scores: bool = False) -> Renderer:
        """How rows become ids: within the data's limits, and never beyond the model's own positions.

        scores: for training a reward model from this checkpoint; a classifier's rows always end where it is read.
        """
        eos = self.tokenizer.eos_token_id
        longest = min(data.max_length or self.config.max_position, self.config.max_position)
        renderer = Renderer(self.tokenizer, data.max_prompt_length, longest, data.overlong,
                            eos_id=eos if eos in self.stop_ids else self.stop_ids[0], text_as_chat=data.text_as_chat)
        if not scores and not self.config.is_classifier:
            return renderer
        return renderer.for_scores(self.reward_model.score_at, self.reward_model.pad_token_id)

    @property
    def decode_text(self) -> Callable[[Sequence[int], Sequence[int]], str]:
        return partial(continuation_text, self.tokenizer)


@dataclasses.dataclass
class Loaded:
    """A model and the data read for it, before a stage starts; also what `--dry-run` shows."""

    checkpoint: Checkpoint
    groups: list[PromptGroup]
    eval_groups: list[PromptGroup]
    funnel: Funnel


def check_vocabularies(first: Checkpoint, second: Checkpoint, because: str) -> None:
    """Raises ValueError, with the reason why it matters, unless both tokenizers give every token the same id.

    Tokens for padding are left out: no model ever sees one.
    """
    padding = {first.tokenizer.pad_token, second.tokenizer.pad_token}
    ours, theirs = first.tokenizer.get_vocab(), second.tokenizer.get_vocab()
    differ = sorted(token for token in {*ours, *theirs} - padding if ours.get(token) != theirs.get(token))
    if differ:
        raise ValueError(f"{first.folder} and {second.folder} have different vocabularies: {len(differ):,} tokens "
                         f"differ, such as {differ[0]!r} (ids {ours.get(differ[0])} and {theirs.get(differ[0])}). "
                         f"{because}")


def continuation_text(tokenizer: Any, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """Text of a response, its leading space as in the running text, special tokens left out."""
    before = tokenizer.decode(list(prompt_ids)[-8:], skip_special_tokens=True)
    both = tokenizer.decode([*list(prompt_ids)[-8:], *ids], skip_special_tokens=True)
    return both[len(before):] if both.startswith(before) else tokenizer.decode(list(ids), skip_special_tokens=True)


def read_data(data: DataOptions, kind: Kind, quarantine: Path | None = None) -> tuple[list[Example], Funnel]:
    """Rows of the configured sources as examples, with the funnel so far."""
    _some_source(data)
    options = ParseOptions(pair_rule=data.pair_rule, min_gap=data.min_gap, allow_empty_prompt=data.allow_empty_prompt)
    examples, funnel = load_examples(list(data.sources), kind, split=data.split, converter=data.converter,
                                     options=options, max_bad_rows=data.max_bad_rows,
                                     quarantine_path=quarantine if is_main_process() else None,
                                     drop_duplicate_prompts=data.drop_duplicate_prompts)
    if data.max_samples is not None and len(examples) > data.max_samples:
        funnel.dropped["beyond_max_samples"] += len(examples) - data.max_samples
        examples = examples[: data.max_samples]
    return examples, funnel


def check_sources(data: DataOptions) -> None:
    """Opens every source and reads its first row; raises what `read_data` would raise for one that is not there."""
    _some_source(data)
    for source in data.sources:
        next(iter(read_rows(source, split=data.split)))


def _some_source(data: DataOptions) -> None:
    if not data.sources:
        raise ValueError("no data is given: set dataset_name to a file, a folder, a glob, tfds:NAME or a hub name (in "
                         "a run with sections, that of the section, as prompts.dataset_name)")


def data_key(data: DataOptions) -> dict[str, Any]:
    """What identifies a data set in a stage's inputs: options, and the contents of files rather than their names."""
    template = data.chat_template_path and fingerprint(load_template(data.chat_template_path))
    options = dataclasses.replace(data, dataset_name=(), chat_template_path=template)
    return {"options": options, "files": sources_key(data.sources, data.split)}


def sources_key(sources: Sequence[str], split: str | None = None) -> list[dict[str, Any]]:
    """Of each source its slice and the hashes of the files it is read from.

    A hub or tfds name stands for itself: what it names is pinned by its revision, not by us.
    """
    found = []
    for source in sources:
        paths, rows = source_paths(source, split)
        found.append({"rows": rows, "content": source if paths is None else [hash_path(path) for path in paths]})
    return found


def groups_key(groups: Sequence[PromptGroup]) -> str:
    """What identifies groups in a stage's inputs: all they hold, so also pairs, margins and the columns for scorers."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(fingerprint(group.to_json()).encode())
    return digest.hexdigest()


def prompt_groups(examples: Sequence[Example], renderer: Renderer, funnel: Funnel) -> list[PromptGroup]:
    """Prompts alone, as groups without responses."""
    return render_all([dataclasses.replace(e, responses=(), pairs=(), margins=(), scores=(), labels=())
                       for e in examples], renderer, funnel)
