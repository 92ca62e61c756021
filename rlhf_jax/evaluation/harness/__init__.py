"""Academic tasks through EleutherAI's lm-evaluation-harness, an extra: MMLU, GSM8K, ARC, TruthfulQA, code and so on.

`model` and `run` import the harness; nothing else in the package does, and nothing here imports torch.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version

EXTRA, PACKAGE = "lm-eval", "lm_eval"


def check_installed() -> str:
    """The harness's version. Raises ValueError where it is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ValueError("tasks are run by lm-evaluation-harness, which is not installed; pip install "
                         f'"rlhf_jax[{EXTRA}]"')
    return version(PACKAGE)
