"""The compiled programs of a run from shapes alone: the same functions, given `ShapeDtypeStruct`s for arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.config.lora import LoraConfig, adapter_of
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.training import SftOptions
from rlhf_jax.data.packing import PackedBatch, RowShape, empty_rows, power_of_two, unpack_slots
from rlhf_jax.models import DecoderConfig, Params, cast, init_lora, init_params
from rlhf_jax.parallel import PRESETS, batch_sharding, batch_ways, param_shardings, shaped
from rlhf_jax.parallel.accelerators import Chip
from rlhf_jax.parallel.micro_batches import StepNeed, divide_step
from rlhf_jax.plan.shapes import PassShape, SampleShape, Shape, TrainShape
from rlhf_jax.sampling import Sampler
from rlhf_jax.sampling.decode import Refill, View
from rlhf_jax.sampling.pages import pages_of
from rlhf_jax.sampling.rules import Rules
from rlhf_jax.training.attention import WHOLE_ROWS, row_attention
from rlhf_jax.training.evaluate import PackedMap, logps_map
from rlhf_jax.training.fit import step_program
from rlhf_jax.training.objectives import Compute, Objective, Sft
from rlhf_jax.training.step import fresh_state
from rlhf_jax.workflow.kinds import KINDS, trainable_kind
from rlhf_jax.workflow.stages.dpo import preference_objective
from rlhf_jax.workflow.stages.train import Trained, compute_of, trainable


@dataclasses.dataclass(frozen=True)
class Program:
    """Something to compile.

    Attributes:
      jitted, args: `jitted.lower(*args)`. trips: iterations of a loop whose count is an argument of the program: the
        micro-batches of a step, the tokens of a block of decoding.
      argument_bytes: of one device, by formula. layers: of the model; loops of so many iterations are over layers.
      param_bytes: of all weights in the compute dtype, whole. weights: elements of each stacked weight, whole.
      beside: bytes of one device that whoever calls it holds meanwhile.
    """

    jitted: Any
    args: tuple[Any, ...]
    trips: int
    argument_bytes: int
    layers: int
    param_bytes: int
    weights: frozenset[int] = frozenset()
    beside: int = 0


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of `ShapeDtypeStruct`s."""

    def one(x: Any) -> int:
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        size = 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
        return math.prod(shape) * size

    return sum(map(one, jax.tree.leaves(tree)))


def param_structs(config: DecoderConfig, dtype: Any) -> Params:
    """The weights' shapes."""
    return jax.eval_shape(lambda: init_params(jax.random.key(0), config, dtype))


def _adapter_structs(key: Any, config: DecoderConfig, lora: LoraConfig) -> Params:
    return jax.eval_shape(lambda: init_lora(key, config, lora))


def _batch(shape: RowShape, rows: Sequence[int], mesh: Mesh) -> PackedBatch:
    """[*rows, ...] shapes of packed rows, cut over the mesh on the last of `rows`."""
    one = empty_rows(1, shape)
    whole: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*rows, *x.shape[1:]), x.dtype), one)
    return shaped(whole, batch_sharding(mesh, axis=len(rows) - 1))


def _whole_bytes(tree: Any, dtype: str) -> int:
    return sum(x.size for x in jax.tree.leaves(tree)) * jnp.dtype(dtype).itemsize


def _program(jitted: Any, args: tuple[Any, ...], trips: int, stage: Shape, mesh: Mesh, params: Any, dtype: str,
             held: Any = None) -> Program:
    tensor = mesh.shape["tensor"]
    weights = frozenset(x.size // cut for x in jax.tree.leaves(params["layers"]) for cut in (1, tensor))
    return Program(jitted, args, trips, device_bytes(args if held is None else held), stage.config.layers,
                   _whole_bytes(params, dtype), weights)


def objective_of(options: Trained) -> Callable[[Compute], Objective]:
    """What a training stage with these options minimises."""
    match options:
        case PreferenceOptions():
            return preference_objective(options)
        case SftOptions():
            return Sft
    return trainable_kind(options).objective(options)


def step_need(stage: TrainShape, mesh: Mesh) -> StepNeed:
    """What a training stage's step asks of the devices of this mesh."""
    options, train = stage.options, stage.options.train
    scores = row_attention(train.attn_implementation, stage.config, mesh, stage.row_length) is WHOLE_ROWS
    return StepNeed(stage.config, train, options.lora.use_peft, stage.row_length, stage.rows(), looks_across(stage),
                    scores)


def looks_across(stage: TrainShape) -> bool:
    """Whether the loss looks across a whole batch, which then is one micro-batch."""
    return objective_of(stage.options)(Compute(stage.config)).whole_batch


def settled(stage: Shape, mesh: Mesh, chip: Chip) -> tuple[Shape, str]:
    """`micro_rows` and `remat` as the stage would choose them on this mesh where they are `auto`, and why."""
    if not isinstance(stage, TrainShape) or "auto" not in (stage.options.train.micro_rows, stage.options.train.remat):
        return stage, ""
    micro_rows, remat, why = divide_step(step_need(stage, mesh), mesh.shape, chip,
                                         None if chip.kind == "cpu" else chip.hbm_bytes)
    return stage.trained_with(micro_rows=micro_rows, remat=remat), why


def train_program(stage: TrainShape, mesh: Mesh) -> Program:
    """One optimizer step over a whole global batch, of a stage that is `settled`."""
    options, config = stage.options, stage.config
    params = param_structs(config, jnp.float32)
    train = options.train
    model = trainable(params, config, adapter_of(options.lora), train.seed, adapter=_adapter_structs)
    objective = objective_of(options)(compute_of(config, train, mesh))
    program = step_program(model, objective, train, mesh)
    state = shaped(jax.eval_shape(partial(fresh_state, program.optimizer), model.trained), program.shardings)
    frozen: Any = {}
    if model.frozen:
        working = jax.eval_shape(lambda: cast(model.frozen, jnp.dtype(train.dtype)))
        frozen = shaped(working, program.frozen_shardings)
    ways = batch_ways(mesh)
    count, rows = stage.micro_batches(ways), stage.micro_rows * ways
    if objective.whole_batch:
        rows = min(rows, -(-stage.rows() // ways) * ways)
    batch = _batch(dataclasses.replace(stage.shape(), values=objective.reads), (power_of_two(count), rows), mesh)
    args = (state, frozen, batch, jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32))
    return _program(program.run, args, count, stage, mesh, params, train.dtype)


def pass_program(stage: PassShape, mesh: Mesh) -> Program:
    """One batch of rows through a model, without gradient."""
    structs = param_structs(stage.config, jnp.dtype(stage.dtype))
    params = shaped(structs, param_shardings(stage.config, mesh))
    if stage.output == "logps":
        packed = logps_map(compute_of(stage.config, stage.options.train, mesh), mesh, rows_per_batch=stage.rows)
    else:
        outputs = KINDS[stage.output].outputs
        if outputs is None:
            raise ValueError(f"scorers of kind {stage.output!r} compile nothing")
        fn = outputs(Compute(stage.config, mesh=mesh))
        packed = PackedMap(fn, mesh, unpack_slots, rows_per_batch=stage.rows)
    batch = _batch(stage.shape(), (packed.rows,), mesh)
    return _program(packed.program, (params, batch), 1, stage, mesh, structs, stage.dtype)


def sample_program(stage: SampleShape, mesh: Mesh) -> Program:
    """A prefill of a quarter of the slots, or a block of decoding at full depth."""
    s, config, dtype = stage.sampling, stage.config, jnp.dtype(stage.dtype)
    structs = param_structs(config, dtype)
    sampler = Sampler(config, s, config.eos_token_ids or (0,), mesh, lambda prompt, ids: "", dtype)
    params = shaped(structs, param_shardings(config, mesh, PRESETS["sampling"]))
    lanes, capacity = s.lanes_each, stage.prompt_length
    state = shaped(jax.eval_shape(partial(sampler.blank, capacity)), sampler.shardings())
    if stage.name == "prefill":
        refill = _refill(s.slots, lanes, sampler.prefill_rows, capacity)
        return _program(sampler.prefill_program, (params, state, refill), 1, stage, mesh, structs, stage.dtype)
    seed = jax.eval_shape(lambda: jax.random.key(0))
    stop = jax.ShapeDtypeStruct((max(1, len(set(config.eos_token_ids))),), jnp.int32)
    view = View(capacity - 1, s.max_new_tokens)
    pages = (s.slots, lanes, pages_of(s.max_new_tokens))
    table = jax.ShapeDtypeStruct(pages, jnp.int32) if sampler.paged else None
    held = (sampler.prepared(params), state, seed, stop, table)
    program = _program(sampler.decode_program, (view, *held), s.block, stage, mesh, structs, stage.dtype, held=held)
    return dataclasses.replace(program, beside=device_bytes(params) if sampler.prepares else 0)


def _refill(slots: int, lanes: int, rows: int, capacity: int) -> Refill:
    def ints(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def floats() -> Any:
        return jax.ShapeDtypeStruct((slots, lanes), jnp.float32)

    which = jax.ShapeDtypeStruct((slots, lanes), jnp.bool_)
    return Refill(slots=ints(rows), tokens=ints(rows, capacity), lengths=ints(rows),
                  hashes=jax.ShapeDtypeStruct((rows,), jnp.uint32), running=which, restart=which,
                  last_token=ints(slots), sample=ints(slots, lanes), limit=ints(slots, lanes),
                  rules=Rules(floats(), ints(slots, lanes), floats(), floats()))


def build(stage: Shape, mesh: Mesh) -> Program:
    """The program of a stage on this mesh; nothing is compiled and no array made."""
    match stage:
        case TrainShape():
            return train_program(stage, mesh)
        case PassShape():
            return pass_program(stage, mesh)
    return sample_program(stage, mesh)


