import dataclasses
import json

import numpy as np
import pytest

from rlhf_jax.data.chat import TEMPLATES, Renderer, describe
from rlhf_jax.data.funnel import Funnel, TooManyBadRows
from rlhf_jax.data.groups import LENGTH
from rlhf_jax.data.jsonl import read_jsonl
from rlhf_jax.data.load import load_examples
from rlhf_jax.data.render_all import render_all
from rlhf_jax.data.rows import BadRow, Example, ParseOptions, parse_row


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def decode(renderer, ids, mask=None):
    return renderer.tokenizer.decode(ids if mask is None else ids[mask])


def reason(renderer, example):
    with pytest.raises(BadRow) as caught:
        renderer.render(example)
    return caught.value.reason


MULTI = [bot("b"), user("c"), bot("d e")]


def test_plain_text_has_one_bos_and_ends_with_eos(chatml):
    renderer = Renderer(chatml)
    group = renderer.render(Example("the cat", (" sat", "sat")))
    assert decode(renderer, group.prompt_ids) == "<s>the cat"
    assert [decode(renderer, r.ids) for r in group.responses] == [" sat</s>", "sat</s>"]
    assert all(r.loss_mask.all() for r in group.responses)
    assert group.prompt_ids.dtype == group.responses[0].ids.dtype == np.int32
    bare = Renderer(chatml, add_bos=False, eos_id=chatml.bos_token_id).render(Example("the", (" cat", " cat<s>")))
    assert decode(renderer, bare.prompt_ids) == "the"
    assert [decode(renderer, r.ids) for r in bare.responses] == [" cat<s>"] * 2


def test_empty_prompt_is_bos_alone(chatml):
    group = Renderer(chatml).render(Example("", ("the cat",)))
    assert group.prompt_ids.tolist() == [chatml.bos_token_id]
    assert reason(Renderer(chatml, add_bos=False), Example("", ("a", "b"), pairs=((0, 1),))) == "zero_token_prompt"


def test_whole_text_without_bos_is_learned_from_its_second_token_on(make_tokenizer):
    """SmolLM2's BOS opens turns and stands before no text; transformers predicts no first token either."""
    renderer = Renderer(make_tokenizer("chatml", bos_token="<|im_start|>", eos_token="<|im_end|>"))
    group = renderer.render(parse_row({"text": "the cat sat"}, "sft"))
    whole = renderer.tokenizer("the cat sat<|im_end|>")["input_ids"]
    assert [*group.prompt_ids, *group.responses[0].ids] == whole
    assert (group.prompt_ids.tolist(), group.responses[0].loss_mask.all()) == (whole[:1], True)
    assert reason(Renderer(renderer.tokenizer), Example("", ("<|im_end|>",))) == "zero_token_response"


def test_messages(chatml):
    renderer = Renderer(chatml)
    group = renderer.render(Example([user("a")], ([bot("b")], "b")))
    assert decode(renderer, group.prompt_ids) == "<s><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert [decode(renderer, r.ids) for r in group.responses] == ["b<|im_end|>"] * 2
    assert group.prompt_ids.tolist() == renderer.render_prompt([user("a")]).tolist()
    mixed = renderer.render(Example("a", ([bot("b")],)))
    assert mixed.prompt_ids.tolist() == group.prompt_ids.tolist()
    assert mixed.prompt == "a"


@pytest.mark.parametrize("template", [*TEMPLATES, "think"])
def test_for_scores_prompt_and_response_are_the_whole_rendered_conversation(template, make_tokenizer):
    """Also where a template drops a part of the prompt once it is answered, as some do with thoughts."""
    think = "{% if add_generation_prompt %}assistant: <think>{% endif %}"
    if template == "think":
        template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>\n' }}{% endfor %}" + think
    tokenizer = make_tokenizer(template)
    renderer = Renderer(tokenizer).for_scores("last_token", None)
    for prompt, answers in (([user("a")], ("b", "b c")), ([user("a"), bot("b"), user("c")], ([bot("d")], MULTI))):
        group = renderer.render(Example(prompt, answers))
        for answer, response in zip(answers, group.responses, strict=True):
            turns = [*prompt, *([bot(answer)] if isinstance(answer, str) else answer)]
            assert [*group.prompt_ids, *response.ids] == tokenizer.apply_chat_template(turns, return_dict=False)
    if template in TEMPLATES:  # the prompt is the one that answers are sampled from
        assert group.prompt_ids.tolist() == Renderer(tokenizer).render(Example(prompt, ())).prompt_ids.tolist()


def test_for_scores_padding_is_taken_off_the_end_and_at_the_end_of_turn_nothing_changes(chatml):
    example = Example([user("a")], ("b", "c"))
    newline = chatml("\n")["input_ids"][0]
    assert Renderer(chatml).for_scores("last_token", newline).render(example).responses[0].ids.tolist() == \
        Renderer(chatml).render(example).responses[0].ids.tolist()
    assert Renderer(chatml).for_scores("end_of_turn", newline) == Renderer(chatml)


def test_text_as_chat(chatml):
    renderer = Renderer(chatml, text_as_chat=True)
    group, expected = renderer.render(Example("a", ("b",))), renderer.render(Example([user("a")], ([bot("b")],)))
    assert group.prompt_ids.tolist() == expected.prompt_ids.tolist() == renderer.render_prompt("a").tolist()
    assert group.responses[0].ids.tolist() == expected.responses[0].ids.tolist()
    assert renderer.render(Example("", ("whole",))).prompt_ids.tolist() == [chatml.bos_token_id]


@pytest.mark.parametrize("template", ["chatml", "llama3", "zephyr", "plain"])
def test_multi_turn_mask_covers_assistant_turns_and_their_stop_tokens(make_tokenizer, template):
    renderer = Renderer(make_tokenizer(template))
    group = renderer.render(Example([user("a")], (MULTI,)))
    response = group.responses[0]
    stop = renderer.tokenizer.convert_ids_to_tokens(renderer.end_of_turn.stop_id)
    assert decode(renderer, response.ids, response.loss_mask) == f"b{stop}d e{stop}"
    assert "c" in decode(renderer, response.ids, ~response.loss_mask)
    assert response.loss_mask[-1]
    whole = renderer.tokenizer.apply_chat_template([user("a"), *MULTI], return_dict=False)
    joined = [*group.prompt_ids, *response.ids]
    assert joined == whole[: len(joined)]
    assert len(whole) - len(joined) == renderer.end_of_turn.trailing


def test_template_that_always_opens_the_assistant_turn(make_tokenizer):
    """Llama-3's own template writes the assistant header whether asked or not."""
    template = ("{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
                "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}"
                "{% endfor %}"
                "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}")
    renderer = Renderer(make_tokenizer(template))
    response = renderer.render(Example([user("a")], (MULTI,))).responses[0]
    assert decode(renderer, response.ids, response.loss_mask) == "b<|eot_id|>d e<|eot_id|>"


def test_template_that_rewrites_earlier_turns_is_refused(make_tokenizer):
    template = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if not (m['role'] == 'assistant' and"
                " not loop.last) %}{{ m['content'] }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    renderer = Renderer(make_tokenizer(template))
    assert renderer.render(Example([user("a")], ([bot("b")],)))
    assert reason(renderer, Example([user("a")], (MULTI,))) == "template_not_prefix_preserving"


def test_other_refusals(make_tokenizer, chatml):
    assert reason(Renderer(make_tokenizer("{{ raise_exception('no') }}")), Example([user("a")])) == "template_refused"
    doubled = make_tokenizer("{{ bos_token + bos_token }}{{ messages[0]['content'] }}")
    assert reason(Renderer(doubled), Example([user("a")])) == "doubled_bos"
    assert reason(Renderer(chatml), Example("<s>the cat")) == "doubled_bos"
    assert reason(Renderer(chatml), Example("a", ("",))) == "zero_token_response"
    assert reason(Renderer(chatml), Example("a", ([bot("")],))) == "zero_token_response"
    with pytest.raises(ValueError, match="no EOS"):
        Renderer(make_tokenizer(eos_token=None)).render(Example("a", ("b",)))
    with pytest.raises(ValueError, match="no BOS"):
        Renderer(make_tokenizer(bos_token=None), add_bos=True).render_prompt("a")


def test_template_variables_reach_the_template(make_tokenizer):
    template = ("{{ mood }}{{ tools[0]['name'] if tools }}"
                "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    row = {"prompt": [user("hi")], "tools": '[{"name": "calc"}]', "chat_template_kwargs": {"mood": "glad"}}
    renderer = Renderer(make_tokenizer(template))
    assert decode(renderer, renderer.render(parse_row(row, "prompt")).prompt_ids) == "gladcalchi</s>"


def test_a_template_that_hides_earlier_thoughts_is_learned_turn_by_turn(thinking):
    """Each turn stands behind what the template shows before it, and ends as the template ends it."""
    messages = [user("a"), {**bot("b"), "reasoning_content": "hmm"}, user("c"), {**bot("d"), "reasoning_content": "so"}]
    assert reason(Renderer(thinking), parse_row({"messages": messages}, "sft")) == "template_not_prefix_preserving"
    funnel = Funnel(read=1)
    groups = render_all([parse_row({"messages": messages, "id": "x"}, "sft")], Renderer(thinking), funnel)
    assert [group.prompt_id for group in groups] == ["x/0", "x/2"]
    for group, turns in zip(groups, (messages[:2], messages), strict=True):
        whole = thinking.apply_chat_template(turns, return_dict=False)[:-1]  # the newline behind the last stop token
        assert [*group.prompt_ids, *group.responses[0].ids] == whole
        assert group.responses[0].loss_mask.all()
    shown = [thinking.decode(group.responses[0].ids) for group in groups]
    assert shown == ["<think>\nhmm\n</think>\n\nb<|im_end|>", "<think>\nso\n</think>\n\nd<|im_end|>"]
    assert "hmm" not in thinking.decode(groups[1].prompt_ids)
    assert (funnel.kept, funnel.notes) == (1, {"rendered_turn_by_turn": 1})


def test_turn_by_turn_leaves_out_the_turns_that_are_too_long_or_not_trained_on(thinking):
    messages = [user("a"), {**bot("b"), "train": False}, user("c"), bot("d"), user("e" * 60), bot("f")]
    examples = [parse_row({"messages": messages, "id": "x"}, "sft"), parse_row({"messages": messages[:2]}, "sft"),
                parse_row({"messages": [user("e" * 60), *messages[1:]]}, "sft")]
    funnel = Funnel(read=3)
    groups = render_all(examples, Renderer(thinking, max_length=60, overlong="drop"), funnel)
    assert [group.prompt_id for group in groups] == ["x/2"]
    assert (funnel.dropped, funnel.invalid) == ({"prompt_too_long": 1}, {"nothing_trained": 1})
    assert funnel.notes == {"rendered_turn_by_turn": 1, "turn_prompt_too_long": 1}


def test_one_trained_turn_of_several_is_learned_behind_the_others(thinking):
    messages = [user("a"), {**bot("b"), "train": False}, user("c"), bot("d")]
    (group,) = render_all([parse_row({"messages": messages}, "sft")], Renderer(thinking), Funnel(read=1))
    whole = thinking.apply_chat_template(messages, return_dict=False)[:-1]
    assert [*group.prompt_ids, *group.responses[0].ids] == whole


def test_no_thinking_is_learned_behind_the_empty_thought_that_is_then_given(thinking):
    messages = [user("a"), bot("b"), user("c"), bot("d")]
    row = {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}}
    groups = render_all([parse_row(row, "sft")], Renderer(thinking), Funnel(read=1))
    assert [thinking.decode(g.responses[0].ids) for g in groups] == ["b<|im_end|>", "d<|im_end|>"]
    assert all(thinking.decode(g.prompt_ids).endswith("<think>\n\n</think>\n\n") for g in groups)


def test_turns_that_say_so_are_seen_and_not_trained_on(chatml):
    renderer = Renderer(chatml)
    messages = [user("a"), {**bot("b"), "weight": 0}, user("c"), {**bot("d e"), "weight": 1}]
    group = renderer.render(parse_row({"messages": messages}, "sft"))
    plain = renderer.render(parse_row({"messages": [user("a"), *MULTI]}, "sft"))
    response = group.responses[0]
    assert response.ids.tolist() == plain.responses[0].ids.tolist()
    assert decode(renderer, response.ids, response.loss_mask) == "d e<|im_end|>"
    masked = {"messages": [user("a"), {**bot("b"), "mask": True}]}
    assert reason(renderer, parse_row(masked, "sft")) == "nothing_trained"


CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
TOOLS = [{"type": "function", "function": {"name": "add"}}]


def test_thoughts_tool_calls_and_tools_reach_a_template_that_writes_them(thinking):
    messages = [user("a"), {**bot("b"), "reasoning_content": "hmm", "tool_calls": CALL}]
    group = Renderer(thinking).render(parse_row({"messages": messages, "tools": TOOLS}, "sft"))
    assert thinking.decode(group.responses[0].ids) == (
        '<think>\nhmm\n</think>\n\nb\n{"name": "add", "arguments": {"a": 1}}<|im_end|>')
    assert '"name": "add"' in thinking.decode(group.prompt_ids)


def test_what_tools_answer_is_seen_and_not_trained_on(thinking):
    messages = [user("a"), {**bot(""), "tool_calls": CALL}, {"role": "tool", "content": "3"}, bot("three")]
    renderer = Renderer(thinking)
    (response,) = renderer.render(parse_row({"messages": messages}, "sft")).responses
    seen = decode(renderer, response.ids, ~response.loss_mask)
    assert seen == "\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n"
    assert decode(renderer, response.ids, response.loss_mask).endswith("three<|im_end|>")


@pytest.mark.parametrize(("row", "key"), [
    ({"messages": [user("a"), {**bot("b"), "reasoning_content": "hmm"}]}, "reasoning_content_not_rendered"),
    ({"messages": [user("a"), {**bot("b"), "thinking": "hmm"}]}, "thinking_not_rendered"),
    ({"messages": [user("a"), {**bot("b"), "tool_calls": CALL}]}, "tool_calls_not_rendered"),
    ({"messages": [user("a"), {**bot("b"), "function_call": {"name": "add"}}]}, "function_call_not_rendered"),
    ({"messages": [user("a"), bot("b")], "tools": TOOLS}, "tools_not_rendered"),
    ({"messages": [user("a"), bot("b")], "chat_template_kwargs": {"mood": "glad"}}, "mood_not_rendered"),
    ({"messages": [user("a"), bot("b")], "chat_template_kwargs": {"role": "user"}}, "role_not_rendered"),
    ({"prompt": "a", "completion": "b", "tools": TOOLS}, "tools_not_rendered"),
    ({"prompt": "a", "completion": "b", "chat_template_kwargs": {"messages_": 1}}, "messages__not_rendered"),
])
def test_what_a_template_does_not_write_is_refused_by_name(chatml, row, key):
    assert reason(Renderer(chatml), parse_row(row, "sft")) == key


@pytest.mark.parametrize("given", ["{% if not day is defined %}{% set day = 'now' %}{% endif %}{{ day }}",
                                   "{{ day | default('now') }}", "{% set day = day or 'now' %}{{ day }}",
                                   "{% generation %}{{ day if day is defined else 'now' }}{% endgeneration %}"])
def test_variables_that_a_template_has_a_value_for_can_be_given(make_tokenizer, given):
    renderer = Renderer(make_tokenizer(given + "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"))
    row = {"prompt": [user("hi")], "chat_template_kwargs": {"day": "then"}}
    assert decode(renderer, renderer.render(parse_row(row, "prompt")).prompt_ids) == "thenhi</s>"


def test_messages_without_a_chat_template_end_the_command(plain_text):
    for more in ({}, {"tools": TOOLS}, {"chat_template_kwargs": {"mood": 1}}, {"system": "s"}):
        with pytest.raises(ValueError, match="no chat template, so messages cannot be rendered; set") as caught:
            Renderer(plain_text).render(parse_row({"prompt": [user("a")], **more}, "prompt"))
        assert not isinstance(caught.value, BadRow)


def test_a_template_that_passes_over_whole_turns_is_seen(make_tokenizer):
    """Some write user and assistant alone; some write a tool call in the place of the text beside it."""
    template = ("{% for m in messages %}{% if m.role in ['user', 'assistant'] %}{{ '<|im_start|>' + m.role + '\n' }}"
                "{{ (m.tool_calls | tojson) if m.tool_calls else m.content }}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    renderer = Renderer(make_tokenizer(template))
    assert reason(renderer, parse_row({"prompt": [user("a")], "system": "s"}, "prompt")) == "system_not_rendered"
    called = [user("a"), {**bot(""), "tool_calls": CALL}]
    assert renderer.render(parse_row({"messages": called}, "sft"))
    assert reason(renderer, parse_row({"messages": [user("a"), {**called[1], "content": "b"}]}, "sft")) == (
        "content_not_rendered")
    answered = {"messages": [*called, {"role": "tool", "content": "3"}, bot("c")]}
    assert reason(renderer, parse_row(answered, "sft")) == "tool_not_rendered"


def test_fields_about_a_message_that_no_template_writes_are_noted(chatml):
    row = {"messages": [{**user("a"), "name": "Ann", "[country]": "X"}, bot("b")]}
    funnel = Funnel(read=1)
    render_all([parse_row(row, "sft")], Renderer(chatml), funnel)
    assert funnel.notes == {"unread_name": 1, "unread__country_": 1}


def test_a_row_that_cannot_be_rendered_is_a_bad_row_with_its_number(chatml, tmp_path):
    rows = [{"messages": [user("a"), bot("b")]}, {"messages": [user("a"), {**bot("b"), "tool_calls": CALL}]}]
    path, quarantine = tmp_path / "rows.jsonl", tmp_path / "quarantine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples, funnel = load_examples(str(path), "sft", max_bad_rows=1, quarantine_path=quarantine)
    assert len(render_all(examples, Renderer(chatml), funnel)) == funnel.kept == 1
    (row,) = read_jsonl(quarantine)
    assert (row["source"], row["row_number"], row["reason"], row["row"]) == (
        str(path), 2, "tool_calls_not_rendered", rows[1])
    for budget in (0, 0.1):
        examples, funnel = load_examples(str(path), "sft", max_bad_rows=budget, quarantine_path=quarantine)
        with pytest.raises(TooManyBadRows, match="row 2: the chat template does not write 'tool_calls'"):
            render_all(examples, Renderer(chatml), funnel)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_that_a_template_refuses_is_named(make_tokenizer, role):
    tokenizer = make_tokenizer("gemma")
    tokenizer.add_special_tokens({"extra_special_tokens": MARKERS["gemma"]})
    spoken = [{"role": role, "content": "s"}, user("a"), bot("b")]
    for row, kind in (({"messages": spoken}, "sft"), ({"prompt": spoken[:2]}, "prompt")):
        assert reason(Renderer(tokenizer), parse_row(row, kind)) == f"{role}_not_rendered"
        assert Renderer(tokenizer).render(parse_row(row, kind, ParseOptions(drop_system=True)))
    with pytest.raises(BadRow, match=f"no turns of the role {role}.*set drop_system, or write it into the first user"):
        Renderer(tokenizer).render(parse_row({"messages": spoken}, "sft"))
    refusing = Renderer(make_tokenizer("{{ raise_exception('no') }}"))
    assert reason(refusing, parse_row({"messages": spoken}, "sft")) == "template_refused"


def test_what_is_trained_on_is_the_same_behind_a_folded_system_message(make_tokenizer):
    renderer = Renderer(make_tokenizer("mistral"))
    turns = [user("a"), bot("b"), user("c"), bot("d e")]
    plain, folded = (renderer.render(parse_row({"messages": [*system, *turns]}, "sft"))
                     for system in ([], [{"role": "system", "content": "s"}]))
    assert decode(renderer, folded.prompt_ids) == "<s>[INST] s\n\na [/INST]"
    assert folded.responses[0].ids.tolist() == plain.responses[0].ids.tolist()
    assert folded.responses[0].loss_mask.tolist() == plain.responses[0].loss_mask.tolist()


def test_errors_inside_a_template_are_the_rows_fault(make_tokenizer):
    template = "{% for m in messages %}{{ m.content + eos_token + (tools[0].name + '' if tools else '') }}{% endfor %}"
    renderer = Renderer(make_tokenizer(template))
    row = {"prompt": [user("a")], "tools": [{"name": 3}]}
    assert reason(renderer, parse_row(row, "prompt")) == "template_refused"


DIGITS = Example("0123456789", ("abcde", "fgh"), pairs=((0, 1),))  # 1 + 10 prompt tokens, 6 and 4 response tokens


@pytest.mark.parametrize(("options", "prompt", "responses"), [
    ({}, "<s>0123456789", ["abcde</s>", "fgh</s>"]),
    ({"max_prompt_length": 11, "max_length": 17}, "<s>0123456789", ["abcde</s>", "fgh</s>"]),
    ({"max_prompt_length": 5, "overlong": "truncate_prompt_left"}, "<s>6789", ["abcde</s>", "fgh</s>"]),
    ({"max_length": 12, "overlong": "truncate_prompt_left"}, "<s>56789", ["abcde</s>", "fgh</s>"]),
    ({"max_length": 8, "overlong": "truncate_prompt_left"}, "<s>789", ["abcd", "fgh</s>"]),
    ({"max_prompt_length": 5, "max_length": 8, "overlong": "truncate_prompt_left"}, "<s>6789", ["abc", "fgh"]),
    ({"max_length": 15, "overlong": "truncate_response"}, "<s>0123456789", ["abcd", "fgh</s>"]),
])
def test_truncation(plain_text, options, prompt, responses):
    renderer = Renderer(plain_text, **options)
    group = renderer.render(DIGITS)
    assert decode(renderer, group.prompt_ids) == prompt
    assert [decode(renderer, r.ids) for r in group.responses] == responses
    for response, text in zip(group.responses, responses, strict=True):
        assert len(response.ids) == len(response.loss_mask)
        assert response.finish_reason == (None if text.endswith("</s>") else LENGTH)


@pytest.mark.parametrize(("options", "key"), [
    ({"max_prompt_length": 10}, "prompt_too_long"),
    ({"max_prompt_length": 10, "overlong": "drop"}, "prompt_too_long"),
    ({"max_prompt_length": 10, "overlong": "truncate_response"}, "prompt_too_long"),
    ({"max_length": 11, "overlong": "truncate_response"}, "prompt_too_long"),
    ({"max_length": 16}, "response_too_long"),
    ({"max_length": 16, "overlong": "drop"}, "response_too_long"),
])
def test_too_long(plain_text, options, key):
    assert reason(Renderer(plain_text, **options), DIGITS) == key


def test_pairs_must_still_differ_after_truncation(plain_text):
    renderer = Renderer(plain_text, max_length=5, overlong="truncate_response")
    assert reason(renderer, Example("a", ("bcdX", "bcdY"), pairs=((0, 1),))) == "identical_after_truncation"


def test_texts_that_differ_in_nothing_that_is_kept_are_named_so(chatml):
    for answers in ((" b", "b"), ([bot("b")], [bot("b\n")])):
        assert reason(Renderer(chatml), Example([user("a")], answers, pairs=((0, 1),))) == "identical_tokens"
    long = Renderer(chatml, max_length=500, overlong="truncate_response")
    assert reason(long, Example([user("a")], (" b", "b"), pairs=((0, 1),))) == "identical_tokens"


def test_of_several_pairs_those_that_are_the_same_are_left_out_alone(plain_text):
    renderer = Renderer(plain_text, max_length=6, overlong="truncate_response")
    example = Example("a", ("bcdeX", "bcdeY", "q", "bcdeZ"), ((0, 1), (0, 2), (2, 3)), (1.0, 2.0, 3.0),
                      tuple({"data": float(i)} for i in range(4)), extra={"response_models": list("klmn")})
    group, notes = renderer.render_noted(example)
    assert notes == [*["truncated_response"] * 3, "left_out_identical_pairs"]
    assert [r.text for r in group.responses] == ["bcdeX", "q", "bcdeZ"]
    assert (group.pairs, group.margins, group.extra["response_models"]) == (((0, 1), (1, 2)), (2.0, 3.0), list("kmn"))
    assert [r.scores["data"] for r in group.responses] == [0.0, 2.0, 3.0]
    assert reason(renderer, Example("a", ("bcdeX", "bcdeY", "bcdeZ"), ((0, 1), (1, 2)))) == "identical_after_truncation"


LONG = "d" * 50
FOUR = ("b", LONG, "c", "e")


@pytest.mark.parametrize(("answers", "overlong", "kept"), [
    (FOUR, "drop", "bce"), (("b", "", "c", "e"), "drop", "bce"), (("b", "", "c", "e"), "error", "bce"),
    (("b", "", "c", LONG), "drop", "bc"), (("", LONG, "c", "e"), "drop", "ce"),
])
def test_one_bad_answer_is_left_out_of_a_graded_row_alone(plain_text, answers, overlong, kept):
    pairs = tuple((i, j) for i in range(4) for j in range(i))
    example = Example("a", answers, pairs, tuple(float(i - j) for i, j in pairs))
    for some in (example, dataclasses.replace(example, pairs=(), margins=())):
        funnel = Funnel(read=1)
        (group,) = render_all([some], Renderer(plain_text, max_length=12, overlong=overlong), funnel)
        assert [r.text for r in group.responses] == list(kept)
        assert funnel.to_json() == {"read": 1, "valid": 1, "kept": 1, "invalid": {}, "dropped": {},
                                    "notes": {"left_out_responses": 4 - len(kept)}}
        assert len(group.pairs) == len(group.margins) == (len(kept) * (len(kept) - 1) // 2 if some.pairs else 0)


@pytest.mark.parametrize("pairs", [((0, 1),), ((0, 1), (2, 1))])
def test_rows_whose_pairs_all_have_a_bad_side_are_left_out_whole(plain_text, pairs):
    funnel = Funnel(read=2)
    some = [Example("a", ("b", LONG, "c"), pairs), Example("a", ("b", "c"))]
    render_all(some, Renderer(plain_text, max_length=12, overlong="drop"), funnel)
    assert (funnel.kept, funnel.dropped, funnel.notes) == (1, {"response_too_long": 1}, {})


def test_answers_that_are_too_long_end_a_command_that_asks_for_it(plain_text):
    with pytest.raises(BadRow, match="Raise the limit"):
        render_all([Example("a", FOUR, ((0, 1), (0, 2)))], Renderer(plain_text, max_length=12), Funnel(read=1))


def test_nothing_of_the_assistants_own_left(chatml):
    """Cut inside the user turn that a response of several turns begins with."""
    renderer = Renderer(chatml)
    prompt = len(renderer.render_prompt([user("a")]))
    cut = Renderer(chatml, max_length=prompt + 3, overlong="truncate_response")
    response = cut.render(Example([user("a")], (MULTI,))).responses[0]
    assert decode(renderer, response.ids, response.loss_mask) == "b<|im_end|>"


@pytest.mark.parametrize("text_as_chat", [False, True])
@pytest.mark.parametrize("overlong", ["drop", "truncate_prompt_left", "truncate_response"])
def test_texts_beyond_any_limit_are_cut_or_left_out_before_they_are_tokenised(chatml, monkeypatch, overlong,
                                                                              text_as_chat):
    """200 MB in one line took 6 GB; here at most 4 x 16 tokens x the longest token's 17 characters are looked at."""
    renderer = Renderer(chatml, max_length=16, overlong=overlong, text_as_chat=text_as_chat)
    huge, longest = "cat " * 100_000, []
    tokenise = type(chatml)._encode_plus

    def watched(self, text, *args, **kwargs):
        longest.append(len(text))
        return tokenise(self, text, *args, **kwargs)

    monkeypatch.setattr(type(chatml), "_encode_plus", watched)
    for example, key in ((Example(huge, ("the",)), "prompt_too_long"), (Example("the", (huge,)), "response_too_long")):
        fits = overlong == "truncate_prompt_left" or (overlong, key) == ("truncate_response", "response_too_long")
        if fits:
            group = renderer.render(example)
            assert len(group.prompt_ids) + len(group.responses[0].ids) == 16
        else:
            assert reason(renderer, example) == key
    with pytest.raises(BadRow, match="no tokenizer brings within 16 tokens"):
        renderer.render_prompt(huge)
    assert max(longest, default=0) < 4 * 16 * len("<|start_header_id|>") + 100


def test_bad_settings(plain_text):
    with pytest.raises(ValueError, match="must be one of error, drop"):
        Renderer(plain_text, overlong="keep_end")
    with pytest.raises(ValueError, match="max_length is 1"):
        Renderer(plain_text, max_length=1)


def test_render_all_counts(plain_text):
    examples = [DIGITS, Example("a", ("b", "c")), Example("a", ("",), prompt_id="x")]
    funnel = Funnel(read=3)
    groups = render_all(examples, Renderer(plain_text, max_length=11, overlong="drop"), funnel)
    assert len(groups) == funnel.kept == 1
    assert (funnel.dropped, funnel.invalid) == ({"prompt_too_long": 1}, {"zero_token_response": 1})
    funnel = Funnel(read=1)
    render_all(examples[:1], Renderer(plain_text, max_length=8, overlong="truncate_prompt_left"), funnel)
    assert funnel.notes == {"truncated_prompt": 1, "truncated_response": 1}
    with pytest.raises(BadRow, match="Raise the limit, or set overlong to drop"):
        render_all(examples, Renderer(plain_text, max_length=11), Funnel(read=3))
    with pytest.raises(ValueError, match="no row is left"):
        render_all(examples[2:], Renderer(plain_text), Funnel(read=1))


def test_scores_labels_and_ids_come_along(plain_text):
    graded = parse_row({"prompt": "p", "responses": ["a", "b"], "rewards": [1.5, None], "id": 7, "x": 1}, "graded")
    group = Renderer(plain_text).render(graded)
    assert [dict(r.scores) for r in group.responses] == [{"data": 1.5}, {}]
    assert (group.prompt_id, group.extra, group.prompt) == ("7", {"x": 1}, "p")
    unpaired = parse_row({"prompt": "p", "completion": "a", "label": False}, "unpaired")
    assert Renderer(plain_text).render(unpaired).responses[0].scores == {"label": 0.0}


def test_describe_shows_the_mask(chatml):
    example = Example([user("a")], (MULTI, [bot("z")]), pairs=((0, 1),), prompt_id="p7")
    shown = describe(Renderer(chatml).render(example), chatml)
    assert shown.startswith("prompt p7 (")
    assert "[b<|im_end|>]\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d e<|im_end|>]" in shown
    assert "response 1 (rejected, 2 tokens, 2 trained, last '<|im_end|>')" in shown


@pytest.mark.parametrize(("name", "stop"), [("llama-3", "<|eot_id|>"), ("smollm2", "<|im_end|>")])
def test_real_tokenizers(real_tokenizer, name, stop):
    tokenizer = real_tokenizer(name)
    renderer = Renderer(tokenizer)
    group = renderer.render(Example([user("What is JAX?")], (MULTI, [bot("A library.")])))
    ids = group.prompt_ids.tolist()
    assert ids[0] == tokenizer.bos_token_id != ids[1]
    if name == "llama-3":
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[-4:] == [128006, 78191, 128007, 271]
    for response, turns in zip(group.responses, (2, 1), strict=True):
        assert tokenizer.convert_ids_to_tokens(int(response.ids[-1])) == stop
        trained = response.ids[response.loss_mask].tolist()
        assert trained.count(renderer.end_of_turn.stop_id) == turns
        assert tokenizer.bos_token_id not in trained
    assert tokenizer.decode(group.responses[1].ids) == f"A library.{stop}"
    assert tokenizer.pad_token_id != tokenizer.convert_tokens_to_ids(stop)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


CONVERSATION = [user("What is 2+2?"), bot("It's 4, of course."), user(" And naïve 3+3? "), bot("Six!\n\nWhat else?"),
                user("No."), bot("Bye")]
MARKERS = {"gemma": ["<start_of_turn>", "<end_of_turn>"], "chatml": ["<|im_start|>", "<|im_end|>"]}
HEADERS = {"llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n", "chatml": "<|im_start|>assistant\n",
           "zephyr": "<|assistant|>\n", "mistral": "[/INST]", "gemma": "<start_of_turn>model\n"}


@pytest.mark.longer
@pytest.mark.parametrize(("name", "template"), [
    *(("llama-3", template) for template in HEADERS), ("smollm2", "chatml"), ("stories15M", "zephyr"),
    ("stories15M", "mistral"), ("stories15M", "gemma")])
def test_real_tokenizers_give_the_templates_own_tokens_and_the_mask_is_where_the_assistant_speaks(
        real_tokenizer, name, template):
    """Held against one rendering of the whole conversation as text, tokenised once, with character offsets."""
    tokenizer = real_tokenizer(name)
    tokenizer.chat_template = TEMPLATES[template]
    tokenizer.add_special_tokens({"extra_special_tokens": [
        token for token in MARKERS.get(template, []) if token not in tokenizer.get_vocab()]})
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert whole["input_ids"] == tokenizer.apply_chat_template(CONVERSATION, tokenize=True, return_dict=False)

    group = Renderer(tokenizer).render(Example(CONVERSATION[:1], (CONVERSATION[1:],)))
    ids = [*group.prompt_ids.tolist(), *group.responses[0].ids.tolist()]
    assert ids == whole["input_ids"][: len(ids)]  # what a template writes after the last stop token is cut off
    assert "".join(tokenizer.convert_ids_to_tokens(whole["input_ids"][len(ids):])).strip("ĊĠ▁<0xA>") == ""

    spoken, at = np.zeros(len(text), bool), 0
    stop = tokenizer.convert_ids_to_tokens(Renderer(tokenizer).end_of_turn.stop_id)
    for _ in range(3):
        start = text.index(HEADERS[template], at) + len(HEADERS[template])
        at = text.index(stop, start) + len(stop)
        spoken[start:at] = True
    mask = [bool(spoken[start:end].any()) for start, end in whole["offset_mapping"][: len(ids)]]
    assert mask == [False] * len(group.prompt_ids) + group.responses[0].loss_mask.tolist()
    assert ids.count(tokenizer.bos_token_id) == (1 if name != "smollm2" else text.count("<|im_start|>"))
    assert mask[-1]
    assert ids[-1] == Renderer(tokenizer).end_of_turn.stop_id


def test_real_story_tokenizer(real_tokenizer):
    tokenizer = real_tokenizer("stories260K")
    group = Renderer(tokenizer, eos_id=1).render(Example("Once upon a time", (" there was a cat.",)))
    assert group.prompt_ids.tolist().count(1) == 1
    assert group.responses[0].ids[-1] == 1
    joined = [*group.prompt_ids, *group.responses[0].ids[:-1]]
    assert joined == tokenizer("Once upon a time there was a cat.")["input_ids"]


def test_a_token_without_a_row_in_the_embedding_is_a_fault_of_the_row_that_holds_it(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    user = [{"role": "user", "content": "hi"}]
    render = Renderer(tokenizer, rows=320).render
    assert render(Example(user, ("fine",))).responses[0].ids.max() < 320
    for example in (Example(user, ("an <image>",)), Example([{"role": "user", "content": "an <image>"}], ("fine",)),
                    Example("plain <image>", ("fine",)), Example("plain", ("an <image>",))):
        with pytest.raises(BadRow, match=r"'<image>' \(320\), and the model's embedding has 320 rows") as fault:
            render(example)
        assert fault.value.reason == "token_without_row"
    assert Renderer(tokenizer).render(Example(user, ("an <image>",))).responses[0].ids.max() == 320
