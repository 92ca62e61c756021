"""TRL's own trainers (dpo, rm, sft), transformers' generate, and one-at-a-time scoring, as a worker. See run.py."""

import tempfile
import time
import warnings

import datasets
import torch
import work
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from work import text

args = work.arguments(["dpo", "rm", "sft", "generate", "score", "round"])
warnings.simplefilter("ignore")
datasets.disable_progress_bars()
set_seed(0)
FOLDER = args.checkpoints / args.shape
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = getattr(torch, args.dtype)
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER / "tokenizer")
TRAIN_BATCH = min(args.batch, work.TRAIN_BATCH)
VERSIONS = work.versions("torch", "transformers", "trl", "accelerate") | {
    "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"}


def memory():
    return {"peak_device": torch.cuda.max_memory_allocated()} if DEVICE == "cuda" else {}


work.extra = memory


def causal():
    return AutoModelForCausalLM.from_pretrained(FOLDER / "lm", dtype=DTYPE).to(DEVICE)


class Steps(TrainerCallback):
    """Each optimizer step waits for the driver; it is timed from there, so fetching and collating are in it."""

    def __init__(self, tokens):
        self.laps = work.Laps(tokens)

    def on_train_begin(self, *_, **__):
        self.laps.begin()

    def on_step_end(self, *_, **__):
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        self.laps.end()
        self.laps.begin()


def options(steps):
    """Arguments that all trainers share; TRL's defaults otherwise."""
    return {"output_dir": tempfile.mkdtemp(), "max_steps": steps, "use_cpu": DEVICE == "cpu",
            "bf16": args.dtype == "bfloat16",
            "gradient_checkpointing": args.remat == "full" if args.remat else args.shape in ("1b", "8b"),
            "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
            "learning_rate": 1e-5, "lr_scheduler_type": "constant", "dataloader_pin_memory": False,
            "max_length": args.longest + 8, "per_device_train_batch_size": min(TRAIN_BATCH, 8),
            "gradient_accumulation_steps": -(-(TRAIN_BATCH if args.task == "round" else args.batch) // 8)}


def in_order(trainer):
    """A trainer that takes the rows as they come: the same pairs per step as the other workers."""

    class InOrder(trainer):
        def _get_train_sampler(self, *_, **__):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder


def row(prompt, chosen, rejected):
    return {"prompt": text(prompt) + " ", "chosen": text(chosen), "rejected": text(rejected)}


def train():
    data = work.pairs(args.shape, args.batch * (args.steps + 1), args.longest)
    tokens = work.tokens_of_steps(data if args.task != "sft" else [pair[:2] for pair in data], args.batch)
    common = options(args.steps + 1)
    rows = [row(*pair) for pair in data]
    if args.task == "dpo":
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Trainer
        model = causal()
    elif args.task == "rm":
        from trl import RewardConfig as Config
        from trl import RewardTrainer as Trainer
        rows = [{"chosen": r["prompt"] + r["chosen"], "rejected": r["prompt"] + r["rejected"]} for r in rows]
        model = AutoModelForSequenceClassification.from_pretrained(FOLDER / "rm", dtype=DTYPE).to(DEVICE)
    else:
        from trl import SFTConfig as Config
        from trl import SFTTrainer as Trainer
        rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
        model = causal()
        common |= {"packing": False}

    trainer = in_order(Trainer)(model=model, args=Config(**common), train_dataset=datasets.Dataset.from_list(rows),
                                processing_class=TOKENIZER, callbacks=[Steps(tokens)])
    work.say(framework="TRL", versions=VERSIONS)
    trainer.train()
    work.wait()


def continuations(model, prompts):
    """[prompts * n] lists of new ids, by transformers' generate."""
    stops, width = work.stop_ids(args.shape, args.mean), max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=DEVICE)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                             num_return_sequences=args.n, max_new_tokens=args.new, eos_token_id=stops, pad_token_id=0)
    return [[i for i in line if i] for line in out[:, width:].tolist()]


def score(model, ids):
    with torch.no_grad():
        return float(model(torch.tensor([ids], device=DEVICE)).logits[0, 0])


def reward_model():
    return AutoModelForSequenceClassification.from_pretrained(FOLDER / "rm", dtype=DTYPE).to(DEVICE).eval()


def generating():
    data, model = work.pairs(args.shape, args.batch * args.steps, args.longest), causal().eval()

    def step(i):
        prompts = [p for p, _, _ in data[i * args.batch : (i + 1) * args.batch]]
        return sum(map(len, continuations(model, prompts))), {}

    return step


def scoring():
    """As the seed used the pipeline: one conversation at a time, the prompt anew for each candidate."""
    data, model = work.pairs(args.shape, args.batch * args.steps * args.n, args.longest), reward_model()

    def step(i):
        total = 0
        for j in range(args.batch):
            block = data[(i * args.batch + j) * args.n :][: args.n]
            prompt = block[0][0]
            room = args.longest - len(prompt)
            total += len(prompt)
            for _, chosen, _ in block:
                score(model, prompt + chosen[-room:])
                total += len(chosen[-room:])
        return total, {}

    return step


def rounds():
    """One online round as the RLHF Workflow's code runs it: generate, score one at a time, best against worst, TRL's
    DPO over these pairs once. Setting TRL's trainer up is not counted, and what a step starts from is what the step
    before left."""
    from trl import DPOConfig, DPOTrainer

    data = work.pairs(args.shape, args.batch * args.steps, args.longest)
    policy, reward = causal(), reward_model()
    clock = time.perf_counter

    def step(i):
        start = clock()
        policy.eval()
        prompts = [p for p, _, _ in data[i * args.batch : (i + 1) * args.batch]]
        answers = [ids for j in range(0, args.batch, work.TRAIN_BATCH)
                   for ids in continuations(policy, prompts[j : j + work.TRAIN_BATCH])]
        sampled = clock()
        rows = []
        for j, prompt in enumerate(prompts):
            ranked = sorted(answers[j * args.n : (j + 1) * args.n], key=lambda ids, p=prompt: score(reward, p + ids))
            rows.append(row(prompt, ranked[-1], ranked[0]))
        scored = clock()
        trainer = in_order(DPOTrainer)(
            model=policy, args=DPOConfig(**options(args.batch // TRAIN_BATCH)), processing_class=TOKENIZER,
            train_dataset=datasets.Dataset.from_list(rows))
        ready = clock()
        trainer.train()
        parts = {"sample": sampled - start, "score": scored - sampled, "train": clock() - ready}
        return sum(map(len, answers)), {"seconds": sum(parts.values()), **parts}

    return step


SERVED = {"generate": ("transformers generate", generating), "score": ("transformers, one at a time", scoring),
          "round": ("transformers and TRL", rounds)}
if args.task in SERVED:
    name, make = SERVED[args.task]
    work.serve(name, VERSIONS, make())
else:
    train()
