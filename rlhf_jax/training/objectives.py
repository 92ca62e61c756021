"""What a training step minimises, over packed prompt groups: SFT, Bradley-Terry, the preference family.

An objective is two pure functions. `outputs` runs the model; `terms` turns its outputs into loss terms, each a list of
values with weights. A step divides each term's weighted sum by its weight over the *global* batch, once, so that
micro-batches, devices and packing change nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rlhf_jax import losses
from rlhf_jax.config.training import AttnImplementation
from rlhf_jax.data.groups import BY_OTHER
from rlhf_jax.data.packing import PackedBatch
from rlhf_jax.losses import PairLogps, PreferenceLoss, Term, TokenStats
from rlhf_jax.models import DecoderConfig, Params, output_head, packed_forward, score_heads
from rlhf_jax.parallel import constrainer
from rlhf_jax.training.attention import row_attention


class Metrics(NamedTuple):
    """means: name -> (sum, weight). maxima: name -> value; a name that starts with "min_" holds the negated minimum."""

    means: Mapping[str, tuple[Array, Array]]
    maxima: Mapping[str, Array]


class Pairs(NamedTuple):
    """logps: arrays [N]. mask: [N] bool, False for padding. margin: [N] float32 reward gaps, 0 where there is none.
    wins: two [N], how probably chosen and rejected win; None where the loss reads none.
    unweighted: as logps, with all tokens counting the same; None where they do."""

    logps: PairLogps
    mask: Array
    margin: Array
    wins: tuple[Array, Array] | None = None
    unweighted: PairLogps | None = None


class Objective(Protocol):
    """Loss of one kind of training, as pure functions over a packed micro-batch [B, ...].

    It is hashable, and equal ones compute the same: what is compiled for one serves the others.

    Attributes:
      needs_reference: it reads `PackedBatch.reference_logps`.
      reads: names of the numbers of a response that it reads, in the order of `PackedBatch.slot_values`.
      whole_batch: it looks across the batch, which must then be one micro-batch; it is a `WholeBatch`.
    """

    @property
    def needs_reference(self) -> bool: ...

    @property
    def reads(self) -> tuple[str, ...]: ...

    @property
    def whole_batch(self) -> bool: ...

    def outputs(self, params: Params, batch: PackedBatch) -> Any: ...

    def terms(self, outputs: Any, batch: PackedBatch) -> tuple[tuple[Term, ...], Metrics]: ...

    def __hash__(self) -> int: ...


@runtime_checkable
class WholeBatch(Objective, Protocol):
    """An objective that may look across a batch, in two steps: what it collects of rows, and its terms over all."""

    def collected(self, outputs: Any, batch: PackedBatch) -> Any:
        """A tree of arrays [N, ...], so that those of several batches can be joined along N."""
        ...

    def collected_terms(self, collected: Any) -> tuple[Term, ...]: ...

    def collected_metrics(self, collected: Any) -> Mapping[str, tuple[Array, Array]]:
        """Metrics that are no means over rows, as (value, 1)."""
        ...


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the model is run inside an objective: shape, recomputation, logits chunk, the mesh it runs on, attention.

    The mesh decides how activations are sharded and, where `attention` is "auto", which implementation is used.
    """

    config: DecoderConfig
    remat: str = "none"
    logits_chunk: int = 256
    mesh: Mesh | None = None
    attention: AttnImplementation = "auto"

    def hidden(self, params: Params, batch: PackedBatch) -> Array:
        """[B, T, D] hidden states of the rows."""
        batch = batch.checked()
        options = {} if self.mesh is None else {"constrain": constrainer(self.mesh)}
        rows = row_attention(self.attention, self.config, self.mesh, batch.tokens.shape[1])
        return packed_forward(params, self.config, batch.tokens, batch.positions, batch.group_ids, batch.branch_ids,
                              remat=self.remat, rows=rows, **options)

    @property
    def vocabulary(self) -> dict[str, Any]:
        """How `token_logps` reads this model's logits."""
        return {"chunk": self.logits_chunk, "softcap": self.config.logit_softcap, "vocab_size": self.config.vocab_size}

    def target_logps(self, params: Params, batch: PackedBatch) -> tuple[Array, TokenStats]:
        """[B, M] log-probs of the target tokens (garbage where masked) and statistics of their distributions."""
        hidden = self.hidden(params, batch)
        hidden = jnp.take_along_axis(hidden, batch.source[..., None], axis=1)
        return losses.token_logps_and_stats(hidden, output_head(params), batch.target, **self.vocabulary)

    def slot_scores(self, params: Params, batch: PackedBatch) -> Array:
        """[B, S, labels] float32 reward-head outputs at each branch's last token."""
        hidden = self.hidden(params, batch)
        return score_heads(params, jnp.take_along_axis(hidden, batch.slot_end[..., None], axis=1))


def slot_sums(values: Array, batch: PackedBatch) -> Array:
    """[B, S] sums over each branch's targets of `values` [B, M]."""
    masked = jnp.where(batch.target_mask, values, jnp.zeros((), values.dtype))
    slots = batch.slot_mask.shape[-1]
    return jax.vmap(lambda x, slot: jax.ops.segment_sum(x, slot, num_segments=slots))(masked, batch.target_slot)


def gather_pairs(values: Array, batch: PackedBatch) -> tuple[Array, Array]:
    """Per-slot `values` [B, S] of chosen and rejected: two [B * P] arrays."""
    picked = jnp.take_along_axis(values[:, None, :], batch.pair_slots, axis=-1).reshape(-1, 2)
    return picked[:, 0], picked[:, 1]


def ld_sums(values: Array, lengths: Array, batch: PackedBatch, alpha: float) -> tuple[Array, Array]:
    """LD-DPO's sums of `values` [B, M] over the targets of each pair's chosen and rejected: two [B * P].

    The shared length is the pair's: a response that stands in two pairs has another sum in each.

    Args:
      lengths: [B, S] of the branches, in tokens.
      alpha: weight of the tokens beyond the shared length (see `ld_token_weights`).
    """

    def one(value: Array, length: Array, row: PackedBatch) -> Array:
        index = jnp.arange(row.target_slot.shape[0])
        first = jax.ops.segment_min(jnp.where(row.target_mask, index, index.size), row.target_slot, length.shape[0])

        def side(slot: Array, shared: Array) -> Array:
            weights = losses.ld_token_weights(index - first[slot], length[slot], shared, alpha)
            return jnp.sum(jnp.where(row.target_mask & (row.target_slot == slot), value * weights, 0.0))

        shared = jnp.min(length[row.pair_slots], axis=-1)  # [P]
        return jax.vmap(jax.vmap(side, (0, None)))(row.pair_slots, shared)

    sums = jax.vmap(one)(values, lengths, batch).reshape(-1, 2)
    return sums[:, 0], sums[:, 1]


def masked_mean(values: Array, mask: Array) -> tuple[Array, Array]:
    """The sum of `values` where `mask` is True, and how many those are."""
    weights = mask.astype(jnp.float32)
    return jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0)), jnp.sum(weights)


def token_metrics(stats: TokenStats, mask: Array) -> dict[str, tuple[Array, Array]]:
    """Of the targets [B, M] where `mask` is True."""
    return {"entropy": masked_mean(stats.entropy, mask), "mean_token_accuracy": masked_mean(stats.greedy, mask)}


def _of_tokens(totals: Array, sizes: Array, mask: Array) -> tuple[Array, Array]:
    """A mean over the tokens of one side of the pairs: sums over each completion [N], their sizes, and which count."""
    return (jnp.sum(jnp.where(mask, totals.astype(jnp.float32), 0.0)), jnp.sum(jnp.where(mask, sizes, 0.0)))


@dataclasses.dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning: mean negative log-likelihood over all trained-on tokens of the global batch."""

    compute: Compute
    needs_reference: bool = False
    reads: tuple[str, ...] = ()
    whole_batch: bool = False

    def outputs(self, params: Params, batch: PackedBatch) -> Any:
        return self.compute.target_logps(params, batch)

    def terms(self, outputs: Any, batch: PackedBatch) -> tuple[tuple[Term, ...], Metrics]:
        logps, stats = outputs
        weights = batch.target_mask.astype(jnp.float32)
        term = Term("nll", 1.0, jnp.where(batch.target_mask, -logps, 0.0), weights)
        return (term,), Metrics(token_metrics(stats, batch.target_mask), {})


@dataclasses.dataclass(frozen=True)
class BradleyTerry:
    """Reward model: -log sigma(r_chosen - r_rejected - margin), optionally with centring (arXiv 2312.09244)."""

    compute: Compute
    center_rewards_coefficient: float = 0.0
    use_margin: bool = False
    needs_reference: bool = False
    reads: tuple[str, ...] = ()
    whole_batch: bool = False

    def outputs(self, params: Params, batch: PackedBatch) -> Any:
        return self.compute.slot_scores(params, batch)[..., 0]

    def terms(self, outputs: Any, batch: PackedBatch) -> tuple[tuple[Term, ...], Metrics]:
        chosen, rejected = gather_pairs(outputs, batch)
        mask = batch.pair_mask.reshape(-1)
        weights = mask.astype(jnp.float32)
        margin = batch.pair_margin.reshape(-1) if self.use_margin else None
        terms = [Term("bradley_terry", 1.0, losses.bradley_terry(chosen, rejected, margin), weights)]
        if self.center_rewards_coefficient:
            centering = losses.centering(chosen, rejected)
            terms.append(Term("centering", self.center_rewards_coefficient, centering, weights))
        means = {"accuracy": masked_mean(chosen > rejected, mask), "margin": masked_mean(chosen - rejected, mask),
                 "mean_reward": masked_mean(outputs, batch.slot_mask)}
        low = jnp.float32(-jnp.inf)
        maxima = {"max_reward": jnp.max(jnp.where(batch.slot_mask, outputs, low)),
                  "min_reward": jnp.max(jnp.where(batch.slot_mask, -outputs, low))}
        return tuple(terms), Metrics(means, maxima)


@dataclasses.dataclass(frozen=True)
class Preference:
    """The DPO family and its reference-free relatives, as `losses.PreferenceLoss` says.

    Attributes:
      ld_alpha: LD-DPO, weight of the tokens beyond the pair's shared length, policy and reference alike; None for 1.
      use_weighting: WPO, pairs count by how likely the policy itself finds both responses.
      xpo_alpha: XPO (arXiv 2405.21046, algorithm 1): adds alpha x the mean of log policy(y) over the responses y of the
        batch that the other policy gave, so that the policy moves away from them.
      win_rate: name of the number that is a response's probability of winning, for a loss that reads it.
      functions: behind the names of the losses, so that what is compiled for one version of a user's own loss does not
        serve the next.
    """

    compute: Compute
    loss: PreferenceLoss
    ld_alpha: float | None = None
    use_weighting: bool = False
    xpo_alpha: float = 0.0
    win_rate: str = ""
    functions: tuple[Any, ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "functions", self.loss.functions)

    @property
    def reads(self) -> tuple[str, ...]:
        return ((self.win_rate,) if self.loss.needs_wins else ()) + ((BY_OTHER,) if self.xpo_alpha else ())

    @property
    def needs_reference(self) -> bool:
        return self.loss.needs_reference

    @property
    def whole_batch(self) -> bool:
        return self.loss.compares_pairs

    def outputs(self, params: Params, batch: PackedBatch) -> Any:
        return self.compute.target_logps(params, batch)

    def collected(self, outputs: Any, batch: PackedBatch) -> Pairs:
        """What the loss reads of the batch's pairs."""
        logps, _ = outputs
        lengths = slot_sums(jnp.ones_like(logps), batch)

        def plain(values: Array) -> tuple[Array, Array]:
            return gather_pairs(slot_sums(values, batch), batch)

        sizes = gather_pairs(lengths, batch)
        unweighted = PairLogps(*plain(logps), *plain(batch.reference_logps), *sizes)
        wins = gather_pairs(batch.slot_values[..., 0], batch) if self.loss.needs_wins else None
        rest = batch.pair_mask.reshape(-1), batch.pair_margin.reshape(-1), wins
        if self.ld_alpha is None:
            return Pairs(unweighted, *rest)
        ours, theirs = (ld_sums(x, lengths, batch, self.ld_alpha) for x in (logps, batch.reference_logps))
        return Pairs(PairLogps(*ours, *theirs, *sizes), *rest, unweighted)

    def collected_terms(self, collected: Pairs) -> tuple[Term, ...]:
        """The loss of any number of pairs, those of one batch or of many."""
        return losses.preference_loss(collected.logps, self.loss, mask=collected.mask, margin=collected.margin,
                                      wins=collected.wins, unweighted=collected.unweighted)

    def collected_metrics(self, collected: Pairs) -> Mapping[str, tuple[Array, Array]]:
        """None: all of this family's are means."""
        del collected
        return {}

    def terms(self, outputs: Any, batch: PackedBatch) -> tuple[tuple[Term, ...], Metrics]:
        logps, stats = outputs
        lengths = slot_sums(jnp.ones_like(logps), batch)
        pairs = self.collected(outputs, batch)
        pair, mask = pairs.logps, pairs.mask
        terms = self.collected_terms(pairs)
        if self.use_weighting:
            adjusted = slot_sums(logps - stats.log_sum_p2, batch) / jnp.maximum(lengths, 1.0)
            weight_chosen, weight_rejected = gather_pairs(losses.wpo_weight(adjusted), batch)
            terms = tuple(term._replace(values=term.values * weight_chosen * weight_rejected) for term in terms)
        chosen, rejected = losses.rewards(pair, self.loss)
        means = {"entropy": masked_mean(stats.entropy, batch.target_mask),
                 "mean_token_accuracy": _of_tokens(gather_pairs(slot_sums(stats.greedy, batch), batch)[0],
                                                   pair.chosen_len, mask)}
        mean_logits = gather_pairs(slot_sums(stats.mean_logit, batch), batch)
        means |= {
            "rewards/chosen": masked_mean(chosen, mask), "rewards/rejected": masked_mean(rejected, mask),
            "rewards/accuracies": masked_mean(chosen > rejected, mask),
            "rewards/margins": masked_mean(chosen - rejected, mask),
            "logps/chosen": masked_mean(pair.chosen, mask), "logps/rejected": masked_mean(pair.rejected, mask),
            **{f"logits/{side}": _of_tokens(total, size, mask)
               for side, total, size in zip(
                   ("chosen", "rejected"), mean_logits, (pair.chosen_len, pair.rejected_len), strict=True)},
        }
        if self.xpo_alpha:
            sums, theirs = slot_sums(logps, batch), batch.slot_mask & (batch.slot_values[..., -1] == 1.0)
            optimism = Term("xpo", self.xpo_alpha, jnp.where(theirs, sums, 0.0), theirs.astype(jnp.float32))
            means["loss/xpo"] = masked_mean(self.xpo_alpha * sums, theirs)
            terms = (*terms, optimism)
        return terms, Metrics(means, {})
