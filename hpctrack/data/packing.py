"""Any object with its tensors in one flat buffer, to pass between processes.

Torch passes each tensor by a file descriptor and a connection of its own, 1 ms each; a batch has twenty.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
from collections.abc import Callable
from typing import Any

import torch

from hpctrack.errors import MachineError

SHARED = "/dev/shm"  # where the C library puts shared memory
MB = 1e6
_ALIGN = 64  # bytes


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[torch.Tensor] = []
        self.size = 0

    def persistent_id(self, obj: Any) -> tuple | None:
        if type(obj) is not torch.Tensor or obj.device.type != "cpu" or obj.layout != torch.strided:
            return None
        place = (self.size, obj.dtype, tuple(obj.shape))
        self.tensors.append(obj)
        self.size += -(-obj.numel() * obj.element_size() // _ALIGN) * _ALIGN
        return place


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, buffer: torch.Tensor) -> None:
        super().__init__(file)
        self.buffer = buffer

    def persistent_load(self, pid: tuple) -> torch.Tensor:
        return _place(self.buffer, *pid)


def _place(buffer: torch.Tensor, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return buffer[start : start + size].view(dtype).view(shape)


def in_process(size: int) -> torch.Tensor:
    """A buffer of so many bytes, uint8 [size]."""
    return torch.empty(size, dtype=torch.uint8)


def in_shared_memory(size: int) -> torch.Tensor:
    """A buffer that another process can be handed without a copy, uint8 [size]; MachineError if there is no room."""
    try:
        storage = torch.UntypedStorage._new_shared(size)
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise no_room(f"a batch of {size / MB:.3g} MB") from None
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,)) if size else in_process(0)


def no_room(what: str) -> MachineError:
    """The line for shared memory that is full."""
    disk = shutil.disk_usage(SHARED)
    return MachineError(
        f"{SHARED} is full: it has {disk.total / MB:.3g} MB, {disk.free / MB:.3g} free, but {what} is to pass there "
        f"from a reader process; give it more (containers: --shm-size), or lower data.workers or data.prefetch_factor"
    )


def pack(obj: Any, allocate: Callable[[int], torch.Tensor] = in_process) -> tuple[bytes, torch.Tensor]:
    """The object without its CPU tensors, pickled, and these one after the other in what `allocate` gives."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(obj)
    buffer, start = allocate(packer.size), 0
    for tensor in packer.tensors:
        _place(buffer, start, tensor.dtype, tuple(tensor.shape)).copy_(tensor)
        start += -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN
    return file.getvalue(), buffer


def unpack(packed: tuple[bytes, torch.Tensor]) -> Any:
    """What was packed by a process of this run; its tensors are views of the buffer."""
    pickled, buffer = packed
    return _Unpacker(io.BytesIO(pickled), buffer).load()
