"""`score` and `evaluate` with a judge behind HTTP: answers are kept in the output folder, and asked once."""

import json

import numpy as np

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.jsonl import read_groups, write_groups


def longer(number, body):
    text = body["messages"][-1]["content"]
    first, second = (text.partition(f"<answer {name}>\n")[2].partition("\n</answer")[0] for name in "AB")
    return f"[[{'A' if len(first) > len(second) else 'B'}]]"


def server_keys(server, prefix=""):
    return [f"--{prefix}kind", "judge", f"--{prefix}url", server.url, f"--{prefix}model", "j", f"--{prefix}retry_wait",
            "0", f"--{prefix}max_retries", "1"]


def test_scores_of_samples_and_a_run_that_goes_on_with_what_it_paid_for(serve, rlhf_jax, tmp_path):
    ids = np.array([1], np.int32)
    responses = tuple(Response(ids, np.ones(1, bool), "x" * n) for n in (1, 3, 2))
    groups = [PromptGroup(f"p{i}", ids, responses, f"prompt {i}") for i in range(4)]
    write_groups(tmp_path / "in/shard-00000.jsonl", groups)
    server = serve(lambda n, body: longer(n, body) if n < 10 else "cut")
    command = ["score", "--input", tmp_path / "in", "--output_dir", tmp_path / "out", *server_keys(server),
               "--concurrency", "1"]
    status, _, err = rlhf_jax(*command)
    assert status == 1
    assert "give the same command again" in err
    server.behaviour = longer
    status, _, err = rlhf_jax(*command)
    assert status == 0, err
    questions = [json.dumps(body) for _, body, _ in server.asked]
    assert (len(set(questions)), len(questions)) == (24, 26)  # one of them three times, when the server was dying
    scored = read_groups(tmp_path / "out/shard-00000.jsonl")
    assert [[r.scores["proxy"] for r in group.responses] for group in scored] == [[0.0, 1.0, 0.5]] * 4
    record = json.loads((tmp_path / "out/stage.json").read_text())
    assert not any("answers" in name for name in record["products"])


def test_a_judge_is_evaluated_like_any_scorer(world, serve, rlhf_jax, tmp_path):
    server = serve(longer)
    status, _, err = rlhf_jax("evaluate", *server_keys(server, "scorer."), "--dataset_name",
                              world / "preference_eval.jsonl", "--max_samples", "6", "--output_dir", tmp_path / "out")
    assert status == 0, err
    report = json.loads((tmp_path / "out/stage.json").read_text())["report"]
    assert report["pairs"] == 6
    assert len(server.asked) == 12
