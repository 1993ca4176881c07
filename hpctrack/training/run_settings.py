"""What a run's settings mean, whatever version wrote them, and whether two runs compute the same.

A checkpoint says the SCHEMA that it was written in. Settings of an older one are brought to today's by CHANGES. A key
that it lacks, since it is newer, has the default that held then: today's, unless CHANGES says otherwise. A key that
this version lacks, since it is newer or gone, does no harm if it changed nothing, which the checkpoint says itself
(`neutral`). So a new key with a default that does what was done before needs no entry here, and no new SCHEMA.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from hpctrack.config import Named, RunConfig, Section, lookup, parse
from hpctrack.errors import InputError
from hpctrack.graphs import GRAPHS
from hpctrack.losses import LOSSES
from hpctrack.models import MODELS
from hpctrack.models.backbones import BACKBONES
from hpctrack.process.arguments import shortened
from hpctrack.registry import Registry
from hpctrack.tracking.builders import BUILDERS
from hpctrack.tracking.methods import METHODS
from hpctrack.training.optimizers import learning_rate


class HasOptions(Protocol):
    """An entry of a table: the keys beside its name."""

    Options: ClassVar[type[Section]]


SCHEMA = 2  # 1: version 0.1.0, which did not write the number
OPTIONS: dict[str, Registry[type[HasOptions]]] = {  # sections that name an entry, by the last word of their key
    "model": MODELS,
    "loss": LOSSES,
    "builder": BUILDERS,
    "graph": GRAPHS,
    "backbone": BACKBONES,
    "method": METHODS,
}
Settings = dict[str, Any]  # by dotted key
S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Change:
    """What became of settings after a schema: keys renamed, keys gone that changed no result, defaults that held."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)


CHANGES: dict[int, Change] = {1: Change(gone=frozenset({"train.recompute"}))}


def read_settings(kind: type[S], values: Mapping[str, Any], schema: int, neutral: list[str], where: str) -> S:
    """Settings as a schema wrote them; InputError names a key that is none, or a schema of a later version."""
    if schema > SCHEMA:
        raise InputError(f"{where}: has schema {schema}, this version reads up to {SCHEMA}; use a newer hpctrack")
    current = copy.deepcopy(dict(values))
    for change in (CHANGES[number] for number in range(schema, SCHEMA) if number in CHANGES):
        for old, new in change.renamed.items():
            if (value := take(current, old)) is not MISSING:
                give(current, new, value)
        for key in change.gone:
            take(current, key)
        for key, value in change.defaults.items():
            give(current, key, value)
    drop_unknown(current, kind, frozenset(neutral))
    return parse(kind, current, where)


def run_config(meta: Mapping[str, Any], path: Path) -> RunConfig:
    """The configuration of the run that a checkpoint with this meta data is of; InputError if a package is gone."""
    check_packages(meta, path)
    return read_settings(RunConfig, meta["config"], meta["schema"], meta["neutral"], str(path))


# ------------------------------------------------------------------------------------------------ nested keys

MISSING = object()


def section_of(values: Settings, key: str) -> Settings | None:
    """The nested mapping that a dotted key's last word is looked up in, if it is there."""
    section: Any = values
    for name in key.split(".")[:-1]:
        section = section.get(name) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else None


def take(values: Settings, key: str) -> Any:
    """Remove a dotted key; its value, or MISSING."""
    section = section_of(values, key)
    return MISSING if section is None else section.pop(key.rpartition(".")[2], MISSING)


def give(values: Settings, key: str, value: Any) -> None:
    """Set a dotted key, if its section is there and lacks it."""
    section = section_of(values, key)
    if section is not None:
        section.setdefault(key.rpartition(".")[2], value)


def drop_unknown(values: Settings, kind: type[Section] | None, neutral: frozenset[str], prefix: str = "") -> None:
    """Remove keys that section `kind` does not have and that are `neutral`; a section if all that it has is."""
    fields = fields_of(kind, prefix, values)
    for name in list(values):
        key = f"{prefix}{name}"
        if name not in fields and neutral.issuperset(keys_in(values[name], key)):
            del values[name]
        elif name in fields and isinstance(values[name], dict):
            drop_unknown(values[name], section_kind(fields[name]), neutral, f"{key}.")


def keys_in(value: Any, key: str) -> Iterator[str]:
    """The dotted keys of a value, and of the sections in it."""
    if not isinstance(value, dict):
        yield key
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from keys_in(inner, f"{key}.{name}")


def fields_of(kind: type[Section] | None, prefix: str, values: Settings) -> dict[str, FieldInfo]:
    """The keys of a section: its own, and if it names an entry of a table, that entry's options."""
    own = dict(kind.model_fields) if kind is not None else {}
    table = OPTIONS.get(prefix.rstrip(".").rpartition(".")[2])
    if table is None:
        return own
    entry = table.get(values.get("name", ""))
    return {**Named.model_fields, **(entry.Options.model_fields if entry is not None else {})}


def section_kind(info: FieldInfo) -> type[Section] | None:
    """The section that a field holds, if it is one."""
    kinds = (info.annotation, *get_args(info.annotation))
    # on Python 3.10 `list[str]` is an instance of type, too, but none of its subclasses
    classes = (kind for kind in kinds if isinstance(kind, type) and get_origin(kind) is None)
    return next((kind for kind in classes if issubclass(kind, Section)), None)


# ------------------------------------------------------------------------------------------------ the same run


def entries(section: Section, prefix: str = "", where: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    """Every key of a section and of the sections in it, with its value; options of named entries with their defaults.

    InputError names an option that its entry does not have, and `where` that is.
    """
    for name, info in type(section).model_fields.items():
        key, value = f"{prefix}{name}", getattr(section, name)
        if name in OPTIONS and isinstance(value, (Named, dict)):
            named = value if isinstance(value, Named) else parse(Named, value, where or key, key)
            options = lookup(OPTIONS[name], named.name, key).Options
            yield f"{key}.name", named.name, Named.model_fields["name"]
            yield from entries(parse(options, named.options, where or key, key), f"{key}.", where)
        elif isinstance(value, Section):
            yield from entries(value, f"{key}.", where)
        else:
            yield key, section.model_dump(mode="json", include={name})[name], info


def settings(section: Section, where: str = "") -> Settings:
    """All keys on which the result depends."""
    return {key: value for key, value, info in entries(section, where=where) if not is_free(info)}


def is_free(info: FieldInfo) -> bool:
    """Whether a field was made by `free_field`: it does not change the result."""
    return isinstance(info.json_schema_extra, dict) and bool(info.json_schema_extra.get("free"))


def neutral(config: RunConfig) -> list[str]:
    """Keys that another version may do without: those that are free, and those that have their default."""
    return sorted(key for key, value, info in entries(config) if is_free(info) or has_default(value, info))


def has_default(value: Any, info: FieldInfo) -> bool:
    """Whether a plain value is the field's default."""
    return not info.is_required() and value == to_jsonable_python(info.get_default())


def packages(section: Section) -> dict[str, dict[str, str]]:
    """Other packages whose entries a section names: {key of the name: {distribution: version}}."""
    found = {
        key: OPTIONS[key.split(".")[-2]].versions(value)
        for key, value, _ in entries(section)
        if key.endswith(".name") and key.split(".")[-2] in OPTIONS
    }
    return {key: versions for key, versions in found.items() if versions}


def package_versions(section: Section) -> dict[str, str]:
    """Versions of the distributions other than this one whose entries a section names."""
    return {name: version for found in packages(section).values() for name, version in found.items()}


def check_packages(meta: Mapping[str, Any], path: Path) -> None:
    """InputError naming the first package that a checkpoint's run had an entry of and that is not installed."""
    for key, versions in meta.get("packages", {}).items():
        for package, version in versions.items():
            try:
                metadata.version(package)
            except metadata.PackageNotFoundError:
                raise InputError(
                    f"{path}: key '{key}' names an entry of {package} {version}, which is not installed: "
                    f"pip install {package}"
                ) from None


def difference(then: Settings, now: Settings) -> str | None:
    """The first key in which settings differ, with both values; None if there is none."""
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            return f"{key}={shortened(repr(then.get(key)))}, now {shortened(repr(now.get(key)))}"
    return None


def check_same_run(meta: Mapping[str, Any], now: RunConfig, path: Path) -> RunConfig:
    """The settings of a checkpoint's run; InputError that names the first in which `now` is another run.

    Of the number of steps those are the same that give all steps that are done the learning rate that they had.
    """
    then, done = run_config(meta, path), meta["step"]
    if found := difference(settings(then, str(path)), settings(now)):
        raise InputError(f"{path}: was trained with {found}; use that value, or another folder as 'run'")
    before, after = then.train.steps, now.train.steps
    if after < done:
        raise InputError(f"{path}: has {done} steps done, key 'train.steps' is {after}; give {done} or more")
    rates = [learning_rate(done - 1, steps, now.optim, now.plan) for steps in (before, after)] if done else [0.0, 0.0]
    if rates[0] != rates[1]:
        raise InputError(
            f"{path}: was trained with train.steps={before}, now {after}; the learning rates of the {done} steps that "
            f"are done depend on it (optim.schedule={now.optim.schedule}), so use that value, or begin a new run with "
            f"train.start_from, or with optim.schedule=constant"
        )
    return then
