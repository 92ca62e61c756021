"""The preference loss a run asks for: a checked specification and its terms over a batch of pairs."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from rlhf_jax.fields import Options, Range, above, between
from rlhf_jax.losses.divergence import f_divergence
from rlhf_jax.losses.pairs import PairLogps, where_pairs
from rlhf_jax.losses.registry import ALIASES, LOSSES, Loss, find_loss
from rlhf_jax.losses.shapes import WINS, check_one_shape, check_pairs
from rlhf_jax.plugins import is_plugin

_REAL = Range(-1e9, 1e9)


@dataclass(frozen=True)
class PreferenceLoss(Options):
    """Which preference losses to take, with which weights and knobs. Names are TRL's; values are checked at once.

    Attributes:
      loss_type: a name of `LOSSES` or "module:function" (see `find_loss`), or several for a weighted sum:
        ("sigmoid", "sft") with loss_weights (1, alpha) is RPO, ("sigmoid", "bco_pair", "sft") with (0.8, 0.2, 1) MPO,
        ("cpo", "sft") CPO, ("sft", "orpo") ORPO.
      loss_weights: one number per loss type; None for all 1.
      beta: inverse temperature; strength of the pull towards the reference.
      label_smoothing: probability that a label is flipped, e in the formulas.
      f_divergence_type: a name of `DIVERGENCES`, the divergence from the reference; see `f_divergence`.
      f_alpha_divergence_coef: alpha of the alpha divergence.
      discopop_tau: temperature of DiscoPOP's blend.
      simpo_gamma: target margin of SimPO and AlphaPO.
      alphapo_alpha: shape of AlphaPO's reward (TRL: `alpha`).
      desirable_weight: what a desirable response weighs in KTO and APO-zero-unpaired.
      undesirable_weight: what an undesirable one weighs there.

    Raises:
      ValueError: for values that cannot work, and for a changed knob that none of the chosen losses reads.
    """

    loss_type: str | tuple[str, ...] = "sigmoid"
    loss_weights: Annotated[tuple[float, ...] | None, _REAL] = None
    beta: Annotated[float, above(0, 1e9)] = 0.1
    label_smoothing: Annotated[float, between(0, 1)] = 0.0
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: Annotated[float, _REAL] = 0.5
    discopop_tau: Annotated[float, above(0, 1e9)] = 0.05
    simpo_gamma: Annotated[float, _REAL] = 0.5
    alphapo_alpha: Annotated[float, _REAL] = 0.0
    desirable_weight: Annotated[float, between(0, 1e9)] = 1.0
    undesirable_weight: Annotated[float, between(0, 1e9)] = 1.0

    def conflicts(self) -> None:
        if isinstance(self.loss_type, str):
            object.__setattr__(self, "loss_type", _current_name(self.loss_type))
        else:
            object.__setattr__(self, "loss_type", tuple(_current_name(name) for name in self.loss_type))
        if self.loss_weights is not None:
            object.__setattr__(self, "loss_weights", tuple(self.loss_weights))
        _check_mixture(self)
        _check_values(self)
        _check_every_knob_is_read(self)

    @property
    def loss_types(self) -> tuple[str, ...]:
        """`loss_type` as a tuple."""
        return (self.loss_type,) if isinstance(self.loss_type, str) else self.loss_type

    @property
    def functions(self) -> tuple[Callable[..., Array], ...]:
        """The function behind each loss type, which for "module:function" is the one that is imported now."""
        return tuple(find_loss(name).function for name in self.loss_types)

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per loss type."""
        return (1.0,) * len(self.loss_types) if self.loss_weights is None else self.loss_weights

    @property
    def needs_reference(self) -> bool:
        """Whether any chosen loss reads the reference's log-probabilities."""
        return any(find_loss(name).needs_reference for name in self.loss_types)

    @property
    def of_responses(self) -> bool:
        """Whether the losses are those of single responses, each desirable or not; else they are of pairs."""
        return find_loss(self.loss_types[0]).unit == "response"

    @property
    def of_likelihoods(self) -> bool:
        """Whether all losses are likelihoods of the chosen response (`sft`, `raft`)."""
        return all(find_loss(name).likelihood for name in self.loss_types)

    @property
    def needs_mismatched(self) -> bool:
        """Whether any chosen loss reads the log-probabilities of answers to other prompts (`kto`)."""
        return self._reads("baseline")

    @property
    def compares_pairs(self) -> bool:
        """Whether any chosen loss looks across a batch (`aot`, `kto`, `bco`), so that the batch may not be cut."""
        return any(map(self._reads, ("mask", "baseline", "shift")))

    def _reads(self, given: str) -> bool:
        return any(given in find_loss(name).inputs for name in self.loss_types)

    @property
    def needs_margin(self) -> bool:
        """Whether any chosen loss reads reward gaps."""
        return self._reads("margin")

    @property
    def needs_wins(self) -> bool:
        """Whether any chosen loss reads probabilities of winning (`sppo`)."""
        return any(map(self._reads, WINS))


class Term(NamedTuple):
    """One loss of a mixture over a batch; its share of the total is coefficient * sum(values * weights) / sum(weights).

    Sums and weights stay apart so that micro-batches and devices add up before the one division. values and weights are
    [N], both 0 for padded pairs. `name` is a string: use terms inside a jitted function, do not return them from one.
    """

    name: str
    coefficient: float
    values: Array
    weights: Array


def preference_loss(
    pair: PairLogps, spec: PreferenceLoss, mask: Array | None = None, margin: Array | None = None,
    wins: tuple[Array, Array] | None = None, unweighted: PairLogps | None = None
) -> tuple[Term, ...]:
    """Computes every loss of `spec` on N pairs.

    Args:
      pair: arrays [N] float32.
      spec: what to compute; static.
      mask: [N] bool, False for padded pairs, whose contents (NaN included) change neither values nor gradients.
      margin: [N] float32 reward(chosen) - reward(rejected), for the margin-aware losses.
      wins: two [N] float32, the probabilities that chosen and rejected win against an answer of the policy, for "sppo".
      unweighted: the pairs again with all tokens counting the same, where those of `pair` do not (LD-DPO): what the
        likelihood of the chosen completion ("sft", "raft") is taken of.

    Returns:
      One `Term` per loss type, in order. A pair weighs 1; in "sft" it weighs its chosen completion's token count.

    Raises:
      ValueError: a chosen loss needs `margin` or `wins` and none was given, shapes differ, or the losses are of single
        responses.

    >>> [term.values for term in preference_loss(pair, PreferenceLoss(("sigmoid", "sft")))]
    [Array([0.621, 0.8544], dtype=float32), Array([2.0, 2.5], dtype=float32)]
    """
    if spec.of_responses:
        raise ValueError(f"loss_type={', '.join(spec.loss_types)} is a loss of single responses; use response_loss")
    if spec.needs_margin and margin is None:
        needing = [name for name in spec.loss_types if "margin" in find_loss(name).inputs]
        raise ValueError(
            f"loss_type={', '.join(needing)} takes soft labels from reward gaps, but margin is None. "
            "Give reward(chosen) - reward(rejected) per pair, or choose a loss without margin, such as 'sigmoid'."
        )
    if spec.needs_wins and wins is None:
        needing = [name for name in spec.loss_types if {*WINS} & {*find_loss(name).inputs}]
        raise ValueError(f"loss_type={', '.join(needing)} reads how probably each response wins, but wins is None. "
                         "Give the win rates of chosen and rejected per pair, or choose 'sppo_hard', which takes 1 "
                         "and 0.")
    won = dict(zip(WINS, wins or (None, None), strict=True))
    check_pairs("preference_loss", pair, mask=mask, margin=margin, **won)
    mask = jnp.ones(pair.chosen.shape, bool) if mask is None else mask
    pair, whole = where_pairs(mask, pair), where_pairs(mask, pair if unweighted is None else unweighted)
    inputs = {"mask": mask, "margin": None if margin is None else jnp.where(mask, margin, 0.0),
              **{name: None if win is None else jnp.where(mask, win, 0.5) for name, win in won.items()}}
    knobs = knob_values(spec)

    def term(name: str, coefficient: float) -> Term:
        loss = find_loss(name)
        keywords = {knob: knobs[knob] for knob in loss.knobs} | {key: inputs[key] for key in loss.inputs}
        values = loss.function(whole if loss.likelihood else pair, **keywords)
        check_one_shape(f"loss_type {name!r}", chosen=pair.chosen, **{"what it returned": values})
        weights = pair.chosen_len if loss.per_token else jnp.ones_like(values)
        return Term(name, coefficient, jnp.where(mask, values, 0.0), jnp.where(mask, weights, 0.0))

    return tuple(term(name, weight) for name, weight in zip(spec.loss_types, spec.weights, strict=True))


def rewards(pair: PairLogps, spec: PreferenceLoss) -> tuple[Array, Array]:
    """Computes the rewards of chosen and rejected that the first loss of `spec` compares; two [N], without gradient.

    They are `implicit_rewards`, and of losses that compare token means those: as TRL logs them. Likelihoods ("sft",
    "raft") compare nothing and are passed over where there is another loss.

    >>> rewards(pair, PreferenceLoss(("sft", "simpo"), beta=2.0))[0]
    Array([-4., -5.], dtype=float32)
    """
    rows = [find_loss(name) for name in spec.loss_types]
    function = next((row for row in rows if not row.likelihood), rows[0]).rewards
    knobs = knob_values(spec)
    return function(pair, **{knob: knobs[knob] for knob in inspect.signature(function).parameters if knob in knobs})


def weighted_total(terms: Sequence[Term]) -> Array:
    """Computes sum_i coefficient_i * sum(values_i * weights_i) / sum(weights_i); [], and 0 where all weights are 0.

    >>> weighted_total(preference_loss(pair, PreferenceLoss(("sigmoid", "sft"), loss_weights=(1.0, 0.5))))
    Array(1.8915, dtype=float32)
    """

    def mean(term: Term) -> Array:
        weight = jnp.sum(term.weights)
        return jnp.sum(term.values * term.weights) / jnp.where(weight > 0.0, weight, 1.0)

    means = [term.coefficient * mean(term) for term in terms]
    return jnp.sum(jnp.stack(means))


_FIELDS = {"divergence": ("f_divergence_type", "f_alpha_divergence_coef")}
"""Knobs of the loss functions that are not a `PreferenceLoss` field of the same name, and the fields they come from."""


def knob_values(spec: PreferenceLoss) -> dict[str, Any]:
    """What every knob of the loss functions is filled with."""
    values: dict[str, Any] = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return values | {"divergence": f_divergence(spec.f_divergence_type, spec.f_alpha_divergence_coef)}


def _current_name(name: str) -> str:
    if name in ALIASES:
        warnings.warn(f"loss_type {name!r} is now called {ALIASES[name]!r}; taking that.", stacklevel=5)
        return ALIASES[name]
    if is_plugin(name):
        find_loss(name)  # raises for what cannot be called
        return name
    if name not in LOSSES:
        near = difflib.get_close_matches(name, [*LOSSES, *ALIASES], n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"loss_type={name!r} is not a known loss. {hint}Known: {', '.join(LOSSES)}.")
    return name


def _check_mixture(spec: PreferenceLoss) -> None:
    names, weights = spec.loss_types, spec.weights
    if not names:
        raise ValueError("loss_type=() names no loss, so there is nothing to train on. Name at least one.")
    if len({find_loss(name).unit for name in names}) > 1:
        single = ", ".join(name for name, loss in LOSSES.items() if loss.unit == "response")
        raise ValueError(f"loss_type={names} mixes losses of pairs with losses of single responses ({single}), and no "
                         "row is both. Name losses of one kind.")
    if len(set(names)) != len(names):
        raise ValueError(f"loss_type={names} repeats a loss. Name each once and add up the weights.")
    if len(weights) != len(names):
        raise ValueError(
            f"loss_weights has {len(weights)} numbers for {len(names)} loss types ({', '.join(names)}), "
            "so the mixture is unclear. Give one for each."
        )


def _check_values(spec: PreferenceLoss) -> None:
    e = spec.label_smoothing
    f_divergence(spec.f_divergence_type, spec.f_alpha_divergence_coef)  # raises what it must
    if e > 0.5:
        raise ValueError(
            f"label_smoothing={e} is the share of flipped labels, and above a half chosen and rejected would trade "
            "places. Swap the columns instead, or give a smaller number."
        )
    if e == 0.0 and "exo_pair" in spec.loss_types:
        raise ValueError(
            "label_smoothing=0.0 makes exo_pair infinite: it takes log e. Give a small number, such as 1e-3."
        )
    if e == 0.5 and "robust" in spec.loss_types:
        raise ValueError(
            "label_smoothing=0.5 makes robust divide by 1 - 2e = 0: labels flipped half the time teach nothing. "
            "Give a number below 0.5."
        )
    if spec.alphapo_alpha == 0.0 and "alphapo" in spec.loss_types:
        raise ValueError(
            "alphapo_alpha=0.0 divides by zero in alphapo; the limit is simpo. "
            "Use loss_type='simpo', or a number such as 0.25."
        )


def _check_every_knob_is_read(spec: PreferenceLoss) -> None:
    def reads(loss: Loss, field: str) -> bool:
        return any(field in _FIELDS.get(knob, (knob,)) for knob in loss.knobs)

    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name in ("loss_type", "loss_weights") or value == field.default:
            continue
        if not any(reads(find_loss(name), field.name) for name in spec.loss_types):
            readers = [name for name, loss in LOSSES.items() if reads(loss, field.name)]
            raise ValueError(
                f"{field.name}={value!r} has no effect on loss_type={', '.join(spec.loss_types)}. "
                f"Leave it at {field.default!r}, or choose a loss that reads it: {', '.join(readers)}."
            )
        if field.name == "f_alpha_divergence_coef" and spec.f_divergence_type != "alpha_divergence":
            raise ValueError(
                f"f_alpha_divergence_coef={value} has no effect with f_divergence_type={spec.f_divergence_type!r}. "
                f"Leave it at {field.default}, or choose f_divergence_type='alpha_divergence'."
            )
