"""launch/constraints-oldest.txt is what setup.py allows at least."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def numbers(version: str) -> tuple[int, ...]:
    found = [int(number) for number in version.split(".")]
    while found[-1:] == [0]:
        found.pop()
    return tuple(found)


def test_the_oldest_versions_are_the_bounds_of_setup():
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "launch/constraints-oldest.txt").read_text(), re.M))
    pins = {name.lower(): version for name, version in pins.items()}
    required = (ROOT / "setup.py").read_text().split("install_requires=[")[1].split("]")[0]
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', required))
    assert {name: numbers(pins[name]) for name in bounds} == {name: numbers(bound) for name, bound in bounds.items()}
