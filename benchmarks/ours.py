"""rlhf_jax as a worker: dpo, rm, sft, generate, score. See run.py."""

import jax
import jax.numpy as jnp
import numpy as np
import work

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.loader import BatchPlan
from rlhf_jax.data.packing import default_row_length, unpack_slots
from rlhf_jax.losses import PreferenceLoss
from rlhf_jax.models import load_params, param_specs, read_config
from rlhf_jax.parallel import MeshConfig, make_mesh, param_shardings, replicated, spec_shardings
from rlhf_jax.sampling import Sampler, SamplingConfig
from rlhf_jax.training.config import TrainConfig
from rlhf_jax.training.evaluate import PackedMap, logps_map
from rlhf_jax.training.objectives import BradleyTerry, Compute, Preference, Sft
from rlhf_jax.training.optimizer import make_optimizer, make_schedule
from rlhf_jax.training.step import init_state, make_train_step, state_shardings

args = work.arguments(["dpo", "rm", "sft", "generate", "score"])
mesh = make_mesh(MeshConfig(), jax.devices()[:1])
folder = args.checkpoints / args.shape / ("rm" if args.task in ("rm", "score") else "lm")
config = read_config(folder)
dtype = jnp.dtype(args.dtype)
VERSIONS = work.versions("rlhf_jax", "jax", "jaxlib", "flax", "optax")
LARGE = args.shape in ("1b", "8b")
REMAT, SLOTS, BLOCK = ("full", 32, 64) if LARGE else ("none", 16, 8)


def memory():
    stats = jax.devices()[0].memory_stats() or {}
    return {"peak_device": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {}


work.extra = memory


def group(name, prompt, responses, chosen=True):
    made = tuple(Response(np.asarray(ids, np.int32), np.ones(len(ids), bool)) for ids in responses)
    return PromptGroup(name, np.asarray(prompt, np.int32), made, pairs=((0, 1),) if chosen else (),
                       margins=(0.0,) if chosen else ())


def training():
    """A step as `fit` runs it, packing included and nothing overlapped; for DPO the reference's pass over it too."""
    data = work.pairs(args.shape, args.batch * args.steps, args.longest)
    k = 1 if args.task == "sft" else 2
    groups = [group(str(i), p, r[:k], k == 2) for i, (p, *r) in enumerate(data)]
    row = 2048 if LARGE else default_row_length(groups)
    options = TrainConfig(train_batch_size=args.batch, micro_rows=args.micro, row_length=row, dtype=args.dtype,
                          learning_rate=1e-5, lr_scheduler_type="constant", warmup_steps=0)
    compute = Compute(config, REMAT, options.logits_chunk, mesh)
    objective = {"dpo": lambda: Preference(compute, PreferenceLoss()), "rm": lambda: BradleyTerry(compute),
                 "sft": lambda: Sft(compute)}[args.task]()
    params = load_params(folder, config, jnp.float32, param_shardings(config, mesh))
    schedule = make_schedule(options, args.steps)
    optimizer = make_optimizer(options, schedule, param_specs(config))
    shardings = state_shardings(optimizer, params, spec_shardings(param_specs(config), mesh), mesh)
    step_fn = make_train_step(objective, optimizer, schedule, mesh, shardings,
                              frozen_shardings=replicated(mesh), dtype=dtype)
    state = init_state(optimizer, params, shardings)
    reference_of = logps_map(Compute(config, mesh=mesh), mesh, rows_per_batch=args.micro, row_length=row)
    working = jax.tree.map(lambda x: x.astype(dtype), params)
    plan = BatchPlan(groups, args.batch, row, args.micro, shuffle=False)
    work.say(note={"packing_efficiency": round(plan.efficiency, 4), "row_length": row, "micro_rows": args.micro})

    def step(i):
        nonlocal state
        start = work.time.perf_counter()
        some = groups[i * args.batch : (i + 1) * args.batch]
        if args.task == "dpo":
            known = reference_of(working, some)
            plan_i = BatchPlan(groups, args.batch, row, args.micro, shuffle=False, reference=[
                known[j - i * args.batch] if 0 <= j - i * args.batch < args.batch else [] for j in range(len(groups))])
            for name in ("shape", "accumulation", "_all_rows", "_lengths"):  # computed once, from lengths alone
                plan_i.__dict__[name] = getattr(plan, name)
        else:
            plan_i = plan
        middle = work.time.perf_counter()
        batch, count = plan_i.batch(i)
        state, metrics = step_fn(state, {}, batch, np.int32(count))
        jax.block_until_ready(metrics["loss"])
        jax.block_until_ready(state)
        parts = {"reference": middle - start, "step": work.time.perf_counter() - middle}
        return sum(len(g.prompt_ids) + sum(len(r.ids) for r in g.responses) for g in some), parts

    return step


def generating():
    """n continuations of each prompt until a stop id or the budget."""
    data = work.pairs(args.shape, args.batch * args.steps, args.longest)
    settings = SamplingConfig(args.n, max_new_tokens=args.new, slots=SLOTS, block=BLOCK,
                              prompt_length=max(len(p) for p, _, _ in data))
    sampler = Sampler(config, settings, work.stop_ids(args.shape, args.mean), mesh, lambda prompt, ids: "", dtype)
    params = load_params(folder, config, dtype, param_shardings(config, mesh))

    def step(i):
        prompts = [PromptGroup(f"{i}/{j}", np.asarray(p, np.int32), ())
                   for j, (p, _, _) in enumerate(data[i * args.batch : (i + 1) * args.batch])]
        found = [g for _, g in sampler.generate(params, prompts)]
        return sum(len(r.ids) for g in found for r in g.responses), {}

    return step


def scoring():
    """One reward for each of n candidates; the prompt is read once."""
    data = work.pairs(args.shape, args.batch * args.steps * args.n, args.longest)
    compute = Compute(config, mesh=mesh)
    scores = PackedMap(lambda params, batch: compute.slot_scores(params, batch)[..., 0], mesh, unpack_slots,
                       rows_per_batch=args.micro)
    params = load_params(folder, config, dtype, param_shardings(config, mesh))

    def step(i):
        groups = candidates(data, i)
        scores(params, groups)
        return sum(len(g.prompt_ids) + sum(len(r.ids) for r in g.responses) for g in groups), {}

    return step


def candidates(data, i):
    groups = []
    for j in range(args.batch):
        block = data[(i * args.batch + j) * args.n :][: args.n]
        prompt = block[0][0]
        room = args.longest - len(prompt)
        groups.append(group(f"{i}/{j}", prompt, [chosen[-room:] for _, chosen, _ in block], False))
    return groups


STEP = {"generate": generating, "score": scoring}.get(args.task, training)
work.serve("rlhf_jax", VERSIONS | {"device": jax.devices()[0].device_kind}, STEP())
