"""docs/scale.md is what the command makes of docs/plans, and every plan in it can be made again."""

import importlib.util
from pathlib import Path

import pytest

from rlhf_jax.cli import plan
from rlhf_jax.config.plan import PlanOptions
from rlhf_jax.parallel.accelerators import find_accelerator
from rlhf_jax.plan.measure import StagePlan
from rlhf_jax.plan.report import Report, read_json

ROOT = Path(__file__).parent.parent.parent
SPEC = importlib.util.spec_from_file_location("scale", ROOT / "docs" / "scale.py")
scale = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(scale)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_page_is_written_by_the_command():
    assert (ROOT / "docs" / "scale.md").read_text() == scale.page(Path("docs/plans"))


@pytest.mark.parametrize("name", scale.PLANS)
def test_every_plan_is_a_command_that_works(name):
    options, _, model = plan.read(PlanOptions, "plan", scale.PLANS[name].split())
    assert find_accelerator(options.accelerator).devices >= 8
    assert (Path(model) / "config.json").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "plans").glob("*.json")), ids=lambda path: path.stem)
def test_every_plan_that_is_kept_fits_and_moves_nothing_needlessly(path):
    assert path.stem in scale.PLANS
    (report,) = read_json(path)
    for stage in report.stages:
        assert stage.fits, stage.stage
        assert stage.rematerialized == 0, stage.stage
        assert stage.whole_tree == 0, stage.stage
        assert stage.wide == 0 or not stage.exact, stage.stage
        if stage.exact and stage.stage in ("sft", "dpo", "reference", "reward"):
            assert stage.kernels > 0, stage.stage


def test_a_row_for_every_number_of_chips():
    def one(chips, compute, links):
        stage = StagePlan("dpo", {"data": 1, "fsdp": chips, "context": 1, "tensor": 1}, True, 2**34, True, peak=2**30,
                          compute_s=compute, links_s=links, executed=chips * 1e15)
        return Report("t", "a", f"fsdp {chips}: so much", (), (stage,), {"dpo": 1}, 0.5)

    rows = scale.scaling_rows({16: one(16, 1.0, 1.0), 8: one(8, 3.0, 1.0)})
    assert [(row[0], row[1], row[7], row[8]) for row in rows] == [("8", "fsdp 8", "25%", "3.0 s"),
                                                                 ("16", "fsdp 16", "50%", "1.0 s")]
