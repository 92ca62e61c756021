"""What the stages of a run share: programs, never the tokenizer of one policy for another's samples."""

import dataclasses

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.workflow.checkpoint import Checkpoint


class Other(Checkpoint):
    """Say of another seed's world, whose tokenizer is another."""

    @property
    def decode_text(self):
        return lambda prompt, ids: "other: " + super(Other, self).decode_text(prompt, ids)


def test_policies_of_one_shape_share_programs_and_not_their_tokenizers(make_context, start, tmp_path):
    context, other = make_context(tmp_path), Other(start.folder)
    settings = SamplingConfig(max_new_tokens=8, slots=4)
    first, second = (context.sampler(policy, settings, "float32") for policy in (start, other))
    again = context.sampler(start, dataclasses.replace(settings, seed=5), "float32")
    assert first.decode_program is second.decode_program is again.decode_program
    ids = start.tokenizer.encode("The lake is calm.", add_special_tokens=False)
    assert second.decode_text([], ids) == "other: " + first.decode_text([], ids)
    assert again.decode_text([], ids) == first.decode_text([], ids) == start.decode_text([], ids)


def test_special_tokens_are_told_from_what_text_shows(start):
    ids = start.tokenizer.convert_tokens_to_ids
    found = start.decode_text.left_out(["<|user|>", "the", "lake", "<|end|>", "<|nowhere|>", "\n"])
    assert found == {"<|user|>": ids("<|user|>"), "<|end|>": ids("<|end|>")}


def test_a_policy_stops_at_a_special_token_by_its_id(make_context, start, tmp_path):
    settings = SamplingConfig(max_new_tokens=8, slots=4, stop_strings=("<|user|>", "lake"))
    ending = make_context(tmp_path).sampler(start, settings, "float32")._ending
    assert {*start.stop_ids, start.tokenizer.convert_tokens_to_ids("<|user|>")} == set(ending.stop_ids.tolist())
    assert list(ending.stop_strings) == ["lake"]
