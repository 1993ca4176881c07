"""The memory model and policy: exact peaks, predictions, the mode that is chosen, and calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from hpctrack.config import MemoryConfig, Named, parse
from hpctrack.errors import InputError
from hpctrack.losses import build_loss
from hpctrack.models import build_model
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import Precision
from hpctrack.parallel.strategies import DDPEngine
from hpctrack.resources.calibration import MemoryMeter, calibrate, cut_down, measure
from hpctrack.resources.peak_memory import GIB, SAFETY, Memory
from hpctrack.testing.toys import FEATURES, toy_batch, toy_config

CPU = torch.device("cpu")
KIB = 1024 / GIB
BACKBONE = {"name": "transformer", "width": 16, "layers": 6, "heads": 2}


@pytest.fixture
def loss():
    return build_loss(Named(name="influencer", repulsion_ui=0.0, repulsion_ii=0.0))


def make_engine(precision: str = "fp32") -> DDPEngine:
    torch.manual_seed(0)
    model = build_model(Named(name="influencer", embedding=3, backbone=BACKBONE), FEATURES)
    env = Env(0, 1, 0, CPU, None, "test")
    config = toy_config("run", "data").parallel
    return DDPEngine(model, lambda m: torch.optim.SGD(m.parameters()), env, Precision(precision, CPU), config)


def event(tracks: int, edges: int = 0) -> Batch:
    return toy_batch(sizes=(tracks,), dtype=torch.float32, edges=edges)


def memory_with(room_bytes: float, engine: DDPEngine) -> Memory:
    memory = Memory(MemoryConfig(cap_gib=1.0), engine)
    memory.cap = (room_bytes + memory.fixed) / SAFETY
    return memory


def test_the_meter_counts_what_lives_at_once():
    x = torch.zeros(1000, 100, requires_grad=True)
    with MemoryMeter(CPU) as meter:
        y = (x.exp().sin() * 2).sum()  # kept for backward: the result of exp; alive at once: that of sin and its double
    assert meter.peak == pytest.approx(3 * 400_000, rel=0.01)
    assert meter.now == pytest.approx(400_000, rel=0.01)
    with MemoryMeter(CPU) as meter:
        y.backward()
    assert x.grad is not None and meter.now == pytest.approx(400_000 - 0, rel=0.01)
    with MemoryMeter(CPU) as meter:
        x.detach().add_(1)  # what was there before does not count
        torch.zeros(500).resize_(100)
    assert meter.peak == 2000 and meter.now == 0


def test_the_meter_agrees_with_the_profiler(loss):
    engine, batch = make_engine(), event(500)
    for mode in engine.module.memory_modes:
        found = measure(engine, loss, batch, mode)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            terms = loss(engine.forward(batch, False, mode), batch)
            engine.backward(sum(term.sum for term in terms.values()))
        changes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        # attention has a small workspace
        assert found == pytest.approx(np.cumsum(changes).max(), rel=0.02, abs=300_000), mode
        engine.discard()


def test_predictions_of_a_calibrated_model_hold_for_events_it_has_not_seen(loss):
    engine = make_engine()
    memory = memory_with(1e12, engine)
    lines = calibrate(engine, loss, memory, event(400).to_data_list()[0])
    assert len(lines) == len(memory.modes) == 4 and "B/hits" in lines[0]
    for tracks in (33, 90, 150, 310, 600):
        for mode in memory.modes:
            batch = event(tracks)
            assert memory.predict(batch, mode) == pytest.approx(measure(engine, loss, batch, mode), rel=0.15)
    assert all(parameter.grad is None for parameter in engine.module.parameters())
    again = Memory(MemoryConfig(cap_gib=1.0), engine, json.loads(json.dumps(memory.state())))
    assert again.fitted and again.predict(batch, "plain") == memory.predict(batch, "plain")


def test_calibration_stays_below_the_cap(loss):
    engine = make_engine()
    memory = memory_with(2e6, engine)
    calibrate(engine, loss, memory, event(400).to_data_list()[0])
    measured = np.concatenate([fit.samples[:, -1] for fit in memory.fits.values()])
    assert 0 < measured.max() < 2e6


def test_the_policy_takes_the_first_mode_that_fits_and_splits_first(loss, capsys):
    engine = make_engine()
    memory = memory_with(1e12, engine)
    calibrate(engine, loss, memory, event(400).to_data_list()[0])
    batch, both = event(100), toy_batch(sizes=(100, 90), dtype=torch.float32)
    need = {mode: memory.predict(batch, mode) for mode in memory.modes}
    assert need["plain"] > need["recompute"] > need["nested"]

    def chosen(room: float, *batches: Batch) -> list[tuple[int, str]]:
        memory.cap = (room + memory.fixed) / SAFETY
        parts, modes = memory.arrange(list(batches))
        return [(len(part.event_id), mode) for part, mode in zip(parts, modes, strict=True)]

    assert chosen(1.01 * need["plain"], batch) == [(1, "plain")]
    assert chosen(0.99 * need["plain"], batch) == [(1, "recompute")]
    assert chosen(1.01 * need["nested"], batch) == [(1, "nested")]
    assert chosen(1.05 * need["plain"], both, batch) == [(1, "plain"), (1, "plain"), (1, "plain")]
    assert chosen(3 * need["plain"], both) == [(2, "plain")]
    assert capsys.readouterr().out == ""
    hardest = memory.modes[-1]
    assert chosen(100, batch) == chosen(100, batch) == [(1, hardest)]
    assert capsys.readouterr().out.count(f"even in mode {hardest}, memory.cap_gib leaves") == 1  # said once
    chosen(1.01 * need["plain"], batch)
    memory.lower_ceiling([need["plain"], float("inf")])  # it ran out of memory all the same
    assert chosen(1.01 * need["plain"], batch) == [(1, "recompute")]
    assert Memory(MemoryConfig(cap_gib=1.0), engine, memory.state()).ceiling == need["plain"]


def test_a_fixed_policy_is_kept_and_checked():
    engine = make_engine()
    memory = Memory(MemoryConfig(policy="nested"), engine)
    batches = [event(3), event(5)]
    assert memory.arrange(batches) == (batches, ["nested"] * 2) and not memory.auto
    with pytest.raises(InputError, match=r"memory\.policy.*no memory mode 'offload'; one of: auto, plain, recompute"):
        Memory(MemoryConfig(policy="offload"), engine)
    auto = Memory(MemoryConfig(policy="auto"), engine)
    assert auto.cap > 0 and "machine's memory / 1 ranks" in auto.source
    engine.can_discard = False
    with pytest.raises(InputError, match="for deepspeed name a mode"):
        Memory(MemoryConfig(policy="auto"), engine)


def test_the_section():
    assert parse(MemoryConfig, {}, "x").policy == "plain"
    assert parse(MemoryConfig, {"cap_gib": 2.0}, "x").policy == "auto"
    assert parse(MemoryConfig, {"cap_gib": None, "policy": "auto"}, "x").policy == "auto"
    with pytest.raises(InputError, match="cap_gib is kept by policy auto, not by chunks"):
        parse(MemoryConfig, {"cap_gib": 2.0, "policy": "chunks"}, "x")


def test_cut_down_events_have_what_was_asked_for():
    whole = event(20, edges=5).to_data_list()[0]
    small = cut_down(whole, hits=9, edges=4)
    assert small.num_nodes == 9 and small.x.shape == (9, len(FEATURES)) and small.edge_index.shape == (2, 4)
    assert int(small.edge_index.max()) < 9
    known = small.track[small.track >= 0]
    assert sorted(known.unique().tolist()) == list(range(int(small.n_tracks)))
    assert ((small.track < 0) == (whole.track[:9] < 0)).all()
