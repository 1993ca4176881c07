"""How well candidates' track parameters agree with the truth: resolutions and pulls, with errors.

Each target enters once: with its best-scored candidate of those that are its own by double majority. Legend: M such
pairs of a target and a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpctrack.evaluation.kinds import bin_of, particle_kinematics
from hpctrack.evaluation.matching import match_candidates
from hpctrack.evaluation.metrics import double_matched
from hpctrack.evaluation.tally import Cuts
from hpctrack.events import perigee
from hpctrack.requirements.needs import Need
from hpctrack.storage.schema import PARAMETERS, Candidates, Event

COLUMNS = perigee.COLUMNS
RESOLUTIONS = Need("resolutions of track parameters", COLUMNS)  # which are left out where they are not
DIAGONAL = [len(PARAMETERS) + k * (k + 1) // 2 + k for k in range(len(PARAMETERS))]  # of ESTIMATE: the variances
HALF = (0.1587, 0.8413)  # quantiles one standard deviation from a Gaussian's median
FEW = 10  # bins with fewer entries give no widths
UNITS = dict(zip(PARAMETERS, ("1/GeV", "rad", "rad", "mm", "mm"), strict=True))


def deviations(event: Event, found: Candidates, cuts: Cuts) -> np.ndarray | None:
    """[M, 12] of one event: pT (GeV), eta, estimate - truth (5), and these over the estimated deviations (5).

    None if the candidates have no track parameters; InputError if they do not fit the event. A candidate whose
    parameters are NaN, not estimated, is left out.
    """
    if found.parameters is None:
        return None
    target = cuts.targets(event)
    matched = match_candidates(found, event.column("truth.particle_row"), len(target))
    known = ~np.isnan(found.parameters).all(axis=1)
    own = np.flatnonzero(known & double_matched(matched) & np.append(target, False)[matched.majority])
    own = own[np.lexsort((own, -found.scores[own]))]  # best first
    particle, first = np.unique(matched.majority[own], return_index=True)
    estimate = found.parameters[own[first]].astype(np.float64)
    truth = perigee.perigee({name: event.column(name)[particle] for name in COLUMNS}, event.field_t)
    residual = perigee.difference(estimate[:, : len(PARAMETERS)], truth)
    pt, eta = (values[particle] for values in particle_kinematics(event))
    return np.column_stack([pt, eta, residual, residual / np.sqrt(estimate[:, DIAGONAL])])


def summary(parts: Sequence[np.ndarray | None], cuts: Cuts) -> dict | None:
    """Sums up all events' deviations: per parameter in all, by pT and by eta; None if there are no parameters."""
    have = [part for part in parts if part is not None]
    if not have:
        return None
    rows = np.concatenate(have)
    out = {}
    for k, name in enumerate(PARAMETERS):
        pair = rows[:, [2 + k, 7 + k]]
        out[name] = {
            "unit": UNITS[name],
            **spreads(pair),
            "pt": _binned(pair, rows[:, 0], cuts.begins("pt")),
            "eta": _binned(pair, rows[:, 1], cuts.begins("eta")),
        }
    return {
        "parameters": out,
        "matched": len(rows),
        "selection": f"targets: {cuts.text()}, with their best-scored double-majority candidate",
        "width_is": "half of the central 68.27 % of estimate - truth; of pulls: in estimated standard deviations",
        "error_is": "one standard deviation, from the entries' density at the quantiles (widths), s / sqrt(n) (means)",
    }


def spreads(pair: np.ndarray) -> dict[str, float | int | None]:
    """Median and robust width of the residuals, mean and width of the pulls [M, 2], and their errors.

    Pulls beyond 5 widths are left out of their mean, as many as there are is given.
    """
    n = len(pair)
    names = ("bias", "width", "width_error", "pull_mean", "pull_mean_error", "pull_width", "pull_width_error")
    if n < FEW:
        return {"n": n, **dict.fromkeys(names), "pull_outliers": None}
    (_, bias, width, width_error), (_, middle, pull_width, pull_error) = (robust(column) for column in pair.T)
    core = pair[:, 1][np.abs(pair[:, 1] - middle) <= 5 * pull_width]
    mean, mean_error = core.mean(), core.std() / np.sqrt(len(core))
    values = (bias, width, width_error, mean, mean_error, pull_width, pull_error)
    return {"n": n, **{k: float(v) for k, v in zip(names, values, strict=True)}, "pull_outliers": n - len(core)}


def robust(values: np.ndarray) -> tuple[int, float, float, float]:
    """Number, median, half width of the central 68 %, and the width's standard error.

    A sample quantile has the variance p (1 - p) / (n f^2), with f the density there (H. Cramer, Mathematical Methods of
    Statistics, 1946, 28.5), and two of them the covariance p (1 - q) / (n f g). Densities are taken from the quantiles
    5 % to either side.
    """
    n, (p, q), step = len(values), HALF, 0.05
    low, middle, high = np.quantile(values, (p, 0.5, q))
    slopes = [np.diff(np.quantile(values, (at - step, at + step)))[0] / (2 * step) for at in (p, q)]  # 1 / density
    variance = p * (1 - p) * slopes[0] ** 2 + q * (1 - q) * slopes[1] ** 2 - 2 * p * (1 - q) * slopes[0] * slopes[1]
    return n, float(middle), float(high - low) / 2, float(np.sqrt(max(variance, 0) / n)) / 2


def _binned(pair: np.ndarray, values: np.ndarray, begins: Sequence[float]) -> list[dict]:
    which = bin_of(values, begins)
    bounds = [*(begin if np.isfinite(begin) else None for begin in begins), None]
    return [{"from": bounds[i], "to": bounds[i + 1], **spreads(pair[which == i])} for i in range(len(begins))]


def lines(summed: dict) -> list[str]:
    """The overall numbers as text."""
    out = [
        "",
        f"track parameters ({summed['matched']:,} matched)  bias         width ± error          pull: mean, width",
    ]
    for name, number in summed["parameters"].items():
        if number["width"] is None:
            out.append(f"  {name:<29s}too few")
            continue
        pulls = (f"{number[key]:.2f} ± {number[key + '_error']:.2f}" for key in ("pull_mean", "pull_width"))
        width = f"{number['width']:.3g} ± {number['width_error']:.1g} {number['unit']}"
        out.append(f"  {name:<29s}{number['bias']:<+13.2g}{width:<23s}{', '.join(pulls)}")
    return out
