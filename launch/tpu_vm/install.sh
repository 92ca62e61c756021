#!/usr/bin/env bash
# On every worker, by `python -m launch.tpu_vm install`: rlhf_jax in an environment of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
environment=$HOME/rlhf_jax_environment

# The TPU images come with a Python that is too old; uv brings one along.
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
uv=$HOME/.local/bin/uv
[ -d "$environment" ] || "$uv" venv --quiet --python 3.12 "$environment"
"$uv" pip install --quiet --python "$environment/bin/python" '.[tpu]'
"$environment/bin/rlhf-jax" --help > /dev/null
echo "install.sh: rlhf_jax is ready on $(hostname)"
