"""Options of several runs of one config: a grid of its keys over seeds, and rounds against their matched control."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from rlhf_jax.config.build import build
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.config.training import SftOptions
from rlhf_jax.fields import COUNT, Flat, Options, at_least, between, flattened

OF_ALL = ("output_dir", "title", "mesh", "trackers")
"""Keys of a run that all cells of a sweep share."""


class Cell(NamedTuple):
    """One combination of a grid's values. name: "key=value, key=value", or the run's title where the grid is empty."""

    name: str
    config: ExperimentConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepCommand(Options):
    """A grid over any keys of a run, times seeds; what cells have in common is done once. OUTPUT_DIR/sweep.md.

    Attributes:
      grid: a key of the run -> the values it takes, as {dpo.beta: [0.05, 0.1]}; every combination is a cell, and the
        first value of each key makes the cell that the others are held against. Empty for the run as it is.
      seeds: repetitions of every cell; each shifts all seeds of the run.
      page: a Markdown file that the tables are also written to.
      run: the run, with an evaluation section.
    """

    grid: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Annotated[int, COUNT] = 3
    page: str | None = None
    run: Flat[ExperimentConfig]

    @property
    def output_dir(self) -> str:
        return self.run.output_dir

    @property
    def cells(self) -> list[Cell]:
        """All combinations, the one that the others are held against first.

        Raises:
          ValueError: a key of the grid is none of a run's, belongs to all cells, has no list of values, or the run
            refuses a value.
        """
        axes = dict(_axes(self.grid))
        for key, values in axes.items():
            if key.split(".")[0] in OF_ALL:
                raise ValueError(f"grid: {key} is one for the whole sweep; leave it out of the grid")
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"grid: {key} = {values!r}; give the list of values that it takes, as [0.05, 0.1]")
        return [self._cell(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]

    def _cell(self, values: Mapping[str, Any]) -> Cell:
        if not values:
            return Cell(self.run.title, self.run)
        tree = flattened(self.run)
        for key, value in values.items():
            _put(tree, key.split("."), value)
        name = ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}"
                         for key, value in values.items())
        try:
            return Cell(name, build(ExperimentConfig, tree))
        except ValueError as error:
            raise ValueError(f"grid: {name}: {error}") from error

    def conflicts(self) -> None:
        check_evaluated(self.run, "compares policies")
        _ = self.cells


def check_evaluated(run: ExperimentConfig, why: str) -> None:
    """Raises ValueError for a run without an evaluation section."""
    if run.evaluation is None:
        raise ValueError(f"the run has no evaluation section, and this verb {why}; add one")


def _axes(grid: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and values of each axis; groups may be nested or dotted."""
    for key, value in grid.items():
        if isinstance(value, Mapping):
            yield from _axes(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Sets a nested key, below sections that are not there too."""
    for name in path[:-1]:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[path[-1]] = value


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorthCommand(Options):
    """Is online worth it here? Rounds against their matched control, seed by seed, until the sign is decided.

    Attributes:
      error_rate: probability of naming a sign where there is no difference, over all seeds that may be run.
      max_seeds: so many at most; then the answer may be that it is not decided.
      at: equal_kl reads both methods at the divergence from the start of the one that moved less; last takes the last
        policies as they are.
      run: the run, with an evaluation section; of its baselines the matched control alone is run.
    """

    error_rate: Annotated[float, between(1e-3, 0.5)] = 0.05
    max_seeds: Annotated[int, at_least(2, 50)] = 8
    at: Literal["equal_kl", "last"] = "equal_kl"
    run: Flat[ExperimentConfig]

    @property
    def output_dir(self) -> str:
        return self.run.output_dir

    @property
    def matched(self) -> ExperimentConfig:
        """The run with the matched control as its only baseline, without what other baselines alone would read."""
        changes: dict[str, Any] = {} if self.run.loop.method == "raft" else {"raft": SftOptions()}
        return dataclasses.replace(self.run, baselines=("matched_dpo",), **changes)

    def conflicts(self) -> None:
        """Raises ValueError for a run that does not measure what is to be compared."""
        check_evaluated(self.run, "compares policies")
        assert self.run.evaluation is not None
        if self.run.loop.rounds == 1:
            raise ValueError("loop.rounds = 1; with one round the matched control is that round itself, so there is "
                             "nothing to compare. Give two rounds or more")
        if self.at == "equal_kl" and not any(self.run.evaluation.sampling.unchanged):
            raise ValueError("at = 'equal_kl' needs the divergence from the start, which takes answers drawn at "
                             "temperature 1 without top_k, top_p and min_p; set evaluation.sampling so, or give at: "
                             "last, which compares the last policies as they are")
        _ = self.matched
