"""Events that ACTS itself writes, in every format that it has: CSV, and parquet by ColliderML's schema.

Muons through the Generic Detector: 8 is made of pixels, whose cells are simulated, elsewhere positions are smeared.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from helpers import quietly

from hpctrack import convert, inspect
from hpctrack.storage.store import Dataset, open_dataset

VOLUMES = (7, 8, 9, 12, 13, 14, 16, 17, 18)


def write_acts_files(out: Path, events: int = 3, particles: int = 10, events_a_file: int = 2) -> Path:
    """Write OUT/csv and OUT/parquet; CSV numbers have all their digits."""
    import acts
    import acts.examples.simulation as steps
    from acts import UnitConstants as u
    from acts import examples

    quiet = acts.logging.FATAL
    csv = {"level": quiet, "outputDir": str(out / "csv"), "outputPrecision": 17}
    (out / "csv").mkdir(parents=True)
    levels = dict.fromkeys(("logLevel", "surfaceLogLevel", "layerLogLevel", "volumeLogLevel"), quiet)
    detector = examples.GenericDetector(examples.GenericDetector.Config(**levels))
    geometry, field = detector.trackingGeometry(), acts.ConstantBField(acts.Vector3(0, 0, 2 * u.T))
    run = examples.Sequencer(
        events=events, numThreads=1, logLevel=quiet, trackFpes=False, outputDir=str(out), outputTimingFile=""
    )
    random = examples.RandomNumbers(seed=7)
    steps.addParticleGun(
        run,
        steps.MomentumConfig(0.5 * u.GeV, 5 * u.GeV, transverse=True),
        steps.EtaConfig(-2, 2, True),
        steps.PhiConfig(0, 360 * u.degree),
        steps.ParticleConfig(particles, acts.PdgParticle.eMuon, True),
        multiplicity=3,
        rnd=random,
        logLevel=quiet,
    )
    steps.addFatras(run, geometry, field, rnd=random, logLevel=quiet)
    settings = out / "digitization.json"
    settings.write_text(json.dumps(_digitization()))
    steps.addDigitization(run, geometry, field, digiConfigFile=settings, rnd=random, logLevel=quiet)
    run.addWriter(examples.CsvParticleWriter(inputParticles="particles_simulated", outputStem="particles", **csv))
    run.addWriter(examples.CsvSimHitWriter(inputSimHits="simhits", outputStem="hits", **csv))
    run.addWriter(
        examples.CsvMeasurementWriter(
            inputMeasurements="measurements",
            inputClusters="clusters",
            inputMeasurementSimHitsMap="measurement_simhits_map",
            **csv,
        )
    )
    run.addWriter(examples.CsvTrackingGeometryWriter(trackingGeometry=geometry, writePerEvent=False, **csv))
    _space_points(run, geometry, quiet)
    run.addWriter(examples.CsvSpacePointWriter(inputSpacePoints="points", **csv))
    _parquet(run, out / "parquet", quiet, events_a_file)
    run.run()
    return out


def _digitization() -> dict[str, Any]:
    axes = (("binX", 336, 8.4), ("binY", 1280, 36))
    bins = [
        {"bins": n, "max": half, "min": -half, "option": "open", "type": "equidistant", "value": axis}
        for axis, n, half in axes
    ]
    cells = {"digital": False, "indices": [0, 1], "segmentation": {"binningdata": bins}, "thickness": 0.15}
    smeared = [{"index": index, "mean": 0.0, "stddev": 0.05, "type": "Gauss"} for index in (0, 1)]
    entries = [
        {"volume": v, "value": {"geometric": cells | {"threshold": 0.001}} if v == 8 else {"smearing": smeared}}
        for v in VOLUMES
    ]
    header = {"format-version": 0, "value-identifier": "digitization-configuration"}
    return {"acts-geometry-hierarchy-map": header, "entries": entries}


def _space_points(run: Any, geometry: Any, quiet: Any) -> None:
    import acts
    from acts import examples

    class Subset(examples.IAlgorithm):
        """All measurements, as the maker of space points takes them."""

        def __init__(self) -> None:
            examples.IAlgorithm.__init__(self, "subset", quiet)
            self._in = examples.ReadDataHandle(self, examples.MeasurementContainer, "In")
            self._in.initialize("measurements")
            self._out = examples.WriteDataHandle(self, examples.MeasurementSubset, "Out")
            self._out.initialize("subset")

        def execute(self, context: Any) -> Any:
            found = self._in(context.eventStore)
            self._out(context, examples.MeasurementSubset(found, range(len(found))))
            return examples.ProcessCode.SUCCESS

    run.addAlgorithm(Subset())
    pixels = [acts.GeometryIdentifier(volume=volume) for volume in VOLUMES[:3]]
    run.addAlgorithm(
        examples.SpacePointMaker(
            level=quiet,
            inputMeasurements="subset",
            outputSpacePoints="points",
            trackingGeometry=geometry,
            geometrySelection=pixels,
        )
    )


def _parquet(run: Any, out: Path, quiet: Any, events_a_file: int) -> None:
    import acts.arrow
    from acts.examples import arrow

    particles = {"level": quiet, "inputParticles": "particles_simulated"}
    run.addAlgorithm(arrow.ArrowParticleOutputConverter(outputTable="table_of_particles", **particles))
    run.addAlgorithm(
        arrow.ArrowSimHitOutputConverter(
            inputSimHits="simhits",
            inputSimHitMeasurementsMap="simhit_measurements_map",
            inputClusters="clusters",
            outputTable="table_of_hits",
            detectorResolver=arrow.makeVolumeIdDetectorResolver({v: k for k, v in enumerate(VOLUMES)}),
            **particles,
        )
    )
    config = arrow.ParquetWriter.Config()
    config.outputDir, config.eventsPerShard = str(out), events_a_file
    config.collections = {"table_of_particles": "particles", "table_of_hits": "tracker_hits"}
    config.expectedSchemas = {
        "table_of_particles": acts.arrow.particleSchema(),
        "table_of_hits": acts.arrow.simHitSchema(),
    }
    run.addWriter(arrow.ParquetWriter(config, quiet))


def trackml_of(csv: Path, out: Path) -> Path:
    """The same events in TrackML's files, made of ACTS' CSV: a row a simulated hit, particles numbered from 1."""
    out.mkdir()
    for file in csv.glob("event*-hits.csv"):
        stem = file.name.removesuffix("-hits.csv")
        hits, found, particles, to_hit = (
            pd.read_csv(csv / f"{stem}-{kind}.csv")
            for kind in ("hits", "measurements", "particles", "measurement-simhit-map")
        )
        found = found.iloc[to_hit.sort_values("hit_id").measurement_id].reset_index(drop=True)
        code = [f"particle_id_{part}" for part in ("pv", "sv", "part", "gen", "subpart")]
        particles["particle_id"] = np.arange(1, len(particles) + 1)
        owner = hits.merge(particles[[*code, "particle_id"]], on=code, how="left").particle_id
        table = pd.DataFrame({"hit_id": np.arange(len(hits))})
        for axis in "xyz":
            table[axis] = found[f"global_{axis}"]
        geometry = found.geometry_id.to_numpy()
        table["volume_id"] = geometry >> 56
        table["layer_id"] = (geometry >> 36) & 0xFFF
        table["module_id"] = (geometry >> 8) & 0xFFFFF
        truth = pd.concat([table[["hit_id"]], owner, hits[["tx", "ty", "tz", "tpx", "tpy", "tpz"]]], axis=1)
        cells = pd.read_csv(csv / f"{stem}-cells.csv").rename(
            columns={"measurement_id": "hit_id", "channel0": "ch0", "channel1": "ch1"}
        )
        cells["hit_id"] = to_hit.sort_values("measurement_id").hit_id.to_numpy()[cells.hit_id]
        cells.to_csv(out / f"{stem}-cells.csv", index=False)
        table.to_csv(out / f"{stem}-hits.csv", index=False)
        truth.to_csv(out / f"{stem}-truth.csv", index=False)
        particles.to_csv(out / f"{stem}-particles.csv", index=False)
    shutil.copy(csv / "detectors.csv", out)
    return out


def converted(source: Path, out: Path, *options: object) -> Dataset:
    """The dataset, checked."""
    code, text = quietly(convert.main, [source, out, "--jobs", 1, *options])
    assert code == 0, text
    assert quietly(inspect.main, [out, "--verify"])[0] == 0
    return open_dataset(out)


def refused(source: Path, out: Path, *options: object) -> str:
    """The one line with which a conversion ends; nothing is left in OUT."""
    code, text = quietly(convert.main, [source, out, "--jobs", 1, *options])
    lines = [line for line in text.splitlines() if "error" in line]
    assert code == 2 and len(lines) == 1 and "Traceback" not in text, text
    assert not out.exists() or not [path for path in out.iterdir() if not path.name.startswith(".")]
    return lines[0]
