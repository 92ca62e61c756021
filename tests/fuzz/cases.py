"""Generators of hostile input: each writes files into a folder and gives the command lines that meet them.

A case is a list of command lines; a generator takes (rng, folder, world) and gives one. `world` holds sound files.
"""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import yaml
from mutations import ODD, damaged, mutated, to_json

JUDGE = ["--kind", "function", "--function", "rlhf_jax.data.world:gold_judge"]
SCORER = [word.replace("--", "--scorer.") for word in JUDGE]
KINDS = ("sft", "preference", "prompts")
LAYOUTS = (
    {"prompt": "Say it.", "completion": " Yes."},
    {"prompt": "Say it.", "chosen": " Yes.", "rejected": " No.", "margin": 0.5},
    {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "Yes."}]},
    {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say it."}],
     "responses": [{"text": "Yes.", "score": 1.0}, {"text": "No.", "score": 0}]},
    {"conversations": [{"from": "human", "value": "Say it."}, {"from": "gpt", "value": "Yes."}]},
    {"prompt": "Say it.", "completion": [{"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}],
     "tools": [{"type": "function", "function": {"name": "f"}}], "chat_template_kwargs": {"a": 1}, "id": "x"},
)
"""Rows of the field's layouts."""


def reading(rng, world, path, kind):
    """A command that reads rows, and shows or reports their funnel."""
    budget = ["--max_bad_rows", rng.choice(("0", "1.0"))]
    if kind == "preference" and rng.random() < 0.5:
        return ["evaluate", *SCORER, "--dataset_name", path, *budget, "--output_dir", path.parent / "out"]
    verb = {"sft": "sft", "preference": rng.choice(("dpo", "reward")), "prompts": "generate"}[kind]
    more = ["--max_new_tokens", "8"] if verb == "generate" else []
    return [verb, "--dry-run", "--model_name_or_path", world / "base", "--dataset_name", path, *budget, *more,
            "--output_dir", path.parent / "out"]


def some_rows(rng, world, kind):
    lines = (world / f"{kind}.jsonl").read_text().splitlines()
    return [json.loads(rng.choice(lines)) for _ in range(rng.randint(1, 4))] + rng.sample(LAYOUTS, rng.randint(0, 2))


def row_values(rng, folder, world):
    """JSON Lines whose rows hold other values than a layout has."""
    kind = rng.choice(KINDS)
    rows = [mutated(rng, row) if rng.random() < 0.7 else row for row in some_rows(rng, world, kind)]
    path = folder / rng.choice(("rows.jsonl", "rows.json", "rows.jsonl.gz"))
    text = "\n".join(map(to_json, rows)) if "jsonl" in path.name else f"[{', '.join(map(to_json, rows))}]"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return [reading(rng, world, path, kind)]


def row_bytes(rng, folder, world):
    """JSON Lines, CSV and TSV with damaged bytes."""
    kind, ending = rng.choice(KINDS), rng.choice(("jsonl", "json", "csv", "tsv", "txt", "jsonl.gz"))
    rows = some_rows(rng, world, kind)
    data = "\n".join(map(json.dumps, rows)).encode()
    if ending in ("csv", "tsv"):
        between = "," if ending == "csv" else "\t"
        lines = [between.join(("prompt", "completion"))] + [between.join(('"Say, it."', "Yes.")) for _ in rows]
        data = "\n".join(lines).encode()
    data = gzip.compress(data) if ending.endswith("gz") else data
    path = folder / f"rows.{ending}"
    path.write_bytes(damaged(rng, data))
    return [reading(rng, world, path, kind)]


def row_tables(rng, folder, world):
    """Parquet with columns of other types than a layout has, and with damaged bytes."""
    columns = {"prompt": ["Say it.", "Say that."], "completion": ["Yes.", "No."], "chosen": ["Yes.", "Good."],
               "rejected": ["No.", "Bad."], "n": [1, 2]}
    odd = ([None, None], [1, 2], [0.5, float("nan")], [b"\xff", b"a"], [["a"], []], [{"a": 1}, {"a": None}],
           [[{"role": "user", "content": "Hi."}], []], ["", "Yes."], [True, False])
    for name in rng.sample(sorted(columns), rng.randint(1, 2)):
        columns[name] = rng.choice(odd)
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    if rng.random() < 0.4:
        path.write_bytes(damaged(rng, path.read_bytes()))
    return [reading(rng, world, path, rng.choice(KINDS))]


def _tree(world, verb):
    data = {"dataset_name": str(world / "prompts.jsonl"), "max_length": 128, "split": None}
    model = {"model_name_or_path": str(world / "base")}
    if verb == "iterate":
        return {**model, "prompts": data, "scorer": {"kind": "function", "function": JUDGE[-1]},
                "loop": {"rounds": 2, "reference": "sft"}, "sampling": {"num_generations": 2, "max_new_tokens": 8},
                "dpo": {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]},
                "evaluation": {"data": {**data, "dataset_name": str(world / "eval_prompts.jsonl")}},
                "baselines": ["raft"], "mesh": {"fsdp": 1}}
    return {**model, **data, "dataset_name": str(world / "sft.jsonl"), "learning_rate": 1e-4, "lora_r": 4,
            "use_peft": True, "report_to": "none", "mesh": "auto", "eval_dataset_name": []}


_HOSTILE = (
    "b0: &b0 [x, x]\n" + "\n".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]" for n in range(1, 10)),
    "a: &a [*a]", "? [a]\n: 1", "!!python/object/apply:os.system [ls]", "a: " + "[" * 5_000, "- 1", "1: 2", "~: 1",
    "a: !!binary aGk=", "<<: {seed: 1}", "<<: 3", "%YAML 9.9\n---\na: 1", "a: 1\n---\nb: 2", "\x85a: 1",
    "a: 2024-05-07", "seed: 1:30", "k: " + "9" * 5_000, "\n".join(f"key{n}: 1" for n in range(9_000)), "a" * (1 << 19),
    "'", "a: b: c",
)


def config_values(rng, folder, world):
    """YAML configs whose keys hold other values than they take; numbers among them that some key takes."""
    verb = rng.choice(("sft", "iterate"))
    tree = mutated(rng, _tree(world, verb))
    plain = json.loads(json.dumps(tree).replace("@", "at "))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    return [[verb, "--config", folder / "config.yaml", "--dry-run", "--output_dir", folder / "out"]]


def config_texts(rng, folder, world):
    """Configs that are no sound YAML, or hostile."""
    verb = rng.choice(("sft", "iterate"))
    text = yaml.safe_dump(_tree(world, verb)).encode()
    hostile = rng.choice(_HOSTILE).encode()
    (folder / "config.yaml").write_bytes(rng.choice((damaged(rng, text), hostile, text + b"\n" + hostile)))
    return [[verb, "--config", folder / "config.yaml", "--dry-run", "--output_dir", folder / "out"]]


def flags(rng, folder, world):
    """Command lines with odd flags and values."""
    verb = rng.choice(("sft", "generate", "dpo", "pairs", "export", "inspect", "report", "evaluate", "compare",
                       "iterate", "sfd"))
    keys = ("seed", "mesh.fsdp", "mesh", "split", "converter", "loss_type", "", ".", "a.b.c", "config", "output_dir",
            "n", "report_to", "dataset_name", "scorer", "scorer.kind", "sampling", "max_bad_rows", "help", "mesh.help")
    values = [json.dumps(value)[:60] for value in ODD] + ["[", "{a: ", "*a", "&a", "!!", "- ", "@", "nowhere", "auto"]
    words = [verb, "--model_name_or_path", world / "base", "--output_dir", folder / "out"]
    for _ in range(rng.randint(1, 3)):
        word = f"--{rng.choice(keys)}"
        words += rng.choice(([word, rng.choice(values)], [f"{word}={rng.choice(values)}"], [word], [word[1:], "1"]))
    return [words] if verb in ("inspect", "report", "sfd") else [[*words, "--dry-run"]]


def shards(rng, folder, world):
    """Shards of samples and files of pairs with other values and damaged bytes."""
    source = world / "pairs" / "pairs.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    rows = [mutated(rng, row) if rng.random() < 0.7 else row for row in rows]
    data = "\n".join(map(to_json, rows)).encode()
    data = damaged(rng, data) if rng.random() < 0.3 else data
    for name in ("shard-00000.jsonl", "pairs.jsonl"):
        (folder / name).write_bytes(data)
    return [["score", "--input", folder, *JUDGE, "--output_dir", folder / "scored"],
            ["pairs", "--input", folder, "--output_dir", folder / "paired"],
            ["dpo", "--dry-run", "--model_name_or_path", world / "base", "--pairs", folder / "pairs.jsonl",
             "--output_dir", folder / "dpo"]]


def records(rng, folder, world):
    """What stages and runs write about themselves, with other values and damaged bytes; the verb is given again."""
    shutil.copytree(world / "run", folder / "run")
    shutil.copytree(world / "pairs", folder / "pairs")
    pairs = ["pairs", "--input", world / "scored", "--output_dir", folder / "pairs"]
    path, again = rng.choice((
        (folder / "pairs" / "stage.json", pairs), (folder / "pairs" / "inputs.json", pairs),
        (folder / "run" / "results.json", ["report", folder / "run"]),
    ))
    if path.name == "inputs.json":
        (folder / "pairs" / "stage.json").unlink()
    data = path.read_bytes()
    path.write_bytes(damaged(rng, data) if rng.random() < 0.4 else to_json(mutated(rng, json.loads(data), 1)).encode())
    return [again]


def _with_model(rng, folder, world):
    model = folder / "model"
    shutil.copytree(world / "base", model)
    data = ["--model_name_or_path", model, "--dataset_name", world / "sft.jsonl", "--max_bad_rows", "1.0"]
    return model, [rng.choice((["inspect", model], ["doctor", model],
                               ["sft", "--dry-run", *data, "--output_dir", folder / "out"]))]


def model_values(rng, folder, world):
    """A model folder whose JSON files hold other values."""
    model, commands = _with_model(rng, folder, world)
    path = model / rng.choice(("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"))
    path.write_text(to_json(mutated(rng, json.loads(path.read_text()))))
    return commands


def model_bytes(rng, folder, world):
    """A model folder with a damaged, missing or empty file, or an index of tensors that are elsewhere."""
    model, commands = _with_model(rng, folder, world)
    path = rng.choice(sorted(model.iterdir()))
    if rng.random() < 0.2:
        (model / "model.safetensors").rename(model / "part.safetensors")
        path = model / "model.safetensors.index.json"
        names = rng.choice((["model.norm.weight"], {"model.norm.weight": rng.choice(("../x", "/etc/passwd", 3, None))},
                            {}, None))
        path.write_text(json.dumps({"weight_map": names}))
    elif rng.random() < 0.2:
        path.unlink()
    else:
        path.write_bytes(damaged(rng, path.read_bytes()))
    return commands


_PIECES = ("{% for m in messages %}", "{% endfor %}", "{{ m['content'] }}", "{{ m.content }}", "<|user|>", "<|end|>",
           "<|assistant|>", "{{ bos_token }}", "{% if add_generation_prompt %}", "{% endif %}", "{{ m['role'] }}",
           "{{ raise_exception('no') }}", "{{ x.y.z }}", "{{ 1 / 0 }}", "{% set a = 1 %}", "{% else %}", "{{", "\n",
           "{{ messages[5] }}", "{{ m | tojson }}", "{% include 'x' %}", "{{ ''.__class__.__mro__ }}")
_ENDLESS = ("{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}"
            "{% endfor %}", "{{ 'a' * 10**10 }}", "{{ range(10**9) | list }}", "{% macro f() %}{{ f() }}{% endmacro %}"
            "{{ f() }}", "{{ 'a' | center(10**10) }}", "{% for a in range(10**8) %}{% endfor %}")


def _template(rng, folder, world, pieces):
    text = (world / "base" / "chat_template.jinja").read_text()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(pieces) + text[at + rng.choice((0, 0, 5, 30)):]
    if rng.random() < 0.3:
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 12)))
    (folder / "template.jinja").write_text(text)
    return [["sft", "--dry-run", "--model_name_or_path", world / "base", "--dataset_name", world / "sft.jsonl",
             "--max_bad_rows", "1.0", "--chat_template_path", folder / "template.jinja", "--output_dir", folder / "o"]]


def templates(rng, folder, world):
    """Chat templates that are wrong."""
    return _template(rng, folder, world, _PIECES)


def endless_templates(rng, folder, world):
    """Chat templates that take for ever, or all memory."""
    return _template(rng, folder, world, _ENDLESS)


_NUMBERS = (".nan", ".inf", "-.inf", "-1", "0", "1e400", str(2**31), str(2**63), str(10**30), "1e-320", "-0.0", "1.5")


def numbers(rng, folder, world):
    """Numeric keys at and beyond their ranges."""
    verb = rng.choice(("sft", "generate", "dpo", "iterate"))
    tree = _tree(world, "iterate" if verb == "iterate" else "sft")
    common = ("seed", "max_samples", "max_length", "max_prompt_length", "max_bad_rows", "min_gap")
    train = ("learning_rate", "train_batch_size", "micro_rows", "row_length", "num_train_epochs", "max_steps",
             "warmup_steps", "weight_decay", "max_grad_norm", "save_steps", "adam_beta1", "adam_beta2", "lora_r",
             "lora_alpha", "beta", "label_smoothing")
    sampling = ("num_generations", "temperature", "top_p", "top_k", "min_p", "max_new_tokens", "slots", "block",
                "lanes", "prompt_length", "shard_size")
    key = rng.choice({"sft": common + train[:-2], "generate": common + sampling, "dpo": common + train,
                      "iterate": ("loop.rounds", "loop.shard_size", "loop.prompts_per_round", "dpo.beta",
                                  "pairs.min_gap", "sampling.temperature", "evaluation.seed", "mesh.fsdp")}[verb])
    data = {"sft": "sft", "generate": "prompts", "dpo": "preference"}.get(verb)
    words = [] if data is None else ["--model_name_or_path", world / "base", "--dataset_name", world / f"{data}.jsonl"]
    if key.startswith("lora"):
        words += ["--use_peft", "true"]
    if data is None:
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        words = ["--config", folder / "config.yaml"]
    return [[verb, *words, f"--{key}={rng.choice(_NUMBERS)}", "--dry-run", "--output_dir", folder / "out"]]


GENERATORS = {make.__name__: make for make in (
    row_values, row_bytes, row_tables, config_values, config_texts, flags, shards, records, model_values, model_bytes,
    templates, endless_templates, numbers)}


def write_world(folder: Path) -> None:
    """The sound files: rows, a tiny model, samples with scores, pairs, and the folder of a finished evaluation."""
    import jax

    from rlhf_jax.config.world import WorldConfig
    from rlhf_jax.data.world import write_world
    from rlhf_jax.models import DecoderConfig, init_params, save_hf

    write_world(folder, WorldConfig(sft_rows=12, preference_rows=8, prompt_rows=4, eval_prompts=2))
    vocab = len(json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"])
    config = DecoderConfig("llama", vocab_size=vocab, embed=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp=16,
                           max_position=256, tie_embeddings=True, bos_token_id=1, eos_token_ids=(4,), pad_token_id=0)
    save_hf(folder / "base", jax.device_get(init_params(jax.random.key(0), config)), config,
            tokenizer_from=folder / "tokenizer")
    answers = [{"ids": [6] * n + [4], "text": "a" * n, "logps": [-1.0] * (n + 1), "finish_reason": "stop",
                "scores": {"proxy": n}} for n in (1, 2)]
    rows = [{"prompt_id": f"p{n}", "prompt": "say", "prompt_ids": [5], "responses": answers} for n in range(2)]
    (folder / "scored").mkdir()
    (folder / "scored" / "shard-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def sound_commands(world: Path) -> list[list[object]]:
    """What makes the rest of the sound files."""
    return [
        ["pairs", "--input", world / "scored", "--output_dir", world / "pairs"],
        ["compare", "--model_name_or_path", world / "base", "--baseline_model", world / "base", "--dataset_name",
         world / "eval_prompts.jsonl", *SCORER, "--sampling.num_generations", "2", "--sampling.max_new_tokens", "4",
         "--sampling.slots", "2", "--output_dir", world / "run"]]
