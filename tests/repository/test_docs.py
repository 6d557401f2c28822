"""The site: it is built without a warning, its links lead somewhere, its commands are commands, and shapes
and units reach the pages of the modules."""
import importlib.util, re, shutil, subprocess, sys

import pytest
from helpers import ROOT

from cxr_stn.aligned import Aligned, map_points
from cxr_stn.cli import COMMANDS, parse_options
from cxr_stn.study.compare import CompareFilesParams

spec = importlib.util.spec_from_file_location("conf", ROOT/"docs"/"conf.py")
conf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conf)

TASKS = sorted((ROOT/"docs"/"tasks").glob("*.md"))


def test_the_four_tasks_are_there():
    assert [path.stem for path in TASKS] == ["dicom", "folder", "monai", "results_back"]

def commands():
    "Every call of the command on a page, in its shell blocks or its scripts, with K/N for the shard"
    for path in [ROOT/"docs"/"index.md", *TASKS]:
        blocks = re.findall(r"^```(?:bash|python)?\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
        for line in re.findall(r"cxr-stn ([^\"\n]*)", "\n".join(blocks).replace("\\\n", "")):
            yield path.name, re.sub(r"(--shard) .*", r"\1 3/40", line)

def test_the_commands_on_the_pages_are_commands():
    found = list(commands())
    assert {name for name, _ in found} >= {"index.md", "folder.md", "dicom.md", "results_back.md"}
    assert sum("--shard 3/40" in line for _, line in found) == 3
    for _, line in found:
        name, *words = line.split()
        parse_options(name, COMMANDS[name], words)

def test_comments_reach_the_pages():
    said = {name: text for name, text, _ in conf.comments(map_points)}
    assert said["points"] == "(N, 2) x, y of pixel centres" and said["return"] == "(N, 2) float64"
    fields = {name: text for name, text, _ in conf.comments(Aligned)}
    assert fields["image"].startswith("(h, w) or (h, w, C)") and "original_shape" in fields
    options = {name: text for name, text, _ in conf.comments(CompareFilesParams)}
    assert options["level"].startswith("of confidence")

def test_docstrings_are_plain_text():
    assert conf.escape("a * b, label_ and `code_ * |`") == r"a \* b, label\_ and `code_ * |`"
    lines = ["Do it:", "", "    f(*x)", "", "Done."]
    assert list(conf.mark_up(lines)) == ["Do it:", "", "::", "", "    f(*x)", "", "Done."]

def test_directives_and_what_is_left_empty_are_not_shown():
    cells = '{"source": ["#| default_exp x"]}, {"source": ["#| export\\n", "x = 1"]}'
    assert conf.without_directives(f'{{"cells": [{cells}]}}') == '{"cells": [{"source": ["x = 1"]}]}'

def build(source, to):
    "The finished process of a build with warnings as errors"
    for module in ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline"):
        pytest.importorskip(module, reason=f"{module} is missing (extra docs)")
    words = ["-W", "--keep-going", "-q", "-c", "docs", "-d", to/"doctrees", ".", to/"html"]
    return subprocess.run([sys.executable, "-m", "sphinx", *map(str, words)], cwd=source, capture_output=True,
                          text=True)

@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    done = build(ROOT, tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    html = tmp_path/"html"
    assert "docs/index.html" in (html/"index.html").read_text()
    for path in [*(ROOT/"nbs").glob("*.ipynb"), *TASKS]:
        assert (html/path.relative_to(ROOT)).with_suffix(".html").is_file(), path.name
    page = (html/"docs"/"api"/"cxr_stn.inference.html").read_text()
    assert "uint8, uint16" in page and "(3, 3)" in page
    whole = (html/"nbs"/"00_the_whole_method.html").read_text()
    assert 'href="33_aligner.losses.html"' in whole and "#| export" not in whole and "<img" in whole

@pytest.mark.slow
@pytest.mark.parametrize("line, code", [("[x](api.md)", 0), ("[x](none.md)", 1), ("[x](api.md#none)", 1)])
def test_a_broken_link_is_an_error(tmp_path, line, code):
    source = tmp_path/"source"
    shutil.copytree(ROOT/"docs", source/"docs", ignore=shutil.ignore_patterns("tasks", "api", "*.md"))
    shutil.copy(ROOT/"settings.ini", source)
    (source/"docs"/"index.md").write_text(f"# Site\n\n{line}\n\n```{{toctree}}\napi\n```\n")
    (source/"docs"/"api.md").write_text("# Modules\n")
    done = build(source, tmp_path)
    assert done.returncode == code, done.stderr
