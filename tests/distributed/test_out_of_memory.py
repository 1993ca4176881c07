"""Real allocation failures: the rank that has one takes its part of the step again; the result is the same."""

from __future__ import annotations

import ctypes
import json
import resource
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from hpctrack.errors import MachineError
from hpctrack.parallel.env import distributed
from hpctrack.resources.peak_memory import Memory
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training import checkpoint
from hpctrack.training.build import build
from hpctrack.training.loop import train
from hpctrack.training.step import train_step
from hpctrack.training.trainer import Trainer

MODEL = {"backbone": {"name": "transformer", "width": 64, "layers": 12, "heads": 2}}
LOSS = {"repulsion_ui": 0.0, "repulsion_ii": 0.0}
SIZES = (150, 30, 20, 10)  # one event is much larger: the rank that has it runs out of memory
MIB = 2**20
ENOUGH_MIB = 60  # of the large event: recompute needs 30, plain more than 100
M_MMAP_THRESHOLD = -3  # of malloc.h


@contextmanager
def at_most(more_mib: int | None):
    """Let this process have only so much more memory of its own; threads' reserves of address space do not count.

    Tensors are mapped one by one from here on: what a process forked late has lying about in its heap plays no part.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)
    libc.malloc_trim(0)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if more_mib is not None:
        lines = Path("/proc/self/status").read_text().splitlines()
        now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (now + more_mib * MIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def first_step(config, more_mib: int | None, rank: int) -> tuple[list[np.ndarray], float, list[dict]]:
    """Gradients and loss of a run's first step, on predictions that are far too low; one rank has little memory."""
    with distributed(config.parallel, 1) as env:
        trainer = build(config, env)
        trainer.memory.fits = {mode: TooLow() for mode in trainer.memory.modes}
        engine, found = trainer.engine, []
        engine.step = lambda: found.extend(p.grad.numpy().copy() for p in engine.module.parameters())
        batches, modes = next(trainer.batches())
        with at_most(more_mib if env.rank == rank else None):
            result = train_step(engine, trainer.loss, batches, None, modes, memory=trainer.memory)
        assert trainer.memory.ceiling == (1000.0 if result.retries else float("inf"))
        return found, result.loss, [retry.values() for retry in result.retries]


class TooLow:
    fitted = True

    def predict(self, terms) -> float:
        return 1000.0

    def observe(self, terms, value) -> None:
        pass


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_that_runs_out_of_memory_is_taken_again(tmp_path, ranks):
    data = toy_dataset(tmp_path / "data", sizes=SIZES)
    config = toy_config(tmp_path / "run", data, model=MODEL, loss=LOSS, memory={"cap_gib": 1.0})
    expected, value, none = run_ranks(1, first_step, config, None, 0)[0]
    assert none == []
    results = run_ranks(ranks, first_step, config, ENOUGH_MIB, 0)
    for found, loss, retries in results:
        assert retries == results[0][2]  # all ranks know
        assert {r["rank"] for r in retries} == {0} and 0 in retries[-1]["events"] and len(retries[-1]["events"]) == 1
        steps = [(r["before"], r["after"]) for r in retries]
        assert ("plain", "in mode recompute") in steps, steps
        assert "tried to allocate" in retries[-1]["wanted"]
        assert loss == pytest.approx(value, rel=1e-12)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


def refused(config, more_mib: int) -> str:
    try:
        first_step(config, more_mib, 0)
    except MachineError as error:
        return str(error)
    raise AssertionError("no error")


def test_a_step_that_fails_in_the_hardest_mode_ends_all_ranks(tmp_path):
    data = toy_dataset(tmp_path / "data", sizes=SIZES)
    config = toy_config(tmp_path / "run", data, model=MODEL, loss=LOSS, memory={"cap_gib": 1.0})
    for text in run_ranks(2, refused, config, 1):
        assert "rank 0 ran out of memory in event 0 (903 hits, mode chunks" in text
        assert "tried to allocate" in text and "no harder mode is left" in text
    fixed = toy_config(tmp_path / "run", data, model=MODEL, loss=LOSS)
    [text] = run_ranks(1, plainly_refused, fixed)
    assert "out of memory in mode plain, tried to allocate" in text and "memory.policy=auto tries harder modes" in text


def plainly_refused(config) -> str:
    with distributed(config.parallel, 1) as env:
        trainer = build(config, env)
        batches, modes = next(trainer.batches())
        with pytest.raises(MachineError) as refusal, at_most(10):
            train_step(trainer.engine, trainer.loss, batches, None, modes)
        return str(refusal.value)


def whole_run(config, more_mib: int | None) -> None:
    """Train; after the calibration, which is kept from seeing the large event, memory is little."""
    prepare = Trainer.prepare_memory

    def then_little(trainer: Trainer) -> None:
        prepare(trainer)
        trainer.memory.fits = {mode: TooLow() for mode in trainer.memory.modes}
        if more_mib is not None:
            trainer.limit = at_most(more_mib)  # until the process ends
            trainer.limit.__enter__()

    Trainer.prepare_memory, Memory.collect, Memory.learn = then_little, lambda self: None, lambda self: []
    Memory.state = lambda self: {}
    with distributed(config.parallel, 1) as env:
        train(config, env)


def test_a_run_goes_on_and_says_what_happened(tmp_path):
    data = toy_dataset(tmp_path / "data", sizes=SIZES)
    curves, notes = [], []
    for name, more in (("whole", None), ("short", ENOUGH_MIB)):
        config = toy_config(tmp_path / name, data, model=MODEL, loss=LOSS, memory={"cap_gib": 1.0}, train={"steps": 2})
        run_ranks(1, whole_run, config, more)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        curves.append([line["loss"] for line in lines if line["kind"] == "train"])
        notes.append([line for line in lines if line["kind"] == "memory"])
    assert curves[1] == pytest.approx(curves[0], rel=1e-9)
    assert notes[0] == [] and {"step", "events", "before", "after", "wanted", "rank"} <= notes[1][0].keys()


def broken_run(config) -> list[str]:
    """Train with modes by prediction, and end as a kill would after step 3; the modes of all steps so far."""
    modes = []
    arrange, log = Memory.arrange, Trainer.log

    def noted(self: Memory, batches):
        found = arrange(self, batches)
        modes.extend(found[1])
        return found

    def killed(self: Trainer) -> None:
        log(self)
        if self.step == 3 and "broken" in config.run and not (self.folder / "again").exists():
            (self.folder / "again").touch()
            raise KeyboardInterrupt

    Memory.arrange, Trainer.log = noted, killed
    with distributed(config.parallel, 1) as env, suppress(KeyboardInterrupt):
        train(config, env)
    return modes


def test_a_resumed_run_chooses_the_same_modes_and_ends_bit_equal(tmp_path):
    data = toy_dataset(tmp_path / "data", sizes=(60, 6, 40, 30, 5, 50))
    model = {"backbone": {"name": "transformer", "width": 16, "layers": 4, "heads": 2}}
    whole, broken = (
        toy_config(tmp_path / name, data, model=model, loss=LOSS, memory={"cap_gib": 0.003}, train={"probe_every": 2})
        for name in ("whole", "broken")
    )
    [expected] = run_ranks(1, broken_run, whole)
    run_ranks(1, broken_run, broken)
    [resumed] = run_ranks(1, broken_run, broken)
    assert {"plain", "recompute"} <= set(expected), expected
    assert resumed == expected[-len(resumed) :]
    states = [checkpoint.read_state(checkpoint.find(Path(config.run))) for config in (whole, broken)]
    for name, value in states[0]["model"].items():
        assert np.array_equal(value.numpy(), states[1]["model"][name].numpy()), name
