"""Log-likelihoods for lm-evaluation-harness: our adapter beside the harness's own Hugging Face backend, one JSON line.

    python benchmarks/harness.py --model MODEL --data_dir DIR --cores 1 --output mine.jsonl
    python benchmarks/harness.py --model MODEL --data_dir DIR --cores 1 --count 100 --shots 8
    python benchmarks/harness.py --model MODEL --data_dir DIR --cores 1 --task truthfulqa_mc2 --count 60

Needs the extra `lm-eval`, and torch and accelerate for the backend. `solutions`: each GSM8K question is a context, its
solution the continuation, so that nothing can be shared; with `--shots N` the same N of the training questions, solved,
stand before each, as fixed examples do (`gsm8k_cot`, `mmlu`). Of another task the requests are those of the harness,
whose choices share a context. Both adapters get the same requests, in float32, in one process, by turns: a block of
requests to one, then the same block to the other, so that whatever else the machine does slows both. Our seconds
include compiling. A model of fewer positions is given 4,096 by its config, so that nothing is cut. The backend gets the
best of several batch sizes, tried on a few requests before. A sum of log-probabilities that differs is an error. On a
busy machine read processor seconds of `--cores 1`: torch's threads wait for one another by spinning.
"""

import argparse
import datetime
import json
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

BATCH_SIZES, TRIED, BLOCKS, POSITIONS = (1, 8, 32), 24, 4, 4096


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a language model")
    parser.add_argument("--data_dir", required=True, help="folder of gsm8k/test.jsonl and so on")
    parser.add_argument("--task", default="solutions", help="or a multiple-choice task: truthfulqa_mc2, arc_challenge")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--count", type=int, default=1319, help="of questions")
    parser.add_argument("--shots", type=int, default=0, help="solved questions before each, of `solutions`")
    parser.add_argument("--output", help="file that the line is added to")
    return parser.parse_args()


def with_positions(model, folder):
    """The model in `folder`, with room for every request."""
    for path in Path(model).absolute().iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = max(POSITIONS, config["max_position_embeddings"])
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def requests_of(task, data_dir, count, shots):
    """The log-likelihoods that are asked for, with the arguments that the harness gives them."""
    from rlhf_jax.data.files import read_file
    from rlhf_jax.evaluation.harness.choice import choose
    from rlhf_jax.evaluation.harness.rows import find_files

    if task == "solutions":
        files = find_files("gsm8k", data_dir)
        solved, rows = ([(f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for _, row in read_file(path)]
                        for path in (files["train"], files["test"]))
        examples = "".join(f"{question}{answer}\n\n" for question, answer in solved[:shots])
        return [SimpleNamespace(args=(examples + question, answer)) for question, answer in rows[:count]]
    with tempfile.TemporaryDirectory() as folder:
        (found,) = choose([task], data_dir).write(Path(folder) / "tasks").load([task])["tasks"].values()
    found.set_config(key="num_fewshot", value=0)
    found.build_all_requests(limit=count, rank=0, world_size=1)
    return found.instances


def timed(answer, requests):
    """(answers, {clock: seconds})."""
    wall, processor = time.perf_counter(), time.process_time()
    found = answer(requests)
    return found, {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}


def main():
    args = options()
    with tempfile.TemporaryDirectory() as folder:
        compare(args, with_positions(args.model, Path(folder)))


def compare(args, model):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # before anybody counts processors
    os.environ |= {"OMP_NUM_THREADS": str(args.cores), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    import logging

    import jax
    import jax.numpy as jnp
    import torch
    from lm_eval.models.huggingface import HFLM

    from rlhf_jax.config.mesh import MeshConfig
    from rlhf_jax.evaluation.harness.model import HarnessModel, Subject
    from rlhf_jax.parallel import make_mesh
    from rlhf_jax.workflow.checkpoint import Checkpoint

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(args.cores)
    requests = requests_of(args.task, args.data_dir, args.count, args.shots)
    checkpoint, mesh = Checkpoint.find(model), make_mesh(MeshConfig(), jax.devices()[:1])
    ours = HarnessModel(Subject("ours", checkpoint.config, checkpoint.tokenizer, checkpoint.params(mesh), mesh,
                                jnp.float32, checkpoint.stop_ids, checkpoint.decode_text))
    theirs = HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=1)

    def ask_theirs(some):
        return theirs.loglikelihood(some, disable_tqdm=True)

    tried = {}
    for size in BATCH_SIZES:
        theirs.batch_size_per_gpu = size
        tried[size] = timed(ask_theirs, requests[:: len(requests) // TRIED])[1]["processor_seconds"]
    theirs.batch_size_per_gpu = min(tried, key=tried.get)
    print(f"processor seconds of theirs for {TRIED} requests, by batch size: {tried}", flush=True)
    totals = {"ours": {}, "theirs": {}}
    worst = 0.0
    for block in range(BLOCKS):
        some, answers = requests[block::BLOCKS], {}
        for name, answer in (("ours", ours.loglikelihood), ("theirs", ask_theirs)):
            answers[name], took = timed(answer, some)
            for clock, seconds in took.items():
                totals[name][clock] = totals[name].get(clock, 0.0) + seconds
        gaps = [abs(a[0] - b[0]) for a, b in zip(answers["ours"], answers["theirs"], strict=True)]
        worst = max(worst, *gaps)
        assert worst < 1e-2, f"sums of log-probabilities differ by {worst}"
        print(f"block {block + 1} of {BLOCKS}: {totals}", flush=True)
    ratios = {clock: totals["theirs"][clock] / totals["ours"][clock] for clock in totals["ours"]}
    line = {"task": f"harness/{args.task}", "date": datetime.date.today().isoformat(), "model": Path(args.model).name,
            "requests": len(requests), "shots": args.shots, "cores": args.cores, "load": os.getloadavg()[0],
            "truncated": ours.truncated, "batch_size_of_theirs": theirs.batch_size_per_gpu,
            "largest_difference": worst, **totals, "ratio": ratios,
            "versions": {"jax": jax.__version__, "torch": torch.__version__}}
    print(json.dumps(line))
    if args.output:
        with Path(args.output).open("a") as stream:
            stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
