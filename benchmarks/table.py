"""Measured lines (JSON, from run.py and remat.py) as the tables of docs/benchmarks.md; no number is typed by hand.

    python benchmarks/table.py benchmarks/results/*.jsonl > docs/benchmarks.md
"""

import json
import sys
import textwrap
from collections import defaultdict
from pathlib import Path

TITLES = {"dpo": "DPO step", "rm": "reward-model step", "sft": "SFT step", "generate": "sampling, n = 8",
          "score": "scoring, n = 8", "round": "online round, n = 8"}
SPEED = {("dpo", "TRL"): 2.0, ("dpo", "Tunix"): 2.0, ("rm", "TRL"): 1.5, ("generate", "transformers generate"): 3.0,
         ("score", "transformers, one at a time"): 4.0}
"""How many times as fast as a peer we aim to be on two CPU cores."""
LEAST_MEMORY = 1 / 3
"""Share of TRL's memory, weights and optimizer apart, that a DPO step under a large vocabulary aims to need."""
LARGE_VOCABULARY = "wide"

HEAD = """# Benchmarks

Side by side in one run, steps interleaved, medians; how, and of what: [benchmarks/README.md](../benchmarks/README.md).
Tokens are useful tokens: each prompt once, each response once; of sampling and of a round, the sampled ones. Memory is
the peak of the process (on a CPU) or of the device. On one core seconds are the worker's processor time, which others
that use the machine lengthen little; on several they are the clock's. "Load" is how many cores others kept busy.
Machines of one kind differ from day to day, and not by the same factor for all: where a work stands twice, take the
lower ratio.
"""
COLUMNS = """| work | framework | seconds per step | tokens/s | ours is | target | peak memory | steps | {last} |
|---|---|---:|---:|---:|---:|---:|---:|---:|"""
CEILINGS = """
Useful share: what a step has to compute (forward and backward over each prompt once and each response once, for DPO
also the reference's forward; no padding, nothing recomputed) against the {flops:.0f} TFLOP/s of a large bfloat16
product on this card; of sampling, what it has to read (all weights for each token if no lane is ever idle, what a lane
has written, each prompt once for its n lanes) against the {bandwidth:.2f} TB/s of a large copy. Both were measured by
benchmarks/ceilings.py. Options: {options}."""
MEMORY = """### Memory of a DPO step under a vocabulary of {vocabulary:,}

{options}. Beyond is the peak of the whole process, imports
included, less twelve bytes per parameter (float32 weights and Adam's two moments; {parameters:,} parameters).
Gradients, the reference and logits are in it.

| framework | peak | beyond | ours needs | target |
|---|---:|---:|---:|---:|"""
REMAT = """### Recomputation and logits chunk, `{shape}`

Seconds of a DPO step (median of {steps}) and bytes that the compiled step keeps in addition to its arguments.

| remat | logits_chunk | seconds | temporary memory |
|---|---:|---:|---:|"""


def main(paths):
    # (shape, machine and day, task) -> framework -> line; the last line of a kind counts
    runs, remat = defaultdict(dict), {}
    ceilings, products = {}, {}
    for path in paths:
        for text in Path(path).read_text().splitlines():
            line = json.loads(text)
            machine = f"{runs_on(line) or cores_of(line['machine'])}, {line['date']}"
            if line["task"] == "ceilings":
                ceilings[machine] = line
            elif line["task"] == "products":
                products[machine] = line
            elif line["task"] == "remat":
                remat[machine, line["shape"], line["remat"], line["logits_chunk"]] = line
            else:
                runs[line["shape"], machine, line["task"]][line["framework"]] = line
    print(HEAD)
    for shape, machine in dict.fromkeys((shape, machine) for shape, machine, _ in runs):
        print(f"## `{shape}` on {machine}\n")
        found = {task: runs[shape, machine, task] for task in TITLES if (shape, machine, task) in runs}
        if shape == LARGE_VOCABULARY:
            memory_table(found["dpo"])
        else:
            limits = ceilings.get(machine)
            print(COLUMNS.format(last="load" if limits is None else "useful share"))
            for task, lines in found.items():
                for framework, line in lines.items():
                    last = line.get("others", "") if limits is None else useful(line, lines["rlhf_jax"], limits)
                    print(row(task, framework, line, lines["rlhf_jax"], last))
            if limits is not None:
                about(limits, [lines["rlhf_jax"] for lines in found.values()])
            if machine in products:
                multiplied(products[machine])
        measured([line for lines in found.values() for line in lines.values()])
        remat_table([line for (where, what, *_), line in remat.items() if (where, what) == (machine, shape)])


def useful(line, ours, limits):
    """Share of a ceiling that the work of a step makes up, whoever does it; ours says how much work it is."""
    for work, ceiling in (("flops", "flops_per_second"), ("bytes", "bytes_per_second")):
        if work in ours:
            return f"{ours[work] / line['seconds'] / limits[ceiling]:.0%}"
    return ""


def about(limits, lines):
    options = "; ".join(f"{TITLES[line['task']]} `{' '.join(line['options'])}`" for line in lines)
    words = CEILINGS.format(flops=limits["flops_per_second"] / 1e12, bandwidth=limits["bytes_per_second"] / 1e12,
                            options=options)
    print("\n" + textwrap.fill(" ".join(words.split()), 120, break_on_hyphens=False))


def multiplied(line):
    """What both frameworks rest on."""
    sizes = " x ".join(f"{size:,}" for size in line["sizes"])
    rates = " and ".join(f"{rate / 1e9:.0f} GFLOP/s by {name}" for name, rate in line["flops_per_second"].items())
    print("\n" + textwrap.fill(f"A dense product ({sizes}, benchmarks/products.py) runs at {rates}.", 120))


def row(task, framework, line, ours, last):
    speed = ours["tokens_per_second"] / line["tokens_per_second"]
    ratio = "" if line is ours else f"{speed:.2f} x as fast, {memory(ours) / memory(line):.2f} x the memory"
    goal = SPEED.get((task, framework))
    target = "" if goal is None else f"{goal:g} x: " + (
        "met" if speed >= goal else f"missed by {100 * (1 - speed / goal):.0f} %")
    parts = ", ".join(f"{seconds:.2f} {name}" for name, seconds in line["parts"].items() if seconds > 0.01)
    split = f" ({parts})" if len(line["parts"]) > 1 and "," in parts else ""
    compiled = f" ({line['compiled']} compiled)" if line.get("compiled") else ""
    cells = (TITLES[task], framework, f"{line['seconds']:.2f}{split}", f"{line['tokens_per_second']:,.0f}", ratio,
             target, f"{memory(line) / 1e9:.2f} GB", f"{line['steps']}{compiled}", last)
    return "| " + " | ".join(map(str, cells)) + " |"


def memory_table(lines):
    ours = lines["rlhf_jax"]
    print(MEMORY.format(vocabulary=ours["vocabulary"], parameters=ours["parameters"],
                        options="`" + " ".join(ours["options"]) + "`"))
    for framework, line in lines.items():
        share = beyond(ours) / beyond(line)
        ratio = "" if line is ours else f"{share:.2f} x"
        verdict = "met" if share <= LEAST_MEMORY else f"missed by {100 * (share / LEAST_MEMORY - 1):.0f} %"
        target = "" if framework != "TRL" else f"{LEAST_MEMORY:.2f} x: {verdict}"
        print(f"| {framework} | {memory(line) / 1e9:.2f} GB | {beyond(line) / 1e9:.2f} GB | {ratio} | {target} |")


def remat_table(lines):
    if lines:
        print(REMAT.format(shape=lines[0]["shape"], steps=lines[0]["steps"]))
    for line in lines:
        print(f"| {line['remat']} | {line['logits_chunk']} | {line['seconds']:.2f} "
              f"| {line['temp_bytes'] / 1e6:,.0f} MB |")
    if lines:
        print()


def measured(lines):
    versions = {name: value for line in lines for name, value in line["versions"].items()}
    print("\n" + textwrap.fill(f"Measured on {max(line['date'] for line in lines)}: "
                               + ", ".join(f"{name} {value}" for name, value in versions.items()) + ".", 120) + "\n")


def cores_of(machine):
    return f"{machine['cpu']}, " + ("one core" if machine["cores"] == 1 else f"{machine['cores']} cores")


def runs_on(line):
    """The accelerator's name, None on a CPU."""
    device = line["versions"].get("device")
    return None if device in (None, "cpu") else device


def memory(line):
    return line.get("peak_device", line["peak_rss"])


def beyond(line):
    return memory(line) - 12 * line["parameters"]


if __name__ == "__main__":
    main(sys.argv[1:])
