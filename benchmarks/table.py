"""Measured lines (JSON, from run.py) as the tables of docs/benchmarks.md; no number is typed by hand.

    python benchmarks/table.py benchmarks/results/*.jsonl > docs/benchmarks.md
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

TITLES = {"dpo": "DPO step", "rm": "reward-model step", "sft": "SFT step", "generate": "sampling, n = 8",
          "score": "scoring, n = 8"}


HEAD = """# Benchmarks

Side by side in one run, steps interleaved, medians; how, and of what: [benchmarks/README.md](../benchmarks/README.md).
Tokens are useful tokens: each prompt once, each response once. Memory is the peak of the process (on a
CPU) or of the device.
"""
COLUMNS = """| work | framework | seconds a step | tokens/s | ours is | peak memory | steps |
|---|---|---:|---:|---:|---:|---:|"""


def main(paths):
    runs = defaultdict(dict)  # (shape, machine, task) -> framework -> line; the last line of a kind counts
    for path in paths:
        for text in Path(path).read_text().splitlines():
            line = json.loads(text)
            machine = runs_on(line) or f"{line['machine']['cpu']}, {line['machine']['cores']} cores"
            runs[line["shape"], machine, line["task"]][line["framework"]] = line
    print(HEAD)
    for shape, machine in dict.fromkeys((shape, machine) for shape, machine, _ in runs):
        print(f"## `{shape}` on {machine}\n\n{COLUMNS}")
        versions = {}
        for task, title in TITLES.items():
            lines = runs.get((shape, machine, task), {})
            for framework, line in lines.items():
                print(row(title, framework, line, lines["rlhf_jax"]))
                versions |= line["versions"]
                date = line["date"]
        print(f"\nMeasured on {date}: " + ", ".join(f"{name} {value}" for name, value in versions.items()) + ".\n")


def row(title, framework, line, ours):
    ratio = "" if line is ours else (f"{ours['tokens_per_second'] / line['tokens_per_second']:.2f} x as fast, "
                                     f"{memory(ours) / memory(line):.2f} x the memory")
    reference = line["parts"].get("reference", 0)
    split = f" ({reference:.2f} of them the reference)" if reference > 0.01 else ""
    return (f"| {title} | {framework} | {line['seconds']:.2f}{split} | {line['tokens_per_second']:,.0f} | {ratio} "
            f"| {memory(line) / 1e9:.2f} GB | {line['steps']} |")


def runs_on(line):
    """The accelerator's name, None on a CPU."""
    device = line["versions"].get("device")
    return None if device in (None, "cpu") else device


def memory(line):
    return line.get("peak_device", line["peak_rss"])


if __name__ == "__main__":
    main(sys.argv[1:])
