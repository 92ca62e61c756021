"""Converters of single comparisons: each row becomes a prompt, a chosen and a rejected answer."""

from __future__ import annotations

from rlhf_jax.data.bad_row import BadRow, PromptAlone
from rlhf_jax.data.converters.base import Row, equal_ratings, others, turns
from rlhf_jax.data.converters.graded import helpsteer_prompt
from rlhf_jax.data.converters.instructions import INSTRUCTION, LAYOUT, instruction
from rlhf_jax.data.graded import finite_number


def alpaca_pairs(row: Row) -> Row:
    """`instruction`, `input`, `chosen`, `rejected` into a prompt of one user message and two answers."""
    return {**others(row, *INSTRUCTION, *LAYOUT), "prompt": turns(instruction(row)), "chosen": row["chosen"],
            "rejected": row["rejected"]}


def ultrafeedback_binarized(row: Row) -> Row:
    """UltraFeedback-binarized: a string `prompt` beside whole conversations; its `messages` repeat `chosen`."""
    return others(row, "messages")


def shp(row: Row, *, min_ratio: float) -> Row:
    """SHP: two comments on a post, of which `labels` = 1 says that A has more votes; margin: `score_ratio`.

    min_ratio: the rule of RLHFlow keeps ratios above 2. Its cap of pairs per prompt follows in the table.
    """
    ratio = finite_number(row["score_ratio"], "score_ratio")
    better, worse = ("A", "B") if _first_of_two(row["labels"], "labels") else ("B", "A")
    pair = {"prompt": row["history"], "chosen": row[f"human_ref_{better}"], "rejected": row[f"human_ref_{worse}"],
            "margin": ratio, "domain": row.get("domain")}
    if ratio <= min_ratio:
        raise PromptAlone("small_score_ratio", f"the votes have the ratio {ratio}; more than {min_ratio} is asked for",
                          pair)
    return pair


def _first_of_two(label: object, column: str) -> bool:
    if label not in (0, 1):
        raise BadRow("bad_label", f"column {column!r} holds {label!r}; it is 0 or 1")
    return bool(label)


def pku_saferlhf(row: Row, *, disagreeing: str) -> Row:
    """PKU-SafeRLHF-30K: a safe answer beats an unsafe one; of two alike, `better_response_id` is chosen.

    disagreeing: what becomes of rows whose more helpful answer is the unsafe one: "drop" or "safe" (the safe one is
      chosen). RLHFlow says that it merges both signals, not how.
    """
    if disagreeing not in ("drop", "safe"):
        raise ValueError(f"disagreeing is {disagreeing!r}; it is drop or safe")
    safe = [bool(row[f"is_response_{i}_safe"]) for i in (0, 1)]
    helpful = int(_first_of_two(row["better_response_id"], "better_response_id"))
    chosen = helpful if safe[0] == safe[1] else safe.index(True)
    kept = others(row, "response_0", "response_1", "better_response_id", "safer_response_id")
    if chosen != helpful and disagreeing == "drop":
        raise PromptAlone("labels_disagree", "the more helpful answer is the unsafe one", kept)
    return {**kept, "chosen": row[f"response_{chosen}"], "rejected": row[f"response_{1 - chosen}"]}


def argilla_math(row: Row) -> Row:
    """Argilla's math preferences (distilabel): `chosen_response`, `rejected_response` and their ratings."""
    ratings = {side: finite_number(row[f"{side}_rating"], f"{side}_rating") for side in ("chosen", "rejected")}
    used = [f"{side}_{what}" for side in ratings for what in ("response", "rating")]
    pair = {**others(row, "instruction", *used), "prompt": turns(row["instruction"]),
            "chosen": row["chosen_response"], "rejected": row["rejected_response"],
            "margin": ratings["chosen"] - ratings["rejected"]}
    if ratings["chosen"] == ratings["rejected"]:
        raise equal_ratings(ratings["chosen"], pair)
    return pair


def orca_pairs(row: Row) -> Row:
    """OpenOrca pairs, Intel's (`question`) or distilabel's (`input`, two ratings, of which equal ones are dropped)."""
    kept = {column: row[column] for column in ("id", "system", "tools") if column in row}
    pair = {**kept, "prompt": turns(row["input"] if "input" in row else row["question"]), "chosen": row["chosen"],
            "rejected": row["rejected"]}
    ratings = row.get("rating")
    if ratings is None:
        return pair
    first, second = (finite_number(rating, "rating") for rating in ratings)
    if first == second:
        raise equal_ratings(first, pair)
    return {**pair, "margin": abs(first - second)}


def helpsteer2_preference(row: Row) -> Row:
    """HelpSteer2's preference file: `preference_strength` from -3 (response 1 much better) to 3; 0 makes no pair."""
    strength = finite_number(row["preference_strength"], "preference_strength")
    better, worse = ("response_1", "response_2") if strength < 0 else ("response_2", "response_1")
    pair = {"prompt": helpsteer_prompt(row["prompt"]), "chosen": row[better], "rejected": row[worse],
            "margin": abs(strength)}
    if strength == 0:
        raise equal_ratings(strength, pair)
    return pair


def summarize(row: Row) -> Row:
    """OpenAI's summaries with human choices: `info` {title, post}, two `summaries` {text}, `choice` 0 or 1."""
    info, choice = row["info"], int(_first_of_two(row["choice"], "choice"))
    text = "\n\n".join(info[name] for name in ("title", "post", "article") if info.get(name))
    chosen, rejected = (row["summaries"][i]["text"] for i in (choice, 1 - choice))
    return {"id": info.get("id"), "prompt": turns(f"Summarize the following text:\n\n{text}"),
            "chosen": chosen.strip(), "rejected": rejected.strip()}


def dsp(row: Row, *, domain: str) -> list[Row]:
    """Domain-specific preferences: five styles of answer to one `query`; that of `domain` beats each of the others."""
    answers = row["responses"]
    return [{"prompt": turns(row["query"]), "chosen": answers[domain], "rejected": text, "rejected_domain": other}
            for other, text in answers.items() if other != domain]
