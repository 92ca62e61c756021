"""Numbered shards of groups, each written whole, none written twice.

Every process makes every n-th shard with its own devices and looks at no other process meanwhile; what is in a shard
does not depend on who made it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Protocol

import jax

from rlhf_jax.config.data import GradedOptions, RowOptions
from rlhf_jax.data.example import as_text
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import BY_OTHER, PromptGroup
from rlhf_jax.data.jsonl import read_groups, scan_groups
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.parallel import Notice
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import data_key, read_data
from rlhf_jax.workflow.products import INPUTS, RECORD
from rlhf_jax.workflow.stage import check_made, fingerprint, hash_path

_SHARDS = "shard-*.jsonl"


class Shards(Protocol):
    """Groups cut into numbered shards, as a stage's input."""

    @property
    def key(self) -> str: ...

    @property
    def names(self) -> list[str]:
        """File name of each shard."""
        ...

    @property
    def funnel(self) -> Funnel | None:
        """How many rows of a data set were used, and why not the others; None of groups that a stage made."""
        ...

    def read_shard(self, number: int) -> list[PromptGroup]: ...

    def groups(self) -> Iterator[PromptGroup]:
        """All of them, one by one."""
        ...


def counted(source: Shards) -> Funnel:
    """The funnel of a source, or how many groups it has where a stage made them."""
    return source.funnel or Funnel(read=sum(1 for _ in source.groups()))


@dataclasses.dataclass(frozen=True)
class RowShards:
    """Rows of data sets as groups of text, `size` in a shard. quarantine: file for the rows that cannot be used."""

    rows: RowOptions
    size: int
    quarantine: Path | None = None

    @cached_property
    def key(self) -> str:
        return fingerprint({"rows": data_key("answered", self.rows, GradedOptions()), "size": self.size})

    @cached_property
    def _read(self) -> tuple[Sequence[PromptGroup], Funnel]:
        examples, funnel = read_data(self.rows, "answered", self.quarantine)
        return OnDisk(map(as_text, examples)), funnel

    @property
    def funnel(self) -> Funnel:
        return self._read[1]

    @property
    def names(self) -> list[str]:
        return [shard_name(number) for number in range(-(-len(self._read[0]) // self.size))]

    def read_shard(self, number: int) -> list[PromptGroup]:
        return list(self._read[0][number * self.size : (number + 1) * self.size])

    def groups(self) -> Iterator[PromptGroup]:
        return iter(self._read[0])


@dataclasses.dataclass(frozen=True)
class ShardFolder:
    """A folder of shards, as a stage's input. stage_key: of the stage that wrote them, if one of this run did."""

    folder: Path
    stage_key: str | None = None

    @cached_property
    def key(self) -> str:
        """Their contents alone; no record or report beside them.

        Raises:
          ValueError: if the stage was begun and not ended: prompts whose shards are still to come would be left out.
        """
        if self.stage_key is not None:
            return self.stage_key
        if (self.folder / INPUTS).is_file() and not (self.folder / RECORD).is_file():
            raise ValueError(f"the stage in {self.folder} is not finished, and prompts of the shards that it has not "
                             "written yet would be left out; give its command again first")
        return fingerprint([hash_path(path) for path in shards(self.folder)])

    @property
    def funnel(self) -> None:
        return None

    @cached_property
    def _paths(self) -> list[Path]:
        return shards(self.folder)

    @property
    def names(self) -> list[str]:
        return [path.name for path in self._paths]

    def read_shard(self, number: int) -> list[PromptGroup]:
        return read_groups(self._paths[number])

    def groups(self) -> Iterator[PromptGroup]:
        return scan_shards(self.folder)

    def read(self) -> Sequence[PromptGroup]:
        """All of them, for whoever looks more than once."""
        return read_shards(self.folder)


@dataclasses.dataclass(frozen=True)
class JoinedShards:
    """The answers of two policies to the same prompts, shard by shard; each carries the number `BY_OTHER`.

    Attributes:
      own: of the policy itself. other: of the other one.
    """

    own: Shards
    other: Shards

    @cached_property
    def key(self) -> str:
        return fingerprint([self.own.key, self.other.key])

    @property
    def names(self) -> list[str]:
        return self.own.names

    @property
    def funnel(self) -> None:
        return None

    def read_shard(self, number: int) -> list[PromptGroup]:
        return list(joined(self.own.read_shard(number), self.other.read_shard(number)))

    def groups(self) -> Iterator[PromptGroup]:
        return joined(self.own.groups(), self.other.groups())


def joined(own: Iterable[PromptGroup], other: Iterable[PromptGroup]) -> Iterator[PromptGroup]:
    """Each prompt with the answers of both policies, the policy's own first.

    Raises:
      ValueError: they were asked other prompts, or in other ids.
    """
    for mine, theirs in itertools.zip_longest(own, other):
        if mine is None or theirs is None or mine.prompt_id != theirs.prompt_id:
            raise ValueError("the two policies were not asked the same prompts in the same order; sample both from the "
                             "same data, with the same limits of length")
        if mine.prompt_ids.tolist() != theirs.prompt_ids.tolist():
            raise ValueError(f"prompt {mine.prompt_id!r} has other token ids in the other policy's samples; both must "
                             "have the same tokenizer and chat template, since pairs are trained on as ids")
        marked = [[dataclasses.replace(response, scores={**response.scores, BY_OTHER: flag})
                   for response in group.responses] for group, flag in ((mine, 0.0), (theirs, 1.0))]
        yield dataclasses.replace(mine, responses=(*marked[0], *marked[1]))


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.jsonl"


def shards(folder: Path) -> list[Path]:
    """The finished shards of a stage, in order.

    Raises:
      ValueError: where there is none, where one is missing between others, or where the stage's record has others.
      DamagedProduct: where one is no longer what the stage made.
    """
    record, found = check_made(folder), sorted(folder.glob(_SHARDS))
    if not found:
        raise ValueError(f"{folder} holds no {_SHARDS}; give the output_dir of a finished `generate`, `score` or "
                         "`features`")
    made = [name for name in (record or {}).get("products", ()) if fnmatch(name, _SHARDS)]
    odd = {path.name for path in found} ^ {*(made or map(shard_name, range(len(found))))}
    if odd:
        raise ValueError(f"{folder} does not hold the shards of one stage: {min(odd)} is missing or was added. Bring "
                         "back what belongs there, or make them again in another folder")
    return found


def scan_shards(folder: Path) -> Iterator[PromptGroup]:
    """All groups of a stage, one by one."""
    return itertools.chain.from_iterable(map(scan_groups, shards(folder)))


def read_shards(folder: Path) -> Sequence[PromptGroup]:
    """All groups of a stage, where each is found by its place (see `OnDisk`)."""
    return OnDisk(scan_shards(folder))


def announce_kept(folder: Path, count: int, context: Context) -> None:
    """Says from where a stage of `count` shards goes on, if an earlier command made some of them."""
    if kept := len(list(folder.glob(_SHARDS))):
        context.run.announce(f"{context.name}: continues with {kept:,} of {count:,} shards made")


def shards_here(shards: int, notice: Notice) -> Iterator[int]:
    """Numbers of the shards that this process makes: every n-th one, unless the run is asked to leave.

    Raises:
      Preempted: in that case, on all processes, once each has finished the shard it was at.
    """
    for number in range(jax.process_index(), shards, jax.process_count()):
        if notice.seen():
            break
        yield number
    notice.leave_together("finished shards are kept")
