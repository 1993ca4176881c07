"""Run configurations: overrides, strictness, one-line errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpctrack.config import dump_yaml, load_config, parse_yaml
from hpctrack.errors import InputError

RECIPES = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_load_and_survive_a_round_trip(path, tmp_path):
    config = load_config(path)
    (tmp_path / "copy.yaml").write_text(dump_yaml(config))
    assert load_config(tmp_path / "copy.yaml") == config


def test_overrides_set_nested_keys_with_yaml_values():
    config = load_config(
        RECIPES[0], ["optim.lr=5e-4", "data.selection.tracks=null", "model.embedding=3", "run=elsewhere"]
    )
    assert (config.optim.lr, config.data.selection.tracks, config.run) == (5e-4, None, "elsewhere")
    assert config.model.options["embedding"] == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"unknown key 'optim\.lrr'; did you mean 'lr'\?"),
        ("optim.lr=fast", r"key 'optim\.lr': .*number, got 'fast'"),
        ("optim.lr=-1", r"key 'optim\.lr': .*greater than 0, got -1"),
        ("train.steps=2.5", r"key 'train\.steps': .*integer.*got 2\.5"),
        ("train.steps=true", r"key 'train\.steps': .*integer, got True"),
        ("train.precision=fp8", r"key 'train\.precision': .*'fp32'.*got 'fp8'"),
        ("data.selection.noise=3", r"key 'data\.selection\.noise': .*boolean"),
        (
            "data.curriculum=[{until_epoch: 3, tracks: 5}, {until_epoch: 3, tracks: 9}]",
            r"key 'data\.curriculum': .*must grow",
        ),
        ("nonsense=1", r"unknown key 'nonsense'; known: run, seed"),
        ("optim", "expected key.sub=value"),
        ("optim.lr.x=1", "'optim.lr' is a value, not a section"),
        ("optim=[", "not valid YAML"),
    ],
)
def test_bad_overrides_are_named(override, message):
    with pytest.raises(InputError, match=message) as error:
        load_config(RECIPES[0], [override])
    assert "\n" not in str(error.value)


def test_missing_keys_and_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no such configuration file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("run: x\nseed: 1\n")
    with pytest.raises(InputError, match="key 'data' is missing"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="got list"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("run: x\nseed: [1\n")
    with pytest.raises(InputError, match=r"a\.yaml, line 3: not valid YAML"):
        load_config(tmp_path / "a.yaml")


def test_exponents_without_a_point_are_numbers():
    assert parse_yaml("[1e-3, 1.5e4, -2E5, .5e1]", "x") == [1e-3, 1.5e4, -2e5, 5.0]
    assert parse_yaml("step-1e5", "x") == "step-1e5"
