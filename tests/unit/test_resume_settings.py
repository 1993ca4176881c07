"""Which settings a resumed run may have otherwise, and what those of other versions mean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hpctrack import export, infer, train
from hpctrack.config import load_config
from hpctrack.files.atomic import CHECKSUM
from hpctrack.storage.candidates import CandidateStore
from hpctrack.training import checkpoint, run_settings
from hpctrack.training.ledger import read
from hpctrack.training.run_settings import Change, neutral, settings

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1_0"
FREE = [  # each of these and no other, on influencer.yaml
    "train.compile=true", "train.probe_every=3", "train.threads=2", "train.log_every=7", "train.valid_every=9",
    "train.checkpoint_every=1", "train.keep_checkpoints=5", "plan.hits_per_micro_batch=40", "plan.over_cap=error",
    "plan.hits_per_micro_batch=null", "plan.cost=learned", "plan.locality=true", "memory.policy=auto",
    "data.workers=1", "data.prefetch_factor=3", "data.verify=false", "data.in_memory=true", "data.stage_to=x",
    "data.valid=null", "parallel.bucket_mb=3", "parallel.timeout_s=60", "parallel.strategy=fsdp", "run=elsewhere",
]  # fmt: skip
DECISIVE = [
    "seed=4", "optim.lr=0.1", "optim.schedule=constant", "data.selection.pt_min_gev=0.5", "data.features=[r, z]",
    "model.embedding=4", "model.backbone.width=16", "loss.repulsion_ui=2.0", "plan.events_per_step=3", "plan.window=1",
    "data.augment.rotate=false", "train.precision=fp64", "optim.clip_norm=null", "data.curriculum=[]",
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run of two of four steps, whose recipe is influencer.yaml, in the working folder."""
    shutil.copytree(FIXTURES, tmp_path / "older")
    monkeypatch.chdir(tmp_path / "older")
    return tmp_path / "older" / "influencer"


def meta_of(run: Path) -> dict:
    return json.loads((checkpoint.find(run) / "meta.json").read_text())


def change_meta(run: Path, **changes) -> None:
    path = checkpoint.find(run) / "meta.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key != CHECKSUM}
    path.write_text(json.dumps(values | changes))


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_field_says_once_whether_it_changes_the_result():
    config = load_config(FIXTURES / "influencer.yaml")
    decisive = settings(config)
    for override in FREE:
        assert settings(load_config(FIXTURES / "influencer.yaml", [override])) == decisive, override
    for override in DECISIVE:
        other = settings(load_config(FIXTURES / "influencer.yaml", [override]))
        assert other != decisive or override == "data.curriculum=[]", override
    assert "model.backbone.layers" in decisive and "loss.influencer_margin" in decisive  # defaults of options as well


def test_steps_hold_the_same_events_whatever_a_micro_batch_may_hold(run, capsys):
    assert train.main(["influencer.yaml", "run=small", "plan.hits_per_micro_batch=30", "plan.locality=true"]) == 0
    assert train.main(["influencer.yaml", "run=large", "plan.hits_per_micro_batch=null", "plan.cost=learned"]) == 0
    small, large = (
        [(entry["step"], sorted(entry["events"])) for entry in read(run.parent / name)] for name in ("small", "large")
    )
    assert small == large and len(small) == 4


@pytest.mark.parametrize(
    "overrides",
    [["plan.hits_per_micro_batch=30", "train.probe_every=2"], ["train.compile=false", "memory.policy=auto"]],
)
def test_a_run_goes_on_with_other_settings_that_do_not_change_it(run, capsys, overrides):
    assert train.main(["influencer.yaml", *overrides]) == 0, capsys.readouterr().err
    expected = {line["step"]: line["loss"] for line in lines_of_expected() if line["kind"] == "train"}
    found = {line["step"]: line["loss"] for line in lines(run) if line["kind"] == "train"}
    assert found == pytest.approx(expected, rel=1e-4)


def lines_of_expected() -> list[dict]:
    return [json.loads(line) for line in (FIXTURES / "expected" / "influencer.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("override", ["seed=4", "optim.lr=0.1", "model.embedding=4", "loss.repulsion_ui=2.0"])
def test_a_run_that_would_become_another_is_refused_with_the_key(run, capsys, override):
    assert train.main(["influencer.yaml", override]) == 2
    key, _, value = override.partition("=")
    error = capsys.readouterr().err.strip()
    assert f"{key}=" in error and f"now {value}" in error and "\n" not in error


# ------------------------------------------------------------------------------------------------ more or fewer steps


def test_more_steps_where_the_schedule_allows_it(run, capsys):
    """A constant rate: the longer run is the one that was asked for at once, tuned at its own end."""
    constant = ["influencer.yaml", "optim.schedule=constant", "train.valid_every=100"]
    assert train.main([*constant, "run=whole", "train.steps=5"]) == 0
    assert train.main([*constant, "run=parts", "train.steps=3"]) == 0
    first = meta_of(run.parent / "parts")
    assert first["tuned"] and train.main([*constant, "run=parts", "train.steps=5"]) == 0, capsys.readouterr().err
    whole, parts = run.parent / "whole", run.parent / "parts"
    a, b = (checkpoint.read_state(checkpoint.find(path))["model"] for path in (whole, parts))
    assert all(bool((a[name] == b[name]).all()) for name in a)
    assert meta_of(parts)["tuned"] == meta_of(whole)["tuned"] and meta_of(parts)["step"] == 5
    assert [line["step"] for line in lines(parts) if line["kind"] == "valid"] == [3, 5]
    assert train.main([*constant, "run=parts", "train.steps=5"]) == 0  # nothing is left to do
    assert [line["step"] for line in lines(parts) if line["kind"] == "valid"] == [3, 5]


def test_fewer_steps_end_the_run_where_it_stands(run, capsys):
    change_meta(
        run, config=meta_of(run)["config"] | {"optim": meta_of(run)["config"]["optim"] | {"schedule": "constant"}}
    )
    constant = ["influencer.yaml", "optim.schedule=constant"]
    assert train.main([*constant, "train.steps=1"]) == 2
    assert "has 2 steps done, key 'train.steps' is 1; give 2 or more" in capsys.readouterr().err
    assert train.main([*constant, "train.steps=2"]) == 0
    meta = meta_of(run)
    assert meta["step"] == 2 and meta["tuned"] and not meta["pending"]
    assert export.main(["influencer", "given-away"]) == 0


def test_steps_that_the_cosine_depends_on_are_refused_with_the_reason(run, capsys):
    assert train.main(["influencer.yaml", "train.steps=8"]) == 2
    error = capsys.readouterr().err
    assert "train.steps=4, now 8" in error and "optim.schedule=cosine" in error and "start_from" in error


def test_within_warm_up_the_steps_may_change(run, capsys):
    optim = meta_of(run)["config"]["optim"] | {"warmup_steps": 3}
    change_meta(run, config=meta_of(run)["config"] | {"optim": optim})
    assert train.main(["influencer.yaml", "optim.warmup_steps=3", "train.steps=6"]) == 0, capsys.readouterr().err
    assert meta_of(run)["step"] == 6


# ------------------------------------------------------------------------------------------------ other versions


def test_a_key_that_a_checkpoint_lacks_has_its_default(run, capsys):
    config = meta_of(run)["config"]
    del config["data"]["augment"]["outside"], config["optim"]["momentum"], config["train"]["tf32"]
    change_meta(run, config=config)
    assert train.main(["influencer.yaml", "optim.momentum=0.5"]) == 2
    assert "optim.momentum=0.9, now 0.5" in capsys.readouterr().err
    assert train.main(["influencer.yaml"]) == 0, capsys.readouterr().err


def test_an_option_that_a_checkpoint_lacks_has_its_default(run, capsys):
    assert train.main(["influencer.yaml", "loss.influencer_margin=1.0", "model.azimuth=0.0"]) == 0, capsys.readouterr()
    assert train.main(["influencer.yaml", "run=influencer-done", "loss.influencer_margin=2.0"]) == 2
    assert "loss.influencer_margin=1.0, now 2.0" in capsys.readouterr().err


def test_keys_of_a_later_version_matter_only_if_they_changed_the_result(run, capsys):
    config = meta_of(run)["config"]
    config["train"]["later"], config["data"]["later"], config["loss"]["later"] = 5, {"a": 1}, 0.0
    change_meta(run, config=config, schema=run_settings.SCHEMA, neutral=["train.later", "data.later.a", "loss.later"])
    assert train.main(["influencer.yaml"]) == 0, capsys.readouterr().err
    config["data"]["later"]["b"] = 2  # which changed it
    change_meta(run, config=config, schema=run_settings.SCHEMA, neutral=["train.later", "data.later.a", "loss.later"])
    assert train.main(["influencer.yaml"]) == 2
    assert "unknown key 'data.later'" in capsys.readouterr().err
    change_meta(run, schema=run_settings.SCHEMA + 1)
    assert train.main(["influencer.yaml"]) == 2
    assert (
        f"has schema {run_settings.SCHEMA + 1}, this version reads up to {run_settings.SCHEMA}"
        in capsys.readouterr().err
    )


def test_checkpoints_say_their_schema_and_what_changes_nothing(run):
    assert train.main(["influencer.yaml"]) == 0
    meta = meta_of(run)
    assert meta["schema"] == run_settings.SCHEMA and {"train.steps", "data.workers", "model.azimuth"} <= set(
        meta["neutral"]
    )
    assert not {"seed", "optim.name.x", "model.embedding", "data.augment.rotate"} & set(meta["neutral"])
    assert neutral(run_settings.run_config(meta, run)) == meta["neutral"]


def test_renamed_and_removed_keys_and_earlier_defaults(run, monkeypatch, capsys):
    config = meta_of(run)["config"]
    config["train"]["recompute"] = True
    config["optim"]["eta"] = config["optim"].pop("lr")
    config["optim"].pop("base_batch")
    change_meta(run, config=config)
    change = Change({"optim.eta": "optim.lr"}, frozenset({"train.recompute"}), {"optim.base_batch": 4.0})
    monkeypatch.setitem(run_settings.CHANGES, 1, change)
    assert train.main(["influencer.yaml"]) == 2
    assert "optim.base_batch=4.0, now 8.0" in capsys.readouterr().err
    assert train.main(["influencer.yaml", "optim.base_batch=4.0"]) == 0, capsys.readouterr().err


def test_candidates_that_were_begun_go_on_with_keys_that_were_not_known(run, capsys):
    path = run.parent / "candidates-begun" / ".parts" / "settings.json"
    begun = json.loads(path.read_text())
    begun["selection"].pop("noise_share")
    path.write_text(json.dumps(begun))
    command = ["--checkpoint", "influencer-done", "--data", "data", "--out", "candidates-begun"]
    assert infer.main([*command, "builder.radius=0.6", "selection.noise_share=0.5"]) == 2
    assert "selection.noise_share=None, now 0.5" in capsys.readouterr().err
    assert infer.main([*command, "builder.radius=0.6"]) == 0, capsys.readouterr().err
    assert len(CandidateStore(run.parent / "candidates-begun")) == 5
