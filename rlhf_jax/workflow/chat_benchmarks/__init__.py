"""Chat benchmarks: a file and a row of `CHAT_BENCHMARKS` each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_jax.data.tokenizer import load_tokenizer
from rlhf_jax.workflow.chat_benchmarks.alpaca_eval import AlpacaEval
from rlhf_jax.workflow.chat_benchmarks.arena_hard import ArenaHard
from rlhf_jax.workflow.chat_benchmarks.base import Answers, ChatBenchmark, Judge, Judged, OfficialJudge, write_rows
from rlhf_jax.workflow.chat_benchmarks.mt_bench import MtBench
from rlhf_jax.workflow.stage import hash_path

__all__ = ["CHAT_BENCHMARKS", "Answers", "ChatBenchmark", "Judge", "Judged", "OfficialJudge", "write_rows"]


def _arena_hard(command: Any) -> ArenaHard:
    tokens = None if command.style_tokenizer is None else load_tokenizer(command.style_tokenizer)
    return ArenaHard(Path(command.data_dir), command.version, None if tokens is None else partial(_count, tokens),
                     None if tokens is None else hash_path(command.style_tokenizer), command.max_samples)


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


CHAT_BENCHMARKS: dict[str, Callable[[Any], ChatBenchmark]] = {
    "alpaca_eval": lambda command: AlpacaEval(Path(command.data_dir), command.max_samples),
    "arena_hard": _arena_hard,
    "mt_bench": lambda command: MtBench(Path(command.data_dir), command.max_samples),
}
"""--name -> the benchmark that a command asks for."""
