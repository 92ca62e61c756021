"""The pairwise preference model: exact texts, single letters, both orders, failures counted."""

import jax
import numpy as np
import pytest

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.rows import Example
from rlhf_jax.models import CheckpointError, output_head, packed_forward
from rlhf_jax.scoring import PairwiseScorer, comparison, context_text, letter_examples
from rlhf_jax.scoring.base import scores_in
from rlhf_jax.scoring.pairwise import letter_ids

PROMPT = [{"role": "user", "content": "Write about a cat."}]
GAMES = [(PROMPT, "The cat sat.", "No."), ("a plain text prompt", "One answer.", "Another answer."),
         (PROMPT, "Same.", "Same.")]


@pytest.fixture(scope="module")
def make_scorer(policy_tokenizer, make_config, make_params, mesh):
    config = make_config(policy_tokenizer)

    def make(seed=0, max_length=512, **settings):
        renderer = Renderer(policy_tokenizer, max_length=max_length, overlong="drop")
        return PairwiseScorer(make_params(config, seed), config, renderer, mesh, **{"min_letter_mass": 0.0, **settings})

    return make


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(("prompt", "text"), [
    (turns("Q1"), "\n\n<turn> user\n Q1\n"),
    ("Q1", "\n\n<turn> user\n Q1\n"),
    (turns("Q1", "A1", "Q2"), "\n\n<turn> user\n Q1\n<turn> assistant\n A1\n<turn> user\n Q2\n"),
])
def test_the_context_is_the_string_the_published_models_saw(prompt, text):
    assert context_text(prompt) == text


def test_the_comparison_has_the_published_spaces():
    content = "[CONTEXT] \n\n<turn> user\n Q1\n [RESPONSE A] first [RESPONSE B] second \n"
    assert comparison("Q1", "first", turns("x", "second")[1:]) == [{"role": "user", "content": content}]


def preference(count):
    return [Example(turns(f"Q{i}"), (turns("?", "good")[1:], turns("?", "bad")[1:]), ((0, 1),), prompt_id=f"q{i}")
            for i in range(count)]


def test_letter_examples_put_the_chosen_where_the_letter_says():
    for example in letter_examples(preference(40), 0, Funnel()):
        content = example.prompt[0]["content"]
        letter = {"[RESPONSE A] good [RESPONSE B] bad": "A", "[RESPONSE A] bad [RESPONSE B] good": "B"}
        assert example.responses == (next(v for k, v in letter.items() if k in content),)
        assert example.pairs == ()


def test_the_coin_is_decided_by_prompt_id_and_seed_alone_and_is_fair():
    rows = preference(600)
    letters = {e.prompt_id: e.responses[0] for e in letter_examples(rows, 0, Funnel())}
    again = {e.prompt_id: e.responses[0] for e in letter_examples(rows[::-1][:300], 0, Funnel())}
    assert all(letters[name] == letter for name, letter in again.items())
    other = {e.prompt_id: e.responses[0] for e in letter_examples(rows, 1, Funnel())}
    assert 0.4 < np.mean([letters[name] == other[name] for name in letters]) < 0.6
    assert 0.44 < np.mean([letter == "A" for letter in letters.values()]) < 0.56  # 3 sigma of 600 fair coins


def test_every_pair_of_a_row_becomes_one_comparison_with_its_own_name_and_count():
    row = Example("q", ("a", "b", "c"), ((0, 1), (2, 1)), prompt_id="q")
    funnel = Funnel()
    found = letter_examples([row], 0, funnel)
    assert len({e.prompt_id for e in found}) == 2 == funnel.notes["comparisons"]
    assert [e.origin for e in found] == [row.origin] * 2


def test_a_row_whose_tool_calls_a_comparison_would_not_hold_is_a_bad_row():
    called = [{"role": "assistant", "content": "b", "tool_calls": [{"function": {"name": "add"}}]}]
    funnel = Funnel(read=2)
    rows = [Example("q", ("a", called), ((0, 1),), prompt_id="q"), Example("q", ("a", "b"), ((0, 1),), prompt_id="r")]
    assert [e.prompt_id for e in letter_examples(rows, 0, funnel)] == ["r/0"]
    assert (funnel.kept, funnel.invalid) == (1, {"tool_calls_not_rendered": 1})


def test_comparisons_are_counted_as_rows_so_that_the_sums_hold():
    funnel = Funnel(read=1)
    letter_examples([Example("q", ("a", "b", "c"), ((0, 1), (2, 1), (0, 2)), prompt_id="q")], 0, funnel)
    funnel.dropped["prompt_too_long"] += 2
    assert funnel.kept == 1


def test_the_letters_are_single_and_different_tokens_where_the_reply_begins(policy_tokenizer, other_tokenizer):
    for tokenizer in (policy_tokenizer, other_tokenizer):
        a, b = letter_ids(Renderer(tokenizer))
        assert tokenizer.decode([a]) == "A"
        assert tokenizer.decode([b]) == "B"


def test_letters_of_two_tokens_are_refused(policy_tokenizer):
    import copy

    spaced = copy.deepcopy(policy_tokenizer)
    spaced.chat_template = spaced.chat_template.replace("{% generation %}", "{% generation %}~")
    with pytest.raises(CheckpointError, match="takes 2 tokens"):
        letter_ids(Renderer(spaced))


@pytest.mark.longer
def test_a_comparison_is_the_letter_softmax_after_the_reply_header_averaged_over_both_orders(make_scorer):
    scorer = make_scorer()
    a, b = letter_ids(scorer._renderer)
    config, params = scorer._compute.config, scorer._weights()

    def p_of_a(prompt, first, second):
        tokens = scorer._renderer.render_prompt(comparison(prompt, first, second))[None]
        ones = np.ones_like(tokens)
        hidden = packed_forward(params, config, tokens, np.arange(tokens.size)[None], ones, 0 * ones)
        logits = hidden[0, -1] @ output_head(params).T
        return float(jax.nn.softmax(logits[np.array([a, b])])[0])

    prompt, first, second = GAMES[0]
    expected = (p_of_a(prompt, first, second) + 1 - p_of_a(prompt, second, first)) / 2
    np.testing.assert_allclose(scorer.compare(GAMES[:1]), [expected], atol=1e-5)


@pytest.mark.longer
def test_swapping_the_answers_gives_the_complement_and_equal_answers_a_half(make_scorer):
    scorer = make_scorer(1)
    found = scorer.compare(GAMES)
    swapped = scorer.compare([(prompt, second, first) for prompt, first, second in GAMES])
    np.testing.assert_allclose(np.add(found, swapped), 1.0, atol=1e-6)
    assert found[2] == pytest.approx(0.5, abs=1e-6)
    assert abs(found[0] - 0.5) > 1e-4


def test_a_model_that_puts_little_mass_on_the_letters_fails_and_is_counted(make_scorer):
    scorer = make_scorer(min_letter_mass=0.5)  # random weights spread over 400 tokens
    assert scorer.compare(GAMES) == [None] * 3
    assert scorer.failures == {"no_letter": 3}


def test_a_comparison_too_long_for_the_model_fails_alone(make_scorer):
    scorer = make_scorer(max_length=120)
    long = (PROMPT, "word " * 200, "No.")
    found = scorer.compare([GAMES[0], long])
    assert found[0] is not None
    assert found[1] is None
    assert scorer.failures == {"prompt_too_long": 1}


@pytest.mark.parametrize("place", [1, 2])
def test_an_answer_of_several_turns_is_refused_and_counted(place, make_scorer):
    """Only its last turn would be seen."""
    turns = [{"role": role, "content": role} for role in ("assistant", "user", "assistant")]
    game = [PROMPT, "Yes.", "No."]
    game[place] = turns
    scorer = make_scorer()
    assert scorer.compare([tuple(game)]) == [None]
    assert scorer.failures == {"several_turns": 1}


def test_round_robin_scores_come_from_the_models_own_games(make_scorer, make_group):
    scorer = make_scorer()
    group = make_group("Write.", "The cat.", "A storm.", "No.")
    texts = [r.text for r in group.responses]
    p01, p02, p12 = scorer.compare([(group.prompt, texts[i], texts[j]) for i, j in ((0, 1), (0, 2), (1, 2))])
    expected = [(p01 + p02) / 2, (1 - p01 + p12) / 2, (1 - p02 + 1 - p12) / 2]
    np.testing.assert_allclose(scores_in(scorer.score([group]))[0], expected, atol=1e-5)
    best, worst = int(np.argmax(expected)), int(np.argmin(expected))
    knocked = scores_in(make_scorer(method="knock_out").score([group]))[0]
    if expected[best] > 0.5:
        assert knocked[best] >= knocked[worst]
    assert sorted(knocked) == [0.0, 0.5, 1.0]


def test_refuses_a_classifier(policy_tokenizer, make_config, make_params, mesh):
    config = make_config(policy_tokenizer, num_labels=1)
    with pytest.raises(CheckpointError, match=r"classifier of 1 output.*kind: bradley_terry"):
        PairwiseScorer(make_params(config), config, Renderer(policy_tokenizer), mesh)
