"""`iterate` with a Python function as the reward: one online round, then a comparison with the start.

    python examples/own_scorer.py POLICY prompts.jsonl held_out_prompts.jsonl runs/brief
"""

import sys

import rlhf_jax


def brief(prompts, completions, **columns):
    """One number per completion, higher is better, None for no verdict; `columns` holds the data's other columns."""
    return [-float(len(text)) for text in completions]


def main(policy, prompts, held_out, folder, **options):
    results = rlhf_jax.run("iterate", **{
        "model_name_or_path": policy, "output_dir": folder,
        "scorer": {"kind": "function", "function": "own_scorer:brief"},
        "prompts": {"dataset_name": prompts},
        "loop": {"rounds": 1},
        "sampling": {"num_generations": 4, "max_new_tokens": 32},
        "dpo": {"beta": 0.1},
        "evaluation": {"data": {"dataset_name": held_out}, "sampling": {"num_generations": 4, "max_new_tokens": 32}},
        **options})
    print(f"report: {folder}/report.html")
    return results


if __name__ == "__main__":
    if len(sys.argv) != 5:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
