#!/usr/bin/env bash
# One online round of Llama-3-8B on a TPU slice: planned, launched, followed, brought home.
#
#   POLICY, REWARD_MODEL   folders on storage that all workers see, or hub names
#   PROMPTS, HELD_OUT      jsonl files on that storage
#   RUN_FOLDER             where the run goes on it
# Project, zone and storage stand in launch/tpu_vm/parameters.env. Run this from the root of a checkout. Every command
# may be given again: it continues what was done.
set -euo pipefail
CONFIGS=(--config configs/mesh/v5p-16.yaml --config configs/llama3_8b/iterate.yaml)

# 1. On any machine, before anything is rented: does it fit, what bounds each stage, how long will it take?
rlhf-jax plan "${CONFIGS[@]}" --accelerator v5p-16

# 2. Machines, installation, the run itself, again after each preemption (launch/tpu_vm/README.md). Start it in tmux.
#    Every worker runs this one command; JAX finds the others.
MACHINES=(ACCELERATOR=v5p-16 RUNTIME_VERSION=v2-alpha-tpuv5 "RUN_FOLDER=$RUN_FOLDER")
python -m launch.tpu_vm run "${MACHINES[@]}" COMMAND="rlhf-jax iterate ${CONFIGS[*]} \
  --model_name_or_path $POLICY --scorer.model_name_or_path $REWARD_MODEL \
  --prompts.dataset_name $PROMPTS --evaluation.data.dataset_name $HELD_OUT \
  --loop.rounds 1 --output_dir $RUN_FOLDER"

# 3. The machines cost money until they are given back.
python -m launch.tpu_vm delete "${MACHINES[@]}"

# 4. The trained policy in bfloat16, in Hugging Face layout, for vLLM or transformers.
rlhf-jax export "$RUN_FOLDER/policy" --output_dir "$RUN_FOLDER/export"
