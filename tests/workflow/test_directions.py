"""Directions: drawn by prompt, said to the policy alone, and followed in the choice of the best answer."""

import dataclasses
import math

import numpy as np
import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.loop import DirectionOptions
from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.data.groups import STOP, PromptGroup, Response
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.directions import DIRECTION, directed, direction_text, draw, unit_vector, with_reach
from rlhf_jax.workflow.experiment import Experiment
from rlhf_jax.workflow.products import PAIRS
from rlhf_jax.workflow.stages.pairs import PairsStage
from rlhf_jax.workflow.stages.shards import ShardFolder, shard_name

NAMES = ("proxy/helpfulness", "proxy/verbosity")
OPTIONS = DirectionOptions(objectives=NAMES)


def test_the_words_are_dpas():
    assert direction_text(unit_vector(-30.0, NAMES)) == (
        "You are a helpful, respectful, and honest assistant who always responds to the user in a harmless way. Your "
        "response should maximize weighted rating = helpfulness*87 + verbosity*-50")


def test_directions_are_unit_vectors_within_the_angles_by_prompt_and_seed_alone():
    drawn = [draw(OPTIONS, f"p{i}") for i in range(2000)]
    angles = [math.degrees(math.atan2(v[NAMES[1]], v[NAMES[0]])) for v in drawn]
    assert all(math.hypot(*v.values()) == pytest.approx(1.0) for v in drawn)
    assert -45 <= min(angles) < -44.5
    assert 44.5 < max(angles) <= 45
    assert abs(np.mean(angles)) < 2.5  # uniform: the mean of 2,000 has a standard deviation of 0.58
    assert drawn[7] == draw(OPTIONS, "p7")
    assert drawn[7] != draw(dataclasses.replace(OPTIONS, seed=1), "p7")


@pytest.mark.parametrize(("settings", "words"), [
    ({"objectives": ("a",)}, "lies over two different ratings"), ({"objectives": ("a", "a")}, "two different"),
    ({"objectives": NAMES, "min_angle": 50.0}, "min_angle = 50 is above max_angle = 45"),
])
def test_bad_directions_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        DirectionOptions(**settings)


def test_the_policy_reads_the_direction_and_scorers_do_not(start, prompts):
    renderer = start.renderer(RenderOptions())
    asked, funnel = directed(prompts[:3], OPTIONS, renderer)
    assert (funnel.kept, [g.prompt_id for g in asked]) == (3, [g.prompt_id for g in prompts[:3]])
    for before, after in zip(prompts, asked, strict=False):
        text = start.tokenizer.decode(after.prompt_ids)
        assert direction_text(after.extra[DIRECTION]) in text
        assert before.prompt[0]["content"] in text
        assert after.prompt == before.prompt
    assert len({direction_text(g.extra[DIRECTION]) for g in asked}) == 3


def test_prompts_that_become_too_long_are_counted_and_those_with_a_system_message_refused(start, prompts):
    length = len(directed(prompts[:1], OPTIONS, start.renderer(RenderOptions()))[0][0].prompt_ids)
    kept, funnel = directed(prompts[:1], OPTIONS, start.renderer(RenderOptions(max_prompt_length=length - 1)))
    assert (list(kept), funnel.dropped) == ([], {"prompt_too_long": 1})
    own = dataclasses.replace(prompts[0], prompt=[{"role": "system", "content": "Be a cat."}, *prompts[0].prompt])
    with pytest.raises(ValueError, match="has a system message of its own, and loop"):
        directed([own], OPTIONS, start.renderer(RenderOptions()))


def answered(angle, *ratings):
    responses = tuple(Response(np.asarray([i + 5], np.int32), np.ones(1, bool), str(i), STOP, scores=dict(
        zip(NAMES, some, strict=False))) for i, some in enumerate(ratings))
    return PromptGroup(f"p{angle}", np.asarray([1], np.int32), responses, "q",
                       extra={DIRECTION: unit_vector(angle, NAMES)})


RATINGS = ((0.9, 0.1), (0.7, 0.9), (0.6, -0.9), (5.0,))
"""At 0 degrees the first is best; at 45 the second; at -45 the third. The last has but one rating: it takes no part."""


def test_the_best_answer_is_the_one_that_reaches_furthest(make_context, tmp_path):
    groups = [answered(angle, *RATINGS) for angle in (0, 45, -45)]
    reach = list(with_reach(groups))[1].responses
    assert reach[0].scores[DIRECTION] == pytest.approx(math.sqrt(0.5) * (0.9 + 0.1))
    assert DIRECTION not in reach[3].scores
    write_groups(tmp_path / shard_name(0), groups)
    (tmp_path / "out").mkdir()
    stage = PairsStage(source=ShardFolder(tmp_path, "k"), options=PairOptions(), method="raft", directed=True)
    report = stage.run(tmp_path / "out", make_context(tmp_path / "run"))
    assert report["funnel"]["kept"] == 3
    best = read_groups(tmp_path / "out" / PAIRS)
    assert [group.responses[0].text for group in best] == ["0", "1", "2"]


def test_a_rating_that_no_response_has_is_named():
    with pytest.raises(ValueError, match=r"names proxy/verbosity, which no response has; the scorer gave proxy/helpfu"):
        list(with_reach([answered(0, (0.5,))]))


def ratings(prompts, completions, completion_ids, **columns):
    """Two ratings that differ between almost any two responses."""
    return [{"": 0.0, "helpfulness": sum(ids) % 101 / 101, "verbosity": len(ids) / 8} for ids in completion_ids]


@pytest.mark.slow
def test_two_rounds_choose_by_directions_and_score_by_a_sum(micro_run, make_context, tmp_path):
    """`iterate` as a user gives it: a round's data are the answers that reach furthest, under their system message."""
    train = {"train_batch_size": 4, "micro_rows": 4, "row_length": 256, "learning_rate": 1e-3, "max_steps": 1}
    tree = micro_run(train, slots=4, shard_size=4, raft=train, output_dir=str(tmp_path / "run"), scorer={
        "kind": "combine", "weights": {"proxy/helpfulness": 2.0, "proxy/verbosity": -1.0},
        "scorer": {"kind": "function", "function": f"{__name__}:ratings"}})
    tree["loop"] |= {"prompts_per_round": 4, "method": "raft", "directions": {"objectives": list(NAMES)}}
    tree["scratch"]["max_position"] = 512
    config = build(ExperimentConfig, {name: section for name, section in tree.items()
                                      if name not in ("reward", "dpo", "evaluation", "gold")})
    Experiment(config, make_context(tmp_path / "run")).run()
    tokenizer = Checkpoint((tmp_path / "run" / "policy").resolve()).tokenizer
    stages = tmp_path / "run" / "stages"
    chosen = [(number, group) for number in (1, 2) for path in stages.glob(f"online-round-{number}-pairs-*")
              for group in read_groups(path / PAIRS)]
    assert len(chosen) == 8
    for number, group in chosen:
        (samples,) = stages.glob(f"online-round-{number}-score-*")
        sampled = {g.prompt_id: g for path in samples.glob("shard-*") for g in read_groups(path)}[group.prompt_id]
        numbers = group.responses[0].scores
        (reached,) = with_reach([sampled])
        assert numbers[DIRECTION] == max(r.scores[DIRECTION] for r in reached.responses)
        assert numbers["proxy"] == pytest.approx(2.0 * numbers["proxy/helpfulness"] - numbers["proxy/verbosity"])
        assert direction_text(group.extra[DIRECTION]) in tokenizer.decode(group.prompt_ids)
