"""`rlhf-jax benchmark`: generate, judge and score as stages, each of which the official tool can replace."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.config.benchmark import BenchmarkCommand, OfficialJudging
from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.sampling import SamplingConfig, rounded_up
from rlhf_jax.data.benchmark_files import Question
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import Message, PromptGroup
from rlhf_jax.scoring import answer_text
from rlhf_jax.workflow.chat_benchmarks import CHAT_BENCHMARKS, ChatBenchmark, Judge, OfficialJudge
from rlhf_jax.workflow.chat_benchmarks.base import user_turn
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GivenGroups, Preview
from rlhf_jax.workflow.iterate import shards_of
from rlhf_jax.workflow.kinds import open_scorer
from rlhf_jax.workflow.policies import EVALUATION_SHARD
from rlhf_jax.workflow.remote import open_client, with_answers_in
from rlhf_jax.workflow.stage import fingerprint
from rlhf_jax.workflow.stages.chat_benchmark import AnswersStage, BenchmarkScoreStage, JudgementStage, OfficialFile
from rlhf_jax.workflow.stages.sample import SampleStage
from rlhf_jax.workflow.stages.shards import ShardFolder

TEMPERATURE = 0.7
"""At which questions are answered whose benchmark says nothing."""


def run_benchmark(command: BenchmarkCommand, context: Context) -> Mapping[str, Any]:
    """The benchmark's figures. Missing files, or those of another benchmark, are found before anything is asked."""
    benchmark, policy, judge = opened(command, context)
    label, outputs, annotations = model_label(command), given(command.outputs), given(command.annotations)
    if policy is not None:
        outputs = generated(command, context, benchmark, policy, label)
    elif outputs is not None:
        benchmark.read_answers(outputs.path)
    if judge is not None:
        assert outputs is not None
        found = context.do("judge", JudgementStage(benchmark=benchmark, outputs=outputs, model=label, judge=judge,
                                                   accept_missing=command.accept_missing))
        annotations = OfficialFile(found.folder / benchmark.annotations_name(label, judge.name), found.key)
    assert annotations is not None
    return context.do("score", BenchmarkScoreStage(benchmark=benchmark, annotations=annotations, outputs=outputs,
                                                   model=label, seed=command.seed,
                                                   chosen=None if command.annotations is None else command.label)
                      ).report


def opened(command: BenchmarkCommand, context: Context) -> tuple[ChatBenchmark, Checkpoint | None, Judge | None]:
    """The benchmark, the policy that answers and the judge, held against each other; no weights are loaded yet."""
    benchmark, policy = CHAT_BENCHMARKS[command.name](command), None
    if command.model_name_or_path is not None:
        policy = Checkpoint.find(command.model_name_or_path, command.chat_template_path).as_policy()
    judge = None if command.judge is None else open_judge(command.judge, context)
    _ = benchmark.questions
    if judge is not None:
        benchmark.check_judge(judge)
    return benchmark, policy, judge


def preview_benchmark(command: BenchmarkCommand, context: Context) -> Preview:
    """What a dry run shows."""
    benchmark, policy, _ = opened(command, context)
    funnel = Funnel(read=len(benchmark.questions))
    if policy is None:
        return Preview(funnel=funnel)
    return Preview(policy, groups=asked(policy, benchmark.questions[:3], 0, {}), funnel=funnel)


def open_judge(options: Any, context: Context) -> Judge:
    """A served model that is asked as the benchmark says, or a scorer."""
    if not isinstance(options, OfficialJudging):
        return open_scorer(options, context.local_mesh, options.kind, context.run.folder)
    server = with_answers_in(context.run.folder, options).server
    key = fingerprint({"asked": server.asked, "max_tokens": options.max_tokens})
    return OfficialJudge(open_client(server), server.model, options.max_tokens, key)


def given(path: str | None) -> OfficialFile | None:
    return None if path is None else OfficialFile(Path(path).expanduser())


def model_label(command: BenchmarkCommand) -> str:
    """What the model is called in the official files."""
    if command.label is None and command.outputs is not None:
        return re.sub(r"\.jsonl?(\.gz)?$", "", Path(command.outputs).name)
    return command.label or Path(command.model_name_or_path or "model").name


def generated(command: BenchmarkCommand, context: Context, benchmark: ChatBenchmark, policy: Checkpoint, label: str
              ) -> OfficialFile:
    """The policy's answers: the turns one after the other, the questions of one temperature together."""
    turns: list[tuple[ShardFolder, ...]] = []
    said: dict[str, list[str]] = {}
    for turn in range(max(len(question.turns) for question in benchmark.questions)):
        questions = [question for question in benchmark.questions if len(question.turns) > turn]
        groups = asked(policy, questions, turn, said)
        longest = rounded_up(max(len(group.prompt_ids) for group in groups))  # one shape for all temperatures
        by_temperature: dict[float, list[PromptGroup]] = {}
        for question, group in zip(questions, groups, strict=True):
            by_temperature.setdefault(temperature(command, benchmark, question), []).append(group)
        folders = []
        for value, some in by_temperature.items():
            stage = SampleStage(policy=policy, prompts=GivenGroups(some), dtype=command.dtype,
                                sampling=sampling(command, benchmark, value, longest), shard_size=EVALUATION_SHARD)
            folders.append(shards_of(context.do(f"generate/turn-{turn + 1}/temperature-{value:g}", stage)))
        for group in (group for folder in folders for group in folder.groups()):
            said.setdefault(group.extra["uid"], []).append(answer_text(group.responses[0].text))
        turns.append(tuple(folders))
    found = context.do("answers", AnswersStage(benchmark=benchmark, turns=tuple(turns), model=label))
    return OfficialFile(found.folder / benchmark.answers_name(label), found.key)


def temperature(command: BenchmarkCommand, benchmark: ChatBenchmark, question: Question) -> float:
    own = benchmark.temperature(question)
    if own is not None:
        return own
    return TEMPERATURE if command.answering.temperature is None else command.answering.temperature


def sampling(command: BenchmarkCommand, benchmark: ChatBenchmark, value: float, longest: int) -> SamplingConfig:
    """One sample a question at this temperature, of questions of up to `longest` tokens."""
    chosen = command.answering
    return SamplingConfig(num_generations=1, temperature=value, top_p=chosen.top_p, slots=chosen.slots,
                          max_new_tokens=chosen.max_new_tokens or benchmark.answer_tokens, block=chosen.block,
                          prompt_length=longest, cache_dtype=chosen.cache_dtype, seed=chosen.seed)


def asked(policy: Checkpoint, questions: Sequence[Question], turn: int, said: Mapping[str, Sequence[str]]
          ) -> list[PromptGroup]:
    """A turn of some questions in the policy's ids, behind what was said before."""
    renderer, groups = policy.renderer(RenderOptions(max_length=None)), []
    for question in questions:
        messages: list[Message] = []
        for text, answer in zip(question.turns[:turn], said.get(question.uid, ())[:turn], strict=True):
            messages += [*user_turn(text), {"role": "assistant", "content": answer}]
        messages += user_turn(question.turns[turn])
        groups.append(PromptGroup(f"{question.uid}/{turn + 1}", renderer.render_prompt(messages), (), messages,
                                  extra={"uid": question.uid}))
    return groups
