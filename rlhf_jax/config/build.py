"""Options from the nested mapping a user writes: flat keys find their group, `kind` its class, values their types."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser

from rlhf_jax.config.foreign import SAME_VALUES
from rlhf_jax.fields import Declared, declared, keys

T = TypeVar("T")
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "names"}


class UnknownKeys(ValueError):
    """Keys that no option has. given: dotted name -> value."""

    def __init__(self, given: dict[str, Any]):
        self.given = given
        super().__init__(f"no such key: {', '.join(given)}")


class _Values(ArgumentParser):
    """Checks and converts plain values by their type."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(message)


def build(options: type[T], tree: Mapping[str, Any]) -> T:
    """The options that `tree`, keys and values as in a YAML file, describes. A section that is null is as good as not
    given, so that a file can take back what an earlier one says.

    Raises:
      UnknownKeys: for keys that the options, of the chosen kinds, do not have.
      ValueError: for a value of another type, out of its range, in conflict or without effect; required keys missing.
    """
    if unknown := dict(_unknown(options, tree)):
        raise UnknownKeys(unknown)
    return _build(options, _given(options, tree), "")


def _build(options: type[T], tree: Mapping[str, Any], path: str) -> T:
    values: dict[str, Any] = {}
    for field in declared(options):
        where = path if field.flat else f"{path}{field.name}"
        if field.flat:
            values[field.name] = _group(field, _own(field, tree), path)
        elif field.kinds and isinstance(tree.get(field.name), Mapping):
            values[field.name] = _group(field, tree[field.name], f"{where}.")
        elif field.item and isinstance(tree.get(field.name), str | list | tuple):
            values[field.name] = tuple(_build(field.item, item, f"{where}[{number}].")
                                       for number, item in enumerate(_items(field, tree[field.name])))
        elif field.name in tree:
            values[field.name] = _value(field, tree[field.name], where)
        elif field.required:
            raise ValueError(f"{where} is missing; give {where}")
    try:
        return options(**values)
    except ValueError as error:
        raise ValueError(f"{path.rstrip('.')}: {error}" if path else str(error)) from error


def _given(options: type, tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys without sections that are null."""
    sections = {field.name for field in declared(options) if field.kinds and _plain(field.hint) is None}
    return {key: value for key, value in tree.items() if value is not None or key not in sections}


def _items(field: Declared, value: Any) -> list[Any]:
    """The mapping of each item; of one that is a plain value, it is that of the first field of its class."""
    first = declared(field.item)[0].name
    items = [value] if isinstance(value, str) else value
    return [item if isinstance(item, Mapping) else {first: item} for item in items]


def _own(field: Declared, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Of the keys of `tree` those that belong to a flat group."""
    names = {key.split(".")[0] for kind in field.kinds for key, _, _ in keys(kind)}
    return {key: value for key, value in tree.items() if key in names}


def kind_of(field: Declared, tree: Mapping[str, Any], path: str = "") -> type:
    """The class that a group's `kind` names; the default's, or the first, where it names none."""
    if len(field.kinds) == 1:
        return field.kinds[0]
    by_name = {kind_name(kind): kind for kind in field.kinds}
    named = tree.get("kind", kind_name(type(field.default) if field.default is not None else field.kinds[0]))
    if not isinstance(named, str) or named not in by_name:
        near = difflib.get_close_matches(str(named), by_name, n=1)
        raise ValueError(f"{path}kind = {named!r}; {f'did you mean {near[0]!r}? ' if near else ''}"
                         f"choose one of {', '.join(by_name)}")
    return by_name[named]


def kind_name(kind: type) -> str:
    """What a user writes as `kind` for one of several alternatives."""
    return str(next(field.default for field in declared(kind) if field.name == "kind"))


def _of_kind(field: Declared, kind: type, tree: Mapping[str, Any]) -> dict[str, Any]:
    """A group's keys without those that null takes back from an alternative that is not chosen."""
    own = {key.split(".")[0] for key, _, _ in keys(kind)}
    others = {key.split(".")[0] for other in field.kinds for key, _, _ in keys(other)} - own
    return {key: value for key, value in tree.items() if value is not None or key not in others}


def _group(field: Declared, tree: Mapping[str, Any], path: str) -> Any:
    kind = kind_of(field, tree, path)
    tree = _given(kind, _of_kind(field, kind, tree))
    if isinstance(field.default, kind):  # what is not given keeps the value it has in this place
        given = {**_as_tree(field.default), **tree}
        return _build(kind, given, path)
    return _build(kind, tree, path)


def _as_tree(options: Any) -> dict[str, Any]:
    """Options as a mapping of the fields that differ from the class's own defaults, flat groups merged."""
    tree: dict[str, Any] = {}
    for field in declared(type(options)):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        if dataclasses.is_dataclass(value):
            tree |= _as_tree(value) if field.flat else {field.name: _as_tree(value)}
        else:
            tree[field.name] = value
    return tree


def _unknown(options: type, tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of what a mapping gives and the options, of the chosen kinds, do not take."""
    taken: set[str] = set()
    for field in declared(options):
        inside = _own(field, tree) if field.flat else tree.get(field.name)
        if field.kinds and isinstance(inside, Mapping):
            kind = kind_of(field, inside, prefix if field.flat else f"{prefix}{field.name}.")
            dropped = set(inside) - set(inside := _of_kind(field, kind, inside))
            taken |= dropped if field.flat else set()
            names = {key.split(".")[0] for key, _, _ in keys(kind)}
            taken |= names if field.flat else {field.name}
            some = {key: value for key, value in inside.items() if key in names} if field.flat else inside
            yield from _unknown(kind, some, prefix if field.flat else f"{prefix}{field.name}.")
        elif not field.flat:
            taken.add(field.name)
            if field.item and isinstance(inside, str | list | tuple):
                for number, item in enumerate(_items(field, inside)):
                    yield from _unknown(field.item, item, f"{prefix}{field.name}[{number}].")
    yield from ((prefix + key, value) for key, value in tree.items() if key not in taken)


def _value(field: Declared, value: Any, where: str) -> Any:
    """A plain value, checked against the field's type."""
    if field.item:
        raise ValueError(f"{where} = {value!r}; give a list, of names or of objects {{{declared(field.item)[0].name}: "
                         "...}")
    plain = _plain(field.hint)
    if plain is None or (plain is type(None) and value is not None):
        raise ValueError(f"{where} = {value!r}; it takes keys of its own, such as {where}.{_first_key(field)}")
    value = _as_here(SAME_VALUES.get(field.name, {}), value)
    try:
        return _checker(plain).parse_object({"value": value}).value
    except ValueError as error:
        own = f", or keys of its own, such as {where}.{_first_key(field)}" if field.kinds else ""
        raise ValueError(f"{where} = {value!r:.200}; {_wanted(plain, value)}{own}") from error


def _as_here(same: Mapping[str, Any], value: Any) -> Any:
    """A value, or the values of a list, by the names that they have here."""
    if isinstance(value, str):
        return same.get(value, value)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        here = [same.get(one, one) for one in value]
        return here[0] if len(here) == 1 and isinstance(here[0], list) else here
    return value


def _wanted(hint: Any, value: Any) -> str:
    """What to give of this type instead of a value that is none."""
    if isinstance(value, str) and hint == tuple[str, ...]:
        return f"give a list: [{', '.join(part.strip() for part in value.split(','))}]"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    quoted = f', which {value} is in quotes of its own (--key \'"{value}"\')' if number and str in _types(hint) else ""
    return f"it must be {_in_words(hint)}{quoted}"


def _types(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type, itself where it has none."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _in_words(hint: Any) -> str:
    """A type as a user would say it."""
    if len(several := _types(hint)) > 1:
        words = dict.fromkeys(_in_words(one) for one in several if not (one is int and float in several))
        return ", or ".join([", ".join([*words][:-1]), [*words][-1]]) if len(words) > 2 else " or ".join(words)
    match typing.get_origin(hint):
        case typing.Literal:
            choices = [*map(str, typing.get_args(hint))]
            return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
        case None:
            return _WORDS.get(hint, "a value of another type")
        case origin if origin is tuple:
            return f"a list of {_PLURALS.get(typing.get_args(hint)[0], 'values')}"
        case _:
            return f"a mapping of names to {_PLURALS.get(typing.get_args(hint)[1], 'values')}"


def _first_key(field: Declared) -> str:
    return next(key for key, _, _ in keys(field.kinds[0]))


@functools.cache
def _checker(hint: Any) -> _Values:
    parser = _Values(default_env=False)
    parser.add_argument("--value", type=hint)
    return parser


def _plain(hint: Any) -> Any:
    """The type without its option classes, None where nothing is left."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        left = [plain for alternative in typing.get_args(hint) if (plain := _plain(alternative)) is not None]
        return functools.reduce(operator.or_, left) if left else None
    return hint
