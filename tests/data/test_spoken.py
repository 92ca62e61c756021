"""Turns, tools and thoughts by templates that open, close and hide turns in ways of their own.

The templates here are as small as their habits allow; the real ones, Qwen3's, gpt-oss's and R1-distill's, are read from
TRL where it is installed, and held against the marks that TRL's training forms put around what the assistant says.
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.render_all import rendered
from rlhf_jax.data.rows import BadRow, parse_row

HARMONY = (
    "{%- for m in messages %}{%- if m.role in ['system', 'developer'] %}"
    "{{ '<|start|>developer<|message|>' + m.content + '<|end|>' }}"
    "{%- elif m.role == 'assistant' %}{%- set later = messages[loop.index:]"
    " | selectattr('role', 'equalto', 'assistant') | rejectattr('tool_calls', 'defined') | list %}"
    "{%- if m.thinking and (loop.last or (m.tool_calls and not later)) %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{%- if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "{{ '<|start|>assistant to=' + call.name + '<|message|>' + call.arguments | tojson + '<|call|>' }}"
    "{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}"
    "{%- elif m.role == 'tool' %}{{ '<|start|>tool<|message|>' + m.content + '<|end|>' }}"
    "{%- else %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}")
"""As gpt-oss's: the last answer ends with <|return|>, a call with <|call|>, of which one alone is written; the thought
before a call is shown until the answer is there."""
PREFILLED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + KEPT + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}")
R1, R1_TRAINING = (PREFILLED.replace("KEPT", kept) for kept in ("m.content.split('</think>')[-1]", "m.content"))
"""As R1-distill's: the answer is opened inside a thought, which is taken out of all that was said; and not."""

TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds", "parameters": {
    "type": "object", "properties": {"a": {"type": "number", "description": "One."}}, "required": ["a"]}}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
ANSWERED = {"role": "tool", "tool_call_id": "call_1", "content": "3"}


def user(text):
    return {"role": "user", "content": text}


def bot(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def shown(tokenizer, template, row):
    """What of each group is seen and what is trained on: alternating texts, prompt first."""
    tokenizer.chat_template = template
    groups, _ = rendered(Renderer(tokenizer), parse_row({"id": "x", **row}, "sft"))
    found = []
    for group in groups:
        (response,) = group.responses
        mask = np.concatenate([np.zeros(len(group.prompt_ids), bool), response.loss_mask])
        ids = np.concatenate([group.prompt_ids, response.ids])
        found.append([tokenizer.decode(part) for part in np.split(ids, np.flatnonzero(np.diff(mask)) + 1)])
    return found


def reason(tokenizer, template, row):
    with pytest.raises(BadRow) as caught:
        shown(tokenizer, template, row)
    return caught.value.reason


@pytest.fixture(scope="module")
def marked(make_tokenizer):
    """A tokenizer with the markers of all these templates."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": [
        "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>", "<｜User｜>",
        "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"]})
    return tokenizer


def test_a_call_and_an_answer_end_with_stop_tokens_of_their_own_and_what_tools_say_is_masked(marked):
    messages = [user("a"), bot(None, tool_calls=[CALL]), ANSWERED, bot("three")]
    assert shown(marked, HARMONY, {"messages": messages}) == [[
        "<|start|>user<|message|>a<|end|><|start|>assistant", ' to=add<|message|>{"a": 1}<|call|>',
        "<|start|>tool<|message|>3<|end|><|start|>assistant", "<|channel|>final<|message|>three<|return|>"]]
    messages[1]["weight"] = 0
    seen = shown(marked, HARMONY, {"messages": messages})[0]
    assert len(seen) == 2
    assert seen[1] == "<|channel|>final<|message|>three<|return|>"


def test_an_answer_is_learned_behind_the_thought_that_is_shown_while_it_is_written(marked):
    """The thought before the call is in sight of the answer, and gone once the answer is there."""
    messages = [user("a"), bot(None, tool_calls=[CALL], thinking="hmm"), ANSWERED, bot("three", thinking="so")]
    (found,) = shown(marked, HARMONY, {"messages": messages})
    assert found[1] == ('<|channel|>analysis<|message|>hmm<|end|><|start|>assistant to=add<|message|>{"a": 1}<|call|>')
    assert found[3] == ("<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>three"
                        "<|return|>")
    read = parse_row({"messages": messages}, "sft")
    turns = [*read.prompt, *read.responses[0]]
    assert marked.apply_chat_template(turns[:3], tokenize=False, add_generation_prompt=True) == "".join(found[:3])
    assert "hmm" not in marked.apply_chat_template(turns, tokenize=False)


def test_answers_that_end_otherwise_in_the_middle_are_learned_one_by_one(marked):
    messages = [user("a"), bot("b", thinking="hmm"), user("c"), bot("d")]
    first, second = shown(marked, HARMONY, {"messages": messages})
    assert first[1].endswith("hmm<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>")
    assert second[0].endswith("final<|message|>b<|end|><|start|>user<|message|>c<|end|><|start|>assistant")
    assert second[1] == "<|channel|>final<|message|>d<|return|>"


def test_a_second_call_that_is_not_written_is_refused(marked):
    messages = [user("a"), bot(None, tool_calls=[CALL, CALL]), ANSWERED, ANSWERED, bot("b")]
    marked.chat_template = HARMONY
    with pytest.raises(BadRow, match="'tool_calls' in turns of the role assistant that call several tools"):
        Renderer(marked).render(parse_row({"messages": messages}, "sft"))


def test_a_call_without_any_stop_token_is_refused(marked):
    template = HARMONY.replace("'<|call|>'", "'.'")
    messages = [user("a"), bot(None, tool_calls=[CALL]), ANSWERED, bot("three")]
    assert reason(marked, template, {"messages": messages}) == "stop_token_missing"
    text = HARMONY.replace("'<|return|>' if", "'<|call|>' if m.content == 'b' else '<|return|>' if")
    assert reason(marked, text, {"messages": [user("a"), bot("b")]}) == "stop_token_missing"  # it calls nothing


def test_developers_speak_first_where_the_template_knows_them_and_are_refused_elsewhere(marked):
    messages = [{"role": "developer", "content": "Be brief."}, user("a"), bot("b")]
    (found,) = shown(marked, HARMONY, {"messages": messages})
    assert found == ["<|start|>developer<|message|>Be brief.<|end|><|start|>user<|message|>a<|end|><|start|>assistant",
                     "<|channel|>final<|message|>b<|return|>"]
    marked.chat_template = R1_TRAINING
    with pytest.raises(BadRow, match=r"not write 'developer'.*give it the role system"):
        Renderer(marked).render(parse_row({"messages": messages}, "sft"))
    assert reason(marked, HARMONY, {"messages": [user("a"), messages[0], bot("b")]}) == "not_alternating"


def test_an_answer_that_opens_inside_a_thought_is_learned_with_its_thought_by_the_training_form(marked):
    messages = [user("a"), bot("<think>\nhmm\n</think>\n\nb"), user("c"), bot("<think>\nso\n</think>\n\nd")]
    row = {"messages": messages}
    assert shown(marked, R1_TRAINING, row) == [[
        "<s><｜User｜>a<｜Assistant｜><think>\n", "hmm\n</think>\n\nb<｜end▁of▁sentence｜>",
        "<｜User｜>c<｜Assistant｜><think>\n", "so\n</think>\n\nd<｜end▁of▁sentence｜>"]]
    assert reason(marked, R1, row) == "template_not_prefix_preserving"
    marked.chat_template = R1
    with pytest.raises(BadRow, match=r"training form.*chat_template_path.*<think> in the text"):
        Renderer(marked).render(parse_row(row, "sft"))


TRL = Path(((found := importlib.util.find_spec("trl")) and found.origin) or ".").parent / "chat_templates"
THOUGHT = {"qwen3": "reasoning_content", "gptoss": "thinking"}
CONVERSATIONS = {
    "turns": [user("Who?"), bot("I am.", weight=0), user("And naïve?"), bot("Yes.\n\nNo.")],
    "thoughts": [{"role": "system", "content": "s"}, user("Who?"), bot("I.", thought="hmm"), user("c"),
                 bot("d", thought="so")],
    "tools": [user("a"), bot(None, tool_calls=[CALL], thought="call"), ANSWERED, bot("It is 3.", thought="read")],
}
OWN = {"qwen3": ("", "\n"), "gptoss": ("<|start|>assistant", ""),
       "deepseek_r1_distill": ("<｜Assistant｜><think>\n", "")}
"""What stands between TRL's marks and is not the assistant's own: the header, and what follows the stop token."""


def said(name, messages):
    """The conversation with its thoughts where the template reads them; gpt-oss's marks lack that before a call."""
    out = []
    for message in messages:
        fields = {key: value for key, value in message.items() if key != "thought"}
        if name == "gptoss" and "tool_calls" in message:
            pass
        elif message["role"] == "assistant" and name in THOUGHT and "thought" in message:
            fields[THOUGHT[name]] = message["thought"]
        elif message["role"] == "assistant" and name not in THOUGHT:
            fields["content"] = f"<think>\n{message.get('thought', '')}\n</think>\n\n{message['content']}"
        out.append(fields)
    return out


def marks(tokenizer, messages, tools):
    """The text of a conversation, and of each character whether TRL's marks hold it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), (spans,) = render_jinja_template([messages], tools=tools, chat_template=tokenizer.chat_template,
                                              return_assistant_tokens_mask=True, bos_token=tokenizer.bos_token)
    return text, spans


@pytest.mark.skipif(not TRL.is_dir(), reason="TRL's chat templates are not installed")
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", OWN)
def test_real_training_forms_train_what_trl_marks_in_every_turn(marked, name, conversation):
    if (name, conversation) == ("deepseek_r1_distill", "tools"):
        pytest.skip("R1-distill's template writes no tools")
    messages = said(name, CONVERSATIONS[conversation])
    tools = TOOLS if conversation == "tools" else None
    marked.chat_template = (TRL / f"{name}_training.jinja").read_text(encoding="utf-8")
    row = parse_row({"messages": messages, **({"tools": tools} if tools else {}), "id": "x"}, "sft")
    groups, _ = rendered(Renderer(marked), row)
    turns = [*row.prompt, *row.responses[0]]
    places = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    one_by_one = len(groups) > 1 or groups[0].prompt_id != "x"
    trained = 0
    for group in groups:
        last = len(row.prompt) + int(group.prompt_id.split("/")[1]) if one_by_one else places[-1]
        text, spans = marks(marked, turns[: last + 1], tools)
        text = re.sub(r"Current date: \S+", "Current date: 2024-07-26", text)
        opening, trailing = OWN[name]
        own = [(start + len(opening) * text.startswith(opening, start), end - len(trailing)) for start, end in spans]
        own = [span for span, place in zip(own, places, strict=False)
               if turns[place].get("train", True) and (not one_by_one or place == last)]
        encoded = marked(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = [*group.prompt_ids.tolist(), *group.responses[0].ids.tolist()]
        mask = [False] * len(group.prompt_ids) + group.responses[0].loss_mask.tolist()
        assert ids == encoded["input_ids"][: len(ids)]
        assert mask == [any(a <= start < b for a, b in own) for start, _ in encoded["offset_mapping"][: len(ids)]]
        trained += len(own)
    assert trained == sum(turns[place].get("train", True) for place in places)
