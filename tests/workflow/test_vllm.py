"""A real vLLM server samples and judges. RLHF_JAX_VLLM names the Python of an environment with vLLM."""

import json
import os
import socket
import subprocess
import time
import urllib.request

import pytest

from rlhf_jax.workflow.stages.shards import read_shards

VLLM = os.environ.get("RLHF_JAX_VLLM")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VLLM, reason="RLHF_JAX_VLLM names no Python that has vLLM")]
STARTS = ["Once upon a time there was a", "Lily and Tom went to the", "The dog saw a big", "One day, a bird"]
RUBRIC = """
user: "{question} {answer_a} And then, {answer_b} In the end"
verdict: '(\\w)\\W*$'  # the reply's last letter: this judge is a story teller, and any rule will do
a: e
b: d
tie: y
"""


@pytest.fixture(scope="module")
def model(shared):
    folder = shared / "models" / "stories15M"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    """The address of a server of the model, called m."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                   "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    with log.open("w") as out:
        server = subprocess.Popen(
            [VLLM, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "m",
             "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
             "--no-enable-chunked-prefill"], env=environment, stdout=out, stderr=out)
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def version(url):
    with urllib.request.urlopen(url.removesuffix("/v1") + "/version") as answer:
        return json.load(answer)["version"]


def test_generate_is_sampled_by_it_and_passes_the_gate(url, model, do_verb, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in STARTS))
    made = do_verb("generate", tmp_path / "sampled", model_name_or_path=str(model), dataset_name=str(prompts),
                   num_generations=4, max_new_tokens=24, engine={
                       "urls": url, "model": "m", "name": "vllm", "version": version(url), "checked_prompts": 4})
    groups = read_shards(tmp_path / "sampled")
    assert [group.prompt for group in groups] == STARTS
    assert {len({response.text for response in group.responses}) for group in groups} == {4}
    assert 0 < made.report["logps_max_difference"] < 1e-3


def test_pairs_are_judged_by_it_and_nothing_is_asked_twice(url, do_verb, tmp_path):
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": start, "chosen": " little girl.", "rejected": f" cat number {i}."})
                             + "\n" for i, start in enumerate(STARTS)))
    judged = {"scorer": {"kind": "judge", "url": url, "model": "m", "rubric": str(tmp_path / "rubric.yaml"),
                         "endpoint": "completions", "max_tokens": 16, "cache_dir": str(tmp_path / "answers")},
              "dataset_name": str(pairs)}
    first = do_verb("evaluate", tmp_path / "one", **judged)
    asked = len((next((tmp_path / "answers").iterdir())).read_text().splitlines())
    again = do_verb("evaluate", tmp_path / "two", **judged)
    assert len((next((tmp_path / "answers").iterdir())).read_text().splitlines()) == asked == 2 * len(STARTS)
    assert again.report == first.report
