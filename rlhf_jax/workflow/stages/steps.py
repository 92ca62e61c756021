"""Labelling the steps of solutions: from each step the policy goes on several times, and the answers are checked."""

from __future__ import annotations

import dataclasses
import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config.sampling import SamplingConfig, rounded_up
from rlhf_jax.config.steps import StepLabels
from rlhf_jax.data.answers import find_rule, group_reference, is_right
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.jsonl import read_groups, read_jsonl, write_jsonl_atomic
from rlhf_jax.data.prompt_text import plain_text
from rlhf_jax.data.steps import LABELS, MINUS, PLUS, STEPS, split_steps
from rlhf_jax.models import Params, cast
from rlhf_jax.parallel import Notice, gather
from rlhf_jax.sampling import Sampler
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GroupSource, Preview
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.sample import SampleStage, check_room
from rlhf_jax.workflow.stages.shards import shard_name, shards_here


def rows_name(number: int) -> str:
    """File of a shard's labelled rows."""
    return f"steps-{number:05d}.jsonl"


class Prefix(NamedTuple):
    """A solution up to the end of a step, as it was sampled. name: of the prompt that it is, the same for the same
    tokens. text: of the solution so far."""

    name: str
    ids: np.ndarray
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepsStage(Stage):
    """Solutions by `SampleStage` in the same folder, then a file of labelled rows for each of its shards.

    What is sampled depends on the problem and the tokens so far alone, so that a step which several solutions share is
    rolled out once, and a killed run makes the rest to the same bytes.

    Attributes:
      policy: who solves and completes.
      prompts: groups without responses, with the references among their columns.
      sampling, rollouts: of solutions, and of completions.
      answers: name of the answer rule. answer_column: of the references.
    """

    policy: Checkpoint
    prompts: GroupSource
    sampling: SamplingConfig
    rollouts: SamplingConfig
    labels: StepLabels
    step_separator: str
    answers: str
    answer_column: str
    dtype: str
    shard_size: int

    def _checked(self) -> tuple[Sequence[PromptGroup], SamplingConfig]:
        """The problems, each with a reference, and how completions are sampled: of room for every solution so far."""
        prompts, rule = self.prompts.read(), find_rule(self.answers)
        for prompt in prompts:
            group_reference(rule, prompt, self.answer_column)
        longest = max(len(prompt.prompt_ids) for prompt in prompts) + self.sampling.max_new_tokens
        if longest + self.sampling.max_new_tokens > self.policy.config.max_position:
            raise ValueError(f"the longest problem with a solution and a completion of max_new_tokens = "
                             f"{self.sampling.max_new_tokens} each takes {longest + self.sampling.max_new_tokens} "
                             f"tokens, and the model has {self.policy.config.max_position} positions; lower "
                             "max_new_tokens or max_prompt_length")
        return prompts, dataclasses.replace(self.rollouts, prompt_length=rounded_up(longest))

    def preview(self, context: Context) -> Preview:
        prompts, rollouts = self._checked()
        for sampling in (self.sampling, rollouts):
            check_room(context, self.policy, prompts, sampling, self.dtype)
        return Preview(self.policy, self.prompts, prompts)

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        prompts, rollouts = self._checked()
        sampled = SampleStage(policy=self.policy, prompts=self.prompts, sampling=self.sampling, dtype=self.dtype,
                              shard_size=self.shard_size).run(folder, context)
        sampler = context.sampler(self.policy, rollouts, self.dtype)
        params = cast(context.handed_over(self.policy, rollouts, self.dtype).params, jnp.dtype(self.dtype))
        count = -(-len(prompts) // self.shard_size)
        for done, number in enumerate(shards_here(count, Notice(folder)), start=1):
            path = folder / rows_name(number)
            if not path.is_file():
                write_jsonl_atomic(path, self._rows(read_groups(folder / shard_name(number)), sampler, params))
            context.progress(min(done * jax.process_count(), count), count)
        gather(None)  # the others may still be at their shards
        return {**sampled, **label_counts([folder / rows_name(number) for number in range(count)])}

    def _rows(self, groups: Sequence[PromptGroup], sampler: Sampler, params: Params) -> list[dict[str, Any]]:
        """A row per solution that has a step."""
        prefixes = [[self._prefixes(group, response) for response in group.responses] for group in groups]
        asked: dict[str, PromptGroup] = {}
        for group, of_group in zip(groups, prefixes, strict=True):
            for prefix in (prefix for of_response in of_group for prefix in of_response):
                ids = np.concatenate([group.prompt_ids, prefix.ids]).astype(np.int32)
                asked.setdefault(prefix.name, PromptGroup(prefix.name, ids, ()))
        questions = list(asked.values())
        found = {questions[i].prompt_id: group for i, group in sampler.generate(params, questions)} if asked else {}
        rows = []
        for group, of_group in zip(groups, prefixes, strict=True):
            for place, (response, some) in enumerate(zip(group.responses, of_group, strict=True)):
                row = self._row(group, response, [(prefix, found[prefix.name]) for prefix in some])
                rows += [] if row is None else [{"prompt_id": f"{group.prompt_id}/{place}", **row}]
        return rows

    def _prefixes(self, group: PromptGroup, response: Response) -> list[Prefix]:
        """The solution up to the end of each step but the last: the sampled tokens that lie before the next step."""
        text, decode, prompt = plain_text(response.text), self.policy.decode_text, group.prompt_ids.tolist()

        def so_far(count: int) -> str:
            return decode(prompt, response.ids[:count].tolist())

        out, end = [], 0
        pieces = text.split(self.step_separator)
        for piece in pieces[:-1]:
            end += len(piece) + len(self.step_separator)
            if not piece.strip():
                continue
            count = bisect_right(range(len(response.ids)), end, key=lambda n: len(so_far(n))) - 1
            while count and not text.startswith(so_far(count)):  # within a letter of several tokens
                count -= 1
            ids = response.ids[:count]
            digest = hashlib.sha256(ids.tobytes()).hexdigest()[:16]
            out.append(Prefix(f"{group.prompt_id}/{digest}", ids, so_far(count)))
        return out[: max(len(split_steps(text, self.step_separator)) - 1, 0)]

    def _row(self, group: PromptGroup, response: Response, rolled: Sequence[tuple[Prefix, PromptGroup]]
             ) -> dict[str, Any] | None:
        rule, text = find_rule(self.answers), plain_text(response.text)
        steps = split_steps(text, self.step_separator)
        if not steps:
            return None
        reference = group_reference(rule, group, self.answer_column)
        right = is_right(rule, reference, text)
        values = [float(np.mean([is_right(rule, reference, prefix.text + plain_text(more.text))
                                 for more in completed.responses])) for prefix, completed in rolled]
        values.append(float(right))
        labels: list[Any] = values if self.labels == "soft" else [PLUS if value > 0 else MINUS for value in values]
        return {**group.extra, "prompt": group.prompt, STEPS: steps, LABELS: labels, "values": values, "label": right,
                "finish_reason": response.finish_reason}


def label_counts(paths: Sequence[Path]) -> dict[str, Any]:
    """What the rows of some files say: solutions, steps, and the shares of them that are right."""
    solutions = steps = right = any_right = 0
    worth = 0.0
    for path in paths:
        for row in read_jsonl(path):
            solutions, right = solutions + 1, right + row["label"]
            steps, worth = steps + len(row["values"]), worth + sum(row["values"])
            any_right += sum(value > 0 for value in row["values"])
    return {"solutions": solutions, "steps_labelled": steps, "solutions_right": right / max(solutions, 1),
            "steps_right": any_right / max(steps, 1), "mean_value": worth / max(steps, 1)}
