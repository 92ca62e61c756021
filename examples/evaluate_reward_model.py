"""A reward model on held-out pairs: accuracy, likelihood and calibration, with intervals.

    python examples/evaluate_reward_model.py REWARD_MODEL pairs.jsonl runs/evaluated
"""

import sys

import rlhf_jax


def main(model, pairs, folder):
    report = rlhf_jax.run("evaluate", scorer={"model_name_or_path": model}, dataset_name=pairs, output_dir=folder)
    print("accuracy {value:.3f} [{low:.3f}, {high:.3f}]".format(**report["accuracy"]))
    return report


if __name__ == "__main__":
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
