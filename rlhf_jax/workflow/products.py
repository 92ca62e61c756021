"""The products of a stage: its files, by whose sizes and hashes what is reused later is checked."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax

INPUTS, RECORD = "inputs.json", "stage.json"
"""What a stage writes down when it begins, and when it is done."""
AT_WORK = ".at_work.json"
"""What a command is at, for those who watch it; gone when it ends."""
CHECKPOINTS = "checkpoints"
"""What a training continues from until it is done."""
CARD = "README.md"
"""What a model's folder says to people."""
POLICY = "policy"
"""Link of a run to the model that it is for."""
MODEL, PAIRS, JUDGED, ROWS, TREE = "model", "pairs.jsonl", "judged.jsonl", "rows.jsonl", "tree.json"
"""What stages make: a model, groups as pairs or with verdicts, one line per evaluated row, a tree beside a model."""
STATISTICS = "statistics.json"
"""What `data` counts of a mix."""
RLHFLOW, TRL = "rlhflow.jsonl", "trl.jsonl"
"""Scored samples and pairs once more, in the layouts of other software."""
FEATURES, COVARIANCE = "features", "covariance.npy"
"""Hidden states beside scored shards; what the enhancer's pairs so far say, for the next round's."""
METRICS, ANSWERS, RESULTS = "metrics.json", "answers", "results.json"
"""Figures of a benchmark; a folder of answers that a server was paid for, which no stage's key depends on; and
what a run ends with."""
SMALL = 64 << 20
"""Bytes up to which a file's hash is checked whenever its stage is reused; of a larger one only when it is read."""
_NO_PRODUCTS = (".*", INPUTS, RECORD, CHECKPOINTS, "trackers.json", "events.out.tfevents.*", "quarantine*",
                CARD, "reference_cache", ANSWERS)
"""Files and folders that no later stage reads, or that are kept by content."""


_MADE = ("*-[0-9][0-9][0-9][0-9][0-9].jsonl", MODEL, PAIRS, JUDGED, ROWS, TREE, STATISTICS, RLHFLOW, TRL, FEATURES,
         COVARIANCE, METRICS)
"""What stages call their products, or the folder of them."""


def is_made(name: str) -> bool:
    """Whether a file, named relative to a stage's folder, is called as its products are."""
    return any(fnmatch(Path(name).parts[0], pattern) for pattern in _MADE)


class DamagedProduct(RuntimeError):
    """A file of a finished stage is gone or is not what the stage wrote."""


def list_products(folder: Path, beside: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Name relative to `folder` -> {"bytes", "sha256"} of all that a stage made there, for its record.

    beside: names of what lay there before.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name not in beside and not any(
        fnmatch(part, pattern) for part in Path(name).parts for pattern in _NO_PRODUCTS)]
    with ThreadPoolExecutor() as pool:  # hashing holds no lock of the interpreter
        hashes = pool.map(_sha256, [folder / name for name in names])
        return {name: {"bytes": (folder / name).stat().st_size, "sha256": found}
                for name, found in zip(names, hashes, strict=True)}


def check_products(folder: Path, products: Mapping[str, Mapping[str, Any]], *, read: bool = False) -> None:
    """Compares files with what a record says of them.

    Args:
      products: those to look at, as `list_products` gave them.
      read: they are about to be read, so the hashes of large ones are compared too, by every process those of every
        n-th one.

    Raises:
      DamagedProduct: names the files that differ, how, and the way out.
    """
    mine = list(products)[jax.process_index() :: jax.process_count()]
    wrong = {}
    for name, made in products.items():
        path, size = folder / name, made["bytes"]
        if not path.is_file():
            wrong[name] = f"is missing ({size:,} bytes)"
        elif (found := path.stat().st_size) != size:
            wrong[name] = f"has {found:,} bytes, and {size:,} were written"
        elif (size <= SMALL or (read and name in mine)) and _sha256(path) != made["sha256"]:
            wrong[name] = "has other contents than were written"
    if wrong:
        said = "; ".join(f"{name} {what}" for name, what in list(wrong.items())[:5])
        said += f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DamagedProduct(
            f"what lies in {folder} is not what its stage made: {said}. Something else changed it. Bring back the "
            f"files, or remove what is left of them and {folder / RECORD}, and give the command that made them "
            "again: it keeps what is whole and makes the rest once more")


def point_at(link: Path, folder: Path) -> None:
    """Makes `link` point at `folder`, relative to its own place; it is never absent meanwhile."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(folder, link.parent))
    temporary.replace(link)


def drop_checkpoints(folder: Path) -> None:
    """Removes a finished training's checkpoints: a half-deleted one is never found again."""
    done = folder / f".{CHECKPOINTS}.done"
    if (folder / CHECKPOINTS).is_dir():
        shutil.rmtree(done, ignore_errors=True)
        os.replace(folder / CHECKPOINTS, done)
    shutil.rmtree(done, ignore_errors=True)


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _sha256_of(path: Path, size: int, changed: int, inode: int) -> str:
    """Once for a file that stays as it is: stages that follow each other read the same products."""
    del size, changed, inode
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
