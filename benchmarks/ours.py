"""rlhf_jax as a worker: dpo, rm, sft, generate, score, round. See run.py."""

import jax
import jax.numpy as jnp
import numpy as np
import work

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.loader import BatchPlan
from rlhf_jax.data.packing import RowShape, default_row_length, unpack_slots
from rlhf_jax.losses import PreferenceLoss
from rlhf_jax.models import load_params, param_specs, read_config
from rlhf_jax.parallel import make_mesh, micro_batches, param_shardings, replicated, spec_shardings
from rlhf_jax.sampling import Sampler
from rlhf_jax.training.compiles import count_compiles
from rlhf_jax.training.evaluate import PackedMap, logps_map
from rlhf_jax.training.mfu import needed_flops
from rlhf_jax.training.objectives import BradleyTerry, Compute, Preference, Sft
from rlhf_jax.training.optimizer import make_optimizer
from rlhf_jax.training.step import init_state, make_train_step, state_shardings
from rlhf_jax.workflow.pairs import make_pair

args = work.arguments(["dpo", "rm", "sft", "generate", "score", "round"])
mesh = make_mesh(MeshConfig(), jax.devices()[:1])
dtype = jnp.dtype(args.dtype)
VERSIONS = work.versions("rlhf_jax", "jax", "jaxlib", "flax", "optax")
LARGE = args.shape in ("1b", "8b")
REMAT = args.remat or ("full" if LARGE else micro_batches.REMAT)
clock = work.time.perf_counter
SLOTS, BLOCK = args.slots or (32 if LARGE else 16), args.block or (64 if LARGE else 8)


def memory():
    stats = jax.devices()[0].memory_stats() or {}
    return {"peak_device": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {}


work.extra = memory


def loaded(kind, dtype):
    """Config and weights of the language model or the reward model."""
    config = read_config(args.checkpoints / args.shape / kind)
    return config, load_params(args.checkpoints / args.shape / kind, config, dtype, param_shardings(config, mesh))


def group(name, prompt, responses, chosen=True):
    made = tuple(Response(np.asarray(ids, np.int32), np.ones(len(ids), bool)) for ids in responses)
    return PromptGroup(name, np.asarray(prompt, np.int32), made, pairs=((0, 1),) if chosen else (),
                       margins=(0.0,) if chosen else ())


def useful(groups):
    return sum(len(g.prompt_ids) + sum(len(r.ids) for r in g.responses) for g in groups)


class RoomyPlan(BatchPlan):
    """Few row shapes over the plans of several rounds, so that hardly any round compiles."""

    @property
    def shape(self):
        found = super().shape
        return RowShape(found.tokens, -(-found.targets // 256) * 256, max(16, found.slots), max(8, found.pairs))

    @property
    def accumulation(self):
        return self.batch_size


class Trainer:
    """Steps as `fit` runs them, packing included and nothing overlapped; for DPO the reference's pass too."""

    def __init__(self, task, row, batch, remat=REMAT, logits_chunk=args.logits_chunk, plan=BatchPlan):
        self.row, self._plan = row, plan
        self._micro = args.micro or micro_batches.cpu_rows(row)
        config, params = loaded("rm" if task == "rm" else "lm", jnp.float32)
        options = TrainConfig(train_batch_size=batch, micro_rows=self._micro, row_length=row, dtype=args.dtype,
                              learning_rate=1e-5, lr_scheduler_type="constant", warmup_steps=0)
        how = {"logits_chunk": logits_chunk, "mesh": mesh, "attention": args.attention}
        compute, self.config = Compute(config, remat, **how), config
        objective = {"dpo": lambda: Preference(compute, PreferenceLoss()), "rm": lambda: BradleyTerry(compute),
                     "sft": lambda: Sft(compute)}[task]()
        specs = param_specs(config)
        optimizer = make_optimizer(options, specs)
        shardings = state_shardings(optimizer, params, spec_shardings(specs, mesh), mesh)
        self._run = make_train_step(objective, optimizer, mesh, shardings, frozen_shardings=replicated(mesh),
                                    dtype=dtype)
        self._rate = np.float32(options.learning_rate)
        self.state = init_state(optimizer, params, shardings)
        self._reference = jax.tree.map(lambda x: x.astype(dtype), params) if task == "dpo" else None
        self._logps = logps_map(Compute(config, "none", **how), mesh, rows_per_batch=self._micro, row_length=row)

    def plan(self, groups, batch, reference=None):
        return self._plan(groups, batch, self.row, self._micro, shuffle=False, reference=reference)

    def reference(self, groups, shape=None):
        """Log-probs of the responses under the reference. shape: of the rows, `reference_shape` of more groups."""
        return self._logps(self._reference, groups, shape=shape)

    def reference_shape(self, groups):
        return self._logps.shape(groups)

    def compiled(self, batch, count):
        return self._run.lower(self.state, {}, batch, np.int32(count), self._rate).compile()

    def update(self, batch, count, run=None):
        self.state, metrics = (run or self._run)(self.state, {}, batch, np.int32(count), self._rate)
        jax.block_until_ready((self.state, metrics["loss"]))


def training():
    data = work.pairs(args.shape, args.batch * args.steps, args.longest)
    k = 1 if args.task == "sft" else 2
    groups = [group(str(i), p, r[:k], k == 2) for i, (p, *r) in enumerate(data)]
    trainer = Trainer(args.task, args.row or (2048 if LARGE else default_row_length(groups)), args.batch)
    reference = [()] * len(groups)  # known of a step's groups when it begins
    plan = trainer.plan(groups, args.batch, reference if args.task == "dpo" else None)
    shape = trainer.reference_shape(groups) if args.task == "dpo" else None  # of the pass over all of them
    work.say(note={"packing_efficiency": round(plan.efficiency, 4), "row_length": trainer.row,
                   "micro_rows": plan.micro_rows, "logits_chunk": args.logits_chunk, "remat": REMAT,
                   "flops": step_flops(trainer.config, groups) / args.steps})

    def step(i):
        here = slice(i * args.batch, (i + 1) * args.batch)
        start = clock()
        if args.task == "dpo":
            reference[here] = trainer.reference(groups[here], shape)
        middle = clock()
        trainer.update(*plan.batch(i))
        return useful(groups[here]), {"reference": middle - start, "step": clock() - middle}

    return step


def step_flops(config, groups):
    """What a step has to compute: forward and backward, and for DPO the reference's forward."""
    return needed_flops(config, False, groups) * (4 / 3 if args.task == "dpo" else 1)


def least_bytes(config, groups):
    """What sampling has to read: all weights for each token of the longest lane if lanes are never idle, and for each
    token what its lane has written, and its prompt once for all n."""
    weights = work.parameters(args.shape) - config.vocab_size * config.embed  # of the embedding only a few rows
    token = 2 * config.layers * config.kv_heads * config.head_dim
    written = sum(n * (n - 1) // 2 for g in groups for n in (len(r.ids) for r in g.responses))
    prompts = sum(len(g.prompt_ids) * max(len(r.ids) for r in g.responses) for g in groups)
    steps = sum(len(r.ids) for g in groups for r in g.responses) / (SLOTS * args.n)
    return dtype.itemsize * (steps * weights + token * (written + prompts))


def sampling(data):
    """A sampler of n continuations until a stop id or the budget, and the prompts of a step."""
    config = read_config(args.checkpoints / args.shape / "lm")
    settings = SamplingConfig(args.n, max_new_tokens=args.new, slots=SLOTS, block=BLOCK,
                              prompt_length=max(len(p) for p, _, _ in data))
    sampler = Sampler(config, settings, work.stop_ids(args.shape, args.mean), mesh, lambda prompt, ids: "", dtype)

    def prompts(i):
        return [group(f"{i}/{j}", p, (), False)
                for j, (p, _, _) in enumerate(data[i * args.batch : (i + 1) * args.batch])]

    return sampler, prompts


def compile_all(sampler, params, prompts):
    """Samples what the steps will sample, so that no step compiles."""
    start = clock()
    for i in range(args.steps):
        list(sampler.generate(params, prompts(i)))
    work.say(note={"sampled_beforehand_seconds": round(clock() - start, 1)})


def generating():
    sampler, prompts = sampling(work.pairs(args.shape, args.batch * args.steps, args.longest))
    _, params = loaded("lm", dtype)
    compile_all(sampler, params, prompts)

    def step(i):
        groups = [g for _, g in sampler.generate(params, prompts(i))]
        if i == args.steps - 1:
            work.say(note={"bytes": least_bytes(sampler.config, groups), "lanes": SLOTS * args.n, "block": BLOCK})
        return sum(len(r.ids) for g in groups for r in g.responses), {}

    return step


def scorer():
    """groups -> one reward for each of their candidates; the prompt is read once."""
    config, params = loaded("rm", dtype)
    compute = Compute(config, mesh=mesh)
    scores = PackedMap(lambda params, batch: compute.slot_scores(params, batch)[..., 0], mesh, unpack_slots,
                       rows_per_batch=args.micro or micro_batches.ROWS)
    return lambda groups: scores(params, groups)


def scoring():
    data, scores = work.pairs(args.shape, args.batch * args.steps * args.n, args.longest), scorer()

    def step(i):
        groups = candidates(data, i)
        scores(groups)
        return useful(groups), {}

    return step


def candidates(data, i):
    groups = []
    for j in range(args.batch):
        block = data[(i * args.batch + j) * args.n :][: args.n]
        prompt = block[0][0]
        room = args.longest - len(prompt)
        groups.append(group(f"{i}/{j}", prompt, [chosen[-room:] for _, chosen, _ in block], False))
    return groups


def rounds():
    """One online round: sample, score, best against worst, reference pass and DPO over these pairs once."""
    data = work.pairs(args.shape, args.batch * args.steps, args.longest)
    sampler, prompts = sampling(data)
    size, row = min(args.batch, work.TRAIN_BATCH), -(-(args.longest + 2 * args.new) // 128) * 128
    trainer, scores = Trainer("dpo", row, size, plan=RoomyPlan), scorer()
    compile_all(sampler, trainer.state.params, prompts)

    def step(i):
        start = clock()
        policy = jax.tree.map(lambda x: x.astype(dtype), trainer.state.params)
        groups = [g for _, g in sorted(sampler.generate(policy, prompts(i)), key=lambda found: found[0])]
        sampled = clock()
        scored = [g.with_scores("reward", s) for g, s in zip(groups, scores(groups), strict=True)]
        pairs = [pair for g in scored if (pair := make_pair(g, PairOptions(scorer="reward"))[0]) is not None]
        paired = clock()
        plan = trainer.plan(pairs, size, trainer.reference(pairs))
        for number in range(plan.steps):
            trainer.update(*plan.batch(number))
        parts = {"sample": sampled - start, "score": paired - sampled, "train": clock() - paired}
        return sum(len(r.ids) for g in groups for r in g.responses), {"seconds": sum(parts.values()), **parts}

    return step


if __name__ == "__main__":
    STEP = {"generate": generating, "score": scoring, "round": rounds}.get(args.task, training)
    with count_compiles() as compiles:
        work.programs = lambda: compiles.programs
        work.serve("rlhf_jax", VERSIONS | {"device": jax.devices()[0].device_kind}, STEP())
