"""Running a parsed command with progress on the terminal."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlhf_jax.cli.terminal import printable
from rlhf_jax.config.benchmark import BenchmarkCommand
from rlhf_jax.config.commands import CompareCommand, ReportCommand
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.config.self_training import SelfTrainingCommand
from rlhf_jax.data.chat import describe
from rlhf_jax.evaluation import Results
from rlhf_jax.models import count_params
from rlhf_jax.parallel import check_shared, initialize, is_main_process, make_mesh, watch_for_preemption
from rlhf_jax.report import compare_runs, headline, write_length_bias, write_markdown, write_report
from rlhf_jax.workflow.chat_benchmarks.run import preview_benchmark, run_benchmark
from rlhf_jax.workflow.context import Context, Tick
from rlhf_jax.workflow.datasets import Preview
from rlhf_jax.workflow.experiment import Experiment
from rlhf_jax.workflow.meshes import resolved
from rlhf_jax.workflow.policies import Outcome, compare, preview_comparison
from rlhf_jax.workflow.products import RESULTS, STATISTICS
from rlhf_jax.workflow.progress import Noted
from rlhf_jax.workflow.results import gather_results, results_so_far
from rlhf_jax.workflow.self_training import preview_self_training, self_train
from rlhf_jax.workflow.stage import Run, write_json_atomic
from rlhf_jax.workflow.trackers import package
from rlhf_jax.workflow.verbs import STAGES

LINE_SECONDS = 20.0
"""Without a terminal, a stage says where it stands this often."""


@contextmanager
def _bars() -> Iterator[tuple[Console, Tick]]:
    """A progress bar for the stage at work, with an estimate of what is left; plain lines without a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield console, _lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"),
               TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not is_main_process()) as progress:
        tasks: dict[str, Any] = {}

        def tick(name: str, done: int, total: int, words: str) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total, words=words)
            progress.update(tasks[name], completed=done, total=total, words=words)
            if done >= total:
                progress.remove_task(tasks.pop(name))

        yield console, tick


def _lines(console: Console) -> Tick:
    last = time.monotonic()

    def tick(name: str, done: int, total: int, words: str) -> None:
        nonlocal last
        if is_main_process() and time.monotonic() - last > LINE_SECONDS:
            console.print(f"  {name}: {done} of {total} {words}")
            last = time.monotonic()

    return tick


def _writable(folder: str) -> Path:
    """The output folder, made now: that nothing can be written there is found out before any work is done."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"output_dir {folder!r} cannot be written to ({error.strerror}); choose another, or mend "
                         "what is in the way") from error
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the output folder until the command ends; a second command into it at the same time is refused.

    The system lets go of it whatever way the process ends. File systems without locks refuse nobody.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another command is at work in {folder}; wait for it, or choose another output_dir"
                                 ) from None
        yield
    finally:
        os.close(handle)


def _check_output(folder: Path) -> None:
    """Raises ValueError where `_writable` would, and makes nothing."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"output_dir {str(folder)!r} cannot be written to ({there} is "
                         f"{'read-only' if there.is_dir() else 'a file'}); choose another")


def _check_trackers(config: Any) -> tuple[str, ...]:
    """The trackers a config names; that a package is missing is said now, not when training begins."""
    trackers: tuple[str, ...] = config.trackers.names if hasattr(config, "trackers") else ()
    for name in trackers:
        package(name)
    return trackers


@contextmanager
def _noted(folder: Path, tick: Tick) -> Iterator[tuple[Tick, Callable[[str], None]]]:
    """A tick, and what is told of a stage that begins; both keep the file that `watch` reads until the command ends."""
    if not is_main_process():
        yield tick, lambda name: None
        return
    noted = Noted(folder, tick)
    try:
        yield noted, noted.begin
    finally:
        noted.end()


def _refreshed(run: Run, title: str, stage: str) -> None:
    """Writes the page of a run that begins a stage; a page that cannot be written does not end the run."""
    if is_main_process():
        try:
            write_report(results_so_far(run, title), run.folder, at_work=stage)
        except OSError as error:
            run.announce(f"report.html cannot be written ({error}); the run goes on")


def _context(run: Run, tick: Tick, trackers: tuple[str, ...]) -> Context:
    config = run.config
    chosen = resolved(getattr(config, "mesh", None), config)
    if chosen.why:
        run.announce(f"mesh: auto -> {chosen.why}")
    return Context(run, make_mesh(chosen.mesh), tick, trackers)


@contextmanager
def at_work(config: Any, *, single: bool = False, title: str | None = None) -> Iterator[Context]:
    """The context of a command that alone writes to its output folder.

    single: it does one stage, whose folder the output folder is. title: of the page that is kept while it goes; None
    where there is none.

    The process joins the others of the run, if there are several; from here on SIGTERM ends it with its state saved.
    """
    initialize()
    watch_for_preemption()
    trackers = _check_trackers(config)
    folder = _writable(config.output_dir)
    check_shared(folder)
    with _bars() as (console, bar), _alone(folder) if is_main_process() else nullcontext(), \
            _noted(folder, bar) as (tick, begins):
        def begin(stage: str) -> None:
            begins(stage)
            if title is not None:
                _refreshed(run, title, stage)

        announce = partial(console.print, soft_wrap=True)  # a line stays one in a log
        run = Run(folder, config, announce=announce if is_main_process() else lambda _: None, single=single,
                  begins=begin)
        run.announce_earlier()
        yield _context(run, tick, trackers)


def stage(verb: str, command: Any) -> None:
    """Does the one stage that a verb asks for, and prints its report."""
    with at_work(command, single=True) as context:
        finished = context.do(verb, STAGES[verb](command, context))
    if is_main_process():
        print(json.dumps({key: value for key, value in finished.report.items() if key != "reliability"}, indent=1))
        if "length_bias" in finished.report:
            write_length_bias(finished.report["length_bias"], finished.folder)
        if (finished.folder / STATISTICS).is_file():
            draw_mix(finished.report, finished.folder)
        done = "already done" if finished.reused else f"{finished.seconds:.1f} s"
        print(f"\n{verb}: {done}, in {finished.folder}")


def draw_mix(report: Mapping[str, Any], folder: Path) -> None:
    """Writes the page of a mix beside it: what `data` counted, and where the rows of each source went."""
    statistics = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))
    if "shared" not in statistics:  # counted by an earlier version, which drew nothing
        return
    funnels = {f"{place}. {source['name']}": {key: value for key, value in source.items() if key != "name"}
               for place, source in enumerate(report["sources"], start=1)}
    results = Results.from_json({"title": f"A mix of {len(funnels)} sources", "policies": [], "funnels": funnels})
    print(f"\nreport: {write_report(results, folder, mix=statistics)}")


def experiment(verb: str, config: ExperimentConfig) -> None:
    """Runs the whole workflow and ends with the page a person opens."""
    del verb
    with at_work(config, title=config.title) as context:
        outcome = Experiment(config, context).run()
        context.run.write_manifest()
    seed = config.evaluation.seed if config.evaluation else 0
    _report(context, outcome, config.title, "gold" if config.gold else None, seed)


def comparison(verb: str, command: CompareCommand) -> None:
    """Compares a policy with a baseline, with the same page."""
    del verb
    title = f"{command.model_name_or_path} against {command.baseline_model}"
    with at_work(command, title=title) as context:
        outcome = compare(command, context)
        context.run.write_manifest()
    _report(context, outcome, title, "gold" if command.gold else None, command.seed)


def benchmark(verb: str, command: BenchmarkCommand) -> None:
    """Does a chat benchmark and prints its figures."""
    with at_work(command) as context:
        found = run_benchmark(command, context)
        context.run.write_manifest()
    if is_main_process():
        print(json.dumps(found, indent=1))
        print(f"\n{verb} {command.name}: in {context.run.folder}")


def self_training(verb: str, command: SelfTrainingCommand) -> None:
    """Trains in rounds, and prints and draws what each came to."""
    with at_work(command, title=(title := f"Self-training from {command.model_name_or_path}")) as context:
        rounds = self_train(command, context)
        context.run.write_manifest()
        run = context.run
    if is_main_process():
        results = results_so_far(run, title)
        write_json_atomic(run.folder / RESULTS, results.to_json())
        print(json.dumps(rounds, indent=1))
        print(f"\n{verb}: in {run.folder}\nreport: {write_report(results, run.folder)}")


def _report(context: Context, outcome: Outcome, title: str, gold: str | None, seed: int) -> None:
    if is_main_process():
        results = gather_results(context.run, outcome, title=title, gold=gold, seed=seed)
        write_json_atomic(context.run.folder / RESULTS, results.to_json())
        _draw(results, context.run.folder)


def report(verb: str, command: ReportCommand) -> None:
    """Writes report.html, figures/ and report.md beside results.json and says the main points; or compares two runs."""
    del verb
    results = _read_results(command.run)
    if command.compare is None:
        with _faults_of(command.run):
            _draw(results, Path(command.run))
        return
    both = results, _read_results(command.compare)
    print(printable(compare_runs((command.run, command.compare), both)), end="")


def _read_results(run: str) -> Results:
    path = Path(run) / RESULTS
    if not path.is_file():
        raise ValueError(f"{run} holds no results.json; it is no finished run. Run `rlhf-jax iterate` to its end")
    with _faults_of(run):
        return Results.from_json(json.loads(path.read_text()))


@contextmanager
def _faults_of(run: str) -> Iterator[None]:
    """Whatever is stumbled over inside is a fault of the run's results.json, which was changed."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{Path(run) / 'results.json'} is not as a run writes it ({type(error).__name__}: {error}); "
                         "give the command of the run again, which writes it anew") from error


def _draw(results: Results, folder: Path) -> None:
    page = write_report(results, folder)
    (folder / "report.md").write_text(write_markdown(results))
    print(printable(write_markdown(results) if results.policies else "\n".join(headline(results))))
    print(f"\nreport: {page}")


def preview(verb: str, command: Any) -> None:
    """Prints the model's size, the data funnel and three rendered examples, trained-on tokens between [ and ].

    Nothing is written to the command's output folder. Ends as the command would if that cannot begin.
    """
    def look(context: Context) -> Preview:
        match command:
            case ExperimentConfig():
                return Experiment(command, context).preview()
            case BenchmarkCommand():
                return preview_benchmark(command, context)
            case SelfTrainingCommand():
                return preview_self_training(command, context)
            case CompareCommand():
                return preview_comparison(command, context)
            case _:
                found: Preview = STAGES[verb](command, context).preview(context)
                return found

    preview_of(command, look)


def preview_of(config: Any, look: Callable[[Context], Preview]) -> None:
    """`preview` of what a config does, as `look` finds it in a context that keeps nothing."""
    _check_trackers(config)
    _check_output(Path(config.output_dir).expanduser())
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), config, announce=lambda _: None)
        found = look(Context(run, make_mesh(resolved(getattr(config, "mesh", None), config).mesh), dry=True))
        if found.checkpoint is not None:
            shape = found.checkpoint.config
            print(f"model: {shape.family}, {count_params(shape):,} parameters\n")
        if found.counts is not None:
            print(printable(f"{found.counts}\n"))
        for group in found.groups[:3]:
            assert found.checkpoint is not None
            print(printable(describe(group, found.checkpoint.tokenizer)), end="\n\n")
