"""Options of experiment trackers."""

from __future__ import annotations

import dataclasses

from rlhf_jax.fields import Options

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
"""Tracker -> the package it needs."""


@dataclasses.dataclass(frozen=True)
class TrackerOptions(Options):
    """Experiment trackers. They are no part of what names a stage: to turn one on redoes nothing.

    Attributes:
      report_to: none, or one or several of tensorboard, wandb and trackio; they get the rows of trainer_state.json.
    """

    report_to: str | tuple[str, ...] = "none"

    def conflicts(self) -> None:
        names = self._given
        for name in names:
            if name not in PACKAGES and name != "none":
                raise ValueError(f"report_to = {name!r}; choose none, or one or several of {', '.join(PACKAGES)}")
        if len(set(names)) < len(names) or ("none" in names and len(names) > 1):
            raise ValueError(f"report_to = {list(names)} contradicts itself; give each tracker once, or none alone")

    @property
    def _given(self) -> tuple[str, ...]:
        return tuple(self.report_to) if isinstance(self.report_to, list | tuple) else (self.report_to,)

    @property
    def names(self) -> tuple[str, ...]:
        """`report_to` as a tuple, empty for none."""
        return tuple(name for name in self._given if name != "none")
