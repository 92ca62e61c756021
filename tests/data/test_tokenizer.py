import importlib.util
import json
import sys

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf_jax.data.templates import TemplateRefused
from rlhf_jax.data.tokenizer import (
    TEMPLATES,
    adds_leading_space,
    check_vocabulary,
    classifier_pad_id,
    end_of_turn,
    has_bos_for_text,
    load_template,
    load_tokenizer,
    pad_token_id,
    plain_ids,
    stop_token_ids,
    template_choices,
    template_ids,
    write_pad_token,
)

USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(("template", "stop", "trailing"), [
    ("chatml", "<|im_end|>", 1), ("llama3", "<|eot_id|>", 0), ("zephyr", "</s>", 1), ("plain", "</s>", 2)])
def test_named_templates(make_tokenizer, template, stop, trailing):
    tokenizer = make_tokenizer(template)
    end = end_of_turn(tokenizer)
    assert (tokenizer.convert_ids_to_tokens(end.stop_id), end.trailing) == (stop, trailing)
    prompt = template_ids(tokenizer, USER, generation=True)
    whole = template_ids(tokenizer, [*USER, {"role": "assistant", "content": "yo"}], generation=False)
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert prompt[0] == tokenizer.bos_token_id
    assert whole[: len(prompt)] == prompt


def test_chatml_with_its_turn_opener_as_bos(make_tokenizer):
    tokenizer = make_tokenizer("chatml", bos_token="<|im_start|>", eos_token="<|im_end|>")
    ids = template_ids(tokenizer, USER, generation=True)
    assert ids[0] == tokenizer.bos_token_id != ids[1]
    assert not has_bos_for_text(tokenizer)
    assert has_bos_for_text(make_tokenizer("chatml"))
    assert has_bos_for_text(make_tokenizer())
    assert not has_bos_for_text(make_tokenizer(bos_token=None))


def test_stop_tokens(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    eos, end, bos = (tokenizer.convert_tokens_to_ids(t) for t in ("</s>", "<|im_end|>", "<s>"))
    assert stop_token_ids(tokenizer) == (eos, end)
    assert stop_token_ids(tokenizer, {"eos_token_id": bos}) == (eos, bos, end)
    assert stop_token_ids(make_tokenizer(), {"eos_token_id": [eos, bos]}) == (eos, bos)
    with pytest.raises(ValueError, match="would never stop"):
        stop_token_ids(make_tokenizer(eos_token=None))


def test_template_without_a_stop_token_is_an_error(make_tokenizer):
    tokenizer = make_tokenizer("{% for m in messages %}{{ m['content'] }}###{% endfor %}")
    with pytest.raises(ValueError, match="could not learn to stop"):
        end_of_turn(tokenizer)


def test_no_template_and_a_template_that_refuses(make_tokenizer):
    with pytest.raises(ValueError, match=r"no chat template.*chatml"):
        template_ids(make_tokenizer(), USER, generation=True)
    with pytest.raises(TemplateRefused, match="turns user: no thanks"):
        template_ids(make_tokenizer("{{ raise_exception('no thanks') }}"), USER, generation=True)


@pytest.mark.parametrize(("special", "fitting", "others"), [
    ({}, "one of chatml, llama3, zephyr, mistral, plain", "gemma"),
    ({"eos_token": None}, "one of chatml, llama3", "zephyr, mistral, gemma, plain"),
    ({"bos_token": None}, "one of chatml, llama3, zephyr, mistral, plain", "gemma"),
])
def test_templates_are_offered_whose_special_tokens_are_there(make_tokenizer, special, fitting, others):
    tokenizer = make_tokenizer(**special)
    with pytest.raises(ValueError, match=r"no chat template.* scorer\.chat_template_path") as caught:
        template_ids(tokenizer, USER, generation=True)
    assert f"to a file or to {fitting} (it lacks the special tokens of {others})." in str(caught.value)
    assert tokenizer.chat_template is None


def test_a_tokenizer_without_markers_and_stop_token_is_offered_a_file(make_tokenizer):
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    assert template_choices(words).startswith("a file (it lacks the special tokens of chatml, ")


def test_padding_is_never_a_stop_token(make_tokenizer):
    assert pad_token_id(make_tokenizer()) == make_tokenizer().pad_token_id
    for pad in (None, "</s>"):
        tokenizer = make_tokenizer(pad_token=pad)
        assert tokenizer.convert_ids_to_tokens(pad_token_id(tokenizer)) == "<pad>"
    tokenizer = make_tokenizer("chatml", pad_token="<|im_end|>")
    assert pad_token_id(tokenizer) not in stop_token_ids(tokenizer)


@pytest.mark.parametrize(("template", "special", "configured", "expected"), [
    ("chatml", {}, None, "<pad>"),
    ("chatml", {"pad_token": "</s>"}, None, "<pad>"),
    ("llama3", {"pad_token": "<|eot_id|>"}, None, "<pad>"),
    ("{% for m in messages %}{{ m['content'] + '</s><pad>' }}{% endfor %}", {"pad_token": "<pad>"}, None, "<s>"),
    ("llama3", {}, "<|eot_id|>", "<|eot_id|>"),  # of a classifier that was trained with it
    ("llama3", {}, "cat", "<pad>"),  # text cannot be padding
    (None, {"eos_token": "<s>", "bos_token": "<s>", "pad_token": "<s>"}, None, "<pad>"),
])
def test_a_classifiers_padding_is_a_special_token_that_ends_no_conversation(template, special, configured, expected,
                                                                            make_tokenizer):
    tokenizer = make_tokenizer(template, **special)
    configured = configured and tokenizer.convert_tokens_to_ids(configured)
    assert tokenizer.convert_ids_to_tokens(classifier_pad_id(tokenizer, configured)) == expected


def test_a_pad_token_is_written_into_the_files_and_nothing_else_changes(make_tokenizer, tmp_path):
    before = make_tokenizer("chatml", pad_token="<|im_end|>")
    before.save_pretrained(tmp_path)
    write_pad_token(tmp_path, 0)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert (after.pad_token, after.eos_token, after.chat_template) == ("<pad>", before.eos_token, before.chat_template)
    assert after("the cat<|im_end|>")["input_ids"] == before("the cat<|im_end|>")["input_ids"]
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_pad_token(tmp_path, 0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_load_tokenizer(make_tokenizer, tmp_path):
    make_tokenizer("chatml", pad_token="</s>").save_pretrained(tmp_path / "tok")
    tokenizer = load_tokenizer(str(tmp_path / "tok"))
    assert tokenizer.chat_template == TEMPLATES["chatml"]
    assert tokenizer.pad_token == "<pad>"
    assert load_tokenizer(str(tmp_path / "tok"), "llama3").chat_template == TEMPLATES["llama3"]
    (tmp_path / "own.jinja").write_text("own")
    assert load_template(str(tmp_path / "own.jinja")) == "own"
    assert load_template(str(tmp_path / "tok")) == TEMPLATES["chatml"]
    with pytest.raises(ValueError, match=r"no chat template 'chatmll'.*chatml, llama3"):
        load_template("chatmll")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"(?s)no tokenizer can be loaded from .*tokenizer\.json"):
        load_tokenizer(str(tmp_path / "empty"))


def test_a_token_that_text_can_hold_needs_a_row_in_the_embedding(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer("chatml")
    check_vocabulary(tokenizer, 320, tmp_path)
    check_vocabulary(tokenizer, 1000, tmp_path)
    with pytest.raises(ValueError, match=r"has 2 tokens without a row in the model's embedding of 318 rows: .*\(319\)"):
        check_vocabulary(tokenizer, 318, tmp_path)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=r"1 tokens without a row .*'<new>' \(320\).*resize_token_embeddings"):
        check_vocabulary(tokenizer, 320, tmp_path)


def test_a_special_token_beyond_the_rows_is_let_pass_unless_it_opens_or_ends_texts(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer("chatml")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    check_vocabulary(tokenizer, 320, tmp_path)
    for name in ("bos_token", "eos_token", "unk_token"):
        tokenizer = make_tokenizer("chatml")
        tokenizer.add_special_tokens({name: "<new>"})
        with pytest.raises(ValueError, match="'<new>'"):
            check_vocabulary(tokenizer, 320, tmp_path)


@pytest.mark.parametrize(("text", "named"), [
    ("[]", "list"), ('{"chat_template": 5}', "chat_template is 5"),
    ('{"added_tokens_decoder": []}', "added_tokens_decoder"), ("{", "no JSON")])
def test_a_tokenizer_config_of_another_shape_is_named(text, named, make_tokenizer, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json.*{named}"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("setting", [{"model_max_length": "2048"}, {"model_max_length": [7]},
                                     {"model_input_names": 5}, {"split_special_tokens": "no"}])
def test_a_setting_with_which_no_text_can_be_read_is_an_error_of_the_tokenizer(setting, make_tokenizer, tmp_path):
    make_tokenizer("chatml").save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(ValueError, match="no tokenizer can be loaded from"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', '{"added_tokens": [], "model": {"type": "BPE"}}',
                                  '{"added_tokens": [{"id": "x"}], "model": {}}'])
def test_a_tokenizer_that_cannot_be_read_is_an_error_with_its_folder(text, make_tokenizer, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"no tokenizer can be loaded from .*holds tokenizer.json"):
        load_tokenizer(str(tmp_path))


def test_added_tokens_and_named_templates_that_come_in_files_of_their_own_are_read(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer("chatml")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).chat_template == {"default": TEMPLATES["chatml"], "tool_use": "tools"}


@pytest.mark.parametrize("auto_map", [{"AutoTokenizer": ["own.Own", None]}, ["own.Own", None]], ids=str)
def test_code_in_a_model_folder_is_never_run(auto_map, make_tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": auto_map}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    with pytest.raises(ValueError, match="code from model folders is never run"):
        load_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_the_code_of_a_model_with_a_config_of_its_own_is_not_run_for_its_tokenizer(make_tokenizer, monkeypatch,
                                                                                  tmp_path):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    assert load_tokenizer(str(tmp_path)).eos_token == "</s>"
    assert not (tmp_path / "ran").exists()


def test_a_sentencepiece_model_alone_asks_for_what_reads_it(shared, monkeypatch, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((shared / "tokenizers" / "llama-2" / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    real = importlib.util.find_spec
    monkeypatch.setattr("rlhf_jax.data.tokenizer.find_spec", lambda n: None if n == "sentencepiece" else real(n))
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match="which is read with: pip install sentencepiece"):
        load_tokenizer(str(tmp_path))


def test_plain_text_has_no_special_tokens(make_tokenizer):
    tokenizer = make_tokenizer()
    assert not adds_leading_space(tokenizer)
    assert tokenizer.decode(plain_ids(tokenizer, " the cat", continues=True)) == " the cat"
    assert plain_ids(tokenizer, "", continues=True) == []


def test_real_sentencepiece_tokenizer_keeps_spaces_as_given(real_tokenizer):
    tokenizer = real_tokenizer("stories15M")
    assert adds_leading_space(tokenizer)
    prompt = plain_ids(tokenizer, "One day, a boy named Tim", continues=False)
    for text in (" went home.", "othy went", "\nThe end", "  two"):
        ids = prompt + plain_ids(tokenizer, text, continues=True)
        assert tokenizer.decode(ids) == "One day, a boy named Tim" + text
    whole = tokenizer("One day, a boy named Tim went home.", add_special_tokens=False)["input_ids"]
    assert prompt + plain_ids(tokenizer, " went home.", continues=True) == whole
