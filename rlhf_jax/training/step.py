"""The one training step, for every objective: accumulate over micro-batches, clip, update float32 masters."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh

from rlhf_jax.data.packing import PackedBatch
from rlhf_jax.models import Params, cast
from rlhf_jax.parallel import auto_inside, batch_sharding, replicated
from rlhf_jax.training.objectives import Metrics, Objective


@struct.dataclass
class TrainState:
    """What a checkpoint holds. params: the trained tree (all weights, or a LoRA adapter), float32 masters."""

    step: Any
    params: Any
    opt_state: Any


Assemble = Callable[[Params, Params], Params]
"""(trained tree, frozen tree) -> the parameters `forward` takes."""


Drop = Callable[[Params, Array], Params]
"""(parameters `forward` takes, a key for each row [B]) -> those with dropout."""


def whole(trained: Params, frozen: Params) -> Params:
    """`Assemble` of full fine-tuning: everything is trained."""
    del frozen
    return trained


def state_shardings(optimizer: optax.GradientTransformation, params: Any, shardings: Any, mesh: Mesh) -> TrainState:
    """Shardings of the whole state: moments like their parameters, the rest replicated."""
    opt_state = jax.eval_shape(optimizer.init, params)
    return TrainState(
        step=replicated(mesh),
        params=shardings,
        opt_state=optax.tree_map_params(optimizer, lambda _, sharding: sharding, opt_state, shardings,
                                        transform_non_params=lambda _: replicated(mesh)),
    )


def fresh_state(optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    """The state before step 1; the masters are float32 copies of `params`."""
    masters = cast(params, jnp.float32)
    return TrainState(jnp.zeros((), jnp.int32), masters, optimizer.init(masters))


def init_state(optimizer: optax.GradientTransformation, params: Any, shardings: TrainState, *, donate: bool = False
               ) -> TrainState:
    """`fresh_state`, each array where `shardings` says. donate: `params`, float32, become the masters themselves."""
    if donate:
        params = jax.device_put(params, shardings.params)  # only what lies where its master will can become it
    leaves, tree = jax.tree.flatten(shardings)
    return _init_program(optimizer, tuple(leaves), tree, donate)(params)


@lru_cache(maxsize=16)
def _init_program(optimizer: optax.GradientTransformation, leaves: tuple[Any, ...], tree: jax.tree_util.PyTreeDef,
                  donate: bool) -> Callable[[Any], TrainState]:
    return jax.jit(partial(fresh_state, optimizer), out_shardings=jax.tree.unflatten(tree, leaves),
                   donate_argnums=0 if donate else ())


def term_totals(objective: Objective, params: Any, batch: PackedBatch) -> dict[str, Array]:
    """Weight of each loss term over the whole batch [accumulation, B, ...]; depends on masks only, not on `params`."""
    first = jax.tree.map(lambda x: x[0], batch)
    shapes = jax.eval_shape(objective.outputs, params, first)

    def one(micro: PackedBatch) -> dict[str, Array]:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return {term.name: jnp.sum(term.weights) for term in objective.terms(zeros, micro)[0]}

    return jax.tree.map(jnp.sum, jax.vmap(one)(batch))


def micro_loss(objective: Objective, params: Any, micro: PackedBatch, totals: dict[str, Array]
               ) -> tuple[Array, Metrics]:
    """This micro-batch's share of the global loss, and its metrics. Shares add up to the loss of the whole batch."""
    terms, metrics = objective.terms(objective.outputs(params, micro), micro)
    loss = jnp.zeros((), jnp.float32)
    for term in terms:
        share = jnp.sum(term.values * term.weights) / jnp.maximum(totals[term.name], 1.0)
        loss += term.coefficient * share
    return loss, metrics


def _add_metrics(a: Metrics, b: Metrics) -> Metrics:
    return Metrics(jax.tree.map(jnp.add, a.means, b.means), jax.tree.map(jnp.maximum, a.maxima, b.maxima))


def make_grads(objective: Objective, assemble: Assemble, dtype: Any, drop: Drop | None = None
               ) -> Callable[..., tuple[Any, Array, Metrics]]:
    """(masters, frozen, batch [accumulation, B, ...], micro_batches, key) -> (float32 gradients, loss, metrics).

    key: of the step, for `drop`; a row's own is that of its place in the whole batch.
    """

    def grads_of(masters: Any, frozen: Any, batch: PackedBatch, micro_batches: Array,
                 key: Array | None = None) -> tuple[Any, Array, Metrics]:
        working = cast(masters, dtype)
        totals = term_totals(objective, assemble(working, frozen), batch)

        def one(index: Any) -> tuple[Any, Array, Metrics]:
            micro = jax.tree.map(lambda x: x[index], batch)

            def loss_of(trained: Any) -> tuple[Array, Metrics]:
                params = assemble(trained, frozen)
                if drop is not None and key is not None:
                    rows = index * len(micro.tokens) + jnp.arange(len(micro.tokens))
                    params = drop(params, jax.vmap(partial(jax.random.fold_in, key))(rows))
                return micro_loss(objective, params, micro, totals)

            (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(working)
            return cast(grads, jnp.float32), loss, metrics

        def add(index: Any, carry: tuple[Any, Array, Metrics]) -> tuple[Any, Array, Metrics]:
            grads, loss, metrics = one(index)
            return (jax.tree.map(jnp.add, carry[0], grads), carry[1] + loss, _add_metrics(carry[2], metrics))

        if batch.tokens.shape[0] == 1:
            return one(0)
        grads, loss, metrics = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, 0))
        lowest = jax.tree.map(lambda x: jnp.full_like(x, -jnp.inf), metrics.maxima)
        return jax.lax.fori_loop(0, micro_batches, add, (grads, loss, Metrics(metrics.means, lowest)))

    return grads_of


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
    *,
    assemble: Assemble = whole,
    drop: Drop | None = None,
    seed: int = 0,
    frozen_shardings: Any = None,
    dtype: Any = jnp.float32,
    shape: Hashable = None,
) -> jax.stages.Wrapped:
    """Compiles (state, frozen, batch, micro_batches, learning_rate) -> (state, metrics). The old state is donated.

    Equal arguments give the same program: trainings of one process that differ in their data, length and learning rate
    compile once. drop: dropout while training, drawn from `seed` and the number of the step. shape: of the batches, if
    it is to have a program of its own, which is let go by itself when others come.
    Metrics are global means ready to log: `loss`, `grad_norm`, `learning_rate`, `num_tokens` and the objective's own.
    """
    places, tree = jax.tree.flatten((shardings, frozen_shardings))
    random = None if drop is None else (seed, jax.random.key_impl(jax.random.key(seed)))
    return _train_program(objective, optimizer, mesh, tuple(places), tree, assemble, drop, random, jnp.dtype(dtype),
                          shape)


@lru_cache(maxsize=16)
def _train_program(objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh, places: tuple[Any, ...],
                   tree: jax.tree_util.PyTreeDef, assemble: Assemble, drop: Drop | None,
                   random: tuple[int, Hashable] | None, dtype: Any, shape: Hashable) -> jax.stages.Wrapped:
    del shape
    shardings, frozen_shardings = jax.tree.unflatten(tree, places)
    everywhere = replicated(mesh)
    grads_of = auto_inside(make_grads(objective, assemble, dtype, drop), mesh,
                           (shardings.params, everywhere, everywhere))

    def step(state: TrainState, frozen: Any, batch: PackedBatch, micro_batches: Array, learning_rate: Array
             ) -> tuple[TrainState, dict[str, Array]]:
        key = None if random is None else jax.random.fold_in(jax.random.key(random[0], impl=random[1]), state.step)
        grads, loss, metrics = grads_of(state.params, frozen, batch, micro_batches, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda param, update: param - learning_rate * update, state.params, updates)
        logged = finish_metrics(metrics) | {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(learning_rate, jnp.float32),
            "num_tokens": jnp.sum(batch.group_ids > 0).astype(jnp.float32),
        }
        return TrainState(state.step + 1, params, opt_state), logged

    return jax.jit(
        step,
        in_shardings=(shardings, frozen_shardings, batch_sharding(mesh, axis=1), None, None),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )


def finish_metrics(metrics: Metrics) -> dict[str, Array]:
    """Sums divided by weights (NaN where there is none), negated minima turned back."""
    out = {name: jnp.where(weight > 0, total / jnp.maximum(weight, 1e-9), jnp.nan)
           for name, (total, weight) in metrics.means.items()}
    return out | {name: -value if name.startswith("min_") else value for name, value in metrics.maxima.items()}
