"""Run configurations: overrides, strictness, one-line errors that name the key."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import time
from pathlib import Path

import pytest

from hpctrack.config import Section, dump_yaml, load_config
from hpctrack.errors import InputError
from hpctrack.recipes import parse_yaml

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
        ("optim.lrr=1", r"unknown key 'optim\.lrr'; did you mean 'optim\.lr'\?"),
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


# ------------------------------------------------------------------------------------------------ what is no recipe


def refused(path, *overrides) -> str:
    """The one line by which a recipe is refused."""
    with pytest.raises(InputError) as error:
        load_config(path, overrides)
    line = str(error.value)
    assert "\n" not in line and len(line) < 500, line
    return line


@pytest.mark.parametrize(
    ("override", "read_as"),
    [
        ("run=20261127", "a number"),
        ("run=1e3", "a number"),
        ("run=010", "a number"),
        ("run=2026-11-27", "a date"),
        ("run=2026-11-27 10:00:00", "a date"),
        ("run=yes", "true or false"),
        ("run=null", "nothing"),
        ("run=~", "nothing"),
        ("data.train=2026", "a number"),
        ("data.valid=no", "true or false"),
        ("data.stage_to=12:30", "a number"),
        ("train.start_from=1.5", "a number"),
        ("model.name=7", "a number"),
    ],
)
def test_text_that_yaml_reads_as_something_else_is_to_be_quoted(override, read_as):
    line = refused(RECIPES[0], override)
    key, _, text = override.partition("=")
    assert line.startswith(f"override '{override}': key '{key}': {text} is read as {read_as}, ")
    assert line.endswith(f"""quote it: {key}='"{text}"'""")
    config = load_config(RECIPES[0], [f'{key}="{text}"']).model_dump()
    for part in key.split("."):
        config = config[part]
    assert config == text


def test_text_in_lists_and_files_is_to_be_quoted_as_well(tmp_path):
    assert re.match(r"override 'data.features=.*key 'data.features.1': 7 is read as a number", refused(
        RECIPES[0], "data.features=[x, 7]"
    ))  # fmt: skip
    (tmp_path / "a.yaml").write_text("run: 20261127\n" + RECIPES[0].read_text().replace("\nrun:", "\n# run:"))
    assert "a.yaml: key 'run': 20261127 is read as a number, text is meant; put it in quotes" in refused(
        tmp_path / "a.yaml"
    )


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["plan.cost_per_step=2"], r"override 'plan\.cost_per_step=2': section 'plan': give either events_per_step or"),
        (["plan.window=0"], r"override 'plan\.window=0': section 'plan': window must be 1 or more, or epoch, not 0$"),
        (["memory={cap_gib: 1, policy: plain}"], r"section 'memory': cap_gib is kept by policy auto, not by plain"),
        (["parallel.offload_param=true"], r"section 'parallel': offload_optimizer and offload_param are for strategy"),
        (["optim.name=lamb", "parallel.strategy=fsdp"], r": optim\.name=lamb needs whole layers.*not fsdp$"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_named_without_their_section(overrides, line):
    found = refused(RECIPES[0], *overrides)
    assert (
        re.search(line, found) and "optim'" not in found and "events_per_step'" not in found and "key ''" not in found
    )


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.betas=[1.0,0.9]", r"key 'optim\.betas\.0': .*less than 1, got 1\.0"),
        ("optim.betas=[0.9,-0.1]", r"key 'optim\.betas\.1'"),
        ("optim.betas=[0.9]", r"key 'optim\.betas"),
        ("optim.lr=.inf", r"key 'optim\.lr': .*finite"),
        ("optim.lr=.nan", r"key 'optim\.lr': .*(finite|greater)"),
        ("optim.lr=1e400", r"key 'optim\.lr': .*finite"),
        ("optim.weight_decay=1e30", r"key 'optim\.weight_decay': must be at most"),
        ("optim.clip_norm=.inf", r"key 'optim\.clip_norm': .*finite"),
        ("data.selection.pt_min_gev=.inf", r"key 'data\.selection\.pt_min_gev': .*finite"),
        ("parallel.timeout_s=1e11", r"key 'parallel\.timeout_s': .*less than or equal to 1000000000"),
        ("parallel.timeout_s=.nan", r"key 'parallel\.timeout_s'"),
        ("parallel.bucket_mb=1e9", r"key 'parallel\.bucket_mb'"),
        ("train.threads=0", r"key 'train\.threads'"),
        ("train.threads=100000", r"key 'train\.threads'"),
        ("train.steps=1000000000000", r"key 'train\.steps': must be at most 1,000,000,000"),
        ("data.selection.volumes=[8, 99999999999]", r"key 'data\.selection\.volumes'"),
        ("seed=18446744073709551616", r"key 'seed': must be .* from 0 to 2\^64 - 1, got 18446744073709551616"),
        ("seed=-1", r"key 'seed'"),
        (f"seed={'9' * 5000}", r"override 'seed=999.*is no number .*40 characters"),
        (f"seed=0x{'f' * 5000}", r"override 'seed=0xfff.*is no number"),
        ("seed=2026-13-45", r"is no date \(month must be in 1\.\.12\); quote"),
        ("run=2026-02-30", r"is no date .*quote"),
        (r'run="a\0b"', r"line 1: .*character U\+0000"),
        (r'data.train="\ud800"', r"line 1: .*character U\+D800"),
        ("seed=!!int ''", "is no number"),
        ("seed=!!bool perhaps", "is no truth value"),
        ("seed=!!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_numbers_that_cannot_be_are_named(override, line):
    assert re.search(line, refused(RECIPES[0], override))


def test_every_float_of_every_section_is_finite():
    kinds = [*all_subclasses(Section)]
    assert len(kinds) > 30
    for kind in kinds:
        assert kind.model_config.get("allow_inf_nan") is False and kind.model_config.get("strict"), kind


def all_subclasses(kind: type) -> set[type]:
    for package in ("models", "losses", "tracking", "graphs", "resources", "training", "inference"):
        for module in pkgutil.iter_modules(importlib.import_module(f"hpctrack.{package}").__path__):
            importlib.import_module(f"hpctrack.{package}.{module.name}")
    below = set(kind.__subclasses__())
    return below | {each for child in below for each in all_subclasses(child)}


def test_the_largest_seed_is_taken():
    assert load_config(RECIPES[0], [f"seed={2**64 - 1}"]).seed == 2**64 - 1


BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))])
DEEP = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} {'[' * 30}*a{n - 1}{']' * 30}" for n in range(1, 200))])


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"run: x\nseed: \xff\n", r"line 2: byte 0xff is not UTF-8"),
        ("run: x\n".encode("utf-16"), "UTF-8"),
        (b"run: x\nseed: 1\nrun: y\n", r"line 3: .*key 'run' is in lines 1 and 3"),
        (b"run: x\ntrain: {steps: 1, log_every: 2, steps: 3}\n", r"key 'steps' is in lines 2 and 2"),
        (b"run: x\n'run': y\n", r"key 'run' is in lines 1 and 2"),
        (b"run: x\n1: y\n", r"line 2: .*'1' is no key"),
        (b"run: x\non: y\n", r"line 2: .*'on' is no key"),
        (b"run: x\n? [a, b]\n: y\n", r"line 2: .*a list or section is no key"),
        (b"[" * 100_000, "more than 50 sections within each other"),
        (b"{a: " * 50_000, "more than 50 sections within each other"),
        (b"\n".join(b" " * n + b"a:" for n in range(400)), "more than 50 sections within each other"),
        (BOMB.encode(), "more than 10,000 values"),
        (DEEP.encode(), "50 sections within each other"),
        (b"a: &a [*a]\n", "an alias within what it stands for"),
        (b"a: &a {b: *a}\n", "an alias within what it stands for"),
        (b"a: *b\n", "undefined alias"),
        (b"run: x\n" * 100_000, "more than 262,144 bytes"),
        (b"run: \x00\n", "not valid YAML"),
        (b"--- 1\n--- 2\n", "not valid YAML"),
        (b"", "got NoneType"),
        (b"seed: " + b"1" * 100_000, "is no number"),
        (b"seed: " + b":".join([b"59"] * 50_000), "is no number"),
    ],
    ids=range(22),
)
def test_texts_that_are_no_recipe_are_named_at_once(content, line, tmp_path):
    (tmp_path / "a.yaml").write_bytes(content)
    begin = time.monotonic()
    found = refused(tmp_path / "a.yaml")
    assert re.search(line, found) and found.startswith(str(tmp_path / "a.yaml"))
    assert time.monotonic() - begin < 10


def test_aliases_and_merges_that_stay_small_are_taken(tmp_path):
    text = "x: &x {steps: 3, log_every: 2}\ntrain: {<<: *x, steps: 5}\nagain: [*x, *x]\n"
    read = parse_yaml(text, "x")
    assert read["train"] == {"steps": 5, "log_every": 2} and len(read["again"]) == 2


def test_what_is_no_file_is_no_recipe(tmp_path):
    assert "a folder, not a configuration file" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        assert "device or pipe, not a configuration file" in refused(path)
