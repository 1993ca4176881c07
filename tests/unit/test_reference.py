"""The pages of docs/reference that are generated: current, and complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpctrack import show_config
from hpctrack.config import Named, RunConfig, load_config
from hpctrack.models import MODELS
from hpctrack.process.verbs import VERBS
from hpctrack.reference import api, commands, keys
from hpctrack.reference.__main__ import PAGES
from hpctrack.training.run_settings import OPTIONS, settings

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
ENTRIES = list(keys.entries(plugins=False))


MISSING = [entry.missing for entry in ENTRIES if entry.missing]  # of the reference extra
all_methods = pytest.mark.skipif(bool(MISSING), reason="".join(MISSING[:1]))


@all_methods
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_current(name):
    same = (FOLDER / name).read_text() == PAGES[name]()
    assert same, f"docs/reference/{name} is out of date: run `python -m hpctrack.reference docs/reference`"


def sections():
    """Every section and every entry's options, with what its keys begin with."""
    yield from keys.sections(RunConfig)
    yield from ((entry.section, entry.options) for entry in ENTRIES if entry.options)


def test_every_key_says_what_it_is():
    silent = [
        f"{prefix}.{name}"
        for prefix, kind in sections()
        for name, info in kind.model_fields.items()
        if not info.description and not keys.is_section(info)
    ]
    assert not silent, f"fields without a description: {', '.join(silent)}"


def test_every_key_and_every_entry_is_on_the_page():
    text = keys.page()
    on_page = set(re.findall(r"^\| `([\w.\[\]]+)` \|", text, re.M))
    for prefix, kind in sections():
        for name, info in kind.model_fields.items():
            assert keys.is_section(info) or f"{prefix}.{name}".lstrip(".") in on_page
    for section, table in OPTIONS.items():
        assert all(f"### `{section}: {{name: {name}}}`" in text for name in table.own)


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("plan.events_per_step", "whole number or `null` | `8` | ≥ 1 | events | yes"),
        ("optim.betas", "list of 2 numbers | `[0.9, 0.99]` | ≥ 0, < 1 | – | yes"),
        ("data.augment.sector_rad", "number or `null` | `null` | > 0, < 6.28319 | rad | yes"),
        ("parallel.strategy", "`ddp`, `fsdp`, `deepspeed` | `ddp` |  |  | no"),
        ("train.steps", "whole number | *required* | ≥ 1 | steps | no"),
        ("data.curriculum", "list of sections | `[]` |  |  | yes"),
        ("data.graph", "name and options or `null` | `null` |  |  | yes"),
        ("builder.selection", "text | `eom` | `^(eom\\|leaf)$` |  | yes"),
    ],
)
def test_a_row_says_type_default_bounds_unit_and_whether_the_result_changes(key, row):
    assert f"| `{key}` | {row} | " in keys.page()


def test_every_verb_and_option_is_on_the_page():
    text = commands.page()
    for name in VERBS:
        assert f"\n## hpctrack {name}\n" in text
    assert "| `--checkpoint RUN` | a path | *required*, or `--method` |" in text
    assert "| `--jobs J` | a whole number from 1 | `1` | processes of --verify" in text
    assert "local_rank" not in text  # for launchers, not for people


@pytest.mark.parametrize("name", ["influencer-500", "pipeline/triplets"])
def test_a_recipe_with_its_defaults_is_the_same_recipe(name, tmp_path, capsys):
    assert show_config.main([name, "optim.lr=0.5"]) == 0
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
    every = load_config(tmp_path / "all.yaml")
    assert settings(every) == settings(load_config(name, ["optim.lr=0.5"]))
    assert isinstance(every.loss, Named) and len(every.loss.options) > len(load_config(name).loss.options)


def test_config_takes_a_recipe_or_reference(capsys):
    assert show_config.main(["--reference"]) == 0
    assert capsys.readouterr().out == keys.page(plugins=True)
    assert show_config.main([]) == 2 and "either a RECIPE or --reference" in capsys.readouterr().err
    assert show_config.main(["influencer", "loss.repel=1"]) == 2
    assert "unknown key 'loss.repel'" in capsys.readouterr().err


@all_methods
def test_the_pages_of_the_modules_are_built_without_a_warning(tmp_path):
    pytest.importorskip("pdoc", reason="pdoc is not installed (dev extra)")
    api.build(tmp_path)
    modules = [MODELS["influencer"].__module__, *(module.__name__ for module in api.PUBLIC)]
    pages = [(tmp_path / f"{module.replace('.', '/')}.html").read_text() for module in modules]
    assert "InfluencerModel" in pages[0]
