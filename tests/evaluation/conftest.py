import numpy as np
import pytest

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.evaluation.benchmarks import JudgedRow


@pytest.fixture
def make_group():
    """Builds a scored group: make_group("p0", proxy=[...], gold=[...], lengths=[...]); a score None is absent."""

    def make(prompt_id, lengths=None, finish=None, pairs=(), **scores):
        count = len(next(iter(scores.values()))) if scores else len(lengths)
        lengths = lengths if lengths is not None else [3] * count
        responses = tuple(
            Response(
                ids=np.full(lengths[i], i, np.int32),
                loss_mask=np.ones(lengths[i], bool),
                finish_reason=finish[i] if finish else "stop",
                scores={name: float(values[i]) for name, values in scores.items() if values[i] is not None},
            )
            for i in range(count)
        )
        return PromptGroup(prompt_id, np.array([1, 2], np.int32), responses, pairs=pairs)

    return make


@pytest.fixture(scope="session")
def judged():
    """Builds a row of a benchmark as a scorer judged it: judged("Math", gap of the first pair, ...)."""

    def make(subset, *gaps, pairs=None, name="", prompt=None, scores=None):
        pairs = pairs or tuple((0, i + 1) for i in range(len(gaps)))
        return JudgedRow(name or f"{subset}-{gaps}", prompt or f"{subset}-{gaps}", subset, pairs, gaps, scores or {})

    return make
