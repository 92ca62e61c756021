"""From stored features to the heads of a reward model: regressions, de-biasing, the gate; a shard in memory at a time.

Of every answer and pair a few numbers stay (ratings, rewards); of hidden states never more than one shard's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.config.probe import ArmoRmProbe, RidgeOptions, TreeProbe
from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.example import DATA_SCORE
from rlhf_jax.data.features import FeatureShard
from rlhf_jax.data.ratings import ARMORM, GRADES, Objective, parse_objectives, rating_table
from rlhf_jax.evaluation.preference import preference_accuracy
from rlhf_jax.training.debias import ARMORM_GRID, find_penalties, reward_transform
from rlhf_jax.training.gate import GateFit, Pairs, fit_gate, gate_shape, gated_gaps
from rlhf_jax.training.ridge import RidgeFit, Rows, fit_ridge
from rlhf_jax.training.tree import Tree, grow_tree, importances, probability
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.features import Features, PromptStates, is_held_out


def find_objectives(features: Features, named: tuple[str, ...]) -> tuple[Objective, ...]:
    """The objectives a user names, or all grades that answers have: ArmoRM's in its order, then others by name.

    Raises:
      ValueError: no answer is rated at all, or an objective is named twice.
    """
    if not named:
        found = {name for shard in features.shards() for row in shard.rows for scores in row.scores for name in scores}
        place = {GRADES + rated.name: number for number, rated in enumerate(ARMORM)}
        named = tuple(name for name in sorted(found, key=lambda name: (place.get(name, len(place)), name))
                      if name == DATA_SCORE or name.startswith(GRADES))
    if not named:
        raise ValueError("no answer of the features is rated, so there is nothing to regress; make them of graded rows")
    return parse_objectives(named)


def rated_rows(features: Features, objectives: tuple[Objective, ...], options: RidgeOptions) -> Iterator[Rows]:
    """The rows of the regressions, a shard at a time.

    Raises:
      ValueError: a rating lies outside its scale; the text says whose.
    """
    for path, shard in zip(features.paths, features.shards(), strict=True):
        scores: list[Mapping[str, float]] = []
        held_out: list[bool] = []
        for row in shard.rows:
            try:
                rating_table(row.scores, objectives)
            except BadRow as error:
                raise ValueError(f"{path}, prompt {row.prompt_id!r}: {error.message}") from error
            scores += row.scores
            whole = is_held_out(row.text, options.held_out, options.seed)
            held_out += [whole if options.split == "prompt" else
                         is_held_out(f"{row.prompt_id}/{i}", options.held_out, options.seed)
                         for i in range(len(row.scores))]
        yield Rows(shard.response, rating_table(scores, objectives), np.asarray(held_out, bool))


def regress(features: Features, objectives: tuple[Objective, ...], options: RidgeOptions) -> RidgeFit:
    """ArmoRM's first stage."""
    return fit_ridge(lambda: rated_rows(features, objectives, options), [objective.number for objective in objectives],
                     features.width, refit=options.refit, few_rows=options.few_rows)


def ridge_report(names: list[str], fit: RidgeFit) -> dict[str, Any]:
    """By objective: rows, the strength that was chosen, and how much better than a constant it predicts."""
    errors = fit.errors.min(axis=1)
    return {name: {"rows": int(fit.rows[k]), "held_out": int(fit.held_out[k]), "strength": float(fit.strengths[k]),
                   "mse": float(errors[k]), "mse_of_the_mean": float(fit.spread[k]),
                   "r2": float(1.0 - errors[k] / fit.spread[k]) if fit.spread[k] else None}
            for k, name in enumerate(names)}


def shard_rewards(shard: FeatureShard, weights: np.ndarray) -> np.ndarray:
    """[R, K] regressed rewards of a shard's answers; weights [K, D]."""
    return shard.response.astype(np.float32) @ weights.T.astype(np.float32)


def debias(features: Features, weights: np.ndarray, names: list[str], options: ArmoRmProbe
           ) -> tuple[np.ndarray, dict[str, Any]]:
    """The transform [K, K] that frees the other objectives of one, and what it does; the identity where none is named.

    Raises:
      ValueError: there is no such objective, or it does not vary.
    """
    wanted = options.debiasing
    if wanted.debias is None:
        return np.eye(len(names)), {}
    if wanted.debias not in names:
        raise ValueError(f"debias = {wanted.debias!r} is none of the objectives, which are {', '.join(names)}")
    at = names.index(wanted.debias)
    rewards = np.concatenate([shard_rewards(shard, weights) for shard in features.shards()])
    grid = ARMORM_GRID if wanted.debias_grid == "armorm" else None
    found = find_penalties(rewards, at, wanted.debias_threshold, grid)
    table = {name: {"penalty": float(found.penalties[k]), "before": float(found.before[k]),
                    "after": float(found.after[k])} for k, name in enumerate(names) if k != at}
    missed = [names[k] for k in found.missed(wanted.debias_threshold, at)]
    return reward_transform(found.penalties, at), {"of": wanted.debias, "answers": len(rewards), "objectives": table,
                                                   "still_following": missed}


class RatedPairs(NamedTuple):
    """Pairs with the gaps in their rewards. states: of their prompts. held_out: [N] bool. texts: [N] of the prompts."""

    states: PromptStates
    pairs: Pairs
    held_out: np.ndarray
    texts: np.ndarray

    def parts(self) -> tuple[Pairs, Pairs]:
        """The pairs to learn from, and those held out."""
        prompt, gaps, out = *self.pairs, self.held_out
        return Pairs(prompt[~out], gaps[~out]), Pairs(prompt[out], gaps[out])


def rated_pairs(features: Features, weights: np.ndarray, transform: np.ndarray, options: RidgeOptions, *,
                gated: bool) -> RatedPairs:
    """All pairs, by rewards after the transform. gated: each prompt must have a place for a gate to look.

    Raises:
      ValueError: it has none, there is no pair, or all pairs or none are held out.
    """
    states, prompts, gaps, texts = [], [], [], []
    held_out: list[bool] = []
    seen = 0
    for shard in features.shards():
        rewards, start = shard_rewards(shard, weights) @ transform, 0
        for place, row in enumerate(shard.rows):
            if gated and row.pairs and not row.gate:
                raise ValueError(f"prompt {row.prompt_id!r} has no end of turn before its answers, so the gate has no "
                                 "place to look; make the features with a chat template (text_as_chat for plain text)")
            for number, (chosen, rejected) in enumerate(row.pairs):
                prompts.append(seen + place)
                gaps.append(rewards[start + chosen] - rewards[start + rejected])
                name = row.text if options.split == "prompt" else f"{row.prompt_id}/{number}"
                held_out.append(is_held_out(name, options.held_out, options.seed))
                texts.append(row.text)
            start += len(row.scores)
        states.append(shard.prompt)
        seen += len(shard.rows)
    if not gaps:
        raise ValueError("the features given as pairs hold no pair; make them with kind: preference")
    out = np.asarray(held_out)
    if out.all() or not out.any():
        raise ValueError(f"{out.sum()} of {len(out)} pairs are held out, and some of both are needed; give more "
                         "prompts, or another held_out or seed")
    return RatedPairs(PromptStates(states), Pairs(np.asarray(prompts), np.stack(gaps)), out, np.asarray(texts))


def train_gate(features: Features, weights: np.ndarray, transform: np.ndarray, options: ArmoRmProbe, context: Context
               ) -> tuple[GateFit, dict[str, Any]]:
    """ArmoRM's second stage, on de-biased rewards; its accuracy on held-out pairs, and that of their plain sum."""
    rated = rated_pairs(features, weights, transform, options.ridge, gated=True)
    train, kept = rated.parts()

    def tick(done: int, steps: int, loss: float) -> None:
        context.tick(context.name, done, steps, f"gate, loss {loss:.4f}")

    fit = fit_gate(rated.states, train, features.width, options.gate, options.ridge.seed, tick)
    gate = gate_shape(options.gate)
    clusters = rated.texts[rated.held_out].tolist()

    def judged(gaps: np.ndarray) -> dict[str, Any]:
        return preference_accuracy(gaps, clusters=clusters, seed=options.ridge.seed).estimates["accuracy"].to_json()

    size = min(100, len(fit.losses))
    return fit, {"pairs": len(train.prompt), "held_out": len(kept.prompt), "loss": float(fit.losses[-size:].mean()),
                 "logit_scale": float(fit.gating["logit_scale"][0]),
                 "accuracy": judged(gated_gaps(fit.gating, gate, rated.states, kept)),
                 "accuracy_of_the_plain_sum": judged(kept.gaps.sum(-1))}


def train_tree(features: Features, weights: np.ndarray, names: list[str], options: TreeProbe
               ) -> tuple[Tree, dict[str, Any]]:
    """A tree over differences in regressed ratings, its accuracy on held-out pairs, and what each objective counts.

    Raises:
      MissingExtra: scikit-learn is not installed.
    """
    rated = rated_pairs(features, weights, np.eye(len(names)), options.ridge, gated=False)
    train, kept = rated.parts()
    seed = options.ridge.seed
    tree, _ = grow_tree(train.gaps, options.tree_depth, seed)
    shares = importances(train.gaps, train.prompt, options.tree_depth, options.tree_bootstraps, seed)
    judged = preference_accuracy(probabilities=probability(tree, kept.gaps), seed=seed,
                                 clusters=rated.texts[rated.held_out].tolist())
    table = {name: {"mean": float(share.mean()), "standard_deviation": float(share.std())}
             for name, share in zip(names, shares.T, strict=True)}
    measured = {name: judged.estimates[name].to_json() for name in ("accuracy", "nll")}
    return tree, {"pairs": len(train.prompt), "held_out": len(kept.prompt), **measured, "importances": table}
