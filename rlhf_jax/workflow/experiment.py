"""The whole workflow as one resumable run: SFT, reward model, baselines, online rounds, evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.data.chat import render_all
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import write_groups
from rlhf_jax.data.world import WorldConfig, write_world
from rlhf_jax.models import DecoderConfig, init_params, save_hf
from rlhf_jax.parallel import is_main_process
from rlhf_jax.scoring import letter_examples
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.evaluate import Outcome, evaluate_policy, evaluate_scorer
from rlhf_jax.workflow.experiment_config import ExperimentConfig, RewardSection, ScratchOptions
from rlhf_jax.workflow.iterate import Policy, iterate, round_prompts, train_pairs
from rlhf_jax.workflow.options import DataOptions, ScorerOptions
from rlhf_jax.workflow.policy import Checkpoint, Loaded, check_sources, data_key, prompt_groups, read_data
from rlhf_jax.workflow.reward_model import reading_key
from rlhf_jax.workflow.scorers import AnyScorer, check_scorer, open_scorer
from rlhf_jax.workflow.stage import hash_path
from rlhf_jax.workflow.train import MODEL, bradley_terry_stage, sft_stage


class Experiment:
    """Runs an `ExperimentConfig`, stage by stage; every stage is skipped if its inputs have not changed."""

    def __init__(self, config: ExperimentConfig, context: Context):
        self.config, self.context = config, context
        self.funnels: dict[str, Funnel] = {}
        self._world_folder: Path | None = None

    @property
    def folder(self) -> Path:
        return self.context.run.folder

    def located(self, data: DataOptions) -> DataOptions:
        """The options with `world:NAME` replaced by the file it stands for."""
        return dataclasses.replace(data, dataset_name=tuple(self._path(source) for source in data.sources))

    def _path(self, source: str) -> str:
        if not source.startswith("world:"):
            return source
        if self._world_folder is None:
            raise ValueError(f"data set {source!r} belongs to the embedded world and the config has no world section")
        name = source.removeprefix("world:")
        return str(self._world_folder / (name if name == "tokenizer" else f"{name}.jsonl"))

    def groups(self, name: str, data: DataOptions, kind: Any, checkpoint: Checkpoint, *, scores: bool = False
               ) -> list[PromptGroup]:
        """Rows of a data set as groups in a model's ids; counts go to the funnel `name`. scores: for a reward model."""
        located = self.located(data)
        examples, funnel = read_data(located, kind, self.folder / "quarantine" / f"{name.replace('/', '-')}.jsonl")
        make = prompt_groups if kind == "prompt" else render_all
        groups = make(examples, checkpoint.renderer(located, scores=scores), funnel)
        self.funnels[name] = funnel
        return groups

    def _data_key(self, data: DataOptions) -> dict[str, Any]:
        return data_key(self.located(data))

    def run(self) -> Outcome:
        """The whole run."""
        if self.config.world is not None:
            self._world(self.config.world)
        prompts = self._checked_inputs()
        start = self.start()
        scorer, reward_model = self.scorer(start)
        policies = [(start, "sft", 0)]
        policies += self._baselines(start, prompts, scorer)
        online = iterate(self.context, "online", start, prompts, scorer, self.config.recipe)
        policies += [(policy, "online", number) for number, policy in enumerate(online, start=1)]
        self._publish(online[-1])
        return Outcome(policies, self._judge(policies, start, scorer), self.funnels, reward_model)

    def _checked_inputs(self) -> list[PromptGroup]:
        """The loop's prompts, enough for all rounds; what only later stages read is looked at now, not hours later."""
        c, base = self.config, self._base()
        prompts = self.groups("prompts", c.prompts, "prompt", base)
        for number in range(1, c.loop.rounds + 1):
            round_prompts(prompts, c.loop, number)
        for options in (c.scorer, c.gold):
            if options is not None:
                check_scorer(options)
        if c.reward is not None and c.reward.init != "policy":
            Checkpoint.find(c.reward.init)
        later = [c.evaluation.data] if c.evaluation else []
        later += [c.reward.data] if c.reward else []
        later += [section.eval_data for section in (c.sft, c.reward) if section and section.eval_data]
        for data in later:
            check_sources(self.located(data))
        return prompts

    def preview(self) -> Loaded:
        """The base model and the first data set the run would train on (SFT rows, or the loop's prompts)."""
        if self.config.world is not None:
            self._world(self.config.world)
        checkpoint, section = self._base(), self.config.sft
        name, data, kind = ("sft", section.data, "sft") if section else ("prompts", self.config.prompts, "prompt")
        groups = self.groups(name, data, kind, checkpoint)
        return Loaded(checkpoint, groups, [], self.funnels[name])

    def _base(self) -> Checkpoint:
        c = self.config
        given = self._fresh(c.scratch) if c.scratch is not None else str(c.model_name_or_path)
        return Checkpoint.find(given, c.chat_template_path).as_policy()

    def _world(self, world: WorldConfig) -> None:
        def body(folder: Path) -> Mapping[str, Any]:
            if is_main_process():
                write_world(folder, world)
            return {}

        self._world_folder = self.context.run.stage("world", {"world": world}, body).folder

    def start(self) -> Policy:
        """The policy the rounds start from: the given model, or what SFT makes of it."""
        c, checkpoint = self.config, self._base()
        base = Policy("base", checkpoint, checkpoint.key)
        if c.sft is None:
            return dataclasses.replace(base, label="sft")
        section = c.sft
        groups = self.groups("sft", section.data, "sft", checkpoint)
        held_out = self.groups("sft/eval", section.eval_data, "sft", checkpoint) if section.eval_data else []
        inputs = {"base": base.key, "data": self._data_key(section.data), "train": section.train,
                  "eval": section.eval_data and self._data_key(section.eval_data)}

        def body(folder: Path) -> Mapping[str, Any]:
            return sft_stage(folder, options=section.train, params=checkpoint.params(self.context.mesh),
                             config=checkpoint.config, groups=groups, tokenizer_from=checkpoint.folder,
                             base=str(checkpoint.folder), eval_groups=held_out, chat_template=checkpoint.chat_template,
                             setting=self.context.setting("sft", of_policy=True))

        stage = self.context.run.stage("sft", inputs, body)
        self.context.adopt(stage)
        return Policy("sft", Checkpoint(stage.folder / MODEL), stage.key)

    def _fresh(self, scratch: ScratchOptions) -> Path:
        tokenizer = Path(self._path(scratch.tokenizer))
        seed = self.config.sft.train.seed if self.config.sft else 0
        inputs = {"scratch": dataclasses.replace(scratch, tokenizer=hash_path(tokenizer)), "seed": seed}

        def body(folder: Path) -> Mapping[str, Any]:
            checkpoint = Checkpoint(tokenizer)
            t = checkpoint.tokenizer
            config = DecoderConfig(
                family="llama", vocab_size=len(t), embed=scratch.embed, layers=scratch.layers, heads=scratch.heads,
                kv_heads=scratch.kv_heads, head_dim=scratch.embed // scratch.heads, mlp=scratch.mlp,
                max_position=scratch.max_position, tie_embeddings=True, bos_token_id=t.bos_token_id,
                eos_token_ids=(t.eos_token_id,), pad_token_id=t.pad_token_id,
                initializer_range=scratch.initializer_range)
            params = jax.device_get(init_params(jax.random.key(seed), config))
            save_hf(folder / MODEL, params, config, tokenizer_from=tokenizer)
            return {}

        return self.context.run.stage("scratch", inputs, body).folder / MODEL

    def scorer(self, start: Policy) -> tuple[AnyScorer, Mapping[str, Any] | None]:
        """The proxy the loop learns from, trained here or opened, and its evaluation on held-out pairs."""
        c = self.config
        if c.reward is None:
            assert c.scorer is not None
            return open_scorer(c.scorer, self.context.local_mesh, "proxy"), None
        section = c.reward
        checkpoint = start.checkpoint if section.init == "policy" else Checkpoint.find(
            section.init, section.data.chat_template_path)
        folder = self._reward_model(section, checkpoint, start.key if section.init == "policy" else checkpoint.key)
        options = ScorerOptions(section.train.kind, str(folder), max_length=section.data.max_length,
                                text_as_chat=section.data.text_as_chat)
        scorer = open_scorer(options, self.context.local_mesh, "proxy")
        if section.eval_data is None:
            return scorer, None
        return scorer, self._evaluate_reward(scorer, section.eval_data)

    def _evaluate_reward(self, scorer: AnyScorer, data: DataOptions) -> Mapping[str, Any]:
        held_out, self.funnels["reward/eval"] = read_data(self.located(data), "preference")
        inputs = {"scorer": scorer.fingerprint, "data": self._data_key(data)}

        def body(folder: Path) -> Mapping[str, Any]:
            del folder
            return evaluate_scorer(scorer, held_out, seed=0).to_json()

        return self.context.run.stage("reward/evaluate", inputs, body).report

    def _reward_model(self, section: RewardSection, checkpoint: Checkpoint, base_key: str) -> Path:
        located = self.located(section.data)
        train = section.train
        if train.kind == "pairwise":
            examples, funnel = read_data(located, "preference", self.folder / "quarantine" / "reward.jsonl")
            groups = render_all(letter_examples(examples, train.seed, funnel), checkpoint.renderer(located), funnel)
            self.funnels["reward"] = funnel
        else:
            groups = self.groups("reward", section.data, "preference", checkpoint, scores=True)
        stage_of: Any = sft_stage if train.kind == "pairwise" else bradley_terry_stage
        config = checkpoint.config if train.kind == "pairwise" else checkpoint.reward_model
        inputs = {"base": base_key, "data": self._data_key(section.data), "train": train, **reading_key(config)}

        def body(folder: Path) -> Mapping[str, Any]:
            return stage_of(folder, options=train, params=checkpoint.params(self.context.mesh),
                            config=config, groups=groups, tokenizer_from=checkpoint.folder,
                            base=str(checkpoint.folder), chat_template=checkpoint.chat_template,
                            setting=self.context.setting("reward"))

        return self.context.run.stage("reward", inputs, body).folder / MODEL

    def _baselines(self, start: Policy, prompts: Sequence[PromptGroup], scorer: AnyScorer
                   ) -> list[tuple[Policy, str, int]]:
        c, out = self.config, []
        if "offline_dpo" in c.baselines:
            out.append((self._offline(start), "offline_dpo", 1))
        if "matched_dpo" in c.baselines:
            loop = dataclasses.replace(c.loop, rounds=1, data_policy="fresh", window=2, reference="sft",
                                       ref_model_mixup_alpha=0.6, prompts_per_round=self._prompts_in_all(prompts))
            recipe = dataclasses.replace(c.recipe, loop=loop)
            out.append((iterate(self.context, "matched_dpo", start, prompts, scorer, recipe)[0], "matched_dpo", 1))
        if "raft" in c.baselines:
            loop = dataclasses.replace(c.loop, method="raft", reference="sft", ref_model_mixup_alpha=0.6)
            raft = iterate(self.context, "raft", start, prompts, scorer, dataclasses.replace(c.recipe, loop=loop))
            out += [(policy, "raft", number) for number, policy in enumerate(raft, start=1)]
        return out

    def _prompts_in_all(self, prompts: Sequence[PromptGroup]) -> int:
        each = self.config.loop.prompts_per_round
        return len(prompts) if each is None else each * self.config.loop.rounds

    def _offline(self, start: Policy) -> Policy:
        """Offline DPO on the preference set: the human labels, no sampling."""
        assert self.config.reward is not None
        data = self.config.reward.data
        groups = self.groups("offline_dpo", data, "preference", start.checkpoint)
        inputs = {"data": self._data_key(data), "tokenizer": start.key}

        def body(folder: Path) -> Mapping[str, Any]:
            if is_main_process():
                write_groups(folder / "pairs.jsonl", groups)
            return {"pairs": len(groups)}

        stage = self.context.run.stage("offline_dpo/pairs", inputs, body)
        return train_pairs(self.context, "offline_dpo/dpo", "offline_dpo", start, start,
                           [(stage.key, stage.folder / "pairs.jsonl")], self.config.dpo)

    def _judge(self, policies: Sequence[tuple[Policy, str, int]], start: Policy, scorer: AnyScorer
               ) -> dict[str, list[PromptGroup]]:
        section = self.config.evaluation
        if section is None:
            return {}
        scorers: list[AnyScorer] = [scorer]
        if self.config.gold is not None:
            scorers.append(open_scorer(self.config.gold, self.context.local_mesh, "gold"))
        prompts = self.groups("evaluation", section.data, "prompt", start.checkpoint)
        return {policy.label: evaluate_policy(self.context, policy, start, prompts, section.sampling, scorers,
                                              self.config.dpo.dtype) for policy, _, _ in policies}

    def _publish(self, policy: Policy) -> None:
        """`policy` in the run folder points at the last round's model."""
        if not is_main_process():
            return
        link, target = self.folder / "policy", policy.folder.relative_to(self.folder)
        temporary = self.folder / ".policy.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(link)
