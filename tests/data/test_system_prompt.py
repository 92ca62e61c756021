"""A system message for conversations without one: rendered as if the row had it, refused where nobody would see it."""

import dataclasses

import pytest

from rlhf_jax.config.data import RenderOptions
from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.rows import Example
from rlhf_jax.data.system_prompt import check_system_role, with_system_prompt

USER = [{"role": "user", "content": "Who are you?"}]
SYSTEM = {"role": "system", "content": "You are a cat."}


@pytest.fixture(scope="module")
def chatml(tiny_chat_tokenizer):
    return Renderer(tiny_chat_tokenizer("chatml"))


@pytest.fixture(scope="module")
def tiny_chat_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from rlhf_jax.data.templates import TEMPLATES

    def make(template):
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        core.train_from_iterator(["the cat"], trainers.BpeTrainer(
            vocab_size=280, special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
        return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>",
                                       chat_template=TEMPLATES.get(template, template))

    return make


def test_a_row_without_one_reads_as_if_it_had_it(chatml):
    asked = dataclasses.replace(chatml, system_prompt=SYSTEM["content"])
    expected = chatml.render(Example([SYSTEM, *USER], ("A cat.",)))
    for prompt in (USER, "Who are you?"):  # a string becomes a user's turn
        found = asked.render(Example(prompt, ("A cat.",)))
        assert found.prompt_ids.tolist() == expected.prompt_ids.tolist()
        assert found.responses[0].ids.tolist() == expected.responses[0].ids.tolist()
        assert found.prompt == [SYSTEM, *USER]  # so that scorers see it
        assert asked.render_prompt(prompt).tolist() == expected.prompt_ids.tolist()
    assert expected.prompt_ids.tolist() != chatml.render(Example(USER, ("A cat.",))).prompt_ids.tolist()


def test_a_row_keeps_its_own(chatml):
    asked = dataclasses.replace(chatml, system_prompt=SYSTEM["content"])
    assert with_system_prompt([{**SYSTEM, "role": "developer"}, *USER], "?")[0]["role"] == "developer"
    own = [{"role": "system", "content": "You are a dog."}, *USER]
    assert asked.render(Example(own, ("Woof.",))).prompt_ids.tolist() == chatml.render(
        Example(own, ("Woof.",))).prompt_ids.tolist()


def test_whole_text_has_nobody_who_speaks():
    with pytest.raises(BadRow, match="system_prompt is set and the row is whole text"):
        with_system_prompt("", "You are a cat.")


SILENT = "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + SILENT


@pytest.mark.parametrize(("template", "words"), [
    (SILENT, r"'You are a cat\.' cannot be shown to this model: the chat template does not write 'system'"),
    (REFUSING, r"'You are a cat\.' cannot be shown to this model: .*no system role"),
])
def test_a_template_without_a_system_role_is_refused_by_name(tiny_chat_tokenizer, template, words):
    with pytest.raises(ValueError, match=words):
        check_system_role(Renderer(tiny_chat_tokenizer(template)), "You are a cat.")


def test_a_template_with_one_is_not(chatml):
    check_system_role(chatml, "You are a cat.")
    assert RenderOptions().system_prompt is None
