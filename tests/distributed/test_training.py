"""Training on real ranks: the same curve on any number, bit-equal resume after kills, agreed errors."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from campaigns.resume import campaign
from helpers import quietly

from hpctrack import export
from hpctrack.config import dump_yaml
from hpctrack.errors import InputError, MachineError
from hpctrack.parallel.env import distributed
from hpctrack.testing.ranks import run_ranks, start_ranks
from hpctrack.testing.toys import FEATURES, toy_config, toy_dataset
from hpctrack.train import main as train_verb
from hpctrack.training import checkpoint
from hpctrack.training.build import build
from hpctrack.training.ledger import problems
from hpctrack.training.loop import train


def run(config) -> None:
    with distributed(config.parallel, 1) as env:
        train(config, env)


def curve(folder: Path) -> list[dict]:
    """Logged values without the ones that a clock or the machine decides."""
    timed = {"step_s", "data_s", "hits_per_s", "peak_gib", "compute_s", "wait_s", "communicate_s"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in lines if line["kind"] != "waste"]


def final_state(folder: Path) -> dict:
    return checkpoint.read_state(checkpoint.find(folder))


def flat(state, prefix=""):
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{prefix}.{key}").items()}
    if isinstance(state, list):
        return flat(dict(enumerate(state)), prefix)
    return {prefix: state}


def assert_bit_equal(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key], key


def test_the_same_loss_curve_on_one_two_and_four_ranks(tmp_path):
    data = toy_dataset(tmp_path / "data", sizes=(4, 6, 5, 7, 3, 6, 9, 2, 5, 5))
    curves = []
    for n in (1, 2, 4):
        config = toy_config(tmp_path / f"run{n}", data, valid=data, train={"steps": 20, "valid_every": 10})
        run_ranks(n, run, config)
        curves.append(curve(Path(config.run)))
    assert len(curves[0]) == 22
    for other in curves[1:]:
        for a, b in zip(curves[0], other, strict=True):
            assert a.keys() == b.keys()
            for key, value in a.items():
                assert b[key] == (pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value), key


@pytest.mark.parametrize("ranks", [1, 2])
def test_kill_9_then_the_same_command_ends_bit_equal(tmp_path, ranks):
    data = toy_dataset(tmp_path / "data", sizes=(4, 6, 5, 7, 3))
    settings = {"steps": 40, "log_every": 3, "checkpoint_every": 4, "valid_every": 8}
    whole, broken = (
        toy_config(tmp_path / name, data, valid=data, train=settings, builder={"radius": None})
        for name in ("whole", "broken")
    )
    run_ranks(ranks, run, whole)
    rng = random.Random(ranks)
    for _ in range(4):
        processes, _ = start_ranks(ranks, run, broken)
        lines = len(logged(broken))
        for _ in range(rng.randint(1, 4)):  # a few more log lines, then a moment
            lines = wait_for_more(broken, lines, processes)
        time.sleep(rng.random() * 0.02)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    run_ranks(ranks, run, broken)
    assert_bit_equal(final_state(Path(whole.run)), final_state(Path(broken.run)))
    assert curve(Path(broken.run)) == curve(Path(whole.run))
    assert problems(Path(broken.run)) == []
    metas = [checkpoint.read_meta(checkpoint.find(Path(c.run))) for c in (whole, broken)]
    assert metas[0]["tuned"] == metas[1]["tuned"] != {}


def logged(config) -> list[str]:
    path = Path(config.run) / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_more(config, lines: int, processes) -> int:
    """Wait until the run has logged more than `lines`, or has ended."""
    for _ in range(6000):
        now = len(logged(config))
        if now != lines or not processes[0].is_alive():
            return now
        time.sleep(0.005)
    raise AssertionError("training did not go on")


def test_a_finished_run_is_left_alone_and_moves_between_rank_counts(tmp_path):
    data = toy_dataset(tmp_path / "data")
    short, longer = (
        toy_config(tmp_path / "run", data, optim={"schedule": "constant"}, train={"steps": 6}) for _ in range(2)
    )
    run_ranks(2, run, short)
    before = final_state(tmp_path / "run")
    run_ranks(1, run, longer)
    assert_bit_equal(before, final_state(tmp_path / "run"))


def test_tuning_knows_the_particles_that_are_no_targets(tmp_path):
    sizes = (4, 6, 5, 7, 3, 6)
    data = toy_dataset(tmp_path / "data", sizes)
    selection = {"pt_min_gev": 2.0, "noise": True, "other_hits": True}
    config = toy_config(tmp_path / "run", data, valid=data, reading={"selection": selection})
    events = run_ranks(1, truth_in_tuning, config)[0]
    assert 0 < sum(target.sum() for _, _, target in events) < sum(sizes)
    for tracks, (track, particle, target) in zip(sizes, events, strict=True):
        assert len(track) == len(particle) == 6 * tracks + 3
        assert (target[particle[track >= 0]]).all() and not target[particle[(track < 0) & (particle >= 0)]].any()
        assert (particle < 0).sum() == 3 and len(target) == tracks


def truth_in_tuning(config) -> list:
    with distributed(config.parallel, 1) as env:
        trainer = build(config, env)
        events = sorted(trainer.valid_batches(), key=lambda event: int(event.event_id))
        return [(event.track.numpy(), *trainer.particles(event)) for event in events]


def test_a_run_can_start_from_the_weights_of_another(tmp_path):
    data = toy_dataset(tmp_path / "data")
    first = toy_config(tmp_path / "first", data, train={"steps": 6})
    train = {"steps": 1, "start_from": str(tmp_path / "given")}
    second = toy_config(tmp_path / "second", data, train=train, optim={"lr": 1e-30})
    run_ranks(1, run, first)
    words = [str(tmp_path / "first"), str(tmp_path / "given")]
    assert export.main(words) == 0
    assert list(checkpoint.read_state(tmp_path / "given")) == ["model"]
    assert export.main(words) == 2  # it is there
    assert export.main([str(tmp_path / "given"), str(tmp_path / "chosen"), "builder.radius=0.7"]) == 0
    assert checkpoint.read_meta(tmp_path / "chosen")["tuned"]["radius"] == 0.7
    for wrong in ("builder.radios=0.7", "model.width=3"):
        assert export.main([str(tmp_path / "given"), str(tmp_path / "not"), wrong]) == 2
    assert not (tmp_path / "not").exists()
    run_ranks(2, run, second)
    weights = [final_state(tmp_path / name)["model"] for name in ("second", "first")]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-29)
    other = toy_config(tmp_path / "other", data, train=train, model={"embedding": 5})
    with pytest.raises(AssertionError, match="holds another model than the configuration says"):
        run_ranks(1, run, other)


def test_a_run_can_start_from_the_weights_of_a_smaller_model(tmp_path, capsys):
    data, still = toy_dataset(tmp_path / "data"), {"lr": 1e-30, "weight_decay": 0.0}
    first = toy_config(tmp_path / "first", data, train={"steps": 1})
    backbone = first.model.options["backbone"] | {"layers": 2}
    grown = {"reading": {"features": [*FEATURES, "eta"]}, "model": {"backbone": backbone}, "optim": still}
    train = {"steps": 1, "start_from": str(tmp_path / "first")}
    run(first)
    run(toy_config(tmp_path / "second", data, train=train, **grown))
    old, new = (final_state(tmp_path / name)["model"] for name in ("first", "second"))
    wider = [name for name, value in old.items() if value.shape != new[name].shape]
    assert len(wider) == 1 and not new[wider[0]][:, len(FEATURES) :].abs().gt(1e-29).any()
    for name, value in old.items():
        torch.testing.assert_close(new[name][:, : len(FEATURES)] if name in wider else new[name], value)
    assert "tensors more begin anew: " in capsys.readouterr().out
    grown["reading"] = {"features": FEATURES[::-1]}
    with pytest.raises(InputError, match="made for the features .* must begin with these"):
        run(toy_config(tmp_path / "third", data, train=train, **grown))


@pytest.mark.parametrize("plan", [{}, {"window": "epoch", "cost": "learned", "hits_per_micro_batch": 50}])
def test_kills_with_other_rank_counts_leave_an_exact_ledger_and_the_same_curve(tmp_path, plan):
    """A short campaign of tests/campaigns/resume.py."""
    line = campaign(tmp_path, kills=6, seed=1, steps=40, plan=plan)
    assert "ledger exact, largest relative difference of the loss" in line


def test_learned_costs_are_in_the_checkpoint_and_printed(tmp_path, capsys):
    data = toy_dataset(tmp_path / "data", sizes=range(3, 12))
    run(toy_config(tmp_path / "run", data, plan={"cost": "learned"}, train={"steps": 20}))
    text = capsys.readouterr().out
    assert "cost: seconds ~" in text and "median error" in text
    assert "time of a step" in text and "compute" in text
    meta = checkpoint.read_meta(checkpoint.find(tmp_path / "run"))
    assert len(meta["cost"]["samples"]) == 20 and len(meta["cost"]["coefficients"]) == 4


def test_an_event_over_the_cap_can_be_refused(tmp_path):
    data = toy_dataset(tmp_path / "data")
    with pytest.raises(InputError, match=r"event 0 has 27 hits, above plan\.hits_per_micro_batch=20; raise it"):
        run(toy_config(tmp_path / "run", data, plan={"hits_per_micro_batch": 20, "over_cap": "error"}))


def expect_error(config, kind, *parts) -> None:
    try:
        run(config)
    except kind as error:
        assert all(part in str(error) for part in parts), str(error)
    else:
        raise AssertionError("no error")


def test_a_loss_that_is_not_finite_stops_all_ranks_and_names_the_event(tmp_path):
    data = toy_dataset(tmp_path / "data", sizes=(4, 6, 5, 7))
    config = toy_config(tmp_path / "run", data, optim={"lr": 1e300, "warmup_steps": 0, "clip_norm": None})
    run_ranks(2, expect_error, config, MachineError, "step 2: loss is not finite in event 0, 1, 2, 3")


def test_resume_refuses_another_run(tmp_path):
    data = toy_dataset(tmp_path / "data")
    run(toy_config(tmp_path / "run", data))
    for sections, name in (
        ({"model": {"embedding": 5}}, "model.embedding=3"),
        ({"optim": {"lr": 0.5}}, "optim.lr=0.01"),
        ({"train": {"steps": 99}}, "train.steps=6"),
    ):
        with pytest.raises(InputError, match=f"was trained with {name}"):
            run(toy_config(tmp_path / "run", data, **sections))
    other = toy_dataset(tmp_path / "other", seed=5)
    with pytest.raises(InputError, match="was trained on other events"):
        run(toy_config(tmp_path / "run", other))


def test_an_untuned_builder_needs_validation_events(tmp_path):
    data = toy_dataset(tmp_path / "data")
    with pytest.raises(InputError, match="give data.valid"):
        run(toy_config(tmp_path / "run", data, builder={"radius": None}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_and_recompute_train(tmp_path, precision):
    data = toy_dataset(tmp_path / "data")
    config = toy_config(
        tmp_path / "run", data, train={"precision": precision, "steps": 40}, memory={"policy": "recompute"}
    )
    run_ranks(2, run, config)
    lines = curve(tmp_path / "run")
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


def test_readers_in_worker_processes_give_the_same(tmp_path):
    data = toy_dataset(tmp_path / "data")
    for workers in (0, 2):
        run(
            toy_config(
                tmp_path / f"run{workers}", data, plan={"hits_per_micro_batch": 60}, reading={"workers": workers}
            )
        )
    assert curve(tmp_path / "run0") == curve(tmp_path / "run2")


@pytest.mark.parametrize("kib", [8, 64, 150])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path, small_disk, kib):
    data = toy_dataset(tmp_path / "data")
    folder = small_disk(kib)
    config = toy_config(folder / "run", data, model={"embedding": 3, "backbone": {"name": "transformer", "width": 64}})
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    [(code, error)] = run_ranks(1, quietly, train_verb, [str(tmp_path / "config.yaml")])
    assert code == 1
    assert error.count("\n") == 1 and "error:" in error and ("space" in error or "disk" in error), error
    assert not list(folder.rglob("step-*")) and not list(folder.rglob("*.tmp"))
