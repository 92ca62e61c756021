"""What all workers share: shapes, the work drawn from real lengths, and how a worker talks to the driver.

Standard library and numpy only, so that it runs in any peer's environment.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

SHAPES = {
    "small": {"vocab_size": 4096, "embed": 256, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64, "mlp": 768},
    "medium": {"vocab_size": 32000, "embed": 384, "layers": 6, "heads": 6, "kv_heads": 2, "head_dim": 64, "mlp": 1024},
    "wide": {"vocab_size": 128256, "embed": 256, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64, "mlp": 768},
    "1b": {"vocab_size": 128256, "embed": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "head_dim": 64, "mlp": 8192},
    "8b": {"vocab_size": 128256, "embed": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128,
           "mlp": 14336},
}
"""name -> sizes of a Llama. `small`, `medium` and `wide` (`small` under a large vocabulary) are for two CPU cores, the
others for an accelerator."""

TRAIN_BATCH = 16
"""Pairs of an optimizer step in a round, and prompts that transformers generates for at a time."""

SPECIAL = 8
"""Ids below are not drawn: padding 0, BOS 1, EOS 2, spare."""


def pairs(shape, count, longest, seed=0):
    """`count` pairs of token id lists (prompt, chosen, rejected), lengths from dialogues and graded answers in turn.

    Pairs in which prompt and a response exceed `longest` are passed over, as all trainers would drop or cut them.
    """
    lengths = json.loads(Path(__file__).with_name("lengths.json").read_text())
    draws = np.random.default_rng(seed)
    pools = [[x for x in lengths[name] if x[0] + max(x[1:]) <= longest] for name in ("dialogues", "graded")]
    pools = [[pool[i] for i in draws.permutation(len(pool))] for pool in pools]
    vocab = SHAPES[shape]["vocab_size"]

    def ids(length):
        return draws.integers(SPECIAL, vocab, length).tolist()

    out = []
    for i in range(count):
        pool = pools[i % 2]
        prompt, chosen, rejected = pool[(i // 2) % len(pool)]
        out.append(([1, *ids(prompt - 1)], [*ids(chosen - 1), 2], [*ids(rejected - 1), 2]))
    return out


def text(ids):
    """Words of the checkpoint's tokenizer, one per token; padding, BOS and EOS have none."""
    return " ".join(f"t{i}" for i in ids if i > 2)


def parameters(shape):
    """Number of weights of a shape, embedding and head apart."""
    s = SHAPES[shape]
    attention = 2 * s["embed"] * s["head_dim"] * (s["heads"] + s["kv_heads"])
    layer = attention + 3 * s["embed"] * s["mlp"] + 2 * s["embed"]
    return 2 * s["vocab_size"] * s["embed"] + s["layers"] * layer + s["embed"]


def useful(pair):
    """Tokens that had to be looked at: the prompt once, each response once."""
    return sum(len(part) for part in pair)


def stop_ids(shape, mean):
    """Ids that end a response. With random weights every token is about equally likely, so a response ends at each
    token with probability 1 / mean: its length is geometric, as varied as real answers are."""
    vocab = SHAPES[shape]["vocab_size"]
    return [2, *range(SPECIAL, SPECIAL + max(1, round(vocab / mean)) - 1)]


def versions(*names):
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def arguments(tasks):
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True, help="what make_checkpoint.py wrote")
    parser.add_argument("--batch", type=int, default=16, help="pairs (dpo, rm), rows (sft), prompts (generate, score)")
    parser.add_argument("--longest", type=int, default=512, help="prompt and response together")
    parser.add_argument("--n", type=int, default=8, help="continuations or candidates per prompt")
    parser.add_argument("--new", type=int, default=128, help="most new tokens")
    parser.add_argument("--mean", type=int, default=64, help="mean response length")
    parser.add_argument("--steps", type=int, default=12, help="warm-up included")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--micro", type=int, help="rlhf_jax: its micro_rows, by default as `auto` has it on a CPU")
    parser.add_argument("--remat", choices=("none", "dots", "full"), help="TRL checkpoints gradients where it is full")
    parser.add_argument("--logits_chunk", type=int, default=256, help="rlhf_jax: row positions whose logits exist")
    parser.add_argument("--row", type=int, help="rlhf_jax: tokens of a packed row")
    parser.add_argument("--attention", default="auto", help="rlhf_jax: its attn_implementation")
    parser.add_argument("--slots", type=int, help="rlhf_jax: prompts the sampler works on at a time")
    parser.add_argument("--block", type=int, help="rlhf_jax: tokens it decodes between refills")
    return parser.parse_args()


def say(**line):
    print("@" + json.dumps(line), flush=True)


def wait():
    """Waits for the driver's word; leaves when there is none."""
    if not sys.stdin.readline():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        say(peak_rss=peak, **extra())
        sys.stdout.flush()
        os._exit(0)


extra = dict
"""Replaced by a worker that knows more at the end (an accelerator's peak memory)."""

programs = int
"""Replaced by a worker that compiles: how many programs so far. A step that compiles is slower than the others."""


def serve(framework, found, step):
    """Announces the worker, then runs `step(i)` each time the driver says so and reports seconds and useful tokens.

    A step returns its tokens and the seconds of its parts; if `seconds` is among them, that is the time that counts.
    """
    say(framework=framework, versions=found)
    i = 0
    while True:
        wait()
        start, before = time.perf_counter(), programs()
        tokens, parts = step(i)
        say(seconds=parts.pop("seconds", time.perf_counter() - start), tokens=int(tokens), parts=parts,
            compiled=programs() - before)
        i += 1


class Laps:
    """The steps of a trainer that owns its loop: each waits for the driver and is timed from there.

    tokens: useful tokens of each step.
    """

    def __init__(self, tokens):
        self.tokens, self.i, self.start = tokens, 0, 0.0

    def begin(self):
        wait()
        self.start = time.perf_counter()

    def end(self):
        say(seconds=time.perf_counter() - self.start, tokens=self.tokens[self.i], parts={})
        self.i += 1


def tokens_of_steps(data, batch):
    """Useful tokens of each full step over `data`."""
    return [sum(map(useful, data[i : i + batch])) for i in range(0, len(data) - batch + 1, batch)]
