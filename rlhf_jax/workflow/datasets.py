"""Where a stage's prompt groups come from: rows of data sets, a file of an earlier stage, or groups at hand."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from rlhf_jax.config.data import GradedOptions, RenderOptions, RowOptions, Sources, as_sources
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.decontaminate import benchmark_index, contaminated
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import SourceError, scan_groups
from rlhf_jax.data.load import load_examples
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.prompt_text import asked
from rlhf_jax.data.render_all import fitting, render_all
from rlhf_jax.data.rows import Example, Kind, ParseOptions
from rlhf_jax.data.sources import read_rows, source_paths
from rlhf_jax.data.tokenizer import load_template
from rlhf_jax.parallel import is_main_process
from rlhf_jax.plugins import plugin_keys
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.stage import check_finished, check_made, fingerprint, hash_path


class GroupSource(Protocol):
    """Groups that a stage reads when it runs, and the key that stands for them in its inputs."""

    @property
    def key(self) -> str: ...

    def read(self) -> Sequence[PromptGroup]:
        """All of them; what comes from files lies on disk (see `OnDisk`), however many there are."""
        ...


@dataclasses.dataclass(frozen=True)
class GivenGroups:
    """Groups at hand."""

    groups: Sequence[PromptGroup]

    @cached_property
    def key(self) -> str:
        """All they hold, so also pairs, margins and the columns for scorers."""
        return groups_key(self.groups)

    def read(self) -> Sequence[PromptGroup]:
        return self.groups


@dataclasses.dataclass(frozen=True)
class GroupFile:
    """A file of groups. stage_key: of the stage that wrote it, if one of this run did."""

    path: Path
    stage_key: str | None = None

    @cached_property
    def key(self) -> str:
        return self.stage_key or hash_path(self.path)

    def read(self) -> Sequence[PromptGroup]:
        """Raises DamagedProduct where it is no longer what a stage made."""
        check_made(self.path)
        return OnDisk(scan_groups(self.path))


@dataclasses.dataclass(frozen=True)
class PairFile(GroupFile):
    """A pairs.jsonl that a user gives, in the tokens of a model of `vocab_size` rows."""

    vocab_size: int = 0

    def read(self) -> Sequence[PromptGroup]:
        """The groups, each with a pair to learn from.

        Raises:
          SourceError: if there is no such file or it holds something else.
        """
        path = self.path
        if not path.is_file():
            raise SourceError(f"pairs = {str(path)!r} is {'a folder' if path.is_dir() else 'no file'}; give the "
                              "pairs.jsonl that `rlhf-jax pairs` wrote")
        groups = super().read()
        if not groups:
            raise SourceError(f"{path} holds no pairs")
        for number, group in enumerate(groups, start=1):
            if not group.pairs:
                raise SourceError(f"{path}: group {number} ({group.prompt_id!r}) has no pair, so there is nothing to "
                                  "learn from it. What `generate` and `score` write goes through `rlhf-jax pairs` "
                                  "first")
            if not len(group.prompt_ids):
                raise SourceError(f"{path}: group {number} ({group.prompt_id!r}) is text alone, in no model's tokens. "
                                  "Give the file as dataset_name instead, whose rows are rendered")
            largest = max(int(ids.max()) for ids in (group.prompt_ids, *(r.ids for r in group.responses)))
            if largest >= self.vocab_size:
                raise SourceError(f"{path}: group {number} ({group.prompt_id!r}) holds the token id {largest} and the "
                                  f"model has {self.vocab_size} tokens. The pairs were sampled from another model; "
                                  "train that")
        return groups


@dataclasses.dataclass(frozen=True)
class Preview:
    """What a dry run shows of a stage: its model, the rows it reads, and the groups they became."""

    checkpoint: Checkpoint | None = None
    source: Any = None
    groups: Sequence[PromptGroup] = ()
    funnel: Funnel | None = None

    @property
    def counts(self) -> Funnel | None:
        """How many rows were used."""
        return self.source.funnel if isinstance(self.source, RenderedRows) else self.funnel


def _as_they_are(examples: Sequence[Example], funnel: Funnel, renderer: Renderer) -> Sequence[Example]:
    del funnel, renderer
    return examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderedRows:
    """Rows of data sets in a model's ids; read once, when they are first asked for.

    Attributes:
      quarantine: file for the rows that cannot be used.
      prepare: what examples become before they are rendered, and counts about it.
      scores: a reward model is trained on them, see `Checkpoint.renderer`.
      announce: is told the funnel, before anything is made of the rows.
      benchmarks: files of questions, of which it is said how many prompts stand in; no part of the key.
    """

    checkpoint: Checkpoint
    kind: Kind
    rows: RowOptions
    render: RenderOptions
    graded: GradedOptions = GradedOptions()
    quarantine: Path | None = None
    prepare: Callable[[Sequence[Example], Funnel, Renderer], Sequence[Example]] = _as_they_are
    scores: bool = False
    announce: Callable[[str], None] = lambda text: None
    benchmarks: Sources = ()

    @cached_property
    def key(self) -> str:
        return data_key(self.kind, self.rows, self.graded, self.render)

    @cached_property
    def _read(self) -> tuple[Sequence[PromptGroup], Funnel]:
        examples, funnel = read_data(self.rows, self.kind, self.quarantine, self.graded)
        make = prompt_groups if self.kind == "prompt" else render_all
        renderer = self.checkpoint.renderer(self.render, scores=self.scores)
        groups = make(self.prepare(examples, funnel, renderer), renderer, funnel)
        self._told(examples, funnel)
        return groups, funnel

    def _told(self, examples: Sequence[Example], funnel: Funnel) -> None:
        """Says what became of the rows, and which of their prompts a benchmark asks too."""
        self.announce(str(funnel))
        if self.benchmarks:
            found = contaminated(map(asked, examples), benchmark_index(as_sources(self.benchmarks)))
            self.announce(found.warning or f"none of {found.prompts:,} prompts is asked by the benchmarks")

    def read(self) -> Sequence[PromptGroup]:
        return self._read[0]

    @property
    def funnel(self) -> Funnel:
        """How many rows were used, and why not the others."""
        return self._read[1]


class FittingRows(RenderedRows):
    """As `RenderedRows`, but of rows that are not cut to the limits it is kept which answers were left out, and why."""

    @cached_property
    def _read(self) -> tuple[Sequence[PromptGroup], Funnel]:
        examples, funnel = read_data(self.rows, self.kind, self.quarantine, self.graded)
        renderer = self.checkpoint.renderer(self.render, scores=self.scores)
        examples = self.prepare(examples, funnel, renderer)
        if renderer.overlong == "drop":
            examples = OnDisk(self._fitted(examples, renderer))
            funnel.notes.update({"left_out_responses": len(self.left_out)} if self.left_out else {})
        groups = render_all(examples, renderer, funnel)
        self._told(examples, funnel)
        return groups, funnel

    def _fitted(self, examples: Sequence[Example], renderer: Renderer) -> Iterator[Example]:
        for example in examples:
            fits, rows = fitting(example, renderer)
            self.left_out.extend(rows)
            yield fits

    @cached_property
    def left_out(self) -> OnDisk[dict[str, Any]]:
        """Prompt id, place and reason of each answer that was left out, once the rows are read."""
        return OnDisk()


def read_data(rows: RowOptions, kind: Kind, quarantine: Path | None = None, graded: GradedOptions = GradedOptions(), *,
              to_judge: bool = False) -> tuple[Sequence[Example], Funnel]:
    """Rows of the configured sources as examples, with the funnel so far."""
    check_named({"": rows})
    if rows.prompts_from is not None and kind != "prompt":
        raise ValueError(f"prompts_from = {rows.prompts_from!r} has no effect on {kind} data, whose prompts end before "
                         "their answers; leave it out")
    options = ParseOptions(pair_rule=graded.pair_rule, pair_score=graded.pair_score, min_gap=graded.min_gap,
                           prompts_from=rows.prompts_from, allow_empty_prompt=rows.allow_empty_prompt,
                           drop_system=rows.drop_system, to_judge=to_judge)
    return load_examples(list(rows.sources), kind, split=rows.split, converter=rows.converter,
                         converter_options=rows.converter_options, columns=rows.columns, options=options,
                         max_bad_rows=rows.max_bad_rows, quarantine_path=quarantine if is_main_process() else None,
                         drop_duplicate_prompts=rows.drop_duplicate_prompts, max_samples=rows.max_samples)


def check_sources(rows: RowOptions) -> None:
    """Opens every source and reads its first row; raises what `read_data` would raise for one that is not there."""
    for source in rows.sources:
        next(iter(read_rows(source, split=rows.split)))


def check_named(sections: Mapping[str, RowOptions]) -> None:
    """Raises ValueError with the keys of all `sections` (by their names; "" for a verb's own) that name no source."""
    missing = [f"{name}.dataset_name".lstrip(".") for name, rows in sections.items() if not rows.sources]
    if missing:
        raise ValueError(f"no data is given: set {' and '.join(missing)} to a file, a folder, a glob, tfds:NAME or a "
                         "hub name")


def data_key(kind: Kind, rows: RowOptions, graded: GradedOptions, render: RenderOptions | None = None) -> str:
    """What identifies a data set in a stage's inputs: options, and the contents of files rather than their names."""
    template = None if render is None else render.chat_template_path and load_template(render.chat_template_path)
    return fingerprint({
        "kind": kind, "rows": dataclasses.replace(rows, dataset_name=()), "graded": graded,
        "render": render and dataclasses.replace(render, chat_template_path=template),
        "functions": plugin_keys(rows.converter), "files": sources_key(rows.sources, rows.split)})


def sources_key(sources: Sequence[str], split: str | None = None) -> list[dict[str, Any]]:
    """Of each source its slice and the hashes of the files it is read from.

    A hub or tfds name stands for itself, with the revision that it carries (`owner/name@revision`).

    Raises:
      StageConflict, DamagedProduct: as `check_finished` of the folders that the files lie in.
    """
    found = []
    for source in sources:
        paths, rows = source_paths(source, split)
        for folder in {path.parent for path in paths or ()}:
            check_finished(folder, {path.name for path in paths or () if path.parent == folder})
        found.append({"rows": rows, "content": source if paths is None else [hash_path(path) for path in paths]})
    return found


def groups_key(groups: Sequence[PromptGroup]) -> str:
    """What identifies groups in a stage's inputs: all they hold, so also pairs, margins and the columns for scorers."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(fingerprint(group.to_json()).encode())
    return digest.hexdigest()


def prompt_groups(examples: Sequence[Example], renderer: Renderer, funnel: Funnel) -> Sequence[PromptGroup]:
    """Prompts alone, as groups without responses."""
    return render_all((dataclasses.replace(e, responses=(), pairs=(), margins=(), scores=())
                       for e in examples), renderer, funnel)
