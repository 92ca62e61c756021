"""Options of sampling, under the field's names."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.config.engine import EngineOptions
from rlhf_jax.fields import SEED, Options, Range, above, at_least, between, changed

StoredDtype = Literal["auto", "float32", "bfloat16", "int8"]
_LANES = at_least(1, 65_536)
_TOKENS = at_least(1, 2**24)
_OUR_OWN = ("slots", "lanes", "block", "cache_dtype", "cache_share", "weights_dtype")


def rounded_up(tokens: int) -> int:
    """The next power of two, 16 at least: the depth of a cache that holds so many tokens, so that few sizes occur."""
    return max(16, 1 << max(tokens - 1, 0).bit_length())


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Options):
    """What to sample.

    Attributes:
      num_generations: continuations per prompt, n.
      temperature: one value, or several spread over the n samples (the paper's half 1.0, half 0.7 is (1.0, 0.7)).
      top_k: draw among the k most probable tokens alone; 0 for all.
      top_p: among the fewest that have this probability together; 1.0 for all.
      min_p: among those with this share of the most probable one's probability; 0.0 for all.
      max_new_tokens: response budget; a response that meets it ends with finish reason "length" and without EOS.
      stop_strings: a response ends at the first token that completes one of these; one that is a special token ends it
        as EOS does, and one that holds a special token and other text is refused.
      slots: prompts in flight in each process, over all of its devices; a process is a host, as launch/ starts them.
      lanes: continuations of one prompt in flight, None for all n; a lane that finishes takes the prompt's next sample.
      block: tokens decoded between two looks by the host.
      prompt_length: capacity for prompts; None takes the longest prompt, rounded up to a power of two.
      cache_dtype: of the keys and values that decoding remembers; "auto" is the compute dtype. "int8" keeps one scale
        per token and head beside them and needs a quarter (of float32) or half (of bfloat16) of the memory, at the
        price of log-probs that `sampling.cache.logp_tolerance` bounds.
      cache_share: what share of all that the lanes may write is reserved. Below 1 lanes take memory as they write, in
        pages, and wait where there is none, so that the same memory serves more `slots`; good is a little more than
        the mean length of a response over max_new_tokens. On a CPU it saves memory and no time.
      weights_dtype: of the weights that decoding reads for each token; "auto" is the compute dtype. "int8" keeps one
        scale per output beside them: half the bytes of bfloat16 are read, and lie beside the whole weights, which read
        the prompts; experts and tied embeddings stay whole. What it costs in log-probs the stage's report says
        (logps_mean_difference).
      seed: with the prompt id, the sample index and the position it decides every token.
      engine: vLLM, SGLang or another engine outside of this program samples; None for our own sampler.
    """

    num_generations: Annotated[int, _LANES] = 8
    temperature: Annotated[float | tuple[float, ...], between(0, 1e4)] = 1.0
    top_k: Annotated[int, at_least(0)] = 0
    top_p: Annotated[float, above(0, 1)] = 1.0
    min_p: Annotated[float, Range(0, 0.999999)] = 0.0
    max_new_tokens: Annotated[int, _TOKENS] = 256
    stop_strings: tuple[str, ...] = ()
    slots: Annotated[int, _LANES] = 16
    lanes: Annotated[int | None, _LANES] = None
    block: Annotated[int, _LANES] = 32
    prompt_length: Annotated[int | None, _TOKENS] = None
    cache_dtype: StoredDtype = "auto"
    cache_share: Annotated[float, above(0, 1)] = 1.0
    weights_dtype: Literal["auto", "int8"] = "auto"
    seed: Annotated[int, SEED] = 0
    engine: EngineOptions | None = None

    def conflicts(self) -> None:
        if self.engine is not None and (idle := [name for name in changed(self) if name in _OUR_OWN]):
            raise ValueError(f"{idle[0]} = {getattr(self, idle[0])!r} is about our own sampler and has no effect with "
                             f"an engine; leave {', '.join(idle)} out, or leave engine out")
        if self.lanes is not None and self.lanes > self.num_generations:
            raise ValueError(f"lanes = {self.lanes}; a prompt has num_generations = {self.num_generations} samples, "
                             "choose between 1 and that")
        given = len(self.temperature) if isinstance(self.temperature, tuple) else 1
        if not 1 <= given <= self.num_generations:
            raise ValueError(f"temperature has {given} values for num_generations = {self.num_generations} samples; "
                             "give one value, or at most one for each sample")

    def capacity(self, longest: int, positions: int) -> int:
        """Tokens that prompts of up to `longest` tokens are given in the cache of a model of so many positions.

        Raises:
          ValueError: if the longest prompt or its response has no room.
        """
        capacity = self.prompt_length or rounded_up(longest)
        if longest > capacity:
            raise ValueError(f"a prompt has {longest} tokens and prompt_length is {capacity}; raise prompt_length or "
                             "drop long prompts with max_prompt_length")
        if longest + self.max_new_tokens > positions:
            raise ValueError(f"the longest prompt ({longest} tokens) plus max_new_tokens ({self.max_new_tokens}) "
                             f"passes the model's {positions} positions; lower max_new_tokens or max_prompt_length")
        return capacity

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperature of each of the n samples: the given values in equal, contiguous shares."""
        given = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        return tuple(given[i * len(given) // self.num_generations] for i in range(self.num_generations))

    @property
    def lanes_each(self) -> int:
        """Continuations of one prompt in flight."""
        return self.lanes or self.num_generations

    @property
    def in_flight(self) -> int:
        """Continuations in flight."""
        return self.slots * self.lanes_each

    @property
    def filters(self) -> bool:
        """Whether tokens are left out."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def unchanged(self) -> tuple[bool, ...]:
        """Which of the n samples are drawn from the model's own distribution: temperature 1, and no token left out."""
        return tuple(not self.filters and temperature == 1.0 for temperature in self.temperatures)
