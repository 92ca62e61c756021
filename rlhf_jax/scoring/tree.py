"""A decision tree over regressed ratings as a scorer: who of two answers is better, without another forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.groups import PromptGroup, Text, text_group
from rlhf_jax.models import CheckpointError, DecoderConfig, Params
from rlhf_jax.scoring.base import Progress, Verdicts
from rlhf_jax.scoring.bradley_terry import BradleyTerryScorer
from rlhf_jax.scoring.tournament import round_robin
from rlhf_jax.training.tree import Tree, probability


class TreeScorer:
    """Scores a response by its mean probability of being better than the prompt's others; ratings stand beside it.

    Args:
      params, config, renderer, mesh, options: of the regression whose outputs the tree's differences are of; see
        `BradleyTerryScorer`.

    Raises:
      CheckpointError: if the tree looks at objectives that the regression does not have.
    """

    def __init__(self, params: Params | Callable[[], Params], config: DecoderConfig, renderer: Renderer, mesh: Mesh,
                 tree: Tree, **options: Any):
        if int(tree.objective.max()) >= config.num_labels:
            raise CheckpointError(f"the tree looks at objective {int(tree.objective.max())} and the model beside it "
                                  f"has {config.num_labels} outputs; they do not belong together")
        self._ratings = BradleyTerryScorer(params, config, renderer, mesh, output=0, **options)
        self._names, self._tree = config.output_names, tree
        self.name = self._ratings.name

    @property
    def key(self) -> str:
        """Changes when the scores would: of a folder that holds model and tree."""
        return self._ratings.key

    @property
    def failures(self) -> Counter[str]:
        return self._ratings.failures

    def release(self) -> None:
        self._ratings.release()

    def _numbers(self, groups: Sequence[PromptGroup], progress: Progress | None) -> list[list[np.ndarray | None]]:
        """[K] regressed ratings of each response; None where there are none."""
        others = self._names[1:]
        return [[None if verdict is None else np.asarray([verdict[""], *(verdict[name] for name in others)])
                 for verdict in group] for group in self._ratings.score(groups, progress)]

    def _probabilities(self, sides: Sequence[tuple[np.ndarray | None, np.ndarray | None]]) -> list[float | None]:
        """P(first better) of each two responses' ratings; None where one has none."""
        known = [a - b for a, b in sides if a is not None and b is not None]
        found = iter(probability(self._tree, np.stack(known)).tolist() if known else ())
        return [None if a is None or b is None else next(found) for a, b in sides]

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        """A response that cannot be rendered gets None, and takes part in no comparison."""
        numbers = self._numbers(groups, progress)
        places = [[i for i, one in enumerate(group) if one is not None] for group in numbers]

        def play(games: Sequence[tuple[int, int, int]]) -> list[float | None]:
            return self._probabilities([(numbers[g][places[g][i]], numbers[g][places[g][j]]) for g, i, j in games])

        wins = round_robin([len(some) for some in places], play)
        verdicts: Verdicts = [[None] * len(group) for group in numbers]
        for at, (some, points) in enumerate(zip(places, wins, strict=True)):
            for place, won in zip(some, points, strict=True):
                rated = numbers[at][place]
                if won is not None and rated is not None:  # alone with its prompt, it has nobody to win against
                    verdicts[at][place] = {"": won, **dict(zip(self._names, rated.tolist(), strict=True))}
        return verdicts

    def compare(self, games: Sequence[tuple[Text, Text, Text]], progress: Progress | None = None
                ) -> list[float | None]:
        """P(first better than second) of each (prompt, first, second); None where one cannot be rendered."""
        groups = [text_group(f"game-{i}", prompt, ((first, {}), (second, {})))
                  for i, (prompt, first, second) in enumerate(games)]
        return self._probabilities([(first, second) for first, second in self._numbers(groups, progress)])
