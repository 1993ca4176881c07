"""The benchmark of pipelines, on pipelines that only say what they took."""

from __future__ import annotations

import pytest

from hpctrack.benchmarks import chain
from hpctrack.errors import InputError
from hpctrack.tracking.methods import Timing


class Said:
    """A reconstruction of which each event takes as long as it is told."""

    def __init__(self, name: str, called: list, stage_s: tuple[float, ...]) -> None:
        self.name, self.called, self.stage_s = name, called, stage_s

    def __call__(self, row: int) -> tuple[None, Timing]:
        self.called.append((self.name, row))
        seconds = {"read_s": 0.0, "model_s": sum(self.stage_s) * (row + 1), "build_s": 0.0}
        return None, Timing(100 + row, seconds, self.stage_s)


def test_pipelines_and_filter_take_turns_and_the_first_event_warms_up():
    called: list = []
    how = {"two": Said("two", called, (1.0, 2.0)), "ckf": Said("ckf", called, (1.5,))}
    took = chain.measure(how, range(2))
    assert called == [("two", 0), ("ckf", 0)] * 2 + [("two", 1), ("ckf", 1)]
    assert [timing.total_s for timing in took["two"]] == [3.0, 6.0]
    text = chain.table(took, {"two": ["a", "b"]}, [100, 101])
    assert "| two | b | 2.00 |\n| two | in all | 4.50 |\n| ckf | in all | 2.25 |" in text
    assert text.startswith("2 events of 100 to 101 hits")


@pytest.mark.parametrize("text", ["pipeline-gnn", "=a", "a=", "a=b,,c", "ckf=a", "a-b=c"])
def test_a_pipeline_is_a_name_and_its_checkpoints(text):
    with pytest.raises(InputError, match="must be NAME=RUN,RUN with the checkpoints"):
        chain.parse(text)
    assert chain.parse("full=hit-filter,influencer-full") == ("full", ["hit-filter", "influencer-full"])
