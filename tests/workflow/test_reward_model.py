"""What the files of a sequence classifier say of how it is read."""

import json

import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.scorer import BradleyTerryScoring
from rlhf_jax.data.rows import Example
from rlhf_jax.models import read_config
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.kinds import open_scorer
from rlhf_jax.workflow.reward_model import pad_as_config, reading_key, reading_note

CHAT = Example([{"role": "user", "content": "Write."}], ("Once upon a time.",))


def set_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_language_model_gets_a_padding_token_that_ends_no_conversation(make_model, tmp_path):
    folder = make_model(tmp_path / "model")
    tokenizer = Checkpoint(folder).tokenizer
    set_json(folder / "tokenizer_config.json", pad_token=tokenizer.eos_token)
    set_json(folder / "config.json", pad_token_id=tokenizer.eos_token_id)
    found = Checkpoint(folder).reward_model
    assert (found.num_labels, found.score_at, found.tie_embeddings) == (1, "last_token", False)
    assert found.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert f"padding id is {found.pad_token_id} (of the model it was made from: {tokenizer.eos_token_id})" in \
        reading_note(found, folder)
    pad_as_config(folder, found)
    assert json.loads((folder / "tokenizer_config.json").read_text())["pad_token"] == tokenizer.pad_token


def test_a_classifier_keeps_the_padding_token_and_the_place_it_was_trained_with(make_model, tmp_path):
    folder = make_model(tmp_path / "model", num_labels=1, score_at="end_of_turn", pad_token_id=2)
    found = Checkpoint(folder).reward_model
    assert (found.pad_token_id, found.score_at) == (2, "end_of_turn")
    assert reading_key(found) == {"reads": ["end_of_turn", 2]}
    assert "transformers, TRL and vLLM read the last token" in reading_note(found, folder)


def test_a_language_model_has_no_reading(model):
    config = Checkpoint(model).config
    assert (reading_note(config, model), reading_key(config)) == ("", {})


def test_only_rows_for_a_reward_model_reach_beyond_the_stop_token(make_model, tmp_path):
    folder, classifier = make_model(tmp_path / "model"), make_model(tmp_path / "classifier", num_labels=1)
    old = make_model(tmp_path / "old", num_labels=1, score_at="end_of_turn")
    for path in (folder, classifier, old):
        template = (path / "chat_template.jinja").read_text()
        (path / "chat_template.jinja").write_text(template + "{% if not add_generation_prompt %}{{ '!!' }}{% endif %}")
    ends = [one.tokenizer.decode(one.renderer(RenderOptions(), scores=scores).render(CHAT).responses[0].ids)
            for one, scores in ((Checkpoint(folder), False), (Checkpoint(folder), True),
                                       (Checkpoint(classifier), False), (Checkpoint(old), False))]
    assert [end.endswith("!!") for end in ends] == [False, True, True, False]


@pytest.mark.parametrize(("stored", "given", "expected"), [
    ("last_token", None, "last_token"), ("end_of_turn", None, "end_of_turn"),
    ("end_of_turn", "last_token", "last_token"), (None, None, "last_token"), (None, "end_of_turn", "end_of_turn"),
])
def test_a_scorer_reads_where_it_is_told_else_where_the_config_says(stored, given, expected, make_model, lone_mesh,
                                                                     tmp_path):
    folder = make_model(tmp_path / "model", num_labels=1)
    raw = json.loads((folder / "config.json").read_text())
    assert raw.pop("rlhf_jax_score_at") == "last_token"
    (folder / "config.json").write_text(json.dumps(raw if stored is None else raw | {"rlhf_jax_score_at": stored}))
    options = build(BradleyTerryScoring, {"model_name_or_path": str(folder), "score_at": given})
    scorer = open_scorer(options, lone_mesh, "proxy")
    assert scorer._renderer.to_last_token == (expected == "last_token")


@pytest.mark.longer
def test_what_is_exported_says_how_it_is_read_and_another_padding_token_trains_anew(make_model, do_verb, world,
                                                                                    tmp_path):
    folder = make_model(tmp_path / "model")
    do_verb("reward", tmp_path / "out", model_name_or_path=str(folder), max_steps=1,
            dataset_name=str(world / "preference.jsonl"))
    found = read_config(tmp_path / "out" / "model")
    assert found.pad_token_id == Checkpoint(folder).reward_model.pad_token_id
    assert "last token that is not padding of the rendered" in (tmp_path / "out" / "model" / "README.md").read_text()
    inputs = json.loads((tmp_path / "out" / "inputs.json").read_text())["inputs"]
    assert inputs["reads"] == ["last_token", found.pad_token_id]
