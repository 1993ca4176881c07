"""Damaged and odd foreign files: one line that names the file and what is wrong, exit code 2, nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from acts_files import refused
from helpers import make_trackml, quietly
from torch_geometric.data import Data

from hpctrack import convert
from hpctrack.formats.colliderml.schema import source_ids
from hpctrack.storage.store import open_dataset

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


# ------------------------------------------------------------------------------------------------ ColliderML's parquet

Tables = dict[str, dict[str, Any]]


def tables() -> Tables:
    """Two events, of three and two hits, as columns; types as ColliderML's."""
    number, short = arrow.list_(arrow.float32()), arrow.list_(arrow.uint8())
    place, ids = [[30.0, 70.0, 110.0], [30.0, 70.0]], arrow.list_(arrow.uint64())
    events = arrow.array([4, 5], arrow.uint32())
    hits = {"event_id": events} | {name: arrow.array(place, number) for name in ("x", "y", "z")}
    hits |= {f"true_{axis}": hits[axis] for axis in "xyz"} | {"particle_id": arrow.array([[0, 7, 7], [0, 0]], ids)}
    hits["volume_id"] = hits["detector"] = arrow.array([[8, 8, 8], [8, 8]], short)
    hits["layer_id"] = arrow.array([[2, 4, 6], [2, 4]], arrow.list_(arrow.uint16()))
    hits["surface_id"] = arrow.array([[1, 1, 1], [1, 1]], arrow.list_(arrow.uint32()))
    particles = {"event_id": events, "particle_id": arrow.array([[0, 7], [0]], ids)}
    particles["pdg_id"] = arrow.array([[13, -13], [211]], arrow.list_(arrow.int64()))
    for name in ("charge", "vx", "vy", "vz", "px", "py", "pz"):
        particles[name] = arrow.array([[1.0, -1.0], [1.0]], number)
    return {"tracker_hits": hits, "particles": particles}


def write(folder: Path, found: Tables, name: str = "train-00000-of-00001.parquet") -> Path:
    for table, columns in found.items():
        (folder / f"ttbar_pu200_{table}").mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.table(columns), folder / f"ttbar_pu200_{table}" / name)
    return folder


def without(table: str, column: str) -> Callable[[Tables], None]:
    return lambda found: found[table].pop(column)


def merged(found: Tables) -> None:
    """As of Release 2: each hit names several particles."""
    del found[hit]["particle_id"]
    for name, of in (("particle_ids", arrow.uint64()), ("simhit_ids", arrow.uint32())):
        found[hit][name] = arrow.array([[[0], [0, 1], []], [[0], [1]]], arrow.list_(arrow.list_(of)))


def with_column(table: str, column: str, values: list[Any], dtype: Any = None) -> Callable[[Tables], None]:
    """Other values in a column, of the type that it has if no other is named."""

    def change(found: Tables) -> None:
        found[table][column] = arrow.array(values, dtype or found[table][column].type)

    return change


NAN, INFINITE = float("nan"), float("inf")
hit, particle = "tracker_hits", "particles"
PARQUET = {
    "hits without x": (without(hit, "x"), "no column 'x'"),
    "hits without surfaces": (without(hit, "surface_id"), "no column 'surface_id'"),
    "hits without owners": (without(hit, "particle_id"), "no column 'particle_id'"),
    "hits without crossings": (without(hit, "true_y"), "--without crossings"),
    "no event ids": (without(hit, "event_id"), "no column 'event_id'"),
    "particles without momenta": (without(particle, "pz"), "--without momenta"),
    "particles without charges": (without(particle, "charge"), "--without charges"),
    "text for numbers": (with_column(hit, "x", [["a"] * 3, ["b"] * 2], arrow.list_(arrow.string())), "x is list"),
    "fractions for ids": (
        with_column(hit, "particle_id", [[0.0, 7.0, 7.0], [0.0, 0.0]], arrow.list_(arrow.float64())),
        "particle_id is list",
    ),
    "one number a row": (with_column(hit, "z", [1.0, 2.0], arrow.float32()), "z is float, must be a list"),
    "event ids with fractions": (with_column(hit, "event_id", [4.0, 5.0], arrow.float32()), "event_id is float"),
    "negative event ids": (with_column(hit, "event_id", [-4, 5], arrow.int64()), "event_id is -4"),
    "an event id missing": (with_column(hit, "event_id", [4, None]), "event_id is missing in 1"),
    "an event twice": (with_column(hit, "event_id", [4, 4]), "event 4: its tracker_hits stand twice"),
    "particles of an event twice": (with_column(particle, "event_id", [4, 4]), "event 4: its particles stand twice"),
    "an event without particles": (with_column(particle, "event_id", [4, 6]), "event 5: no table of particles"),
    "unequal lists": (
        with_column(hit, "y", [[1.0, 2.0], [1.0, 2.0]]),
        "event 4: y has 2 entries, but x has 3",
    ),
    "a list missing": (with_column(hit, "y", [[1.0, 2.0, 3.0], None]), "event 5: y is missing"),
    "an entry missing": (with_column(hit, "y", [[1.0, None, 3.0], [1.0, 2.0]]), "event 4: entry 1 of y is missing"),
    "NaN": (with_column(hit, "y", [[1.0, 2.0, NAN], [1.0, 2.0]]), "event 4: entry 2 of y is nan"),
    "infinite": (with_column(hit, "z", [[1.0, 2.0, 3.0], [INFINITE, 2.0]]), "event 5: entry 0 of z is inf"),
    "out of this world": (with_column(hit, "x", [[1.0, 2.0, 3.0], [1.0, 1e12]]), "event 5: entry 1 of x is 1e+12"),
    "a float64 beyond float32": (
        with_column(hit, "x", [[1.0, 2.0, 1e60], [1.0, 2.0]], arrow.list_(arrow.float64())),
        "event 4: entry 2 of x is inf",
    ),
    "a layer beyond 255": (with_column(hit, "layer_id", [[2, 256, 6], [2, 4]]), "entry 1 of layer_id is 256"),
    "a surface beyond 65535": (with_column(hit, "surface_id", [[1, 1, 70000], [1, 1]]), "entry 2 of surface_id is"),
    "a particle twice": (with_column(particle, "particle_id", [[7, 7], [0]]), "event 4: particle_id 7 stands twice"),
    "a particle of nobody": (with_column(particle, "particle_id", [[0, 2**64 - 1], [0]]), "which is none's"),
    "a hit of an unknown particle": (
        with_column(hit, "particle_id", [[0, 7, 2**63 + 1], [0, 0]]),
        "event 4: entry 2 of particle_id is 9223372036854775809",
    ),
    "a negative particle": (
        with_column(hit, "particle_id", [[0, 7, -2], [0, 0]], arrow.list_(arrow.int64())),
        "event 4: entry 2 of particle_id is -2",
    ),
    "a third of a charge": (with_column(particle, "charge", [[1.0, 1 / 3], [1.0]]), "event 4: entry 1 of charge is"),
    "clusters of several particles without crossings": (merged, "event 4: no table of tracker_simhits has this event"),
    "numbers for lists of particles": (
        with_column(hit, "simhit_ids", [[0, 7, 7], [0, 0]], arrow.list_(arrow.uint32())),
        "must be a list of lists of whole numbers",
    ),
    "a momentum of NaN": (with_column(particle, "px", [[1.0, 1.0], [NAN]]), "event 5: entry 0 of px is nan"),
}


@pytest.mark.parametrize("name", PARQUET)
def test_odd_parquet(tmp_path, name):
    change, expected = PARQUET[name]
    found = tables()
    change(found)
    line = refused(write(tmp_path / "in", found), tmp_path / "out")
    assert expected in line and str(tmp_path / "in") in line, line


def cut(folder: Path) -> None:
    path = next(folder.glob("*hits/*"))
    path.write_bytes(path.read_bytes()[:-40])


def damage(folder: Path) -> None:
    path = next(folder.glob("*hits/*"))
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(bytes(data))


def text(folder: Path) -> None:
    next(folder.glob("*hits/*")).write_text("event_id,x,y\n")


def empty(folder: Path) -> None:
    next(folder.glob("*hits/*")).write_bytes(b"")


def again(folder: Path) -> None:
    write(folder, tables(), "train-00001-of-00002.parquet")


def no_particles(folder: Path) -> None:
    next(folder.glob("*particles/*")).unlink()


def no_hits(folder: Path) -> None:
    next(folder.glob("*hits/*")).unlink()


def a_submission(folder: Path) -> None:
    parquet.write_table(arrow.table({"event_id": [4], "hit_id": [0], "track_id": [1]}), folder / "mine.parquet")


def of_two_formats(folder: Path) -> None:
    make_trackml(folder, [1])


FILES = {
    cut: "truncated, damaged or no parquet",
    damage: "truncated, damaged or no parquet",
    text: "truncated, damaged or no parquet",
    empty: "truncated, damaged or no parquet",
    again: "event 4: its tracker_hits stand also in",
    no_particles: "no table of particles",
    no_hits: "no table of hits",
    a_submission: "mine.parquet: none of ColliderML's tables",
    of_two_formats: "say which with --format",
}


@pytest.mark.parametrize("change", FILES, ids=lambda change: change.__name__)
def test_odd_parquet_files(tmp_path, change):
    change(write(tmp_path / "in", tables()))
    line = refused(tmp_path / "in", tmp_path / "out")
    assert FILES[change] in line and str(tmp_path / "in") in line, line


def test_what_is_no_fault(tmp_path):
    """Crossings that nobody measured, wider numbers, ids in any order; and particles of no table, if that is said."""
    found = tables()
    for axis in "xyz":
        with_column(hit, axis, [[1.0, NAN, 3.0], [1.0, 2.0]], arrow.list_(arrow.float64()))(found)
    with_column(hit, "event_id", [5, 4], arrow.int64())(found)
    with_column(particle, "particle_id", [[7, 2**63 + 9], [0]])(found)
    with_column(hit, "particle_id", [[0, 0, 2**64 - 1], [2**63 + 9, 11]])(found)
    source = write(tmp_path / "in", found)
    assert "entry 1 of particle_id is 11, which is not in" in refused(source, tmp_path / "out")
    argv = [source, tmp_path / "out", "--jobs", 1, "--option", "unlisted=noise"]
    assert quietly(convert.main, argv)[0] == 0
    four, five = (open_dataset(tmp_path / "out").read(i, verify=True) for i in (0, 1))
    assert five.column("hits.hit_id").tolist() == [0, 2] and five.column("hits.x").tolist() == [1.0, 3.0]
    assert source_ids(five.column("truth.particle_id")).tolist() == [0, 2**64 - 1]
    assert five.column("truth.particle_row").tolist() == [0, -1]
    assert source_ids(four.column("truth.particle_id")).tolist() == [2**63 + 9, 2**64 - 1]
    assert source_ids(four.column("particles.particle_id")).tolist() == [7, 2**63 + 9]
    assert four.column("particles.nhits").tolist() == [0, 1]


# ------------------------------------------------------------------------------------------------ ACTS' CSV

PV = "particle_id_pv,particle_id_sv,particle_id_part,particle_id_gen,particle_id_subpart"
PIXEL = (8 << 56) | (2 << 36) | (1 << 8)  # volume 8, layer 2, module 1
ACTS = {
    "measurements": f"measurement_id,geometry_id,global_x,global_y,global_z\n0,{PIXEL},30,0,1\n1,{PIXEL},31,0,1\n",
    "measurement-simhit-map": "measurement_id,hit_id\n0,0\n1,1\n",
    "hits": f"{PV},geometry_id,tx,ty,tz,tpx,tpy,tpz,deltae\n"
    + "".join(f"1,0,1,0,0,{PIXEL},{x},0,1,1,0,0,-1\n" for x in (30, 31)),
    "particles": f"{PV},particle_type,vx,vy,vz,px,py,pz,q\n1,0,1,0,0,13,0,0,0,1,0,0,-1\n",
}
ACTS_FAULTS = {  # file, what is changed in it, what stands there then, what is said
    "a part beyond its bits": (
        "hits",
        "1,0,1,0,0,",
        "4096,0,1,0,0,",
        "row 1: particle_id_pv is 4096, must be below 4096",
    ),
    "no fifth part": ("hits", "subpart", "other", "no column 'particle_id_subpart'"),
    "an unknown particle": ("particles", "1,0,1,0,0,13", "1,0,2,0,0,13", "particle 1|0|1|0|0, of 2 hits, is not in"),
    "a particle twice": (
        "particles",
        "1,0,1,0,0,13,0,0,0,1,0,0,-1\n",
        "1,0,1,0,0,13,0,0,0,1,0,0,-1\n" * 2,
        "row 2: particle 1|0|1|0|0 stands twice, first in row 1",
    ),
    "a hit beyond the file": ("measurement-simhit-map", "1,1\n", "1,2\n", "row 2: hit_id 2 is beyond the 2 rows"),
    "measurements not in order": ("measurements", "\n1,", "\n0,", "row 2: measurement_id 0 follows 0"),
    "no positions": ("measurements", "global_x", "local_x", "--option hits=spacepoints"),
    "a fraction for an id": ("measurements", f"0,{PIXEL}", "0,5.5", "row 1: geometry_id is '5.5'"),
    "a layer beyond 255": ("measurements", str(PIXEL), str(PIXEL | (0xFFF << 36)), "row 1: layer_id is 4095"),
    "NaN": ("measurements", "31,0,1", "nan,0,1", "row 2: global_x is 'nan'"),
    "out of this world": ("measurements", "31,0,1", "1e30,0,1", "row 2: x is 1e+30"),
    "a cut row": ("hits", ",1,0,0,-1\n", "\n", "row 1 has 9 values, must have 13"),
    "half a charge": ("particles", "0,0,-1\n", "0,0,-0.5\n", "row 1: q is -0.5"),
}


def write_acts(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for kind, text in files.items():
        (folder / f"event000000003-{kind}.csv").write_text(text)
    return folder


@pytest.mark.parametrize("name", ACTS_FAULTS)
def test_odd_acts_csv(tmp_path, name):
    kind, old, new, expected = ACTS_FAULTS[name]
    assert old in ACTS[kind]
    source = write_acts(tmp_path / "in", ACTS | {kind: ACTS[kind].replace(old, new)})
    line = refused(source, tmp_path / "out")
    assert expected in line and "event 3" in line, line


def test_acts_csv_as_it_must_be(tmp_path):
    source = write_acts(tmp_path / "in", ACTS)
    assert quietly(convert.main, [source, tmp_path / "out", "--jobs", 1])[0] == 0


@pytest.mark.parametrize("kind", [kind for kind in ACTS if kind != "measurements"])
def test_acts_csv_without_a_file(tmp_path, kind):
    source = write_acts(tmp_path / "in", {other: text for other, text in ACTS.items() if other != kind})
    assert "event 3: no file event000000003-" in refused(source, tmp_path / "out")
    (tmp_path / "in" / f"event000000003-{kind}.csv").mkdir()
    refused(source, tmp_path / "out")


# ------------------------------------------------------------------------------------------------ torch files


class Foreign:
    """Code that a file names, and that would run where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def graph(**changed: Any) -> Data:
    """Four hits, two of one particle, two of another, as acorn writes them."""
    columns = {f"hit_{axis}": torch.arange(4.0) for axis in "xyz"} | {"hit_id": torch.arange(4)}
    columns |= {"track_edges": torch.tensor([[0, 2], [1, 3]]), "track_particle_id": torch.tensor([5, 6])}
    return Data(**{name: value for name, value in (columns | changed).items() if value is not None})


GRAPHS = {
    "no positions": (graph(hit_y=None), "no column 'y' or 'hit_y'"),
    "positions of other lengths": (graph(hit_z=torch.arange(3.0)), "hit_z has shape [3], must be [4]"),
    "ids of another length": (graph(hit_id=torch.arange(5)), "hit_id has shape [5], must be [4]"),
    "ids not in order": (graph(hit_id=torch.tensor([0, 2, 1, 3])), "row 2: hit_id 1 follows 2"),
    "fractions for ids": (graph(hit_id=torch.tensor([0.0, 0.5, 1.0, 2.0])), "row 1 of hit_id is 0.5"),
    "NaN": (graph(hit_x=torch.tensor([0.0, 1.0, NAN, 3.0])), "row 2 of x is nan"),
    "edges to nowhere": (graph(track_edges=torch.tensor([[0, 2], [1, 4]])), "track_edges has 0 to 4"),
    "edges of one end": (graph(track_edges=torch.tensor([0, 1])), "track_edges is int64 [2], must be"),
    "edges of nobody": (graph(track_particle_id=None), "no 'track_particle_id'"),
    "too few owners": (graph(track_particle_id=torch.tensor([5])), "track_particle_id has shape [1], must be [2]"),
    "a hit of two": (graph(track_edges=torch.tensor([[0, 1], [1, 3]])), "hit row 1 is of two particles"),
    "no truth": (graph(track_edges=None, track_particle_id=None), "--no-truth"),
    "a module too far": (graph(hit_module_id=torch.tensor([1, 2, 3, 70000])), "row 3 of hit_module_id is 70000"),
    "no graph": ([1, 2], "holds list, not a graph"),
    "features of two columns": (Data(x=torch.zeros(4, 2)), "must begin with r, phi and z"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_odd_graph(tmp_path, name):
    found, expected = GRAPHS[name]
    (tmp_path / "in").mkdir()
    torch.save(found, tmp_path / "in/event000000009.pyg")
    line = refused(tmp_path / "in", tmp_path / "out")
    assert expected in line and "event000000009.pyg: event 9" in line, line


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_graph_is_not_run(tmp_path, zipped):
    path, touched = tmp_path / "event000000009.pyg", tmp_path / "touched"
    torch.save(graph(config=Foreign(touched)), path, _use_new_zipfile_serialization=zipped)
    assert "names code, posix.mkdir, which is not run" in refused(path, tmp_path / "out") and not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists()


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_cut_graph(tmp_path, keep):
    path = tmp_path / "event000000009.pyg"
    torch.save(graph(), path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "event000000009.pyg: event 9: " in refused(path, tmp_path / "out")


def test_graphs_of_one_event_twice_and_of_none(tmp_path):
    torch.save(graph(), tmp_path / "event000000009.pyg")
    torch.save(graph(), tmp_path / "event000000009-graph.pyg")
    assert "event 9: also in" in refused(tmp_path, tmp_path / "out")
    torch.save(graph(), tmp_path / "mine.pyg")
    assert "no events of acorn" in refused(tmp_path / "mine.pyg", tmp_path / "out")
