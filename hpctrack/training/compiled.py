"""torch.compile as a switch: compiled with sizes as variables, and tried before the run begins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch_geometric.data import Batch, Data

from hpctrack.errors import InputError, MachineError
from hpctrack.losses import Weighted, objective
from hpctrack.models import Model
from hpctrack.models.graph_network import GraphNetwork
from hpctrack.parallel.engine import Engine
from hpctrack.resources.calibration import cut_down

ONE_PIECE = 1 << 40  # edges
TRIED = (200, 300)  # hits; the second event shows whether another size compiles again


def compile_model(model: nn.Module, auto_memory: bool, device: str) -> None:
    """Let the model's calls be compiled; names of its weights stay. InputError with a policy that could not measure."""
    if auto_memory and device == "cpu":
        raise InputError(
            "train.compile hides the tensors that memory.policy=auto counts on the CPU: name a mode instead"
        )
    model.compile(dynamic=True)


def compile_for_sizes(model: Model) -> None:
    """Let a model that is static (models/contracts.py) be compiled, on a GPU with its kernels recorded as CUDA graphs.

    For inference on events of few sizes (events/padding.py), since each size is recorded. Edges come in one piece,
    which takes more memory: each of several would be compiled by itself, and anew where their number changes. Of a
    model that is not static what it computes row by row is compiled, for all sizes at once.
    """
    if not model.static:
        model.compile_rows(partial(torch.compile, dynamic=True))
        return
    if isinstance(model, GraphNetwork):
        model.chunk = ONE_PIECE
    on_gpu = next(model.parameters()).device.type == "cuda"
    model.compile(dynamic=True, mode="reduce-overhead" if on_gpu else None)


@contextmanager
def compiler_errors(option: str, remedy: str) -> Iterator[None]:
    """Within, MachineError that names the option, and says what to do, if torch cannot compile the model."""
    from torch._dynamo.exc import TorchDynamoException  # only now: the compiler is slow to import

    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        raise MachineError(f"{option}: torch could not compile the model ({reason}); {remedy}") from error


def try_compiled(engine: Engine, loss: Weighted, event: Data) -> str:
    """Compile by passes over two small parts of `event`, whose gradients are discarded; the seconds that it took.

    MachineError if torch cannot compile the model.
    """
    seconds = []
    for tried in TRIED:
        hits = min(tried, event.num_nodes)
        edges = event.num_edges * hits // max(1, event.num_nodes)
        batch = Batch.from_data_list([cut_down(event, hits, edges)]).to(engine.env.device)
        begin = time.perf_counter()
        with compiler_errors("train.compile", "set it to false"):
            terms = loss(engine.forward(batch, engine.lockstep), batch)
            engine.backward(objective(dict.fromkeys(terms, 1.0), terms))
        engine.discard()
        seconds.append(time.perf_counter() - begin)
    return f"compiled: the first pass took {seconds[0]:.1f} s, one on an event of another size {seconds[1]:.1f} s"
