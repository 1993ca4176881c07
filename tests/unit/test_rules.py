"""Named rules: one event on which each gives another, known answer; what they refuse; results, table and page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_run as make

from hpctrack import evaluate, report
from hpctrack.config import load_config
from hpctrack.errors import InputError
from hpctrack.evaluation import rules
from hpctrack.evaluation.calorimeter import of_protons
from hpctrack.evaluation.event_rules import of_clusters
from hpctrack.evaluation.judging import restricted
from hpctrack.evaluation.tally import Cuts
from hpctrack.reporting.by_rule import by_rule
from hpctrack.results.content import load_results
from hpctrack.storage import schema
from hpctrack.storage.detector import NOT_KNOWN, TRACKML, Detector
from hpctrack.storage.schema import Candidates, Event

A, B, SOFT, LOW, FORWARD, SPLIT, NOISE = 0, 1, 2, 3, 4, 5, -1
PARTICLES = {A: (2.0, 0.5), B: (2.0, 1.0), SOFT: (0.3, 0.0), LOW: (0.7, 0.0), FORWARD: (2.0, 3.0), SPLIT: (2.0, 0.2)}
BARREL = [(8, 2), (8, 4), (8, 6), (8, 8)]
HITS = [  # particle and the (volume, layer) of its hits
    (A, [*BARREL, (13, 2), (13, 4)]),
    (B, [(8, 2), (8, 4), (7, 2), (7, 4)]),  # four layers, but two numbers of layers
    (SOFT, [*BARREL, (8, 2)]),
    (LOW, BARREL),
    (FORWARD, [(7, 2), (7, 4), (7, 6), (7, 8)]),
    (SPLIT, [*BARREL, (7, 2), (7, 4)]),
    (NOISE, [*BARREL, (8, 2), (9, 2), (9, 4), (13, 2), (13, 4), (17, 2)]),
]


def make_event(event_id: int = 1, hits: list = HITS, eta: dict[int, float] | None = None) -> Event:
    """An event of these hits; `eta`: of some of them, 0 of the others."""
    flat = [(particle, *layer) for particle, layers in hits for layer in layers]
    row, volume, layer = np.array(flat).T
    pt, direction = np.array(list(PARTICLES.values())).T
    given = {
        "hits": {"volume_id": volume, "layer_id": layer, "x": 30.0 * layer, "r": 30.0 * layer, "eta": 0.0 * layer},
        "truth": {"particle_row": row, "particle_id": np.where(row < 0, 0, row + 1), "weight": row >= 0},
        "particles": {"particle_id": 1 + np.arange(len(pt)), "px": pt, "pz": pt * np.sinh(direction)},
    }
    given["hits"]["hit_id"] = 1 + np.arange(len(row))
    for hit, value in (eta or {}).items():
        given["hits"]["eta"][hit] = value
    length = {table: len(pt) if table == "particles" else len(row) for table in schema.TABLES}
    tables = {
        table: {c: np.asarray(given.get(table, {}).get(c, np.zeros(length[table])), t) for c, t in columns.items()}
        for table, columns in schema.TABLES.items()
    }
    return Event(event_id, tables)


def hits_of(particle: int, *numbers: int) -> list[int]:
    """Rows of a particle's hits, by their numbers among its own."""
    first = sum(len(layers) for other, layers in HITS[: [p for p, _ in HITS].index(particle)])
    return [first + number for number in numbers]


TRACKS = [
    hits_of(A, 0, 1, 2, 3, 4),  # whole in the pixels, one strip is missing
    hits_of(SOFT, 0, 1, 2, 3),
    hits_of(NOISE, 0, 1, 2, 3),
    hits_of(LOW, 0, 1, 2, 3),
    hits_of(FORWARD, 0, 1, 2, 3),
    hits_of(SPLIT, 0, 1, 2),  # half a track
    hits_of(SPLIT, 3, 4, 5),  # its other half
    [*hits_of(B, 0, 1), *hits_of(SOFT, 4), *hits_of(NOISE, 4)],  # half of it of a target
    hits_of(NOISE, 5, 6, 7, 8, 9),  # two pixels
]


def as_candidates(event: Event, lists: list[list[int]]) -> Candidates:
    """Lists, and tracks of the same; the first list that has a hit has it alone."""
    ids = np.zeros(event.n_hits, int)
    for number, rows in reversed(list(enumerate(lists, 1))):
        ids[rows] = number
    return make.as_candidates(event.event_id, [np.sort(rows) for rows in lists], ids)


DOUBLE, SINGLE, PERFECT = "double_majority_efficiency", "efficiency", "perfect_efficiency"
FAKES, TWICE = "fake_rate", "duplicate_rate"
ABOVE = {f"{DOUBLE}_above_1_gev": (1, 3), f"{FAKES}_above_1_gev": (2, 8)}
EXPECTED = {
    "hpctrack": {SINGLE: (3, 4), FAKES: (3, 9), TWICE: (1, 4), DOUBLE: (2, 4), PERFECT: (1, 4)},
    "influencer": {DOUBLE: (2, 4), FAKES: (5, 9), TWICE: (0, 4)},
    "gnn_tracking": {DOUBLE: (2, 3), PERFECT: (2, 3), FAKES: (2, 4)},
    "heptv2": {DOUBLE: (2, 4), SINGLE: (3, 4), PERFECT: (2, 4), FAKES: (1, 5), TWICE: (1, 3)},
    "maskformer": {DOUBLE: (2, 4), PERFECT: (2, 4), FAKES: (6, 8), TWICE: (0, 8), **ABOVE},
    "exatrkx": {SINGLE: (3, 4), FAKES: (1, 9), TWICE: (1, 3)},
}


def measured(event: Event, lists: list[list[int]], name: str, reading: str = "exclusive") -> dict:
    return rules.count(event, as_candidates(event, lists), [name], Cuts())[name].readings[reading]


@pytest.mark.parametrize("reading", ["exclusive", "candidates"])
@pytest.mark.parametrize("name", rules.RULES)
def test_each_rule_has_its_own_answer(name, reading):
    assert measured(make_event(), TRACKS, name, reading) == EXPECTED[name]


def test_what_is_a_fake_by_which_rule():
    """A candidate of soft hits, of noise, of a target's minority, half a track: alone beside a whole one."""

    def fakes(*tracks: int) -> set[str]:
        counts = {name: measured(make_event(), [TRACKS[0], *(TRACKS[k] for k in tracks)], name) for name in EXPECTED}
        return {name for name, found in counts.items() if found[FAKES][0]}

    assert fakes(1) == {"maskformer"}
    assert fakes(2) == {"hpctrack", "influencer", "maskformer"}
    assert fakes(7) == EXPECTED.keys() - {"gnn_tracking"}  # in which B is no target
    assert fakes(5) == {"influencer", "gnn_tracking", "maskformer"}
    assert fakes(8) == {"hpctrack", "influencer"}


def test_the_same_hits_again_are_duplicates_of_masks_and_no_fakes():
    lists = [TRACKS[0], TRACKS[0], TRACKS[0][:4], TRACKS[1]]
    found = measured(make_event(), lists, "maskformer", "candidates")  # in the pixels, the first three are the same
    assert found[TWICE] == (2, 4) and found[FAKES] == (1, 4) and found[DOUBLE] == (1, 4)
    assert measured(make_event(), lists, "heptv2", "candidates")[TWICE] == (2, 1)  # counted a target
    assert rules.ratio(2, 1) == {"value": 2, "error": None, "lo": None, "hi": None, "numerator": 2, "denominator": 1}


def test_the_candidate_with_most_hits_of_a_target_has_it():
    foreign = [*hits_of(NOISE, 0, 1, 2, 3), *hits_of(FORWARD, 0, 1, 2)]
    lists = [hits_of(SPLIT, 0, 1, 2, 3), [*hits_of(SPLIT, 0, 1, 2, 3, 4), *foreign]]
    found = measured(make_event(), lists, "maskformer", "candidates")
    assert found[DOUBLE] == (0, 4) and found[FAKES] == (2, 2)  # the second has more of its hits, but is mostly others'
    assert measured(make_event(), lists, "heptv2", "candidates")[DOUBLE] == (1, 4)


def test_hits_that_a_rule_does_not_count_do_not_exist():
    forward = dict.fromkeys(hits_of(FORWARD, 0, 1), 4.1)
    found = measured(make_event(eta=forward), TRACKS, "heptv2")
    assert found[DOUBLE] == (1, 4) and found[FAKES] == (1, 4)  # still a target, but its candidate has two hits left
    gone = dict.fromkeys(hits_of(FORWARD, 0, 1, 2, 3), 4.1)
    assert measured(make_event(eta=gone), TRACKS, "heptv2")[DOUBLE] == (1, 3)
    offsets, rows = restricted((np.array([0, 3, 3, 5]), np.array([0, 2, 4, 1, 2])), np.array([1, 0, 1, 0, 1], bool))
    assert offsets.tolist() == [0, 3, 3, 4] and rows.tolist() == [0, 2, 4, 2]
    nothing = as_candidates(make_event(), [])
    for found in rules.count(make_event(), nothing, list(rules.RULES), Cuts()).values():
        assert {counts[0] for counts in found.readings["candidates"].values()} == {0}


def test_another_detector_says_which_volumes_are_pixels():
    event, found = make_event(), as_candidates(make_event(), TRACKS)
    renumbered = {volume: 100 - volume for volume in TRACKML.volumes}
    other = make_event(1, [(p, [(renumbered[v], layer) for v, layer in layers]) for p, layers in HITS])
    places = {name: tuple(renumbered[v] for v in getattr(TRACKML, name)) for name in ("barrels", "below", "above")}
    parts = {part: tuple(renumbered[v] for v in of) for part, of in TRACKML.parts.items()}
    detector = Detector(**places, mirrors={}, neighbours=(), parts=parts)
    names = ["gnn_tracking", "heptv2", "maskformer"]
    assert rules.count(other, found, names, Cuts(), detector) == rules.count(event, found, names, Cuts())
    summed = rules.add_up([rules.count(other, found, names, Cuts(), detector)], names, Cuts(), detector)
    assert "hits: volumes 93, 92, 91" in summed["heptv2"]["selection"]
    rules.check_detector(names, detector, "data")
    rules.check_detector(["exatrkx", "hpctrack"], NOT_KNOWN, "data")
    with pytest.raises(InputError, match="data: --rules heptv2: counts hits in pixel volumes, .*nothing is known"):
        rules.check_detector(["heptv2"], NOT_KNOWN, "data")
    with pytest.raises(InputError, match="negative endcap 93.*--detectors FILE"):
        rules.check_detector(["heptv2"], replace(detector, parts={}), "data")
    with pytest.raises(InputError, match="91 of the dataset's detector, but event 1 has hits in volume"):
        rules.count(event, found, ["heptv2"], Cuts(), detector)


def test_the_projects_own_rule_has_the_cuts_of_the_command_line():
    found = as_candidates(make_event(), TRACKS)
    counts = rules.count(make_event(), found, ["hpctrack", "heptv2"], Cuts(0.1, 3, eta_max=2.5))
    assert counts["hpctrack"].targets == 5 and counts["heptv2"].targets == 4


def test_names_of_rules():
    assert rules.chosen(["heptv2", "hpctrack", "heptv2"]) == ["hpctrack", "heptv2"]
    assert rules.chosen(["all"]) == list(rules.RULES) and rules.chosen([]) == []
    with pytest.raises(InputError, match="--rules hept: no such rule; there are: hpctrack, influencer, .*all: every"):
        rules.chosen(["hept", "all"])


@pytest.mark.parametrize("name", ["heptv2", "maskformer", "exatrkx"])
def test_a_recipe_of_a_peer_selects_what_its_rule_counts(name):
    recipe, base, sample = load_config(f"peers/{name}"), load_config("influencer-every-hit"), rules.RULES[name].sample
    chosen = recipe.data.selection
    assert (chosen.pt_min_gev, chosen.min_hits, tuple(chosen.volumes or ())) == (
        sample.pt_gev,
        3,
        sample.volumes(TRACKML),
    )
    assert chosen.eta_max == (sample.eta_below or sample.hits_eta_max) and chosen.noise and chosen.other_hits
    data = recipe.data.model_copy(update={"selection": base.data.selection})
    assert recipe.model_copy(update={"run": base.run, "data": data}) == base


# ------------------------------------------------------------------------------------------------ the verbs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rules")
    events = [make_event(k) for k in (1, 2)]
    dataset = make.write_dataset(path / "data", events)
    make.write_candidates(path / "found", dataset, [as_candidates(event, TRACKS) for event in events])
    return path


def run(folder: Path, *options: str, code: int = 0, data: str = "data") -> Path:
    out = folder / f"results-{data}-{'-'.join(options[1:]) or 'none'}.json"
    words = [str(folder / ("found" if data == "data" else f"found-{data}")), "--data", str(folder / data)]
    assert evaluate.main([*words, "--out", str(out), *options]) == code
    return out


def test_results_table_and_page(folder, capsys):
    plain = json.loads(run(folder).read_text())
    out = run(folder, "--rules", "all")
    printed = capsys.readouterr().out
    results = load_results(out)
    assert {**results, "command": 0} == {**plain, "command": 0, "rules": results["rules"]}
    for name, expected in EXPECTED.items():
        rule = results["rules"][name]
        for key, (numerator, denominator) in expected.items():
            number = rule["exclusive"][key]
            assert (number["numerator"], number["denominator"]) == (2 * numerator, 2 * denominator)
            assert number["lo"] <= number["value"] <= number["hi"] and number["error"] > 0
        assert rule["events"] == 2 and f"rule {name} – {rule['who']}" in printed
    heptv2 = results["rules"]["heptv2"]
    assert heptv2["hits"] == 2 * 34 and heptv2["target_particles"] == 8
    assert heptv2["selection"] == "pT >= 0.9 GeV, >= 3 layers; hits: volumes 7, 8, 9, |eta| <= 4"
    assert {**load_results(run(folder, "--rules", "all", "--jobs", "2")), "command": 0} == {**results, "command": 0}
    page = folder / "page.html"
    make.with_few_tables(out)
    assert report.main(["--results", str(out), "--out", str(page)]) == 0
    text = page.read_text()
    assert "By other groups" in text and "Graph-COM/HEPTv2" in text
    assert text.count("<small>2 / 10</small>") == 1  # HEPTv2's fakes
    capsys.readouterr()
    assert evaluate.main(["--compare", f"a={out}", f"b={folder / 'results-data-none.json'}"]) == 0
    told = capsys.readouterr().out
    assert "By rule maskformer" in told and "Fake rate, pT > 1 GeV" in told


def test_old_results_have_no_rules_and_wrong_ones_name_the_key(folder, capsys):
    out = run(folder, "--rules", "heptv2")
    results = json.loads(out.read_text())
    del results["rules"]["heptv2"]["exclusive"]["fake_rate"]["numerator"]
    wrong = folder / "wrong.json"
    wrong.write_text(json.dumps(results))
    with pytest.raises(InputError, match="wrong.json: lacks 'rules.heptv2.exclusive.fake_rate.numerator'"):
        load_results(wrong)
    assert by_rule(load_results(run(folder))) == []


def test_refused_in_one_line(folder, capsys):
    def line(*options: str, data: str = "data") -> str:
        assert not run(folder, *options, code=2, data=data).exists()
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    other = [(particle, [(30, layer) for _, layer in layers]) for particle, layers in HITS]
    strips = [(particle, [(13, layer) for _, layer in layers]) for particle, layers in HITS]
    for name, hits in (("other", other), ("strips", strips)):
        event = make_event(1, hits)
        dataset = make.write_dataset(folder / name, [event])
        make.write_candidates(folder / f"found-{name}", dataset, [as_candidates(event, TRACKS)])
    assert "--rules heptv2: counts hits in the volumes 7, 8, 9 of TrackML" in line("--rules", "heptv2", data="other")
    assert "event 1 has hits in volume 30" in line("--rules", "all", data="other")
    assert "--rules gnn_tracking: no event has a hit in its volumes" in line("--rules", "gnn_tracking", data="strips")
    assert load_results(run(folder, "--rules", "exatrkx", "hpctrack", data="other"))["rules"].keys() == {
        "hpctrack",
        "exatrkx",
    }
    capsys.readouterr()
    assert "--rules hept: no such rule" in line("--rules", "hept")
    assert evaluate.main(["--compare", "a.json", "--rules", "heptv2"]) == 2
    assert "no --data, --out, --kinds, --rules" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ protons


def test_tracks_of_protons_are_counted_as_their_rule_says():
    """Three protons through 7 planes; the second has a secondary, the third ends before its Bragg peak."""
    plane = np.tile(np.arange(7), 3)
    row = np.repeat(np.arange(3), 7)
    weight, deposit = np.ones(21), np.full(21, 0.02)
    weight[12:14] = 0
    deposit[[6, 13]] = 0.1
    x = 0.1 * row
    columns = {"hits": {"x": x, "y": 0 * x, "z": 5.5 * plane, "layer_id": plane, "volume_id": np.full(21, 2)}}
    columns |= {"cells": {"cell_charge": deposit}, "truth": {"weight": weight, "particle_row": row}}
    columns |= {"particles": {"particle_id": np.arange(3)}}
    event = Event(0, columns)
    first, second, third = (np.arange(7 * k, 7 * k + 7) for k in range(3))
    crossed = np.concatenate([second[:3], first[3:]])  # ends as the first does, begins as the second

    def found(*tracks):
        offsets = np.cumsum([0, *map(len, tracks)])
        return of_protons(event, (offsets, np.concatenate(tracks)))

    whole = found(first, second, third)
    assert whole["purity"] == (1, 1) and whole["efficiency"] == (1, 2)
    assert whole["edge_tpr"] == (18, 18) and whole["edge_fpr"] == (0, 36)
    mixed = found(crossed, np.concatenate([first[:3], second[3:]]), third)
    assert mixed["purity"] == (0, 1) and mixed["edge_tpr"] == (16, 18) and mixed["edge_fpr"] == (2, 36)
    assert found(first[3:])["purity"] == (0, 0)  # too short
    assert "proton_ct" in rules.chosen(["proton_ct"]) and "cells.cell_charge" in rules.columns(["proton_ct"])


# ------------------------------------------------------------------------------------------------ ramp


def test_of_each_particle_the_largest_candidate_counts():
    """Three particles of 4, 3 and 2 hits and one hit of noise; the second particle is in two candidates."""
    row = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, -1])
    event = Event(0, {"truth": {"particle_row": row}, "particles": {"particle_id": np.arange(3)}})

    def clustering(*tracks):
        return of_clusters(event, (np.cumsum([0, *map(len, tracks)]), np.concatenate(tracks).astype(int)))["clustering"]

    assert clustering([0, 1, 2, 3], [4, 5, 6], [7, 8], [9]) == (9, 9)
    assert clustering([0, 1, 2, 4], [5, 6], [3, 7, 8]) == (7, 9)  # two hits are in others' candidates
    assert clustering([0, 1], [2, 3], [4, 5], [6], []) == (4, 9)  # of halves one counts; alone or lost, none does
    assert clustering(np.arange(10)) == (4, 9) and clustering(np.zeros(0, int)) == (0, 9)
    assert "ramp" in rules.chosen(["ramp"]) and "ramp" not in rules.chosen(["all"])
