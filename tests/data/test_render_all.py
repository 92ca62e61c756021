"""Whole data sets against the chat templates that TRL ships, where it is installed."""

import importlib.util
from pathlib import Path

import pytest

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.render_all import rendered
from rlhf_jax.data.rows import parse_row

_TRL = importlib.util.find_spec("trl")  # looked at, not imported: it takes torch along
_FOLDER = Path(_TRL.origin).parent / "chat_templates" if _TRL and _TRL.origin else Path("none")
LAST_STOP = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<|END_OF_TURN_TOKEN|>", "<turn|>", "<|return|>")
CONVERSATION = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "One."},
                {"role": "user", "content": "More."}, {"role": "assistant", "content": "Two."}]
APPENDING = ("gemma", "gemma3", "llama3", "llama3_1", "llama3_2", "phi3", "qwen2_5", "cohere2", "lfm2")
REWRITING = ("qwen3", "qwen3_5_think", "gptoss")


@pytest.fixture
def with_template(make_tokenizer):
    def make(name):
        path = _FOLDER / f"{name}.jinja"
        if not path.is_file():
            pytest.skip(f"TRL's chat template {name} is not installed")
        template = path.read_text()
        tokenizer = make_tokenizer(template)
        tokenizer.add_special_tokens({"extra_special_tokens": [
            token for token in LAST_STOP if token in template and token not in tokenizer.get_vocab()]})
        return tokenizer

    return make


@pytest.mark.parametrize("name", [*APPENDING, *REWRITING])
def test_a_conversation_is_the_templates_own_tokens(with_template, name):
    tokenizer = with_template(name)
    groups, _ = rendered(Renderer(tokenizer), parse_row({"messages": CONVERSATION}, "sft"))
    assert len(groups) == (1 if name in APPENDING else 2)
    turns = (len(CONVERSATION),) if len(groups) == 1 else (2, 4)
    for group, count in zip(groups, turns, strict=True):
        ids = [*group.prompt_ids.tolist(), *group.responses[0].ids.tolist()]
        if "strftime_now" not in tokenizer.chat_template:
            assert ids == tokenizer.apply_chat_template(CONVERSATION[:count], return_dict=False)[: len(ids)]
        assert group.responses[0].loss_mask[-1]


@pytest.mark.parametrize("name", REWRITING[:2])
def test_thoughts_are_learned_where_they_are_written(with_template, name):
    tokenizer = with_template(name)
    thinking = [{**m, "reasoning_content": f"because {m['content']}"} if m["role"] == "assistant" else m
                for m in CONVERSATION]
    groups, _ = rendered(Renderer(tokenizer), parse_row({"messages": thinking}, "sft"))
    learned = [tokenizer.decode(g.responses[0].ids[g.responses[0].loss_mask]) for g in groups]
    assert ["because One." in learned[0], "because Two." in learned[1]] == [True, True]
    assert "because One." not in tokenizer.decode(groups[1].prompt_ids)
