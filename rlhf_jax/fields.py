"""What an option declares at its field: the numbers it takes, when it has an effect, and whether its keys are flat.

    min_lr_rate: Annotated[float, between(0, 1), only_if(lr_scheduler_type="cosine_with_min_lr")] = 0.1
    data: Flat[DataOptions]

`Options`, their base, refuses everything else, from the command line and from Python alike.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

T = TypeVar("T")
LARGEST = 2**31 - 1
"""No count or size is larger: array indices on the devices are int32."""
MUCH = 1e12
"""No rate, weight or penalty that means anything is larger."""


class Range(NamedTuple):
    """Numbers from low to high; `above` leaves low itself out, `also` is one more number that is allowed."""

    low: float
    high: float
    above: bool = False
    also: float | None = None

    def holds(self, value: float) -> bool:
        inside = self.low < value if self.above else self.low <= value
        return (inside and value <= self.high) or value == self.also  # NaN is on no side of anything

    def __str__(self) -> str:
        least = f"{'greater than' if self.above else 'at least'} {self.low:g}"
        most = "" if self.high in (MUCH, LARGEST) else f" and at most {self.high:g}"
        return least + most + ("" if self.also is None else f", or {self.also:g}")


def at_least(low: float, high: float = LARGEST) -> Range:
    """low <= value <= high."""
    return Range(low, high)


def above(low: float, high: float = MUCH) -> Range:
    """low < value <= high."""
    return Range(low, high, above=True)


def between(low: float, high: float) -> Range:
    """low <= value <= high."""
    return Range(low, high)


POSITIVE = above(0)
COUNT = at_least(1)
SEED = at_least(0)
SHARE = between(0, 1)


class OnlyIf(NamedTuple):
    """Another field of the same options must have one of these values (any but null or 0 where `values` is empty),
    else this one would have no effect."""

    field: str
    values: tuple[Any, ...]

    def met(self, value: Any) -> bool:
        return value in self.values if self.values else bool(value)


def only_if(**condition: Any) -> OnlyIf:
    """`only_if(use_peft=True)`, `only_if(reference=("ema", "previous"))`."""
    ((field, values),) = condition.items()
    return OnlyIf(field, values if isinstance(values, tuple) else (values,))


def only_with(field: str) -> OnlyIf:
    """An effect only where `field` is given: neither null nor 0."""
    return OnlyIf(field, ())


class _Flat:
    """Marks a group whose keys stand among those of the options that hold it."""


Flat = Annotated[T, _Flat()]


class Declared(NamedTuple):
    """A field with what was declared at it.

    Attributes:
      kinds: the option classes it may hold, empty for a plain value.
      item: the option class that it holds any number of, None for another value.
    """

    name: str
    hint: Any
    kinds: tuple[type, ...]
    flat: bool
    range: Range | None
    only_if: OnlyIf | None
    default: Any
    required: bool
    item: type | None = None


_DECLARED: dict[Any, tuple[Declared, ...]] = {}


def declared(options: Any) -> tuple[Declared, ...]:
    """The fields of an options class, in order."""
    if options not in _DECLARED:
        hints = typing.get_type_hints(options, include_extras=True)
        _DECLARED[options] = tuple(_declared(field, hints[field.name]) for field in dataclasses.fields(options))
    return _DECLARED[options]


def _declared(field: dataclasses.Field[Any], annotated: Any) -> Declared:
    notes: tuple[Any, ...] = ()
    if typing.get_origin(annotated) is Annotated:
        annotated, *rest = typing.get_args(annotated)
        notes = tuple(rest)
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return Declared(field.name, annotated, tuple(_option_classes(annotated)),
                    any(isinstance(note, _Flat) for note in notes),
                    next((note for note in notes if isinstance(note, Range)), None),
                    next((note for note in notes if isinstance(note, OnlyIf)), None),
                    None if default is dataclasses.MISSING else default, default is dataclasses.MISSING,
                    _item_class(annotated))


def _item_class(hint: Any) -> type | None:
    items = typing.get_args(hint) if typing.get_origin(hint) is tuple else ()
    held = items[0] if items[1:] == (...,) else None
    return held if isinstance(held, type) and dataclasses.is_dataclass(held) else None


def _option_classes(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for alternative in typing.get_args(hint):
            yield from _option_classes(alternative)


class Options:
    """Base of all option classes: looks at every declared choice, range and condition, then at `conflicts`.

    Raises:
      ValueError: for null where it means nothing, a word that is no choice, a number out of its range, a key without
        effect, or values that contradict each other.
    """

    def __post_init__(self) -> None:
        for field in declared(type(self)):
            check_null(field, getattr(self, field.name))
            check_choice(field, getattr(self, field.name))
            check_range(field, getattr(self, field.name))
            check_effect(field, self)
        self.conflicts()

    def conflicts(self) -> None:
        """Raises ValueError for values that do not go together."""


def check_null(field: Declared, value: Any) -> None:
    """Raises ValueError if `value` is None and the field takes no null."""
    if value is None and type(None) not in typing.get_args(field.hint):
        raise ValueError(f"{field.name} is null; {'' if field.required else 'leave it out, or '}give a value")


def check_choice(field: Declared, value: Any) -> None:
    """Raises ValueError if the field is one of some words and `value` is another."""
    hints = (field.hint, *typing.get_args(field.hint))
    choices = [word for hint in hints if typing.get_origin(hint) is typing.Literal for word in typing.get_args(hint)]
    if choices and isinstance(value, str) and value not in choices:
        raise ValueError(f"{field.name} = {value!r}; choose from {', '.join(map(str, choices))}")


def check_range(field: Declared, value: Any) -> None:
    """Raises ValueError if `value`, or a number in it, is outside the field's range."""
    several = list(value.values()) if isinstance(value, Mapping) else value
    numbers = several if isinstance(several, tuple | list) else (several,)
    for number in numbers:
        if field.range is not None and isinstance(number, int | float) and not field.range.holds(number):
            none = ", or null" if not field.kinds and type(None) in typing.get_args(field.hint) else ""
            raise ValueError(f"{field.name} = {value!r}; it must be {field.range}{none}")


def check_effect(field: Declared, options: Any) -> None:
    """Raises ValueError if the field is set and its condition is not met."""
    condition, value = field.only_if, getattr(options, field.name)
    if condition is None or value == field.default or condition.met(getattr(options, condition.field)):
        return
    wanted = " or ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in condition.values)
    raise ValueError(f"{field.name} = {value!r} has no effect with {condition.field} = "
                     f"{getattr(options, condition.field)!r}; set {condition.field}{f': {wanted}' if wanted else ''}, "
                     "or leave it out")


def replaced(options: T, **changes: Any) -> T:
    """`dataclasses.replace`, with the fields that have no effect any more back at their defaults."""
    values: dict[str, Any] = {f.name: getattr(options, f.name) for f in declared(type(options))} | changes
    for field in declared(type(options)):
        if field.only_if is not None and not field.only_if.met(values[field.only_if.field]):
            values[field.name] = field.default
    return type(options)(**values)


def changed(options: Any) -> list[str]:
    """Names of the fields that do not have their defaults."""
    return [field.name for field in declared(type(options)) if getattr(options, field.name) != field.default]


def flattened(options: Any) -> dict[str, Any]:
    """Options as the nested mapping a user writes: flat groups stand among the keys of what holds them."""
    tree: dict[str, Any] = {}
    for field in declared(type(options)):
        value = getattr(options, field.name)
        if field.item:
            tree[field.name] = [flattened(item) for item in value]
            continue
        inner = flattened(value) if dataclasses.is_dataclass(value) else value
        tree |= inner if field.flat else {field.name: inner}
    return tree


def keys(options: type, prefix: str = "") -> Iterator[tuple[str, type, Declared]]:
    """(dotted key, the class that holds the field, the field) of all options inside, alternatives included."""
    for field in declared(options):
        name = prefix + field.name
        if not field.flat:
            yield name, options, field
        for kind in field.kinds:
            yield from keys(kind, prefix if field.flat else f"{name}.")
        if field.item:
            yield from keys(field.item, f"{name}[].")
