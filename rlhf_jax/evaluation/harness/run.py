"""Runs tasks by lm-evaluation-harness and reads off what they came to."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker

from rlhf_jax.evaluation.harness.choice import Choice, quiet
from rlhf_jax.evaluation.statistics import Estimate, normal_interval
from rlhf_jax.parallel import is_main_process

TASKS, OFFICIAL = "tasks", "lm_eval"
"""Folders: of the task files, and of the files that the harness's own command writes."""


def run_tasks(model: LM, choice: Choice, folder: Path, *, label: str, num_fewshot: int | None = None,
              limit: int | None = None, apply_chat_template: bool = False, allow_code: bool = False) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` returns, without the samples, under the harness's own seeds.

    `folder` gets the task files, and results and samples as the harness's own command writes them.

    Args:
      label: what results call the model.
      num_fewshot: examples in prompts, where a task's file does not fix 0; None for what each task says.
      limit: rows of each task, from the start; None for all.
      allow_code: programs that the model wrote may be run.

    Raises:
      ValueError: a task cannot be run: see `Choice.check`, or a package of its own is missing.
    """
    choice.check(num_fewshot, allow_code)
    official = folder / OFFICIAL
    if is_main_process():
        shutil.rmtree(official, ignore_errors=True)  # of a run that was killed while it wrote
    with quiet():
        tracker = EvaluationTracker(output_path=str(official))
        try:
            found = simple_evaluate(
                model=model, model_args={"pretrained": label}, tasks=list(choice.names), num_fewshot=num_fewshot,
                limit=limit, task_manager=choice.write(folder / TASKS), apply_chat_template=apply_chat_template,
                evaluation_tracker=tracker, confirm_run_unsafe_code=allow_code, torch_random_seed=None)
        except ImportError as error:
            raise ValueError(f"a task needs a package that is not installed: {error}") from error
        assert found is not None
        results: dict[str, Any] = dict(found)
        samples = results.pop("samples")
        if is_main_process():
            _write(tracker, official, results, samples)
    return results


def _write(tracker: EvaluationTracker, folder: Path, results: dict[str, Any], samples: Mapping[str, Any]) -> None:
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
    written = len(list(folder.rglob("results_*.json"))), len(list(folder.rglob("samples_*.jsonl")))
    if written != (1, len(samples)):  # the harness only logs what went wrong
        raise OSError(f"lm-evaluation-harness could not write its results to {folder} ({written[0]} results file and "
                      f"{written[1]} of {len(samples)} sample files are there); free some space and run again")


def estimates(results: Mapping[str, Any]) -> dict[str, Estimate]:
    """"task/metric,filter" -> the number with its standard error, by the harness; intervals are normal."""
    found = {}
    for task, numbers in results["results"].items():
        count = int(numbers.get("sample_len", results["n-samples"].get(task, {}).get("effective", 0)))
        for name, value in numbers.items():
            metric, comma, kind = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = numbers.get(f"{metric}_stderr,{kind}")
            value, error = float(value), float(error) if isinstance(error, int | float) else math.nan
            found[f"{task}/{name}"] = Estimate(value, error, *normal_interval(value, error), count)
    return found
