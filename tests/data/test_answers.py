"""Answers in texts: the marks, the numbers, LaTeX in boxes, and what is the same."""

import importlib.util

import pytest

from rlhf_jax.data.answers import RULES, candidates, find_rule, reference_answer


@pytest.mark.parametrize(("rule", "text", "answer"), [
    ("gsm8k", "2 + 3 = 5\n#### 5", "5"),
    ("gsm8k", "#### 1,234.", "1234"),
    ("gsm8k", "so\nA: -1.8 billion", "-1.8"),
    ("gsm8k", "#### $18.50", "18.50"),
    ("gsm8k", "The answer is: 7. The answer is 8.", "8"),
    ("gsm8k", "#### 3\n#### 4", "4"),
    ("gsm8k", "there are 5 of them", None),
    ("gsm8k", "#### ...", None),
    ("gsm8k", "PDA: 5", None),
    ("gsm8k_flexible", "there are 5 of 1,000 for $3.", "3"),
    ("gsm8k_flexible", "no number.", None),
    ("math", r"so \boxed{\frac{1}{2}} and \boxed{\frac{a}{b}}.", r"\frac{a}{b}"),
    ("math", r"cut \boxed{1} then \boxed{\frac{1}", "1"),
    ("math", "The answer is $x + 1$.", "x + 1"),
    ("math", "no mark", None),
])
def test_the_answer_of_a_text(rule, text, answer):
    assert RULES[rule].find(text) == answer


def test_numbers_are_the_same_by_value_and_votes_by_what_is_written():
    rule = find_rule("gsm8k")
    assert rule.same("3", "3.0")
    assert not rule.same("3", "30")
    assert not rule.same("3", "1.2.3")
    assert candidates(rule, ["3", None, "4", "3.0", "3"]) == [0, -1, 1, 2, 0]


def test_a_reference_is_its_marked_answer_or_all_of_it():
    rule = find_rule("gsm8k")
    assert reference_answer(rule, "5 - 2 = 3\n#### 3") == "3"
    assert reference_answer(rule, 3) == "3"
    assert reference_answer(rule, "1,000") == "1000"
    assert reference_answer(RULES["math"], r"\frac12") == r"\frac12"
    for empty in ("", "three", "1 or 2"):
        with pytest.raises(ValueError, match="holds no answer"):
            reference_answer(rule, empty)


def test_an_unknown_rule_and_a_missing_extra_are_said(monkeypatch):
    with pytest.raises(ValueError, match="no answer rule 'aime'; choose one of gsm8k, gsm8k_flexible, math"):
        find_rule("aime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'math-verify, which is not installed; pip install "rlhf_jax\[math\]"'):
        find_rule("math")


def test_an_answer_is_read_once_however_often_it_is_compared(monkeypatch):
    math_verify = pytest.importorskip("math_verify", reason="needs the extra math")
    read, parse = [], math_verify.parse
    monkeypatch.setattr(math_verify, "parse", lambda text: read.append(text) or parse(text))
    answers = [f"\\frac{{{i}}}{{71}}" for i in range(1, 9)]
    assert candidates(find_rule("math"), [*answers, *answers]) == [*range(8), *range(8)]
    assert len(read) == len(set(read)) == 8


def test_mathematics_is_compared_by_its_value():
    pytest.importorskip("math_verify", reason="needs the extra math")
    rule = find_rule("math")
    assert rule.same(r"\frac{1}{2}", "0.5")
    assert rule.same(r"(x+1)^2", r"x^2+2x+1")
    assert not rule.same(r"\frac{1}{2}", r"\frac{1}{3}")
    assert candidates(rule, [r"\frac{1}{2}", "0.5", "2"]) == [0, 0, 1]
