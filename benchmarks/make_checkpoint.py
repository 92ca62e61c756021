"""Random Llama checkpoints in Hugging Face layout, a language model and a reward model, that every worker loads.

    python benchmarks/make_checkpoint.py --shape small --output runs/bench
"""

import argparse
import dataclasses
from pathlib import Path

import jax
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from work import SHAPES

from rlhf_jax.models import DecoderConfig, as_classifier, cast, init_params, save_hf


def tokenizer(vocab_size):
    """One word is one token: `t17` is id 17."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"t{i}": i for i in range(3, vocab_size)}}
    core = Tokenizer(models.WordLevel(words, unk_token="t3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    folder = args.output / args.shape
    if (folder / "rm" / "config.json").is_file():
        return
    tokenizer(SHAPES[args.shape]["vocab_size"]).save_pretrained(folder / "tokenizer")
    config = DecoderConfig(family="llama", **SHAPES[args.shape], max_position=8192, bos_token_id=1, eos_token_ids=(2,),
                           pad_token_id=0)
    params = cast(init_params(jax.random.key(0), config), args.dtype)
    save_hf(folder / "lm", params, config, tokenizer_from=folder / "tokenizer")
    scored = dataclasses.replace(config, num_labels=1)
    params = as_classifier(params, jax.random.key(1), scored)
    save_hf(folder / "rm", params, scored, tokenizer_from=folder / "tokenizer")


if __name__ == "__main__":
    main()
