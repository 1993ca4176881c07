"""Decays in flight and hadronic interactions of the source `acts`: what they conserve, how often, and what they end."""

import json

import numpy as np
import pytest

from hpctrack import simulate
from hpctrack.errors import InputError
from hpctrack.simulation import writer
from hpctrack.simulation.geometry import trackml_geometry
from hpctrack.simulation.pythia import COLUMNS
from hpctrack.simulation.run import Simulation
from hpctrack.simulation.settings import ADDED, PRESETS, Settings

pytest.importorskip("acts.examples", reason="pyacts is not installed (extra `sim`)")
pytest.importorskip("pythia8mc", reason="pythia8mc is not installed (extra `sim`)")

from hpctrack.simulation.acts_detector import ActsDetector
from hpctrack.simulation.passage.fatras import Fatras
from hpctrack.simulation.passage.hadrons import NUCLEON_GEV, Collider, without_survivor
from hpctrack.simulation.passage.matter import Matter

GEOMETRY = trackml_geometry()
MASS = {321: 0.49368, 310: 0.49761, 2112: 0.93957}


@pytest.fixture(scope="module")
def fly():
    """fly(settings, pdg, n, p) -> (particles, crossings) of n particles from the origin across the barrel."""
    detector = ActsDetector(2.0, GEOMETRY)
    fatras, made = Fatras(detector), {}

    def run(settings, pdg, n, p):
        if settings not in made:
            made[settings] = Matter(settings, detector, fatras)
        rng = np.random.default_rng(1)
        phi, z = rng.uniform(-np.pi, np.pi, n), rng.uniform(-0.3, 0.3, n)
        pt = p / np.hypot(1, z)
        columns = dict.fromkeys(COLUMNS, np.zeros(n))
        columns |= {name: np.zeros(n, np.int64) for name in ("vertex", "secondary", "q")}
        columns |= {"vertex": np.ones(n, np.int64), "particle": np.arange(1, n + 1), "pdg": np.full(n, pdg)}
        columns |= {"q": np.full(n, int(pdg in (321, 211))), "m": np.full(n, MASS[pdg])}
        columns |= {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * z}
        return made[settings].event(columns, np.random.default_rng(2), np.random.default_rng(3))

    return run


def test_collisions_conserve_charge_energy_and_momentum() -> None:
    """Up to the nucleons that were hit, which are a whole number of both kinds."""
    collider = Collider()
    collider.seed(np.random.default_rng(1))
    hit = []
    for pdg, q, m, p in [
        (211, 1, 0.13957, 5.0),
        (-211, -1, 0.13957, 0.6),
        (2112, 0, 0.93957, 2.0),
        (321, 1, 0.49368, 20.0),
    ]:
        for _ in range(40):
            products = collider.collide((pdg, q, m, 0.6 * p, 0.0, 0.8 * p), 14, 28)
            if products is None:
                continue
            table = np.array(products)
            energy = np.sqrt((table[:, 2:] ** 2).sum(axis=1)).sum()
            nucleons = (energy - np.hypot(p, m)) / NUCLEON_GEV
            assert nucleons == pytest.approx(round(nucleons), abs=0.02 + 0.01 * p)
            assert table[:, 3:].sum(axis=0) == pytest.approx([0.6 * p, 0, 0.8 * p], abs=0.01 * p)
            assert 0 <= round(table[:, 1].sum()) - q <= round(nucleons) <= 28
            hit.append(round(nucleons))
    assert len(hit) > 120 and min(hit) == 1 and 1.3 < np.mean(hit) < 3


def test_a_nearly_elastic_projectile_flies_on() -> None:
    pion, proton = (211, 1, 0.13957, 0.0, 0.0, 4.8), (2212, 1, 0.938, 0.1, 0.1, 0.2)
    row = (211, 1, 0.13957, 0.0, 0.0, 5.0)
    assert without_survivor(row, [proton, pion]) == [proton]
    assert without_survivor(row, [proton, (-211, *pion[1:])]) is None


def test_lifetimes_are_those_of_the_particles(fly) -> None:
    """K0S at 1 GeV: beta gamma c tau = 54 mm; the products' place is the decay's."""
    particles, _ = fly(Settings(decays=True), 310, 600, 1.0)
    way = np.sqrt(particles["vx"] ** 2 + particles["vy"] ** 2 + particles["vz"] ** 2)
    places = np.unique(way[np.abs(particles["particle_type"]) == 211].round(6))  # one a decay to pi+ pi-
    assert 350 < len(places) < 480  # 69 %
    expected = 26.84 / MASS[310]
    assert places.mean() == pytest.approx(expected, abs=4 * expected / np.sqrt(len(places)))


def test_nothing_is_left_after_the_end_of_a_track(fly) -> None:
    """A kaon's hits lie within the radius at which its products begin."""
    particles, crossings = fly(Settings(decays=True), 321, 300, 1.0)
    born, radius = np.hypot(particles["vx"], particles["vy"]), np.hypot(*crossings.position.T[:2])
    products = np.flatnonzero(_generation(particles) == 1)
    for i in products:
        parent = (particles["particle_id"][i] >> 36) << 36
        assert radius[crossings.particle_id == parent].max(initial=0) <= born[i] + 0.01
    assert len(products) > 25


def test_particles_of_collisions_are_particles_of_their_own(fly) -> None:
    """Each has its id, its place in the material and its pT above the cut; generations follow one another."""
    particles, crossings = fly(Settings(decays=True, interactions=6.0), 321, 200, 3.0)
    ids, generation = particles["particle_id"], _generation(particles)
    assert len(np.unique(ids)) == len(ids)
    assert set(crossings.particle_id) <= set(ids)
    assert np.bincount(generation)[:3].min() > 5
    made = (generation > 0) & (np.abs(particles["particle_type"]) != 11)  # electrons may be of Fatras' own making
    assert np.hypot(particles["px"], particles["py"])[made].min() >= 0.149
    assert np.hypot(particles["vx"], particles["vy"])[made].min() > 15


def _generation(particles):
    return (particles["particle_id"] >> 24) & 0xFFF


def test_interactions_are_as_many_as_the_material_says(fly) -> None:
    """Neutrons of 200 GeV, for which interaction lengths are tabulated: 1 - exp(-thickness) of them, at surfaces."""
    settings = Settings(interactions=1.0)
    particles, _ = fly(settings, 2112, 1500, 200.0)
    ids = particles["particle_id"]
    met = len(np.unique(ids[(ids >> 24) & 0xFFF == 1] >> 36))
    # The beam pipe and three kinds of barrel layers, module and support, at the mean inclination; the last layer lies
    # where almost nothing is followed further.
    layers = 0.00197 + 0.00442 + 4 * 0.00354 + 4 * 0.00484 + 0.00612
    assert met / 1500 == pytest.approx(layers * 1.015, abs=0.02)


def test_events_of_the_preset_do_not_depend_on_what_was_before() -> None:
    settings = Settings(**(PRESETS["trackml"] | {"mu": 0.0}))
    simulation = Simulation(settings)
    first = simulation.tables(5)
    simulation.tables(2)
    again = simulation.tables(5)
    for table, columns in first.items():
        for name, values in columns.items():
            np.testing.assert_array_equal(values, again[table][name], err_msg=f"{table}.{name}")
    ids = first["particles"]["particle_id"]
    assert ((ids >> 24) & 0xFFF).max() >= 1
    assert first["particles"]["nhits"].sum() == np.count_nonzero(first["truth"]["particle_id"])


def test_options_go_before_the_preset() -> None:
    args = simulate.parser().parse_args(["out", "--preset", "trackml", "--mu", "20", "--no-photons"])
    settings = simulate.settings_of(args)
    assert (settings.mu, settings.photons, settings.decays, settings.hard_process) == (20.0, False, True, "ttbar")


def test_a_record_of_0_1_0_goes_on_with_the_values_of_then(tmp_path) -> None:
    now = Settings().as_dict()
    old = {name: value for name, value in now.items() if name not in ADDED}
    record = {**writer.FORMAT, "settings": old, "versions": {}}
    (tmp_path / writer.RECORD).write_text(json.dumps(record))
    writer.claim(tmp_path, now, {}, ())
    with pytest.raises(InputError, match="settings.decays is False there and True now"):
        writer.claim(tmp_path, Settings(decays=True).as_dict(), {}, ())
