"""Process and outcome models: one pass is step by step, by an independent reading of the logits; failures counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import text_group
from rlhf_jax.data.rows import parse_row
from rlhf_jax.data.tokenizer import TEMPLATES
from rlhf_jax.models import CheckpointError, packed_forward, vocab_logits
from rlhf_jax.scoring.process import ProcessScorer, cut_at, sign_ids, signed_examples, whole_solution

QUESTION = [{"role": "user", "content": "What is 2 + 3 + 4?"}]
STEPS = ["2 + 3 = 5.", "5 + 4 = 9.", "The answer is 9."]
SOLUTIONS = ("\n\n".join(STEPS), "2 + 3 = 6.\n\n6 + 4 = 10.", "One step.")


@pytest.fixture(scope="module")
def model(policy_tokenizer, make_config, make_params):
    config = make_config(policy_tokenizer)
    return make_params(config), config, Renderer(policy_tokenizer, max_length=300, overlong="drop")


@pytest.fixture(scope="module")
def make_scorer(model, mesh):
    params, config, renderer = model
    return lambda **more: ProcessScorer(params, config, renderer, mesh, **{
        "cut": cut_at("\n\n"), "min_sign_mass": 0.0, **more})


def step_by_step(model, question, steps):
    """P(+) of each step as the published code has it: one forward a step, + for all before, the place before the sign.

    "Position -3": behind it come the sign and the stop token; with ids alone it is the last one before the sign.
    """
    params, config, renderer = model
    tokenizer, found = renderer.tokenizer, []
    plus, minus = (tokenizer.encode(sign, add_special_tokens=False)[0] for sign in "+-")
    for count in range(1, len(steps) + 1):
        messages = []
        for i, step in enumerate(steps[:count]):
            messages += [{"role": "user", "content": f"{question} {step}" if i == 0 else step},
                         {"role": "assistant", "content": "+"}]
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        assert ids[-2] == plus
        ids = jnp.asarray(ids[:-2])[None]
        ones = jnp.ones_like(ids)
        hidden = packed_forward(params, config, ids, jnp.arange(ids.size)[None], ones, ones)
        logits = np.asarray(vocab_logits(params, config, hidden)[0, -1], np.float64)
        found.append(1 / (1 + np.exp(logits[minus] - logits[plus])))
    return found


@pytest.mark.longer
def test_one_pass_is_step_by_step(model, make_scorer, exact_matmul):
    scorer = make_scorer()
    verdicts = scorer.score([text_group("p", QUESTION, [(text, {}) for text in SOLUTIONS])])[0]
    for text, verdict in zip(SOLUTIONS, verdicts, strict=True):
        expected = step_by_step(model, QUESTION[0]["content"], text.split("\n\n"))
        found = [verdict[f"step-{i}"] for i in range(1, len(expected) + 1)]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert f"step-{len(expected) + 1}" not in verdict
        assert verdict[""] == verdict["mean"] == pytest.approx(np.mean(expected), abs=1e-6)
        assert verdict["min"] == min(found)
        assert verdict["last"] == found[-1]
        assert verdict["product"] == pytest.approx(np.prod(expected), abs=1e-6)
    assert np.ptp([verdict[""] for verdict in verdicts]) > 0.01  # the model tells them apart
    assert not scorer.failures


@pytest.mark.parametrize("reduce", ["min", "last", "product"])
def test_the_score_is_the_chosen_number(make_scorer, reduce):
    group = text_group("p", QUESTION, [(SOLUTIONS[0], {})])
    verdict = make_scorer(reduce=reduce).score([group])[0][0]
    assert verdict[""] == verdict[reduce] != verdict["mean"]


@pytest.mark.longer
def test_the_history_is_filled_with_plus_whatever_the_labels_say(model, make_scorer):
    """A negative control: with the row's own - before it, a step's number is another one."""
    params, config, renderer = model
    row = {"prompt": QUESTION[0]["content"], "steps": STEPS, "labels": ["-", "+", "+"]}
    example = parse_row(row, "steps")
    trained = renderer.render(signed_examples([example], Funnel(), 0.0)[0])
    group = text_group("p", QUESTION, [(SOLUTIONS[0], {})])
    scored = make_scorer().rendered(group, 0)
    assert len(trained.responses[0].ids) == len(scored.responses[0].ids)
    differ = np.flatnonzero(trained.responses[0].ids != scored.responses[0].ids)
    assert differ.tolist() == [0]
    ids = [jnp.asarray(np.concatenate([g.prompt_ids, g.responses[0].ids]))[None] for g in (trained, scored)]
    a, b = (vocab_logits(params, config, packed_forward(params, config, x, jnp.arange(x.size)[None], jnp.ones_like(x),
                                                        jnp.ones_like(x)))[0, -3] for x in ids)
    assert float(jnp.abs(a - b).max()) > 1e-3


def test_signs_and_stop_tokens_alone_are_trained_on(model):
    _, _, renderer = model
    plus, minus = sign_ids(renderer)
    row = {"prompt": "Q", "steps": STEPS, "labels": [True, 0.25, 0]}
    for threshold, signs in ((0.0, [plus, plus, minus]), (0.5, [plus, minus, minus])):
        funnel = Funnel()
        (example,) = signed_examples([parse_row(row, "steps")], funnel, threshold)
        assert example.prompt == [{"role": "user", "content": f"Q {STEPS[0]}"}]
        assert funnel.notes["steps"] == 3
        assert funnel.notes["steps_right"] == signs.count(plus)
        response = renderer.render(example).responses[0]
        stop = renderer.end_of_turn.stop_id
        assert response.ids[response.loss_mask].tolist() == [x for sign in signs for x in (sign, stop)]


@pytest.mark.longer
def test_an_outcome_model_reads_the_whole_solution_as_one_step(model, make_scorer, exact_matmul):
    scorer = make_scorer(cut=whole_solution, names=False)
    verdict = scorer.score([text_group("p", "What is 2 + 3 + 4?", [(SOLUTIONS[0], {})])])[0][0]
    assert set(verdict) == {""}
    assert verdict[""] == pytest.approx(step_by_step(model, QUESTION[0]["content"], [SOLUTIONS[0]])[0], abs=1e-6)
    rows = [{"prompt": "Q", "steps": STEPS, "labels": ["+", "-", "-"]},
            {"prompt": "Q", "completion": "9", "label": True}]
    examples = signed_examples([parse_row(row, "unpaired") for row in rows], Funnel(), None)
    assert [example.responses[0][0]["content"] for example in examples] == ["-", "+"]
    assert examples[0].prompt[0]["content"] == "Q " + SOLUTIONS[0]


def test_steps_of_a_row_are_not_cut_again_and_texts_are_cut_where_asked(make_scorer):
    row = {"prompt": "Q", "steps": ["Step 1: a\n\nb", "Step 10: c"], "labels": ["+", "-"]}
    example = parse_row(row, "answered")
    group = text_group("p", example.prompt, [(example.responses[0], {})], extra=example.extra)
    assert len([n for n in make_scorer().score([group])[0][0] if n.startswith("step-")]) == 2
    marked = text_group("p", "Q", [("Step 1: a ки\nStep 10: b ки\n", {})])
    scorer = make_scorer(cut=cut_at("ки"))
    assert len([n for n in scorer.score([marked])[0][0] if n.startswith("step-")]) == 2
    lines = make_scorer(cut=cut_at("\n")).rendered(text_group("p", "Q", [("a\nb\n\nc", {})]), 0)
    assert lines.responses[0].loss_mask.sum() == 6


def test_what_cannot_be_scored_is_counted(make_scorer, model):
    scorer = make_scorer()
    call = [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]
    group = text_group("p", QUESTION, [(" \n\n ", {}), ("a " * 400, {}), (call, {}), ("fine", {})])
    assert [verdict is None for verdict in scorer.score([group])[0]] == [True, True, True, False]
    assert set(scorer.failures) == {"no_steps", "prompt_too_long", "tool_calls_not_rendered"}
    tool = text_group("p", [*QUESTION, {"role": "assistant", "content": "x"}, {"role": "tool", "content": "y"}],
                      [("fine", {})])
    assert scorer.score([tool]) == [[None]]
    assert scorer.failures["prompt_not_of_user"] == 1
    unsure = make_scorer(min_sign_mass=0.999)
    assert unsure.score([group])[0][3] is None
    assert unsure.failures["no_sign"] == 1


def test_a_tokenizer_that_splits_a_sign_and_a_classifier_are_refused(model, make_config, make_params, mesh,
                                                                     policy_tokenizer):
    spaced = type(policy_tokenizer)(tokenizer_object=policy_tokenizer.backend_tokenizer, bos_token="<s>",
                                    eos_token="<|end|>", pad_token="<pad>", chat_template=TEMPLATES["plain"].replace(
                                        "message['content']", "'::' + message['content']"))
    with pytest.raises(CheckpointError, match=r"takes \d tokens in this tokenizer and template; a process or outc"):
        sign_ids(Renderer(spaced))
    headed = make_config(policy_tokenizer, num_labels=1)
    with pytest.raises(CheckpointError, match="for a scalar outcome model set kind: outcome"):
        ProcessScorer(make_params(headed), headed, model[2], mesh, cut=whole_solution)


def test_eight_devices_give_the_numbers_of_one(model, make_scorer):
    from rlhf_jax.config.mesh import MeshConfig
    from rlhf_jax.parallel import make_mesh

    params, config, renderer = model
    groups = [text_group(f"p{i}", f"What is {i}?", [(text, {}) for text in SOLUTIONS]) for i in range(5)]
    one = make_scorer().score(groups)
    wide = make_mesh(MeshConfig(data=4, fsdp=2), jax.devices()[:8])
    eight = ProcessScorer(params, config, renderer, wide, cut=cut_at("\n\n"), min_sign_mass=0.0).score(groups)
    for of_one, of_eight in zip(one, eight, strict=True):
        for a, b in zip(of_one, of_eight, strict=True):
            assert a == pytest.approx(b, abs=2e-5)
