"""Tiny random models of every family by transformers, and what it computes with them: the golden arrays of the tests.

    python tests/models/make_golden.py            # needs torch; rewrites tests/models/golden/*.npz

Each file holds the config.json, the weights (float16 values, so that a file is small and exact), the logits and
classifier scores of two sequences, and 64 greedily generated tokens.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("golden")
SIZES = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA_ROPE = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
              "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
MODELS = {
    "llama2": ("llama", {"num_key_value_heads": 4}),
    "llama3_tied": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral_window": ("mistral", {"sliding_window": 5, "head_dim": 8}),
    "mistral_full": ("mistral", {"sliding_window": None}),
    "ministral": ("ministral", {"sliding_window": 5, "head_dim": 8,
                                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "qwen2_mixed": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma2": ("gemma2", {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 24,
                          "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 24,
                               "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                               "rope_parameters": GEMMA_ROPE}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2,
                        "num_hidden_layers": 4}),
    "olmo3_yarn": ("olmo3", {"sliding_window": 5, "rope_parameters": {
        "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}},
        "layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
    "qwen3_yarn": ("qwen3", {"head_dim": 8, "rope_parameters": {**YARN, "beta_fast": 4.0, "attention_factor": 1.3}}),
    "phi3": ("phi3", {"sliding_window": 5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                               "partial_rotary_factor": 0.5}}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
                                "norm_topk_prob": True, "head_dim": 8}),
}
"""name -> (model_type, what its config.json says beside `SIZES`)."""
TOKENS = np.random.default_rng(0).integers(3, SIZES["vocab_size"], (2, 24)).astype(np.int32)
NEW_TOKENS = 64


def make(name, folder, **changes):
    """Writes a random language model, norms and biases random too, and a classifier of two outputs on its backbone.

    `folder`/lm and `folder`/rm; all values are such as float16 holds exactly.
    """
    import torch
    import transformers

    model_type, switches = MODELS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SIZES | switches | changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
            weight.copy_(weight.half())
    model.save_pretrained(folder / "lm")
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "lm", num_labels=2)
    with torch.no_grad():
        classifier.score.weight.copy_(torch.randn_like(classifier.score.weight).half())
    classifier.save_pretrained(folder / "rm")


def logits(folder, task):
    """What transformers computes at `TOKENS`."""
    import torch

    with torch.no_grad():
        return load(folder, task)(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def greedy(folder):
    """64 tokens after each row of `TOKENS`, with transformers' cache and no stop token."""
    import torch

    model, prompt = load(folder, "CausalLM"), torch.tensor(TOKENS, dtype=torch.long)
    model.generation_config.eos_token_id = None
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False)
    return out[:, prompt.shape[1]:].numpy().astype(np.int32)


def load(folder, task):
    import torch
    import transformers

    return getattr(transformers, f"AutoModelFor{task}").from_pretrained(folder, dtype=torch.float32,
                                                                        attn_implementation="eager").eval()


def tensors(folder):
    from safetensors.numpy import load_file

    return {name: value for file in sorted(Path(folder).glob("*.safetensors"))
            for name, value in load_file(file).items()}


def save(arrays, folder):
    from safetensors.numpy import save_file

    save_file(arrays, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def write(name):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(name, folder)
        kept = tensors(folder / "lm")
        score = {key: value for key, value in tensors(folder / "rm").items() if key not in kept}
        arrays = {f"lm/{key}": value.astype(np.float16) for key, value in kept.items()}
        arrays |= {f"rm/{key}": value.astype(np.float16) for key, value in score.items()}
        arrays |= {f"{kind}_config": (folder / kind / "config.json").read_text() for kind in ("lm", "rm")}
        arrays |= {"logits": logits(folder / "lm", "CausalLM"), "greedy": greedy(folder / "lm"),
                   "scores": logits(folder / "rm", "SequenceClassification")}
        np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or MODELS:
        write(chosen)
        print(chosen, (GOLDEN / f"{chosen}.npz").stat().st_size, "bytes")
