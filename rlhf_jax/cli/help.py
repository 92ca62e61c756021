"""Help: the keys of a verb with type, default and the words of the docstrings; needs neither jax nor a tokenizer."""

from __future__ import annotations

import json
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from docstring_parser import parse

from rlhf_jax.cli.parser import refuse
from rlhf_jax.config.build import kind_name
from rlhf_jax.fields import Declared, declared

WIDTH = 118


def print_help(verb: str, options: type, section: str = "", *, dry_run: bool = True,
               given: Mapping[str, Any] | None = None) -> None:
    """Prints the keys of a verb, or of one of its sections.

    dry_run: whether the verb has one. given: what a config that the verb brings along says, as a tree.
    """
    kinds: tuple[type, ...] = (options,)
    prefix, known, holder = "", given or {}, None
    for name in filter(None, section.split(".")):
        found = next(((f, owner) for f, owner in _fields(kinds[0], holder) if f.name == name and (f.kinds or f.item)),
                     None)
        if found is None:
            refuse(verb, f"there is no section {section!r}")
        field, owner = found
        holder = None if field.item else _default(field, owner)
        kinds, prefix = (field.item,) if field.item else field.kinds, f"{prefix}{name}{'[]' if field.item else ''}."
        known = known[name] if isinstance(known.get(name), Mapping) else {}
    usage = f"usage: rlhf-jax {verb} [--config x.yaml] [--key value ...]{' [--dry-run]' * dry_run}"
    print(f"{usage}\n\n{summary(kinds[0])}" if len(kinds) == 1 else usage)
    for title, lines in _groups(kinds, prefix, "", set(), known, holder, {}):
        print("\n" + "\n".join([title] * bool(title) + lines))
    print("\n--config may be given more than once; later values win. A key without effect is an error.")


def summary(documented: type) -> str:
    """The first line of a docstring."""
    return (documented.__doc__ or "").split("\n")[0]


def _default(field: Declared, holder: Any) -> Any:
    """A field's default: of the options that hold it, where they stand as a default themselves, else its class's."""
    return field.default if holder is None else getattr(holder, field.name)


def _held(kind: type, holder: Any) -> Any:
    """The options that give the defaults of this kind, None where its class does."""
    return holder if isinstance(holder, kind) else None


def _fields(options: type, holder: Any) -> Iterator[tuple[Declared, Any]]:
    """All fields of options with the options that hold them, those of flat groups among them."""
    holder = _held(options, holder)
    for field in declared(options):
        if not field.flat:
            yield field, holder
        for kind in field.kinds if field.flat else ():
            yield from _fields(kind, _default(field, holder))


def _groups(kinds: tuple[type, ...], prefix: str, title: str, seen: set[type], given: Mapping[str, Any], holder: Any,
            others: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Title and lines of each group: a command's own keys first, then those of its flat groups, each group once.

    holder: the options of one of these kinds that give the defaults. others: of a group that several kinds share, the
    options that give the defaults with each of the other kinds.
    """
    if len(kinds) > 1:
        names = "|".join(map(kind_name, kinds))
        here = f"given by this verb: {given['kind']}" if "kind" in given else (
            f"default {kind_name(type(holder) if isinstance(holder, kinds) else kinds[0])}")
        yield "", [f"  --{prefix}kind {names}", *_body(_words(kinds[0])["kind"], here)]
    for kind in kinds:
        known = given if len(kinds) == 1 or kind_name(kind) == given.get("kind") else {}
        held = _held(kind, holder)
        own = [f for f in declared(kind) if not f.flat and (f.name != "kind" or len(kinds) == 1)]
        if own:
            words = _words(kind)
            yield (f"kind: {kind_name(kind)}. {summary(kind)}" if len(kinds) > 1 else title,
                   [line for f in own for line in _entry(f, words.get(f.name), prefix, known, _default(f, held), {
                       name: getattr(other, f.name) for name, other in others.items()})])
        seen.add(kind)
        for field in declared(kind):
            if field.flat and not seen.issuperset(field.kinds):
                shared = _shared(field, kinds) if len(kinds) > 1 else {
                    name: getattr(other, field.name) for name, other in others.items()}
                yield from _groups(field.kinds, prefix, f"{summary(field.kinds[0]).split('. ')[0].rstrip('.')}:", seen,
                                   known, _default(field, held), shared)


def _shared(group: Declared, kinds: tuple[type, ...]) -> dict[str, Any]:
    """Name of each kind that has this flat group with defaults of its own -> those."""
    return {kind_name(kind): field.default for kind in kinds for field in declared(kind)
            if field.flat and field.kinds == group.kinds and field.default is not None}


def _words(documented: type) -> dict[str, str | None]:
    """What the docstring says of each field."""
    return {item.arg_name: item.description for item in parse(documented.__doc__ or "").params}


def _entry(field: Declared, words: str | None, prefix: str, given: Mapping[str, Any], default: Any,
           others: Mapping[str, Any]) -> list[str]:
    """The lines of an option. others: name of another kind -> its default."""
    text, facts = words or "", "required" if field.required else ""
    if field.kinds or field.item:
        text += f" (--{prefix}{field.name}.help lists {'the keys of each' if field.item else 'its keys'})"
        facts = "given by this verb" if field.name in given else facts
    elif field.name in given:
        facts = f"given by this verb: {_shown(given[field.name])}"
    elif not field.required:
        facts = "".join([f"default {_shown(default)}", *(f"; of kind {name} {_shown(other)}" for name, other in
                                                         others.items() if other != default)])
    if field.range is not None:
        facts += f"; {field.range}"
    kind = f"[{declared(field.item)[0].name.upper()} | {{...}}, ...]" if field.item else _type(field.hint)
    head = f"  --{prefix}{field.name} {kind}".rstrip()
    return [head, *_body(text, facts)]


def _body(text: str | None, facts: str) -> list[str]:
    """The lines under an option's name; Python's None is null on the command line and in YAML."""
    said = re.sub(r"\bNone\b", "null", " ".join((text or "").split()))
    return [f"      {line}" for line in textwrap.wrap(f"{said} [{facts}]" if facts else said, WIDTH - 6)]


def _shown(value: Any) -> str:
    if isinstance(value, str) and not value.strip():
        return json.dumps(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else (
        f"[{', '.join(map(str, value))}]" if isinstance(value, tuple | list) else str(value))


def _type(hint: Any) -> str:
    """A type as a user would say it."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return {"str": "TEXT", "int": "INT", "float": "NUMBER", "bool": "true|false"}.get(hint.__name__, "")
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is Mapping:
        return "{NAME: VALUE, ...}"
    inner = [_type(part) for part in typing.get_args(hint) if part not in (type(None), ...)]
    if typing.get_origin(hint) is tuple:
        return f"[{inner[0]}, ...]"
    return "|".join(dict.fromkeys(part for part in inner if part))
