import copy
import html
import re
import shutil
import subprocess

import numpy as np
import pytest

from rlhf_jax.evaluation import Results
from rlhf_jax.report import write_report as draw

SECTIONS = ("headline", "notes", "comparison", "figures", "reward-model", "training", "data", "samples", "stages",
            "config")
FIGURES = ("reward_against_kl", "reward_by_round", "length_by_round", "win_rate", "reliability", "data_funnel",
           "training-sft", "training-online-1-dpo")


def write_report(results, folder):
    return draw(Results.from_json(results), folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.mark.longer
def test_a_whole_page_stands_alone(results, shared):
    page = write_report(results, shared)
    text = page.read_text(encoding="utf-8")
    for section in SECTIONS:
        assert f'id="{section}"' in text, section
    for figure in FIGURES:
        assert (shared / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG"), figure
        assert f'id="figure-{figure}"' in text
    assert not re.search(r"https?://|<script|<link|<img|@import|url\((?!#)", text)
    assert re.findall(r'href="([^#"][^"]*)"', text) == []
    anchors = re.findall(r'href="#([^"]+)"', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert set(anchors) <= set(ids)
    assert text.count('role="img" aria-label="') == text.count("<svg")


@pytest.mark.longer
def test_text_is_escaped(results, shared):
    results["samples"][0]["prompt"] = [{"role": "user", "content": "<img src=x onerror=1>"}]
    results["notes"] = ["<iframe>"]
    results["config"] = {"title": "</pre><script>"}
    text = write_report(results, shared / "escaped").read_text(encoding="utf-8")
    for hostile in ("<script", "<img", "<iframe", "<small> world"):
        assert hostile not in text
    assert html.escape("<img src=x onerror=1>") in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in text
    assert "cut off" in text


@pytest.mark.longer
def test_the_same_results_give_the_same_bytes(results, tmp_path):
    few = {key: results[key] for key in ("title", "baseline", "policies", "best_of_n")}
    first, second = (write_report(few, tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    for figure in (tmp_path / "a" / "figures").iterdir():
        assert figure.read_bytes() == (tmp_path / "b" / "figures" / figure.name).read_bytes()


COUNTED = {"prompts": 1200, "rows": 1300, "prompt": 10.25, "chosen": 5.0, "rejected": None, "chosen_longer": None,
           "margin": None, "percentiles": {"prompt": [1, 5, 10, 15, 20], "chosen": [1, 2, 5, 6, 9]}}


@pytest.mark.longer
def test_a_mix_has_a_table_and_figures_of_what_there_is(shared):
    sources = [{"source": "<i>one", "published": 52002, **COUNTED}, {"source": "two" * 20, **COUNTED}]
    mix = {"unit": "tokens", "sources": [*sources, {"source": "sum", **COUNTED}], "shared": [[1200, 7], [7, 1200]]}
    empty = Results.from_json({"title": "A mix", "policies": []})
    text = draw(empty, shared / "mix", mix=mix).read_text(encoding="utf-8")
    assert html.escape("<i>one") in text
    assert "<i>one" not in text
    cells = ("1,200", "1,300", "52,002", "10.2", "5.0", "–", "–", "–")
    assert "".join(f"<td>{cell}</td>" for cell in cells) in text
    assert re.findall(r'id="figure-(\w+)"', text) == ["mix_lengths", "mix_overlap"]
    assert sorted(path.stem for path in (shared / "mix" / "figures").iterdir()) == ["mix_lengths", "mix_overlap"]
    assert not re.search(r"https?://|<script|<link|<img|<image|url\((?!#)", text)
    points = {"points": [[0.1, 0.2, 0], [-0.3, 0.1, 1]], "words": [[["oven"], ["loop"]], [["salt"], ["array"]]]}
    mapped = draw(empty, shared / "mapped", mix={**mix, "map": points}).read_text(encoding="utf-8")
    assert "A map of the prompts" in mapped
    assert all(word in mapped for word in ("oven", "loop", "salt", "array"))
    alone = {**mix, "sources": [mix["sources"][0], mix["sources"][-1]], "shared": [[1200]]}
    assert "mix_overlap" not in draw(empty, shared / "alone", mix=alone).read_text(encoding="utf-8")


@pytest.mark.longer
def test_missing_parts_do_not_break_the_page(results, tmp_path):
    text = write_report({"title": "Nothing yet", "policies": []}, tmp_path / "empty").read_text(encoding="utf-8")
    assert "Nothing yet" in text
    for section in SECTIONS:
        assert f'id="{section}"' not in text
    assert not list((tmp_path / "empty" / "figures").iterdir())
    for part in ("training", "reward_model", "funnels", "samples", "stages", "policies"):
        one = {"title": "One part", "policies": [], part: copy.deepcopy(results[part])}
        if part == "policies":
            for row in one["policies"]:
                row.update(dict.fromkeys(("gold", "kl_k1", "kl_k3", "win_rate", "best_of_n")))
        assert "One part" in write_report(one, tmp_path / part).read_text(encoding="utf-8")


@pytest.mark.longer
def test_numbers_of_one_prompt_have_no_interval(results, tmp_path):
    for row in results["policies"]:
        for cell in row.values():
            if isinstance(cell, dict):
                cell.update(standard_error=None, low=None, high=None, count=1)
    few = {key: results[key] for key in ("title", "baseline", "policies")}
    text = write_report(few, tmp_path).read_text(encoding="utf-8")
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH to render the page")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_renders(results, tmp_path, scheme):
    page, shot = write_report(results, tmp_path), tmp_path / "page.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                    "--disable-background-networking", "--disable-component-update", "--disable-sync",
                    "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", *dark,
                    "--window-size=1200,4000", page.as_uri()], check=True, timeout=120, capture_output=True)
    from matplotlib import image

    pixels = image.imread(shot)[..., :3]
    assert pixels.shape[:2] == (4000, 1200)
    background = pixels[2, 2]
    assert (background.mean() > 0.9) == (scheme == "light")
    differs = np.abs(pixels - background).max(axis=-1) > 0.2
    for band in np.split(differs, 8):
        assert band.mean() > 0.005
    assert len(np.unique((pixels * 15).astype(int).reshape(-1, 3), axis=0)) > 50


@pytest.mark.longer
def test_a_run_under_way_has_a_page_that_loads_itself_again(results, tmp_path):
    so_far = {key: results[key] for key in ("title", "created", "training", "funnels", "config")}
    so_far["stages"] = [{"name": "sft", "seconds": 41.2, "found": "40 steps, loss 0.61"}]
    page = draw(Results.from_json(so_far), tmp_path, at_work="online/round-1/<sample>")
    text = page.read_text(encoding="utf-8")
    assert '<meta http-equiv="refresh" content="20">' in text
    assert "at work on <b>online/round-1/&lt;sample&gt;</b>, after 1 finished stages" in text
    assert "40 steps, loss 0.61" in text
    assert 'id="figure-training-sft"' in text
    assert not re.search(r"https?://|<script|<link|<img|@import|url\((?!#)", text)
    text = draw(Results.from_json(so_far), tmp_path).read_text(encoding="utf-8")
    assert "refresh" not in text
    assert "under way" not in text
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_number_of_a_reward_model_says_of_how_few_rows_it_is(results, tmp_path):
    results["reward_model"]["accuracy"]["rows"] = {"judged": 3, "of": 1200}
    text = draw(Results.from_json({"title": "A run", "reward_model": results["reward_model"]}), tmp_path).read_text()
    assert re.search(r"Accuracy<b>[^<]+</b>[^<]+ \(3 of 1,200 rows\)</div>", text)
    assert text.count("of 1,200 rows") == 1


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    text = draw(Results("A run"), tmp_path, at_work="world").read_text(encoding="utf-8")
    assert "after 0 finished stages" in text
