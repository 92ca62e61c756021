"""Numbered shards of groups, each written whole, none written twice.

Every process makes every n-th shard with its own devices and looks at no other process meanwhile; what is in a shard
does not depend on who made it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import jax

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import read_groups
from rlhf_jax.parallel import Notice
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.products import INPUTS, RECORD
from rlhf_jax.workflow.stage import check_made, fingerprint, hash_path


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

    def read(self) -> list[PromptGroup]:
        return read_shards(self.folder)


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.jsonl"


def shards(folder: Path) -> list[Path]:
    """The finished shards of a stage, in order.

    Raises:
      ValueError: where there is none, where one is missing between others, or where the stage's record has others.
      DamagedProduct: where one is no longer what the stage made.
    """
    record, found = check_made(folder), sorted(folder.glob("shard-*.jsonl"))
    if not found:
        raise ValueError(f"{folder} holds no shard-*.jsonl; give the output_dir of a finished `generate` or `score`")
    made = [name for name in (record or {}).get("products", ()) if name.startswith("shard-")]
    odd = {path.name for path in found} ^ {*(made or map(shard_name, range(len(found))))}
    if odd:
        raise ValueError(f"{folder} does not hold the shards of one stage: {min(odd)} is missing or was added. Bring "
                         "back what belongs there, or make them again in another folder")
    return found


def read_shards(folder: Path) -> list[PromptGroup]:
    """All groups of a stage."""
    return [group for path in shards(folder) for group in read_groups(path)]


def announce_kept(folder: Path, count: int, context: Context) -> None:
    """Says from where a stage of `count` shards goes on, if an earlier command made some of them."""
    if kept := len(list(folder.glob("shard-*.jsonl"))):
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
