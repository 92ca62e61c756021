"""`python benchmarks/reward_models`: every kind of reward model, trained and measured, in one Markdown file.

Without --data the embedded world alone; with it graded answers of real models too, and what features and probes cost.
Done again it continues where it was ended, and measures anew only what has changed.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import measures
from costs import costs
from kinds import RATED, ROWS, objectives
from page import page
from settings import Setting, graded, world

import rlhf_jax
from rlhf_jax.cli.main import prepare_environment
from rlhf_jax.data.jsonl import read_jsonl
from rlhf_jax.workflow.products import RECORD
from rlhf_jax.workflow.results import versions
from rlhf_jax.workflow.stages.shards import read_shards

HERE = Path(__file__).parent
PARTS = ["world", "graded", "costs"]
AGAINST = "bradley_terry"
"""What every kind is held against."""


def measured(setting: Setting, kinds: list[str]) -> dict[str, Any]:
    """Trains the kinds in a setting, scores its held-out answers with each, and measures them."""
    scored = []
    for name in kinds:
        scorer, folder = ROWS[name].make(setting), setting.folder / f"scored-{name}"
        rlhf_jax.run("score", dataset_name=setting.held_out, output_dir=folder, name=name, **scorer, **setting.scoring)
        scored.append(read_shards(folder))
    groups = measures.merged(scored)
    found = {name: _of_kind(setting, groups, name) for name in kinds}
    ratings = objectives(setting.folder / RATED) if "ridge" in kinds else []
    return {"title": setting.title, "overall": setting.overall, "truths": setting.truths,
            "day": f"{datetime.date.today()}", "versions": versions(), "prompts": len(groups),
            "answers": sum(len(group.responses) for group in groups), "kinds": found,
            "ratings": {name.removeprefix("data/"): _rating(setting, groups, name) for name in ratings},
            "probes": _probes(setting, kinds)}


def _of_kind(setting: Setting, groups: Any, name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"scored": measures.scored_share(groups, name)}
    for truth in setting.truths:
        found = measures.accuracy(groups, f"data/{truth}", name)
        row[truth] = None if found is None else {**found[0].to_json(), "pairs": found[1]}
        gap = None if name == AGAINST else measures.difference(groups, f"data/{truth}", name, AGAINST)
        row[f"{truth} against"] = None if gap is None else gap.to_json()
    length = measures.follows_length(groups, name)
    return row | {"length": None if length is None else length.to_json()}


def _rating(setting: Setting, groups: Any, name: str) -> dict[str, Any] | None:
    """What ridge makes of a rating: its score where that is the rating, else the number beside it."""
    rating = name.removeprefix("data/")
    found = measures.regressed(groups, name, "ridge" if rating == setting.overall else f"ridge/{rating}")
    return None if found is None else {**vars(found), "r2": found.r2.to_json()}


def _probes(setting: Setting, kinds: list[str]) -> dict[str, Any]:
    """What the probes' own reports say: the gate's accuracy, correlations with verbosity, the tree's importances."""
    return {name: json.loads((setting.folder / name / RECORD).read_text())["report"]
            for name in kinds if name in ("armorm", "tree")}


def main() -> None:
    """Makes what is not there yet and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reward-models"), help="folder of what is made")
    parser.add_argument("--measured", type=Path, default=HERE.parent / "results/reward-models",
                        help="folder of what was measured, a file per part, of which the page is written")
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "docs/results/reward-models.md",
                        help="Markdown file to write")
    parser.add_argument("--kinds", nargs="+", choices=ROWS, default=list(ROWS), help="rows of the table")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS,
                        help="what to measure now; of the others the page has what was measured before")
    parser.add_argument("--world_rows", type=int, default=2000, help="labelled pairs of the embedded world")
    parser.add_argument("--length_taste", type=float, default=1.0, help="of its labels, in log-odds per ten words")
    parser.add_argument("--data", type=Path, help="folder of the graded sets; without it they are left out")
    parser.add_argument("--backbone", type=Path, help="model folder that reward models of graded answers start from")
    parser.add_argument("--prompts", type=int, default=200, help="training prompts of each graded set at most")
    parser.add_argument("--answers", type=int, default=4, help="graded answers of a prompt at most")
    parser.add_argument("--characters", type=int, default=700, help="of a prompt with an answer at most")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000], help="answers whose features are timed")
    args = parser.parse_args()
    if "costs" in args.parts and len(args.sizes) < 2:
        parser.error("--sizes needs two numbers of answers, to show what grows with them")
    if args.data is not None and args.backbone is None:
        parser.error("--data needs --backbone, the model that reward models of graded answers start from")
    prepare_environment()
    if "world" in args.parts:
        setting = world(args.runs / "world", args.world_rows, args.length_taste)
        _keep(args.measured, "world", measured(setting, args.kinds)
              | {"rows": args.world_rows, "half": args.world_rows // 2, "length_taste": args.length_taste})
    if args.data is not None and "graded" in args.parts:
        setting = graded(args.runs / "graded", args.data, args.backbone, args.prompts, args.answers, args.characters)
        rows = list(read_jsonl(setting.rated))
        _keep(args.measured, "graded", measured(setting, args.kinds) | {
            "backbone": args.backbone.name, "train_prompts": len(rows),
            "train_answers": sum(len(row["responses"]) for row in rows)})
    if args.data is not None and "costs" in args.parts:
        _keep(args.measured, "costs", costs(args.runs / "costs", args.data, args.backbone, args.sizes))
    found = {file.stem: json.loads(file.read_text()) for file in sorted(args.measured.glob("*.json"))}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page(found))
    print(f"\n{args.output}")


def _keep(folder: Path, part: str, found: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
