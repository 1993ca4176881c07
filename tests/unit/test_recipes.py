"""Recipes by name: what a name means, what a file of that name means, and the list."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hpctrack import named_recipes, show_recipes
from hpctrack.config import load_config
from hpctrack.errors import InputError

NAMES = named_recipes.names()


def test_the_names_are_those_of_configs():
    assert {"influencer", "influencer-500", "pipeline/filter"} <= set(NAMES)
    assert NAMES.index("influencer") < NAMES.index("influencer-500") < NAMES.index("pipeline/embedding")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_recipe_whose_first_line_is_its_title(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == load_config(named_recipes.path_of(name))
    title = named_recipes.path_of(name).read_text().splitlines()[0]
    assert title.startswith("# ") and title.endswith(".") and len(title) < 85


def test_a_file_comes_before_a_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "influencer-500").mkdir()
    assert load_config("influencer-500").run == "runs/influencer-500"
    (tmp_path / "influencer").write_text("run: mine\n")
    with pytest.raises(InputError, match="influencer: key 'data' is missing"):
        load_config("influencer")
    with pytest.raises(InputError, match="a folder, not a configuration file"):
        load_config(tmp_path)


@pytest.mark.parametrize("what", ["influencer-5000", "configs/none.yaml", "influencer.yaml"])
def test_what_is_neither_is_one_line_with_the_names(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such configuration file, and no recipe of that name .*pipeline/filter"):
        load_config(what)


def test_the_verb_lists_recipes_and_prints_one(capsys):
    assert show_recipes.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *NAMES]
    assert lines[1 + NAMES.index("pipeline/filter")].split()[1:3] == ["filter", "edges"]
    assert show_recipes.main(["pipeline/filter"]) == 0
    assert capsys.readouterr().out == named_recipes.path_of("pipeline/filter").read_text()
    assert show_recipes.main(["none"]) == 2
    assert (
        "none: no recipe of that name; there are: condensation, greedy, hit-filter, influencer, "
        in capsys.readouterr().err
    )


def test_the_package_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hpctrack", "recipes", "none"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("hpctrack recipes: error: none: no recipe of that name")
    assert done.stderr.count("\n") == 1
