"""The verb `data`: one mix of several sources, every loss counted, the same bytes however often it is interrupted."""

import json

import pytest

from rlhf_jax.cli.run import draw_mix
from rlhf_jax.data.jsonl import SourceError, read_jsonl
from rlhf_jax.data.load import load_examples
from rlhf_jax.workflow.stages import data as stage_module

LONG = "Please tell me in a few words how it is that the sky over us looks blue"


@pytest.fixture
def mix(do_verb, tmp_path):
    """mix(sources, name, **options): the finished stage of a mix of files with these rows."""

    def make(sources, name="mix", **options):
        entries = []
        for number, source in enumerate(sources):
            rows, more = source if isinstance(source, tuple) else (source, {})
            path = tmp_path / f"source-{number}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            entries.append({"name": str(path), **more})
        return do_verb("data", tmp_path / name, sources=entries, near_duplicates=options.pop("near_duplicates", None),
                       **options)

    return make


def pairs(*prompts, chosen="good", rejected="bad", **more):
    return [{"prompt": prompt, "chosen": chosen, "rejected": rejected, **more} for prompt in prompts]


def rows_of(stage, name="train"):
    return [row for path in sorted(stage.folder.glob(f"{name}-*.jsonl")) for row in read_jsonl(path)]


def many(count, start=0):
    return pairs(*(f"question {i}" for i in range(start, start + count)))


def test_every_loss_is_in_the_funnel_of_its_source(mix, tmp_path):
    (tmp_path / "bench.jsonl").write_text(json.dumps({"instruction": LONG}))
    graded = {"prompt": "graded", "responses": ["a", "b", "c"], "rewards": [1, 2, 3]}
    first = [*pairs("p", "P ", "q"), {"prompt": "r"}, graded, *pairs("Now. " + LONG, "one more")]
    second = [*pairs("q", chosen="bad", rejected="good"), *pairs("s", margin=-1), *pairs("t")]
    stage = mix([(first, {"max_pairs_per_prompt": 2, "max_bad_rows": 1}), second],
                benchmarks=[str(tmp_path / "bench.jsonl")])
    one, two = stage.report["sources"]
    assert one["invalid"] == {"missing_column": 1}
    assert one["dropped"] == {"repeated_row": 1, "contradicting_pair": 1, "benchmark_prompt": 1, "beyond_max_pairs": 1}
    assert (one["read"], one["kept"], one["notes"]["more_pairs_of_a_row"]) == (9, 4, 2)
    assert (two["read"], two["kept"], two["dropped"]) == (3, 1, {"contradicting_pair": 2})
    assert stage.report["funnel"]["kept"] == stage.report["rows"]["train"] == len(rows_of(stage)) == 5
    (found,) = read_jsonl(stage.folder / "decontaminated.jsonl")
    assert (found["row_number"], found["benchmark_row"], found["question"], found["rows"]) == (6, 1, LONG, 1)
    assert {row["prompt"] for row in rows_of(stage)} == {"p", "graded", "one more", "t"}
    statistics = json.loads((stage.folder / "statistics.json").read_text())
    assert [row["rows"] for row in statistics["sources"]] == [4, 1, 5]
    assert "| sum | 4 | 5 |" in (stage.folder / "statistics.md").read_text()
    assert len(read_jsonl(stage.folder / "quarantine-0000.jsonl")) == 1


@pytest.mark.longer
def test_the_page_of_a_mix_follows_from_what_was_counted(mix, capsys):
    stage = mix([pairs("p", "q", margin=2), pairs("P", "r", chosen="better")])
    draw_mix(stage.report, stage.folder)
    page = (stage.folder / "report.html").read_bytes()
    assert "report.html" in capsys.readouterr().out
    assert json.loads((stage.folder / "statistics.json").read_text())["shared"] == [[2, 1], [1, 2]]
    text = page.decode()
    assert "A mix of 2 sources" in text
    assert "2. " + stage.report["sources"][1]["name"] in text
    for name in ("mix_lengths", "mix_margins", "mix_overlap"):
        assert f'id="figure-{name}"' in text
    draw_mix(stage.report, stage.folder)
    assert (stage.folder / "report.html").read_bytes() == page
    (stage.folder / "statistics.json").write_text('{"unit": "words", "sources": []}')  # as an earlier version wrote it
    draw_mix(stage.report, stage.folder)
    assert (stage.folder / "report.html").read_bytes() == page


def test_opposite_labels_are_kept_where_that_is_asked_for(mix):
    sources = [pairs("p"), pairs("p", chosen="bad", rejected="good")]
    with pytest.raises(ValueError, match=r"(?s)no row is left.*-2  contradicting_pair"):
        mix(sources)
    stage = mix(sources, "kept", contradictions="keep")
    assert len(rows_of(stage)) == 2
    assert [source["notes"]["contradicting_pair"] for source in stage.report["sources"]] == [1, 1]


def test_sizes_weights_and_a_mix_larger_than_its_sources(mix):
    sources = [(many(40), {"weight": 3}), many(40, 100)]
    stage = mix(sources, size=40)
    taken = [row["source"][-7] for row in rows_of(stage)]
    assert (taken.count("0"), taken.count("1")) == (30, 10)
    assert [source["dropped"]["beyond_size"] for source in stage.report["sources"]] == [10, 30]
    with pytest.raises(ValueError, match=r"asks for 45 rows of sources\[0\], which has 40; .* at most about 53"):
        mix(sources, "more", size=60)
    other = mix(sources, "other", size=40, seed=1)
    assert {row["prompt"] for row in rows_of(other)} != {row["prompt"] for row in rows_of(stage)}


def test_splits_and_batches_share_no_prompt(mix):
    doubled = [*many(100), *pairs(*(f"Question  {i}" for i in range(100)), chosen="better")]
    stage = mix([doubled, many(50, 80)], valid_percent=10, test_percent=20, batches=2, batch_size=50, shard_size=30)
    prompts = [{" ".join(row["prompt"].lower().split()) for row in rows_of(stage, name)}
               for name in ("batch-1", "batch-2", "valid", "test")]
    assert all(prompts)
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    assert stage.report["rows"]["batch-1"] in (49, 50)
    assert sorted(path.name for path in stage.folder.glob("batch-1-*"))[0] == "batch-1-00000.jsonl"
    left = stage.report["funnel"]["dropped"]["beyond_batches"]
    assert left + sum(stage.report["rows"].values()) == stage.report["funnel"]["read"] - 20  # 20 rows are repeated
    with pytest.raises(ValueError, match="2 batches of 500 rows need 1,000"):
        mix([doubled], "more", batches=2, batch_size=500)


def test_other_kinds_options_and_columns(mix):
    instructions = [{"question": f"do {i}", "output": f"done {i}"} for i in range(4)]
    source = (instructions, {"converter": "alpaca", "columns": {"instruction": "question"}, "max_rows": 3,
                             "published": 52002})
    stage = mix([source], kind="sft")
    examples, _ = load_examples(str(stage.folder / "train-*.jsonl"), "sft")
    assert {e.responses[0][0]["content"] for e in examples} == {"done 0", "done 1", "done 2"}
    assert "52,002" in (stage.folder / "statistics.md").read_text()
    spoken = [{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}], "completion": "c"}]
    quiet = mix([(spoken, {"drop_system": True})], "quiet", kind="sft")
    assert rows_of(quiet)[0]["prompt"] == [{"role": "user", "content": "p"}]
    assert quiet.report["funnel"]["notes"] == {"dropped_system": 1}
    asked = mix([(instructions, {**source[1], "prompts_from": "first_user"})], "prompts", kind="prompt")
    assert {row["prompt"][0]["content"] for row in rows_of(asked)} == {"do 0", "do 1", "do 2"}
    once = mix([[{"prompt": "p", "completion": c} for c in "abc"]], "once", kind="sft", drop_duplicate_prompts=True)
    assert [row["completion"] for row in rows_of(once)] == ["a"]
    with pytest.raises(ValueError, match="columns names 'asked', which the row does not have; it has question, output"):
        mix([(instructions, {"columns": {"prompt": "asked"}})], "missing", kind="sft")


def test_near_duplicates_of_another_prompt_are_left_out_with_all_their_rows(mix):
    pytest.importorskip("datasketch")
    text = " ".join(f"word{i}" for i in range(40))
    rows = [*pairs(text), *pairs(text, chosen="better"), *pairs(text + " end"), *pairs(text + " end", chosen="best")]
    stage = mix([rows], near_duplicates=0.8)
    assert {row["prompt"] for row in rows_of(stage)} == {text}
    assert stage.report["funnel"]["dropped"] == {"near_duplicate_prompt": 2}
    assert len(rows_of(mix([rows], "far", near_duplicates=0.99))) == 4


def test_benchmarks_are_looked_for_in_all_that_is_asked_and_in_texts(mix, tmp_path):
    (tmp_path / "bench.jsonl").write_text(json.dumps({"instruction": LONG}))
    said = ("Hi", "Yes?", LONG, "So.")
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    conversations = [{"messages": turns}, {"messages": [*turns[:2], {"role": "user", "content": "Bye"}, turns[3]]},
                     {"messages": [turns[0], {"role": "assistant", "content": LONG}]}]
    texts = [{"text": f"Q: {LONG}? A: So."}, {"text": "once upon a time"}, {"text": "the end"}]
    stage = mix([conversations, texts], kind="sft", benchmarks=[str(tmp_path / "bench.jsonl")])
    assert [source["dropped"] for source in stage.report["sources"]] == [{"benchmark_prompt": 1}] * 2
    assert [(found["row_number"], found["rows"]) for found in read_jsonl(stage.folder / "decontaminated.jsonl")] == [
        (1, 1), (1, 1)]
    assert len(rows_of(stage)) == 4


def test_the_folder_of_a_mix_is_read_back_by_its_sides_and_batches(mix, tmp_path):
    (tmp_path / "bench.jsonl").write_text(json.dumps({"instruction": "question 0"}))
    stage = mix([(many(60), {"max_bad_rows": 1.0})], benchmarks=[str(tmp_path / "bench.jsonl")], shard_size=10,
                valid_percent=20)
    for source in (stage.folder, stage.folder / "*", stage.folder / "*.jsonl"):
        for side in ("train", "valid"):
            assert len(load_examples(str(source), "preference", split=side)[0]) == stage.report["rows"][side]
    again = mix([([], {"name": str(stage.folder), "split": "train"})], "again")
    assert again.report["rows"] == {"train": stage.report["rows"]["train"]}
    batches = mix([many(60)], "batches", batches=2, batch_size=20)
    rows = load_examples(str(batches.folder), "preference", split="batch-2")[0]
    assert {row.prompt for row in rows} == {row["prompt"] for row in rows_of(batches, "batch-2")}


QUESTIONS = ("Who wrote the Iliad", "How do bees find home", "Why is ice lighter than water", "What did Euler prove")


@pytest.mark.parametrize("rows", [
    [{"prompt": [{"role": "system", "content": "be kind and brief and true " * 20}, {"role": "user", "content": q}]}
     for q in QUESTIONS],
    [{"prompt": [{"role": role, "content": f"{role} says {i} to the question of the trees" if i else QUESTIONS[0]}
                 for i in range(2 * turns + 1) for role in [("user", "assistant")[i % 2]]]} for turns in range(9)],
    [{"prompt": [{"role": "system", "content": f"you are number {i}"}, {"role": "user", "content": QUESTIONS[0]}]}
     for i in range(4)],
    [{"prompt": [{"role": "user", "content": q}, {"role": "assistant", "content": "I do not know that. " * 20},
                 {"role": "user", "content": "Why?"}]} for q in QUESTIONS],
], ids=["one system message", "steps of a trajectory", "several system messages", "the same answer"])
def test_prompts_are_near_duplicates_by_what_users_say_alone(mix, rows):
    pytest.importorskip("datasketch")
    stage = mix([rows], kind="prompt", near_duplicates=0.8)
    assert len(rows_of(stage)) == len(rows)


def test_what_is_missing_is_said_before_any_source_is_read(mix, monkeypatch):
    monkeypatch.setattr(stage_module, "read_data", None)
    with pytest.raises(SourceError, match=r"there is no file '/none\.jsonl'"):
        mix([many(3)], benchmarks=["/none.jsonl"])
    with pytest.raises(SourceError, match=r"there is no file '/gone\.jsonl'"):
        mix([(many(3), {"name": "/gone.jsonl"})], "gone")
    with pytest.raises(ValueError, match="converter 'shp' has no option 'ratio'"):
        mix([many(3), (many(3), {"converter": "shp", "converter_options": {"ratio": 3}})], "option")


def test_interrupted_anywhere_it_ends_in_the_same_bytes(mix, monkeypatch):
    sources = [many(30), many(30, 20), many(10, 60)]
    options = {"valid_percent": 20, "shard_size": 10}

    def made(stage):
        return {path.name: path.read_bytes() for path in stage.folder.iterdir() if path.name != "stage.json"}

    whole = made(mix(sources, "whole", **options))
    assert not any(name.startswith(".") for name in whole)
    write, read = stage_module.write_jsonl_atomic, stage_module.read_data
    for last in range(9):
        count, reads = iter(range(last)), []

        def dying(*args, count=count):
            if next(count, None) is None:
                raise KeyboardInterrupt
            return write(*args)

        monkeypatch.setattr(stage_module, "write_jsonl_atomic", dying)
        with pytest.raises(KeyboardInterrupt):
            mix(sources, f"again-{last}", **options)
        monkeypatch.setattr(stage_module, "write_jsonl_atomic", write)
        monkeypatch.setattr(stage_module, "read_data", lambda *args, reads=reads: reads.append(1) or read(*args))
        assert made(mix(sources, f"again-{last}", **options)) == whole
        assert len(reads) == max(0, 3 - last)  # what was converted is not converted again


def test_the_same_mix_is_made_once(mix):
    assert not mix([many(5)]).reused
    assert mix([many(5)]).reused
