"""AlpacaEval 2: 805 instructions against gpt4_1106_preview, raw and length-controlled win rate."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data.benchmark_files import (
    Answer,
    Question,
    Rows,
    alpaca_output_rows,
    by_instruction,
    filled,
    find_file,
    of_these,
    read_alpaca_outputs,
    read_official,
)
from rlhf_jax.data.jsonl import SourceError
from rlhf_jax.evaluation import mean_estimate
from rlhf_jax.evaluation.alpaca_eval import is_switched, outcomes, preference, raw_metrics
from rlhf_jax.evaluation.length_controlled import Regulariser, length_controlled
from rlhf_jax.remote import first_token_logps
from rlhf_jax.workflow.chat_benchmarks.base import (
    Answers,
    Judge,
    Judged,
    OfficialJudge,
    beats,
    check_answered,
    files_key,
    user_turn,
)
from rlhf_jax.workflow.stage import fingerprint

BASELINE = "gpt4_1106_preview"
ANSWER_TOKENS = 2048
_OUTPUTS = (f"{BASELINE}/model_outputs.json", "model_outputs.json", f"outputs_{BASELINE}.jsonl")
_PROMPT = ("alpaca_eval_clf.txt",)
_LENGTH = (("df_gamed.csv", "lc/regulariser.csv"), ("instruction_difficulty.csv", "lc/instruction_difficulty.csv"))
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)\n?<\|im_end\|>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class AlpacaEval:
    """folder: of the official files. limit: the first so many instructions alone."""

    folder: Path
    limit: int | None = None
    answer_tokens = ANSWER_TOKENS

    @cached_property
    def key(self) -> str:
        files = [self._found("baseline answers", *_OUTPUTS), self._found("prompt", *_PROMPT),
                 *(self._found("side file", *names) for names in _LENGTH)]
        return fingerprint(["alpaca_eval", files_key(*files), self.limit])

    def _found(self, what: str, *names: str) -> Path | None:
        try:
            return find_file(self.folder, what, *names)
        except SourceError:
            return None

    @cached_property
    def _baseline(self) -> Rows:
        path = find_file(self.folder, "baseline answers", *_OUTPUTS)
        return read_official(path, "instruction", "output")[: self.limit]

    @cached_property
    def questions(self) -> list[Question]:
        return [Question(str(i), str(row.get("dataset", "")), (row["instruction"],))
                for i, row in enumerate(self._baseline)]

    def temperature(self, question: Question) -> float | None:
        del question
        return None

    @cached_property
    def _prompt(self) -> list[dict[str, str]]:
        path = find_file(self.folder, "prompt of the judge", *_PROMPT)
        turns = [{"role": role, "content": text} for role, text in _TURN.findall(path.read_text())]
        if not turns:
            raise SourceError(f"{path} holds no turn between <|im_start|> and <|im_end|>; give the official file")
        return turns

    def check_judge(self, judge: Judge) -> None:
        if isinstance(judge, OfficialJudge):
            _ = self._prompt

    def answers_name(self, model: str) -> str:
        del model
        return "model_outputs.json"

    def answer_rows(self, answers: Answers, model: str) -> Rows:
        return alpaca_output_rows(self.questions, answers, model)

    def read_answers(self, path: Path) -> dict[str, Answer]:
        found = by_instruction(read_alpaca_outputs(path), self.questions)
        texts = of_these(found, self.questions, path, self.limit is not None)
        return {uid: Answer((text,)) for uid, text in texts.items()}

    def annotations_name(self, model: str, judge: str) -> str:
        del model, judge
        return "annotations.json"

    def judge(self, answers: Answers, model: str, judge: Judge) -> Judged:
        ours, theirs = [answers[q.uid].turns[0] for q in self.questions], [row["output"] for row in self._baseline]
        places = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        asked = [(self.questions[i], theirs[i], ours[i]) for i in places]
        preferences: list[float | None] = [1.5] * len(ours)  # what is identical is a draw that nobody is asked about
        raw: list[Any] = [None] * len(ours)
        found, first = self._official(judge, asked) if isinstance(judge, OfficialJudge) else self._scored(judge, asked)
        if asked:
            check_answered([value for value, _ in found], judge, "the first token of a reply is m or M")
        for i, (value, said) in zip(places, found, strict=True):
            preferences[i], raw[i] = value, said
        rows = [{"instruction": q.turns[0], "output_1": b, "generator_1": BASELINE, "dataset": q.category,
                 "output_2": a, "generator_2": model, "annotator": judge.name, "preference": value,
                 "price_per_example": None, "time_per_example": None, "raw_completion": said}
                for q, a, b, value, said in zip(self.questions, ours, theirs, preferences, raw, strict=True)]
        report = {"judged": len(asked), "identical": len(ours) - len(asked),
                  "without_preference": preferences.count(None), "first_position_wins": first}
        return Judged(rows, report)

    def _official(self, judge: OfficialJudge, asked: list[tuple[Question, str, str]]) -> tuple[list[Any], float | None]:
        switched = [is_switched(q.turns[0]) for q, _, _ in asked]
        conversations = []
        for (question, theirs, ours), turned in zip(asked, switched, strict=True):
            first, second = (ours, theirs) if turned else (theirs, ours)
            values = {"instruction": question.turns[0], "output_1": first, "output_2": second}
            conversations.append([{**turn, "content": filled(turn["content"], **values)} for turn in self._prompt])
        replies = judge.ask(conversations, first_token_logps, max_tokens=1, temperature=1.0, logprobs=True,
                            top_logprobs=5)
        found = [(None if reply is None else preference(reply, turned), reply)
                 for reply, turned in zip(replies, switched, strict=True)]
        chosen = [(3 - value if turned else value) < 1.5 for (value, _), turned in zip(found, switched, strict=True)
                  if value is not None]
        return found, float(np.mean(chosen)) if chosen else None

    def _scored(self, judge: Any, asked: list[tuple[Question, str, str]]) -> tuple[list[Any], None]:
        chances = beats(judge, [user_turn(q.turns[0]) for q, _, _ in asked], [ours for _, _, ours in asked],
                        [theirs for _, theirs, _ in asked])
        return [(None if chance is None else 1 + chance, None) for chance in chances], None

    def _annotations(self, path: Path) -> Rows:
        rows = read_official(path, "preference")
        if odd := [i for i, row in enumerate(rows) if not isinstance(row.get("output_2", row.get("output")), str)]:
            raise SourceError(f"{path}, row {odd[0] + 1} holds no answer of the model: neither 'output_2' nor 'output'")
        if all("index" in row for row in rows):
            indices = [str(row["index"]) for row in rows]
            if twice := [index for index, count in Counter(indices).items() if count > 1]:
                raise SourceError(f"{path} holds the index {twice[0]!r} twice")
            found: dict[str, Any] = dict(zip(indices, rows, strict=True))
        else:
            read_official(path, "instruction", "output_2")
            found = by_instruction([(row["instruction"], row) for row in rows], self.questions)
        chosen = of_these(found, self.questions, path, self.limit is not None)
        for question in self.questions:
            said = chosen[question.uid].get("instruction", question.turns[0])
            if said != question.turns[0]:
                raise SourceError(f"{path}: the row of index {question.uid} asks {said[:60]!r}, and the benchmark's "
                                  f"instruction is {question.turns[0][:60]!r}")
        return [*chosen.values()]

    def score(self, annotations: Path, answers: Answers | None, seed: int, model: str | None = None) -> dict[str, Any]:
        del answers, model
        rows = self._annotations(annotations)
        preferences = [row["preference"] for row in rows]
        ours = [len(row["output_2"] if "output_2" in row else row["output"]) for row in rows]
        theirs = [len(row["output"]) for row in self._baseline]
        found: dict[str, Any] = {**raw_metrics(preferences), "avg_length": int(np.mean(ours))}
        won = outcomes(preferences)
        found["win_rate_interval"] = mean_estimate(100 * won[~np.isnan(won)], seed).to_json()
        regulariser = self._regulariser()
        if regulariser is None:
            return {**found, "length_controlled_winrate": None, "missing": [names[0] for names in _LENGTH]}
        difficulty, rest = regulariser
        try:
            fit = length_controlled(preferences, ours, theirs, [difficulty[int(q.uid)] for q in self.questions], rest,
                                    seed)
        except ValueError as error:  # nothing to control where all is lost or won
            return {**found, "length_controlled_winrate": None, "not_controlled": str(error)}
        return {**found, "length_controlled_winrate": fit.win_rate.value, "lc_standard_error": fit.spread,
                "length_controlled_interval": fit.win_rate.to_json(),
                "weights": {"length": fit.w_length, "difficulty": fit.w_difficulty, "bias": fit.w_bias}}

    def _regulariser(self) -> tuple[dict[int, float], Regulariser] | None:
        """Difficulty by index, and the baseline against itself; None where the two side files are not there."""
        gamed, hard = (self._found("side file", *names) for names in _LENGTH)
        if gamed is None or hard is None:
            return None
        difficulty = {int(row.get("index", i)): float(row["instruction_difficulty"])
                      for i, row in enumerate(read_official(hard, "instruction_difficulty"))}
        rows = read_official(gamed, "index", "preference", "std_delta_len")
        columns = [[float(row["std_delta_len"]) for row in rows], [difficulty[int(row["index"])] for row in rows],
                   [float(row["preference"]) for row in rows]]
        return difficulty, Regulariser(*map(np.array, columns))
