"""The embedded default: a small world of postcards made by seeded code, whose truth is known.

People ask for a postcard from a place about a thing; writers of mixed talent answer in two to five short sentences.
The gold judge is a known, graded function of the answer. It draws the noisy Bradley-Terry labels of the offline
preference set and it evaluates; training sees only the labels and what a reward model makes of them. On request the
labels like longer answers than the judge does (`length_taste`), and raters give some of several ratings, each a known
function too.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.arithmetic import BYTES, arithmetic_rows
from rlhf_jax.data.groups import Message
from rlhf_jax.data.ratings import Scale

PLACES = ("harbor", "mountain", "desert", "island", "forest", "castle", "market", "village",
          "valley", "beach", "garden", "river", "station", "meadow", "temple", "canyon")
THINGS = ("cat", "storm", "train", "dinner", "letter", "song", "boat", "bridge",
          "dog", "parade", "clock", "picnic", "horse", "lantern", "dance", "kite")
VIVID = ("golden", "gentle", "curious", "shining", "silver", "playful", "quiet", "bright", "ancient", "sweet")
COMPLAINTS = ("boring", "awful", "dull", "nasty")
FRIENDS = ("Mia", "Noah", "Ruth", "Omar", "Lena", "Theo")
WRITERS = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn")
REQUESTS = (
    "Write a postcard from the {place} about a {thing}.",
    "Please send me a card from the {place}. Tell me about the {thing}.",
    "I want a postcard about a {thing} at the {place}.",
    "What did the {thing} do at the {place}? Write me a card.",
    "Could I have a card about a {thing} from the {place}?",
    "You are at the {place}. Write to me about a {thing}.",
    "Tell me in a postcard about the {place} and the {thing}.",
    "How is the {place}? Is there a {thing}? Send me a postcard.",
)
HELD_OUT = 4
"""One in so many subjects (a place and a thing) is asked for in evaluation only, in every form of request."""
WORDS = 640
"""Tokens of the postcards' tokenizer."""
WORD_LIMIT = 32
"""Words beyond this cost: the judge is not maximised by length."""
RATING_SCALE = Scale(0, 4, unit=False)
"""Of every rating, as HelpSteer's; rows hold them in 0 to 1."""
RATED_ANSWERS = 4
"""Answers to each prompt of the rated sets."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}{{ message['content'] }}<|end|>"
    "{% endgeneration %}{% else %}<|user|>{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def judge_text(prompt: str, answer: str) -> float:
    """The gold score of an answer, between about -5 and 5. Higher is better.

    1 for naming the place that was asked for, 1 for the thing, 0.5 for each vivid word (three count), 0.5 for a
    greeting, 0.5 for a signature. Minus 0.75 for each repeated sentence, 1 for each complaint, 0.5 for each place or
    thing nobody asked about, 0.1 for each word beyond `WORD_LIMIT`, 1 for an unfinished last sentence.
    """
    asked, words = set(_words(prompt)), _words(answer)
    said = set(words)
    score = sum(1.0 for kind in (PLACES, THINGS) for word in kind if word in asked and word in said)
    score += 0.5 * min(3, len(said & set(VIVID)))
    score += 0.5 * _greets(answer) + 0.5 * _signs(answer)
    sentences = [s.strip().lower() for s in re.split(r"[.!?]", answer) if s.strip()]
    score -= 0.75 * (len(sentences) - len(set(sentences)))
    score -= 1.0 * sum(word in COMPLAINTS for word in words)
    score -= 0.5 * len((said & {*PLACES, *THINGS}) - asked)
    score -= 0.1 * max(0, len(words) - WORD_LIMIT)
    score -= 1.0 * (not answer.rstrip().endswith((".", "!", "?")))
    return float(score)


def rate_text(prompt: str, answer: str) -> dict[str, int]:
    """What a rater with this quality in mind gives, in whole steps of `RATING_SCALE`.

    overall: the judge's score, rounded (halves to even). relevance: 2 for naming the place, 2 for the thing, minus 1
    for each that nobody asked about. vividness: vivid words. politeness: 2 for a greeting, 2 for a signature, minus 1
    for each complaint. verbosity: 1 for every 8 words.
    """
    asked, words = set(_words(prompt)), _words(answer)
    said = set(words)
    subjects = said & {*PLACES, *THINGS}
    steps = {"overall": round(judge_text(prompt, answer)),
             "relevance": 2 * len(subjects & asked) - len(subjects - asked),
             "vividness": len(said & set(VIVID)),
             "politeness": 2 * _greets(answer) + 2 * _signs(answer) - sum(word in COMPLAINTS for word in words),
             "verbosity": len(words) // 8}
    return {name: min(max(step, int(RATING_SCALE.low)), int(RATING_SCALE.high)) for name, step in steps.items()}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _greets(answer: str) -> bool:
    return answer.startswith("Dear ")


def _signs(answer: str) -> bool:
    return bool(re.search(rf"Love, ({'|'.join(WRITERS)})\.\s*$", answer))


def gold_judge(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """`judge_text` in the signature of reward functions: f(prompts, completions, **columns) -> scores."""
    del columns
    return [judge_text(_content(p), _content(c)) for p, c in zip(prompts, completions, strict=True)]


def rater(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[dict[str, float]]:
    """`rate_text` in the signature of reward functions: ratings in 0 to 1 by name, the score is `overall`."""
    del columns
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ratings = {name: RATING_SCALE.to_unit(step)
                   for name, step in rate_text(_content(prompt), _content(completion)).items()}
        found.append({"": ratings["overall"], **ratings})
    return found


def _content(text: str | list[Message]) -> str:
    return text if isinstance(text, str) else text[-1]["content"]


def _sentence(rng: random.Random, place: str, thing: str, vivid: float, complaint: float) -> str:
    adjective = rng.choice(VIVID) + " " if rng.random() < vivid else ""
    other = rng.choice(VIVID) if rng.random() < vivid else "small"
    if rng.random() < complaint:
        return rng.choice((f"The {place} is {rng.choice(COMPLAINTS)} today.",
                           f"It was a {rng.choice(COMPLAINTS)} {thing}."))
    return rng.choice((
        f"The {adjective}{thing} is {other}.",
        f"I saw a {adjective}{thing} near the {place}.",
        f"The {place} is {other} in the morning.",
        f"We walked to the {adjective}{place} together.",
        f"A {adjective}{thing} came to the {place} at night.",
        f"Everyone here loves the {thing}.",
    ))


def write_answer(rng: random.Random, place: str, thing: str) -> str:
    """An answer by a writer of random talent: may greet or not, digress, complain, repeat itself or ramble."""
    talent = rng.random()
    parts = [f"Dear {rng.choice(FRIENDS)},"] if rng.random() < 0.25 + 0.4 * talent else []
    for _ in range(rng.randint(1, 5)):
        wrong = rng.random() < 0.3 * (1 - talent)
        parts.append(_sentence(rng, rng.choice(PLACES) if wrong else place, rng.choice(THINGS) if wrong else thing,
                               vivid=0.15 + 0.4 * talent, complaint=0.25 * (1 - talent)))
        if rng.random() < 0.12 * (1 - talent):
            parts.append(parts[-1])
    if rng.random() < 0.2 + 0.4 * talent:
        parts.append(f"Love, {rng.choice(WRITERS)}.")
    return " ".join(parts)


def _split(rng: random.Random) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The (place, thing) of training and of evaluation; each place and each thing is held out equally often."""
    places, things = rng.sample(PLACES, len(PLACES)), rng.sample(THINGS, len(THINGS))
    subjects: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for (i, place), (j, thing) in itertools.product(enumerate(places), enumerate(things)):
        subjects[(i + j) % HELD_OUT == 0].append((place, thing))
    return subjects


def _asks(rng: random.Random, subjects: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str, str]]:
    """(request, place, thing), every request about each of `subjects` once before any comes again."""
    combinations = list(itertools.product(REQUESTS, subjects))
    out: list[tuple[str, str, str]] = []
    while len(out) < count:
        rng.shuffle(combinations)
        out += [(r.format(place=p, thing=t), p, t) for r, (p, t) in combinations]
    return out[:count]


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def world_rows(config: WorldConfig) -> dict[str, list[dict[str, Any]]]:
    """All data sets: sft, preference (train and held out), prompts for the loop, prompts for evaluation, rated answers.

    The preference labels are drawn, P(first better) = sigma(gold gap / label_noise + length_taste / 10 per word more):
    they contradict the judge at times, as people do. preference_eval, eval_prompts and rated_eval ask about subjects (a
    place and a thing) that no training set asks about: 1 in `HELD_OUT` of them, another choice for another seed. rated
    and rated_eval are there if asked for; the former has holes, the latter all ratings.
    """
    rng = random.Random(f"postcards {config.seed}")
    training, evaluation = _split(rng)
    held_out = max(100, config.preference_rows // 10)
    rows = {"sft": [{"id": f"sft-{i}", "prompt": _user(ask), "completion": _assistant(write_answer(rng, place, thing))}
                    for i, (ask, place, thing) in enumerate(_asks(rng, training, config.sft_rows))]}
    rows["preference"] = [_pair(rng, f"pair-{i}", ask, config)
                          for i, ask in enumerate(_asks(rng, training, config.preference_rows))]
    rows["preference_eval"] = [_pair(rng, f"held-out-{i}", ask, config)
                               for i, ask in enumerate(_asks(rng, evaluation, held_out))]
    for name, subjects, count in (("prompts", training, config.prompt_rows),
                                  ("eval_prompts", evaluation, config.eval_prompts)):
        rows[name] = [{"id": f"{name}-{i}", "prompt": _user(ask)}
                      for i, (ask, _, _) in enumerate(_asks(rng, subjects, count))]
    if config.rated_rows:
        raters = random.Random(f"raters {config.seed}")  # their own, so that the other sets are the same without them
        rows["rated"] = _rated(raters, "rated", _asks(raters, training, config.rated_rows), config.rating_holes)
        rows["rated_eval"] = _rated(raters, "rated-eval", _asks(raters, evaluation, max(100, config.rated_rows // 4)))
    return rows


def _rated(rng: random.Random, name: str, asks: Sequence[tuple[str, str, str]], holes: float = 0.0
           ) -> list[dict[str, Any]]:
    """Graded rows: `RATED_ANSWERS` different answers, each with those of its ratings that were not left out."""
    rows = []
    for i, (ask, place, thing) in enumerate(asks):
        answers: dict[str, None] = {}
        while len(answers) < RATED_ANSWERS:
            answers[write_answer(rng, place, thing)] = None
        rows.append({"id": f"{name}-{i}", "prompt": _user(ask), "responses": [
            {"text": _assistant(answer), "scores": {rating: RATING_SCALE.to_unit(step) for rating, step in
                                                    rate_text(ask, answer).items() if rng.random() >= holes}}
            for answer in answers]})
    return rows


def _pair(rng: random.Random, name: str, asked: tuple[str, str, str], config: WorldConfig) -> dict[str, Any]:
    """A preference row: two different answers, the label drawn from the gap of their gold scores and lengths."""
    ask, place, thing = asked
    first = second = write_answer(rng, place, thing)
    while second == first:
        second = write_answer(rng, place, thing)
    gap = judge_text(ask, first) - judge_text(ask, second)
    longer = len(_words(first)) - len(_words(second))
    if rng.random() >= 1 / (1 + math.exp(-(gap / config.label_noise + config.length_taste * longer / 10))):
        first, second = second, first
    return {"id": name, "prompt": _user(ask), "chosen": _assistant(first), "rejected": _assistant(second)}


def train_tokenizer(rows: dict[str, list[dict[str, Any]]], vocab_size: int = WORDS) -> Any:
    """A byte-level BPE tokenizer of the world's own words, with its chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    lines = [_content(row["prompt"]) + " " + _content(row["completion"]) for row in rows["sft"]]
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>",
                                   pad_token="<pad>", chat_template=CHAT_TEMPLATE)


def write_world(folder: Path, config: WorldConfig) -> None:
    """Writes the data sets as JSONL and the tokenizer, ready for the same commands as any other data."""
    arithmetic = config.subject == "arithmetic"
    rows = arithmetic_rows(config) if arithmetic else world_rows(config)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    partial = folder / ".tokenizer.partial"
    train_tokenizer(rows, BYTES if arithmetic else WORDS).save_pretrained(partial)
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    partial.replace(folder / "tokenizer")  # last and at once: a world with a tokenizer is whole
