"""`pairs` with a rule of your own: on the command line `--rule own_pair_rule:best_and_median`.

    python examples/own_pair_rule.py SCORED runs/pairs       # SCORED: what `rlhf-jax score` wrote
"""

import sys

import rlhf_jax


def best_and_median(values, rng):
    """Places of chosen and rejected among a prompt's responses, best first; None for no pair."""
    return (0, len(values) // 2) if len(values) > 2 else None


def main(scored, folder):
    report = rlhf_jax.run("pairs", input=scored, output_dir=folder, rule="own_pair_rule:best_and_median")
    groups = rlhf_jax.read_groups(f"{folder}/pairs.jsonl")
    print(f"{len(groups)} pairs, the first: {groups[0].responses[0].text!r} over {groups[0].responses[1].text!r}")
    return report


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
