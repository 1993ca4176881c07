"""The reference of every key of the configuration, from what the fields say of themselves (config.py)."""

from __future__ import annotations

import inspect
import json
import math
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from hpctrack.config import Named, RunConfig, Section
from hpctrack.errors import InputError
from hpctrack.events.features import FEATURES
from hpctrack.process.arguments import REAL_MAX, WHOLE_MAX, Unit
from hpctrack.reference.markdown import code, table
from hpctrack.training.run_settings import OPTIONS, is_free, section_kind

COLUMNS = ("key", "type", "default", "bounds", "unit", "changes the result", "what it is")
TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
NESTED = (Named, dict[str, Any])  # sections that name an entry of a table
UNITS = {"gev": "GeV", "mm": "mm", "per_mm": "rad/mm", "rad": "rad", "t": "T", "s": "s", "gib": "GiB", "mb": "MB"}
SIGNS = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))  # bounds, as pydantic keeps them
SECTIONS = {  # what the entries of each table are
    "model": "Models. `model.name` chooses one.",
    "backbone": "Networks on hits, within models of the form backbone and heads. `model.backbone.name` chooses one.",
    "loss": "Losses. `loss.name` chooses one.",
    "graph": "What makes the edges between an event's hits. `data.graph.name` chooses one.",
    "builder": "What makes track candidates of a model's outputs. `builder.name` chooses one.",
    "method": "Methods without training, for `hpctrack infer --method NAME method.key=value`.",
}
HEAD = f"""# Configuration keys

For who writes or changes a recipe. Every key of a YAML recipe is here, with what the code itself says of it.
`hpctrack config --reference` prints this page for the version that is installed; `hpctrack config RECIPE` prints a
recipe with every default filled in.

- **Set a key** in the YAML file, or behind the recipe: `hpctrack train influencer optim.lr=5e-4`. Unknown keys, and
  values of another type, are errors.
- **type**: `null` is a value where the type says so. **default**: *required* if there is none.
- **bounds**: beyond these, a whole number is at most {WHOLE_MAX:,} in size, another number {REAL_MAX:g}, if nothing
  else is said. All numbers are finite.
- **unit**: a dash for numbers without one.
- **changes the result**: *yes* if what is computed depends on the key. A resumed run may have other values of keys with
  *no*, and must have the same values of keys with *yes*.
"""


class Entry(NamedTuple):
    """An entry of a table: the section that names it, its name, what it is, its options (None if `missing`)."""

    section: str
    name: str
    about: str
    options: type[Section] | None
    missing: str = ""


def page(plugins: bool = False) -> str:
    """The page as Markdown; with `plugins`, entries of other packages that are installed are on it."""
    parts = [HEAD, "## Sections of a recipe\n"]
    for prefix, kind in sections(RunConfig):
        parts.append(f"### {code(prefix) if prefix else 'Top level'}\n\n{kind.__doc__}\n")
        parts.append(key_table(kind, f"{prefix}." if prefix else ""))
    found = list(entries(plugins))
    for section, about in SECTIONS.items():
        parts.append(f"## Entries of {code(section)}\n\n{about}\n")
        for entry in (each for each in found if each.section == section):
            parts.append(f"### {code(f'{section}: {{name: {entry.name}}}')}\n\n{entry.about}\n")
            if entry.options is None:
                parts.append(f"{entry.missing}\n")
            else:
                parts.append(key_table(entry.options, f"{section}.") or "No options.\n")
    rows = ((code(name), code(each.formula), ", ".join(map(code, each.columns))) for name, each in FEATURES.items())
    parts.append(
        "## Features\n\nNames for `data.features`: what a model reads in `batch.x`, scaled to order one, and columns "
        "of a\ndataset that it is made of. Lengths are in mm, angles in rad.\n"
    )
    parts.append(table(("feature", "value", "columns"), rows))
    return "\n".join(parts)


def sections(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """A section and those in it, each with its dotted key; `[]` stands after a list of sections."""
    yield prefix, kind
    for name, info in kind.model_fields.items():
        inner = section_kind(info)
        if inner is not None and inner is not Named:
            mark = "" if is_section(info) else "[]"
            yield from sections(inner, f"{prefix}.{name}{mark}".lstrip("."))


def is_section(info: FieldInfo) -> bool:
    """Whether a field is a section of the recipe, with keys of its own; a list of sections is a key."""
    return section_kind(info) not in (None, Named) and get_origin(info.annotation) is not list


def entries(plugins: bool) -> Iterator[Entry]:
    """Every entry of every table; with `plugins`, those of other packages, too."""
    for section, known in OPTIONS.items():
        for name in sorted(known if plugins else known.own):
            try:
                kind = known[name]
            except InputError as error:
                yield Entry(section, name, "", None, str(error))
            else:
                yield Entry(section, name, (inspect.getdoc(kind) or "").split("\n\n")[0], kind.Options)


def key_table(kind: type[BaseModel], prefix: str) -> str:
    """The table of a section's own keys, without those of sections in it; empty if it has none."""
    fields = kind.model_fields.items()
    rows = [row(f"{prefix}{name}", info) for name, info in fields if not is_section(info)]
    return table(COLUMNS, rows) if rows else ""


def row(key: str, info: FieldInfo) -> tuple[str, ...]:
    """What a field says of itself."""
    default = "*required*" if info.is_required() else code(plain(info.get_default(call_default_factory=True)))
    result = "no" if is_free(info) else "yes"
    return code(key), type_of(info.annotation), default, bounds(info), unit(key, info), result, info.description or ""


def plain(value: Any) -> str:
    """A value as YAML spells it."""
    value = to_jsonable_python(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {plain(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def type_of(annotation: Any) -> str:
    """A type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in NESTED:
        return "name and options"
    if origin is Annotated:
        return type_of(args[0])
    if origin is Literal:
        return ", ".join(code(plain(value)) for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join("`null`" if arg is type(None) else type_of(arg) for arg in args)
    if origin is list:
        return f"list of {plural(args[0])}"
    if origin is tuple:
        return f"list of {len(args)} {plural(args[0])}"
    return TYPES[annotation]


def plural(annotation: Any) -> str:
    """The type of a list's values."""
    inner = section_kind(FieldInfo(annotation=annotation))
    one = "sections" if inner is not None else type_of(annotation)
    return f"{one}s" if one in ("whole number", "number", "text") else one


def rules(annotation: Any, metadata: Iterable[Any] = ()) -> Iterator[Any]:
    """What stands beside a type, at any depth of it: bounds, units."""
    for rule in metadata:
        yield from rules(None, rule.metadata) if isinstance(rule, FieldInfo) else (rule,)
    if get_origin(annotation) is Annotated:
        inner, *beside = get_args(annotation)
        yield from rules(inner, beside)
    elif get_origin(annotation) is not Literal:
        for arg in get_args(annotation):
            yield from rules(arg)


def bounds(info: FieldInfo) -> str:
    """The bounds of a field's numbers, or of a list's length."""
    found = dict.fromkeys(text for rule in rules(info.annotation, info.metadata) for text in bounds_of(rule))
    return ", ".join(found)


def bounds_of(rule: Any) -> Iterator[str]:
    """One rule in words."""
    for kind, name, sign in SIGNS:
        if isinstance(rule, kind) and (value := getattr(rule, name)) != math.inf:
            yield f"{sign} {value:,}" if isinstance(value, int) else f"{sign} {value:g}"
    if isinstance(rule, MinLen):
        yield f"{rule.min_length} or more of them"
    if pattern := getattr(rule, "pattern", None):
        yield code(pattern)


def unit(key: str, info: FieldInfo) -> str:
    """The unit of a field: what it says, or what its name ends in; a dash for other numbers, nothing for the rest."""
    said = [rule.name for rule in rules(info.annotation, info.metadata) if isinstance(rule, Unit)]
    words = key.rpartition(".")[2].split("_")
    ends = ["_".join(words[k:]) for k in range(1, len(words))]
    found = said or [UNITS[end] for end in ends if end in UNITS]
    return found[0] if found else "–" if "number" in type_of(info.annotation) else ""
