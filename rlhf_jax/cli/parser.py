"""YAML plus `--key value` as options; errors name the nearest key, or what other frameworks' keys are called here."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import yaml

from rlhf_jax.cli.config_file import read_config, read_value
from rlhf_jax.config.build import UnknownKeys, build
from rlhf_jax.config.foreign import ALIASES, OTHERS, REFUSED, TRL_VERBS, meant, split_idle
from rlhf_jax.fields import declared, flattened, keys

T = TypeVar("T")

SIMILAR = 0.8
"""A key that is this much like a known one (difflib's ratio) is a misspelling of it; less like, it means another."""
SHOWN_KEYS = 20
"""Unknown keys that one message names."""


def refuse(verb: str, message: str) -> NoReturn:
    """Ends the program with status 2 and a message that names where the keys are listed."""
    print(f"rlhf-jax {verb}: {message}\n(rlhf-jax {verb} --help lists the keys)", file=sys.stderr)
    raise SystemExit(2)


def instead(key: str, value: Any, options: type) -> str:
    """What to write instead of a key, with its value, that the options, of the chosen kinds, do not have."""
    head, _, tail = key.rpartition(".")
    known: dict[str, type] = {}
    for name, owner, _ in keys(options):
        known.setdefault(name, owner)
    beside = f"{head}." if head else ""
    if isinstance(value, Mapping) and [*value] == ["model_name_or_path"] and f"{key}_model" in known:
        return f"did you mean {f'{key}_model'!r}?"
    if isinstance(value, Mapping) and value and all(f"{beside}{inner}" in known for inner in value):
        return f"the keys of {tail} are given without it: {', '.join(f'{beside}{inner}' for inner in value)}"
    if f"{beside}{ALIASES.get(tail)}" in known:
        return f"did you mean {f'{beside}{ALIASES[tail]}'!r}?"
    if key in known:
        kind = next((f.default for f in declared(known[key]) if f.name == "kind"), None)
        return f"has no effect on this kind{f'; it belongs to kind: {kind}' if kind else ''}; leave it out"
    if tail in REFUSED:
        return REFUSED[tail]
    nearest_last = sorted(known, key=lambda name: (-name.count("."), name))
    names = {name.rsplit(".", 1)[-1]: name for name in nearest_last} | {name: name for name in known}
    everywhere = [*names, *(alias for alias, name in ALIASES.items() if name in names), *REFUSED]
    near = [name for word in (key, tail) for name in difflib.get_close_matches(word, everywhere, n=1, cutoff=SIMILAR)]
    words = set(tail.split("_"))
    near += sorted((name for name in names if words <= set(name.rsplit(".", 1)[-1].split("_"))), key=len)
    if not near:
        return "no key has a similar name"
    return f"did you mean {names[near[0]]!r}?" if near[0] in names else f"did you mean {near[0]!r}? ({meant(near[0])})"


def renamed(key: str, value: Any, known: set[str]) -> str:
    """The name of a key here: another if the key is an alias of a known one."""
    new = ALIASES.get(key)
    if key in known or new not in known or isinstance(value, Mapping):
        return key
    print(f"rlhf-jax: {key} is called {new} here", file=sys.stderr)
    return new


def _renamed_tree(value: Any, known: set[str]) -> Any:
    if not isinstance(value, dict):
        return value
    tree: dict[str, Any] = {}
    left, notes = split_idle(value, known)
    for note in notes:
        print(f"rlhf-jax: changes nothing here: {note}", file=sys.stderr)
    for key, child in left.items():
        name = renamed(key, child, known)
        if name in tree or (name != key and name in value):
            raise ValueError(f"{key} and {name} are one key; give it once")
        tree[name] = _renamed_tree(child, known)
    return tree


def parse(options: type[T], verb: str, words: Sequence[str]) -> T:
    """Builds `options` from `--config file.yaml` and `--key value`, later ones winning.

    Exits with status 2 and a message for unknown keys, wrong types, and values the options refuse.
    """
    try:
        tree = merged_tree(words)
    except ValueError as error:
        refuse(verb, str(error))
    return parse_tree(options, verb, tree)


def parse_tree(options: type[T], verb: str, tree: dict[str, Any]) -> T:
    """`parse` of a mapping that is already read."""
    try:
        return build(options, _renamed_tree(tree, {key.rsplit(".", 1)[-1] for key, _, _ in keys(options)}))
    except UnknownKeys as error:
        lines = [f"  {key}: {instead(key, value, options)}" for key, value in [*error.given.items()][:SHOWN_KEYS]]
        lines += [f"  and {len(error.given) - SHOWN_KEYS:,} more"] * (len(error.given) > SHOWN_KEYS)
        if verb in TRL_VERBS and sum(key in REFUSED and key not in OTHERS for key in error.given) > 1:
            lines += [f"this looks like a TRL config: rlhf-jax convert FILE --verb {verb} --output ours.yaml"]
        refuse(verb, "\n".join([f"no such key{'s' * (len(error.given) > 1)}:", *lines]))
    except ValueError as error:
        refuse(verb, str(error))


def merged_tree(args: Sequence[str]) -> dict[str, Any]:
    """All config files and `--key value` pairs as one nested mapping, in the order given."""
    trees: list[dict[str, Any]] = []
    queue = list(args)
    while queue:
        flag, equals, value = queue.pop(0).partition("=")
        if not flag.startswith("--"):
            raise ValueError(f"{flag!r} is not an option; options are written --key value or --key=value")
        if not equals:
            if not queue:
                raise ValueError(f"{flag} needs a value: {flag} VALUE")
            value = queue.pop(0)
        key = ".".join(part if "/" in part else part.replace("-", "_")  # with a stroke it is a name of data
                       for part in flag[2:].split("."))
        trees.append(read_config(value) if key == "config" else _nested(key, _flag_value(flag, value)))
    return _merged(trees)


def _nested(key: str, value: Any) -> dict[str, Any]:
    head, _, tail = key.partition(".")
    return {head: _nested(tail, value) if tail else value}


_MARKED = ("'", '"', "|", ">", "!", "&", "*")
"""What a text begins with that is written as YAML and not as it stands."""


def _flag_value(flag: str, text: str) -> Any:
    """A value as YAML reads it; a text stays as it was typed, where YAML sees a comment in it or folds its lines."""
    try:
        value = read_value(text)
        return text if isinstance(value, str) and text.lstrip()[:1] not in _MARKED else value
    except ValueError as error:
        raise ValueError(f"{flag} {text[:200]}: the value is not valid YAML; put it in quotes ({error})") from error


def _merged(trees: Sequence[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(out.get(key), dict)
            out[key] = _merged([out[key], value]) if both else value
    return out


def show(value: Any) -> str:
    """A resolved config as YAML."""
    plain = json.loads(json.dumps(flattened(value), default=str))
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=False)
