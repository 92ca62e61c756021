"""How fast XLA and torch multiply on this CPU, one after the other: what a ratio between them rests on.

    python benchmarks/products.py --torch VENV_WITH_TORCH/bin/python --output mine.jsonl

The product is the MLP's of the `small` shape, over the four rows of 768 tokens that a step works on at a time.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIZES = (3072, 256, 768)
ROUNDS, REPEATS = 5, 40


def by_jax():
    import jax
    import jax.numpy as jnp

    rows, inner, columns = SIZES
    a, b = jnp.ones((rows, inner)), jnp.ones((inner, columns))
    product = jax.jit(jnp.matmul)
    return lambda: product(a, b).block_until_ready()


def by_torch():
    import torch

    rows, inner, columns = SIZES
    a, b = torch.ones(rows, inner), torch.ones(inner, columns)
    return lambda: a @ b


def seconds(product):
    """Median of one product, after a few that are not counted."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        product()
        found.append(time.perf_counter() - start)
    return statistics.median(found[REPEATS // 4 :])


def main():
    from run import machine
    from work import versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", required=True, help="python with torch")
    parser.add_argument("--output", type=Path, required=True, help="file the line is added to")
    args = parser.parse_args()
    found = {"XLA": [], "torch": []}
    for _ in range(ROUNDS):
        for name, python, way in (("XLA", sys.executable, "by_jax"), ("torch", args.torch, "by_torch")):
            code = f"import products; print(products.seconds(products.{way}()))"
            out = subprocess.run([python, "-c", code], cwd=Path(__file__).parent, check=True, capture_output=True,
                                 text=True).stdout
            found[name].append(float(out.splitlines()[-1]))
    rates = {name: 2 * SIZES[0] * SIZES[1] * SIZES[2] / statistics.median(times) for name, times in found.items()}
    line = {"date": datetime.date.today().isoformat(), "task": "products", "sizes": SIZES, "flops_per_second": rates,
            "machine": machine(os.cpu_count()), "versions": versions("jax", "jaxlib") | {"device": "cpu"}}
    print(", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()))
    with args.output.open("a") as out:
        out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
