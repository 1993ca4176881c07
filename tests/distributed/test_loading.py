"""A checkpoint is loaded in shares: a rank under fsdp takes no more memory for it than its own part."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

from hpctrack.config import RunConfig
from hpctrack.parallel.env import distributed
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training import checkpoint, checkpoint_metadata
from hpctrack.training.build import build
from hpctrack.training.loop import train

MIB = 1 << 20
RANKS = 4


def run(config: RunConfig) -> int:
    with distributed(config.parallel, 1) as env:
        return train(config, env)


def anonymous() -> int:
    """Bytes of this process that are not a file's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def grown_in_resume(config: RunConfig) -> tuple[int, float]:
    """The largest growth of this rank's memory while it loads a checkpoint of all steps, and a sum over its weights."""
    with distributed(config.parallel, 1) as env:
        trainer = build(config, env)
        ctypes.CDLL(None).malloc_trim(0)  # what the whole model has left
        begin, peak, ended = anonymous(), [0], threading.Event()

        def sample() -> None:
            while not ended.wait(0.0005):
                peak[0] = max(peak[0], anonymous() - begin)

        sampler = threading.Thread(target=sample)
        sampler.start()
        trainer.resume()
        ended.set()
        sampler.join()
        state = trainer.engine.state_dict()
        moments = [value["exp_avg"] for value in state["optimizer"]["state"].values()]
        return peak[0], float(sum(value.double().abs().sum() for value in (*state["model"].values(), *moments)))


def test_each_rank_loads_its_share(tmp_path):
    data = toy_dataset(tmp_path / "data", sizes=(4, 6))
    backbone = {"name": "transformer", "width": 512, "layers": 4, "heads": 2}
    model = {"name": "influencer", "embedding": 3, "backbone": backbone}
    sections = {"model": model, "train": {"steps": 1, "precision": "fp32"}, "plan": {"events_per_step": 2}}
    alone = toy_config(tmp_path / "run", data, **sections)
    assert run_ranks(1, run, alone) == [0]
    state = checkpoint.read_state(checkpoint.find(tmp_path / "run"))
    moments = [value["exp_avg"] for value in state["optimizer"]["state"].values()]
    whole = (checkpoint.find(tmp_path / "run") / checkpoint_metadata.STATE).stat().st_size
    expected = float(sum(value.double().abs().sum() for value in (*state["model"].values(), *moments)))
    found = run_ranks(
        RANKS, grown_in_resume, toy_config(tmp_path / "run", data, **sections, parallel={"strategy": "fsdp"})
    )
    assert whole > 100 * MIB and all(abs(total - expected) < 1e-9 * expected for _, total in found)
    # its share of weights and moments, and the largest tensor on the way
    print(f"checkpoint {whole / MIB:.0f} MiB, growth {[round(grown / MIB) for grown, _ in found]} MiB")
    assert all(grown < 0.5 * whole for grown, _ in found), (whole, found)
