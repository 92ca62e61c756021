"""A prompt group is read back as it was written; what `to_json` never writes is refused by file, line and column."""

import json

import pytest

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import SourceError, read_groups

RESPONSE = {"ids": [5, 6, 2], "text": "hi", "loss_mask": [1, 0, 1], "logps": [-1.0, -2.5, 0], "finish_reason": "stop",
            "scores": {"rm": 1, "rm/short": 0.5, "label": 1}}
GROUP = {"prompt_id": "p", "prompt": [{"role": "user", "content": "q"}], "prompt_ids": [1, 7],
         "responses": [RESPONSE, {"ids": [3], "text": "no"}], "pairs": [[0, 1]], "margins": [0.5], "extra": {"a": [1]}}


def test_a_group_and_a_response_are_printed_in_a_line():
    group = PromptGroup.from_json(GROUP)
    assert repr(group) == "PromptGroup('p', 'q', tokens=2, responses=2, pairs=1, extra=['a'])"
    assert repr(group.responses[0]) == ("Response('hi', tokens=3, logps=True, finish_reason='stop', "
                                        "scores={'rm': 1, 'rm/short': 0.5, 'label': 1})")
    long = {**RESPONSE, "text": "word " * 999, "ids": [3] * 999, "loss_mask": [1] * 999, "logps": [0.5] * 999}
    group = PromptGroup.from_json({**GROUP, "prompt": "x" * 999, "responses": [long] * 64})
    assert repr(group) == f"PromptGroup('p', '{'x' * 40}'..., tokens=2, responses=64, pairs=1, extra=['a'])"
    assert len(repr(group.responses[0])) < 200
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert "('p', ... 3 messages, the last 'c', tokens" in repr(PromptGroup.from_json({**GROUP, "prompt": talk}))


def test_a_whole_group_is_taken_and_written_again():
    written = PromptGroup.from_json(GROUP).to_json()
    assert written == {**GROUP, "responses": [{**RESPONSE, "logps": [-1.0, -2.5, 0.0]}, GROUP["responses"][1]]}
    assert PromptGroup.from_json(written).to_json() == written


@pytest.mark.parametrize(("changes", "said"), [
    ({"prompt_id": 3}, "prompt_id is 3 and no text"),
    ({"prompt_ids": [-1]}, "prompt_ids holds -1, which is no token id"),
    ({"prompt_ids": [2**31]}, "prompt_ids holds 2147483648, which is no token id"),
    ({"prompt_ids": [10**30]}, "prompt_ids holds something else than whole numbers"),
    ({"prompt_ids": []}, "prompt_ids has 0 numbers and the ids of"),
    ({"prompt_ids": [1.5]}, "prompt_ids holds something else than whole numbers"),
    ({"prompt_ids": ["1"]}, "prompt_ids holds something else than whole numbers"),
    ({"prompt_ids": [True]}, "prompt_ids holds something else than whole numbers"),
    ({"prompt_ids": [[1], [2, 3]]}, "prompt_ids is no flat list"),
    ({"prompt_ids": [[1, 2], [2, 3]]}, "prompt_ids holds something else"),
    ({"prompt_ids": "12"}, "prompt_ids is str and no list"),
    ({"prompt": 3}, "prompt is neither text nor a list of messages"),
    ({"prompt": [{"content": "q"}]}, "prompt is neither text nor a list of messages"),
    ({"prompt": []}, "prompt is neither text nor a list of messages"),
    ({"prompt": [{"role": "user"}]}, "prompt is neither text nor a list of messages"),
    ({"prompt": [{"role": "user", "content": None}]}, "prompt is neither text nor a list of messages"),
    ({"responses": {}}, "responses is dict and no list"),
    ({"responses": [3]}, r"responses\[0\] is int and no object"),
    ({"responses": [{"text": "x"}]}, r"responses\[0\]: there is no ids; the columns are text"),
    ({"pairs": [[0, 2]]}, r"pairs holds \[0, 2\]; a pair is the places of two of the 2 responses"),
    ({"pairs": [[-1, 0]]}, r"pairs holds \[-1, 0\]"),
    ({"pairs": [[0, 1, 1]]}, r"pairs holds \[0, 1, 1\]"),
    ({"pairs": [[0, True]]}, r"pairs holds \[0, True\]"),
    ({"pairs": 3}, "pairs is int and no list"),
    ({"margins": [0.5, 0.1]}, "one finite number for each of the 1 pairs"),
    ({"margins": [float("inf")]}, "one finite number for each"),
    ({"margins": ["1"]}, "one finite number for each"),
    ({"extra": [1]}, "extra is list and no object"),
])
def test_a_group_that_none_of_our_stages_writes_is_refused_by_line_and_column(changes, said, tmp_path):
    path = tmp_path / "shard-00000.jsonl"
    path.write_text(json.dumps(GROUP) + "\n\n" + json.dumps({**GROUP, **changes}) + "\n")
    with pytest.raises(SourceError, match=rf"shard-00000\.jsonl, line 3 is not a prompt group.*: .*{said}"):
        read_groups(path)


@pytest.mark.parametrize(("changes", "said"), [
    ({"logps": [-1.0, -2.0]}, "logps has 2 numbers and ids 3"),
    ({"logps": [-1.0, float("nan"), 0.0]}, "logps holds something else than finite numbers"),
    ({"logps": [-1.0, -1e300, 0.0]}, "logps holds something else than finite numbers"),
    ({"logps": [-1.0, None, 0.0]}, "logps holds something else than finite numbers"),
    ({"loss_mask": [1, 1]}, "loss_mask has 2 numbers and ids 3"),
    ({"loss_mask": [0, 1, 2]}, "loss_mask holds other numbers than 0 and 1"),
    ({"ids": [5, -6, 2]}, "ids holds -6"),
    ({"ids": []}, "loss_mask has 3 numbers and ids 0"),
    ({"ids": None}, "ids is NoneType and no list"),
    ({"text": {"a": 1}}, "text is neither"),
    ({"text": []}, "text is neither"),
    ({"text": [{"role": "assistant", "content": ["hi"]}]}, "text is neither"),
    ({"finish_reason": "eos"}, "finish_reason is 'eos'"),
    ({"scores": {"label": True}}, "scores holds something else"),
    ({"scores": [1]}, "scores holds something else"),
    ({"scores": {"rm": float("nan")}}, "scores holds something else"),
    ({"scores": {"rm": 10**400}}, "scores holds something else"),
])
def test_so_is_a_response(changes, said):
    row = {**GROUP, "responses": [GROUP["responses"][1], {**RESPONSE, **changes}]}
    with pytest.raises(ValueError, match=rf"responses\[1\]: {said}"):
        PromptGroup.from_json(row)
