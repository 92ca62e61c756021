"""Options: plain dataclasses that import neither jax nor a tokenizer, so that help and checks are quick.

Every number declares its range and every conditional key its condition at the field (`fields`); commands hold groups of
options and the keys a user types stay flat (`build`).
"""
