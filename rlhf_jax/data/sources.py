"""Where rows come from: local files and folders first, TFDS builders, and hub names where there is a hub.

| source                                   | read as                                                              |
|------------------------------------------|----------------------------------------------------------------------|
| `a.jsonl`, `.json`, `.csv`, `.tsv`, `.txt` (each also `.gz`), `.parquet`, `.arrow` | one file                   |
| a folder, or a glob such as `d/*.jsonl`  | its files in sorted order; a `save_to_disk` folder through `datasets` |
| the snapshot of a hub data set           | the files in its `data/`, of one split                               |
| `tfds:name[:config]`, `tfds:/builder/dir` | a TFDS data source, with no TensorFlow                               |
| `owner/name`, `owner/name@revision`      | `datasets.load_dataset`; a branch, a tag or a commit                 |

Any source may end in a slice, `a.jsonl[:1000]`, and so may a split, `train[:10%]`.
"""

from __future__ import annotations

import dataclasses
import difflib
import glob
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.files import FILE_READERS, file_format, read_file
from rlhf_jax.data.json_values import without_padding
from rlhf_jax.data.jsonl import SourceError

_SLICE = re.compile(r"^(?P<base>.*?)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]$")
_SHARD = re.compile(r"^(.+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.|^(batch-\d+)-\d{5}\.")
"""A shard as the hub names it, of older data sets with a hash, or one of the batches that `data` writes."""
_HUB_NAME = re.compile(r"((?:\w[\w.-]*/)?\w[\w.-]*)(?:@(\w[\w./-]*))?")
_ABOUT = ("dataset_infos.json", "dataset_info.json")
"""Files of a hub snapshot that tell of the data and hold none."""
_PACKED = re.compile(r"\.(jsonl?|ndjson|csv|tsv|parquet|arrow)\.(zst|bz2|xz)$", re.IGNORECASE)
"""Data whose packing is not read."""
_RECORD = "stage.json"
_BESIDE = (_RECORD, "inputs.json", "statistics.json", "decontaminated.jsonl", "quarantine-*.jsonl", "*.md",
           "report.html", "figures")
"""What says that one of our stages wrote a folder, and files that `data` writes there beside its rows."""
_SPLIT_WORDS = ("train", "valid", "validation", "val", "dev", "test", "eval")


@dataclasses.dataclass(frozen=True)
class SourceRow:
    """A row and where it stood: file (or data set) and row number, which is the line, from 1, in files of lines."""

    source: str
    number: int
    row: Mapping[str, Any] | BadRow


def read_rows(source: str, *, split: str | None = None, name: str | None = None,
              header: Sequence[str] | None = None) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
    """Row number (from 1) and row, in order; a row that cannot be read is a BadRow in its place.

    Args:
      source: a path, folder, glob, `tfds:...` or hub name, with an optional slice.
      split: of a hub or TFDS data set, or the start of the file names in a folder; an optional slice may follow it.
      name: the configuration of a hub or TFDS data set.
      header: column names of a headerless .csv or .tsv file.

    Raises:
      SourceError: nothing is there, the source holds no rows, or it cannot be read.
    """
    for located in locate_rows(source, split=split, name=name, header=header):
        yield located.number, located.row


def locate_rows(source: str, *, split: str | None = None, name: str | None = None,
                header: Sequence[str] | None = None) -> Iterator[SourceRow]:
    """As `read_rows`, with the file that each row stands in."""
    base, bounds = _cut_slice(source)
    split_name, split_bounds = _cut_slice(split) if split else (None, None)
    opened = partial(_open, base, split_name, name, header)
    for part in (split_bounds, bounds):
        if part is not None:
            opened = partial(_sliced, opened, *part)
    rows = opened()
    first = next(rows, None)
    if first is None:
        raise SourceError(f"{source!r}{f' split {split!r}' if split else ''} holds no rows; an empty file usually "
                          "means that the step that wrote it failed")
    yield first
    yield from rows


def source_paths(source: str, split: str | None = None) -> tuple[list[Path] | None, str]:
    """The local paths that a source's rows are read from, and the slice it ends in, `[:1000]`, or nothing.

    Paths are files, in the order they are read, or the one folder of a TFDS builder or a saved data set; None stands
    for a name, whose rows lie elsewhere.

    Raises:
      SourceError: as `list_files`.
    """
    base, _ = _cut_slice(source)
    if base.startswith("tfds:"):
        builder = _builder_folder(base[len("tfds:"):])
        paths = None if builder is None else [builder]
    elif _is_saved(saved := Path(base).expanduser()):
        paths = [saved]
    else:
        paths = list_files(base, _cut_slice(split)[0] if split else None)
    return paths, source[len(base):]


def _is_saved(path: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return path.is_dir() and any((path / f).exists() for f in ("dataset_info.json", "state.json", "dataset_dict.json"))


def _builder_folder(spec: str) -> Path | None:
    """The folder that `tfds:SPEC` names, if it names one."""
    path = Path(spec).expanduser()
    return path if "/" in spec and path.is_dir() else None


def _open(base: str, split: str | None, name: str | None, header: Sequence[str] | None) -> Iterator[SourceRow]:
    if base.startswith("tfds:"):
        return _number_rows(base, _tfds_rows(base[len("tfds:"):], split, name))
    if _is_saved(path := Path(base).expanduser()):
        return _number_rows(base, _saved_rows(path, split))
    files = list_files(base, split)
    if files is None:
        return _number_rows(base, _hub_rows(base, split, name))
    return (SourceRow(str(file), number, row) for file in files for number, row in read_file(file, header))


def list_files(source: str, split: str | None = None) -> list[Path] | None:
    """The local files of a source in sorted order, or None when it is the name of a hub data set.

    In a folder, `split` keeps the files whose name begins with it; of `train_sft-00000-of-00002.parquet`, as the hub
    names them, the split is `train_sft`. Where no file name begins with a split word, all are one `train` split. A
    folder without data files of its own whose files lie in `data/` is read there. What a stage wrote beside its rows is
    not read with them.

    Raises:
      SourceError: there is no such file, or the split is not there, or is needed and not given; or a folder has
        files of several formats, or some packed otherwise than with gzip.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_one_format(_split_files(_data_files(path) or _data_files(path / "data"), source, split), source)
    if path.is_file() or file_format(path) or glob.has_magic(source) or source.startswith(("/", ".", "~")):
        if not path.is_file() and not glob.has_magic(source):
            raise SourceError(f"there is no file {source!r}; the working folder is {Path.cwd()}")
        found = [path] if path.is_file() else _matching(str(path))
        if not found:
            raise SourceError(f"no file matches {source!r}")
        return _split_files(found, source, split) if len(found) > 1 else _check_single(found, source, split)
    return None


def _data_files(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.glob("*") if f.is_file() and not f.name.startswith("."))
    if packed := [f.name for f in files if _PACKED.search(f.name)]:
        raise SourceError(f"{folder} holds {', '.join(packed[:8])}, which cannot be read as they are; unpack them, or "
                          "pack them with gzip (.jsonl.gz)")
    return [f for f in files if file_format(f) and f.name not in _ABOUT and not _lies_beside(f)]


def _matching(pattern: str) -> list[Path]:
    """The files of a glob; those that lie beside rows are left out, unless it names nothing else."""
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    return [file for file in found if not _lies_beside(file)] or found


def _lies_beside(file: Path) -> bool:
    """Whether a stage wrote the file beside its rows: what it left out, or what it says of them."""
    return any(fnmatch(file.name, name) for name in _BESIDE) and (file.parent / _RECORD).is_file()


def _check_single(files: list[Path], source: str, split: str | None) -> list[Path]:
    if split not in (None, "train"):
        raise SourceError(f"{source!r} is one file, so it has no split {split!r}; name the file of that split")
    return files


def _split_files(files: list[Path], source: str, split: str | None) -> list[Path]:
    if not files:
        raise SourceError(f"{source!r} holds no data file, nor does a folder data/ in it; known endings are "
                          f"{', '.join(FILE_READERS)}, text ones also .gz. Name the folder that holds them")
    shards = {file: match[1] or match[2] for file in files if (match := _SHARD.match(file.name))}
    words = {file: re.split(r"[._-]", file.name)[0] for file in files} | shards
    named = sorted({word for word in words.values() if word in _SPLIT_WORDS} | set(shards.values()))
    if split is None and len(named) > 1:
        raise SourceError(f"{source!r} holds the splits {', '.join(named)}; say which with split= (of held-out rows "
                          "eval_split=)")
    if split is None or (split == "train" and not named):
        return files
    chosen = [file for file, word in words.items() if word == split]
    if not chosen:
        raise SourceError(f"{source!r} has no file of split {split!r}; it holds {', '.join(f.name for f in files[:8])}")
    return chosen


def _of_one_format(files: list[Path], source: str) -> list[Path]:
    """The files of a folder, if one reader reads them all."""
    formats = sorted({file_format(file) for file in files})
    if len({FILE_READERS[name] for name in formats}) > 1:
        raise SourceError(f"{source!r} holds files of several formats ({', '.join(formats)}), such as "
                          f"{', '.join(file.name for file in files[:8])}, and a data set has one; name those of the "
                          "data with a glob, such as FOLDER/*.jsonl, or their split")
    return files


def _number_rows(source: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[SourceRow]:
    return (SourceRow(source, number, row) for number, row in enumerate(rows, start=1))


def _cut_slice(text: str) -> tuple[str, tuple[str | None, str | None] | None]:
    match = _SLICE.match(text)
    return (match["base"], (match["start"], match["stop"])) if match else (text, None)


def _sliced(opened: Callable[[], Iterator[SourceRow]], start: str | None, stop: str | None) -> Iterator[SourceRow]:
    bounds = [b for b in (start, stop) if b is not None]
    if not any(b.endswith("%") or b.startswith("-") for b in bounds):
        return itertools.islice(opened(), int(start or 0), None if stop is None else int(stop))
    count = sum(1 for _ in opened())  # a share or a place from the end needs the number of rows
    first, last = (None if b is None else _row_bound(b, count) for b in (start, stop))
    return itertools.islice(opened(), *slice(first, last).indices(count))


def _row_bound(bound: str, count: int) -> int:
    return round(count * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)


def _only_split(splits: Iterable[str], split: str | None, source: str) -> str:
    names = list(splits)
    if split is None and len(names) == 1:
        return names[0]
    if split not in names:
        raise SourceError(f"{source!r} has the splits {', '.join(map(str, names)) or '(none)'}, not {split!r}; say "
                          "which with split= (of held-out rows eval_split=)")
    return split


def _tfds_rows(spec: str, split: str | None, config: str | None) -> Iterator[Mapping[str, Any]]:
    import tensorflow_datasets as tfds

    try:
        if folder := _builder_folder(spec):
            builder = tfds.builder_from_directory(str(folder))
        else:
            dataset, _, inline = spec.partition(":")
            builder = tfds.builder("/".join(filter(None, (dataset, config or inline))))
        source = builder.as_data_source(_only_split(builder.info.splits, split, f"tfds:{spec}"))
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(spec, tfds.list_builders(with_community_datasets=False), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise SourceError(f"there is no TFDS data set {spec!r}{hint or '.'} Give a name of the catalogue, or a builder "
                          "folder (tfds:/path/name/1.0.0)") from error
    except (FileNotFoundError, NotImplementedError, ImportError) as error:
        raise SourceError(
            f"cannot read the TFDS data set {spec!r}: {error}. Give an existing builder folder (tfds:/path/name/1.0.0) "
            "prepared with file_format='array_record' or 'parquet'; the default, tfrecord, cannot be read by row"
        ) from error
    return (plain_values(source[i]) for i in range(len(source)))


def plain_values(value: Any) -> Any:
    """A TFDS value in plain Python: bytes that are UTF-8 as str, arrays unboxed, a dict of lists as a list of dicts."""
    if isinstance(value, bytes):
        return _text_of(value)
    if isinstance(value, Mapping):
        return {key: _transposed(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain_values(value.tolist())
    return [plain_values(item) for item in value] if isinstance(value, list | tuple) else value


def _text_of(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:  # a picture, say; where text belongs, the row is refused
        return value


def _transposed(value: Any) -> Any:
    """A Sequence feature of objects, which TFDS hands over as a dict of lists, as a list of objects."""
    plain = plain_values(value)
    if not isinstance(plain, dict) or not plain or not all(isinstance(v, list) for v in plain.values()):
        return plain
    if len({len(v) for v in plain.values()}) != 1:
        return plain
    return [dict(zip(plain, items, strict=True)) for items in zip(*plain.values(), strict=True)]


def _saved_rows(path: Path, split: str | None) -> Iterator[Mapping[str, Any]]:
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[_only_split(loaded, split, str(path))]
    else:
        _check_single([path], str(path), split)
    return map(without_padding, loaded)


def _hub_rows(source: str, split: str | None, name: str | None) -> Iterator[Mapping[str, Any]]:
    import datasets

    load: Callable[..., Any] = datasets.load_dataset
    match = _HUB_NAME.fullmatch(source)
    if match is None:
        raise SourceError(f"{source[:200]!r} is no file on this machine and no name of a hub data set (name, "
                          "owner/name or owner/name@revision)")
    dataset, revision = match[1], match[2]
    try:
        loaded = load(dataset, name, **({"revision": revision} if revision else {}))
    except (ConnectionError, FileNotFoundError, ValueError) as error:
        raise SourceError(
            f"{source!r} is no local file, and as a name on the Hugging Face hub it cannot be loaded: {error}. "
            "Without a network, give a path to a local file or folder"
        ) from error
    return map(without_padding, loaded[_only_split(loaded, split, source)])
