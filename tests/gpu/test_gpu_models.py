"""Every model in every memory mode and number format on the device against fp64 on the CPU."""

from __future__ import annotations

import pytest
import torch
from gpu_passes import CPU, engine_on, off, one_pass, toy

from hpctrack.config import Named
from hpctrack.events.padding import padded, unpadded
from hpctrack.training.compiled import compile_for_sizes
from tests.unit.test_models_contract import CONFIGS, LOSS_OF

PRECISIONS = {"fp64": 1e-9, "fp32": 2e-4, "tf32": 2e-2, "bf16": 0.1, "fp16": 0.03}  # relative, of outputs
LOSSES = LOSS_OF | {  # with the sums over all pairs
    "condensation": {"name": "condensation"},
    "embedding": {"name": "contrastive"},
    "influencer": {"name": "influencer", "compactness": 1.0, "influencer_margin": 0.5},
}
OF_IMAGES = (
    "captioning",
    "line_bins",
    "track_counting",
    "track_queries",
)  # whose losses need lines, which toys have not
RIVALS = 0.05  # of gradients: rounding may change which of two rivals on a hit is the larger
SEARCHES = 3.0  # a rounded place may change who is near: looser by this in half precision


def loss_of(model: Named) -> Named | None:
    return None if model.name in OF_IMAGES else Named(**LOSSES.get(model.name, {"name": "edges"}))


@pytest.fixture(params=sorted(CONFIGS))
def model(request) -> Named:
    return Named(name=request.param.split()[0], **CONFIGS[request.param])


@pytest.fixture(scope="module")
def expected():
    """Passes in fp64 on the CPU, by model."""
    found = {}

    def make(model: Named):
        key = repr(model)
        if key not in found:
            found[key] = one_pass(engine_on(CPU, model, "fp64"), toy("fp64"), loss_of(model))
        return found[key]

    return make


@pytest.mark.parametrize(
    "precision", [pytest.param(p, marks=pytest.mark.cuda if p == "tf32" else ()) for p in PRECISIONS]
)
def test_outputs_losses_and_gradients_in_every_mode(model, precision, device, expected):
    exact = expected(model)
    engine = engine_on(device, model, "fp32" if precision == "tf32" else precision, tf32=precision == "tf32")
    searches = model.options.get("backbone", {}).get("name") == "neighbours"
    tolerance = PRECISIONS[precision] * (SEARCHES if searches and PRECISIONS[precision] > 1e-3 else 1)
    try:
        for mode in engine.module.memory_modes:
            found = one_pass(engine, toy(engine.precision.name), loss_of(model), mode)
            for name, value in exact.outputs.items():
                assert off(found.outputs[name], value) < tolerance, (mode, name)
            for name, value in exact.terms.items():
                assert found.terms[name] == pytest.approx(value, rel=3 * tolerance, abs=3 * tolerance), (mode, name)
            wide = max(5 * tolerance, RIVALS if model.options.get("compete") and precision != "fp64" else 0.0)
            assert off(found.gradient, exact.gradient) < wide, mode
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.cuda
def test_offload_waits_in_pinned_memory(device):
    model = Named(name="interaction", width=64, iterations=4)
    engine, batch = engine_on(device, model, "fp32"), toy(sizes=(2000,), noise=2000).to(device)
    peaks = {}
    for mode in ("plain", "offload"):
        torch.cuda.reset_peak_memory_stats(device)
        one_pass(engine, batch, loss_of(model), mode)
        peaks[mode] = torch.cuda.max_memory_allocated(device)
    assert peaks["offload"] < 0.6 * peaks["plain"]


@pytest.mark.cuda
def test_compiled_on_padded_events_is_eager(device):
    """With CUDA graphs; events of the same bucket, and of others."""
    model = Named(name="interaction", **CONFIGS["interaction"])
    eager, fast = (engine_on(device, model, "fp32").module.eval() for _ in range(2))
    compile_for_sizes(fast)
    with torch.inference_mode():
        for sizes in ((40,), (41,), (40,), (90,), (41,)):
            batch = toy(sizes=sizes).to(device)
            found, exact = unpadded(fast(padded(batch.get_example(0))), batch), eager(batch)
            torch.testing.assert_close(found["edge_score"], exact["edge_score"], rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
def test_compiled_between_searches_is_eager(device):
    """Once for all sizes, also where the last hits are few."""
    model = Named(name="influencer", **CONFIGS["influencer neighbours"])
    eager, fast = (engine_on(device, model, "fp32").module.eval() for _ in range(2))
    compile_for_sizes(fast)
    with torch.inference_mode():
        for sizes in ((40,), (90,), (1,), (41,)):
            batch = toy(sizes=sizes).to(device)
            found, exact = fast(batch), eager(batch)
            for name, value in exact.items():
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
def test_compiled_is_eager(device):
    for name in ("influencer neighbours", "interaction"):
        model = Named(name=name.split()[0], **CONFIGS[name])
        passes = []
        for compiled in (False, True):
            engine = engine_on(device, model, "fp32")
            if compiled:
                engine.module.compile(dynamic=True)
            passes.append([one_pass(engine, toy(sizes=sizes), loss_of(model)) for sizes in ((14, 9), (21,))])
        for eager, fast in zip(*passes, strict=True):
            assert off(fast.gradient, eager.gradient) < 1e-3, name
