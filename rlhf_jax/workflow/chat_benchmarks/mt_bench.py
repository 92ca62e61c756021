"""MT-Bench: 80 conversations of two turns, each answer rated from 1 to 10."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_jax.data.benchmark_files import (
    Answer,
    Question,
    Rows,
    check_same,
    filled,
    find_file,
    mt_answer_rows,
    of_these,
    read_mt_answers,
    read_mt_questions,
    read_official,
)
from rlhf_jax.data.jsonl import SourceError
from rlhf_jax.evaluation.mt_bench import NO_RATING, TEMPERATURES, WITH_REFERENCE, judge_prompt, rating, summary
from rlhf_jax.remote import chat_text
from rlhf_jax.workflow.chat_benchmarks.base import (
    Answers,
    Judge,
    Judged,
    OfficialJudge,
    check_answered,
    file_name,
    files_key,
)
from rlhf_jax.workflow.stage import fingerprint

ANSWER_TOKENS = 1024
JUDGEMENT_TOKENS = 2048
_REFERENCES = ("reference_answer/gpt-4.jsonl", "reference_answer_gpt-4.jsonl")


@dataclasses.dataclass(frozen=True)
class MtBench:
    """folder: of the official files. limit: the first so many questions alone."""

    folder: Path
    limit: int | None = None
    answer_tokens = ANSWER_TOKENS

    @cached_property
    def key(self) -> str:
        names = [("questions", "question.jsonl"), ("reference answers", *_REFERENCES),
                 ("prompts of the judge", "judge_prompts.jsonl")]
        return fingerprint(["mt_bench", files_key(*(find_file(self.folder, *name) for name in names)), self.limit])

    @cached_property
    def questions(self) -> list[Question]:
        return read_mt_questions(find_file(self.folder, "questions", "question.jsonl"))[: self.limit]

    def temperature(self, question: Question) -> float | None:
        return TEMPERATURES.get(question.category, 0.7)

    @cached_property
    def _prompts(self) -> dict[str, Any]:
        path = find_file(self.folder, "prompts of the judge", "judge_prompts.jsonl")
        return {row["name"]: row for row in read_official(path, "name", "system_prompt", "prompt_template")}

    @cached_property
    def _references(self) -> dict[str, Answer]:
        return read_mt_answers(find_file(self.folder, "reference answers", *_REFERENCES))

    def check_judge(self, judge: Judge) -> None:
        if not isinstance(judge, OfficialJudge):
            raise ValueError("mt_bench rates single answers from 1 to 10, and a scorer's numbers are no such ratings; "
                             "set judge.kind: official")
        needed = {judge_prompt(q.category, turn) for q in self.questions for turn in (1, 2)}
        if missing := sorted(needed - {*self._prompts}):
            raise SourceError(f"judge_prompts.jsonl in {self.folder} has no prompt {missing[0]!r}")
        for question in self.questions:
            if question.category in WITH_REFERENCE and question.uid not in self._references:
                raise SourceError(f"the reference answers in {self.folder} lack question {question.uid}")

    def answers_name(self, model: str) -> str:
        return f"model_answer/{file_name(model)}.jsonl"

    def answer_rows(self, answers: Answers, model: str) -> Rows:
        return mt_answer_rows(self.questions, answers, model)

    def read_answers(self, path: Path) -> dict[str, Answer]:
        return of_these(read_mt_answers(path), self.questions, path, self.limit is not None)

    def annotations_name(self, model: str, judge: str) -> str:
        del model
        return f"model_judgment/{file_name(judge)}_single.jsonl"

    def judge(self, answers: Answers, model: str, judge: Judge) -> Judged:
        self.check_judge(judge)
        assert isinstance(judge, OfficialJudge)
        asked = [(question, turn) for turn in (1, 2) for question in self.questions]
        texts = [self._text(question, answers[question.uid], turn) for question, turn in asked]
        systems = [self._prompts[judge_prompt(q.category, turn)]["system_prompt"] for q, turn in asked]
        replies = judge.ask([[{"role": "system", "content": system}, {"role": "user", "content": text}]
                             for system, text in zip(systems, texts, strict=True)], chat_text, temperature=0.0,
                            max_tokens=judge.max_tokens or JUDGEMENT_TOKENS)
        scores = [NO_RATING if reply is None else rating(reply) for reply in replies]
        check_answered([None if score == NO_RATING else score for score in scores], judge,
                       "a reply holds a rating like [[5]]", [reply for reply in replies if reply])
        rows = [{"question_id": int(q.uid) if q.uid.isdecimal() else q.uid, "model": model,
                 "judge": [judge.name, judge_prompt(q.category, turn)], "user_prompt": text, "judgment": reply or "",
                 "score": score, "turn": turn, "tstamp": 0.0}
                for (q, turn), text, reply, score in zip(asked, texts, replies, scores, strict=True)]
        return Judged(rows, {"judged": len(rows), "without_rating": scores.count(NO_RATING)})

    def _text(self, question: Question, answer: Answer, turn: int) -> str:
        """The user's turn that asks for a rating."""
        values = {"question": question.turns[0], "answer": answer.turns[0], "question_1": question.turns[0],
                  "question_2": question.turns[-1], "answer_1": answer.turns[0], "answer_2": answer.turns[-1]}
        if question.category in WITH_REFERENCE:
            first, second = self._references[question.uid].turns
            values |= {"ref_answer_1": first, "ref_answer_2": second}
        return filled(self._prompts[judge_prompt(question.category, turn)]["prompt_template"], **values)

    def score(self, annotations: Path, answers: Answers | None, seed: int, model: str | None = None) -> dict[str, Any]:
        del answers
        rows = [{**row, "question_id": str(row["question_id"])}
                for row in read_official(annotations, "question_id", "turn", "score")]
        rows = _of_one_model(rows, model, annotations)
        known = {q.uid for q in self.questions}
        rows = [row for row in rows if row["question_id"] in known or self.limit is None]
        for turn in (1, 2):
            check_same([row["question_id"] for row in rows if row["turn"] == turn], self.questions,
                       f"{annotations}, turn {turn},")
        found = summary(rows, {q.uid: q.category for q in self.questions}, seed)
        return {**{name: estimate.to_json() for name, estimate in found.items()},
                "without_rating": sum(row["score"] == NO_RATING for row in rows)}


def _of_one_model(rows: Sequence[dict[str, Any]], model: str | None, path: Path) -> list[dict[str, Any]]:
    """The judgements of one model, of a file that may hold those of several, as FastChat writes it."""
    models = sorted({str(row["model"]) for row in rows if "model" in row})
    if model is not None and model not in models:
        raise SourceError(f"{path} holds no judgements of label = {model!r}; it has {', '.join(models) or 'no models'}")
    if model is None and len(models) > 1:
        raise SourceError(f"{path} holds judgements of {len(models)} models; say whose are scored with label: "
                          f"{', '.join(models)}")
    return [*rows] if model is None else [row for row in rows if row.get("model") == model]
