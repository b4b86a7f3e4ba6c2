"""Recipes: the files say what the rows say, and what no recipe can mean is refused with the option's name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gmf_edge.errors import SpecError
from gmf_edge.precision.recipe import RECIPES, Recipe, open_recipe

FOLDER = Path(__file__).resolve().parents[2] / "calibration" / "recipes"


@pytest.mark.parametrize("name", RECIPES)
def test_file_and_row_are_the_same_recipe(name):
    assert open_recipe(FOLDER / f"{name}.toml") == RECIPES[name] == open_recipe(name)


def test_every_recipe_file_has_a_row():
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(RECIPES)


def test_balanced_file_explains_every_option():
    text = (FOLDER / "balanced.toml").read_text()
    lines = text.splitlines()
    for field in dataclasses.fields(Recipe):
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{field.name} = "))
        above = lines[:place]
        assert any(line.startswith("#") for line in above[-4:]), field.name


def test_options_left_out_have_their_defaults(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('method = "percentile"\npercentile = 99\nkeep = ["*.proj/MatMul"]\n')
    recipe = open_recipe(path)
    assert recipe == Recipe(method="percentile", percentile=99.0, keep=("*.proj/MatMul",))
    assert recipe.keeps("groupmixformer_backbone.0.gma_stage.0.att.proj/MatMul")
    assert not recipe.keeps("groupmixformer_backbone.0.gma_stage.0.att.qkv/MatMul")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metod = 'mse'", "unknown option 'metod'"),
        ("method = 'magic'", "'magic' is not known"),
        ("qkv = 1", "qkv is 1"),
        ("smoothing = true", "smoothing is True"),
        ("smoothing = nan", "smoothing is nan"),
        ("proj_smoothing = 2", "proj_smoothing is 2"),
        ("percentile = 100.5", "percentile is 100.5"),
        ("min_features = 0", "min_features is 0"),
        ("keep = [1]", r"keep is \[1\]"),
        ("keep = 'all'", "keep is 'all'"),
        ("[qkv]\nyes = true", "qkv is"),
        ("method = ", "not TOML"),
    ],
)
def test_nonsense_is_refused_by_file_and_option(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SpecError, match=words) as caught:
        open_recipe(path)
    assert str(path) in caught.value.problem
    assert caught.value.remedy


def test_unknown_name_lists_the_recipes():
    with pytest.raises(SpecError, match="balanced, fastest, accurate"):
        open_recipe("quickest")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"none\.toml cannot be read"):
        open_recipe(tmp_path / "none.toml")


def test_digest_tells_recipes_apart():
    assert len({recipe.sha256 for recipe in RECIPES.values()}) == len(RECIPES)
    assert Recipe().sha256 == Recipe().sha256
