"""`hpctrack simulate`: events in TrackML's CSV format from ACTS, or from numpy helices and toys."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from hpctrack.errors import InputError
from hpctrack.formats.building import Conversion, convert
from hpctrack.formats.simulated import SimulatedReader
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.simulation import SOURCES, OwnDetector, package_versions, source_class, unused_by
from hpctrack.simulation.digitization import METHODS
from hpctrack.simulation.run import check_ids, run, show_progress
from hpctrack.simulation.settings import HARD_PROCESSES, NUMBERS, PILEUP, PRESETS, Settings, option

EVENTS_PER_SHARD = 256  # of toys, which are small

_HELP: dict[str, dict] = {
    "source": {"help": "acts: Pythia 8 + ACTS Fatras; helix: numpy only; telescope: protons; planes, cylinders: toys"},
    "seed": {"help": "seed of the data set; event k of a seed is always the same"},
    "mu": {"help": "acts: mean number of pile-up collisions"},
    "pileup": {"choices": PILEUP, "help": "acts: the number varies from event to event, or is mu, rounded"},
    "hard_process": {"choices": HARD_PROCESSES, "help": "acts: one hard collision more"},
    "photons": {"action": argparse.BooleanOptionalAction, "help": "acts: hand over photons too, which may convert"},
    "photon_pt_min_gev": {"metavar": "GEV", "help": "acts: and of these none below"},
    "decays": {"action": argparse.BooleanOptionalAction, "help": "acts: hadrons decay in flight"},
    "interactions": {
        "metavar": "SCALE",
        "help": "acts: hadronic interactions, for so many times the detector's own material; 0: none",
    },
    "particles": {"help": "helix: mean number of charged particles"},
    "protons": {"help": "telescope: primaries of a frame that leave a hit"},
    "phantom_mm": {"metavar": "MM", "help": "telescope: water in front of it"},
    "pt_min_gev": {"metavar": "GEV", "help": "generated particles below are left out"},
    "eta_max": {"help": "and so are those beyond this |eta|"},
    "field_t": {"metavar": "TESLA", "help": "magnetic field along z"},
    "digitization": {"choices": METHODS, "help": "clusters of cells, or Gaussian smearing without cells"},
    "efficiency": {"help": "of a module for a crossing particle"},
    "noise": {"help": "share of noise among all hits, distributed over the layers as in TrackML"},
    "planes": {"help": "planes: how many"},
    "pixels": {"help": "planes: pixels along each axis of a plane"},
    "axes": {"help": "planes: 1, a plane is a line of pixels; 2, a square"},
    "windows": {"action": argparse.BooleanOptionalAction, "help": "planes: the first planes are narrow"},
    "signal": {
        "action": argparse.BooleanOptionalAction,
        "help": "planes: one track more, particle 1, which is alone in the seed planes",
    },
    "seed_planes": {"help": "planes: first planes without background and noise"},
    "tracks": {"help": "planes: background tracks, cylinders: tracks; mean, most or number"},
    "tracks_number": {"choices": NUMBERS, "help": "how it varies: around the mean, from 0 to it, or not"},
    "tracks_max": {"help": "never more than this; 0: no bound"},
    "pixel_noise": {"help": "planes: probability that a pixel is on by chance"},
    "sagitta": {"metavar": "PIXELS", "help": "planes: tracks bend by at most so much in x; 0: straight"},
    "gzip": {"action": argparse.BooleanOptionalAction, "help": "write .csv.gz"},
}


def parser() -> arguments.Parser:
    """The verb's options; those of Settings keep their defaults there."""
    p = arguments.Parser(
        prog="hpctrack simulate",
        allow_abbrev=False,
        description="Write events in TrackML's CSV format. Run again to continue or to extend: finished events stay.",
    )
    p.add_argument("out", metavar="OUT", type=Path, help="folder, made if missing")
    p.add_argument("--events", type=arguments.integer, default=10, metavar="N", help="how many [%(default)s]")
    p.add_argument(
        "--first-event", type=arguments.integer, default=0, metavar="K", help="id of the first [%(default)s]"
    )
    p.add_argument("--jobs", type=arguments.integer, default=1, metavar="J", help="processes [%(default)s]")
    p.add_argument(
        "--dataset", action="store_true", help="planes, cylinders: write a dataset straight away, as convert would"
    )
    p.add_argument(
        "--events-per-shard", type=arguments.positive, metavar="N", help="of a dataset [256]; decides its files"
    )
    p.add_argument("--preset", choices=tuple(PRESETS), help="settings for events of this kind; options given go before")
    for field in dataclasses.fields(Settings):
        extra = dict(_HELP[field.name])
        extra["help"] += f" [{field.default}]"
        if field.name == "source":
            extra["choices"] = tuple(SOURCES)
        if "action" not in extra:
            extra["type"] = arguments.any_integer if field.type == "int" else type(field.default)
        p.add_argument(option(field.name), dest=field.name, default=None, **extra)
    return p


def settings_of(args: argparse.Namespace) -> Settings:
    """The checked settings; InputError for a value out of bounds or an option of another source."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Settings) if getattr(args, f.name) is not None}
    if args.preset:
        given = PRESETS[args.preset] | given
    settings = Settings(**given)
    for name in sorted(given.keys() & set(unused_by(settings.source))):
        raise InputError(f"{option(name)}: means nothing to --source {settings.source}; leave it out")
    own = set(source_class(settings.source).OPTIONS)
    for other in SOURCES.own:
        for name in sorted(given.keys() & set(source_class(other).OPTIONS) - own):
            raise InputError(f"{option(name)}: an option of --source {other}, not of {settings.source}")
    return settings.check()


def write_dataset(settings: Settings, event_ids: range, args: argparse.Namespace) -> None:
    """The events as a dataset in OUT; InputError for a source whose hits have cells, which convert makes columns of."""
    if not issubclass(source_class(settings.source), OwnDetector):
        raise InputError(
            f"--dataset: --source {settings.source} writes files with cells; leave it out, then run hpctrack convert"
        )
    versions = package_versions(settings.source)
    made = Conversion(
        lambda: (SimulatedReader(settings, event_ids), versions), args.out, args.events_per_shard or EVENTS_PER_SHARD
    )
    convert(made, args.jobs)


@verb("simulate")
def main(argv: Sequence[str] | None = None) -> int | None:
    """Simulate the events asked for and say what was made."""
    args = parser().parse_args(argv)
    settings = settings_of(args)
    for name in ("events", "jobs"):
        if getattr(args, name) < 1:
            raise InputError(f"{option(name)} {getattr(args, name)}: must be at least 1")
    event_ids = range(args.first_event, args.first_event + args.events)
    check_ids(event_ids)
    if args.dataset:
        write_dataset(settings, event_ids, args)
        return None
    if args.events_per_shard is not None:
        raise InputError("--events-per-shard: is of datasets; give --dataset as well")
    made = show_progress(run(settings, args.out, event_ids, args.jobs), len(event_ids))
    summary = f"{args.out}: {len(event_ids)} events, {len(made)} of them made now"
    if made:
        hits, noise, particles = (sum(getattr(d, n) for d in made) for n in ("n_hits", "n_noise", "n_particles"))
        summary += f": {hits / len(made):.0f} hits, {noise / max(hits, 1):.1%} noise, "
        summary += f"{particles / len(made):.0f} particles an event"
    print(summary)
    return None


if __name__ == "__main__":
    raise SystemExit(main())
