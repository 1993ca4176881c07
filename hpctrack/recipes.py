"""Recipes as plain values: YAML text and `key.sub=value` overrides, within bounds that no recipe needs.

What YAML allows beyond is an error that names the line: keys given twice, keys that are no words, aliases that make a
small text large, sections without end, numbers of thousands of digits, dates that are none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from hpctrack.errors import InputError
from hpctrack.process.arguments import shortened

BYTES_MAX = 1 << 18
DEPTH_MAX = 50
VALUES_MAX = 10_000
DIGITS_MAX = 40
YAML = "tag:yaml.org,2002:"
WORD, MERGE = f"{YAML}str", f"{YAML}merge"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # which YAML can spell


def read_recipe(path: Path) -> str:
    """The text of a recipe; InputError for what cannot be one: a folder, a device, a large file, another encoding."""
    if not path.exists():
        raise InputError(f"{path}: no such configuration file")
    if not path.is_file():
        raise InputError(
            f"{path}: a {'folder' if path.is_dir() else 'device or pipe'}, not a configuration file (YAML)"
        )
    with open(path, "rb") as file:
        content = file.read(BYTES_MAX + 1)
    if len(content) > BYTES_MAX:
        raise InputError(f"{path}: has more than {BYTES_MAX:,} bytes; a configuration file (YAML) is smaller")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        byte, line = content[error.start], content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from None


def parse_yaml(text: str, where: str) -> Any:
    """Safe YAML (numbers like 1e-3 are numbers); what it cannot be is an InputError naming `where` and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise InputError(f"{where}{line}: not valid YAML: {shortened(what, 200)}") from None


def apply_overrides(values: Any, overrides: Sequence[str], where: str) -> dict[str, Any]:
    """A copy of the nested mapping `values` in which each `key.sub=value` is set."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected `key: value` lines at the top, got {type(values).__name__}")
    values = dict(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w]*(\.[A-Za-z_][\w]*)*", key):
            raise InputError(f"{named(override)}: expected key.sub=value, e.g. optim.lr=0.001")
        node = values
        *parents, last = key.split(".")
        for depth, name in enumerate(parents):
            child = node.get(name)
            if child is not None and not isinstance(child, dict):
                raise InputError(f"{named(override)}: '{'.'.join(parents[: depth + 1])}' is a value, not a section")
            node[name] = dict(child or {})
            node = node[name]
        node[last] = parse_yaml(text, named(override))
    return values


def named(override: str) -> str:
    """An override as messages name it."""
    return f"override '{shortened(override)}'"


def origin(overrides: Sequence[str], key: Sequence[str]) -> str | None:
    """The override that set `key`, or a part of it, or what it is in; None if none did."""
    for override in reversed(overrides):
        own = override.partition("=")[0].split(".")
        if key and all(a == b for a, b in zip(own, key, strict=False)):
            return override
    return None


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as text; users mean a number. Bounds are kept while nodes are made, before any value is."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.measured: dict[int, tuple[int, int]] = {}  # values in a finished node with aliases expanded, and its depth

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node; an error if it is too deep, or makes too many values."""
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self.measured:
                refuse("an alias within what it stands for", mark)
            return node
        self.depth += 1
        if self.depth > DEPTH_MAX:
            refuse(f"more than {DEPTH_MAX} sections within each other", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        inner: list[tuple[int, int]] = []
        if isinstance(node, yaml.ScalarNode) and (found := _NO_TEXT.search(node.value)):
            refuse(f"the character U+{ord(found[0]):04X} is no part of a text", mark)
        elif isinstance(node, yaml.CollectionNode):
            parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
            inner = [self.measured[id(part)] for part in parts]
        size, depth = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
        if size > VALUES_MAX or depth > DEPTH_MAX:
            refuse(f"more than {VALUES_MAX:,} values, or {DEPTH_MAX} sections within each other", mark)
        self.measured[id(node)] = size, depth
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # a name or None; PyYAML's stub has a mapping
        """A mapping; an error if a key is no word, or is there twice."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (WORD, MERGE):
                what = f"'{shortened(key.value)}'" if isinstance(key, yaml.ScalarNode) else "a list or section"
                refuse(f"{what} is no key: a word is meant; quote what is one", key.start_mark)
            if key.value in lines:
                refuse(f"key '{shortened(key.value)}' is in lines {lines[key.value]} and {line}", key.start_mark)
            lines[key.value] = line
        return node


def refuse(problem: str, mark: yaml.Mark) -> NoReturn:
    """Raise YAML's own error."""
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _guarded(construct: Callable[[_Loader, yaml.Node], Any], what: str) -> Callable[[_Loader, yaml.Node], Any]:
    """A constructor whose failures are errors of the text."""

    def guarded(loader: _Loader, node: yaml.Node) -> Any:
        text = str(node.value)
        try:
            if what == "number" and len(text) > DIGITS_MAX:
                raise ValueError(f"more than {DIGITS_MAX} characters")
            return construct(loader, node)
        except (ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
            why = f" ({error})" if isinstance(error, (ValueError, OverflowError)) else ""
            refuse(f"'{shortened(text)}' is no {what}{why}; quote what is meant as text", node.start_mark)

    return guarded


_KINDS = {"int": "number", "float": "number", "bool": "truth value", "timestamp": "date", "binary": "base64"}
for _kind, _what in _KINDS.items():
    _Loader.add_constructor(f"{YAML}{_kind}", _guarded(yaml.SafeLoader.yaml_constructors[f"{YAML}{_kind}"], _what))
_Loader.add_implicit_resolver(
    f"{YAML}float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
