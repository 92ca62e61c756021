"""`python benchmarks/reproduce.py`: one experiment over several seeds, summarised in one Markdown file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from importlib import resources
from pathlib import Path

from rlhf_jax.cli.main import prepare_environment
from rlhf_jax.cli.parser import parse
from rlhf_jax.cli.run import experiment
from rlhf_jax.config.run import ExperimentConfig, reseeded
from rlhf_jax.evaluation import Results
from rlhf_jax.report import aggregate, write_seeds_markdown

CAVEAT = ("What the control does not separate: the rounds have a learning-rate schedule each where it has one, and end "
          "at another distance from the start (KL above).")


def main() -> None:
    """Runs the seeds that are not done yet and writes the summary from the measured files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="an `iterate` config; the quickstart's if not given")
    parser.add_argument("--seeds", type=int, default=5, help="repetitions; every seed is shifted by 0, 1, ...")
    parser.add_argument("--runs", default="runs/reproduce", help="folder of the runs")
    parser.add_argument("--output", required=True, help="Markdown file to write")
    args = parser.parse_args()
    prepare_environment()
    with resources.as_file(resources.files("rlhf_jax.cli") / "quickstart.yaml") as default:
        config = parse(ExperimentConfig, "iterate", ["--config", args.config or str(default)])
    results = []
    for seed in range(args.seeds):
        folder = Path(args.runs) / f"seed-{seed}"
        experiment("iterate", dataclasses.replace(reseeded(config, seed), output_dir=str(folder)))
        results.append(Results.from_json(json.loads((folder / "results.json").read_text())))
    seconds = [sum(stage.seconds for stage in result.stages) for result in results]
    text = write_seeds_markdown(aggregate(results))
    day = str(results[-1].created)[:10]
    text += (f"\nMeasured on {day}, {args.seeds} seeds, {platform.machine()} CPU; stages took "
             f"{min(seconds):.0f} to {max(seconds):.0f} s per seed. Versions: "
             + ", ".join(f"{name} {version}" for name, version in results[-1].versions.items())
             + f".\n\n{CAVEAT}\n\nReproduce with `make reproduce SEEDS={args.seeds}`.\n")
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
