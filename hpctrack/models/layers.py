"""Lists of modules that say of what kind their modules are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

L = TypeVar("L")


class Layers(nn.ModuleList, Generic[L]):
    """`nn.ModuleList` of modules of one kind, L: an item has its own methods, where torch tells of a Module alone."""

    if TYPE_CHECKING:

        def __init__(self, modules: Iterable[L]) -> None: ...

        def __iter__(self) -> Iterator[L]: ...  # type: ignore[override]  # L is a module, which torch's stub names

        def __getitem__(self, idx: int) -> L: ...  # type: ignore[override]  # as above; slices are not used
