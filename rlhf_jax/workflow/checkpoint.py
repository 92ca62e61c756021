"""A model as the stages use it: weights, config, tokenizer, stop tokens and how text becomes ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.config.data import RenderOptions
from rlhf_jax.data.chat import Renderer, load_tokenizer, stop_token_ids
from rlhf_jax.data.system_prompt import check_system_role
from rlhf_jax.data.tokenizer import check_vocabulary, classifier_pad_id, load_template
from rlhf_jax.models import (
    CheckpointError,
    DecoderConfig,
    Params,
    adapter_base,
    adapter_outputs,
    cast,
    find_model,
    load_adapter,
    load_params,
    merge_lora,
    read_config,
    with_lora,
    with_score,
)
from rlhf_jax.models.folder import CONFIG, holds_tokenizer, is_adapter, own_template
from rlhf_jax.models.lora import lora_specs
from rlhf_jax.models.peft import Adapter, has_magnitudes
from rlhf_jax.parallel import param_shardings, spec_shardings
from rlhf_jax.sampling.ending import ContinuationText
from rlhf_jax.workflow.reward_model import reward_config
from rlhf_jax.workflow.stage import check_made, fingerprint, hash_path

VOCAB_MULTIPLE, LARGE_VOCAB_MULTIPLE = 128, 256
"""The vocabulary's rows are padded to a multiple of this, so that any usual mesh divides them; files keep the rows
they have. Large vocabularies, of which a mesh that does not divide them would hold two whole tables and their moments
on every device, are divided up to 256 ways; of the small ones more padding would cost time."""
LARGE_VOCAB = 32_768


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder, or a LoRA adapter over one, opened lazily.

    Attributes:
      folder: where it lies; of an adapter, where its base does.
      chat_template_path: replaces the tokenizer's own template.
      stage_key: of the stage that made it, if one did; stands for its files in the keys of later stages.
      adapter: folder of an adapter in PEFT's layout, which is merged into the weights when they are read.
    """

    folder: Path
    chat_template_path: str | None = None
    stage_key: str | None = None
    adapter: Path | None = None

    @classmethod
    def find(cls, name_or_path: str | Path, chat_template_path: str | None = None, base_model: str | None = None
             ) -> Checkpoint:
        """The checkpoint of a local folder or a hub name: a whole model, or an adapter over the base that it names.

        An adapter's own chat template and tokenizer, which it was trained with, replace its base's.

        Raises:
          CheckpointError: if an adapter names no base and none is given, or one is given for a whole model.
        """
        folder = find_model(name_or_path)
        if not is_adapter(folder):
            if base_model is not None:
                raise CheckpointError(f"{folder} is a whole model and needs no base_model; leave base_model out")
            return cls(folder, chat_template_path)
        base = base_model or adapter_base(folder)
        if base is None:
            raise CheckpointError(f"{folder} is an adapter that does not name its base; merge it with `rlhf-jax "
                                  "export`, which takes the model as base_model")
        own = None if own_template(folder) is None else str(folder)
        return cls(find_model(base), chat_template_path or own, adapter=folder)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies: beside the adapter, where it has one of its own."""
        return self.adapter if self.adapter is not None and holds_tokenizer(self.adapter) else self.folder

    @cached_property
    def config(self) -> DecoderConfig:
        outputs = None if self.adapter is None else adapter_outputs(self.adapter)
        if outputs is None or self.stored_config.is_classifier:
            return self.stored_config
        return dataclasses.replace(self.stored_config, num_labels=outputs, tie_embeddings=False,
                                   pad_token_id=classifier_pad_id(self.tokenizer))

    @cached_property
    def stored_config(self) -> DecoderConfig:
        """Of the folder, without what an adapter changes."""
        config = read_config(self.folder)
        multiple = LARGE_VOCAB_MULTIPLE if config.vocab_size >= LARGE_VOCAB else VOCAB_MULTIPLE
        return dataclasses.replace(config, vocab_multiple=multiple)

    @cached_property
    def chat_template(self) -> str | None:
        """Text of the template that replaces the tokenizer's own, if one does."""
        return None if self.chat_template_path is None else load_template(self.chat_template_path)

    @cached_property
    def key(self) -> str:
        """Stands for the model and how it writes a conversation: the key of the stage that made it, or a hash of its
        files and of the template over them."""
        if self.stage_key is not None:
            return self.stage_key
        files = [hash_path(folder) for folder in (self.folder, self.adapter) if folder is not None]
        template = [] if self.chat_template is None else [self.chat_template]
        return files[0] if len(files) + len(template) == 1 else fingerprint([*files, *template])

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, held against the model's embedding where the folder is more than a tokenizer's."""
        folder = self.tokenizer_folder
        tokenizer = load_tokenizer(str(folder), self.chat_template_path)
        if (self.folder / CONFIG).is_file():
            check_vocabulary(tokenizer, self.stored_config.vocab_size, folder)
        return tokenizer

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
        """The weights, an adapter merged in float32, sharded over the mesh.

        Raises DamagedProduct where a stage made them and they were changed.
        """
        if self.adapter is None:
            return self.base_params(mesh, dtype)
        adapter = self._adapter()
        params = {**merge_lora(self.base_params(mesh), adapter.params, adapter.lora.scale), **adapter.whole}
        params = params if adapter.score is None else with_score(params, adapter.score)
        return cast(jax.device_put(params, param_shardings(self.config, mesh)), dtype)

    @cached_property
    def shared_base(self) -> Path | None:
        """The folder whose weights other adapters may lie over too; None for a whole model and for what is merged."""
        return None if self.adapter is None or has_magnitudes(self.adapter) else self.folder

    def base_params(self, mesh: Mesh, dtype: Any = jnp.float32) -> Params:
        """The weights of the folder, without an adapter."""
        check_made(self.folder)
        return load_params(self.folder, self.stored_config, dtype, param_shardings(self.stored_config, mesh))

    def over(self, base: Params, mesh: Mesh) -> Params:
        """This adapter over `base`, what `base_params` gave: nothing is merged, so several share the base's arrays."""
        adapter = self._adapter()
        shardings = spec_shardings(lora_specs(self.config, adapter.lora), mesh)
        places = param_shardings(self.config, mesh)
        params = with_lora(base, jax.device_put(adapter.params, shardings), adapter.lora.scale)
        params |= {name: jax.device_put(weight.astype(base["embed"].dtype), places[name])
                   for name, weight in adapter.whole.items()}
        if adapter.score is None:
            return params
        return with_score(params, jax.device_put(adapter.score.astype(base["embed"].dtype), places["score"]))

    def _adapter(self) -> Adapter:
        assert self.adapter is not None, "a whole model has no adapter"
        check_made(self.adapter)
        return load_adapter(self.adapter, self.config)

    @cached_property
    def reward_model(self) -> DecoderConfig:
        """The reward model that is trained from this checkpoint: its head, where that is read, and the padding id.

        A classifier goes on as it is read; a language model's padding id is replaced where a conversation ends with it,
        since transformers would read the head before it.
        """
        own = self.config.pad_token_id if self.config.is_classifier else None
        return dataclasses.replace(reward_config(self.config), pad_token_id=classifier_pad_id(self.tokenizer, own))

    def renderer(self, options: RenderOptions, *, scores: bool = False) -> Renderer:
        """How rows become ids: within the limits given, and never beyond the model's own positions.

        scores: for training a reward model from this checkpoint; a classifier's rows always end where it is read.

        Raises ValueError for a system_prompt that the chat template does not write.
        """
        eos = self.tokenizer.eos_token_id
        longest = min(options.max_length or self.config.max_position, self.config.max_position)
        renderer = Renderer(self.tokenizer, options.max_prompt_length, longest, options.overlong,
                            eos_id=eos if eos in self.stop_ids else self.stop_ids[0],
                            text_as_chat=options.text_as_chat, rows=self.config.vocab_size,
                            system_prompt=options.system_prompt)
        if options.system_prompt is not None:
            check_system_role(renderer, options.system_prompt)
        if not scores and not self.config.is_classifier:
            return renderer
        return renderer.for_scores(self.reward_model.score_at, self.reward_model.pad_token_id)

    @property
    def decode_text(self) -> Callable[[Sequence[int], Sequence[int]], str]:
        return ContinuationText(self.tokenizer)


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
