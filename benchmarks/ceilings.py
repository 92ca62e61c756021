"""What the accelerator here can do at best, measured: bytes a second of a large copy, operations a second of a product.

    python benchmarks/ceilings.py --output mine.jsonl

The tables hold what the frameworks reach against these two, not against a data sheet.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from work import versions

REPEATS = 20


def median_seconds(run, *arrays):
    """Median time of `run`, after one call that compiles it."""
    jax.block_until_ready(run(*arrays))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run(*arrays))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192, help="of the square matrices; the copy is of 32 of them")
    parser.add_argument("--output", type=Path, required=True, help="file the line is added to")
    args = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (jax.random.normal(key, (args.size, args.size), jnp.bfloat16) for key in keys)
    many = jnp.broadcast_to(a, (32, *a.shape)) + jnp.arange(32, dtype=a.dtype)[:, None, None]
    device = jax.devices()[0].device_kind
    line = {"date": datetime.date.today().isoformat(), "task": "ceilings", "device": device,
            "versions": versions("jax", "jaxlib") | {"device": device},
            "bytes_per_second": 2 * many.nbytes / median_seconds(jax.jit(lambda x: -x), many),
            "flops_per_second": 2 * args.size**3 / median_seconds(jax.jit(jnp.matmul), a, b)}
    print(f"{device}: {line['bytes_per_second'] / 1e12:.2f} TB/s, {line['flops_per_second'] / 1e12:.0f} TFLOP/s")
    with args.output.open("a") as out:
        out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
