"""The HTTP client of all that is asked over a network: several requests in flight, retries, budgets, kept answers."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import httpx2

from rlhf_jax.config.server import Server
from rlhf_jax.remote.addresses import Addresses
from rlhf_jax.remote.answers import Answers, Origin, question_key
from rlhf_jax.remote.budget import Budget, RemoteError, Stopped
from rlhf_jax.remote.openai import Question
from rlhf_jax.remote.token import read_token, without_token

T = TypeVar("T")
Read: TypeAlias = Callable[[Mapping[str, Any]], T]
"""What makes something of an answer."""
LARGEST_ANSWER = 64 << 20
"""Bytes of an answer; a longer one is none."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, whatever the server asks for."""
IN_A_ROW = 8
"""So many questions without an answer, and none answered between them, mean that the server answers none."""
_LATER = (408, 409, 425, 429, 502, 503, 504)
_UNFIT = (400, 413, 422)
"""Statuses by which a server says: not now; and: not this question."""
_REFUSALS = 2
"""So many servers are asked a question that they refuse."""

LOST = ("overloaded", "unreachable", "timeout", "server_error", "not_asked")
"""Reasons of failures that are the server's or the network's, not the question's: asked again, it may be answered."""


class _Failed(NamedTuple):
    """A question that got no answer. down: it is the server that failed, not the question."""

    reason: str
    words: str
    down: bool = False
    again: bool = True
    wait: float = 0.0


class Client:
    """Asks a server, or several of the same model, each distinct question once.

    Args:
      server: which, and what it may cost.
      folder: where answers are kept.
      place, count: this process among those of the run, which share rate, concurrency and budget equally.
      replicas: addresses of further servers of the same model. Work is shared, and what one of them does not answer
        another is asked; one other, where the first refuses the question.
      name: what stands for the server in the keys of kept answers; None for its address.

    Attributes:
      addresses: all of them.
      words: reason of a failure -> what the server did when a question failed of it last.

    Raises:
      ValueError: there is no token where the options name one.
    """

    def __init__(self, server: Server, folder: Path, place: int = 0, count: int = 1, *, replicas: Sequence[str] = (),
                 name: str | None = None):
        self._access, self._name = server.access, name or server.asked["url"]
        self.addresses = Addresses((server.url, *replicas))
        self.words: dict[str, str] = {}
        self._token = read_token(server.access)
        self._answers = Answers(folder, place)
        self._workers = max(1, self._access.concurrency * len(self.addresses.urls) // count)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._budget, self._in_a_row = Budget(server, self._answers, count), 0
        self._http = httpx2.Client(
            headers={"Content-Type": "application/json",
                     **({"Authorization": f"Bearer {self._token}"} if self._token else {})},
            timeout=httpx2.Timeout(self._access.timeout, connect=min(10.0, self._access.timeout)),
            limits=httpx2.Limits(max_connections=self._workers, max_keepalive_connections=self._workers))

    def close(self) -> None:
        """Ends its connections."""
        self._http.close()

    def origin(self, question: Question) -> Origin:
        """Where the answer to a question that was answered came from."""
        return self._answers.origin(question_key(self._name, question))

    def ask(self, questions: Sequence[Question], read: Read[T] | Sequence[Read[T]], failures: Counter[str],
            progress: Callable[[int], None] | None = None) -> list[T | None]:
        """What `read` makes of the answer to each question; None, counted by reason in `failures`, where there is none.

        Args:
          read: raises ValueError for what is no answer; the question is then asked again, as after any other failure.
            One for all questions, or one for each.
          progress: called with the number of questions answered since the last call.

        Raises:
          BudgetSpent: before all were answered.
          RemoteError: the server refuses to be asked, or does not answer any more.
        """
        self._answers.look()
        self.addresses.forgive()
        self._in_a_row = 0
        keys = [question_key(self._name, question) for question in questions]
        readers = [read] * len(keys) if callable(read) else read
        distinct = {key: (question, reader) for key, question, reader in zip(keys, questions, readers, strict=True)}
        found: dict[str, T | _Failed] = {}
        for key, (_, reader) in distinct.items():
            kept = self._answers.get(key)
            if kept is not None:
                found[key] = _read(reader, kept)
        if progress and found:
            progress(sum(key in found for key in keys))
        self._ask_all({key: pair for key, pair in distinct.items() if key not in found}, found, progress)
        out: list[T | None] = []
        for key in keys:
            answer = found[key]
            if isinstance(answer, _Failed):
                failures[answer.reason] += 1
                self.words[answer.reason] = answer.words
                out.append(None)
            else:
                out.append(answer)
        return out

    def _ask_all(self, questions: Mapping[str, tuple[Question, Read[T]]], found: dict[str, T | _Failed],
                 progress: Callable[[int], None] | None) -> None:
        self._stop.clear()
        problem: RemoteError | None = None
        with ThreadPoolExecutor(self._workers) as pool:
            waiting: dict[Future[T | _Failed], str] = {
                pool.submit(self._ask_one, key, question, reader): key
                for key, (question, reader) in questions.items()}
            try:
                for future in as_completed(waiting):
                    try:
                        found[waiting[future]] = future.result()
                    except CancelledError:
                        continue
                    except RemoteError as error:
                        problem = error if problem is None or isinstance(problem, Stopped) else problem
                        self._leave(waiting)
                    if progress:
                        progress(1)
            except BaseException:
                self._leave(waiting)
                raise
        if problem is not None:
            raise problem

    def _leave(self, waiting: Mapping[Future[Any], str]) -> None:
        """Nothing more is asked; what is in flight is still awaited, and kept."""
        self._stop.set()
        for future in waiting:
            future.cancel()

    def _ask_one(self, key: str, question: Question, read: Read[T]) -> T | _Failed:
        try:
            return self._tried(key, question, read)
        except BaseException:
            self._stop.set()  # at once: the next question may be about to be asked
            raise

    def _tried(self, key: str, question: Question, read: Read[T]) -> T | _Failed:
        attempts, rounds, outcome, url = 0, 0, _Failed("not_asked", "the run was stopped"), ""
        asked, refused = set[str](), set[str]()
        try:
            while rounds <= self._access.max_retries:
                if rounds and not asked:
                    wait = max(outcome.wait, self._access.retry_wait * 2 ** (rounds - 1))
                    self._stop.wait(min(wait, LONGEST_WAIT))
                self._budget.start(self._stop)
                attempts += 1
                with self.addresses.taken(asked, refused) as url:
                    answer = self._post(url, question)
                    made = answer if isinstance(answer, _Failed) else _read(read, answer)
                if not isinstance(answer, _Failed) and not isinstance(made, _Failed):
                    self.addresses.note(url, True)
                    self._keep(key, question, attempts, answer, url)
                    return made
                assert isinstance(made, _Failed)
                outcome = made
                if not outcome.again:
                    refused.add(url)
                    if len(refused) == min(_REFUSALS, len(self.addresses.urls)):
                        break
                    continue
                self.addresses.note(url, False)
                asked.add(url)
                if not self.addresses.up() - asked - refused:  # else at once, and it is another's turn
                    rounds, asked = rounds + 1, set()
        except RemoteError:
            if attempts:
                self._keep(key, question, attempts, None, url)
            raise
        self._keep(key, question, attempts, None, url, refused=not outcome.again)
        if outcome.down or self._in_a_row >= IN_A_ROW:
            raise RemoteError(f"{self.addresses} {outcome.words}; {attempts} attempt(s) at this question, and "
                              f"{self._in_a_row} questions in a row without an answer. The answers so far are "
                              f"kept in {self._answers.folder}: mend what is wrong and give the same command again")
        return outcome

    def _keep(self, key: str, question: Question, attempts: int, answer: Mapping[str, Any] | None, url: str,
              refused: bool = False) -> None:
        """Writes down what came of a question. refused: a server that answers others does not answer this one."""
        with self._lock:
            works = answer is not None or (refused and len(self._answers) > 0)
            self._in_a_row = 0 if works else self._in_a_row + 1
        self._budget.write_down(key, question, attempts, answer, url)

    def _post(self, url: str, question: Question) -> Mapping[str, Any] | _Failed:
        """One attempt. Raises RemoteError where the server will refuse every question."""
        end = time.monotonic() + self._access.timeout
        address = f"{url}/{question.path.lstrip('/')}"
        content = bytearray()
        try:
            with self._http.stream("POST", address, content=json.dumps(question.body)) as response:
                for block in response.iter_bytes():
                    content += block
                    if len(content) > LARGEST_ANSWER:
                        return _Failed("garbage", f"gave an answer of more than {LARGEST_ANSWER:,} bytes")
                    if time.monotonic() > end:
                        return _Failed("timeout", f"gave no whole answer in {self._access.timeout:g} s")
        except httpx2.TimeoutException:
            return _Failed("timeout", f"gave no whole answer in {self._access.timeout:g} s")
        except httpx2.DecodingError as error:
            return _Failed("garbage", f"gave an answer that cannot be read ({error})")
        except httpx2.TransportError as error:
            said = f"cannot be reached or broke off ({type(error).__name__}: {error})"
            return _Failed("unreachable", said, down=True)
        return self._answered(url, response, without_token(content.decode(errors="replace"), self._token))

    def _answered(self, url: str, response: httpx2.Response, text: str) -> Mapping[str, Any] | _Failed:
        status, said = response.status_code, f"says {response.status_code}: {text[:300]!r}"
        if status in _LATER:
            return _Failed("overloaded", said, down=True, wait=_seconds(response.headers.get("retry-after")))
        if status >= 500:
            return _Failed("server_error", said)
        if status in _UNFIT:
            return _Failed("refused", said, again=False)
        if status != 200:
            hint = {401: "; give a token by token_env or token_file", 403: "; is the token one for this server?",
                    404: "; is the url the one where its interface begins (often it ends in /v1), and the model one "
                         "that it serves?"}.get(status, "")
            raise RemoteError(f"{url} {said}{hint}. Nothing more was asked")
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            return _Failed("garbage", f"gave something else than JSON ({error}): {text[:100]!r}")
        return answer if isinstance(answer, dict) else _Failed("garbage", f"gave no JSON object: {text[:100]!r}")


def _read(read: Read[T], answer: Mapping[str, Any]) -> T | _Failed:
    try:
        return read(answer)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return _Failed("garbage", f"gave an answer of another layout ({error})")


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0.0))
    except ValueError:  # a date
        return 0.0
