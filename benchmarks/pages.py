"""What share of the response caches lanes need, by how long responses are: the sampler's own pages, no model.

    python benchmarks/pages.py                      # responses of 350 tokens in the mean, of 2,048 at most
    python benchmarks/pages.py --mean 700 --spread 0.6 --slots 64

Lengths are log-normal. Lanes are refilled as `Sampler` refills them, and write a block between two looks at the pages.
Per share of all that the lanes may write (`sampling.cache_share`): lanes that wait for pages, of a hundred that could
write, and pages reserved over pages that lanes hold, in the mean.
"""

import argparse
from collections import deque

import numpy as np

from rlhf_jax.sampling.pages import PAGE, Pages, pages_each

SHARES = (0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.06)


def lengths(prompts, lanes, mean, spread, most, seed=0):
    """[prompts, lanes] tokens of made-up responses. spread: standard deviation of the logarithm."""
    draws = np.random.default_rng(seed).lognormal(np.log(mean) - spread**2 / 2, spread, (prompts, lanes))
    return np.clip(draws.astype(int), 1, most)


def simulated(share, wanted, slots, most, block):
    """(share of lanes that wait, restarts, reserved / held, blocks) of sampling responses of these lengths."""
    lanes = wanted.shape[1]
    each = pages_each(share, slots, lanes, most, 1)
    pages, queue = Pages(slots, lanes, most, 1, each), deque(range(len(wanted)))
    prompt = np.full(slots, -1)
    waiting, running = [deque() for _ in range(slots)], [{} for _ in range(slots)]
    written = np.zeros((slots, lanes), int)
    asked = waited = restarts = 0
    held = []
    while queue or any(waiting) or any(running):
        for slot in range(slots):
            if not running[slot] and not waiting[slot] and queue:
                prompt[slot], waiting[slot] = queue.popleft(), deque(range(lanes))
            for lane in range(lanes):
                if lane not in running[slot] and waiting[slot]:
                    running[slot][lane], written[slot, lane] = waiting[slot].popleft(), 0
        at_work = sorted(((slot, lane) for slot in range(slots) for lane in running[slot]), key=lambda at: -written[at])
        served, dropped = pages.allot({at: min(written[at] + block, most) for at in at_work})
        for slot, lane in dropped:
            waiting[slot].appendleft(running[slot].pop(lane))
        asked, waited, restarts = asked + len(at_work), waited + len(at_work) - len(served), restarts + len(dropped)
        if queue or not held:  # the last prompts leave slots empty
            held.append(sum(-(-(written[at] + block) // PAGE) for at in served))
        for slot, lane in served:
            written[slot, lane] += block
            if written[slot, lane] >= wanted[prompt[slot], running[slot][lane]]:
                running[slot].pop(lane)
                pages.release((slot, lane))
    return waited / asked, restarts, each / np.mean(held), len(held)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mean", type=float, default=350, help="tokens of a response")
    parser.add_argument("--spread", type=float, nargs="+", default=[0.5, 1.0],
                        help="standard deviation of the logarithm of a length")
    parser.add_argument("--max_new_tokens", type=int, default=2048)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=512)
    args = parser.parse_args()
    print("| spread | cache_share | lanes that wait | restarts | reserved / held |\n|---:|---:|---:|---:|---:|")
    for spread in args.spread:
        wanted = lengths(args.prompts, args.lanes, args.mean, spread, args.max_new_tokens)
        for share in SHARES:
            waits, restarts, room, _ = simulated(share, wanted, args.slots, args.max_new_tokens, args.block)
            print(f"| {spread} | {share} | {waits:.1%} | {restarts} | {room:.2f} |", flush=True)
