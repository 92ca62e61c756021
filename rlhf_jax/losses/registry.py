"""The table of preference losses by `loss_type`: function, the knobs it reads, what it needs, where it comes from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Literal, NamedTuple

from jax import Array

from rlhf_jax.losses import kto, margin_aware, reference_based, reference_free
from rlhf_jax.losses.pairs import implicit_rewards
from rlhf_jax.losses.shapes import PER_PAIR, WINS
from rlhf_jax.plugins import is_plugin, load_function


class Loss(NamedTuple):
    """One row of `LOSSES`.

    Attributes:
      function: `PairLogps` and the keywords named by `knobs` and `inputs`, to values [N]; for single responses
        log-probs, those of the reference and whether each is desirable, all [N], instead of the pairs.
      knobs: keywords filled from `PreferenceLoss`; a knob no chosen loss reads may not be set.
      needs_reference: whether `ref_chosen` and `ref_rejected` are read.
      paper: arXiv number.
      inputs: further arrays [N] read: "mask" (the loss looks across pairs), "margin" (reward gaps), "chosen_win" and
        "rejected_win" (probabilities of winning); of single responses numbers of the whole batch: "baseline" (of
        answers to other prompts), "shift" (of the answers themselves).
      per_token: the mean over pairs is weighted by the chosen completion's length.
      likelihood: it is the chosen completion's likelihood, of all its tokens alike.
      unit: what it is a loss of: a "pair", or a single "response" that is desirable or not.
      rewards: `PairLogps` and the knobs that it names, to the rewards of chosen and rejected that it compares; two [N].
    """

    function: Callable[..., Array]
    knobs: tuple[str, ...]
    needs_reference: bool
    paper: str
    inputs: tuple[str, ...] = ()
    per_token: bool = False
    likelihood: bool = False
    unit: Literal["pair", "response"] = "pair"
    rewards: Callable[..., tuple[Array, Array]] = implicit_rewards


_MAPPED = ("beta", "divergence")
_SMOOTHED = ("beta", "label_smoothing")
_WEIGHED = ("beta", "desirable_weight", "undesirable_weight")
_BOTH = ("beta", "label_smoothing", "divergence")

LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(reference_based.sigmoid_loss, _BOTH, True, "2305.18290"),
    "hinge": Loss(reference_based.hinge_loss, _MAPPED, True, "2305.10425"),
    "ipo": Loss(reference_based.ipo_loss, _BOTH, True, "2310.12036"),
    "ipo_sum": Loss(reference_based.ipo_sum_loss, _BOTH, True, "2310.12036"),
    "exo_pair": Loss(reference_based.exo_pair_loss, _BOTH, True, "2402.00856"),
    "nca_pair": Loss(reference_based.nca_pair_loss, ("beta",), True, "2402.05369"),
    "robust": Loss(reference_based.robust_loss, _BOTH, True, "2403.00409"),
    "bco_pair": Loss(reference_based.bco_pair_loss, ("beta",), True, "2404.04656"),
    "sppo_hard": Loss(reference_based.sppo_hard_loss, ("beta",), True, "2405.00675"),
    "sppo": Loss(reference_based.sppo_loss, ("beta",), True, "2405.00675", inputs=WINS),
    "aot": Loss(reference_based.aot_loss, _SMOOTHED, True, "2406.05882", inputs=("mask",)),
    "aot_unpaired": Loss(reference_based.aot_unpaired_loss, _SMOOTHED, True, "2406.05882", inputs=("mask",)),
    "apo_zero": Loss(reference_based.apo_zero_loss, ("beta",), True, "2408.06266"),
    "apo_down": Loss(reference_based.apo_down_loss, ("beta",), True, "2408.06266"),
    "discopop": Loss(reference_based.discopop_loss, (*_MAPPED, "discopop_tau"), True, "2406.08414"),
    "sft": Loss(reference_free.sft_loss, (), False, "2203.02155", per_token=True, likelihood=True),
    "sigmoid_norm": Loss(reference_based.sigmoid_norm_loss, _BOTH, True, "2411.15124"),
    "simpo": Loss(reference_free.simpo_loss, (*_SMOOTHED, "simpo_gamma"), False, "2405.14734",
                  rewards=reference_free.mean_rewards),
    "cpo": Loss(reference_free.cpo_loss, _SMOOTHED, False, "2401.08417"),
    "orpo": Loss(reference_free.orpo_loss, ("beta",), False, "2403.07691", rewards=reference_free.mean_rewards),
    "alphapo": Loss(reference_free.alphapo_loss, (*_SMOOTHED, "simpo_gamma", "alphapo_alpha"), False, "2501.03884",
                    rewards=reference_free.alphapo_rewards),
    "raft": Loss(reference_free.raft_loss, (), False, "2304.06767", likelihood=True),
    "rev_kl": Loss(margin_aware.rev_kl_loss, ("beta",), True, "2405.07863", inputs=("margin",)),
    "kl": Loss(margin_aware.kl_loss, ("beta",), True, "2405.07863", inputs=("margin",)),
    "tv": Loss(margin_aware.tv_loss, ("beta",), True, "2405.07863", inputs=("margin",)),
    "hellinger": Loss(margin_aware.hellinger_loss, ("beta",), True, "2405.07863", inputs=("margin",)),
    "kto": Loss(kto.kto_loss, _WEIGHED, True, "2402.01306", inputs=("baseline",), unit="response"),
    "apo_zero_unpaired": Loss(kto.apo_zero_unpaired_loss, _WEIGHED, True, "2408.06266", unit="response"),
    "bco": Loss(kto.bco_loss, ("beta",), True, "2404.04656", inputs=("shift",), unit="response"),
}

_KNOBS = ("beta", "label_smoothing", "divergence", "discopop_tau", "simpo_gamma", "alphapo_alpha")


def find_loss(name: str) -> Loss:
    """The row of a `loss_type`; for "module:function" one made of the function's own keywords.

    Such a function takes a `PairLogps` and any of the knobs and inputs by name, and returns values [N]. It reads the
    reference unless it has an attribute `needs_reference = False`.

    Raises:
      ValueError: the function cannot be imported, or has a keyword that nothing fills.
    """
    if not is_plugin(name):
        return LOSSES[name]
    function = load_function(name)
    names = list(inspect.signature(function).parameters)
    if not names:
        raise ValueError(f"the loss {name!r} takes no pair; a loss is f(pair, ...) and returns values [N]")
    keywords = names[1:]
    if strange := [keyword for keyword in keywords if keyword not in (*_KNOBS, *PER_PAIR)]:
        raise ValueError(f"the loss {name!r} has the keyword {strange[0]!r}, which nothing fills; after the pair it "
                         f"may take {', '.join((*_KNOBS, *PER_PAIR))}")
    return Loss(function, tuple(k for k in keywords if k in _KNOBS), getattr(function, "needs_reference", True), name,
                inputs=tuple(k for k in keywords if k in PER_PAIR))


ALIASES = {"aot_pair": "aot_unpaired"}
"""Old names and what they are called now."""
