"""Which tasks are meant, and the task files by which the harness reads a user's data in place of the hub's."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager

from rlhf_jax.evaluation.harness.rows import find_files
from rlhf_jax.parallel import on_main

OWN = Path(__file__).parent / "tasks"
"""Task files of ours, which replace the harness's of the same name."""
PAPER: Mapping[str, int] = {"gsm8k": 5, "gsm8k_cot_llama": 8, "hendrycks_math": 4, "mmlu": 5, "truthfulqa_mc2": 0,
                            "arc_challenge": 25, "humaneval": 0, "humaneval_plus": 0, "mbpp": 3}
"""What `paper` stands for, with examples per prompt: the academic table of arXiv 2405.07863 under one fixed setting.
The paper does not give its own."""
_FOLDERS = ("gsm8k", "hendrycks_math", "minerva_math", "mmlu", "arc", "truthfulqa")
"""Of the harness, where the tasks lie that can read a user's data."""
_HUB = {("openai/gsm8k", "main"): "gsm8k", ("HuggingFaceH4/MATH-500", "default"): "math500",
        ("allenai/ai2_arc", "ARC-Challenge"): "arc_challenge", ("allenai/ai2_arc", "ARC-Easy"): "arc_easy",
        ("truthfulqa/truthful_qa", "multiple_choice"): "truthfulqa", ("openai/openai_humaneval", None): "humaneval",
        ("evalplus/humanevalplus", None): "humaneval_plus", ("google-research-datasets/mbpp", "full"): "mbpp"}
_HUB_BY_PART = {"cais/mmlu": "mmlu", "EleutherAI/hendrycks_math": "math"}
"""The hub's data sets -> ours; in the second table a data set's name says which part of the benchmark it is."""
_SPLITS = ("training_split", "validation_split", "fewshot_split")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A task that is no group of others.

    Attributes:
      source: its task file. config: what that says, functions unread.
      benchmark, part: whose rows of a user's data it reads; None where it reads none.
      num_fewshot: examples in its prompts; None for what its file says.
    """

    name: str
    source: Path
    config: Mapping[str, Any]
    benchmark: str | None
    part: str | None
    num_fewshot: int | None

    @property
    def runs_code(self) -> bool:
        return bool(self.config.get("unsafe_code"))


@dataclasses.dataclass(frozen=True)
class Choice:
    """The tasks that are asked for.

    Attributes:
      names: as the harness has them, groups included. leaves: what they come to.
      data_dir: of the user's data; None where tasks read the hub's.
      files: benchmark -> split -> file, of the user's data.
    """

    names: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    data_dir: Path | None
    files: Mapping[str, Mapping[str, Path]]
    manager: Any

    def write(self, folder: Path) -> TaskManager:
        """Writes the task files that say where data lies and how many examples to show; with them, all tasks.

        The files can be given to the harness's own command too: `lm_eval --include_path FOLDER`.
        """
        written = [leaf for leaf in self.leaves if leaf.benchmark is not None or leaf.num_fewshot is not None]
        if not written:
            return self.manager
        on_main(lambda: self._write(folder, written))
        return _manager(self.data_dir, [folder])

    def _write(self, folder: Path, leaves: Sequence[Leaf]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for leaf in leaves:
            (folder / f"{leaf.name}.yaml").write_text(self._file(leaf))

    def _file(self, leaf: Leaf) -> str:
        lines = [f"include: {json.dumps(str(leaf.source))}", f"task: {leaf.name}"]
        if leaf.num_fewshot is not None:
            lines.append(f"num_fewshot: {leaf.num_fewshot}")
        if leaf.benchmark is not None:
            where = {"benchmark": leaf.benchmark, "data_dir": str(self.data_dir), "part": leaf.part}
            lines += ["custom_dataset: !function rlhf_jax.evaluation.harness.rows.splits",
                      f"dataset_kwargs: {json.dumps(where)}"]
            lines += [f"{key}: null" for key in _SPLITS if leaf.config.get(key) and not self._has(leaf, key)]
        return "\n".join(lines) + "\n"

    def _has(self, leaf: Leaf, key: str) -> bool:
        """Whether there are rows for what a task's file names under `training_split` and so on."""
        split = leaf.config.get(key)
        return split is not None and (leaf.benchmark is None or split in self.files[leaf.benchmark])

    def check(self, num_fewshot: int | None, allow_code: bool) -> None:
        """Raises ValueError for what cannot be run: code that is not allowed, examples that are not there."""
        for leaf in self.leaves:
            if leaf.runs_code and not leaf.source.is_relative_to(OWN):
                raise ValueError(f"{leaf.name} runs programs in the harness's own process, without limits; of the code "
                                 f"tasks choose {', '.join(sorted(path.stem for path in OWN.glob('*.yaml')))}")
            if leaf.runs_code and not allow_code:
                raise ValueError(f"{leaf.name} runs programs that the model wrote; set allow_code_execution: true if "
                                 "that may be done here (docs/evaluating.md says within which limits), or leave the "
                                 "task out")
            own = leaf.config.get("num_fewshot")
            count = num_fewshot if num_fewshot is not None and own != 0 else (leaf.num_fewshot or own or 0)
            shown = (leaf.config.get("fewshot_config") or {}).get("samples") is not None
            if count and not shown and not any(self._has(leaf, key) for key in _SPLITS):
                raise ValueError(f"{leaf.name} is to show {count} examples, and {self.data_dir} holds no train or "
                                 f"validation rows of {leaf.benchmark} to take them from; add them, or set "
                                 "num_fewshot: 0")


def choose(names: Sequence[str], data_dir: str | Path | None) -> Choice:
    """The tasks of these names: the harness's, `paper`, or task files.

    Raises:
      ValueError: a name is unknown or twice there, or a task does not read the user's data.
      SourceError: a file is missing.
    """
    folder = None if data_dir is None else Path(data_dir).expanduser().absolute()
    if folder is not None and not folder.is_dir():
        raise ValueError(f"data_dir = {str(data_dir)!r} is no folder; give the one that holds gsm8k/, mmlu/ and so on")
    wanted = [task for name in names for task in (PAPER if name == "paper" else [name])]
    if twice := sorted({name for name in wanted if wanted.count(name) > 1}):
        raise ValueError(f"tasks names {', '.join(twice)} twice; name each once (paper is {', '.join(PAPER)})")
    manager = _manager(folder, [])
    shots = PAPER if "paper" in names else {}
    leaves = {leaf.name: leaf for name in wanted for leaf in _leaves(manager, name, shots.get(name), folder)}
    used = sorted({leaf.benchmark for leaf in leaves.values() if leaf.benchmark})
    files = {} if folder is None else {benchmark: find_files(benchmark, folder) for benchmark in used}
    return Choice(tuple(wanted), tuple(leaves.values()), folder, files, manager)


def _manager(data_dir: Path | None, more: Sequence[Path]) -> TaskManager:
    """All tasks of the harness, or, since looking at those takes long, those alone that can read a user's data."""
    root = Path(lm_eval.tasks.__file__).parent
    folders = [] if data_dir is None else [root / name for name in _FOLDERS]
    with quiet():
        return TaskManager(include_defaults=data_dir is None, include_path=[*folders, OWN, *more])


@contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's remarks on what is done here on purpose: tasks replaced, examples set."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _leaves(manager: TaskManager, spec: Any, num_fewshot: int | None, data_dir: Path | None) -> Iterator[Leaf]:
    """The tasks that a name, or a member of a group, comes to."""
    if isinstance(spec, Mapping):
        inner = spec.get("task", ())
        for one in [inner] if isinstance(inner, str) else inner:
            yield from _leaves(manager, one, num_fewshot, data_dir)
        return
    entry = manager.task_index.get(spec)
    if entry is None:
        if Path(spec).suffix == ".yaml" and Path(spec).is_file():
            return  # the user's own: read as it is
        raise ValueError(_unknown(spec, manager, data_dir))
    if entry.yaml_path is None:  # a tag
        members: Any = sorted(entry.tags)
    elif entry.kind.name == "GROUP":
        members = entry.cfg["task"]
    else:
        benchmark, part = _data_of(entry.cfg) if data_dir is not None else (None, None)
        if data_dir is not None and benchmark is None:
            raise ValueError(f"{spec} reads {entry.cfg.get('dataset_path')}, which data_dir cannot replace; leave it "
                             "out, or leave data_dir out for tasks that read the hub's data")
        yield Leaf(spec, entry.yaml_path, entry.cfg, benchmark, part, num_fewshot)
        return
    for member in [members] if isinstance(members, str) else members:
        yield from _leaves(manager, member, num_fewshot, data_dir)


def _data_of(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    path, name = str(config.get("dataset_path")), config.get("dataset_name")
    if path in _HUB_BY_PART:
        return _HUB_BY_PART[path], name
    return _HUB.get((path, name)), "test" if _HUB.get((path, name)) == "mbpp" else None


def _unknown(name: str, manager: TaskManager, data_dir: Path | None) -> str:
    close = difflib.get_close_matches(name, ["paper", *manager.all_tasks], n=1)
    meant = f", did you mean {close[0]}?" if close else ";"
    if data_dir is None:
        return f"lm-evaluation-harness has no task {name!r}{meant} `lm_eval ls tasks` lists them"
    some = sorted(task for task in {*manager.all_groups, *manager.all_subtasks} if not task.startswith("mmlu_"))
    return (f"there is no task {name!r} that reads data_dir{meant} those that do are paper, {', '.join(some)} and the "
            "parts of mmlu; leave data_dir out for tasks that read the hub's data")
