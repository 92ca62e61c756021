"""Servers that are asked over HTTP: one client, its kept answers, and OpenAI's interface."""

from rlhf_jax.remote.answers import Origin
from rlhf_jax.remote.budget import BudgetSpent, RemoteError
from rlhf_jax.remote.client import LOST, Client
from rlhf_jax.remote.once import ask_once
from rlhf_jax.remote.openai import Question, chat, chat_text, completion, completion_text, first_token_logps

__all__ = ["LOST", "BudgetSpent", "Client", "Origin", "Question", "RemoteError", "ask_once", "chat", "chat_text",
           "completion", "completion_text", "first_token_logps"]
