"""Config files and values of flags as YAML: plain values alone, each key once, within limits of size and depth."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES, MAX_VALUES = 1 << 18, 10_000
"""Of a config. Aliases count as often as they are used: a few lines of them can stand for billions of values."""

_FOREIGN = ("binary", "timestamp", "omap", "pairs", "set")
"""YAML's types that no key has; a date is then the text it is written as."""


class _Loader(yaml.SafeLoader):
    """YAML whose values JSON could hold too, and whose mappings give each key once."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _size(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key is a list or a mapping instead of a name,{key.start_mark}")
        given = Counter(key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge")
        if twice := sorted(key for key, count in given.items() if count > 1):
            raise yaml.YAMLError(f"the key {twice[0]!r} is given twice,{node.start_mark}")
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


_Loader.yaml_constructors = {tag: constructor for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
                             if tag is None or tag.rpartition(":")[2] not in _FOREIGN}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith("timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values under a node, aliases written out. Raises YAMLError above MAX_VALUES, and if a value holds itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.YAMLError(f"a value holds itself,{node.start_mark}")
        return known[id(node)]
    known[id(node)] = 0  # while it is counted
    below = [] if isinstance(node, yaml.ScalarNode) else [
        child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]
    known[id(node)] = 1 + sum(_size(child, known) for child in below)
    if known[id(node)] > MAX_VALUES:
        raise yaml.YAMLError(f"there are more than {MAX_VALUES:,} values, aliases written out,{node.start_mark}")
    return known[id(node)]


def read_value(text: str) -> Any:
    """The value that a YAML text stands for. Raises ValueError, saying what is wrong and where."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has {len(text):,} characters, and a config at most {MAX_BYTES:,}")
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(str(error)) from error


def read_config(path: str) -> dict[str, Any]:
    """The mapping of a YAML file. Raises ValueError, naming the file, for anything else."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"--config {path}: there is no such file")
    try:
        with file.open(encoding="utf-8") as stream:
            value = read_value(stream.read(MAX_BYTES + 1))
    except (ValueError, OSError) as error:
        raise ValueError(f"--config {path} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"--config {path} holds {type(value).__name__}; a config is a mapping of keys to values")
    return value
