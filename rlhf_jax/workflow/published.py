"""Published figures, recomputed from files: what `rlhf-jax verify` prints, one row of `CHECKS` per set of files."""

from __future__ import annotations

import csv
import gzip
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.answers import find_rule
from rlhf_jax.data.decontaminate import benchmark_index, contamination
from rlhf_jax.data.groups import text_group
from rlhf_jax.data.jsonl import read_jsonl
from rlhf_jax.data.load import load_examples
from rlhf_jax.data.mixing import Entries
from rlhf_jax.data.rows import ParseOptions
from rlhf_jax.data.statistics import source_statistics, text_lengths, token_counter
from rlhf_jax.data.tokenizer import load_tokenizer
from rlhf_jax.data.turns import parse_hh
from rlhf_jax.evaluation import alpaca_eval
from rlhf_jax.evaluation.benchmarks import BENCHMARKS
from rlhf_jax.evaluation.length_controlled import Regulariser, length_controlled
from rlhf_jax.evaluation.voting import ballot_of, voting
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.stages.evaluate import evaluate_scorer


class Figure(NamedTuple):
    """A number of ours beside theirs. tolerance: how far apart the two may be."""

    name: str
    ours: float
    theirs: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return abs(self.ours - self.theirs) <= self.tolerance


class Check(NamedTuple):
    """Figures of one publication.

    Attributes:
      source: who published them, or how they were found.
      files: below the data folder, all of which it reads.
      figures: data folder -> the figures.
    """

    source: str
    files: tuple[str, ...]
    figures: Callable[[Path], Iterator[Figure]]

    def missing(self, folder: Path) -> list[str]:
        """The files that are not there."""
        return [name for name in self.files if not any(folder.glob(name))]


ALPACA = "eval/alpaca-eval"


class AlpacaModel(NamedTuple):
    """A model's annotations: preferences, lengths in characters of its outputs and of the baseline's, published row."""

    name: str
    preferences: list[float | None]
    ours: list[int]
    theirs: list[int]
    published: Mapping[str, float]


def alpaca_models(folder: Path) -> Iterator[AlpacaModel]:
    """The models of which DIR/eval/alpaca-eval/lc holds annotations."""
    home = folder / ALPACA
    with (home / "leaderboard.csv").open() as stream:
        published = {row["model"]: {key: float(value) for key, value in row.items() if key != "model" and value}
                     for row in csv.DictReader(stream)}
    baseline = [len(row["output"]) for row in read_jsonl(home / "outputs_gpt4_1106_preview.jsonl.gz")]
    for path in sorted((home / "lc").glob("annotations_*.jsonl.gz")):
        name, rows = path.name.removeprefix("annotations_").removesuffix(".jsonl.gz"), list(read_jsonl(path))
        yield AlpacaModel(name, [row["preference"] for row in rows], [len(row["output"]) for row in rows],
                          [baseline[row["index"]] for row in rows], published[name])


def alpaca_difficulty(folder: Path) -> tuple[list[float], Regulariser]:
    """Difficulty of each instruction, and the baseline against itself."""
    with (folder / ALPACA / "lc/instruction_difficulty.csv").open() as stream:
        difficulty = [float(row["instruction_difficulty"]) for row in csv.DictReader(stream)]
    with (folder / ALPACA / "lc/regulariser.csv").open() as stream:
        rows = [*csv.DictReader(stream)]
    columns = ([row["std_delta_len"] for row in rows], [difficulty[int(row["index"])] for row in rows],
               [row["preference"] for row in rows])
    return difficulty, Regulariser(*(np.array(column, float) for column in columns))


def _alpaca_raw(folder: Path) -> Iterator[Figure]:
    for model in alpaca_models(folder):
        raw = alpaca_eval.raw_metrics(model.preferences)
        for name in ("win_rate", "standard_error", "n_total", "discrete_win_rate"):
            yield Figure(f"{model.name} {name}", raw[name], model.published[name], 1e-9)


def _alpaca_controlled(folder: Path) -> Iterator[Figure]:
    difficulty, regulariser = alpaca_difficulty(folder)
    for model in alpaca_models(folder):
        # a file that lacks a row takes the row's number for the instruction's, as the published figures do
        found = length_controlled(model.preferences, model.ours, model.theirs, difficulty[: len(model.ours)],
                                  regulariser)
        yield Figure(f"{model.name} length_controlled_winrate", found.win_rate.value,
                     model.published["length_controlled_winrate"], 0.15)


def _by_length(prompts: Any, completions: list[str], **columns: Any) -> list[float | Mapping[str, float] | None]:
    del prompts, columns
    return [float(len(text)) for text in completions]


def _length_only(benchmark: str, file: str, expected: Mapping[str, float]) -> Callable[[Path], Iterator[Figure]]:
    """What a scorer that knows nothing but length comes to, in percent."""
    def figures(folder: Path) -> Iterator[Figure]:
        examples, funnel = load_examples(str(folder / file), "preference", converter=BENCHMARKS[benchmark].converter,
                                         max_bad_rows=0.0, options=ParseOptions(to_judge=True))
        report, _ = evaluate_scorer(FunctionScorer(_by_length, name="length"), examples, funnel, 0, benchmark)
        for name, value in expected.items():
            yield Figure(f"{benchmark} {name}, by length alone", 100 * report.benchmark[name].value, value, 0.01)

    return figures


QUESTIONS = ("eval/alpaca-eval/instructions.jsonl.gz", "eval/mt-bench/question.jsonl",
             "eval/arena-hard/v0.1_question.jsonl.gz", "eval/gsm8k/test.jsonl.gz")
HELPFUL = "preference/hh-rlhf/helpful_train.jsonl.gz"


def _contaminated(folder: Path) -> Iterator[Figure]:
    index = benchmark_index([str(folder / name) for name in QUESTIONS])
    turns = (next(m["content"] for m in parse_hh(row["chosen"], "chosen") if m["role"] == "user")
             for row in read_jsonl(folder / HELPFUL))
    found = [contamination([turn], index) is not None for turn in turns]
    yield Figure("HH helpful prompts", len(found), 1658, 0)
    yield Figure("HH helpful prompts that a benchmark asks", sum(found), 131, 0)


def _statistics(name: str, converter: str, pairs: int, means: tuple[float, ...], longer: float
                ) -> Callable[[Path], Iterator[Figure]]:
    """Pairs, mean tokens of prompt, chosen and rejected, and the share of longer chosen ones."""
    def figures(folder: Path) -> Iterator[Figure]:
        examples, _ = load_examples(str(folder / f"preference/{name}.jsonl.gz"), "preference", converter=converter)
        entries = Entries.of([examples])
        with tempfile.TemporaryDirectory() as place:
            lengths = text_lengths(entries, token_counter(_tokenizer(folder / LLAMA_3, Path(place))))
        found = source_statistics(entries.rows, lengths)
        yield Figure(f"{name} pairs", found["rows"], pairs, 0)
        for part, mean in zip(("prompt", "chosen", "rejected"), means, strict=True):
            yield Figure(f"{name} tokens of {part}", found[part], mean, 0.0501)
        yield Figure(f"{name} chosen longer", found["chosen_longer"], longer, 5.1e-4)

    return figures


LLAMA_3 = "tokenizers/llama-3"


def _tokenizer(folder: Path, place: Path) -> Any:
    """A tokenizer whose tokenizer.json is packed, unpacked in `place`."""
    shutil.copy(folder / "tokenizer_config.json", place)
    with gzip.open(folder / "tokenizer.json.gz") as packed:
        (place / "tokenizer.json").write_bytes(packed.read())
    return load_tokenizer(str(place))


SOLVERS = {"6b_finetuning": 286, "6b_verification": 515, "175b_finetuning": 458, "175b_verification": 742}
"""Model -> how many of GSM8K's test problems it solved, by the marks in the file of its solutions."""
SOLUTIONS = "eval/gsm8k/example_model_solutions.jsonl.gz"
REFERENCES = {"eval/gsm8k/test.jsonl.gz": 1319, "eval/gsm8k/train.jsonl.gz": 7473}


def _gsm8k(folder: Path) -> Iterator[Figure]:
    rule, rows = find_rule("gsm8k"), list(read_jsonl(folder / SOLUTIONS))
    groups = [text_group(str(i), row["question"], [(row[model]["solution"], {}) for model in SOLVERS],
                         extra={"answer": row["ground_truth"]}) for i, row in enumerate(rows)]
    ballots = [ballot_of(group, rule, "answer", None) for group in groups]
    correct = np.array([ballot.correct for ballot in ballots if ballot is not None])
    marks = np.array([[row[model]["is_correct"] for model in SOLVERS] for row in rows])
    for model, ours, theirs in zip(SOLVERS, correct.sum(axis=0), SOLVERS.values(), strict=True):
        yield Figure(f"{model} solved", int(ours), theirs, 0)
    yield Figure("solutions marked as in the file", int((correct == marks).sum()), marks.size, 0)
    points = voting(groups, ballots).points
    for name, n, problems in (("pass", 1, 500.25), ("majority", 4, 635 + 2 / 3), ("pass", 4, 887)):
        yield Figure(f"problems by {name}@{n}", len(rows) * points[n][name].value, problems, 1e-6)


def _references(folder: Path) -> Iterator[Figure]:
    rule = find_rule("gsm8k")
    for name, count in REFERENCES.items():
        answers = [rule.find(row["answer"]) for row in read_jsonl(folder / name)]
        yield Figure(f"{name} references read", len(answers) - answers.count(None), count, 0)


def _dev(folder: str) -> str:
    return f"preference/{folder}/dev.jsonl.gz"


LENGTH_ONLY = {
    "rm-bench": ("rm_bench", {"hard": 13.16, "normal": 40.51, "easy": 86.42}),
    "llmbar": ("llmbar", {f"subset/LLMBar/{name}": value for name, value in (
        ("Natural", 59.20), ("Adversarial/Neighbor", 10.62), ("Adversarial/GPTInst", 14.46),
        ("Adversarial/GPTOut", 44.12), ("Adversarial/Manual", 17.57))}),
    "judgebench": ("judgebench", {"all": 45.15}), "auto-j": ("auto_j", {"all": 72.71}),
    "hhh-alignment": ("hhh", {"helpful": 64.29, "harmless": 61.40}), "pandalm": ("pandalm", {"all": 64.00}),
}
"""Folder of a set -> its benchmark, and what length alone comes to there, in percent."""
STATISTICS = (
    ("hh-rlhf/helpful_train", "hh_rlhf", 1641, (114.0, 56.7, 43.3), 0.589),
    ("hh-rlhf/harmless_train", "hh_rlhf", 1600, (100.6, 37.9, 48.5), 0.429),
    ("webgpt/train", "webgpt", 460, (42.0, 140.1, 114.5), 0.661),
)
"""Set, converter, pairs, mean tokens (Llama 3) of prompt, chosen and rejected, share of longer chosen ones."""
_ANNOTATIONS = (f"{ALPACA}/leaderboard.csv", f"{ALPACA}/outputs_gpt4_1106_preview.jsonl.gz",
                f"{ALPACA}/lc/annotations_*.jsonl.gz")

CHECKS: dict[str, Check] = {
    "alpaca_eval": Check("AlpacaEval 2's leaderboard", _ANNOTATIONS, _alpaca_raw),
    "alpaca_eval_length_controlled": Check("AlpacaEval 2's leaderboard", (
        *_ANNOTATIONS, f"{ALPACA}/lc/instruction_difficulty.csv", f"{ALPACA}/lc/regulariser.csv"), _alpaca_controlled),
    **{f"length_only/{benchmark}": Check("the set's own rule, counted by hand", (_dev(folder),),
                                         _length_only(benchmark, _dev(folder), expected))
       for folder, (benchmark, expected) in LENGTH_ONLY.items()},
    "contamination": Check("13 words in a row, counted independently", (*QUESTIONS, HELPFUL), _contaminated),
    **{f"statistics/{row[0]}": Check("counted independently", (
        f"preference/{row[0]}.jsonl.gz", f"{LLAMA_3}/tokenizer.json.gz", f"{LLAMA_3}/tokenizer_config.json"),
        _statistics(*row)) for row in STATISTICS},
    "gsm8k": Check("the solutions' own marks, and votes counted independently", (SOLUTIONS,), _gsm8k),
    "gsm8k_references": Check("the set's rows", tuple(REFERENCES), _references),
}
"""Name -> a check."""
