import numpy as np
import pytest

from rlhf_jax.data.chat import TEMPLATES, Renderer, describe, render_all
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import LENGTH
from rlhf_jax.data.rows import BadRow, Example, parse_row


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
    assert reason(Renderer(chatml, add_bos=False), Example("", ("the cat",))) == "zero_token_prompt"


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


def test_nothing_of_the_assistants_own_left(chatml):
    """Cut inside the user turn that a response of several turns begins with."""
    renderer = Renderer(chatml)
    prompt = len(renderer.render_prompt([user("a")]))
    cut = Renderer(chatml, max_length=prompt + 3, overlong="truncate_response")
    response = cut.render(Example([user("a")], (MULTI,))).responses[0]
    assert decode(renderer, response.ids, response.loss_mask) == "b<|im_end|>"


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
    assert funnel.dropped == {"prompt_too_long": 1, "zero_token_response": 1}
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
    assert Renderer(plain_text).render(unpaired).responses[0].label is False


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
