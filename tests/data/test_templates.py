"""Rendering in a process of its own: the same text as transformers', and an end where a template has none."""

import json
import signal

import pytest

from rlhf_jax.data import template_process, templates
from rlhf_jax.data.templates import TEMPLATES, TemplateRefused, rendered

USER = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds é < 3", "parameters": {
    "type": "object", "properties": {"a": {"type": "number", "description": "first"}}, "required": ["a"]}}}]
CONVERSATIONS = [
    USER,
    [{"role": "system", "content": "be <b>brief</b> & \"kind\""}, *USER, {"role": "assistant", "content": " yo\n"}],
    [*USER, {"role": "assistant", "content": "日本語 \ud800 \x1b[31m"}, {"role": "user", "content": "{{ 7 * 7 }}"}],
    [*USER, {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1.5, "b": None}}}]},
     {"role": "tool", "content": "2.5"}],
    [{"role": "assistant", "content": "I begin"}],
]


@pytest.fixture
def always_apart(monkeypatch):
    """Our own templates too are rendered in the process."""
    monkeypatch.setattr(templates, "_OURS", set())


def by_transformers(tokenizer, messages, **variables):
    """What transformers makes of it, or None where it raises."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **variables)
    except Exception:  # whatever it is, ours must refuse
        return None


def check_same(tokenizer):
    made = 0
    for messages in CONVERSATIONS:
        for variables in ({"add_generation_prompt": True}, {"add_generation_prompt": False},
                          {"add_generation_prompt": True, "tools": TOOLS}, {"enable_thinking": False, "n": 3}):
            expected = by_transformers(tokenizer, messages, **variables)
            if expected is None:
                with pytest.raises(TemplateRefused):
                    rendered(tokenizer, messages, variables)
            else:
                assert rendered(tokenizer, messages, variables) == expected
                made += 1
    assert made >= 8


@pytest.mark.parametrize("name", TEMPLATES)
def test_our_templates_are_rendered_as_transformers_does(name, make_tokenizer, always_apart):
    check_same(make_tokenizer(name))


@pytest.mark.parametrize("role", ["system", "developer"])
def test_mistrals_system_message_stands_before_the_first_users_words(role, make_tokenizer):
    system, later = {"role": role, "content": " be brief\n"}, [{"role": "assistant", "content": "yo"}, *USER]
    expected = "<s>[INST] be brief\n\nhi [/INST] yo</s>[INST] hi [/INST]"
    assert rendered(make_tokenizer("mistral"), [system, *USER, *later], {}) == expected
    assert rendered(make_tokenizer("mistral"), [*USER, *later], {}) == expected.replace("be brief\n\n", "")


@pytest.mark.parametrize("role", ["system", "developer"])
def test_gemma_refuses_a_system_message(role, make_tokenizer):
    with pytest.raises(TemplateRefused, match=f"Gemma has no turns of the role {role}"):
        rendered(make_tokenizer("gemma"), [{"role": role, "content": "be brief"}, *USER], {})
    assert rendered(make_tokenizer("gemma"), USER, {}) == "<s><start_of_turn>user\nhi<end_of_turn>\n"


@pytest.mark.parametrize("name", ["llama-3", "llama-3.1", "smollm2"])
def test_real_templates_are_rendered_as_transformers_does(name, shared, make_tokenizer):
    config = json.loads((shared / "tokenizers" / name / "tokenizer_config.json").read_text())
    check_same(make_tokenizer(config["chat_template"], bos_token=config.get("bos_token")))


def test_of_several_templates_the_one_that_transformers_takes_is_rendered(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": "d {{ messages[0].content }}", "tool_use": "t {{ tools | length }}"}
    assert rendered(tokenizer, USER, {}) == "d hi"
    assert rendered(tokenizer, USER, {"tools": TOOLS}) == "t 1"


@pytest.mark.longer
@pytest.mark.parametrize("template", [
    "{{ 'a' * 10**10 }}", "{{ 'x'.ljust(10**10) }}", "{{ '%10000000000d' % 1 }}", "{{ '{:>10000000000}'.format(1) }}",
    "{{ 'a' | center(10**10) }}", "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}", "{{ [0] * 10**10 }}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(1000) %}some text {% endfor %}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ 'a' * 3000000 }}", "{{ range(10**9) | list }}",
])
def test_a_template_that_fills_the_memory_is_refused(template, make_tokenizer):
    with pytest.raises((TemplateRefused, ValueError), match="the chat template"):
        rendered(make_tokenizer(template), USER, {})
    assert rendered(make_tokenizer("{{ messages[0].content }}"), USER, {}) == "hi"


@pytest.mark.slow
@pytest.mark.parametrize("template", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 9**(9**9) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}"
    "{% endfor %}{{ n.x == n.y }}"])
def test_a_template_that_never_ends_is_stopped_and_said(template, make_tokenizer):
    with pytest.raises(ValueError, match=r"stopped after 5 seconds of processor time .* probably never ends"):
        rendered(make_tokenizer(template), USER, {})
    assert rendered(make_tokenizer("{{ messages[0].content }}"), USER, {}) == "hi"


def test_a_long_conversation_may_be_long(make_tokenizer):
    long = [{"role": "user", "content": "word " * 500_000}]
    assert len(rendered(make_tokenizer("{{ messages[0].content }}"), long, {})) == 2_500_000


@pytest.mark.parametrize(("template", "said"), [
    ("{{ raise_exception('no system turn') }}", "turns user: no system turn"), ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ messages[5].content.x }}", "no element 5"), ("{% for x in 5 %}{% endfor %}", "TypeError"),
    ("{% for", "unexpected"), ("{{ messages.append(1) }}", "unsafe"), ("{{ ''.__class__.mro }}", "unsafe"),
    ("{% include 'x' %}", "no loader"),
    ("{{ 'x' | nothing }}", "nothing")])
def test_whatever_a_template_raises_is_a_refusal(template, said, make_tokenizer):
    with pytest.raises(TemplateRefused, match=said):
        rendered(make_tokenizer(template), USER, {})


def test_variables_that_are_no_json_are_inert_and_settings_of_the_call_are_no_variables(make_tokenizer):
    assert rendered(make_tokenizer("{{ x }}"), USER, {"x": object()}) == "<object>"
    with pytest.raises(TemplateRefused, match="tokenize"):
        rendered(make_tokenizer("{{ x }}"), USER, {"tokenize": True})


@pytest.mark.longer
def test_a_process_that_something_else_ended_is_started_again(make_tokenizer):
    tokenizer = make_tokenizer("{{ messages[0].content }}")
    assert rendered(tokenizer, USER, {}) == "hi"
    for way in (signal.SIGKILL, signal.SIGTERM):
        ended = templates._PROCESS._running
        ended.send_signal(way)
        ended.wait()
        assert rendered(tokenizer, USER, {}) == "hi"
        assert ended.stdin.closed  # with the request that it no longer read, which is not written when it goes
        assert ended.stdout.closed


def test_the_process_ends_with_its_input():
    process = templates._Process()
    process.ask(b'{"special": {}, "arguments": {"conversation": [], "chat_template": "x"}}')
    running = process._running
    process.close()
    assert running.returncode == 0
    assert template_process.SECONDS < 10
