"""One word for one thing: the words that the vocabulary gave up must not come back as names of code,
parameters or columns."""
import ast, csv, re

import pytest, yaml
from helpers import ROOT

GIVEN_UP = {    # word: what to say instead
    "film": "image", "films": "images", "picture": "image", "pictures": "images", "square": "image",
    "squares": "images",
    "place": "frame_to_image, affine, folder", "places": "affines", "look": "predict, output",
    "looks": "passes", "looking": "predict",
    "examine": "predict", "settle": "refine, calibrate", "settled": "refined", "settling": "refinement",
    "judge": "evaluate",
    "judged": "evaluated", "draw": "sample, render, warp", "drawn": "sampled, rendered, warped",
    "draws": "uniforms",
    "views": "augmented", "turn": "rot90, orientation", "turns": "rot90", "turned": "rot90",
    "way": "orientation", "ways": "orientations",
    "signs": "orientation", "prepare": "build_cache, preprocess", "prepared": "cache", "peer": "baseline",
    "peers": "baselines",
    "reference": "comparator, baseline", "stretch": "resize, anisotropy", "stretched": "resized",
    "keep": "coverage", "covered": "full_lung_rate",
    "wrongly": "misorient", "joint": "end_to_end", "squared": "mse", "correlation": "ncc",
    "agreement": "consistency", "facts": "metadata",
    "about": "metadata", "report": "metadata, counts", "repeat": "sweep", "decay": "ema_decay",
    "marks": "quantiles"}
ALLOWED = {     # name: why it may use such a word
    "square": "torch's square of a number", "repeat": "numpy's and torch's repetition",
    "weight_decay": "the optimiser's own term", "ema_decay": "the vocabulary's own word",
    "param_groups_weight_decay": "timm",
    "prepare_data": "Lightning's hook",
    "prepare_data_per_node": "Lightning's switch", "keep": "a selection of rows", "keep_ratio": "albumentations", "keep_default_na": "pandas",
    "keepdim": "torch",
    "report": "the chapter on print", "write_report": "report.html, which the command calls --report",
    "decay": "timm's argument of the averaged weights",
    "rotation_about": "a rotation about a point",
    "SetMetricAsCorrelation": "SimpleITK", "inPlace": "SimpleITK"}


def parts(name):
    "The words of an identifier: known_warps -> known, warps; FilmViews -> film, views"
    return [word.lower() for chunk in name.split("_")
            for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", chunk)]

def given_up(names):
    return sorted({f"{name} (say {GIVEN_UP[word]})" for name in names if name not in ALLOWED
                   for word in parts(name) if word in GIVEN_UP})

def identifiers(path):
    "All names of a module: variables, parameters, functions, classes, attributes, keywords"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for field in ("id", "attr", "arg", "name", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str): yield from value.split(".")

MODULES = sorted(p for p in (ROOT/"cxr_stn").rglob("*.py") if p.name != "_modidx.py")


def test_the_words_are_told_apart():
    assert given_up(["known_films", "PhantomFilms", "film", "filmography", "images", "repeat"]) == \
           ["PhantomFilms (say images)", "film (say image)", "known_films (say images)"]

@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(ROOT/"cxr_stn")) for p in MODULES])
def test_names_of_code(path): assert given_up(identifiers(path)) == []

def test_names_of_parameters():
    sets = [yaml.safe_load(p.read_text(encoding="utf-8")) or {}
            for p in (ROOT/"nbs"/"params").rglob("*.yaml")]
    assert given_up({name for values in sets for name in values}) == []

def test_names_of_columns():
    tables = sorted((ROOT/"results").rglob("*.csv"))
    assert len(tables) > 50
    assert given_up({name for path in tables for name in next(csv.reader(path.open(encoding="utf-8")))}) == []

def test_no_exception_is_kept_for_nothing():
    used = {name for path in MODULES for name in identifiers(path)}
    assert set(ALLOWED) - {"report"} <= used
