"""Source `acts`: the whole path at low pile-up, and our digitisation against ACTS' own."""

import json

import numpy as np
import pytest

from hpctrack.simulation import digitization
from hpctrack.simulation.event import Crossings
from hpctrack.simulation.geometry import trackml_geometry
from hpctrack.simulation.helix import HelixSource
from hpctrack.simulation.run import Simulation
from hpctrack.simulation.settings import Settings

examples = pytest.importorskip("acts.examples", reason="pyacts is not installed (extra `sim`)")
GEOMETRY = trackml_geometry()


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    pytest.importorskip("pythia8mc", reason="pythia8mc is not installed (extra `sim`)")
    return Simulation(Settings(source="acts", mu=4, seed=7))


def test_event_is_whole_and_the_same_again(simulation: Simulation) -> None:
    tables = simulation.tables(11)
    simulation.tables(3)  # what was made before does not matter
    again = simulation.tables(11)
    for table, columns in tables.items():
        for name, values in columns.items():
            np.testing.assert_array_equal(values, again[table][name], err_msg=f"{table}.{name}")
    truth, particles = tables["truth"], tables["particles"]
    signal = truth["particle_id"] != 0
    assert signal.sum() > 300
    assert set(truth["particle_id"][signal]) <= set(particles["particle_id"])
    assert particles["nhits"].sum() == signal.sum()
    assert truth["weight"].sum() == pytest.approx(1)
    assert set(np.abs(particles["q"])) == {1}
    assert len(tables["cells"]["hit_id"]) >= len(truth["hit_id"])


def test_tracks_are_helices_in_the_field(simulation: Simulation) -> None:
    """The transverse momentum turns by 0.3 B s / pT between hits, clockwise for positive charges."""
    particles, crossings = simulation.source.generate(11)
    stiff = np.hypot(particles["px"], particles["py"]) > 0.7
    turns = []
    for i in np.flatnonzero(stiff & (np.hypot(particles["vx"], particles["vy"]) < 1)):
        hits = crossings.take(crossings.particle_id == particles["particle_id"][i])
        arc = np.hypot(hits.position[:, 0] - particles["vx"][i], hits.position[:, 1] - particles["vy"][i])
        phi = np.arctan2(hits.momentum[:, 1], hits.momentum[:, 0]) - np.arctan2(particles["py"][i], particles["px"][i])
        expected = -particles["q"][i] * 0.3e-3 * 2.0 * arc / np.hypot(particles["px"][i], particles["py"][i])
        turns.extend((np.remainder(phi + np.pi, 2 * np.pi) - np.pi)[arc > 200] / expected[arc > 200])
    assert len(turns) > 20
    assert np.median(turns) == pytest.approx(1, abs=0.05)


def test_detector_of_pyacts_is_ours(simulation: Simulation) -> None:
    """Compared module by module when the source is set up; here: hits lie on the modules we map them to."""
    _, crossings = simulation.source.generate(11)
    local = GEOMETRY.to_local(crossings.module, crossings.position)
    assert np.abs(local[:, 2]).max() < 1e-3
    assert (np.abs(local[:, :2]) <= GEOMETRY.half[crossings.module] + 1e-3).all()


def test_clusters_are_those_of_acts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(digitization, "SIGNAL_NOISE", 0.0)
    _, crossings = HelixSource(Settings(source="helix", particles=120), GEOMETRY).generate(0)
    grazing = np.einsum("hi,hi->h", GEOMETRY.rotation[crossings.module][:, :, 2], crossings.momentum)
    crossings = crossings.take(np.abs(grazing) > 0.02 * np.linalg.norm(crossings.momentum, axis=1))
    cells = digitization.clusters(crossings, GEOMETRY, np.random.default_rng(0))
    centres = digitization.cluster_centres(cells, crossings.module, GEOMETRY)
    counts = np.stack([_extent(cells.ch0, cells.offsets), _extent(cells.ch1, cells.offsets)], axis=1)
    charge = np.add.reduceat(cells.value, cells.offsets[:-1])

    found, theirs = _digitized_by_acts(crossings, tmp_path)
    assert len(found) > 0.99 * len(crossings) > 800  # ACTS leaves out paths that leave a trapezoid
    # Paths through the edge of a trapezoid are cut by ACTS, not here.
    local = GEOMETRY.to_local(crossings.module, crossings.position)
    edge = np.abs(local[found, 0]) > GEOMETRY.half_u(crossings.module[found], local[found, 1]) - 1
    digital = GEOMETRY.digital[crossings.module[found]]
    # In a digital cluster TrackML takes the mean of all cells, ACTS that of the rows and columns touched.
    comparable = ~digital | (counts[found].min(axis=1) == 1)
    same = (counts[found] == theirs[:, 2:4]).all(axis=1)
    same &= (np.abs(centres[found] - theirs[:, :2]) < 1e-3).all(axis=1) | ~comparable
    assert same[~edge].all()
    analogue = ~digital & same
    np.testing.assert_allclose(charge[found][analogue], theirs[analogue, 4], rtol=1e-4)


def _extent(channel: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return np.maximum.reduceat(channel, offsets[:-1]) - np.minimum.reduceat(channel, offsets[:-1]) + 1


def _digitized_by_acts(crossings: Crossings, folder) -> tuple[np.ndarray, np.ndarray]:
    """Row of each measured crossing, and u, v, extent in u and v and charge of its cluster, by ACTS."""
    import acts
    import acts.examples.json

    quiet = acts.logging.FATAL
    ids = {name: GEOMETRY.columns[name] for name in ("volume_id", "layer_id")}
    surface = [
        (int(ids["volume_id"][m]), int(ids["layer_id"][m]), int(GEOMETRY.acts_module[m])) for m in crossings.module
    ]

    class Reader(examples.IReader):
        def __init__(self) -> None:
            examples.IReader.__init__(self, "hits", quiet)
            self._handle = examples.WriteDataHandle(self, examples.SimHitContainer, "OutputSimHits")
            self._handle.initialize("simhits")

        def availableEvents(self) -> tuple[int, int]:
            return (0, 1)

        def read(self, context: object) -> object:
            container = examples.SimHitContainer()
            for i, (x, p) in enumerate(zip(crossings.position.tolist(), crossings.momentum.tolist(), strict=True)):
                volume, layer, module = surface[i]
                code = examples.SimBarcode()
                code.particle = i + 1  # to find the crossing again
                momentum = acts.Vector4(*p, float(np.linalg.norm(p)))
                place = acts.GeometryIdentifier(volume=volume, layer=layer, sensitive=module)
                container.insert(examples.SimHit(place, code, acts.Vector4(*x, 0.0), momentum, momentum, 0))
            self._handle(context, container)
            return examples.ProcessCode.SUCCESS

    class Collector(examples.IAlgorithm):
        def __init__(self) -> None:
            examples.IAlgorithm.__init__(self, "collector", quiet)
            kinds = {"measurements": examples.MeasurementContainer, "clusters": examples.ClusterContainer}
            kinds |= {"map": examples.MeasurementParticlesMap}
            self._handles = {key: examples.ReadDataHandle(self, kind, key) for key, kind in kinds.items()}
            for key, handle in self._handles.items():
                handle.initialize(key)
            self.rows, self.values = [], []

        def execute(self, context: object) -> object:
            got = {key: handle(context.eventStore) for key, handle in self._handles.items()}
            for i, (m, c) in enumerate(zip(got["measurements"], got["clusters"], strict=True)):
                self.rows.append(got["map"].valuesFor(i)[0].particle - 1)
                self.values.append(
                    (m.fullParameters[0], m.fullParameters[1], c.sizeLoc0, c.sizeLoc1, c.sumActivations())
                )
            return examples.ProcessCode.SUCCESS

    entries = [_acts_config(m, s) for m, s in {m: s for m, s in zip(crossings.module, surface, strict=True)}.items()]
    head = {"format-version": 0, "value-identifier": "digitization-configuration"}
    path = folder / "digitization.json"
    path.write_text(json.dumps({"acts-geometry-hierarchy-map": head, "entries": entries}))
    detector = examples.GenericDetector(examples.GenericDetector.Config(logLevel=quiet))
    geometry = detector.trackingGeometry()
    config = examples.DigitizationAlgorithm.Config(
        digitizationConfigs=acts.examples.json.readDigiConfigFromJson(str(path)),
        surfaceByIdentifier=geometry.geoIdSurfaceMap(),
        randomNumbers=examples.RandomNumbers(seed=1),
        inputSimHits="simhits",
        outputMeasurements="measurements",
        outputClusters="clusters",
        outputMeasurementParticlesMap="map",
        doMerge=False,
    )
    collector = Collector()
    sequencer = examples.Sequencer(events=1, numThreads=1, logLevel=quiet, trackFpes=False)
    sequencer.addReader(Reader())
    sequencer.addAlgorithm(examples.DigitizationAlgorithm(config, quiet))
    sequencer.addAlgorithm(collector)
    sequencer.run()
    return np.array(collector.rows), np.array(collector.values)


def _acts_config(module: int, surface: tuple[int, int, int]) -> dict:
    bins = [
        {"bins": int(n), "min": -h, "max": h, "option": "open", "type": "equidistant", "value": value}
        for n, h, value in zip(GEOMETRY.n_channels[module], GEOMETRY.half[module], ("binX", "binY"), strict=True)
    ]
    geometric = {"digital": bool(GEOMETRY.digital[module]), "indices": [0, 1], "segmentation": {"binningdata": bins}}
    geometric |= {"thickness": float(GEOMETRY.depth[module]), "threshold": 0.0}
    geometric["charge-smearing"] = {"type": "Gauss", "mean": 0.0, "stddev": 0.0}
    volume, layer, sensitive = surface
    return {"volume": volume, "layer": layer, "sensitive": sensitive, "value": {"geometric": geometric}}
