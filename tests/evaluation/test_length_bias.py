"""How much scores grow with length: correlations worked by hand, what is left out, and the figure."""

import dataclasses
import json

import numpy as np
import pytest

from rlhf_jax.evaluation.length_bias import BINS, LengthBias, length_bias, prompt_biases
from rlhf_jax.report import write_length_bias


def test_a_score_that_is_the_length_correlates_at_one(make_group):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, (40, 8))
    groups = [make_group(f"p{i}", proxy=3.0 * row + 1, lengths=row.tolist()) for i, row in enumerate(lengths)]
    found = length_bias(groups, "proxy")
    assert found.correlation.value == pytest.approx(1.0)
    assert (found.correlation.count, found.left_out, found.samples, found.above_half) == (40, 0, (8, 8), 1.0)
    assert found.deviation == pytest.approx(0.0, abs=1e-9)
    heat = np.array(found.heat_map)
    assert heat.shape == (len(found.lengths) - 1, BINS)
    assert heat[:, -1].sum() == heat.sum() == 40
    falling = [make_group(f"p{i}", proxy=-row, lengths=row.tolist()) for i, row in enumerate(lengths)]
    assert length_bias(falling, "proxy").correlation.value == pytest.approx(-1.0)


def test_worked_by_hand_and_what_is_left_out(make_group):
    groups = [make_group("a", proxy=[1, 2, 3], lengths=[2, 1, 3]), make_group("b", proxy=[1, 1, 1], lengths=[1, 2, 3]),
              make_group("c", proxy=[1, 2, 3], lengths=[4, 4, 4]), make_group("d", proxy=[1, 2], lengths=[1, 2]),
              make_group("e", proxy=[1, 2, 3, None], lengths=[1, 2, 3, 9])]
    found = length_bias(groups, "proxy")
    assert found.correlation.value == pytest.approx((0.5 + 1.0) / 2)
    assert (found.correlation.count, found.left_out, found.above_half, found.samples) == (2, 3, 0.5, (3, 3))
    rows = [bias.to_json() for bias in prompt_biases(groups, "proxy", "tokens")]
    assert rows[0] == {"id": "a", "correlation": pytest.approx(0.5), "mean_length": 2.0, "samples": 3}
    assert rows[1]["correlation"] is None
    assert LengthBias.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_rows_of_one_prompt_are_one_unit(make_group):
    rng = np.random.default_rng(0)
    groups = [dataclasses.replace(make_group(f"{i}-{k}", proxy=rng.normal(size=4), lengths=[1, 2, 3, 4]),
                                  prompt=f"q{i}") for i in range(10) for k in range(3)]
    assert length_bias(groups, "proxy").correlation.count == 10


def test_characters_and_tokens_are_lengths_of_their_own(make_group):
    group = make_group("a", proxy=[1, 2, 3], lengths=[3, 2, 1])
    texts = ("a", "bb", [{"role": "assistant", "content": "ccc"}])
    answers = tuple(dataclasses.replace(r, text=text) for r, text in zip(group.responses, texts, strict=True))
    group = dataclasses.replace(group, responses=answers)
    assert length_bias([group], "proxy", "tokens").correlation.value == pytest.approx(-1.0)
    assert length_bias([group], "proxy", "characters").correlation.value == pytest.approx(1.0)


def test_samples_without_a_correlation_are_refused(make_group):
    with pytest.raises(ValueError, match=r"no prompt has three samples .* scores 'gold'; there are scores proxy"):
        length_bias([make_group("a", proxy=[1, 2, 3], lengths=[1, 2, 3])], "gold")


def test_the_figure(make_group, tmp_path):
    group = make_group("a", proxy=[1, 2, 3], lengths=[2, 1, 3])
    write_length_bias(length_bias([group], "proxy").to_json(), tmp_path)
    assert (tmp_path / "figures/length_bias.png").read_bytes().startswith(b"\x89PNG")
