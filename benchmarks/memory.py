"""What a host holds while rows are read, shards are closed, paired and trained on: peak memory by number of rows.

    python benchmarks/memory.py --rows 10000 100000 1000000 --output mine.jsonl
    python benchmarks/memory.py --table mine.jsonl

No model runs: each path is the code of its stages around the model, in a process of its own, over made-up rows of 8
answers with 64 tokens each, or of pairs. `held` keeps the same rows in a list, what a path would hold if it did
not stream; it is measured for as many rows as `--held` says. Megabytes are the process's peak above what it had when
everything was imported and done once. Shards are links to one file, so that many rows need little disk.
"""

import argparse
import contextlib
import datetime
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

SHARD, PROMPT, ANSWER, ANSWERS = 1000, 64, 64, 8
PATHS = ("read", "mix", "generate", "score", "pairs", "features", "train")
ABOUT = {
    "read": "rows of text parsed, checked for repeated prompts and ids, rendered",
    "mix": "`data`: rows compared, near duplicates left out, ordered, split, described, written",
    "generate": "the close of `generate`: lengths over all shards",
    "score": "the close of `score`: scores over all shards",
    "pairs": "`pairs`: scored shards in, pairs.jsonl out",
    "features": "rendered groups in, feature shards of width 64 out, and their close",
    "train": "`dpo` around the model: pairs read, the plan made, every batch of an epoch packed",
}


def groups(count, answers):
    """Made-up groups with ids, log-probs and scores."""
    import numpy as np

    from rlhf_jax.data.groups import PromptGroup, Response

    rng = np.random.default_rng(0)
    for number in range(count):
        responses = tuple(Response(rng.integers(0, 128_000, ANSWER, np.int32), np.ones(ANSWER, bool), "word " * 50,
                                   "stop", rng.normal(size=ANSWER).astype(np.float32), {"proxy": float(rng.normal())})
                          for _ in range(answers))
        pairs = ((0, 1),) if answers == 2 else ()
        yield PromptGroup(str(number), rng.integers(0, 128_000, PROMPT, np.int32), responses, "word " * 50, pairs)


def make(folder, path, rows):
    """The input of a path."""
    from rlhf_jax.data.jsonl import write_groups
    from rlhf_jax.workflow.stages.shards import shard_name

    if path in ("read", "mix", "features"):
        draws = random.Random(0)
        with (folder / "rows.jsonl").open("w") as stream:
            for number in range(rows):
                prompt = " ".join(map("{:04d}".format, draws.choices(range(10_000), k=50)))
                stream.write(json.dumps({"prompt": f"{number} {prompt}", "chosen": "word " * 50 + "a",
                                         "rejected": "word " * 50 + "b"}) + "\n")
        return
    write_groups(folder / "one.jsonl", groups(min(rows, SHARD), 2 if path == "train" else ANSWERS))
    for number in range(-(-rows // SHARD)):
        (folder / shard_name(number)).symlink_to("one.jsonl")


class Renderer:
    """Bytes as ids, so that no tokenizer's memory is measured."""

    overlong = "drop"

    def render_noted(self, example):
        import numpy as np

        from rlhf_jax.data.groups import PromptGroup, Response

        def ids(text):
            return np.frombuffer(text[:ANSWER].encode(), np.uint8).astype(np.int32)

        responses = tuple(Response(ids(text), np.ones(len(ids(text)), bool), text) for text in example.responses)
        return PromptGroup(example.prompt_id, ids(example.prompt), responses, example.prompt, example.pairs), []


def rendered(folder):
    from rlhf_jax.data.load import load_examples
    from rlhf_jax.data.render_all import render_all

    examples, funnel = load_examples(str(folder / "rows.jsonl"), "preference", drop_duplicate_prompts=True)
    return render_all(examples, Renderer(), funnel)


def mix(folder):
    import rlhf_jax

    report = rlhf_jax.run("data", sources=[{"name": str(folder / "rows.jsonl")}], near_duplicates=0.8,
                          output_dir=str(folder / "mix"))
    return report["rows"]["train"]


def examples(folder):
    from rlhf_jax.data.load import load_examples

    return load_examples(str(folder / "rows.jsonl"), "preference")[0]


def close(folder, measure):
    from rlhf_jax.workflow.stages.shards import scan_shards

    return measure(scan_shards(folder))["prompts"]


def pair(folder):
    from rlhf_jax.config.pairs import PairOptions
    from rlhf_jax.workflow.stages.pairs import PairsStage
    from rlhf_jax.workflow.stages.shards import ShardFolder

    (folder / "out").mkdir()
    stage = PairsStage(source=ShardFolder(folder, "key"), options=PairOptions())
    return stage.run(folder / "out", None)["funnel"]["read"]


def store_features(folder):
    import numpy as np

    from rlhf_jax.data.features import write_features
    from rlhf_jax.workflow.stages.features import count_features
    from rlhf_jax.workflow.stages.shards import shard_name

    found, states = rendered(folder), np.zeros((2, 64), np.float32)
    for number, start in enumerate(range(0, len(found), SHARD)):
        some = list(found[start : start + SHARD])
        write_features(folder / shard_name(number), some, [[states] * len(group.responses) for group in some],
                       np.float32)
    return count_features(folder)["prompts"]


def pack_all(folder):
    import numpy as np

    from rlhf_jax.data.loader import BatchPlan
    from rlhf_jax.data.on_disk import OnDisk
    from rlhf_jax.workflow.stages.shards import scan_shards

    plan = BatchPlan(OnDisk(scan_shards(folder)), batch_size=128, row_length=512, micro_rows=64)
    tokens = sum(int(np.count_nonzero(batch.group_ids)) for _, batch, _ in plan.iterate())
    assert tokens == plan.sizes.tokens.sum()
    return len(plan.groups)


def run(path, folder, held):
    """Does a path; what it held at most, and how long it took."""
    from rlhf_jax.workflow.stages.sample import generation_metrics
    from rlhf_jax.workflow.stages.score import score_metrics
    from rlhf_jax.workflow.stages.shards import scan_shards

    scored = partial(score_metrics, name="proxy")
    works = {"read": lambda folder: len(rendered(folder)), "mix": mix,
             "generate": partial(close, measure=generation_metrics), "score": partial(close, measure=scored),
             "pairs": pair, "features": store_features, "train": pack_all}
    all_at_once = {"read": rendered, "mix": examples, "features": rendered}.get(path, scan_shards)
    with tempfile.TemporaryDirectory() as name:  # everything is imported
        make(small := Path(name), path, 100)
        works[path](small)
    before, start = peak(), time.perf_counter()
    count = len(list(all_at_once(folder))) if held else works[path](folder)
    return SimpleNamespace(rows=count, megabytes=peak() - before, seconds=time.perf_counter() - start)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10)


def measured(path, rows, held):
    """One line, from a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), path, rows)
        command = [sys.executable, __file__, "--path", path, "--folder", name, *(["--keep"] if held else [])]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(out.splitlines()[-1])
    assert found["rows"] == rows, found
    return {"date": datetime.date.today().isoformat(), "path": path, "held": held, **found}


def table(lines):
    """Markdown: peak megabytes by path and number of rows; in brackets of the same rows in a list."""
    lines = list(lines)
    found = {(line["path"], line["rows"], line["held"]): line["megabytes"] for line in lines}
    counts = sorted({line["rows"] for line in lines})
    out = [f"| path | {' | '.join(f'{count:,} rows' for count in counts)} |", f"|---|{'---:|' * len(counts)}"]
    for path in PATHS:
        cells = []
        for count in counts:
            held = f" ({found[path, count, True]:,.0f})" if (path, count, True) in found else ""
            cells.append(f"{found[path, count, False]:,.0f}{held}" if (path, count, False) in found else "")
        out.append(f"| {ABOUT[path]} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--held", type=int, default=100_000, help="up to so many rows are measured in a list, too")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS)
    parser.add_argument("--output", help="file that lines are added to")
    parser.add_argument("--table", help="file of lines, of which the table is printed; nothing is measured")
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.path:
        with contextlib.redirect_stdout(sys.stderr):
            found = run(args.path, Path(args.folder), args.keep)
        print(json.dumps(vars(found)))
    elif args.table:
        print(table(map(json.loads, Path(args.table).read_text().splitlines())), end="")
    else:
        for count in args.rows:
            for name in args.paths:
                for kept in (False, True) if count <= args.held else (False,):
                    line = json.dumps(measured(name, count, kept))
                    print(line, flush=True)
                    if args.output:
                        with Path(args.output).open("a") as stream:
                            stream.write(line + "\n")
