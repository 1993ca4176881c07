"""The influencer loss's attraction, forward and backward: closed form against the track loop and the pair scatter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch_geometric.data import Batch, Data

from hpctrack.benchmarks.measure import Figure, ratio, time_in_turn
from hpctrack.losses.influencer import attraction
from hpctrack.losses.influencer_reference import attraction_loop, attraction_scatter

FORMS: dict[str, Callable] = {
    "closed": lambda *args: attraction(*args)[0],
    "scatter": attraction_scatter,
    "loop": attraction_loop,
}


def run(quick: bool) -> list[Figure]:
    """Ratios at 500 tracks of 12 hits, 8 dimensions, one event."""
    tracks, repeats = (500, 3) if quick else (500, 15)
    batch = synthetic_event(tracks, hits_per_track=12)

    def work(form: Callable) -> Callable[[], None]:
        def call() -> None:
            generator = torch.Generator().manual_seed(1)
            user, influencer = (
                torch.randn(batch.num_nodes, 8, generator=generator, requires_grad=True) for _ in range(2)
            )
            form(user, influencer, batch, 1e-6).backward()

        return call

    seconds = time_in_turn({name: work(form) for name, form in FORMS.items()}, repeats)
    at = f"{tracks} tracks, forward + backward"
    return [
        Figure("closed_over_loop", ratio(seconds["loop"], seconds["closed"]), "x", f"loop s / closed-form s, {at}"),
        Figure(
            "closed_over_scatter",
            ratio(seconds["scatter"], seconds["closed"]),
            "x",
            f"pair-scatter s / closed-form s, {at}",
        ),
        Figure("closed_seconds", seconds["closed"], "s", f"closed form, {at}"),
    ]


def synthetic_event(tracks: int, hits_per_track: int) -> Batch:
    """One event of equal tracks, hits in random order."""
    track = torch.arange(tracks).repeat_interleave(hits_per_track)
    track = track[torch.randperm(len(track), generator=torch.Generator().manual_seed(0))]
    return Batch.from_data_list([Data(track=track, n_tracks=torch.tensor([tracks]), num_nodes=len(track))])
