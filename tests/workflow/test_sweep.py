"""A sweep and `worth` on a micro world: what is shared is done once, and tables come from the same numbers."""

import json

import pytest
import yaml

from rlhf_jax.cli import main as cli

pytestmark = pytest.mark.slow

TRAIN = {"train_batch_size": 8, "micro_rows": 2, "row_length": 160, "num_train_epochs": 1, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def config(micro_run, tmp_path_factory):
    micro = micro_run(TRAIN, slots=8, shard_size=4, baselines=["matched_dpo"],
                      scorer={"kind": "function", "function": "rlhf_jax.data.world:gold_judge"})
    micro = {name: section for name, section in micro.items() if name != "reward"}
    path = tmp_path_factory.mktemp("sweep") / "micro.yaml"
    path.write_text(yaml.safe_dump(micro))
    return path


def command(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["rlhf-jax", *map(str, words)])
    cli.main()


def test_cells_share_what_they_have_in_common(config, monkeypatch, capsys, tmp_path):
    words = ["sweep", "--config", config, "--output_dir", tmp_path / "s", "--grid.dpo.beta", "[0.1, 0.5]", "--seeds",
             2, "--page", tmp_path / "page.md"]
    command(monkeypatch, *words)
    first = capsys.readouterr().out
    stages = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "s/stages").iterdir())
    assert stages.count("sft") == 2  # one for each seed
    assert stages.count("online-round-1-sample") == 2
    assert stages.count("online-round-1-dpo") == 4
    assert stages.count("evaluate-sft-judge") == 2
    text = (tmp_path / "s/sweep.md").read_text()
    assert text == (tmp_path / "page.md").read_text()
    assert "2 cells, 2 seeds each" in text
    assert "| dpo.beta=0.5 − dpo.beta=0.1 |" in text
    found = json.loads((tmp_path / "s/sweep.json").read_text())
    assert [cell["name"] for cell in found["cells"]] == ["dpo.beta=0.1", "dpo.beta=0.5"]
    runs = [json.loads((tmp_path / f"s/runs/{cell}/seed-{seed}/results.json").read_text())
            for cell in ("00-dpo.beta=0.1", "01-dpo.beta=0.5") for seed in (0, 1)]
    golds = [run["policies"][-1]["gold"]["value"] for run in runs]
    by_hand = ((golds[2] - golds[0]) + (golds[3] - golds[1])) / 2
    assert f"| {by_hand:+.2f} (" in text
    assert (tmp_path / "s/runs/01-dpo.beta=0.5/seed-1/policy/model.safetensors").is_file()

    command(monkeypatch, *words)  # nothing is done again
    assert " ...\n" in first
    assert "already done" in capsys.readouterr().out
    assert (tmp_path / "s/sweep.md").read_text() == text


def test_worth_ends_with_an_answer(config, monkeypatch, capsys, tmp_path):
    command(monkeypatch, "worth", "--config", config, "--output_dir", tmp_path / "w", "--max_seeds", 2, "--at", "last")
    out = capsys.readouterr().out
    assert "Is online worth it here?" in out
    assert "names a sign in 5 of 100 cases" in out
    found = json.loads((tmp_path / "w/worth.json").read_text())
    assert len(found["differences"]) == 2
    run = json.loads((tmp_path / "w/runs/matched/seed-1/results.json").read_text())
    golds = {p["label"]: p["gold"]["value"] for p in run["policies"]}
    assert found["differences"][1] == pytest.approx(golds["online-2"] - golds["matched_dpo-1"])
    assert found["verdict"] in ("open", "above", "below")
