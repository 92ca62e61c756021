"""Labelling pairs by what a preference model is sure of (SSRM, arXiv 2409.06903)."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import write_groups
from rlhf_jax.parallel import Notice, gather, gather_counts, is_main_process
from rlhf_jax.scoring import PairwiseScorer
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.products import PAIRS
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.shards import Shards, announce_kept, scan_shards, shards_here

COMPARED = "compared"
"""The column with what the model says of each pair: [first, second, P(first is better), null where it failed]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PseudoLabelStage(Stage):
    """Both orders of every pair of a row's answers; those with more than `confidence` for one side go into PAIRS."""

    scorer: PairwiseScorer
    source: Shards
    confidence: float

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        scorer, names = self.scorer, self.source.names
        before = Counter(scorer.failures)
        announce_kept(folder, len(names), context)
        for done, number in enumerate(shards_here(len(names), Notice(folder)), start=1):
            target = folder / names[number]
            if not target.is_file():
                write_groups(target, pseudo_labelled(self.source.read_shard(number), scorer.compare, self.confidence))
            context.progress(min(done * jax.process_count(), len(names)), len(names))
        scorer.release()
        gather(None)  # the others may still be at their shards
        if is_main_process():
            write_groups(folder / PAIRS, (group for group in scan_shards(folder) if group.pairs))
        funnel = {} if self.source.funnel is None else {"funnel": self.source.funnel.to_json()}
        return {**label_counts(scan_shards(folder)), **funnel,
                "failures": gather_counts(scorer.failures - before)}


def pseudo_labelled(groups: Sequence[PromptGroup], compare: Callable[[Any], list[float | None]], confidence: float
                    ) -> list[PromptGroup]:
    """The groups with the pairs that a model is sure of, whatever pairs they had; nothing is lost.

    The better answer is the one that the model prefers: p = 0.05 at a confidence of 0.8 is kept, the other way round.
    The published code keeps such a pair as it stood, so that a wrong label stays wrong.

    Args:
      compare: [(prompt, first, second)] -> P(first is better), both orders averaged, or None where that failed.
    """
    places = [(group, pair) for group in groups for pair in itertools.combinations(range(len(group.responses)), 2)]
    found = compare([(group.prompt, group.responses[i].text, group.responses[j].text) for group, (i, j) in places])
    said: dict[int, list[tuple[int, int, float | None]]] = {}
    for (group, (i, j)), p in zip(places, found, strict=True):
        said.setdefault(id(group), []).append((i, j, p))
    return [dataclasses.replace(
        group, margins=(), extra={**group.extra, COMPARED: [list(one) for one in said.get(id(group), ())]},
        pairs=tuple((i, j) if p > 0.5 else (j, i) for i, j, p in said.get(id(group), ())
                    if p is not None and max(p, 1 - p) > confidence)) for group in groups]


def label_counts(groups: Iterable[PromptGroup]) -> dict[str, float]:
    """Of what `pseudo_labelled` gave: prompts, pairs, how many were kept, of those the share whose second answer is the
    better one (of rows with chosen and rejected: whose label was flipped), and pairs that could not be compared."""
    prompts = compared = failed = kept = flipped = 0
    for group in groups:
        said = group.extra[COMPARED]
        prompts, compared = prompts + 1, compared + len(said)
        failed, kept = failed + sum(p is None for _, _, p in said), kept + len(group.pairs)
        flipped += sum(better > worse for better, worse in group.pairs)
    return {"prompts": prompts, "compared": compared, "kept_pairs": kept, "kept_share": kept / max(1, compared),
            "flip_rate": flipped / max(1, kept), "failed": failed}
