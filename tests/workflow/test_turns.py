"""Online rounds on prompts of several turns, a tool's answer among them: sampled, scored, paired and trained on."""

import json

import pytest

from rlhf_jax.data.jsonl import read_groups, read_jsonl
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.stages.score import ScoreStage
from rlhf_jax.workflow.stages.shards import ShardFolder, read_shards

TEMPLATE = (
    "{{ bos_token }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}{{ '<|assistant|>' if m.role == 'assistant' else '<|user|>' }}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}")
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
PROMPTS = [
    {"id": "turns", "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"},
                                 {"role": "user", "content": "Where is Ann?"}]},
    {"id": "tools", "tools": TOOLS, "messages": [
        {"role": "user", "content": "Add."}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "3"}]},
]


def by_number(prompts, completions, **columns):
    """Also seen: the whole conversation of each, and the tools of those that have some."""
    assert [[turn["role"] for turn in prompt] for prompt in prompts] == (
        [["user", "assistant", "user"]] * 4 + [["user", "assistant", "tool"]] * 4)
    assert columns["tools"] == [None] * 4 + [TOOLS] * 4
    return [float(place % 4) for place in range(len(completions))]


@pytest.mark.longer
def test_the_last_turn_alone_is_sampled_and_trained_on(model, start, make_context, do_verb, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    template = str(tmp_path / "template.jinja")
    do_verb("generate", tmp_path / "sampled", model_name_or_path=str(model), chat_template_path=template,
            dataset_name=str(tmp_path / "prompts.jsonl"), num_generations=4, max_new_tokens=6, slots=4, block=3)
    (tmp_path / "scored").mkdir()
    ScoreStage(scorer=FunctionScorer(by_number, name="proxy"), source=ShardFolder(tmp_path / "sampled")).run(
        tmp_path / "scored", make_context(tmp_path))
    do_verb("pairs", tmp_path / "pairs", input=str(tmp_path / "scored"), layout="trl")
    sampled, pairs = read_shards(tmp_path / "sampled"), read_groups(tmp_path / "pairs" / "pairs.jsonl")
    shown = [start.tokenizer.decode(group.prompt_ids) for group in pairs]
    assert shown[0] == "<s><|user|>Hello<|end|><|assistant|>Hi<|end|><|user|>Where is Ann?<|end|><|assistant|>"
    assert shown[1].endswith('<|user|>Add.<|end|><|assistant|>{"name": "add", "arguments": {"a": 1}}<|end|>'
                             "<|user|>3<|end|><|assistant|>")
    for before, group in zip(sampled, pairs, strict=True):
        assert group.prompt_ids.tolist() == before.prompt_ids.tolist()
        chosen, rejected = (group.responses[place] for place in group.pairs[0])
        assert chosen.ids.tolist() in [r.ids.tolist() for r in before.responses]  # as ids, never rendered again
        assert chosen.loss_mask.all()
        assert rejected.loss_mask.all()
        assert group.prompt[1]["role"] == "assistant"
    rows = list(read_jsonl(tmp_path / "pairs" / "trl.jsonl"))
    assert [len(row["prompt"]) for row in rows] == [3, 3]
    assert rows[1]["tools"] == TOOLS
    assert "tools" not in rows[0]
    do_verb("dpo", tmp_path / "trained", model_name_or_path=str(model), pairs=str(tmp_path / "pairs" / "pairs.jsonl"),
            max_steps=1, train_batch_size=2, micro_rows=2, row_length=128)
