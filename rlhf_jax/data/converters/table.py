"""The table of converters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_jax.data.converters import dialogues, graded, instructions, pairs, trees
from rlhf_jax.data.converters.base import Converter, largest_margins, one_row_of_answers
from rlhf_jax.plugins import check_call, is_plugin, load_function

CONVERTERS: dict[str, Converter] = {
    "alpaca": Converter(instructions.alpaca),
    "alpaca_pairs": Converter(pairs.alpaca_pairs),
    "alpacaeval_graded": Converter(graded.alpacaeval_graded),
    "argilla_math": Converter(pairs.argilla_math),
    "armorm": Converter(graded.armorm),
    "beavertails": Converter(graded.beavertails, one_row_of_answers),
    "bon_graded": Converter(graded.bon_graded),
    "capybara": Converter(dialogues.capybara),
    "code_ultrafeedback": Converter(graded.code_ultrafeedback),
    "dolly": Converter(instructions.dolly),
    "dsp": Converter(pairs.dsp, options={"domain": "academy"}),
    "helpsteer": Converter(graded.helpsteer, one_row_of_answers, {"objective": "helpfulness+correctness"}),
    "helpsteer2": Converter(graded.helpsteer, one_row_of_answers, {"objective": "helpfulness"}),
    "helpsteer2_preference": Converter(pairs.helpsteer2_preference),
    "hh_rlhf": Converter(dialogues.hh_rlhf),
    "oasst": Converter(trees.oasst),
    "oasst_ranked": Converter(trees.oasst_ranked),
    "orca_pairs": Converter(pairs.orca_pairs),
    "pku_saferlhf": Converter(pairs.pku_saferlhf, options={"disagreeing": "drop"}),
    "prometheus2": Converter(graded.prometheus2),
    "self_instruct": Converter(instructions.self_instruct),
    "sharegpt": Converter(dialogues.sharegpt),
    "shp": Converter(pairs.shp, largest_margins, {"min_ratio": 2.0, "max_pairs": 5}),
    "story_prompt": Converter(instructions.story_prompt),
    "summarize": Converter(pairs.summarize),
    "ultrafeedback": Converter(graded.ultrafeedback, options={"objective": "fine-grained_score"}),
    "ultrafeedback_binarized": Converter(pairs.ultrafeedback_binarized),
    "ultrainteract": Converter(dialogues.ultrainteract),
    "webgpt": Converter(graded.webgpt),
}


def find_converter(name: str, options: Mapping[str, Any] | None = None) -> Converter:
    """The converter called `name`, or a user's own "module:function", with options other than the table's.

    Raises:
      ValueError: there is none, or it has no such option.
    """
    if is_plugin(name):
        function = load_function(name)
        check_call(function, "f(row)", {})
        return Converter(function).with_options(name, options or {})
    if name not in CONVERTERS:
        raise ValueError(f"there is no converter {name!r}; known ones are {', '.join(sorted(CONVERTERS))}, or "
                         "module:function")
    return CONVERTERS[name].with_options(name, options or {})
