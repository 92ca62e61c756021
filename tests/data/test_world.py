"""The embedded world: made by seeded code, judged by a function whose values can be worked out by hand."""

import collections
import hashlib
import json
import math
import random
import re

import numpy as np
import pytest

from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.chat import Renderer, load_tokenizer
from rlhf_jax.data.rows import Example, parse_row
from rlhf_jax.data.world import (
    COMPLAINTS,
    PLACES,
    THINGS,
    WORD_LIMIT,
    gold_judge,
    judge_text,
    rate_text,
    rater,
    train_tokenizer,
    world_rows,
    write_answer,
    write_world,
)

SMALL = WorldConfig(sft_rows=60, preference_rows=80, prompt_rows=40, eval_prompts=20)
ASK = "Write a postcard from the harbor about a cat."


@pytest.fixture(scope="module")
def rows():
    return world_rows(SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, SMALL)
    return folder


def content(messages):
    return messages[-1]["content"]


@pytest.mark.parametrize(("answer", "score"), [
    ("Hello.", 0.0),
    ("The cat is here.", 1.0),  # the thing
    ("The cat is at the harbor.", 2.0),  # and the place
    ("The golden cat.", 1.5),  # one vivid word
    ("The golden gentle curious shining cat.", 2.5),  # three count at most
    ("The golden golden cat.", 1.5),  # the same word counts once
    ("Dear Mia, the cat.", 1.5),  # a greeting
    ("The cat. Love, Ana.", 1.5),  # a signature
    ("The cat. Love, Zoe.", 1.0),  # of nobody known
    ("Love, Ana. The cat.", 1.0),  # a signature comes last
    ("Dear Mia, the golden gentle curious cat is at the harbor. Love, Ana.", 4.5),
    ("The cat. The cat.", 0.25),  # a repeated sentence
    ("The cat. The CAT. the cat!", -0.5),  # twice, whatever the case
    ("The cat is boring.", 0.0),  # a complaint
    ("The boring boring cat.", -1.0),  # each of them
    ("The cat and the storm.", 0.5),  # a thing nobody asked about
    ("The cat on the mountain in a boat.", 0.0),  # two of them
    ("The cat sat", 0.0),  # an unfinished sentence
    ("", -1.0),
])
def test_the_judges_values_by_hand(answer, score):
    assert judge_text(ASK, answer) == pytest.approx(score)


@pytest.mark.parametrize(("answer", "ratings"), [  # overall, relevance, vividness, politeness, verbosity
    ("Hello.", (0, 0, 0, 0, 0)),
    ("Dear Mia, the golden gentle curious cat is at the harbor. Love, Ana.", (4, 4, 3, 4, 1)),
    ("The golden golden cat.", (2, 2, 1, 0, 0)),  # 1.5 of the judge, and a vivid word counts once
    ("The cat and the storm.", (0, 1, 0, 0, 0)),  # 0.5 of the judge: halves go to the even step
    ("The storm.", (0, 0, 0, 0, 0)),  # below the scale
    ("Dear Mia, the boring boring cat is awful.", (0, 2, 0, 0, 1)),
    ("Dear Mia, the golden gentle curious shining silver cat is at the quiet harbor.", (4, 4, 4, 2, 1)),
    ("so " * 39 + "so.", (0, 0, 0, 0, 4)),
])
def test_ratings_by_hand(answer, ratings):
    found = rate_text(ASK, answer)
    assert tuple(found) == ("overall", "relevance", "vividness", "politeness", "verbosity")
    assert tuple(found.values()) == ratings


def test_the_rater_gives_every_rating_in_0_to_1_and_the_overall_one_as_score():
    answer = "Dear Mia. The golden harbour has a kite. Love, Ana."
    (found,) = rater([[{"role": "user", "content": ASK}]], [[{"role": "assistant", "content": answer}]], other=[1])
    assert found == {"": found["overall"], **{name: (step + 0.5) / 5 for name, step in rate_text(ASK, answer).items()}}


def test_rated_answers_have_their_true_ratings_with_holes_and_the_held_out_ones_all():
    config = WorldConfig(sft_rows=1, preference_rows=1, prompt_rows=1, eval_prompts=1, rated_rows=200)
    rows = world_rows(config)
    share = {}
    for name in ("rated", "rated_eval"):
        assert [parse_row(row, "graded").prompt_id for row in rows[name]] == [row["id"] for row in rows[name]]
        given = 0
        for row in rows[name]:
            answers = [content(answer["text"]) for answer in row["responses"]]
            assert len(set(answers)) == 4
            for text, answer in zip(answers, row["responses"], strict=True):
                truth = rate_text(content(row["prompt"]), text)
                given += len(answer["scores"])
                assert all(5 * r - 0.5 == pytest.approx(truth[rating]) for rating, r in answer["scores"].items())
        share[name] = given / (5 * 4 * len(rows[name]))
    assert (len(rows["rated"]), len(rows["rated_eval"])) == (200, 100)
    assert share == {"rated": pytest.approx(0.3, abs=4 * (0.21 / 4000) ** 0.5), "rated_eval": 1.0}
    seen = [{content(row["prompt"]) for row in rows[name]} for name in ("rated", "rated_eval")]
    assert not subjects(seen[0]) & subjects(seen[1])
    without = world_rows(WorldConfig(sft_rows=1, preference_rows=1, prompt_rows=1, eval_prompts=1))
    assert without == {name: content_ for name, content_ in rows.items() if not name.startswith("rated")}
    with pytest.raises(ValueError, match=r"rating_holes = 0\.5 has no effect with rated_rows = 0"):
        WorldConfig(rating_holes=0.5)


@pytest.mark.longer
def test_a_taste_for_length_makes_people_choose_the_longer_answer_as_often_as_it_says():
    def longer(taste):
        pairs = world_rows(WorldConfig(sft_rows=1, preference_rows=2000, prompt_rows=1, eval_prompts=1,
                                       length_taste=taste))["preference"]
        return np.array([(len(re.findall("[a-z]+", content(p["chosen"]).lower()))
                          - len(re.findall("[a-z]+", content(p["rejected"]).lower())),
                          judge_text(content(p["prompt"]), content(p["chosen"]))
                          - judge_text(content(p["prompt"]), content(p["rejected"]))) for p in pairs])

    shares = [np.mean(found[found[:, 0] != 0, 0] > 0) for found in map(longer, (-2.0, 0.0, 2.0))]
    assert shares[0] < 0.35
    assert 0.45 < shares[1] < 0.55  # the judge does not care
    assert shares[2] > 0.65
    words, gaps = longer(2.0).T
    logits = np.abs(gaps / 0.7 + 2.0 * words / 10)  # of what was chosen, whichever way it fell
    right = np.mean(gaps / 0.7 + 2.0 * words / 10 > 0)
    assert right == pytest.approx(np.mean(1 / (1 + np.exp(-logits))), abs=4 * 0.5 / len(words) ** 0.5)


def test_the_world_of_the_quickstart_stays_what_it_was():
    digest = hashlib.sha256(json.dumps(world_rows(SMALL)).encode()).hexdigest()
    assert digest == "5c9268581a62d69a05ef6d56d6c1af59f39a15f114e5efa45f3a32708f23af92"


def test_words_beyond_the_limit_cost_a_tenth_each():
    at_limit = "The cat " + "so " * (WORD_LIMIT - 3) + "much."
    assert judge_text(ASK, at_limit) == pytest.approx(1.0)
    assert judge_text(ASK, at_limit.replace("much", "so so so so so much")) == pytest.approx(0.5)


def test_the_judge_takes_texts_and_messages_alike():
    user, assistant = [{"role": "user", "content": ASK}], [{"role": "assistant", "content": "The cat."}]
    assert gold_judge([user, ASK], [assistant, "The cat."], column=[1, 2]) == [1.0, 1.0]


def test_the_judge_is_not_maximised_by_length():
    rng = random.Random(0)
    answers = [write_answer(rng, "harbor", "cat") for _ in range(4000)]
    lengths = np.array([len(re.findall("[a-z]+", a.lower())) for a in answers])
    scores = np.array([judge_text(ASK, a) for a in answers])
    order = np.argsort(lengths)
    fifths = [scores[part].mean() for part in np.array_split(order, 5)]
    longest = scores[order[-100:]].mean()
    assert longest < max(fifths) - 0.3
    assert fifths[0] < max(fifths) - 0.3
    assert judge_text(ASK, " ".join(answers[:20])) < np.median(scores)


def test_answers_spread_over_the_scale_and_hold_every_fault():
    rng = random.Random(1)
    answers = [write_answer(rng, "harbor", "cat") for _ in range(1000)]
    scores = [judge_text(ASK, a) for a in answers]
    assert min(scores) < -0.5
    assert max(scores) >= 4.0
    assert np.std(scores) > 0.7
    assert any(word in a for a in answers for word in COMPLAINTS)


def test_the_same_seed_makes_the_same_world_and_another_seed_another(rows):
    assert world_rows(SMALL) == rows
    other = world_rows(WorldConfig(seed=1, sft_rows=60, preference_rows=80, prompt_rows=40, eval_prompts=20))
    assert other["sft"] != rows["sft"]
    assert other["prompts"] != rows["prompts"]


def test_the_data_sets_have_the_sizes_asked_for_and_parse_as_what_they_are(rows):
    kinds = {"sft": ("sft", 60), "preference": ("preference", 80), "preference_eval": ("preference", 100),
             "prompts": ("prompt", 40), "eval_prompts": ("prompt", 20)}
    assert set(rows) == set(kinds)
    for name, (kind, count) in kinds.items():
        examples = [parse_row(row, kind) for row in rows[name]]
        assert len({e.prompt_id for e in examples}) == len(examples) == count


def flip_rate(pairs):
    """Share of decided pairs whose label contradicts the judge."""
    gaps = [judge_text(content(p["prompt"]), content(p["chosen"])) - judge_text(content(p["prompt"]),
                                                                               content(p["rejected"])) for p in pairs]
    gaps = np.array([g for g in gaps if abs(g) > 1e-9])
    return np.mean(gaps < 0), gaps


def test_labels_contradict_the_judge_as_often_as_the_noise_says():
    pairs = world_rows(WorldConfig(sft_rows=1, preference_rows=2000, prompt_rows=1, eval_prompts=1))["preference"]
    rate, gaps = flip_rate(pairs)
    expected = 1 / (1 + np.exp(np.abs(gaps) / 0.7))
    sigma = math.sqrt((expected * (1 - expected)).sum()) / len(gaps)
    assert abs(rate - expected.mean()) < 4 * sigma
    assert 0.1 < rate < 0.3


def test_label_noise_sets_the_rate():
    def rate(noise):
        config = WorldConfig(sft_rows=1, preference_rows=600, prompt_rows=1, eval_prompts=1, label_noise=noise)
        return flip_rate(world_rows(config)["preference"])[0]

    assert rate(0.01) < 0.01 < rate(0.7) < rate(5.0) < 0.5


def test_chosen_and_rejected_differ_and_evaluation_rows_show_no_answer(rows):
    for row in [*rows["preference"], *rows["preference_eval"]]:
        assert row["chosen"] != row["rejected"]
    for name in ("prompts", "eval_prompts"):
        assert all(set(row) == {"id", "prompt"} for row in rows[name])
        assert all([m["role"] for m in row["prompt"]] == ["user"] for row in rows[name])


@pytest.mark.longer
@pytest.mark.parametrize("config", [
    WorldConfig(),
    WorldConfig(seed=1), WorldConfig(seed=4),
    WorldConfig(sft_rows=20_000, preference_rows=9000, prompt_rows=5000, eval_prompts=1000),
    SMALL,
])
def test_no_prompt_of_an_evaluation_is_in_any_training_set(config):
    rows = world_rows(config)
    asked = {name: {content(row["prompt"]) for row in content_} for name, content_ in rows.items()}
    trained = asked["sft"] | asked["preference"] | asked["prompts"]
    assert not trained & (asked["eval_prompts"] | asked["preference_eval"])
    assert not subjects(trained) & subjects(asked["eval_prompts"] | asked["preference_eval"])
    assert len(asked["eval_prompts"]) == min(config.eval_prompts, 512)
    assert len(asked["prompts"]) == min(config.prompt_rows, 1536)


def subjects(prompts):
    words = (set(re.findall("[a-z]+", prompt.lower())) for prompt in prompts)
    return {(*(said & set(PLACES)), *(said & set(THINGS))) for said in words}


def test_every_place_and_thing_is_asked_for_in_training_and_held_out_equally_often():
    rows = world_rows(WorldConfig(sft_rows=1536, eval_prompts=512))
    for name, share in (("sft", 96), ("eval_prompts", 32)):
        for words in (PLACES, THINGS):
            counts = collections.Counter(word for row in rows[name] for word in words
                                         if word in re.findall("[a-z]+", content(row["prompt"]).lower()))
            assert counts == dict.fromkeys(words, share)


def test_another_seed_holds_out_other_prompts():
    first, second = ({content(row["prompt"]) for row in world_rows(WorldConfig(seed=seed))["eval_prompts"]}
                     for seed in (0, 1))
    assert len(first & second) < 64


def test_the_written_world_is_the_world(folder, rows):
    for name, content_ in rows.items():
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == content_
    assert not list(folder.glob(".*"))


def test_writing_a_world_over_a_half_written_one_makes_it_whole(tmp_path, folder):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / ".tokenizer.partial").mkdir()
    (tmp_path / ".tokenizer.partial" / "tokenizer.json").write_text("{")
    write_world(tmp_path, SMALL)
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_bytes() == (
        folder / "tokenizer" / "tokenizer.json").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_the_template_writes_one_bos_and_trains_on_the_answer_with_its_end(folder, rows):
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    row = rows["sft"][0]
    group = Renderer(tokenizer).render(Example(row["prompt"], (row["completion"],)))
    ids = [*group.prompt_ids.tolist(), *group.responses[0].ids.tolist()]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.decode(group.responses[0].ids) == content(row["completion"]) + "<|end|>"
    assert group.responses[0].loss_mask.all()
    assert tokenizer.decode(group.prompt_ids) == f"<s><|user|>{content(row['prompt'])}<|end|><|assistant|>"


def test_the_templates_own_generation_mask_marks_the_same_tokens(folder, rows):
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    row = rows["sft"][1]
    found = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=True, return_dict=True,
                                          return_assistant_tokens_mask=True)
    group = Renderer(tokenizer).render(Example(row["prompt"], (row["completion"],)))
    assert found["input_ids"] == [*group.prompt_ids.tolist(), *group.responses[0].ids.tolist()]
    mask = [0] * len(group.prompt_ids) + group.responses[0].loss_mask.astype(int).tolist()
    assert found["assistant_masks"] == mask


def test_any_text_survives_the_tokenizer(rows):
    tokenizer = train_tokenizer(rows, 400)
    for text in ("The cat.", " two  spaces", "naïve café 😀", "tab\tand\nnewline"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
