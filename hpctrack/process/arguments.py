"""Numbers on command lines: each type for argparse says once what is right; and the bounds of numbers everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

SEED_END = 2**64  # what the generators of torch and numpy take
WHOLE_MAX = 10**9  # no count, size or number of anything goes beyond; products of two fit 64 bits
REAL_MAX = 1e12
SECONDS_MAX = 1e9  # 30 years; what the clocks of threads and of torch can hold
THREADS_MAX = 1024
SHOWN = 60  # characters of a value in a message
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Unit:
    """What a number of the configuration counts or is measured in, if its name does not end in it (`_mm`, `_gev`)."""

    name: str


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line like all others; exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the usage, and end."""
        self.exit(2, f"{self.prog}: error: {' '.join(shortened(message, 400).split())}; --help says what there is\n")


def shortened(text: str, most: int = SHOWN) -> str:
    """The text, or its beginning if it is long."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def named_path(text: str) -> tuple[str, Path]:
    """Of [NAME=]PATH, the name (empty: none) and the path; a whole that is there is a path."""
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals and name and not Path(text).exists() else ("", Path(text))


def number(convert: Callable[[str], N], right: Callable[[N], bool], what: str) -> Callable[[str], N]:
    """A type for argparse: what `convert` makes of the text, if that is `right`; else an error that says `what` is."""

    def parse(text: str) -> N:
        try:
            value = convert(text)
        except ValueError:
            pass
        else:
            if right(value):  # not-a-number is in no bounds
                return value
        raise argparse.ArgumentTypeError(f"'{shortened(text)}' must be {what}")

    parse.__doc__ = what
    return parse


def whole(lowest: int, highest: int = WHOLE_MAX, of: str = "") -> Callable[[str], int]:
    """A whole number between two bounds; `of` says what it counts."""
    end = f" to {highest:,}" if highest < WHOLE_MAX else ""
    return number(int, lambda value: lowest <= value <= highest, f"a whole number{of} from {lowest:,}{end}")


def real(lowest: float, highest: float = REAL_MAX, of: str = "", open_: bool = False) -> Callable[[str], float]:
    """A finite number between two bounds, above the lower one if `open_`; `of` says what it measures."""
    end = f" and at most {highest:g}" if highest < REAL_MAX else ""
    what = f"a finite number{of} {'above' if open_ else 'from'} {lowest:g}{end}"
    return number(float, lambda value: lowest <= value <= highest and not (open_ and value == lowest), what)


any_integer = number(int, lambda value: True, "a whole number")
integer = whole(-WHOLE_MAX)  # whose bounds are said elsewhere
natural = whole(0)
positive = whole(1)
threads = whole(1, THREADS_MAX)
seconds = real(0, SECONDS_MAX, " of seconds", open_=True)
seed = number(int, lambda value: 0 <= value < SEED_END, "a whole number from 0 to 2^64 - 1")
