"""A grid's cells, and what is no grid."""

import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.sweep import SweepCommand, WorthCommand

RUN = {"output_dir": "o", "prompts": {"dataset_name": "x"}, "model_name_or_path": "m",
       "scorer": {"kind": "function", "function": "m:f"}, "evaluation": {"data": {"dataset_name": "y"}}}


def sweep(**keys):
    return build(SweepCommand, {**RUN, **keys})


def test_every_combination_is_a_cell_and_the_first_values_make_the_first():
    cells = sweep(grid={"dpo.beta": [0.1, 0.3], "loop": {"rounds": [3, 1]}}).cells
    assert [cell.name for cell in cells] == ["dpo.beta=0.1, loop.rounds=3", "dpo.beta=0.1, loop.rounds=1",
                                             "dpo.beta=0.3, loop.rounds=3", "dpo.beta=0.3, loop.rounds=1"]
    assert [(cell.config.dpo.loss.beta, cell.config.loop.rounds) for cell in cells] == [
        (0.1, 3), (0.1, 1), (0.3, 3), (0.3, 1)]
    assert cells[0].config.evaluation == sweep().cells[0].config.evaluation


def test_without_a_grid_the_run_itself_is_the_one_cell():
    (cell,) = sweep(title="T").cells
    assert (cell.name, cell.config) == ("T", sweep(title="T").run)


def test_a_value_may_be_a_list_or_a_section_that_the_run_lacks():
    cells = sweep(grid={"baselines": [[], ["raft"]], "pairs.rule": ["max_min", "random"]}).cells
    assert [cell.config.baselines for cell in cells] == [(), (), ("raft",), ("raft",)]
    (cell,) = sweep(grid={"sft.data.dataset_name": ["s"]}).cells
    assert cell.config.sft.data.rows.sources == ("s",)


@pytest.mark.parametrize(("keys", "words"), [
    ({"grid": {"dpo.betta": [0.1]}}, r"grid: dpo.betta=0.1: no such key: dpo.betta"),
    ({"grid": {"dpo.beta": [0.1, -1]}}, r"grid: dpo.beta=-1: dpo: beta"),
    ({"grid": {"dpo.beta": 0.1}}, r"grid: dpo.beta = 0.1; give the list of values"),
    ({"grid": {"dpo.beta": []}}, r"grid: dpo.beta = \[\]; give the list"),
    ({"grid": {"output_dir": ["a", "b"]}}, "output_dir is one for the whole sweep"),
    ({"grid": {"mesh.data": [1, 2]}}, "mesh.data is one for the whole sweep"),
    ({"seeds": 0}, "seeds = 0"),
    ({"evaluation": None}, "the run has no evaluation section, and this verb compares policies"),
])
def test_what_is_no_grid_is_refused_by_name(keys, words):
    with pytest.raises(ValueError, match=words):
        sweep(**keys)


def test_worth_runs_the_matched_control_alone_and_needs_a_divergence_to_compare_at():
    run = {**RUN, "baselines": ["raft"], "raft": {"learning_rate": 1e-4}}
    assert build(WorthCommand, run).matched.baselines == ("matched_dpo",)
    cold = {**RUN, "evaluation": {"data": {"dataset_name": "y"}, "sampling": {"temperature": 0.7}}}
    with pytest.raises(ValueError, match=r"at = 'equal_kl' needs the divergence from the start.*at: last"):
        build(WorthCommand, cold)
    assert build(WorthCommand, {**cold, "at": "last"}).at == "last"


def test_worth_needs_more_rounds_than_one():
    with pytest.raises(ValueError, match=r"loop.rounds = 1; .*nothing to compare"):
        build(WorthCommand, {**RUN, "loop": {"rounds": 1}})
