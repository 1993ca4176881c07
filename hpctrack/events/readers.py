"""Batches of events, read in this process or in others ahead of it.

A batch crosses once: it is made in its reader process's own memory, and packed into one buffer of shared memory. Torch
passes each tensor by a file descriptor and a connection of its own, 1 ms each; a batch has twenty.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch_geometric.data import Batch

from hpctrack.division.divided import Place
from hpctrack.errors import InputError, MachineError
from hpctrack.events.loader import EventLoader
from hpctrack.files.reading import aligned
from hpctrack.process import signals
from hpctrack.process.ends import out_of

ENDING_S = 0.5  # between the end of a process's connections and its own


class Specification(NamedTuple):
    """What a batch is made of: rows of the dataset in an epoch, whole, or one that several ranks hold at this place."""

    epoch: int
    rows: np.ndarray
    place: Place | None = None


class Message:
    """What a reader process sends: a batch, or the error that it met.

    It is pickled by `of` and not by the thread that sends it, which would lose it, and the rank would wait for ever.
    """

    def __init__(self, sent: bytes) -> None:
        self.sent = sent

    @classmethod
    def of(cls, batch: Batch) -> Message:
        """The batch, its tensors in one buffer of shared memory."""
        return cls(bytes(ForkingPickler.dumps(pack(batch, in_shared_memory))))

    @classmethod
    def of_error(cls, error: Exception) -> Message:
        """The error; raised in a reader process, it would lose its one line."""
        return cls(pickle.dumps(error))

    def open(self, pin: bool = False) -> Batch | Exception:
        """What was sent."""
        received = pickle.loads(self.sent)
        if isinstance(received, Exception):
            return received
        about, buffer = received
        return unpack((about, buffer.pin_memory() if pin else buffer))

    def pin_memory(self, _: Any = None) -> Batch | Exception:
        """What was sent, in page-locked memory; called by torch in a thread of its own."""
        return self.open(pin=True)


class MicroBatches(torch.utils.data.Dataset):
    """Map (epoch, rows, place) to a Batch, for a DataLoader whose sampler yields such specifications."""

    def __init__(self, load: EventLoader) -> None:
        self.load = load

    def __getitem__(self, specification: Specification) -> Message | Batch | Exception:
        """The batch, as a Message if it is to leave this process; a fault of the input or the machine is returned."""
        epoch, rows, place = specification
        alone = get_worker_info() is None
        try:
            if place is None:
                batch = Batch.from_data_list([self.load(int(row), epoch) for row in rows])
            else:
                batch = self.load.part(int(rows[0]), epoch, place)
            return batch if alone else Message.of(batch)
        except (InputError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not isinstance(error, MachineError) and not out_of(error):
                raise
            return error if alone else Message.of_error(error)


def begin_reader(rank: int, _: int) -> None:
    """In a reader process: leave signals to the rank, process `rank`, and shared memory to `Message`.

    A batch system, or Ctrl-C, signals it with its rank, which needs it to end in good order.
    """
    signals.die_with_parent(rank)
    torch.utils.data.get_worker_info = lambda: None  # PyG would collate into shared memory, each attribute by itself


class Readers:
    """`workers` processes that read batches, each `prefetch_factor` ahead; with 0 they are read where they are taken.

    `pin` puts them into page-locked memory, from where they go to a GPU while it computes. The processes start with the
    first call and are used again by the next ones.
    """

    def __init__(self, load: EventLoader, workers: int = 0, pin: bool = False, prefetch_factor: int = 2) -> None:
        self.workers, self.sampler = workers, _Sampler()
        self.loader = DataLoader(
            MicroBatches(load),
            sampler=self.sampler,
            batch_size=None,
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch_factor if workers else None,
            worker_init_fn=functools.partial(begin_reader, os.getpid()),
        )

    def __call__(self, specifications: Iterable[Specification]) -> Iterator[Batch]:
        """Batches for the specifications, in order. Raises what reading raises, and MachineError if a reader dies."""
        self.sampler.specifications = specifications
        with signals.blocked_signals(), _own_handler():  # readers are born with them blocked
            batches = self._begin()
        while True:
            try:
                batch = next(batches)
                batch = batch.open() if isinstance(batch, Message) else batch
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                raise self._lost(batches, error) from error
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def _begin(self) -> Iterator[Any]:
        try:
            return iter(self.loader)
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            raise no_room("what processes are synchronised by") from error  # semaphores

    def _lost(self, batches: Any, error: Exception) -> Exception:
        """What to raise for an error of torch's: the line for a reader process that has ended, or the error itself.

        Of one that has ended, even what it had sent before may be out of reach: it is asked for the shared memory.
        """
        readers = getattr(batches, "_workers", [])
        if isinstance(error, (OSError, EOFError)):
            for process in readers:
                process.join(ENDING_S)
        ended = [process for process in readers if process.exitcode is not None]
        if ended and (isinstance(error, (OSError, EOFError)) or "DataLoader worker" in str(error)):
            return MachineError(
                f"reader process {ended[0].pid} {_how(ended[0].exitcode)} (key 'data.workers' is {self.workers}); the "
                f"same command goes on from the newest checkpoint"
            )
        return error


class _Sampler:
    """What is to be read next; a DataLoader's processes outlive one set of specifications."""

    specifications: Iterable[Specification] = ()

    def __iter__(self) -> Iterator[Specification]:
        return iter(self.specifications)


def _how(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Keep the handler of SIGCHLD: torch's raises an error wherever the rank is, far from what it waits for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


# -------------------------------------------- any object with its tensors in one flat buffer, to pass between processes


SHARED = "/dev/shm"  # where the C library puts shared memory
MB = 1e6


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
        self.size += aligned(obj.numel() * obj.element_size())
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
    """A buffer that can be sent to another process without a copy, uint8 [size]; MachineError if there is no room."""
    try:
        storage = torch.UntypedStorage._new_shared(size)
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise no_room(f"a batch of {size / MB:.3g} MB") from None
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,)) if size else in_process(0)


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
        start += aligned(tensor.numel() * tensor.element_size())
    return file.getvalue(), buffer


def unpack(packed: tuple[bytes, torch.Tensor]) -> Any:
    """What was packed by a process of this run; its tensors are views of the buffer."""
    pickled, buffer = packed
    return _Unpacker(io.BytesIO(pickled), buffer).load()
