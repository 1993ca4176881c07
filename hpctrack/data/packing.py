"""Any object with its tensors in one flat buffer, to pass between processes.

Torch passes each tensor by a file descriptor and a connection of its own, 1 ms each; a batch has twenty.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

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


def pack(obj: Any) -> tuple[bytes, torch.Tensor]:
    """The object without its CPU tensors, pickled, and these one after the other, uint8 [bytes]."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(obj)
    buffer, start = torch.empty(packer.size, dtype=torch.uint8), 0
    for tensor in packer.tensors:
        _place(buffer, start, tensor.dtype, tuple(tensor.shape)).copy_(tensor)
        start += -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN
    return file.getvalue(), buffer


def unpack(packed: tuple[bytes, torch.Tensor]) -> Any:
    """What was packed by a process of this run; its tensors are views of the buffer."""
    pickled, buffer = packed
    return _Unpacker(io.BytesIO(pickled), buffer).load()
