"""The mesh of a command: as its config says, or chosen for the devices, the model and the batch (`mesh: auto`).

A run and its plan choose by the same numbers: the packed rows of the smallest batch that is trained on, by the lengths
that a plan assumes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax

from rlhf_jax.config.commands import RewardCommand, SftCommand
from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.mesh import MeshChoice, MeshConfig
from rlhf_jax.config.plan import Assumptions
from rlhf_jax.config.preference import DpoCommand
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.config.self_training import SelfTrainingCommand
from rlhf_jax.config.training import RewardOptions
from rlhf_jax.data.packing import row_length_for
from rlhf_jax.models import count_params
from rlhf_jax.parallel import Choice, Need, choose_mesh, room_here
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.kinds import trainable_kind
from rlhf_jax.workflow.stages.train import Trained

DEFAULT_LENGTH = 2048
"""Tokens of the longest example where a config sets no limit."""


class Trains(NamedTuple):
    """A training of a command, as far as its rows go.

    name: sft, reward, dpo, raft, or the kind of a reward model that reads single responses. render: the limits of its
    examples. responses: of a group. quoted: answers that stand in a group's prompt; what is answered then is short.
    """

    name: str
    options: Trained
    render: RenderOptions
    responses: int = 1
    quoted: int = 0

    def row_length(self, positions: int) -> int:
        """Tokens of a row for a model of so many positions: as the config says, or what the longest example needs."""
        return self.options.train.row_length or row_length_for(
            longest_group(self.render, positions, self.responses))

    def rows(self, positions: int, assume: Assumptions) -> int:
        """Packed rows of a batch."""
        each = groups_per_row(quoting(assume, self.quoted), self.row_length(positions), self.responses)
        return math.ceil(self.options.train.train_batch_size / each)


def trainings(command: Any, positions: int) -> list[Trains]:
    """The trainings of a command in the order of a run, each program once; none where nothing is trained.

    positions: of the model.
    """
    match command:
        case ExperimentConfig():
            return _of_a_run(command, positions)
        case SftCommand():
            return [Trains("sft", command.options, command.data.render)]
        case RewardCommand() | SelfTrainingCommand():
            return [_of_a_reward(command.options, command.data.render)]
        case DpoCommand():
            return [Trains("dpo", command.options, command.data.render, command.options.responses)]
    return []


def _of_a_run(c: ExperimentConfig, positions: int) -> list[Trains]:
    found = []
    if c.sft is not None:
        found.append(Trains("sft", c.sft.train, c.sft.data.render))
    if c.reward is not None:
        found.append(_of_a_reward(c.reward.train, c.reward.data.render))
    prompt = c.prompts.render.max_prompt_length or c.sampling.prompt_length or c.sampling.max_new_tokens
    limits = dataclasses.replace(c.prompts.render, max_length=min(prompt + c.sampling.max_new_tokens, positions))
    if c.loop.method == "dpo" or "offline_dpo" in c.baselines:
        found.append(Trains("dpo", c.dpo, limits, c.dpo.responses))
    if c.reads_raft:
        found.append(Trains("raft", c.raft, limits))
    return found


def _of_a_reward(options: RewardOptions, render: RenderOptions) -> Trains:
    kind = trainable_kind(options)
    name = "reward" if kind.responses > 1 else options.kind
    return Trains(name, options, render, kind.responses, kind.quoted)


def quoting(assume: Assumptions, quoted: int, response_tokens: int | None = None) -> Assumptions:
    """The lengths of rows whose prompt holds so many answers; what is answered then takes a letter and a stop token."""
    if not quoted:
        return assume
    return dataclasses.replace(assume, prompt_tokens=assume.prompt_tokens + quoted * assume.response_tokens,
                               response_tokens=response_tokens or 2)


def groups_per_row(assume: Assumptions, tokens: int, responses: int) -> float:
    """Groups of average length that packing puts in a row of so many tokens."""
    if assume.groups_per_row is not None:
        return assume.groups_per_row
    return max(1.0, tokens // assume.group_tokens(responses))


def longest(render: RenderOptions | None, positions: int) -> int:
    """Tokens of the longest prompt and response together, of a model of so many positions."""
    return min((render.max_length if render else None) or DEFAULT_LENGTH, positions)


def longest_group(render: RenderOptions | None, positions: int, responses: int) -> int:
    """Tokens of the longest group: one prompt and its responses, each within `max_length` together with it."""
    each = longest(render, positions)
    prompt = min((render.max_prompt_length if render else None) or each // 2, each - 1)
    return prompt + responses * (each - prompt)


def resolved(mesh: MeshChoice | None, command: Any) -> Choice:
    """The sizes a command's mesh has on the devices that are here, and why if they were chosen."""
    if isinstance(mesh, MeshConfig) or mesh is None:
        return Choice(mesh or MeshConfig(), "")
    return choose_mesh(room_here(jax.devices()), need_of(command))


def need_of(command: Any) -> Need:
    """What a command's model and batches ask of a mesh."""
    scorer = getattr(getattr(command, "scorer", None), "model", None)
    name = getattr(command, "model_name_or_path", None) or getattr(scorer, "model_name_or_path", None)
    if name is None:
        scratch = getattr(command, "scratch", None)
        return Need(0, _smallest(command, DEFAULT_LENGTH if scratch is None else scratch.max_position))  # small
    config = Checkpoint.find(name).config
    return Need(count_params(config), _smallest(command, config.max_position), config.heads)


def _smallest(command: Any, positions: int) -> int | None:
    return min((one.rows(positions, Assumptions()) for one in trainings(command, positions)), default=None)
