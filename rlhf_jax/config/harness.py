"""Options of academic tasks: which policy is asked, and how."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.fields import COUNT, Options, at_least, only_if


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyOptions(Options):
    """A policy that academic tasks are put to.

    Attributes:
      model_name_or_path: folder of the policy.
      apply_chat_template: prompts are conversations by the tokenizer's chat template, examples in them are turns;
        false for plain text.
      chat_template_path: replaces the template of the policy's tokenizer.
      max_new_tokens: of an answer; null for what a task says.
      slots: answers in flight, over all devices.
      dtype: of weights, caches and computation.
      label: what the official files call the policy; null for the name of its folder.
    """

    model_name_or_path: str
    apply_chat_template: bool = False
    chat_template_path: Annotated[str | None, only_if(apply_chat_template=True)] = None
    max_new_tokens: Annotated[int | None, COUNT] = None
    slots: Annotated[int, at_least(1, 65_536)] = 16
    dtype: Literal["float32", "bfloat16"] = "float32"
    label: str | None = None
