"""The page of `hpctrack bench event-parallel`: models may have had different numbers of rounds."""

from __future__ import annotations

from typing import Any

import pytest

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


@pytest.mark.parametrize("cores", [2, bench.PARTS])
def test_models_may_have_different_numbers_of_rounds(monkeypatch, capsys, cores):
    monkeypatch.setattr(bench, "core_flops", lambda: 1e11)
    monkeypatch.setattr(bench.os, "cpu_count", lambda: cores)
    ranks = {1: [rank(8.0, 1.0)], 2: [rank(4.5, 0.61), rank(5.0, 0.4)], bench.PARTS: [rank(2.0, 0.2)] * bench.PARTS}
    monkeypatch.setattr(bench, "passes", lambda asked, n: ranks[n])
    asked = {"model": {"name": "toy"}}
    found = {"neighbours": bench.turns(asked, 2), "interaction": bench.turns(asked, 1)}
    assert "toy on 2 ranks: 5.0 s a step, 0.61 GiB" in capsys.readouterr().err
    cut = {"edges": 1000, "z0": 200.0, "parts": {n: (0.01 * n, 1.1, 0.05) for n in (2, 4, bench.PARTS)}}
    page = bench.page(found, dict.fromkeys(bench.SLOPES, cut), "A toy")
    figures = {figure.name: list(figure.values) for figure in page.figures}
    assert figures["event_speedup_neighbours"] == [1.6, 1.6] and figures["event_speedup_interaction"] == [1.6]
    assert figures["event_memory_neighbours"] == [0.61, 0.61] and figures["event_memory"] == [0.61]
    assert figures.get(f"event_speedup_neighbours_{bench.PARTS}") == ([4.0, 4.0] if cores == bench.PARTS else None)
    assert figures[f"cut_{bench.PARTS}_1gev"] == [0.08]
    assert "| interaction | 2 | 5.0 | 4.5 | 10.0 % |" in page.text
