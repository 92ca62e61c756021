"""Compiles the plans of docs/plans/ and writes docs/scale.md from them.

    python docs/scale.py --compile          # what is missing in docs/plans, one after another, then the page
    python docs/scale.py                    # the page alone

Every plan is one `rlhf-jax plan` in a process of its own, since a process can pretend to be one accelerator only.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from rlhf_jax.plan.report import (
    Report,
    gib,
    markdown,
    markdown_table,
    mesh_words,
    read_json,
    seconds,
    useful_share,
    write_json,
)

_LLAMA = "--config configs/llama3_8b"
_SLOTS = {"v5p-16": 128, "v6e-16": 64, "v5e-64": 32, "8xH100": 192, "8xH200": 192, "4x8xH100": 192}
_SHARE = 0.2


def _paged(name: str, slots: int, share: float = _SHARE) -> str:
    return f"--accelerator {name} --sampling.slots {slots} --sampling.cache_share {share}"


_PAGED = {name: _paged(name, slots) for name, slots in _SLOTS.items()}
"""Responses of 350 tokens, of the 2,048 that lanes may write."""
_ONE = "--dpo.micro_rows 1 --dpo.remat full"
"""The same for every number of chips, to show how one step divides; and in plans older than `auto`."""
_SCALING = {8: "v5p-16", 16: "v5p-32", 32: "v5p-64", 64: "v5p-128", 128: "v5p-256", 256: "v5p-512"}
_STRONG = f"{_LLAMA}/iterate.yaml --stages dpo --dpo.row_length 2048 {_ONE} --tries 0 " \
          "--assume.prompt_tokens 248 --assume.response_tokens 900"

_HALVES = "scaling-064-data"
"""64 chips as two halves that each hold the whole state."""

PLANS = {
    "llama3_8b-v5p-16":
        f"--config configs/mesh/v5p-16.yaml {_LLAMA}/iterate.yaml {_PAGED['v5p-16']} --scorer.dtype float32",
    "llama3_8b-v6e-16": f"--config configs/mesh/v6e-16.yaml {_LLAMA}/iterate.yaml {_PAGED['v6e-16']}",
    "llama3_8b-v5e-64": f"--config configs/mesh/v5e-64.yaml {_LLAMA}/iterate.yaml {_PAGED['v5e-64']}",
    "llama3_8b-v6e-16-int8": f"--config configs/mesh/v6e-16.yaml {_LLAMA}/iterate.yaml {_PAGED['v6e-16']} "
                             "--sampling.weights_dtype int8 --stages decode",
    "llama3_8b-v5e-64-int8": f"--config configs/mesh/v5e-64.yaml {_LLAMA}/iterate.yaml {_PAGED['v5e-64']} "
                             "--sampling.weights_dtype int8 --stages decode",
    "llama3_8b-8xH100": f"--config configs/mesh/8xH100.yaml {_LLAMA}/iterate.yaml {_PAGED['8xH100']}",
    "llama3_8b-8xH200": f"--config configs/mesh/8xH100.yaml {_LLAMA}/iterate.yaml {_PAGED['8xH200']}",
    "llama3_8b-4x8xH100": f"--config configs/mesh/4x8xH100.yaml {_LLAMA}/iterate.yaml {_PAGED['4x8xH100']}",
    "llama3_8b-sft": f"{_LLAMA}/sft.yaml --verb sft --accelerator v5p-16 --examples 500000",
    "llama3_8b-reward": f"{_LLAMA}/reward.yaml --accelerator v5p-16 --examples 700000",
    "llama3_8b-pairwise": f"{_LLAMA}/pairwise.yaml --accelerator v5p-16 --examples 700000",
    "gemma2_9b-v6e-16":
        f"--config configs/mesh/v6e-16.yaml --config configs/gemma2_9b/iterate.yaml {_paged('v6e-16', 24)}",
    "qwen3_8b-v5e-64":
        f"--config configs/mesh/v5e-64.yaml --config configs/qwen3_8b/iterate.yaml {_paged('v5e-64', 48, 0.15)}",
    "llama3_70b-v5p-128":
        f"--config configs/mesh/v5p-128.yaml --config configs/llama3_70b/iterate.yaml {_paged('v5p-128', 64)} {_ONE}",
    **{f"scaling-{chips:03}": f"{_STRONG} --accelerator {name} --mesh auto" for chips, name in _SCALING.items()},
    _HALVES: f"{_STRONG} --accelerator v5p-128 --mesh.data 2",
}
"""Name of a file in docs/plans -> arguments of `rlhf-jax plan`."""

_TITLES = {
    "llama3_8b-v5p-16": "Llama-3-8B, the paper's loop, on 8 v5p chips",
    "llama3_8b-v6e-16": "Llama-3-8B, the paper's loop, on 16 v6e chips",
    "llama3_8b-v5e-64": "Llama-3-8B, the paper's loop, on 64 v5e chips",
    "llama3_8b-v6e-16-int8": "Llama-3-8B on 16 v6e chips, decoding with weights in eight bits",
    "llama3_8b-v5e-64-int8": "Llama-3-8B on 64 v5e chips, decoding with weights in eight bits",
    "llama3_8b-8xH100": "Llama-3-8B, the paper's loop, on one host of H100",
    "llama3_8b-8xH200": "Llama-3-8B, the paper's loop, on one host of H200",
    "llama3_8b-4x8xH100": "Llama-3-8B, the paper's loop, on four hosts of H100",
    "llama3_8b-sft": "Llama-3-8B, supervised fine-tuning",
    "llama3_8b-reward": "Llama-3-8B, Bradley-Terry reward model",
    "llama3_8b-pairwise": "Llama-3-8B, pairwise preference model",
    "gemma2_9b-v6e-16": "Gemma-2-9B, the loop, on 16 v6e chips",
    "qwen3_8b-v5e-64": "Qwen3-8B, the loop, on 64 v5e chips",
    "llama3_70b-v5p-128": "Llama-3-70B, the loop, on 64 v5p chips",
}

_HEAD = """# Scale

What the programs of the recipes need and how long they take on accelerators that were **not** there: `rlhf-jax plan`
compiles the run's own programs for a named slice, on a CPU. TPU programs come from the TPU compiler itself, which
refuses what does not fit its chip (`pip install "rlhf_jax[tpu]"`); those for H100 and H200 from XLA's compiler for GPUs
(`pip install "rlhf_jax[plan-gpu]"`: jax's CUDA plugin and ptxas, no driver). Where an accelerator's compiler is not
installed, the CPU's stands in over as many virtual devices, and the plan says so. This page is written from
`docs/plans/*.json` by

    python docs/scale.py --compile

**The compiler's** are all sizes, what is received, and the kernels. **Estimates** are the times and the hours: a
roofline at the vendor's peak, from formulas for arithmetic and memory traffic and from the compiled program for links.
XLA tunes nothing without a GPU, so on a card the matrix products may be other kernels; their workspaces and the buffers
of NCCL are in no size here.

On a card the sizes were right where they could be compared: the DPO step of the `1b` shape on one H100 (batch of 64
pairs, rows of 2,048 tokens, no recomputation; [log](../benchmarks/results/gpu-2026-11-26.log)) took 55.2 GB with
micro-batches of four rows and 66.8 GB with six. Compiled here it needs 52.4 and 63.6 GB, and the reference's weights,
3.0 GB, lie beside it.

Sizes are GiB on one device: *arguments*, *temporaries*, *peak*, and *held*, the float32 weights that the run keeps
beside the program (none in training, which consumes those it starts from). *Received* is what comes from other devices
in one call, loops over layers and micro-batches counted as often as they run. *Kernels* are written by hand (Pallas).
*PFLOP* of one device in one call include recomputation. The *time* of a call is what its bound (arithmetic, memory or
links) takes at the vendor's peak; decoding waits for each of its all-reduces, so there the links' time is added.
*Useful* is the share of the arithmetic peak that then does what the model needs.
"""


_SCALING_WORDS = """## From 8 to 256 chips

One DPO step of Llama-3-8B at the paper's batch of 128 pairs on v5p, long answers (a pair fills a row of 2,048 tokens),
`mesh: auto`. The batch stays the same, so arithmetic per device halves as chips double. What it receives halves too as
long as there are micro-batches to halve, since weights are gathered once in each. At 256 chips two share a row.

At 64 and 128 chips the program holds all-reduces only. That is the TPU's compiler, not the step. A slice of 4x4x4 or
more is a torus in all three directions. There the compiler writes every collective over the whole slice as an
all-reduce, a lone `jax.lax.all_gather` or `psum_scatter` too (a gather: an all-reduce of zeros around each part). It
runs in six one-way rings at once, two along each direction; the gathers on smaller slices run in one ring. So twice the
bytes are received, but not in twice the time. What is lost is the overlap: up to 32 chips about three quarters of the
traffic are steps of rings that run beside the products. These all-reduces run alone, so that arithmetic and links add
up where the last column says the larger of the two."""


def scaling_rows(plans: dict[int, Report]) -> list[tuple[str, ...]]:
    """How one step of a fixed global batch divides as chips double."""
    rows: list[tuple[str, ...]] = []
    for chips, report in sorted(plans.items()):
        (stage,) = report.stages
        share = stage.links_s / (stage.compute_s + stage.links_s)
        rows.append((str(chips), mesh_words(stage.mesh),
                     f"{gib(stage.peak + stage.held)} of {gib(stage.limit)}", f"{stage.executed / chips / 1e15:.3g}",
                     gib(stage.received), seconds(stage.compute_s), seconds(stage.links_s), f"{share:.0%}",
                     seconds(stage.times.step)))
    return rows


AIMS = {"v5p-16": (4.5, 2.4), "v6e-16": (5.2, 2.2), "v5e-64": (3.0, 1.7), "8xH100": (3.9, 2.0)}
"""Accelerator -> hours of the Llama-3-8B recipe in its first plan, and those aimed at."""
_AIMS_WORDS = """## Where the aims stand

The Llama-3-8B recipe in its first plans, what was aimed at, and the plans of this page. What decided it is that
responses lie in pages (`sampling.cache_share`): the same memory then holds several times the lanes, which share each
reading of the weights, and of the responses the pages are read that are written. The kernel for that on TPUs
(`sampling.tpu_pages`) is compiled here for each of them and is exact in Pallas's interpreter; no TPU has run it, and
the roofline counts the bytes it reads, not the small products it is made of. A token then takes longer than one of 64
lanes did, for eight times as many. A smaller share of the caches would be enough for the mean response; what is above
it is room for lanes that would otherwise wait. `sampling.weights_dtype: int8` halves what a token reads of the weights;
it is an option, since samples are then those of the rounded policy."""


def aim_rows(reports: dict[str, Report], narrow: dict[str, Report]) -> list[tuple[str, ...]]:
    """(what, first plan, aim, now, whether it is met) of the recipe's plans, by accelerator.

    narrow: plans of decoding alone, with weights in eight bits.
    """

    def row(what: str, first: str, aim: float, now: float, words: Callable[[float], str], least: bool = False
            ) -> tuple[str, ...]:
        met = now >= aim if least else now <= aim
        return what, first, f"{'>=' if least else '<='} {words(aim)}", words(now), "met" if met else "missed"

    rows = [row(f"hours, {name}", f"{first}", aim, sum(reports[name].hours.values()), lambda hours: f"{hours:.1f}")
            for name, (first, aim) in AIMS.items()]
    for name, report in narrow.items():
        hours = sum(({**reports[name].hours, **report.hours}).values())
        rows.append(row(f"hours, {name}, weights in eight bits", f"{AIMS[name][0]}", AIMS[name][1], hours,
                        lambda hours: f"{hours:.1f}"))
    step = {(name, stage.stage): stage for name, report in reports.items() for stage in report.stages}
    dpo, decode = step["v5p-16", "dpo"], step["v6e-16", "decode"]
    return [*rows,
            row("useful share of a DPO step, v5p-16", "52%", 0.65, useful_share(dpo), lambda share: f"{share:.0%}",
                least=True),
            row("received a DPO step, v5p-16, GiB", "179", 80 * 2**30, dpo.received, gib),
            row(f"ms for 64 lanes' tokens, v6e-16, of {_SLOTS['v6e-16'] * _LANES} at once", "12.6", 6.0,
                1e3 * decode.times.step / _BLOCK * 64 / (_SLOTS["v6e-16"] * _LANES), lambda ms: f"{ms:.1f}"),
            row("response caches, reserved / written", "5.8", 1.3, _SHARE * _BUDGET / _RESPONSE, lambda x: f"{x:.1f}")]


_BLOCK, _LANES, _BUDGET, _RESPONSE = 64, 8, 2048, 350
"""In the recipe: tokens of a block of decoding, lanes of a slot, tokens that a lane may write, and of a response."""
SCALING_COLUMNS = ("chips", "mesh", "peak + held, GiB", "PFLOP per device", "received, GiB", "arithmetic", "links",
                   "share of links", "step")


def wrapped(text: str) -> str:
    """Prose at 120 columns; tables and code as they are."""
    return "\n".join(line if line.startswith(("|", "    ")) else textwrap.fill(
        line, 120, subsequent_indent="  " * line.startswith("- "), break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n"))


def page(folder: Path) -> str:
    """docs/scale.md, from the plans that are there."""
    parts = [_HEAD]
    recipe, narrow = ({name: read_json(folder / f"llama3_8b-{name}{ending}.json")[0] for name in AIMS
                       if (folder / f"llama3_8b-{name}{ending}.json").is_file()} for ending in ("", "-int8"))
    if recipe.keys() == AIMS.keys():
        table = markdown_table(("what", "first plan", "aim", "now", ""), aim_rows(recipe, narrow))
        parts.append(f"{_AIMS_WORDS}\n\n{table}")
    for name, title in _TITLES.items():
        if (path := folder / f"{name}.json").is_file():
            (report,) = read_json(path)
            parts.append(f"## {title}\n\n    rlhf-jax plan {PLANS[name]}\n\n{markdown(report)}\n\n"
                         + "\n".join(f"- assumed: {words}" for words in report.assumptions))
    scaling = {chips: read_json(folder / f"scaling-{chips:03}.json")[0] for chips in _SCALING
               if (folder / f"scaling-{chips:03}.json").is_file()}
    if scaling:
        parts.append(f"{_SCALING_WORDS}\n\n    rlhf-jax plan {_STRONG} --mesh auto --accelerator v5p-16   "
                     f"(to v5p-512)\n\n{markdown_table(SCALING_COLUMNS, scaling_rows(scaling))}")
    if 64 in scaling and (path := folder / f"{_HALVES}.json").is_file():
        (stage,), (halves,) = scaling[64].stages, read_json(path)[0].stages
        parts.append(f"A mesh of {mesh_words(halves.mesh)} on 64 chips keeps the gathers and reduce-scatters: it "
                     f"receives {gib(halves.received)} GiB instead of {gib(stage.received)} and needs "
                     f"{gib(halves.peak + halves.held)} GiB instead of {gib(stage.peak + stage.held)}, as each half "
                     "holds the whole state. Its gathers run in one ring, and by themselves as well; which of the two "
                     f"is faster only a slice can tell.\n\n    rlhf-jax plan {PLANS[_HALVES]}")
    return wrapped("\n\n".join(parts)) + "\n"


def merged(before: Report, again: Report) -> Report:
    """A plan with some stages compiled again."""
    newer = {stage.stage: stage for stage in again.stages}
    told = {words.partition(":")[0]: words for words in again.assumptions if words.partition(":")[0] in newer}
    return dataclasses.replace(
        before, stages=tuple(newer.get(stage.stage, stage) for stage in before.stages),
        calls={**before.calls, **again.calls},
        assumptions=tuple(told.get(words.partition(":")[0], words) for words in before.assumptions))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--plans", type=Path, default=Path("docs/plans"))
    parser.add_argument("--output", type=Path, default=Path("docs/scale.md"))
    parser.add_argument("--compile", nargs="*", metavar="PLAN", help="missing plans, or those named")
    parser.add_argument("--stages", help="of those named, compile these stages alone and keep the others as they are")
    args = parser.parse_args()
    wanted = [] if args.compile is None else args.compile or [
        name for name in PLANS if not (args.plans / f"{name}.json").is_file()]
    for name in wanted:
        path = args.plans / f"{name}.json"
        made = path.with_suffix(".part") if args.stages else path
        some = ["--stages", args.stages] if args.stages else []
        command = [sys.executable, "-m", "rlhf_jax", "plan", *PLANS[name].split(), *some, "--output", str(made)]
        print(f"== {name}", flush=True)
        if subprocess.run(command, check=False).returncode:
            print(f"{name} failed", file=sys.stderr)
        elif args.stages:
            write_json(path, [merged(read_json(path)[0], read_json(made)[0])])
            made.unlink()
    args.output.write_text(page(args.plans))
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
