"""Tables of names: own entries, those of other packages, and what is said where names clash or a package is gone."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from toys import toy_checkpoint

from hpctrack import convert, infer, simulate
from hpctrack.config import Named, lookup
from hpctrack.errors import InputError
from hpctrack.losses import LOSSES, build_loss
from hpctrack.losses.influencer import InfluencerLoss
from hpctrack.parallel.env import Env
from hpctrack.registry import Lazy, Registry, own_entries_only
from hpctrack.simulation.writer import RECORD
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.store import Dataset
from hpctrack.testing.toys import toy_config
from hpctrack.training import checkpoint, run_settings
from hpctrack.training.build import build


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(package, code, group={name: value})`: what pip leaves of a distribution with these entry points."""
    installed = []

    def made(package: str, code: str = "", **groups: dict[str, str]) -> None:
        folder = tmp_path / "packages" / package
        info = folder / f"{package}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = [
            f"[hpctrack.{g}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()) for g, points in groups.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        (folder / f"{package}.py").write_text(code)
        monkeypatch.syspath_prepend(folder)
        installed.append(package)

    yield made
    for package in installed:
        sys.modules.pop(package, None)


def table() -> Registry[object]:
    return Registry("hpctrack.models", "model", {"one": 1, "late": Lazy("math:pi")})


def test_own_entries_come_first_and_late_ones_when_asked_for(install):
    assert list(table()) == ["one", "late"] and len(table()) == 2
    assert table()["one"] == 1 and round(table()["late"], 2) == 3.14
    assert table().versions("one") == {} and "two" not in table() and table().get("two") is None
    numpy = Registry("hpctrack.models", "model", {"array": Lazy("numpy:array", "numpy", "reference")})
    assert list(numpy.versions("array")) == ["numpy"]


def test_a_plugin_is_listed_and_is_imported_when_asked_for(install):
    code = "class net: Options = None\nclass bare: ...\n"
    install("mine", code, models={"net": "mine:net", "other": "mine:nothing", "bare": "mine:bare"})
    found = table()
    assert list(found) == ["one", "late", "bare", "net", "other"] and "net" in found
    assert found["net"].__module__ == "mine" and found.versions("net") == {"mine": "1.2"}
    with pytest.raises(InputError, match="key 'model.name': unknown 'nett'; one of: bare, late, net, one, other"):
        lookup(found, "nett", "model")
    with pytest.raises(InputError, match=r"model 'other' of mine 1.2 does not load: entry point 'mine:nothing' of"):
        found["other"]
    with pytest.raises(InputError, match=r"model 'bare' of mine 1.2 has no `Options`: entry point 'mine:bare' of"):
        found["bare"]
    with own_entries_only():
        assert list(found) == ["one", "late"]


def test_a_plugin_that_does_not_load_harms_nobody_else(install):
    install("broken", "raise RuntimeError('no device')", models={"bad": "broken:net"})
    assert table()["one"] == 1 and "bad" in table()
    with pytest.raises(InputError, match="model 'bad' of broken 1.2 does not load: .*RuntimeError: no device"):
        table()["bad"]


def test_a_name_is_taken_once(install):
    install("mine", models={"one": "mine:net", "net": "mine:net"})
    install("yours", models={"net": "yours:net"})
    with pytest.raises(InputError, match="model 'one' is in hpctrack and in mine 1.2: rename the entry point of mine"):
        table()["one"]
    with pytest.raises(InputError, match="model 'net' is in mine 1.2 and in yours 1.2"):
        table()["net"]
    assert list(table()) == ["one", "late", "net"]


PULL = """
from hpctrack.losses.influencer import InfluencerLoss
class Pull(InfluencerLoss):
    pass
"""


def test_a_loss_of_another_package_takes_options_as_ours_do(install):
    install("mine", PULL, losses={"pull": "mine:Pull"})
    assert isinstance(build_loss(Named(name="pull", per="hit")), InfluencerLoss) and "pull" in LOSSES
    with pytest.raises(InputError, match=r"unknown key 'loss\.pr'; did you mean 'loss\.per'"):
        build_loss(Named(name="pull", pr="hit"))


def test_a_checkpoint_says_which_package_is_gone(tmp_path, capsys):
    path = toy_checkpoint(tmp_path / "checkpoints", 4)
    checkpoint.amend(path, checkpoint.read_meta(path) | {"packages": {"model.name": {"mine": "1.2"}}})
    with pytest.raises(InputError, match="key 'model.name' names an entry of mine 1.2, .* pip install mine"):
        run_settings.run_config(checkpoint.read_meta(path), path)
    with pytest.raises(InputError, match="which is not installed: pip install mine"):  # a run that would go on from it
        build(toy_config(tmp_path, tmp_path / "data"), Env(0, 1, 0, torch.device("cpu"), None, "test"))
    assert infer.main(["--checkpoint", str(path), "--data", "data", "--out", str(tmp_path / "out")]) == 2
    assert "mine 1.2, which is not installed: pip install mine" in capsys.readouterr().err


PLAIN = """
from hpctrack.config import Section
from hpctrack.testing.toys import toy_event

class Reader:
    field_t = None
    def __init__(self, n): self.n = n
    def event_ids(self): return list(range(self.n))
    def origin(self): return {"kind": "plain"}
    def stamp(self, event_id): return event_id, 1
    def read(self, event_id): yield toy_event(event_id)

class PlainFormat:
    class Options(Section):
        events: int = 2
    def __init__(self, options): self.options = options
    def open(self, source, limit=None, skip_bad=False): return Reader(self.options.events)
"""


def test_events_of_another_format(install, tmp_path, capsys):
    install("mine", PLAIN, formats={"plain": "mine:PlainFormat"})
    arguments = [str(tmp_path), str(tmp_path / "data"), "--jobs", "1", "--format"]
    assert convert.main([*arguments, "plane"]) == 2
    assert (
        "--format plane: must be one of sub-events, trackml, colliderml, acts, acorn, proton-ct, plain"
        in capsys.readouterr().err
    )
    assert convert.main([*arguments, "plain", "--option", "event=3"]) == 2
    assert "unknown key 'event'; did you mean 'events'?" in capsys.readouterr().err
    assert convert.main([*arguments, "plain", "--no-truth", "--option", "events=3"]) == 2
    assert "--no-truth is for datasets or TrackML files" in capsys.readouterr().err
    assert convert.main([*arguments, "plain", "--option", "events=3"]) == 0
    assert "3 events" in capsys.readouterr().out
    made = Dataset(tmp_path / "data")
    assert json.loads(made.attributes["origin"]) == {"kind": "plain", "versions": {"mine": "1.2"}}


SOURCE_AND_METHOD = """
import numpy as np
from hpctrack.config import Section
from hpctrack.simulation.helix import HelixSource
from hpctrack.tracking.builder import from_lists

class Few(HelixSource):
    pass

class OneTrack:
    COLUMNS = ["hits.x"]
    class Options(Section):
        min_hits: int = 3
    def __init__(self, options): self.options = options
    def reconstruct(self, event, rows):
        return from_lists([rows], [1.0], event.n_hits, event.event_id, self.options.min_hits), {"build_s": 0.0}
"""


def test_events_of_another_source_and_candidates_of_another_method(install, tmp_path, capsys):
    install("mine", SOURCE_AND_METHOD, sources={"few": "mine:Few"}, methods={"one": "mine:OneTrack"})
    csv, data, out = (str(tmp_path / name) for name in ("csv", "data", "out"))
    assert simulate.main([csv, "--source", "few", "--particles", "30", "--events", "1"]) == 0
    assert json.loads((tmp_path / "csv" / RECORD).read_text())["versions"]["mine"] == "1.2"
    assert convert.main([csv, data, "--jobs", "1"]) == 0
    assert infer.main(["--method", "one", "--data", data, "--out", out, "method.min_hits=4"]) == 0
    found = CandidateStore(out)
    assert found.attributes["versions"] == {"mine": "1.2"} and len(found.read(0)) == 1
    assert infer.main(["--method", "two", "--data", data, "--out", out]) == 2
    assert "unknown 'two'; one of: ckf, dbscan, follow, hopfield, one" in capsys.readouterr().err
