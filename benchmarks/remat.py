"""What recomputation and the logits chunk cost and save: one JSON line for each pair of them.

    python benchmarks/remat.py --shape small --output benchmarks/results/mine.jsonl

A DPO step of real lengths as ours.py runs it, with gradient checkpointing (`remat`) and with so many positions' logits
at a time. Memory is what the compiled step keeps beside its arguments (XLA's own account), so it does not depend on the
machine's load; seconds are medians, the settings taking steps in turn (`--cores 1`: processor time, as in run.py).
"""

import argparse
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
CHUNKS = (64, 256, 1024)


def settings(options):
    """Every (remat, logits_chunk), each with its compiled step and one batch; imports read the command line."""
    sys.argv = ["ours.py", "dpo", "--shape", options.shape, "--checkpoints", str(options.checkpoints), "--steps", "2"]
    import ours

    from rlhf_jax.models import REMAT_POLICIES

    data = ours.work.pairs(options.shape, ours.args.batch, ours.args.longest)
    groups = [ours.group(str(i), prompt, responses) for i, (prompt, *responses) in enumerate(data)]
    row = ours.default_row_length(groups)
    for remat, chunk in itertools.product(REMAT_POLICIES, CHUNKS):
        trainer = ours.Trainer("dpo", row, len(groups), remat, chunk)
        plan = trainer.plan(groups, len(groups), trainer.reference(groups))
        yield remat, chunk, trainer, plan.batch(0)


def main():
    from run import machine
    from work import versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--checkpoints", type=Path, default=HERE.parent / "runs" / "bench")
    parser.add_argument("--output", type=Path, required=True, help="file the lines are added to")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    clock = time.process_time if options.cores == 1 else time.perf_counter
    subprocess.run([sys.executable, str(HERE / "make_checkpoint.py"), "--shape", options.shape, "--output",
                    str(options.checkpoints)], check=True)
    found = [(*key, trainer, batch, trainer.compiled(*batch)) for *key, trainer, batch in settings(options)]
    seconds = {(remat, chunk): [] for remat, chunk, *_ in found}
    for _ in range(options.steps + 1):
        for remat, chunk, trainer, batch, compiled in found:
            start = clock()
            trainer.update(*batch, compiled)
            seconds[remat, chunk].append(clock() - start)
    with options.output.open("a") as out:
        for remat, chunk, *_, compiled in found:
            out.write(json.dumps({
                "date": datetime.date.today().isoformat(), "task": "remat", "shape": options.shape, "remat": remat,
                "logits_chunk": chunk, "steps": options.steps, "seconds": statistics.median(seconds[remat, chunk][1:]),
                "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
                "versions": versions("rlhf_jax", "jax", "jaxlib"), "machine": machine(options.cores)}) + "\n")


if __name__ == "__main__":
    main()
