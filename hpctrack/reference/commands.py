"""The reference of every verb and option, from the parsers of the verbs."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

from hpctrack.process import arguments
from hpctrack.process.verbs import VERBS, module_of
from hpctrack.reference.markdown import code, table
from hpctrack.registry import own_entries_only

COLUMNS = ("option", "value", "default", "what it does")
HEAD = """# Commands

For who uses hpctrack on the command line. Every verb and every option is here, with what the program itself says of it.
`hpctrack VERB --help` says the same. `python -m hpctrack VERB` is `hpctrack VERB`; `torchrun … -m hpctrack.train` and
`torchrun … -m hpctrack.infer` run a verb on several ranks. Keys of recipes are in [config.md](config.md), exit codes in
[errors.md](../explanation/errors.md).
"""


def page() -> str:
    """The page as Markdown; entries of other packages that are installed are not on it."""
    with own_entries_only():
        return _page()


def _page() -> str:
    parts = [HEAD, table(("verb", "what it does"), ((link(name), what) for name, what in VERBS.items()))]
    for name in VERBS:
        parser: argparse.ArgumentParser = importlib.import_module(module_of(name)).parser()
        parts.append(f"## hpctrack {name}\n\n{code(usage(parser))}\n\n{inspect.cleandoc(parser.description or '')}\n")
        parts.extend(groups(parser))
    return "\n".join(parts)


def link(name: str) -> str:
    """A verb's name that leads to its part of the page."""
    return f"[{name}](#hpctrack-{name})"


def usage(parser: argparse.ArgumentParser) -> str:
    """The command with its positional arguments."""
    optional = any(shown(action) for action in parser._actions if action.option_strings)
    return " ".join([parser.prog, *(name_of(action) for action in positional(parser)), *["[options]"] * optional])


def positional(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments that have no option's name."""
    return [action for action in parser._actions if not action.option_strings]


def shown(action: argparse.Action) -> bool:
    """Whether `--help` shows an action; `--help` itself needs no words."""
    return action.help is not argparse.SUPPRESS and action.dest != "help"


def groups(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table for the plain options, and one for each group that has a title of its own."""
    plain, titled = parser._action_groups[:2], parser._action_groups[2:]
    of_title = [(f"{group.title}:\n\n", group._group_actions) for group in titled]
    for title, actions in [("", [action for group in plain for action in group._group_actions]), *of_title]:
        rows = [row(parser, action) for action in actions if shown(action)]
        if rows:
            yield title + table(COLUMNS, rows)


def row(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, ...]:
    """What an action says of itself."""
    help_text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return code(name_of(action)), value_of(action), default_of(parser, action), help_text


def name_of(action: argparse.Action) -> str:
    """An action as one types it."""
    value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    if action.option_strings:
        names = ", ".join(action.option_strings)
        return f"{names} {value}{' …' if action.nargs == '*' else ''}".rstrip()
    return {"?": f"[{value}]", "*": f"[{value} …]"}.get(str(action.nargs), value)


def value_of(action: argparse.Action) -> str:
    """What its value can be."""
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return ", ".join(map(code, action.choices))
    if action.type is Path:
        return "a path"
    if getattr(action.type, "__module__", "") == arguments.__name__:
        return inspect.getdoc(action.type) or ""
    return "a whole number" if action.type is int else "a number" if action.type is float else "text"


def default_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Its default; or that it, or one of several, is required."""
    for group in parser._mutually_exclusive_groups:
        if group.required and action in group._group_actions:
            others = (code(other.option_strings[0]) for other in group._group_actions if other is not action)
            return f"*required*, or {' or '.join(others)}"
    if action.required if action.option_strings else action.nargs is None:
        return "*required*"
    nothing = action.default is None or action.default in (False, [], argparse.SUPPRESS)
    return "" if nothing else code(action.default)
