"""Converters of conversations: HH-RLHF, ShareGPT, Capybara, UltraInteract."""

from __future__ import annotations

from rlhf_jax.data.converters.base import Row, equal_ratings, others
from rlhf_jax.data.example import NotedRow
from rlhf_jax.data.graded import finite_number
from rlhf_jax.data.groups import SYSTEM_ROLES
from rlhf_jax.data.turns import as_messages, parse_hh


def hh_rlhf(row: Row) -> Row:
    r"""HH-RLHF: `chosen` and `rejected` as "\n\nHuman: ... \n\nAssistant: ..." strings, into message lists.

    The validity filter of RLHFlow (equal turns, alternation, only the last turn differs) is that of every pair here.
    """
    return {**row, **{side: parse_hh(row[side], side) for side in ("chosen", "rejected")}}


def sharegpt(row: Row) -> Row:
    """ShareGPT `conversations` [{from, value}], with or without `chosen`/`rejected`, into messages.

    Greetings of the assistant before the first user turn are left out, which is what the files need most.
    """
    messages = as_messages(row["conversations"], "conversations")
    lead, count = (1 if messages[0]["role"] in SYSTEM_ROLES else 0), len(messages)
    while len(messages) > lead and messages[lead]["role"] == "assistant":
        del messages[lead]
    column = "prompt" if "chosen" in row and "rejected" in row else "messages"
    return NotedRow({**others(row, "conversations"), column: messages}, left_out_greetings=count - len(messages))


def capybara(row: Row) -> Row:
    """Capybara (distilabel): whole multi-turn `chosen` and `rejected`; equal ratings make no pair (RLHFlow's rule)."""
    chosen, rejected = (finite_number(row[f"rating_{side}"], f"rating_{side}") for side in ("chosen", "rejected"))
    repeated = ("prompt", "conversation", "original_response", "rating_chosen", "rating_rejected")
    pair = {**others(row, *repeated), "margin": chosen - rejected}
    if chosen == rejected:
        raise equal_ratings(chosen, pair)
    return pair


def ultrainteract(row: Row) -> Row:
    """UltraInteract_pair: a `trajectory` [{from, value}] and a correct and an incorrect next step of one parent."""
    return {**others(row, "trajectory"), "prompt": as_messages(row["trajectory"], "trajectory")}
