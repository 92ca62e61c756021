"""The checks that catch what ruins a run silently: template, BOS, stop token, padding, and the loss of step 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.render_all import rendered
from rlhf_jax.data.rows import BadRow, Example
from rlhf_jax.data.tokenizer import end_of_turn, has_bos_for_text, read_tokenizer, template_choices, template_ids
from rlhf_jax.models import param_specs
from rlhf_jax.models.hf import compare_tensors, stored_tensors
from rlhf_jax.scoring import BradleyTerryScorer, MultiObjectiveScorer
from rlhf_jax.scoring.base import scores_in
from rlhf_jax.training.evaluate import logps_map
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.checkpoint import Checkpoint

_NOISE = 0.1
"""Nats by which the loss of fresh weights may pass that of chance."""

Verdict = Literal["ok", "note", "fail"]

CONVERSATION = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "And of Italy?"},
]
ANSWERS = ("The capital of Italy is Rome.", "I do not like to answer questions about cities.")
"""What is looked at where no data set is given."""


class Finding(NamedTuple):
    """One check: its name, how it went, what was seen, and what to do where something is wrong."""

    check: str
    verdict: Verdict
    seen: str
    advice: str = ""


def examine(checkpoint: Checkpoint, mesh: Mesh, groups: Sequence[PromptGroup] = ()) -> list[Finding]:
    """Every check on a checkpoint; one that cannot be made is a finding too, with all others of the same cause.

    Args:
      groups: rendered rows of the user's own data for the step-0 loss; the embedded conversation if there are none.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "weights": lambda: _weights(checkpoint),
        "vocabulary": lambda: _vocabulary(checkpoint),
        "chat template": lambda: _template(checkpoint),
        "BOS": lambda: _bos(checkpoint),
        "stop token": lambda: _stop_token(checkpoint),
        "stop token trained": lambda: _stop_trained(checkpoint),
        "padding": lambda: _padding(checkpoint),
        "step 0": lambda: _step_zero(checkpoint, mesh, groups),
    }
    found: list[Finding] = []
    causes: dict[str, int] = {}  # what prevents a check -> its finding's place
    for name, check in checks.items():
        try:
            found.append(check())
        except (ValueError, OSError) as error:
            at = causes.setdefault(str(error), len(found))
            blocked = found[at].check + ", " if at < len(found) else ""
            found[at:at + 1] = [Finding(blocked + name, "fail", str(error))]
    return found


def _weights(checkpoint: Checkpoint) -> Finding:
    differences = compare_tensors(param_specs(checkpoint.stored_config), stored_tensors(checkpoint.folder))
    if differences:
        return Finding("weights", "fail", f"tensors: {differences}", "config.json does not belong to these weights")
    return Finding("weights", "ok", f"{checkpoint.config.family}: all tensors present"
                   + (f", {len(differences.ignored)} passed over" if differences.ignored else ""))


def _vocabulary(checkpoint: Checkpoint) -> Finding:
    tokens, rows = len(checkpoint.tokenizer), checkpoint.config.vocab_size
    beyond = [token for token, token_id in checkpoint.tokenizer.get_vocab().items() if token_id >= rows]
    if beyond:
        return Finding("vocabulary", "note", f"{tokens:,} tokens in {rows:,} rows: {', '.join(sorted(beyond)[:5])} "
                       "without one", "special tokens that no text should hold; rows that do are refused")
    return Finding("vocabulary", "ok", f"{tokens:,} tokens in {rows:,} rows")


def _template(checkpoint: Checkpoint) -> Finding:
    if not checkpoint.tokenizer.chat_template:
        return Finding("chat template", "note", "the tokenizer has none",
                       "messages cannot be rendered; plain text can. Set chat_template_path to "
                       + template_choices(checkpoint.tokenizer))
    renderer = Renderer(checkpoint.tokenizer, eos_id=checkpoint.stop_ids[0])
    try:
        groups, _ = rendered(renderer, Example(
            CONVERSATION[:1], ([*CONVERSATION[1:], {"role": "assistant", "content": ANSWERS[0]}],)))
    except BadRow as error:
        return Finding("chat template", "fail", f"{error.reason}: {error.message}", "use another template")
    if len(groups) > 1:
        return Finding("chat template", "note", "shows earlier turns otherwise than they were written",
                       "conversations are learned turn by turn, one group per answer")
    return Finding("chat template", "ok", "renders two turns, each a continuation of the last")


def _prompt(checkpoint: Checkpoint) -> PromptGroup:
    """The embedded conversation and its answers, by the chat template or as plain text."""
    renderer = Renderer(checkpoint.tokenizer, eos_id=checkpoint.stop_ids[0])
    chat = bool(checkpoint.tokenizer.chat_template)
    prompt = CONVERSATION if chat else CONVERSATION[0]["content"]
    answers = ANSWERS if chat else tuple(f" {answer}" for answer in ANSWERS)
    return renderer.render(Example(prompt, answers, pairs=((0, 1),), prompt_id="embedded"))


def _bos(checkpoint: Checkpoint) -> Finding:
    bos, ids = checkpoint.tokenizer.bos_token_id, _prompt(checkpoint).prompt_ids.tolist()
    if bos is None:
        return Finding("BOS", "ok", "the tokenizer has none")
    if not has_bos_for_text(checkpoint.tokenizer):
        return Finding("BOS", "ok", f"{_names(checkpoint, (bos,))} opens every turn")
    if ids.count(bos) > 1:
        return Finding("BOS", "fail", f"{ids.count(bos)} times in one prompt", "the template repeats it; use another")
    if ids[0] != bos:
        return Finding("BOS", "note", "the template writes none", "right for models trained without; check the "
                       "model's own examples")
    return Finding("BOS", "ok", "once, at the start")


def _stop_token(checkpoint: Checkpoint) -> Finding:
    tokenizer, known = checkpoint.tokenizer, checkpoint.config.eos_token_ids
    if not tokenizer.chat_template:
        return Finding("stop token", "ok", f"{_names(checkpoint, checkpoint.stop_ids)}")
    stop = end_of_turn(tokenizer).stop_id
    if stop not in known:
        return Finding("stop token", "note", f"the template ends turns with {_names(checkpoint, (stop,))}, which "
                       f"generation_config.json does not list ({_names(checkpoint, known)})",
                       "it is added here; other software would generate past the end of the turn")
    return Finding("stop token", "ok", f"{_names(checkpoint, (stop,))} ends turns and is in generation_config.json")


def _names(checkpoint: Checkpoint, ids: Sequence[int | None]) -> str:
    named = [i for i in ids if i is not None]
    return ", ".join(f"{checkpoint.tokenizer.convert_ids_to_tokens(int(i))!r} ({i})" for i in named) or "none"


def _stop_trained(checkpoint: Checkpoint) -> Finding:
    group = _prompt(checkpoint)
    for response in group.responses:
        last = int(response.ids[-1])
        if not response.loss_mask[-1] or last not in checkpoint.stop_ids:
            return Finding("stop token trained", "fail", f"a response ends with {_names(checkpoint, (last,))}, which "
                           "is no trained stop token", "the model would never learn to stop; use another template")
    return Finding("stop token trained", "ok", f"{_names(checkpoint, (last,))} is inside the loss")


def _padding(checkpoint: Checkpoint) -> Finding:
    plain = read_tokenizer(checkpoint.tokenizer_folder)  # as other software sees it
    if checkpoint.config.is_classifier:
        return _classifier_padding(checkpoint, plain)
    if plain.pad_token_id is not None and plain.pad_token_id in checkpoint.stop_ids:
        return Finding("padding", "note", f"the tokenizer's pad token is the stop token {plain.pad_token!r}",
                       "harmless here, where masks come from lengths and a reward model made of it gets another pad "
                       "token; other trainers then never teach the stop token")
    return Finding("padding", "ok", f"pad token {checkpoint.tokenizer.pad_token!r} is no stop token")


def _classifier_padding(checkpoint: Checkpoint, plain: Any) -> Finding:
    """Whether all software reads the head at one token: transformers looks for the last one that is not padding."""
    pad = checkpoint.config.pad_token_id
    prompt = [*CONVERSATION, {"role": "assistant", "content": ANSWERS[0]}]
    last = template_ids(plain, prompt, generation=False)[-1] if plain.chat_template else plain.eos_token_id
    if pad is not None and pad == last:
        return Finding("padding", "note", f"config.json pads with {_names(checkpoint, (pad,))}, with which a rendered "
                       "conversation ends", "transformers reads the head at the token before it, and so do we; vLLM "
                       "reads it at the last token and gives other scores")
    if plain.pad_token_id != pad:
        return Finding("padding", "note", f"the tokenizer pads with {_names(checkpoint, (plain.pad_token_id,))}, "
                       f"config.json says {_names(checkpoint, (pad,))}", "harmless here; transformers takes the "
                       "tokenizer's padding for text and reads a padded batch at the wrong token. Export the model")
    return Finding("padding", "ok", f"pad token {plain.pad_token!r} ends no conversation")


def _step_zero(checkpoint: Checkpoint, mesh: Mesh, groups: Sequence[PromptGroup]) -> Finding:
    config, groups = checkpoint.config, list(groups) or [_prompt(checkpoint)]
    params = checkpoint.params(mesh)
    rows = "the embedded conversation" if groups[0].prompt_id == "embedded" else f"{len(groups)} rows"
    if config.is_classifier:
        renderer = Renderer(checkpoint.tokenizer, eos_id=checkpoint.stop_ids[0])
        scorer = BradleyTerryScorer(params, config, renderer, mesh, output=0) if config.gate is None else \
            MultiObjectiveScorer(params, config, renderer, mesh)
        scores = [score for some in scores_in(scorer.score(groups)) for score in some]
        finite = all(score is not None and math.isfinite(score) for score in scores)
        return Finding("step 0", "ok" if finite else "fail", f"scores of {rows}: "
                       + ", ".join("none" if score is None else f"{score:.3f}" for score in scores[:4]))
    logps = np.concatenate([x for group in logps_map(Compute(config, mesh=mesh), mesh)(params, groups) for x in group])
    loss, chance = float(-np.mean(logps)), math.log(config.vocab_size)
    seen = f"loss {loss:.3f} nats per token over {len(logps):,} tokens of {rows}; chance is {chance:.3f}"
    if not math.isfinite(loss) or loss > chance + _NOISE:
        return Finding("step 0", "fail", seen, "worse than chance: the weights, the tokenizer or the template is not "
                       "the one the model was trained with")
    return Finding("step 0", "ok" if loss < 0.6 * chance else "note", seen,
                   "" if loss < 0.6 * chance else "high: an untrained model, foreign data, or a template it never saw")
