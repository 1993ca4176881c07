"""The ablation: variants of a recipe, events to tune and to measure on, runs that are kept, tables of what is there."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from hpctrack.config import dump_yaml, load_config
from hpctrack.errors import InputError
from hpctrack.losses import build_loss
from hpctrack.models import build_model
from hpctrack.process.signals import ALL
from hpctrack.reporting import studies
from hpctrack.testing.toys import toy_config, toy_dataset
from tests.campaigns import ablation, halves, seeds
from tests.campaigns.points import Points
from tests.campaigns.processes import Processes, VerbError
from tests.campaigns.variants import variants

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "influencer-500.yaml"


def test_variants_change_one_thing_and_can_be_built():
    every = variants(load_config(RECIPE))
    assert next(iter(every)) == "base" and every["base"].overrides == []
    assert {"attraction-off", "repulsion_ui-half", "repulsion_ii-double", "compactness-off", "paper"} < set(every)
    assert {"embedding-4", "embedding-16", "backbone-mlp", "per-pair", "log_floor-1e-06"} < set(every)
    assert not {"embedding-8", "backbone-neighbours", "per-hit", "squared_hinge_ui-true"} & set(every)
    assert every["repulsion_ii-half"].overrides == ["loss.repulsion_ii=0.25"]
    seen = set()
    for variant in every.values():
        config = load_config(RECIPE, variant.overrides)
        build_loss(config.loss), build_model(config.model, config.data.features)
        seen.add(config.model_dump_json())
    assert len(seen) == len(every) >= 24
    with pytest.raises(InputError, match=r"key 'model.name': the ablation is of 'influencer', not embedding"):
        variants(load_config(ROOT / "configs" / "greedy.yaml"))


def test_figures_over_seeds():
    assert seeds.mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert seeds.difference({1: 0.5, 2: 0.7, 3: 9.0}, {1: 0.4, 2: 0.5}) == (pytest.approx(0.15), pytest.approx(0.05))
    assert seeds.difference({1: 0.5}, {2: 0.4}) is None
    assert seeds.text(0.5, float("nan")) == "0.5000" and seeds.text(0.1, 0.01, "+") == "+0.1000 ± 0.0100"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return toy_dataset(tmp_path_factory.mktemp("data") / "data", sizes=(6, 6, 7, 3, 9, 6))


def selection(data: Path, **changes: object):
    values = {"tracks": 3, "noise": False, "other_hits": False} | changes
    return toy_config(data / "run", data, data, reading={"selection": values}).data


def test_halves_share_no_event(data, tmp_path):
    tune, measured = halves.parts(selection(data), None, 2, tmp_path)
    assert [len(tune), len(measured)] == [6, 5] and set(tune.n_particles) == {3} and tune.n_noise.sum() == 0
    assert {event // 1000 for event in tune.event_ids} == {0, 2, 4}
    assert {event // 1000 for event in measured.event_ids} == {1, 3, 5}
    again, _ = halves.parts(selection(data), None, 2, tmp_path)
    assert again.fingerprint == tune.fingerprint
    with pytest.raises(InputError, match="made of other events, or with another selection"):
        halves.parts(selection(data, tracks=2), None, 2, tmp_path)
    other = toy_dataset(tmp_path / "other", sizes=(6, 4), seed=1)
    tune, measured = halves.parts(selection(data), other, 2, tmp_path / "two")
    assert [len(tune), len(measured)] == [11, 3]


def test_halves_refuse(data, tmp_path):
    with pytest.raises(InputError, match="those of data.valid"):
        halves.parts(selection(data), data, 2, tmp_path)
    with pytest.raises(InputError, match="none of 3 events has 10 tracks"):
        halves.parts(selection(data, tracks=10), None, 2, tmp_path)
    with pytest.raises(InputError, match="other_hits"):
        halves.parts(selection(data, other_hits=True), None, 2, tmp_path)


class Here:
    """Verbs in this process: a second of imports less for each."""

    calls: list[str] = []

    def verb(self, log: Path, name: str, *words: object) -> None:
        self.calls.append(name)
        if any("attraction-double-2" in str(word) for word in words):
            raise VerbError("train: exit code 1: the machine is on fire")
        assert importlib.import_module(f"hpctrack.{name}").main([str(word) for word in words]) == 0


def test_runs_are_kept_and_failures_do_not_stop_others(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Processes, "verb", Here.verb)
    monkeypatch.setattr(Processes, "calls", Here.calls, raising=False)
    values = {"selection": {"tracks": 3, "noise": False, "other_hits": False}}
    train = {"steps": 2, "valid_every": 2}
    config = toy_config(tmp_path / "run", data, data, reading=values, train=train, builder={"radius": None})
    (tmp_path / "base.yaml").write_text(dump_yaml(config))
    out = tmp_path / "out"
    command = ["--config", str(tmp_path / "base.yaml"), "--out", str(out), "--seeds", "1,2", "--variants"]
    assert ablation.main([*command, "base", "optim.lr=0.02"]) == 0
    assert "compactness-half" not in (out / "ablation.md").read_text()
    assert ablation.main([*command, "attraction-double,base,compactness-half", "optim.lr=0.02"]) == 1
    assert "attraction-double-2: failed: train: exit code 1: the machine is on fire" in capsys.readouterr().out
    assert Here.calls.count("evaluate") == 5 and Here.calls.count("train") == 6
    rows = Points(out / "ablation.jsonl", ()).rows
    assert len(rows) == 5 and {row["events"] for row in rows} == {5} and all(row["radius"] > 0 for row in rows)
    assert all(row["train_s"] > 0 and row["candidates"]["fake_rate"][1] > 0 for row in rows)
    assert rows[0]["exclusive"]["double_majority_efficiency"][1] == 5 * 3
    text = (out / "ablation.md").read_text()
    assert "Not there (yet): attraction-double-2." in text and "data.train" not in text and "optim.lr=0.02" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0][2:] for line in lines[:4]] == [
        "variant",
        "base",
        "attraction-double",
        "compactness-half",
    ]
    assert len(lines) == 8 and lines[2].split(" | ")[1] == "1" and lines[3].count("(") == 4 > lines[1].count("(")
    assert (out / "ablation.png").stat().st_size > 1000 and len(studies.sections(out)) == 1
    del Here.calls[:]
    assert ablation.main([*command, "base,compactness-half", "optim.lr=0.02"]) == 0 and Here.calls == []
    assert "Not there" not in (out / "ablation.md").read_text()
    assert ablation.main([*command, "nothing"]) == 2 and "no variant 'nothing'" in capsys.readouterr().err


def test_last_words_of_a_verb(tmp_path):
    processes, log = Processes(), tmp_path / "log.txt"
    with pytest.raises(VerbError, match=r"report: exit code 2: .*no.json: no such file"):
        processes.verb(log, "report", "--results", tmp_path / "no.json", "--out", tmp_path / "x")
    assert log.read_text().startswith("$ hpctrack report --results") and not processes.running


def test_what_runs_ends_with_the_study(tmp_path):
    words = ("simulate", tmp_path / "csv", "--source", "helix", "--events", 10**6, "--particles", 10)
    processes, handlers, begin = Processes(), {s: signal.getsignal(s) for s in ALL}, time.monotonic()
    threading.Timer(3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        assert list(processes.each("ab", lambda name: processes.verb(tmp_path / name, *words), 1)) == []
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert time.monotonic() - begin < 30 and not processes.running
    assert (tmp_path / "a").read_text() and not ((tmp_path / "b").exists() and (tmp_path / "b").read_text())
