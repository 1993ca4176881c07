"""The page of `hpctrack bench event-parallel`: models may have had different numbers of rounds."""

from __future__ import annotations

from typing import Any

from hpctrack.benchmarks import event_parallel as bench


def rank(seconds: float, peak: float) -> dict[str, Any]:
    volumes = {"all_sum": [2, 80], "swap": [3, 1000]}
    steps = [[seconds, 0.9 * seconds, 0.1 * seconds]]
    return {
        "steps": steps,
        "peak": peak,
        "hits": 50,
        "edges": 90,
        "halo": 5,
        "build_s": 0.1,
        "volumes": volumes,
        "parameters": 100,
    }


def runs(rounds: int, memory: float) -> bench.Runs:
    alone, both = [[rank(8.0, 1.0)]] * rounds, [[rank(4.5, memory), rank(5.0, 0.4)]] * rounds
    return {1: alone, 2: both, bench.PARTS: [[rank(9.0, 0.2)] * bench.PARTS]}


def test_figures_of_both_models(monkeypatch):
    monkeypatch.setattr(bench, "core_flops", lambda: 1e11)
    cut = {"edges": 1000, "z0": 200.0, "parts": {n: (0.01 * n, 1.1, 0.05) for n in (2, 4, bench.PARTS)}}
    found = bench.page(
        {"neighbours": runs(2, 0.61), "interaction": runs(1, 0.56)}, dict.fromkeys(bench.SLOPES, cut), "A toy"
    )
    figures = {figure.name: list(figure.values) for figure in found.figures}
    assert figures["event_speedup_neighbours"] == [1.6, 1.6] and figures["event_speedup_interaction"] == [1.6]
    assert figures["event_memory_neighbours"] == [0.61, 0.61] and figures["event_memory"] == [0.61]
    assert figures[f"cut_{bench.PARTS}_1gev"] == [0.08]
    assert "| interaction | 2 | 5.0 | 4.5 | 10.0 % |" in found.text
