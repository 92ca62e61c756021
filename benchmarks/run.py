"""Side by side: every framework's steps of one task, in turn, in one run; one JSON line per framework.

    python benchmarks/run.py dpo --shape small --torch VENV_WITH_TORCH_AND_TRL/bin/python --output results.jsonl

Each framework is a process of its own (in an environment of its own) that waits while another one works. Steps are
interleaved, so that whatever else the machine does falls on all alike; the first of each are warm-up.

On a machine that others use too, take `--cores 1`: threads that wait for one another suffer unequally from foreign load
(torch's spin), one thread does not, and its processor time is what the clock of an idle machine would show.
"""

import argparse
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from work import SHAPES, parameters

HERE = Path(__file__).parent
WORKERS = {"ours": "ours.py", "torch": "torch_peers.py", "tunix": "tunix_peer.py"}
WITH_TUNIX = ("dpo", "generate")
QUIET = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false",
         "TRANSFORMERS_VERBOSITY": "error", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
"""The last: on an accelerator the workers share its memory, of which JAX would take three quarters."""


class Worker:
    """A framework at work: started, then told to take one step at a time."""

    def __init__(self, name, python, command, cores):
        self.name, self.one_core = name, cores == 1
        self.process = subprocess.Popen(
            [python, str(HERE / WORKERS[name]), *command], env={**os.environ, **QUIET}, text=True, cwd=HERE,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=lambda: self._prepare(cores))
        self.notes, self.steps = {}, []
        self.about = self._read("framework")

    @staticmethod
    def _prepare(cores):
        """Before the worker runs: its cores; and who stops the driver stops it alone, so that its lines are written."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _read(self, key):
        """The next message that has `key`; notes on the way are kept."""
        for line in self.process.stdout:
            if line.startswith("@"):
                message = json.loads(line[1:])
                self.notes |= message.get("note", {})
                if key in message:
                    return message
        raise SystemExit(f"the worker {self.name!r} ended with status {self.process.wait()}; its messages are above")

    def step(self):
        before, start = cpu_seconds(self.process.pid), time.perf_counter()
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        step = self._read("seconds")
        passed = time.perf_counter() - start
        others, own = (b - a for a, b in zip(before, cpu_seconds(self.process.pid), strict=True))
        if self.one_core:  # a step may leave part of its time out: what counts has its share of the processor time
            parts = {name: own / passed * seconds for name, seconds in step["parts"].items()}
            step |= {"seconds": own / passed * step["seconds"], "parts": parts}
        self.steps.append({**step, "others": max(others, 0.0) / passed})

    def end(self):
        self.process.stdin.close()
        last = self._read("peak_rss")
        self.process.wait()
        return last


def cpu_seconds(pid):
    """CPU seconds used so far by all processes but `pid`, and by `pid`."""
    whole = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    own = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    tick = os.sysconf("SC_CLK_TCK")
    return (sum(whole) - whole[3] - whole[4] - own) / tick, own / tick


def machine(cores):
    about = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in about if line.startswith("model name")), platform.processor())
    return {"cpu": cpu, "cores": cores}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["dpo", "rm", "sft", "generate", "score", "round"])
    parser.add_argument("--shape", required=True)
    parser.add_argument("--steps", type=int, default=12, help="warm-up included")
    parser.add_argument("--warm_up", type=int, default=2, help="first steps that are not counted")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="that a worker may use; 1: processor time")
    parser.add_argument("--torch", help="python with torch and trl")
    parser.add_argument("--tunix", help="python with google-tunix")
    parser.add_argument("--checkpoints", type=Path, default=HERE.parent / "runs" / "bench")
    parser.add_argument("--output", type=Path, required=True, help="file the lines are added to")
    args, rest = parser.parse_known_args()
    subprocess.run([sys.executable, str(HERE / "make_checkpoint.py"), "--shape", args.shape, "--output",
                    str(args.checkpoints)], check=True)
    pythons = {"ours": sys.executable, "torch": args.torch, "tunix": args.tunix if args.task in WITH_TUNIX else None}
    command = [args.task, "--shape", args.shape, "--checkpoints", str(args.checkpoints.resolve()), "--steps",
               str(args.steps), *rest]
    workers = [Worker(name, python, command, args.cores) for name, python in pythons.items() if python]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"stopped; {args.output} has the steps so far"))
    done = 0
    try:
        for done in range(1, args.steps + 1):
            for worker in workers[:: -1 if done % 2 else 1]:
                worker.step()
            print(f"step {done} of {args.steps}: " + ", ".join(
                f"{w.about['framework']} {w.steps[-1]['seconds']:.2f} s" for w in workers), file=sys.stderr)
    finally:  # an accelerator's time may end before the run does
        if min(len(worker.steps) for worker in workers) > args.warm_up:
            with args.output.open("a") as out:
                for worker in workers:
                    out.write(json.dumps(line(worker, args, rest)) + "\n")


def line(worker, args, rest):
    """Medians over the steps after the warm-up."""
    kept = worker.steps[args.warm_up :]
    compiled = sum(step.get("compiled", 0) > 0 for step in kept)
    if compiled:
        print(f"{worker.about['framework']} compiled in {compiled} of the {len(kept)} steps that count: its time is "
              "not that of a step", file=sys.stderr)
    names = kept[0]["parts"]
    return {
        "date": datetime.date.today().isoformat(), "task": args.task, "shape": args.shape,
        "framework": worker.about["framework"], "versions": worker.about["versions"],
        "options": rest, "steps": len(kept), "compiled": compiled, "warm_up": args.warm_up,
        "parameters": parameters(args.shape), "vocabulary": SHAPES[args.shape]["vocab_size"],
        "clock": "processor" if args.cores == 1 else "wall",
        "others": round(statistics.median(s["others"] for s in kept), 2),
        "seconds": statistics.median(s["seconds"] for s in kept),
        "fastest": min(s["seconds"] for s in kept), "slowest": max(s["seconds"] for s in kept),
        "first": worker.steps[0]["seconds"],
        "parts": {name: statistics.median(s["parts"][name] for s in kept) for name in names},
        "tokens": sum(s["tokens"] for s in kept) / len(kept),
        "tokens_per_second": statistics.median(s["tokens"] / s["seconds"] for s in kept),
        **worker.notes, **worker.end(), "machine": machine(args.cores),
    }


if __name__ == "__main__":
    main()
