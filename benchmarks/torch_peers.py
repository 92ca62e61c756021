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

args = work.arguments(["dpo", "rm", "sft", "generate", "score"])
warnings.simplefilter("ignore")
datasets.disable_progress_bars()
set_seed(0)
FOLDER = args.checkpoints / args.shape
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = getattr(torch, args.dtype)
VERSIONS = work.versions("torch", "transformers", "trl", "accelerate")


def memory():
    return {"peak_device": torch.cuda.max_memory_allocated()} if DEVICE == "cuda" else {}


work.extra = memory


def causal():
    return AutoModelForCausalLM.from_pretrained(FOLDER / "lm", dtype=DTYPE).to(DEVICE)


def text(ids):
    return " ".join(f"t{i}" for i in ids if i > 2)


class Steps(TrainerCallback):
    """Each optimizer step waits for the driver; it is timed from there, so fetching and collating are in it."""

    def __init__(self, tokens):
        self.tokens, self.i, self.start = tokens, 0, 0.0

    def on_train_begin(self, *_, **__):
        self._begin()

    def on_step_end(self, *_, **__):
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        work.say(seconds=time.perf_counter() - self.start, tokens=self.tokens[self.i], parts={})
        self.i += 1
        self._begin()

    def _begin(self):
        work.wait()
        self.start = time.perf_counter()


def train():
    data = work.pairs(args.shape, args.batch * (args.steps + 1), args.longest)
    counted = data if args.task != "sft" else [pair[:2] for pair in data]
    tokens = [sum(map(work.useful, counted[i * args.batch : (i + 1) * args.batch])) for i in range(args.steps + 1)]
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "tokenizer")
    common = {"output_dir": tempfile.mkdtemp(), "max_steps": args.steps + 1, "use_cpu": DEVICE == "cpu",
              "bf16": args.dtype == "bfloat16", "gradient_checkpointing": args.shape in ("1b", "8b"),
              "report_to": "none",
              "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-5,
              "lr_scheduler_type": "constant", "dataloader_pin_memory": False, "max_length": args.longest + 8,
              "per_device_train_batch_size": min(args.batch, 8), "gradient_accumulation_steps": -(-args.batch // 8)}
    rows = [{"prompt": text(p) + " ", "chosen": text(c), "rejected": text(r)} for p, c, r in data]
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

    class InOrder(Trainer):  # the same pairs a step as the other workers
        def _get_train_sampler(self, *_, **__):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = InOrder(model=model, args=Config(**common), train_dataset=datasets.Dataset.from_list(rows),
                      processing_class=tokenizer, callbacks=[Steps(tokens)])
    work.say(framework="TRL", versions=VERSIONS)
    trainer.train()
    work.wait()


def generating():
    data = work.pairs(args.shape, args.batch * args.steps, args.longest)
    model, stops = causal().eval(), work.stop_ids(args.shape, args.mean)

    def step(i):
        prompts = [p for p, _, _ in data[i * args.batch : (i + 1) * args.batch]]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=DEVICE)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)
        with torch.no_grad():
            out = model.generate(ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                                 num_return_sequences=args.n, max_new_tokens=args.new, eos_token_id=stops,
                                 pad_token_id=0)
        return int((out[:, width:] != 0).sum()), {}

    return step


def scoring():
    """As the seed used the pipeline: one conversation at a time, the prompt anew for each candidate."""
    data = work.pairs(args.shape, args.batch * args.steps * args.n, args.longest)
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER / "rm", dtype=DTYPE).to(DEVICE).eval()

    def step(i):
        total = 0
        for j in range(args.batch):
            block = data[(i * args.batch + j) * args.n :][: args.n]
            prompt = block[0][0]
            room = args.longest - len(prompt)
            total += len(prompt)
            for _, chosen, _ in block:
                with torch.no_grad():
                    float(model(torch.tensor([prompt + chosen[-room:]], device=DEVICE)).logits[0, 0])
                total += len(chosen[-room:])
        return total, {}

    return step


if args.task in ("dpo", "rm", "sft"):
    train()
else:
    NAME = {"generate": "transformers generate", "score": "transformers, one at a time"}[args.task]
    work.serve(NAME, VERSIONS, generating() if args.task == "generate" else scoring())
