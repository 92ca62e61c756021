"""Giving an engine outside the weights of a policy, and waiting until it answers for them."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.config.data import as_sources
from rlhf_jax.config.engine import EngineOptions
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.models import Params
from rlhf_jax.remote import RemoteError, ask_once
from rlhf_jax.sampling.ending import Ending
from rlhf_jax.sampling.external import EngineMismatch, ExternalSampler, NoAnswer
from rlhf_jax.workflow.engine_gate import EngineGate, update_seen

LOG = ".hand_over.log"
"""What the hook's command says, in the stage's folder."""
_PROMPTS, _TOKENS = 4, 64
"""An engine is asked to continue so many prompts by at most so many tokens, to see whose weights it has."""
_ASKED_FOR, _PAUSE = 120.0, 2.0
"""Seconds that it may take for that, and until it is asked again."""
_VERSIONS = ("version", "server_info", "get_server_info")


class HandOverFailed(RuntimeError):
    """The hook that gives an engine its weights did not end well."""


class StaleWeights(EngineMismatch):
    """An engine does not answer for the weights that it was given."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """What shows whose weights an engine has.

    Attributes:
      params: those that it should have, in the sampler's layout. previous: those that it had before, if they are known.
      prompts: some of the stage's. ending: of a response.
    """

    gate: EngineGate
    params: Params
    previous: Params | None
    prompts: Sequence[PromptGroup]
    ending: Ending

    def look(self, url: str) -> str | None:
        """Asks one server: None if it is what it should be, else what is wrong, which may pass.

        Raises:
          EngineMismatch: for what does not pass.
        """
        engine = self.gate.engine
        try:
            if (version := version_of(url, engine)) not in (None, engine.version):
                return f"it is version {version}, and engine.version says {engine.version}"
            if (stale := self._stale(self._asked(url, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0))) is not None:
                return stale
            if (temperature := self._telling) is not None:
                seen = self.gate.look(self.params, self._asked(url, temperature=temperature), temperature)
                if (problem := self.gate.processed(seen, temperature)) is not None:
                    raise EngineMismatch(f"{url}: {problem}")
        except NoAnswer as error:
            return f"it gives no answer ({error})"
        except RemoteError as error:
            return str(error)
        return None

    @property
    def _telling(self) -> float | None:
        """The temperature that shows whether log-probs are the model's own: the stage's first that is neither 1 nor 0,
        else 1 if there are filters."""
        sampling = self.gate.sampling
        given = [t for t, plain in zip(sampling.temperatures, sampling.unchanged, strict=True) if t and not plain]
        return min(given, key=lambda temperature: temperature == 1.0, default=None)

    def _asked(self, url: str, **settings: Any) -> list[PromptGroup]:
        """Prompts with a sample each under these settings, else the stage's.

        Raises:
          NoAnswer, RemoteError: there is none at the moment. EngineMismatch: there will be none.
        """
        access, config = self.gate.engine.access, self.gate.sampling
        sampling = dataclasses.replace(config, num_generations=1, max_new_tokens=min(_TOKENS, config.max_new_tokens),
                                       **settings)
        sampler, groups = ExternalSampler(sampling, self.gate.vocab_size, self.ending), list[PromptGroup]()
        for prompt in self.prompts[:_PROMPTS]:
            (question,) = sampler.questions(prompt)
            answer = ask_once(f"{url}/{question.path}", access, question.body, min(_ASKED_FOR, access.timeout))
            try:
                if not answer:
                    raise ValueError("it is no JSON object: a stream, or a page")
                groups.append(sampler.read(prompt, answer))
            except NoAnswer:
                raise
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise EngineMismatch(f"{url} gives an answer of another layout ({error}), which waiting will not "
                                     "change. Ask the engine itself, or a proxy that passes on its answers") from error
        return groups

    def _stale(self, groups: Sequence[PromptGroup]) -> str | None:
        """Says so where samples at temperature 1 are not of the weights that there should be."""
        seen = self.gate.look(self.params, groups, 1.0)
        if not self.gate.fits(seen):
            return f"it holds other weights: {self.gate.gap(seen)}"
        if self.previous is not None:
            share, error_of = update_seen(self.gate.look(self.previous, groups, 1.0), seen)
            if share + 3 * error_of < 0.5:
                return (f"it still holds the weights from before: its log-probs show {share:.0%} of the update to "
                        f"{self.gate.folder}")
        return None


def hand_over(engine: EngineOptions, folder: Path, log: Path, probe: Probe, announce: Callable[[str], None]) -> float:
    """Calls the user's hook and waits until every server answers for the weights in `folder`; the seconds that it took.

    Raises:
      HandOverFailed: the hook failed, or took too long.
      StaleWeights: a server does not answer for these weights in time, with what was seen of it.
      EngineMismatch: a server does what waiting will not change.
    """
    start = time.monotonic()
    _call(engine, folder, log, announce)
    end = time.monotonic() + engine.hand_over_wait
    waiting: dict[str, str | None] = dict.fromkeys(engine.addresses)
    while True:
        waiting = {url: reason for url in waiting if (reason := probe.look(url)) is not None}
        if not waiting:
            return time.monotonic() - start
        if time.monotonic() >= end:
            raise StaleWeights("; ".join(f"{url}: {reason}" for url, reason in waiting.items()) + ". After "
                               f"{engine.hand_over_wait:g} s it does not answer for the weights in {folder}. Give it "
                               "those (engine.hand_over_command or hand_over_urls do so, else you), raise "
                               "engine.hand_over_wait if that takes longer, and give the same command again")
        time.sleep(min(_PAUSE, max(end - time.monotonic(), 0.0)))


def version_of(url: str, engine: EngineOptions) -> str | None:
    """The version that a server tells, None if it tells none. Raises RemoteError where nobody is there."""
    root = url.removesuffix("/v1")
    for number, path in enumerate(_VERSIONS):
        try:
            found = ask_once(f"{root}/{path}", engine.access, timeout=min(10.0, engine.access.timeout)).get("version")
        except RemoteError as error:
            if number == 0 and "cannot be reached" in str(error):
                raise
            continue
        if isinstance(found, str):
            return found
    return None


def _call(engine: EngineOptions, folder: Path, log: Path, announce: Callable[[str], None]) -> None:
    """The command, then the addresses. Raises HandOverFailed."""
    if engine.hand_over_command is not None:
        command = engine.hand_over_command.replace("{folder}", shlex.quote(str(folder))).replace(
            "{arguments}", engine.arguments)
        announce(f"hands {folder} over: {command}")
        with log.open("wb") as stream:
            try:
                status = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                                        timeout=engine.hand_over_wait or None, start_new_session=True).returncode
            except subprocess.TimeoutExpired:
                status = None
        if status != 0:
            what = "did not end in engine.hand_over_wait" if status is None else f"ended with status {status}"
            said = log.read_text(errors="replace")[-400:]
            raise HandOverFailed(f"hand_over_command {what}: {command!r}. Its output is in {log}, at last: {said!r}. "
                                 "A command that starts a server leaves it in the background")
    for url in as_sources(engine.hand_over_urls):
        announce(f"hands {folder} over: POST {url}")
        try:
            ask_once(url, engine.access, {"model_path": str(folder)})
        except RemoteError as error:
            raise HandOverFailed(f"hand_over_urls: {error}") from error
