"""Scoring rows of a data set, several numbers per response, and the layouts that lead back into `dataset_name`."""

import json

import numpy as np
import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.commands import ScoreCommand
from rlhf_jax.config.data import RowOptions
from rlhf_jax.data.example import ParseOptions
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.jsonl import SourceError, read_groups, write_groups
from rlhf_jax.data.layouts import pair_rows, scored_row
from rlhf_jax.data.rows import BadRow, parse_row
from rlhf_jax.workflow.datasets import PairFile
from rlhf_jax.workflow.stages.shards import RowShards, read_shards

COUNTS = """
def counts(prompts, completions, **columns):
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [None if t == "bad" else {"": float(len(t)), "words": -float(len(t.split()))} for t in texts]
"""
ROWS = [{"prompt": "p0", "responses": ["one two", "three"], "rewards": [1.0, 2.0]},
        {"prompt": "p1", "chosen": "a b c", "rejected": "dddddddd", "margin": 3.0},
        {"prompt": "p2", "completion": "bad"},
        {"messages": [{"role": "user", "content": "p3"}, {"role": "assistant", "content": "fine"}]},
        {"prompt": "no answer"}]


@pytest.fixture
def scored(tmp_path, do_verb, monkeypatch):
    """The shards of `score` over ROWS, with RLHFlow's layout beside them."""
    (tmp_path / "counting.py").write_text(COUNTS)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return do_verb("score", tmp_path / "scored", dataset_name=str(tmp_path / "rows.jsonl"), kind="function",
                   function="counting:counts", shard_size=2, layout="rlhflow", max_bad_rows=1)


def rows_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_of_any_layout_are_scored_and_every_number_is_kept(scored):
    groups = read_shards(scored.folder)
    assert [path.name for path in sorted(scored.folder.glob("shard-*"))] == ["shard-00000.jsonl", "shard-00001.jsonl"]
    assert [[dict(r.scores) for r in g.responses] for g in groups[:3]] == [
        [{"data": 1.0, "proxy": 7.0, "proxy/words": -2.0}, {"data": 2.0, "proxy": 5.0, "proxy/words": -1.0}],
        [{"proxy": 5.0, "proxy/words": -3.0}, {"proxy": 8.0, "proxy/words": -1.0}],
        [{}]]  # no verdict: absent, never 0
    assert groups[1].pairs == ((0, 1),)
    assert all(not len(g.prompt_ids) for g in groups)
    report = scored.report
    assert (report["prompts"], report["unscored"], report["failures"]) == (4, 1, {"no_score": 1})
    assert report["funnel"]["read"] == 5
    assert report["funnel"]["invalid"] == {"missing_column": 1}


def test_a_pair_is_chosen_by_any_number_and_leads_back_into_dataset_name(scored, do_verb, tmp_path):
    by_score = do_verb("pairs", tmp_path / "score", input=str(scored.folder), layout="trl")
    by_words = do_verb("pairs", tmp_path / "words", input=str(scored.folder), scorer="proxy/words")
    assert [g.responses[0].text for g in read_groups(by_score.folder / "pairs.jsonl")] == ["one two", "dddddddd"]
    assert [g.responses[0].text for g in read_groups(by_words.folder / "pairs.jsonl")] == ["three", "dddddddd"]
    assert rows_in(by_score.folder / "trl.jsonl") == [
        {"prompt": "p0", "chosen": "one two", "rejected": "three", "margin": 2.0},
        {"prompt": "p1", "chosen": "dddddddd", "rejected": "a b c", "margin": 3.0}]
    assert not (by_words.folder / "trl.jsonl").exists()
    ours, theirs = ([parse_row(row, "preference") for row in rows_in(by_score.folder / name)]
                    for name in ("pairs.jsonl", "trl.jsonl"))
    assert [(e.prompt, e.responses, e.pairs, e.margins) for e in ours] == [
        (e.prompt, e.responses, e.pairs, e.margins) for e in theirs]
    judged = do_verb("evaluate", tmp_path / "judged", dataset_name=str(by_score.folder / "pairs.jsonl"),
                     scorer={"kind": "function", "function": "counting:counts"})
    assert judged.report["accuracy"]["value"] == 1.0
    with pytest.raises(SourceError, match=r"group 1 .* is text alone.*dataset_name"):
        PairFile(by_score.folder / "pairs.jsonl", vocab_size=100).read()


def test_rlhflows_layout_reads_back_as_the_same_scores(scored):
    rows = rows_in(scored.folder / "rlhflow.jsonl")
    assert rows[0] == {"prompt_id": rows[0]["prompt_id"], "prompt": "p0", "responses": ["one two", "three"],
                       "rewards": [7.0, 5.0]}
    assert rows[2]["rewards"] == [None]
    example = parse_row(rows[1], "graded")
    assert example.scores == ({"data": 5.0}, {"data": 8.0})


def test_a_later_score_adds_its_numbers_to_text_alone(scored, do_verb, tmp_path):
    twice = do_verb("score", tmp_path / "twice", input=str(scored.folder), name="gold", kind="function",
                    function="counting:counts")
    first = read_shards(twice.folder)[0].responses[0]
    assert first.scores == {"data": 1.0, "proxy": 7.0, "proxy/words": -2.0, "gold": 7.0, "gold/words": -2.0}


def test_sampled_groups_are_read_as_whatever_they_hold():
    ids = np.array([5, 6], np.int32)
    responses = tuple(Response(ids, np.ones(2, bool), text, scores=scores) for text, scores in (
        ("good", {"proxy": 2.0, "label": 1.0}), ("", {"proxy": 1.5}), ("bad", {"proxy": 1.0})))
    row = PromptGroup("p", np.array([1], np.int32), responses, "question", extra={"subset": "x"}).to_json()
    assert parse_row(row, "prompt").responses == ()
    assert parse_row(row, "answered").responses == ("good", "bad")
    assert parse_row(row, "answered").notes == {"left_out_responses": 1}
    one = {**row, "responses": row["responses"][:1]}
    assert parse_row(one, "sft").responses == ("good",)
    assert parse_row(one, "unpaired").scores[0]["label"] == 1.0
    both = {**row, "responses": [row["responses"][i] for i in (2, 0)]}
    example = parse_row(both, "preference", ParseOptions(pair_score="proxy"))
    assert (example.responses, example.pairs, example.margins) == (("bad", "good"), ((1, 0),), (1.0,))
    assert (example.prompt_id, example.extra) == ("p", {"subset": "x"})


@pytest.mark.parametrize(("change", "kind", "reason"), [
    ({}, "sft", "several_responses"), ({"responses": []}, "answered", "no_responses"), ({}, "preference", "no_pair"),
    ({"prompt_ids": []}, "answered", "bad_group"), ({"responses": [{"ids": [3], "text": "t"}]}, "unpaired",
                                                    "missing_column")])
def test_a_group_row_that_does_not_hold_what_is_asked_is_refused_by_name(change, kind, reason):
    response = Response(np.array([5], np.int32), np.ones(1, bool), "text", scores={"proxy": 1.0})
    row = PromptGroup("p", np.array([1], np.int32), (response, response), "question").to_json() | change
    with pytest.raises(BadRow) as caught:
        parse_row(row, kind)
    assert caught.value.reason == reason


def test_a_group_is_text_alone_or_has_ids_throughout(tmp_path):
    row = {"prompt_id": "p", "prompt": "q", "prompt_ids": [], "responses": [{"ids": [], "text": "a"}]}
    assert PromptGroup.from_json(row).to_json() == {**row}
    for change, named in (({"responses": [{"ids": [1], "text": "a"}]}, r"responses\[0\]"),
                          ({"prompt_ids": [1]}, r"responses\[0\]"), ({"prompt": ""}, "no prompt as text")):
        with pytest.raises(ValueError, match=named):
            PromptGroup.from_json(row | change)
    write_groups(tmp_path / "groups.jsonl", [PromptGroup.from_json(row)])
    assert read_groups(tmp_path / "groups.jsonl")[0].responses[0].text == "a"


def test_messages_stay_messages_on_both_sides_of_a_pair():
    question = [{"role": "user", "content": "q"}]
    spoken = [{"role": "assistant", "content": "x"}]
    ids = np.array([5], np.int32)
    responses = (Response(ids, np.ones(1, bool), "yes"), Response(ids, np.ones(1, bool), spoken))
    group = PromptGroup("p", ids, responses, question, pairs=((0, 1),))
    assert pair_rows(group) == [{"prompt": question, "chosen": [{"role": "assistant", "content": "yes"}],
                                 "rejected": spoken}]
    assert scored_row(group, "rm")["rewards"] == [None, None]


@pytest.mark.parametrize(("options", "message"), [
    ({}, "give either input, a folder of shards, or dataset_name"),
    ({"input": "x", "dataset_name": "y"}, "input = 'x' and dataset_name are both given"),
    ({"input": "x", "max_samples": 3}, "max_samples has no effect with input"),
    ({"input": "x", "shard_size": 3}, "shard_size has no effect with input")])
def test_what_is_scored_is_said_once(options, message):
    with pytest.raises(ValueError, match=message):
        build(ScoreCommand, {"output_dir": "o", "kind": "function", "function": "m:f", **options})


def test_the_key_of_scored_rows_follows_their_contents_and_cut(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n")
    keys = [RowShards(RowOptions(dataset_name=str(path)), size).key for size in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]
    path.write_text(json.dumps(ROWS[1]) + "\n")
    assert RowShards(RowOptions(dataset_name=str(path)), 1).key != keys[0]
