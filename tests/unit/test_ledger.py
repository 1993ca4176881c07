"""The ledger: what was consumed, with damage and repetition found."""

from __future__ import annotations

import pytest

from hpctrack.errors import InputError
from hpctrack.training.ledger import NAME, Ledger, problems, read, summary


def write(run, steps, resumed=0, n_events=4):
    ledger = Ledger(run, resumed, n_events)
    for step, epoch, events in steps:
        ledger.record(step, epoch, events)
    ledger.close()


WHOLE = [(1, 0, [1, 2]), (2, 0, [3, 4]), (3, 1, [4, 1]), (4, 1, [2, 3]), (5, 2, [1, 2])]


def test_an_exact_ledger_has_no_problems(tmp_path):
    assert summary(tmp_path) is None
    write(tmp_path, WHOLE)
    assert problems(tmp_path) == []
    lines = summary(tmp_path)
    assert lines[0] == "ledger: 5 steps, 10 events consumed in 3 epochs"
    assert lines[1] == "ledger: epoch 0: 2 steps, 4 events, 4 distinct"


def test_resuming_takes_back_later_steps_and_cut_lines(tmp_path):
    write(tmp_path, WHOLE)
    with open(tmp_path / NAME, "a") as file:
        file.write('{"step": 6, "epo')
    assert len(read(tmp_path)) == 5
    write(tmp_path, WHOLE[3:], resumed=3)
    assert [entry["step"] for entry in read(tmp_path)] == [1, 2, 3, 4, 5] and problems(tmp_path) == []


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        (WHOLE[:1] + WHOLE[2:], "steps are not 1 to 4"),
        ([(1, 0, [1, 2]), (2, 0, [2, 4]), (3, 1, [1, 2])], "epoch 0: 1 events consumed more than once, first event 2"),
        ([(1, 0, [1, 2]), (2, 1, [1, 2])], "epoch 0: 2 events consumed, the dataset has 4"),
        ([(1, 0, [1, 2, 3, 4, 5])], "epoch 0: 5 events consumed, the dataset has 4"),
    ],
)
def test_what_is_not_exactly_once_is_said(tmp_path, steps, problem):
    write(tmp_path, steps)
    assert any(problem in text for text in problems(tmp_path))
    assert any("NOT EXACTLY ONCE" in line for line in summary(tmp_path))


def test_a_damaged_line_is_named(tmp_path):
    write(tmp_path, WHOLE)
    lines = (tmp_path / NAME).read_text().splitlines(keepends=True)
    (tmp_path / NAME).write_text(lines[0] + "nonsense\n" + "".join(lines[1:]))
    with pytest.raises(InputError, match=r"ledger\.jsonl: line 2 is no ledger line"):
        read(tmp_path)
