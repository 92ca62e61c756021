"""A policy as lm-evaluation-harness asks it: log-likelihoods by packed rows, text by our sampler, chat by its template.

Importing this module needs the extra `lm-eval`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.tokenizer import template_of, template_text
from rlhf_jax.evaluation.harness.branches import Asked, Likelihood, likelihood_map, likelihoods
from rlhf_jax.evaluation.harness.kept import Kept
from rlhf_jax.models import DecoderConfig, Params
from rlhf_jax.parallel import map_over_processes
from rlhf_jax.sampling import Sampler, shape_settings
from rlhf_jax.training.objectives import Compute

PROMPTS = 256
"""Prompts whose answers are kept together; what a killed command does again at most."""
_TAKEN = {"do_sample", "until", "max_gen_toks", "temperature", "top_k", "top_p", "min_p"}


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """The policy that is evaluated.

    Attributes:
      name: what results call it. tokenizer: of transformers.
      params: in `dtype`, on `mesh`, which is one of this process's devices.
      stop_ids: token ids that end a response. decode_text: (prompt ids, response ids) -> text of the response.
      max_new_tokens: of each answer; None for what a task says.
      slots: prompts in flight. seed: of answers that are not greedy.
    """

    name: str
    config: DecoderConfig
    tokenizer: Any
    params: Params
    mesh: Mesh
    dtype: Any
    stop_ids: Sequence[int]
    decode_text: Callable[[Sequence[int], Sequence[int]], str]
    max_new_tokens: int | None = None
    slots: int = 16
    seed: int = 0


class _Generation(NamedTuple):
    """How a task wants its answers."""

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float


class HarnessModel(TemplateLM):
    """`lm_eval.api.model.LM` over the trainer's forward pass and the sampler, data-parallel over the mesh.

    Continuations of one context share its forward pass; log-probabilities are summed on the devices in float32. Texts
    become ids as transformers' tokenizer makes them, with one BOS where it adds one and the text has none. A context
    that is too long loses its beginning, and is counted in `truncated`.

    Every process runs the harness in the same way; what is asked is divided among them.
    """

    def __init__(self, subject: Subject, kept: Kept | None = None):
        super().__init__()
        self.subject, self.tokenizer, self._kept = subject, subject.tokenizer, kept or Kept()
        self.truncated = 0
        self._program = likelihood_map(Compute(subject.config, mesh=subject.mesh), subject.mesh)
        self._samplers: dict[Any, Sampler] = {}
        self._ids = functools.lru_cache(maxsize=64)(self._encoded)  # a question's context comes with each choice

    @property
    def max_length(self) -> int:
        return self.subject.config.max_position

    @property
    def eot_token_id(self) -> int:
        eos = self.tokenizer.eos_token_id
        return int(self.subject.stop_ids[0] if eos is None else eos)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        del kwargs
        return list(self._ids(string, add_special_tokens))

    def _encoded(self, string: str, special: bool | None) -> tuple[int, ...]:
        if special is None:
            special = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        return tuple(self.tokenizer(string, add_special_tokens=special)["input_ids"])

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Likelihood]:
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def _loglikelihood_tokens(self, requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
                              **kwargs: Any) -> list[Likelihood]:
        del kwargs
        for texts, context, continuation in requests:
            if not context or not continuation:
                raise ValueError(f"a request has {len(context)} tokens of context and {len(continuation)} of "
                                 f"continuation, and both need one: {texts!r}")
        whole = [Asked(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        asked = [one.within(self.max_length) for one in whole]
        self.truncated += sum(a is not b for a, b in zip(asked, whole, strict=True))
        found = likelihoods(self._program, self.subject.params, asked, self._kept)
        for (texts, _, _), answer in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """log p of whole texts after BOS, in windows of the model's length; every token is predicted once."""
        del disable_tqdm
        windows = [(number, window) for number, request in enumerate(requests)
                   for window in map(make_disjoint_window, get_rolling_token_windows(
                       self.tok_encode(request.args[0], add_special_tokens=False), self.prefix_token_id,
                       self.max_length, 1))]
        totals = [0.0] * len(requests)
        for (number, _), (logp, _) in zip(windows, self._loglikelihood_tokens(
                [(None, context, continuation) for _, (context, continuation) in windows]), strict=True):
            totals[number] += logp
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Answers up to the first of a task's stop strings, which is left out.

        A greedy answer is made once, however often it is asked for; of others as many are drawn as are asked for.
        """
        del disable_tqdm
        wanted: dict[_Generation, list[int]] = {}
        for number, request in enumerate(requests):
            wanted.setdefault(self._generation(request.args[1]), []).append(number)
        answers = [""] * len(requests)
        for how, numbers in wanted.items():
            contexts = [self._context(requests[number].args[0], how) for number in numbers]
            drawn = self._drawn(how, contexts)
            for number, context in zip(numbers, contexts, strict=True):
                several = drawn[context]
                text = several[0] if how.temperature == 0 else several.pop(0)
                answers[number] = postprocess_generated_text(text, list(how.until), None)
                self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
        return answers

    def _generation(self, given: Mapping[str, Any]) -> _Generation:
        settings = {name: value for name, value in normalize_gen_kwargs(dict(given)).items() if value is not None}
        if strange := sorted(set(settings) - _TAKEN):
            raise ValueError(f"a task asks to generate with {', '.join(strange)}, which our sampler does not have; it "
                             f"has {', '.join(sorted(_TAKEN))}. Leave the task out, or change its generation_kwargs")
        return _Generation(tuple(settings["until"]), self.subject.max_new_tokens or settings["max_gen_toks"],
                           settings.get("temperature", 0.0), max(int(settings.get("top_k", 0)), 0),
                           float(settings.get("top_p", 1.0)), float(settings.get("min_p", 0.0)))

    def _context(self, text: str, how: _Generation) -> tuple[int, ...]:
        """A prompt's ids, of which the last are taken where there is no room for all and the answer."""
        room = self.max_length - how.max_new_tokens
        if room < 1:
            raise ValueError(f"a task wants answers of up to {how.max_new_tokens:,} tokens and the model has "
                             f"{self.max_length:,} positions for prompt and answer; set policy.max_new_tokens to less")
        ids = tuple(self.tok_encode(text))
        self.truncated += len(ids) > room
        return ids[-room:]

    def _drawn(self, how: _Generation, contexts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[str]]:
        """Context -> the texts of its answers: one where they are greedy, else as many as it stands in `contexts`."""
        counts = Counter(contexts) if how.temperature else dict.fromkeys(contexts, 1)
        longest, found = max(map(len, contexts)), dict[tuple[int, ...], list[str]]()
        for copies in sorted(set(counts.values())):
            sampler = self._sampler(how, copies, longest)
            some = sorted((ids for ids, count in counts.items() if count == copies), key=lambda ids: (-len(ids), ids))
            prompts = [PromptGroup(hashlib.sha256(np.asarray(ids, np.int32).tobytes()).hexdigest(),
                                   np.asarray(ids, np.int32), ()) for ids in some]
            texts: list[list[str]] = []
            for start in range(0, len(prompts), PROMPTS):
                shard = prompts[start : start + PROMPTS]
                said = [prompt.prompt_id for prompt in shard], how, copies
                name = f"answers-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]}"
                work = functools.partial(self._sampled, sampler)
                texts += self._kept(name, functools.partial(map_over_processes, shard, work))
                self._kept.progress(len(texts), len(prompts))
            found |= dict(zip(some, texts, strict=True))
        return found

    def _sampled(self, sampler: Sampler, prompts: Sequence[PromptGroup]) -> list[list[str]]:
        done = dict(sampler.generate(self.subject.params, prompts))
        return [[str(response.text) for response in done[number].responses] for number in range(len(prompts))]

    def _sampler(self, how: _Generation, copies: int, longest: int) -> Sampler:
        """A sampler for prompts of up to `longest` tokens; programs are shared by all settings of one shape."""
        subject = self.subject
        settings = SamplingConfig(num_generations=copies, temperature=how.temperature, top_k=how.top_k, top_p=how.top_p,
                                  min_p=how.min_p, max_new_tokens=how.max_new_tokens, slots=subject.slots,
                                  stop_strings=tuple(text for text in how.until if text), seed=subject.seed)
        settings = dataclasses.replace(settings, prompt_length=settings.capacity(longest, self.max_length))
        key = shape_settings(settings)
        if key not in self._samplers:
            self._samplers[key] = Sampler(subject.config, settings, subject.stop_ids, subject.mesh, subject.decode_text,
                                          subject.dtype)
        return self._samplers[key].with_settings(settings)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text; without a generation prompt its last message is left open, to be continued."""
        text = template_text(self.tokenizer, chat_history, generation=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        at = text.rfind(last.strip())
        if at < 0:
            raise ValueError("the chat template does not write the last message as it is, so it cannot be continued; "
                             "set policy.apply_chat_template to false, or chat_template_path to another template")
        kept = last.lstrip() if text.startswith(last.lstrip(), at) else last.strip()
        return text[: at + len(kept)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return template_of(self.tokenizer) if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        return self.subject.name

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says of the model."""
        return {"model": "rlhf_jax", "model_dtype": np.dtype(self.subject.dtype).name,
                "max_length": self.max_length, "model_seed": self.subject.seed}
