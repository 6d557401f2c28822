"""Every relative link and anchor leads somewhere, the check finds those that do not; README and its
images."""
import ast, importlib.util, re

import nbformat, pandas as pd, pytest
from helpers import ROOT

spec = importlib.util.spec_from_file_location("notebooks", ROOT/"tools"/"notebooks.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def test_no_link_of_the_repository_is_broken():
    documents = {str(p.relative_to(ROOT)) for p in tool.documents()}
    assert {"README.md", "nbs/index.ipynb", "results/README.md"} <= documents
    assert tool.broken_links() == []

@pytest.fixture
def small(tmp_path):
    "A repository of two pages and a notebook, all links whole"
    (tmp_path/"nbs").mkdir()
    (tmp_path/"pages").mkdir()
    (tmp_path/"pages"/"a.md").write_text("# One `page`: a, b\n\n## Twice\n\n## Twice\n\n"
                                         "```\n# no heading\n```\n<a id=\"spot\"></a>\n")
    (tmp_path/"README.md").write_text("# Top\n\n[a](pages/a.md#one-page-a-b) [t](pages/a.md#twice-1)\n"
                                      "[s](pages/a.md#spot) [top](#top) [web](https://a.b/c#d)\n"
                                      "![n](nbs/n.ipynb) [r][r]\n\n[r]: pages/a.md\n")
    cell = nbformat.v4.new_markdown_cell("# My title\n\n[a](../pages/a.md) [j](#My-title) [g](#my-title)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path/"nbs"/"n.ipynb")
    return tmp_path

def test_whole_links_are_left_alone(small): assert tool.broken_links(small) == []

@pytest.mark.parametrize("link, target", [
    ("[x](pages/none.md)", "pages/none.md"), ("![x](none.png \"title\")", "none.png"),
    ("[x](../outside.md)", "../outside.md"), ("<img src=\"none.png\">", "none.png"),
    ("[x]: none.md", "none.md"), ("[x](/none.md)", "/none.md"), ("[x](#none)", "#none"),
    ("[x](pages/a.md#none)", "pages/a.md#none"), ("[x](pages/a.md#twice-2)", "pages/a.md#twice-2"),
    ("[x](pages/a.md#no-heading)", "pages/a.md#no-heading"), ("[x](nbs/n.ipynb#none)", "nbs/n.ipynb#none")])
def test_a_planted_link_is_found(small, link, target):
    with open(small/"README.md", "a") as readme: readme.write(f"\n{link}\n")
    assert [(name, found) for name, found, _ in tool.broken_links(small)] == [("README.md", target)]

def test_a_planted_link_of_a_notebook_is_found(small):
    path = small/"nbs"/"n.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells += [nbformat.v4.new_markdown_cell("[x](none.ipynb)\n[y](../pages/a.md#none)"),
                 nbformat.v4.new_code_cell("'[z](no.md)'")]
    nbformat.write(nb, path)
    found = tool.broken_links(small)
    assert [(name, target) for name, target, _ in found] == [("nbs/n.ipynb", "none.ipynb"),
                                                             ("nbs/n.ipynb", "../pages/a.md#none")]

@pytest.mark.parametrize("code", ["`[x](none.md)`", "``[x](none.md) ` ``", "```\n[x](none.md)\n```",
                                  "~~~text\n[x](none.md)\n~~~"])
def test_code_holds_no_links(small, code):
    with open(small/"README.md", "a") as readme: readme.write(f"\n{code}\n")
    assert tool.broken_links(small) == []

def test_environments_and_runs_are_no_documents(small):
    for folder in ("runs", ".hidden", "env"):
        (small/folder).mkdir()
        (small/folder/"x.md").write_text("[x](none.md)")
    assert [name for name, *_ in tool.broken_links(small)] == ["env/x.md"]
    (small/"env"/"pyvenv.cfg").write_text("")
    assert tool.broken_links(small) == []

def test_check_names_file_and_link(monkeypatch, capsys):
    for name in ("differing", "differing_readme"): monkeypatch.setattr(tool, name, lambda: [])
    monkeypatch.setattr(tool, "broken_links", lambda: [("a.md", "none.md", "no such file")])
    with pytest.raises(SystemExit, match="1 broken"): tool.check()
    assert "a.md: broken link none.md (no such file)" in capsys.readouterr().out

def test_links_of_the_index_reach_the_same_files_from_the_readme():
    "`from_root` carries every link of nbs/index.ipynb to the file it names there"
    index = tool.relative_links(tool.markdown(ROOT/"nbs"/"index.ipynb"))
    readme = tool.relative_links(tool.from_root(tool.markdown(ROOT/"nbs"/"index.ipynb")))
    def reached(folder, links): return [(folder/t.split("#")[0]).resolve() for t in links if t[0] != "#"]
    assert len(index) > 10 and reached(ROOT/"nbs", index) == reached(ROOT, readme)


# --- reliability ---------------------------------------------------------------------------------------

def named_tests(text):
    "(file, function) of every test named as `tests/x/test_y.py::test_z`, or `::test_z` of the same file"
    file = None
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", text):
        file = path or file
        yield file, name

def missing_tests(text):
    "Named tests that do not exist"
    def there(file, name):
        tree = ast.parse((ROOT/file).read_text()) if (ROOT/file).is_file() else ast.Module([], [])
        return name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    return [pair for pair in named_tests(text) if not there(*pair)]

def test_every_guarantee_names_tests_that_exist():
    text = (ROOT/"RELIABILITY.md").read_text()
    assert len(list(named_tests(text))) > 20 and missing_tests(text) == []
    planted = "`tests/repository/test_links.py::test_none`, `::named_tests`"
    assert missing_tests(planted) == [("tests/repository/test_links.py", "test_none")]


# --- the README and its images -----------------------------------------------------------------------

def test_the_readme_is_short(): assert len((ROOT/"README.md").read_text().split()) <= 1300

@pytest.mark.parametrize("name, most", [("lungmask-dev/mean_before_after.png", 150_000),
                                        ("nih14-sample/before_after.png", 200_000),
                                        ("nih14-sample/stored_mirrored.png", 100_000)])
def test_images_of_real_images_are_small(name, most):
    assert 10_000 < (ROOT/"results"/name).stat().st_size < most

def test_figures_say_what_data_is_missing(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("figures", ROOT/"tools"/"figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    monkeypatch.delenv("CXR_STN_DATA", raising=False)
    with pytest.raises(SystemExit, match="CXR_STN_DATA is not set"): figures.data_folder()
    monkeypatch.setenv("CXR_STN_DATA", str(tmp_path))
    (tmp_path/"lungmask-dev").mkdir()
    with pytest.raises(SystemExit, match="no folder nih14-sample"): figures.data_folder()
    for name in ("nih14-sample", "nih14-sample-2"): (tmp_path/name).mkdir()
    assert figures.data_folder() == tmp_path


# --- tables of results/ that pages show ----------------------------------------------------------------

SHOWN = [("lungmask-dev", "masks.csv", ["images", "dice", "dice_p5", "dispersion", "full_lung_rate",
                                        "failures"]),
         ("lungmask-dev", "lung_maps.csv", ["images", "dice", "dice_p5", "missed", "extra"]),
         ("lungmask-dev", "seeds/masks.csv", ["images", "dice", "dice_p5", "dispersion", "full_lung_rate"]),
         ("nih14-sample", "synthetic_warps.csv", ["images", "median_share", "failed"]),
         ("nih14-sample", "orientation.csv", ["images", "recognised", "restored", "called_mirrored",
                                              "called_inverted",
                                        "called_flagged"]),
         ("nih14-sample", "confidence.csv", ["auroc", "flagged_good", "flagged_bad"]),
         ("phantom", "poses.csv", ["images", "corner_mean", "corner_median", "degrees", "log_scale"]),
         ("ablation", "summary.csv", ["runs", "dice_mean", "dice_min", "dice_max", "dispersion_mean",
                                      "full_lung_rate_mean",
                                      "corner_error_mean"])]

def shown_rows(text):
    "(name, numbers) of all rows of tables that hold a name and then numbers"
    for line in text.splitlines():
        name, *rest = [part.strip() for part in line.strip("| ").split(" | ")]
        try: yield name, [float(part) for part in rest]
        except ValueError: pass

@pytest.mark.parametrize("folder, name, columns", SHOWN, ids=[f"{f}/{n}" for f, n, _ in SHOWN])
def test_pages_show_the_numbers_of_their_tables(folder, name, columns):
    rows = list(shown_rows((ROOT/"results"/folder/"README.md").read_text()))
    table = pd.read_csv(ROOT/"results"/folder/name, index_col=0)
    for row, numbers in table[columns].iterrows():
        wanted = pytest.approx(list(numbers), abs=0.00051)
        assert any(n == row and len(v) == len(columns) and v == wanted for n, v in rows), \
            f"{row}: {list(numbers)}"
