"""`dpo` with a loss of your own, found by its name: on the command line `--loss_type own_loss:dpo_positive`.

    python examples/own_loss.py POLICY pairs.jsonl runs/dpo_positive
"""

import sys

import jax
import jax.numpy as jnp

import rlhf_jax


def dpo_positive(pair, beta):
    """DPO-Positive (Pal et al., arXiv 2402.13228): chosen answers may not become less likely. [N]"""
    chosen, rejected = pair.chosen - pair.ref_chosen, pair.rejected - pair.ref_rejected
    return -jax.nn.log_sigmoid(beta * (chosen - rejected - 5.0 * jnp.maximum(0.0, -chosen)))


def main(policy, pairs, folder, **training):
    return rlhf_jax.run("dpo", model_name_or_path=policy, dataset_name=pairs, output_dir=folder,
                        loss_type="own_loss:dpo_positive", beta=0.1, **training)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    print(main(*sys.argv[1:])["train"])
