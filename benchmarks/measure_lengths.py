"""Writes lengths.json: token counts of real preference pairs, so that the benchmarks need no data set.

    python benchmarks/measure_lengths.py --tokenizer LLAMA3_FOLDER --hh helpful_train.jsonl.gz --graded graded.jsonl.gz

[prompt, chosen, rejected] of Anthropic's helpful dialogues (the last answers differ), and of the best and the worst
graded answer to AlpacaEval's instructions. Responses count their stop token.
"""

import argparse
import gzip
import json
from pathlib import Path

from transformers import AutoTokenizer

TURN = "\n\nAssistant:"


def rows(path):
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--tokenizer", "--hh", "--graded"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, trust_remote_code=False)

    def count(text):
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    dialogues, graded = [], []
    for row in rows(args.hh):
        shared = row["chosen"].rindex(TURN) + len(TURN)
        if row["rejected"].startswith(row["chosen"][:shared]):
            dialogues.append([count(row["chosen"][:shared]), *(count(row[key][shared:]) + 1
                                                               for key in ("chosen", "rejected"))])
    for row in rows(args.graded):
        answers = sorted((r for r in row["responses"] if r["score"] is not None), key=lambda r: r["score"])
        graded.append([count(row["prompt"]), count(answers[-1]["text"]) + 1, count(answers[0]["text"]) + 1])
    out = Path(__file__).with_name("lengths.json")
    out.write_text(json.dumps({"dialogues": dialogues, "graded": graded}) + "\n")


if __name__ == "__main__":
    main()
