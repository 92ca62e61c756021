"""The whole workflow as one resumable run: SFT, reward model, baselines, online rounds, evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_jax.config.data import DataOptions, PreferenceData, RowOptions
from rlhf_jax.config.run import ExperimentConfig, RewardSection, ScorerData, ScratchOptions, SelectionSection
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.scorer import ScorerModel
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.evaluation.preference import ScorerReport
from rlhf_jax.fields import replaced
from rlhf_jax.parallel import is_main_process
from rlhf_jax.scoring import Scorer
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview, RenderedRows, check_named, check_sources
from rlhf_jax.workflow.directions import directed
from rlhf_jax.workflow.engine import check_whole
from rlhf_jax.workflow.iterate import Recipe, iterate, pairs_of, round_prompts
from rlhf_jax.workflow.kinds import open_scorer, trainable_kind
from rlhf_jax.workflow.policies import Entry, Outcome, judge_all
from rlhf_jax.workflow.products import MODEL, POLICY, point_at
from rlhf_jax.workflow.selection import JUDGE, Chooser, check_disjoint
from rlhf_jax.workflow.stages.dpo import DpoStage
from rlhf_jax.workflow.stages.evaluate import EvaluateStage, PreferenceRows
from rlhf_jax.workflow.stages.pairs import LabelledPairsStage
from rlhf_jax.workflow.stages.reward import RewardStage
from rlhf_jax.workflow.stages.sample import check_room
from rlhf_jax.workflow.stages.scratch import ScratchStage
from rlhf_jax.workflow.stages.sft import SftStage
from rlhf_jax.workflow.stages.world import WorldStage


class Experiment:
    """Runs an `ExperimentConfig`, stage by stage; every stage is skipped if its inputs have not changed."""

    def __init__(self, config: ExperimentConfig, context: Context):
        self.config, self.context = config, context
        self.recipe = Recipe(config.loop, config.sampling, config.pairs, config.dpo, config.raft)
        self._rows: dict[str, RenderedRows] = {}
        self._world_folder: Path | None = None
        self._directed: Sequence[PromptGroup] | None = None
        self._directions: Funnel | None = None

    @property
    def folder(self) -> Path:
        return self.context.run.folder

    def located(self, rows: RowOptions) -> RowOptions:
        """The options with `world:NAME` replaced by the file it stands for."""
        return dataclasses.replace(rows, dataset_name=tuple(self._path(source) for source in rows.sources))

    def _path(self, source: str) -> str:
        if not source.startswith("world:"):
            return source
        if self._world_folder is None:
            raise ValueError(f"data set {source!r} belongs to the embedded world and the config has no world section")
        name = source.removeprefix("world:")
        return str(self._world_folder / (name if name == "tokenizer" else f"{name}.jsonl"))

    def rows(self, name: str, data: DataOptions | PreferenceData, kind: Any, checkpoint: Checkpoint,
             reader: type[RenderedRows] = RenderedRows, **more: Any) -> RenderedRows:
        """Rows of a data set in a model's ids; what became of them is reported under `name`."""
        if isinstance(data, PreferenceData):
            more["graded"] = data.graded
        self._rows[name] = reader(
            checkpoint=checkpoint, kind=kind, rows=self.located(data.rows), render=data.render,
            benchmarks=data.benchmarks, quarantine=self.context.quarantine(name),
            announce=lambda text: self.context.run.announce(f"data of {name}:\n{text}"), **more)
        return self._rows[name]

    def _asked(self, name: str, data: DataOptions, checkpoint: Checkpoint) -> Sequence[PromptGroup]:
        """The prompts of a section, read once for all policies of a run."""
        rows = self._rows.get(name) or self.rows(name, data, "prompt", checkpoint)
        return rows.read()

    @property
    def funnels(self) -> dict[str, Funnel]:
        found = {name: rows.funnel for name, rows in self._rows.items()}
        return found if self._directions is None else {**found, "prompts/directions": self._directions}

    def run(self) -> Outcome:
        """The whole run."""
        prompts, base = self.checked_inputs()
        start = self.start(base)
        scorer, reward_model = self.scorer(start)
        entries = [self.start_entry(start), *self._baselines(start, prompts, scorer)]
        asked = prompts if self._directed is None else self._directed
        choice = self._choice(start, entries[0].label, scorer)
        online = iterate(self.context, "online", start, asked, scorer, self.recipe, choice)
        family = "online" if self.config.loop.method == "dpo" else "online_raft"
        entries += [Entry(f"online-{i}", family, i, policy) for i, policy in enumerate(online, start=1)]
        self._publish(online[-1] if choice is None else choice.published)
        return Outcome(entries, self._judge(entries, scorer), self.funnels, reward_model,
                       () if choice is None else choice.candidates)

    def checked_inputs(self) -> tuple[Sequence[PromptGroup], Checkpoint]:
        """The loop's prompts, enough for all rounds, and the base model; what only later stages read is looked at now,
        not hours later."""
        c = self.config
        if c.world is not None:
            self._world_folder = self.context.do("world", WorldStage(c.world)).folder
        base = self._base()
        check_named(c.data)
        prompts = self.rows("prompts", c.prompts, "prompt", base).read()
        if c.loop.directions is not None:
            self._directed, self._directions = directed(prompts, c.loop.directions, base.renderer(c.prompts.render))
            self.context.run.announce(f"prompts with directions:\n{self._directions}")
        for asked in (prompts,) if self._directed is None else (prompts, self._directed):
            for number in range(1, c.loop.rounds + 1):
                round_prompts(asked, c.loop, number)
            for sampling in c.loop.divided(c.sampling):
                if sampling is not None:
                    self._check_room("sampling", base, asked, sampling)
        if c.sft is None:
            check_whole(base, c.sampling)
        if c.selection is not None:
            self._check_selection(c.selection, prompts, base)
        for options in (c.scorer, c.gold, None if c.selection is None else c.selection.judge):
            if options is not None:
                open_scorer(options, self.context.local_mesh, "", self.context.run.store)  # loads no weights yet
        if c.reward is not None and c.reward.init != "policy":
            Checkpoint.find(c.reward.init)
        for rows in c.data.values():
            check_sources(self.located(rows))
        if c.evaluation is not None:
            tested = self._asked("evaluation", c.evaluation.data, base)
            self._check_room("evaluation.sampling", base, tested, c.evaluation.sampling)
        return prompts, base

    def _check_room(self, section: str, base: Checkpoint, prompts: Sequence[PromptGroup], sampling: SamplingConfig
                    ) -> None:
        """Raises ValueError, with the name of the section, where sampling by it could not begin."""
        try:
            check_room(self.context, base, prompts, sampling, self.config.dpo.train.dtype)
        except ValueError as error:
            raise ValueError(f"{section}: {error}") from error

    def _check_selection(self, section: SelectionSection, prompts: Sequence[PromptGroup], base: Checkpoint) -> None:
        """Raises ValueError where prompts are shared, or a limit of the divergence could not be looked at."""
        others = {"prompts": prompts}
        if self.config.evaluation is not None:
            others["evaluation.data"] = self._asked("evaluation", self.config.evaluation.data, base)
        validation = self._asked("selection", section.data, base)
        check_disjoint(validation, others)
        self._check_room("selection.sampling", base, validation, section.sampling)
        if section.kl_limit is not None and not any(section.sampling.unchanged):
            raise ValueError(f"selection.kl_limit = {section.kl_limit} needs answers of the policy's own distribution; "
                             "sample them at temperature 1.0, or at several, such as [1.0, 0.7], without top_k, top_p "
                             "and min_p, or leave kl_limit out")

    def preview(self) -> Preview:
        """The first data set the run would train on: SFT rows, or the loop's prompts.

        Raises what `run` would raise before its first stage.
        """
        _, base = self.checked_inputs()
        sft = self.config.sft
        rows = self._rows["prompts"] if sft is None else self.rows("sft", sft.data, "sft", base)
        return Preview(base, rows, rows.read())

    def _base(self) -> Checkpoint:
        c = self.config
        given = self._fresh(c.scratch) if c.scratch is not None else str(c.model_name_or_path)
        return Checkpoint.find(given, c.chat_template_path).as_policy()

    def _fresh(self, scratch: ScratchOptions) -> Path:
        seed = self.config.sft.train.train.seed if self.config.sft else 0
        stage = ScratchStage(options=scratch, tokenizer=Checkpoint(Path(self._path(scratch.tokenizer))), seed=seed)
        return self.context.do("scratch", stage).folder / MODEL

    def start_entry(self, start: Checkpoint) -> Entry:
        """The start in the comparison, called by what was done to it."""
        name = "start" if self.config.sft is None else "sft"
        return Entry(name, name, 0, start)

    def start(self, base: Checkpoint) -> Checkpoint:
        """The policy the rounds start from: the given model, or what SFT makes of it."""
        section = self.config.sft
        if section is None:
            return base
        held_out = self.rows("sft/eval", section.eval_data, "sft", base) if section.eval_data else None
        return self.context.train("sft", SftStage(start=base, data=(self.rows("sft", section.data, "sft", base),),
                                                  options=section.train, evaluation=held_out))

    def scorer(self, start: Checkpoint) -> tuple[Scorer, ScorerReport | None]:
        """The proxy the loop learns from, trained here or opened, and its evaluation on held-out pairs."""
        section = self.config.reward
        if section is None:
            assert self.config.scorer is not None
            return open_scorer(self.config.scorer, self.context.local_mesh, "proxy", self.context.run.store), None
        model = self._reward_model(section, start)
        served = trainable_kind(section.train).served(section.train, ScorerModel.trained(
            str(model.folder), section.data.render))
        scorer = open_scorer(served, self.context.local_mesh, "proxy", self.context.run.store)
        return scorer, None if section.eval_data is None else self._evaluate_reward(scorer, section.eval_data)

    def _reward_model(self, section: RewardSection, start: Checkpoint) -> Checkpoint:
        origin = start if section.init == "policy" else Checkpoint.find(
            section.init, section.data.render.chat_template_path)
        kind = trainable_kind(section.train)
        rows = self.rows("reward", section.data, kind.rows, origin, kind.reader,
                         prepare=partial(kind.examples, section.train), scores=kind.reads_head)
        return self.context.train("reward", RewardStage(start=origin, data=(rows,), options=section.train))

    def _evaluate_reward(self, scorer: Scorer, data: ScorerData) -> ScorerReport:
        rows = PreferenceRows(self.located(data.rows), data.graded, self.context.quarantine("reward/eval"))
        done = self.context.do("reward/evaluate", EvaluateStage(scorer=scorer, data=rows))
        return ScorerReport.from_json(done.report)

    def _baselines(self, start: Checkpoint, prompts: Sequence[PromptGroup], scorer: Scorer) -> list[Entry]:
        c, out = self.config, []
        run = partial(iterate, self.context, start=start, prompts=prompts, scorer=scorer)
        if "offline_dpo" in c.baselines:
            out.append(Entry("offline_dpo", "offline_dpo", 1, self._offline(start)))
        if "matched_dpo" in c.baselines:
            name = f"matched_{c.loop.method}"
            matched = run(name, recipe=self.matched(prompts))
            out.append(Entry(f"{name}-1", name, 1, matched[0]))
        if "raft" in c.baselines:
            loop = replaced(c.loop, method="raft", directions=None)
            raft = run("raft", recipe=dataclasses.replace(self.recipe, loop=loop))
            out += [Entry(f"raft-{i}", "raft", i, policy) for i, policy in enumerate(raft, start=1)]
        return out

    def matched(self, prompts: Sequence[PromptGroup]) -> Recipe:
        """The control's recipe: the prompts, samples and labels of all rounds, in one round from the start."""
        loop, pairs = self.config.loop, self.config.pairs
        each, rounds = loop.prompts_per_round, loop.rounds
        one = replaced(loop, rounds=1, data_policy="fresh", reference="sft", directions=None,
                       prompts_per_round=len(prompts) if each is None else each * rounds)
        whole = pairs if pairs.budget is None else replaced(pairs, budget=pairs.budget * rounds)
        return dataclasses.replace(self.recipe, loop=one, pairs=whole)

    def _offline(self, start: Checkpoint) -> Checkpoint:
        """Offline DPO on the preference set: the human labels, no sampling."""
        assert self.config.reward is not None
        options = replaced(self.config.dpo, xpo_alpha=0.0)  # labelled pairs hold no answer of the start
        rows = self.rows("offline_dpo", self.config.reward.data, "preference", start)
        labelled = self.context.do("offline_dpo/pairs", LabelledPairsStage(data=rows, model=start))
        return self.context.train("offline_dpo/dpo", DpoStage(
            start=start, reference=start if options.loss.needs_reference else None, data=(pairs_of(labelled),),
            options=options))

    def _judge(self, entries: Sequence[Entry], scorer: Scorer) -> dict[str, list[PromptGroup]]:
        section = self.config.evaluation
        if section is None:
            return {}
        scorers = [scorer]
        if self.config.gold is not None:
            scorers.append(open_scorer(self.config.gold, self.context.local_mesh, "gold", self.context.run.store))
        prompts = self._asked("evaluation", section.data, entries[0].policy)
        return judge_all(self.context, entries, prompts, section.sampling, scorers, self.config.dpo.train.dtype)

    def _choice(self, start: Checkpoint, label: str, scorer: Scorer) -> Chooser | None:
        """What chooses among the rounds, once it has judged the start."""
        section = self.config.selection
        if section is None:
            return None
        scorers = [scorer]
        if section.judge is not None:
            scorers.append(open_scorer(section.judge, self.context.local_mesh, JUDGE, self.context.run.store))
        prompts = self._asked("selection", section.data, start)
        return Chooser(self.context, section, prompts, scorers, start, label, self.config.dpo.train.dtype)

    def _publish(self, policy: Checkpoint) -> None:
        """`policy` in the run folder points at the chosen model, by default the last round's."""
        if is_main_process():
            point_at(self.folder / POLICY, policy.adapter or policy.folder)
