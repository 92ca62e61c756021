"""Arena-Hard v0.1 and v2: two games a question against a fixed baseline, with and without style control."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from rlhf_jax.data.benchmark_files import (
    Answer,
    Question,
    Rows,
    arena_answer_rows,
    filled,
    find_file,
    of_these,
    read_arena_answers,
    read_arena_labels,
    read_arena_questions,
)
from rlhf_jax.data.jsonl import SourceError
from rlhf_jax.evaluation.arena_hard import Battle, Version, battles, style_controlled, verdict, win_probability
from rlhf_jax.evaluation.style import markdown_counts, style_of
from rlhf_jax.remote import chat_text
from rlhf_jax.workflow.chat_benchmarks.base import (
    Answers,
    Judge,
    Judged,
    OfficialJudge,
    beats,
    check_answered,
    file_name,
    files_key,
    user_turn,
)
from rlhf_jax.workflow.stage import fingerprint

BASELINES = {"v0.1": {"arena-hard-v0.1": "gpt-4-0314"},
             "v2.0": {"hard_prompt": "o3-mini-2025-01-31", "creative_writing": "gemini-2.0-flash-001"}}
"""By version and category."""
JUDGEMENT_TOKENS = {"v0.1": 4096, "v2.0": 16000}
ANSWER_TOKENS = 4096
CONTINUE = "continue your judgment and finish by outputting a final verdict label"
"""What the first version says to a judge that named no label."""
Game = Literal["baseline first", "model first"]


@dataclasses.dataclass(frozen=True)
class ArenaHard:
    """folder: of the official files. tokens: counts those of a text for style control; None for what the files say.

    tokens_key: stands for `tokens`. limit: the first so many questions alone.
    """

    folder: Path
    version: Version
    tokens: Callable[[str], int] | None = None
    tokens_key: str | None = None
    limit: int | None = None
    answer_tokens = ANSWER_TOKENS

    @cached_property
    def key(self) -> str:
        prompt = self.folder / "judge_config.yaml"
        files = [self._questions_file, *map(self._baseline_file, self._baselines), prompt if prompt.is_file() else None]
        return fingerprint(["arena_hard", self.version, files_key(*files), self.tokens_key, self.limit])

    @property
    def _questions_file(self) -> Path:
        return find_file(self.folder, "questions", "question.jsonl", f"{self.version}_question.jsonl")

    @cached_property
    def questions(self) -> list[Question]:
        found = read_arena_questions(self._questions_file)[: self.limit]
        known = BASELINES[self.version]
        if odd := sorted({q.category for q in found} - {*known}):
            raise SourceError(f"{self._questions_file} has the category {odd[0]!r}; version {self.version} has "
                              f"{', '.join(known)}. Set version to that of the file")
        return found

    @property
    def _baselines(self) -> list[str]:
        return [BASELINES[self.version][category] for category in dict.fromkeys(q.category for q in self.questions)]

    def _baseline_file(self, name: str) -> Path:
        return find_file(self.folder, f"answers of the baseline {name}", f"model_answer/{name}.jsonl", f"{name}.jsonl",
                         f"{self.version}_answer_{name}.jsonl")

    @cached_property
    def _baseline(self) -> dict[str, Answer]:
        by_name = {name: read_arena_answers(self._baseline_file(name)) for name in self._baselines}
        found = {}
        for question in self.questions:
            name = BASELINES[self.version][question.category]
            if question.uid not in by_name[name]:
                raise SourceError(f"{self._baseline_file(name)} has no answer to question {question.uid!r}")
            found[question.uid] = by_name[name][question.uid]
        return found

    def temperature(self, question: Question) -> float | None:
        del question
        return None

    @cached_property
    def _prompt(self) -> tuple[Mapping[str, str], str]:
        """The system prompt of each category, and the template of the user's turn."""
        path = find_file(self.folder, "prompt of the judge", "judge_config.yaml")
        content = yaml.safe_load(path.read_text())
        try:
            system, template = content["system_prompt"], content["prompt_template"]
            template = template if isinstance(template, str) else template[0]
            by_category = {category: system if isinstance(system, str) else system[category]
                           for category in BASELINES[self.version]}
        except (KeyError, TypeError, IndexError) as error:
            raise SourceError(f"{path} lacks {error}; it holds system_prompt (a text, or one for each category) and "
                              "prompt_template") from error
        return by_category, template

    def check_judge(self, judge: Judge) -> None:
        _ = self._baseline
        if isinstance(judge, OfficialJudge):
            _ = self._prompt

    def answers_name(self, model: str) -> str:
        return f"model_answer/{file_name(model)}.jsonl"

    def answer_rows(self, answers: Answers, model: str) -> Rows:
        styled = {uid: Answer(a.turns, self._metadata(a)) for uid, a in answers.items()}
        return arena_answer_rows(self.questions, styled, model)

    def _metadata(self, answer: Answer) -> dict[str, Any]:
        counted = {"token_len": self.tokens(answer.turns[0])} if self.tokens else {}
        return {**answer.metadata, **counted, **markdown_counts(answer.turns[0])}

    def read_answers(self, path: Path) -> dict[str, Answer]:
        return of_these(read_arena_answers(path), self.questions, path, self.limit is not None)

    def annotations_name(self, model: str, judge: str) -> str:
        return f"model_judgment/{file_name(judge)}/{file_name(model)}.jsonl"

    def judge(self, answers: Answers, model: str, judge: Judge) -> Judged:
        games: list[tuple[Question, str, str]] = []
        for question in self.questions:
            ours, theirs = answers[question.uid].turns[0], self._baseline[question.uid].turns[0]
            games += [(question, theirs, ours), (question, ours, theirs)]
        found = self._official(judge, games) if isinstance(judge, OfficialJudge) else _scored(judge, games)
        labels = [label for label, _ in found]
        check_answered(labels, judge, "a reply ends in a label like [[A>B]]", [said for _, said in found if said])
        rows = [{"uid": q.uid, "category": q.category, "judge": judge.name, "model": model,
                 "baseline": BASELINES[self.version][q.category],
                 "games": [{"score": label, "judgment": {"answer": said}} for label, said in found[2 * i : 2 * i + 2]]}
                for i, q in enumerate(self.questions)]
        first = [label for label in labels if label is not None and label not in ("A=B", "B=A")]
        return Judged(rows, {"games": len(games), "without_verdict": labels.count(None),
                             "first_position_wins": float(np.mean([_first_wins(label) for label in first]))
                             if first else None})

    def _official(self, judge: OfficialJudge, games: Sequence[tuple[Question, str, str]]
                  ) -> list[tuple[str | None, str]]:
        system, template = self._prompt
        conversations = []
        for question, first, second in games:
            text = filled(template, question_1=question.turns[0], answer_1=first, answer_2=second,
                          QUESTION=question.turns[0], ANSWER_A=first, ANSWER_B=second)
            conversations.append([{"role": "system", "content": system[question.category]}, *user_turn(text)])
        settings = {"temperature": 0.0, "max_tokens": judge.max_tokens or JUDGEMENT_TOKENS[self.version]}
        replies = [reply or "" for reply in judge.ask(conversations, chat_text, **settings)]
        open_ended = [i for i, reply in enumerate(replies) if reply and verdict(reply, self.version).unfinished]
        if self.version == "v0.1" and open_ended:
            again = [[*conversations[i], {"role": "assistant", "content": replies[i]}, *user_turn(CONTINUE)]
                     for i in open_ended]
            for i, more in zip(open_ended, judge.ask(again, chat_text, **settings), strict=True):
                replies[i] += f"\n{more or ''}"
        return [(verdict(reply, self.version).label, reply) for reply in replies]

    def score(self, annotations: Path, answers: Answers | None, seed: int, model: str | None = None) -> dict[str, Any]:
        del model
        found = {}
        labels = of_these(read_arena_labels(annotations), self.questions, annotations, self.limit is not None)
        styles = None if answers is None else self._styles(answers)
        for category in dict.fromkeys(q.category for q in self.questions):
            some = {q.uid: labels[q.uid] for q in self.questions if q.category == category}
            played = battles(some, self.version)
            found[category] = {
                "score": win_probability(played, seed).to_json(), "baseline": BASELINES[self.version][category],
                "games_without_verdict": sum(label is None for pair in some.values() for label in pair),
                **self._controlled(played, styles, seed)}
        return {"version": self.version, "categories": found, "style_tokens": self.tokens_key or "of the files"}

    def _controlled(self, played: Sequence[Battle], styles: tuple[dict[str, Any], dict[str, Any]] | None, seed: int
                    ) -> dict[str, Any]:
        """The score with style control; why there is none where all games are lost or won."""
        if styles is None:
            return {"style_controlled": None}
        try:
            return {"style_controlled": style_controlled(played, *styles, self.version, seed).to_json()}
        except ValueError as error:
            return {"style_controlled": None, "not_controlled": str(error)}

    def _styles(self, answers: Answers) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """uid -> tokens, headers, lists, bold texts, of model and baseline; None where no tokens are counted."""
        sides = [{q.uid: self._metadata(side[q.uid]) for q in self.questions} for side in (answers, self._baseline)]
        if not all("token_len" in metadata for side in sides for metadata in side.values()):
            return None
        ours, theirs = ({uid: style_of(metadata) for uid, metadata in side.items()} for side in sides)
        return ours, theirs


def _first_wins(label: str) -> bool:
    return label.startswith(("A>", "B<"))


def _scored(judge: Any, games: Sequence[tuple[Question, str, str]]) -> list[tuple[str | None, str]]:
    """Labels from a scorer's probability that the first is better; nothing is a strong verdict."""
    chances = beats(judge, [user_turn(q.turns[0]) for q, _, _ in games], [first for _, first, _ in games],
                    [second for _, _, second in games])
    labels = [None if p is None else "A=B" if p == 0.5 else "A>B" if p > 0.5 else "B>A" for p in chances]
    return [(label, "" if p is None else f"P(A better) = {p:.6f}") for label, p in zip(labels, chances, strict=True)]
