"""Asks the policy of a run with `loop.directions` in three directions: how long its answers are, and how good."""

import sys
from pathlib import Path

import numpy as np

import rlhf_jax
from rlhf_jax.data.world import gold_judge
from rlhf_jax.workflow.directions import direction_text, unit_vector
from rlhf_jax.workflow.stages.shards import read_shards

run = Path(sys.argv[1])
(prompts,) = run.glob("stages/world-*/eval_prompts.jsonl")
for angle in (-60, 0, 60):
    folder = run / f"asked{angle:+d}"
    rlhf_jax.run("generate", model_name_or_path=run / "policy", dataset_name=prompts, output_dir=folder,
                 system_prompt=direction_text(unit_vector(angle, ("overall", "verbosity"))), num_generations=8,
                 max_new_tokens=72, slots=32, block=16)
    groups = read_shards(folder)
    words = [len(str(r.text).split()) for group in groups for r in group.responses]
    gold = [x for group in groups for x in gold_judge([group.prompt] * len(group.responses),
                                                      [r.text for r in group.responses])]
    print(f"{angle:+d} degrees: {np.mean(words):.1f} words, judge {np.mean(gold):.2f}")
