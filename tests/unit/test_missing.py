"""What a dataset lacks: it says so, nothing stands in its place, and what needs it is refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import make_trackml

from hpctrack import convert, evaluate, infer, inspect, named_recipes, report, train
from hpctrack.config import Named, load_config
from hpctrack.errors import InputError
from hpctrack.events.features import FEATURES
from hpctrack.models import MODELS
from hpctrack.requirements import fields
from hpctrack.requirements.needs import Need, check
from hpctrack.storage import schema
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.shard_writer import ShardWriter, write_index
from hpctrack.storage.store import Dataset
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import toy_config, toy_dataset, toy_event
from hpctrack.tracking.methods import METHODS
from hpctrack.training import checkpoint, checkpoint_metadata, data_needs

CELLS, MOMENTA, WEIGHTS = (frozenset(schema.PARTS[part]) for part in ("cells", "momenta", "weights"))


def line(capsys, verb, *words):
    """The one line with which a verb refuses."""
    capsys.readouterr()
    assert verb.main([str(word) for word in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    return error[0]


def run(verb, *words):
    assert verb.main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """TrackML files with everything, `csv`; datasets of them: `whole`, and others without what their name says."""
    folder = tmp_path_factory.mktemp("missing")
    make_trackml(folder / "csv", [1, 2], n_particles=9)
    make_trackml(folder / "bare", [1, 2], n_particles=9)
    for path in (folder / "bare").glob("*-cells.csv"):
        path.unlink()
    run(convert, folder / "csv", folder / "whole", "--jobs", 1)
    run(convert, folder / "bare", folder / "cells", "--jobs", 1)
    run(convert, folder / "csv", folder / "truth", "--jobs", 1, "--no-truth")
    for part in ("weights", "momenta"):
        run(convert, folder / "csv", folder / part, "--jobs", 1, "--without", part)
    return folder


def without_saying(path):
    """Take from a dataset what it says it lacks, as version 0.1.0 left it."""
    for name in ("index.h5", "events-00000.h5"):
        with h5py.File(path / name, "r+") as file:
            del file.attrs["lacks"], file.attrs["attributes_digest"]
    with h5py.File(path / "index.h5", "r+") as file:
        assert file["shard_bytes"][0] == (path / "events-00000.h5").stat().st_size
    return Dataset(path)


# ------------------------------------------------------------------------------------------------ a dataset says it


def test_a_dataset_says_what_it_lacks_and_holds_nothing_in_its_place(folder, capsys):
    found = {name: Dataset(folder / name) for name in ("whole", "cells", "truth", "weights", "momenta")}
    lacks = {name: data.lacks for name, data in found.items()}
    assert lacks == {"whole": frozenset(), "cells": CELLS, "truth": schema.ALL_OF_TRUTH} | {
        "weights": WEIGHTS,
        "momenta": MOMENTA,
    }
    for name, data in found.items():
        with h5py.File(folder / name / "events-00000.h5") as file:
            stored = {f"{t}.{c}" for t in schema.TABLES for c in file.get(t, ())}
        assert stored == set(data.columns) and (name == "truth" or not stored & data.lacks)
        if name != "truth":  # without truth there are hits of no particle, and no particles
            assert stored | data.lacks == set(schema.all_columns())
        capsys.readouterr()
        run(inspect, folder / name, "--verify")
        said = capsys.readouterr().out
        assert re.search(rf"^lacks +{'nothing' if name == 'whole' else name}", said, re.M) and "verified: ok" in said
    assert "truth.weight" not in found["truth"].columns and not found["truth"].n_particles.any()
    with pytest.raises(InputError, match="lacks cells, so there is no column 'cells.size_u'"):
        found["cells"].read(0, ["cells.size_u"])


def test_files_of_cells_without_a_row_are_no_cells(folder, tmp_path):
    make_trackml(tmp_path / "csv", [1], n_particles=3)
    (tmp_path / "csv/event000000001-cells.csv").write_text("hit_id,ch0,ch1,value\n")
    run(convert, tmp_path / "csv", tmp_path / "smeared", "--jobs", 1)
    run(convert, folder / "csv", tmp_path / "told", "--jobs", 1, "--without", "cells")
    assert Dataset(tmp_path / "smeared").lacks == Dataset(tmp_path / "told").lacks == CELLS
    assert Dataset(tmp_path / "told").fingerprint == Dataset(folder / "cells").fingerprint


def test_a_column_is_missed_unless_it_is_said(folder, tmp_path, capsys):
    for path in make_trackml(tmp_path / "csv", [1]).glob("*-truth.csv"):
        path.write_text(path.read_text().replace("weight", "wait"))
    error = line(capsys, convert, tmp_path / "csv", tmp_path / "no")
    assert "no column 'weight'" in error and error.endswith("--without weights converts files that have none")
    assert "--without is for TrackML files" in line(
        capsys, convert, folder / "whole", tmp_path / "no", "--tracks", 2, "--without", "cells"
    )


def test_sub_events_lack_the_same_and_are_not_drawn_without_truth(folder, tmp_path, capsys):
    run(convert, folder / "momenta", tmp_path / "sub", "--tracks", 3, "--jobs", 1)
    assert Dataset(tmp_path / "sub").lacks == MOMENTA
    for name, what in (("momenta", "lacks momenta, which --pt-min-gev"), ("truth", "lacks truth, momenta, which")):
        assert what in line(
            capsys, convert, folder / name, tmp_path / "no", "--tracks", 3, "--pt-min-gev", 0.1, "--jobs", 1
        )


def test_what_an_older_dataset_lacks_follows_from_its_content(tmp_path):
    toy = without_saying(toy_dataset(tmp_path / "toy", sizes=(0, 3)))  # zeros for cells, as 0.1.0 wrote them
    assert toy.lacks == CELLS and not toy.says_what_it_lacks and toy.read(1, ["cells.size_u"]).n_hits
    assert without_saying(toy_dataset(tmp_path / "bare", sizes=(0, 0))).lacks == schema.ALL_OF_TRUTH | CELLS
    run(convert, toy.folder, tmp_path / "sub", "--tracks", "all", "--jobs", 1)
    sub = Dataset(tmp_path / "sub")
    assert sub.says_what_it_lacks and sub.lacks == CELLS and not any(c.startswith("cells") for c in sub.columns)


def test_the_older_fixture_lacks_nothing():
    data = Dataset(Path(__file__).parents[1] / "fixtures/v0_1_0/data")
    assert not data.lacks and not data.says_what_it_lacks and not data.field_is_known


def test_events_of_a_dataset_lack_the_same(tmp_path):
    with (
        pytest.raises(InputError, match="event 2: .* has no cells, unlike event 1"),
        ShardWriter(tmp_path / "a") as out,
    ):
        out.add(toy_event(1))
        out.add(toy_event(2, lacks=CELLS))
    for number, lacks in enumerate([(), WEIGHTS]):
        with ShardWriter(tmp_path / f"events-0000{number}.h5") as out:
            out.add(toy_event(number, lacks=lacks))
    with pytest.raises(InputError, match="events-00001.h5: .* has no weights, unlike events-00000.h5"):
        write_index(tmp_path, ["events-00000.h5", "events-00001.h5"])


# ------------------------------------------------------------------------------------------------ who needs what


def test_whoever_reads_an_event_says_its_columns():
    known = set(schema.all_columns())
    assert all(set(feature.columns) <= known for feature in FEATURES.values())
    assert all(set(MODELS[name].COLUMNS) <= known for name in MODELS.own)
    for name in METHODS.own:
        try:
            columns = METHODS[name].COLUMNS
        except InputError:  # its package is not installed
            continue
        assert set(columns) <= known - schema.ALL_OF_TRUTH, name
    for name in named_recipes.names():
        assert {column for need in data_needs.of_run(load_config(name)) for column in need.columns} <= known


def test_a_recipe_with_cells_has_a_sibling_without_by_the_features_that_are_named():
    with_cells = 0
    for name in named_recipes.names():
        config = load_config(name)
        if lacks := CELLS & {column for need in data_needs.of_run(config) for column in need.columns}:
            with_cells += 1
            override = data_needs.recipes_without(lacks, config).partition(", or ")[2]
            sibling = data_needs.of_run(load_config(name, [override]))
            assert override and not any(lacks & set(need.columns) for need in sibling)
    assert with_cells


def test_a_model_may_need_more_than_its_features(tmp_path, monkeypatch):
    data = Dataset(toy_dataset(tmp_path / "data", sizes=(3,), lacks=CELLS))
    config = toy_config(tmp_path / "run", data.folder)
    data_needs.check_run(data, config)
    monkeypatch.setattr(MODELS[config.model.name], "COLUMNS", ("cells.size_u",))
    with pytest.raises(InputError, match="lacks cells, which model 'influencer' needs; recipes that do without"):
        data_needs.check_run(data, config)


@pytest.mark.parametrize(
    ("part", "weight", "who"), [("momenta", 0, "data.selection.pt_min_gev"), ("charges", 0.1, "loss.parameters")]
)
def test_training_names_who_needs_a_part(tmp_path, part, weight, who):
    data = Dataset(toy_dataset(tmp_path / "data", sizes=(3,), lacks=schema.PARTS[part]))
    config = toy_config(tmp_path / "run", data.folder, reading={"selection": {"pt_min_gev": 0.5}})
    config = config.model_copy(update={"loss": Named(name="influencer", parameters=weight)})
    with pytest.raises(InputError, match=f"lacks {part}, which {who}.* needs; recipes that do without: "):
        data_needs.check_run(data, config)


def test_true_edges_need_vertices(tmp_path):
    data = Dataset(toy_dataset(tmp_path / "data", sizes=(3,), lacks=schema.PARTS["vertices"]))
    config = toy_config(tmp_path / "run", data.folder)
    data_needs.check_run(data, config)
    graph = config.data.model_copy(update={"graph": Named(name="doublets")})
    with pytest.raises(InputError, match="lacks vertices, which data.graph, whose edges are true or false, needs"):
        data_needs.check_run(data, config.model_copy(update={"data": graph}))


# ------------------------------------------------------------------------------------------------ verbs


def shipped(columns):
    """Shipped models, by whether they see any of these columns."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for path in checkpoint.SHIPPED.glob("*/meta.json"):
        features = checkpoint_metadata.read_meta(path)["config"]["data"]["features"]
        found[any(columns & set(FEATURES[name].columns) for name in features)].append(path.parent.name)
    return found


def test_a_model_that_needs_cells_is_refused_and_one_that_does_not_is_named_and_runs(folder, tmp_path, capsys):
    which = shipped(CELLS)
    for name in which[True]:
        stages = ["--checkpoint", name, "--data", folder / "cells", "--out", tmp_path / "no"]
        error = line(capsys, infer, *stages)
        assert f"cells: lacks cells, which feature 'cell_count' of {name}" in error and not (tmp_path / "no").exists()
        named = error.partition("shipped models that do without: ")[2].split(", ")
        assert sorted(named) == sorted(which[False])
    run(infer, "--checkpoint", which[False][0], "--data", folder / "cells", "--out", tmp_path / "yes")


def test_all_ranks_end_alike(folder, tmp_path):
    words = ["--checkpoint", "pipeline-embedding", "--data", str(folder / "cells"), "--out", str(tmp_path / "no")]
    assert run_ranks(2, code_of, words) == [2, 2]


def code_of(words):
    try:
        return infer.main(words)
    except SystemExit as end:
        return end.code


def test_a_recipe_that_needs_cells_is_refused(folder, tmp_path, capsys):
    words = [f"run={tmp_path / 'run'}", f"data.train={folder / 'cells'}", f"data.valid={folder / 'cells'}"]
    error = line(capsys, train, "pipeline/embedding", *words)
    assert "lacks cells, which feature 'cell_count' of data.features (and 5 more) needs; recipes that do" in error
    assert "influencer-500" in error and error.endswith("or data.features=[r,cos_phi,sin_phi,z,eta]")
    assert not (tmp_path / "run/checkpoints").exists()


def test_without_truth_tracks_are_found_but_not_judged_nor_learned(folder, tmp_path, capsys):
    data = folder / "truth"
    run(infer, "--checkpoint", "influencer-500", "--data", data, "--out", tmp_path / "found")
    run(infer, "--checkpoint", "influencer-500", "--data", folder / "whole", "--out", tmp_path / "same")
    found, same = (CandidateStore(tmp_path / name).read(0) for name in ("found", "same"))
    assert np.array_equal(found.track_ids, same.track_ids)
    words = ["--checkpoint", "influencer-500", "--data", data, "--out", tmp_path / "no"]
    assert "lacks truth, which selection.noise=false needs" in line(capsys, infer, *words, "selection.noise=false")
    judged = line(capsys, evaluate, tmp_path / "found", "--data", data, "--out", tmp_path / "r.json")
    assert "lacks truth, momenta, which evaluation (and 1 more) needs" in judged
    learned = line(capsys, train, "influencer", f"run={tmp_path / 'run'}", f"data.train={data}", "data.valid=null")
    assert "lacks truth, momenta, which loss.attraction" in learned and "convert it with its truth" in learned


def test_without_weights_there_is_no_score_and_without_momenta_no_cut(folder, tmp_path, capsys):
    for part in ("weights", "momenta"):
        out = tmp_path / part
        run(infer, "--checkpoint", "influencer-500", "--data", folder / part, "--out", out)
        words = [out, "--data", folder / part, "--out", tmp_path / f"{part}.json", "--pt-min-gev", 0]
        capsys.readouterr()
        run(evaluate, *words)
        said = capsys.readouterr().err
        results = json.loads((tmp_path / f"{part}.json").read_text())
        assert results["exclusive"]["metrics"]["efficiency"]["denominator"] > 0
        if part == "momenta":
            assert not said and results["exclusive"]["metrics"]["trackml_score"]["value"] is not None
            assert "lacks momenta, which --pt-min-gev needs" in line(capsys, evaluate, *words[:-1], 0.1)
            continue
        assert "lacks weights, which TrackML score needs: left out" in said
        assert results["exclusive"]["metrics"]["trackml_score"]["value"] is None
        page = ["--results", tmp_path / "weights.json", "--out", tmp_path / "page.html"]
        run(report, *page, "--candidates", out, "--data", folder / part)


# ------------------------------------------------------------------------------------------------ magnetic field


def test_a_field_is_given_or_assumed_and_recorded(folder, tmp_path, capsys):
    run(convert, folder / "csv", tmp_path / "three", "--jobs", 1, "--field", 3)
    given, assumed = Dataset(tmp_path / "three"), Dataset(folder / "whole")
    assert (given.field_t, given.field_is_known) == (3.0, True) and given.fingerprint == assumed.fingerprint
    assert (assumed.field_t, assumed.field_is_known, assumed.attributes["assumed_field_t"]) == (2.0, False, 2.0)
    assert "assumed" in inspect.describe(assumed.folder, "dataset")["field"]
    make_trackml(tmp_path / "csv", [1])
    (tmp_path / "csv/simulation.json").write_text('{"format": "hpctrack-simulation", "settings": {"field_t": 4.0}}')
    assert "simulation.json says 4 T; leave" in line(capsys, convert, tmp_path / "csv", tmp_path / "no", "--field", 3)
    error = line(capsys, convert, folder / "bare", tmp_path / "no", "--field", 0)
    assert "key 'field_t': must be between 0.1 and 10 T" in error


def test_a_model_of_another_field_is_said_and_its_parameters_are_refused(folder, tmp_path, capsys):
    run(convert, folder / "csv", tmp_path / "three", "--jobs", 1, "--field", 3)
    run(infer, "--checkpoint", "influencer-500", "--data", tmp_path / "three", "--out", tmp_path / "found")
    said = capsys.readouterr().out
    assert "three is of 3 T, but influencer-500 has learned in 2 T" in said and "0.667 times its momentum" in said
    data = Dataset(tmp_path / "three")
    assert fields.check_field(data, "runs/mine", 3.01, parameters=True) is None
    with pytest.raises(InputError, match="has learned in 4 T: its track parameters would be wrong; train one in 3 T"):
        fields.check_field(data, "runs/mine", 4.0, parameters=True)


def test_a_run_records_its_field_and_does_not_go_on_in_another(tmp_path, capsys):
    data = toy_dataset(tmp_path / "data", sizes=(3, 4))
    words = [f"run={tmp_path / 'run'}", f"data.train={data}", "data.valid=null", "builder.radius=0.3"]
    small = ["model.backbone.width=8", "model.backbone.layers=1", "data.curriculum=[]", "data.selection.pt_min_gev=0"]
    run(train, "influencer", *words, *small, "train.steps=1")
    path = checkpoint.find(tmp_path / "run")
    assert fields.trained_field(checkpoint.read_meta(path)) == 2.0
    with h5py.File(data / "index.h5", "r+") as file:
        file.attrs["field_t"] = 3.0
        del file.attrs["attributes_digest"]
    assert "was trained in 2 T, but" in line(capsys, train, "influencer", *words, *small, "train.steps=2")


def test_requirements_of_hits_alone_read_nothing(tmp_path):
    data = without_saying(toy_dataset(tmp_path / "data", sizes=(3,)))
    check(data, [Need("anything", ["hits.x"])])
    assert "lacks" not in vars(data) and np.all(data.n_hits)
