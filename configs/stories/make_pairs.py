"""Preference pairs from sentences with human sentiment labels, split into disjoint parts for a proxy and a gold judge.

    python configs/stories/make_pairs.py --labels LABELS.tsv[.gz] --held_out DEV.tsv[.gz] --output_dir DIR

LABELS and HELD_OUT are headerless files `sentence<TAB>0/1` (the Stanford Sentiment Treebank in its two-class form, for
one). Writes proxy.jsonl and gold.jsonl from the two halves of LABELS, and held_out.jsonl.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.converters import sentiment_pairs
from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.data.sources import read_rows


def labelled(path: str) -> list[tuple[str, int]]:
    """(sentence, label) of every readable row."""
    rows = [row for _, row in read_rows(path, header=("sentence", "label")) if not isinstance(row, BadRow)]
    return [(str(row["sentence"]), int(row["label"])) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--held_out", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--max_pairs", type=int, default=100_000, help="of each file")
    args = parser.parse_args()
    sentences, folder = labelled(args.labels), Path(args.output_dir)
    parts = {"proxy": sentences[::2], "gold": sentences[1::2], "held_out": labelled(args.held_out)}
    for name, part in parts.items():
        count = write_jsonl_atomic(folder / f"{name}.jsonl", sentiment_pairs(part, seed=0, max_pairs=args.max_pairs))
        print(f"{folder / name}.jsonl: {count} pairs")


if __name__ == "__main__":
    main()
