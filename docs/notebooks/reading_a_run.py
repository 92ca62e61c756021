# %% [markdown]
# # Reading a run
#
# A small online run, then every file that it left: which stages ran, one trained pair traced back to the samples it
# came from, and the evaluation's numbers computed once more from the answers. Public names alone (docs/python.md) and
# JSON. About a minute on two CPU cores; jupytext opens it as a notebook.

# %%
import json
import tempfile
from pathlib import Path

import numpy as np

import rlhf_jax

train = {"train_batch_size": 16, "micro_rows": 4, "row_length": 160, "warmup_steps": 0.1}
sampling = {"num_generations": 4, "max_new_tokens": 48, "slots": 32, "block": 16}
keys = {
    "output_dir": tempfile.mkdtemp(),
    "world": {"sft_rows": 600, "preference_rows": 100, "prompt_rows": 64, "eval_prompts": 32},
    "scratch": {"tokenizer": "world:tokenizer", "embed": 48, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 128,
                "max_position": 256},
    "sft": {"data": {"dataset_name": "world:sft"}, "train": {**train, "learning_rate": 5e-3, "max_steps": 60}},
    "scorer": {"kind": "function", "function": "rlhf_jax.data.world:gold_judge"},
    "prompts": {"dataset_name": "world:prompts"},
    "loop": {"rounds": 1, "prompts_per_round": 64, "shard_size": 32},
    "sampling": sampling,
    "dpo": {**train, "learning_rate": 3e-4, "max_steps": 12, "beta": 0.1},
    "evaluation": {"data": {"dataset_name": "world:eval_prompts"}, "sampling": {**sampling, "seed": 77}},
}
results = rlhf_jax.run("iterate", **keys)
folder = Path(keys["output_dir"])

# %% [markdown]
# ## Stages
#
# `manifest.json` lists the stages in order. Each has a folder of its own, named by a hash of all that went in;
# `inputs.json` says what that was, `stage.json`, written last, what came out. What each found is in `results.json`.

# %%
manifest = json.loads((folder / "manifest.json").read_text())
stages = {stage["name"]: folder / stage["folder"] for stage in manifest["stages"]}
for stage in results["stages"]:
    print(f"{stage['name']:24} {stage['seconds']:6.1f} s  {stage['found']}")
print(json.loads((stages["online/round-1/pairs"] / "stage.json").read_text())["report"])

# %% [markdown]
# ## Training
#
# The curves of the page are `results["training"]`, under TRL's names. DPO starts at log 2 = 0.693, where the policy is
# its own reference; `rewards/accuracies` is how often the implicit reward ranks a pair as it was labelled.

# %%
for row in results["training"]["online/round-1/dpo"]:
    print({name: row[name] for name in ("step", "loss", "rewards/accuracies", "rewards/margins") if name in row})

# %% [markdown]
# ## One pair, traced back
#
# A pair holds its two responses with token ids, scores and the sampler's log-probabilities. The group of the same
# `prompt_id` in the samples has all four; the rule took the best and the worst of them. The model that wrote them gives
# the same log-probabilities, where the text rendered again gives the same tokens: the round learned from its own data.

# %%
pairs = rlhf_jax.read_groups(stages["online/round-1/pairs"] / "pairs.jsonl")
pair = next(group for group in pairs if group.responses[0].finish_reason == "stop")  # its text has its last token
scored = {group.prompt_id: group for shard in stages["online/round-1/score"].glob("shard-*")
          for group in rlhf_jax.read_groups(shard)}
chosen, rejected = pair.responses
print(len(scored), "prompts,", sum(len(group.responses) for group in scored.values()), "answers")
scores = [response.scores["proxy"] for response in scored[pair.prompt_id].responses]
print(scores, "->", chosen.scores["proxy"], rejected.scores["proxy"])
assert (chosen.scores["proxy"], rejected.scores["proxy"]) == (max(scores), min(scores))

writer = rlhf_jax.load(stages["sft"] / "model")
(again,) = writer.logps([pair.prompt], [chosen.text])
print(f"{chosen.logps.sum():.3f} nats by the sampler, {again:.3f} by the model; {chosen.finish_reason}: {chosen.text}")

# %% [markdown]
# ## The evaluation, computed once more
#
# Both policies answer the same held-out prompts. A mean over prompts is taken first over a prompt's answers; the
# difference prompt by prompt. `kl_k1` is the divergence from the start in nats: reward is worth what it costs in it.

# %%
judged = {label: rlhf_jax.read_groups(stages[f"evaluate/{label}/judge"] / "judged.jsonl")
          for label in ("sft", "online-1")}


def means(label, name):
    return np.array([np.mean([response.scores[name] for response in group.responses]) for group in judged[label]])


gain = means("online-1", "proxy") - means("sft", "proxy")
told = results["differences"][0]["estimate"]
print(f"reward {means('sft', 'proxy').mean():.2f} -> {means('online-1', 'proxy').mean():.2f}, {gain.mean():+.2f} "
      f"[{told['low']:+.2f}, {told['high']:+.2f}], at {means('online-1', 'kl_k1').mean():.2f} nats")
np.testing.assert_allclose(gain.mean(), told["value"])
for label, groups in judged.items():
    print(f"{label:9}", groups[0].responses[0].text)

# %% [markdown]
# ## Once more
#
# The same command again finds every stage done. A changed key would redo the stages that depend on it, and those alone.
# `report.html` in the folder shows all of this with figures.

# %%
assert rlhf_jax.run("iterate", **keys)["differences"] == results["differences"]
print(folder / "report.html")
