"""Options of an engine outside of this program that samples: vLLM, SGLang and others with OpenAI's interface."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from rlhf_jax.config.data import Sources, as_sources
from rlhf_jax.config.server import Access, Server, check_address
from rlhf_jax.fields import COUNT, POSITIVE, Flat, Options, at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """An engine that samples, asked for /v1/completions in token ids.

    Attributes:
      urls: where its interface begins, say http://127.0.0.1:8000/v1; of several servers they share the work, and what
        one that dies leaves behind the others do.
      model: the name by which it knows the policy, whatever weights it has at the time.
      name: of the engine (vllm, sglang ...); with version and arguments part of what names the stage.
      version: of the engine; one that tells another at /version or /server_info is refused.
      arguments: that it is started with, as far as samples depend on them.
      access: how it is asked; "concurrency" is in prompts.
      hand_over_command: shell command that gives the engine new weights, before each stage that samples. {folder} is
        replaced by the Hugging Face folder of the policy, {arguments} by those above.
      hand_over_urls: addresses that each get a POST of {"model_path": folder} instead, or after the command.
      hand_over_wait: seconds that the command, and after it the engine, may take until it answers for the new weights.
      checked_prompts: of every shard, so many prompts' samples are checked against our own forward pass: the first, the
        last, some of each server, and others spread between; more than these where there are many servers.
      max_logp_difference: largest difference of a token's log-prob that passes, in nats; None for 1e-3 in float32, 0.5
        in bfloat16.
      max_mean_logp_difference: the same of the mean over tokens; None for 1e-4 in float32, 0.1 in bfloat16.
    """

    urls: Sources
    model: str
    name: str
    version: str
    arguments: str = ""
    access: Flat[Access] = Access(concurrency=64, timeout=3600.0)
    hand_over_command: str | None = None
    hand_over_urls: Sources = ()
    hand_over_wait: Annotated[float, at_least(0, 86_400)] = 900.0
    checked_prompts: Annotated[int, COUNT] = 8
    max_logp_difference: Annotated[float | None, POSITIVE] = None
    max_mean_logp_difference: Annotated[float | None, POSITIVE] = None

    def conflicts(self) -> None:
        if not self.addresses:
            raise ValueError("urls is empty; give the address of the engine, like http://127.0.0.1:8000/v1")
        for url in (*self.addresses, *as_sources(self.hand_over_urls)):
            check_address(url)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(url.rstrip("/") for url in as_sources(self.urls))

    @property
    def server(self) -> Server:
        """The first of its servers."""
        return Server(url=self.addresses[0], model=self.model, access=self.access)

    @property
    def sampled_by(self) -> Mapping[str, str]:
        """What of it a sample depends on."""
        return {"name": self.name, "version": self.version, "arguments": self.arguments}
