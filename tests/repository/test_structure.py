"""The house: imports run one way, modules and cells are short, the package executes no notebooks, every
default is stated once."""
import ast, importlib, re, statistics

import pytest, yaml
from helpers import ROOT, parameter_cell, read_cells

# read last, imported by everybody: their notebooks have the highest numbers
FOUNDATIONS = ("config", "runs")
NOTEBOOKS = sorted((ROOT/"nbs").glob("[0-9]*_*.ipynb"))
ORDER = {path.stem.split("_", 1)[1]: int(path.stem.split("_", 1)[0])
         for path in NOTEBOOKS} | {"config": -2, "runs": -1}

def module_file(name): return ROOT/"cxr_stn"/f"{name.replace('.', '/')}.py"
MODULES = [name for name in ORDER if module_file(name).exists()]

def imported(name, source):
    "The modules of this package that the source of a module imports, by their names"
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("cxr_stn")):
            base = package[:len(package) - node.level + 1] if node.level else []
            path = [*base, *(node.module or "").removeprefix("cxr_stn").strip(".").split(".")]
            whole = ".".join(part for part in path if part)
            named = [f"{whole}.{alias.name}".strip(".") for alias in node.names]
            yield from [whole] if whole in ORDER else named
        if isinstance(node, ast.Import):
            yield from (a.name[8:] for a in node.names if a.name.startswith("cxr_stn."))

def test_imports_are_told_apart():
    source = ("from ..data.cache import x\nfrom . import losses\nfrom cxr_stn.stn import warp\n"
              "import cxr_stn.phantom.dataset\nimport os")
    assert list(imported("aligner.training", source)) == \
        ["data.cache", "aligner.losses", "stn", "phantom.dataset"]

@pytest.mark.parametrize("name", MODULES)
def test_no_arrow_of_imports_runs_against_the_chapters(name):
    back = [other for other in imported(name, module_file(name).read_text())
            if ORDER.get(other, -3) >= ORDER[name]]
    assert back == [], f"{name} imports {back}, which come later"

def test_every_numbered_notebook_but_the_first_is_a_module():
    assert [p.name for p in NOTEBOOKS if not module_file(p.stem.split("_", 1)[1]).exists()] == \
        ["00_the_whole_method.ipynb"]
    assert len(MODULES) > 40

def test_no_module_is_long():
    lines = {name: len(module_file(name).read_text().splitlines()) for name in MODULES}
    assert {name: n for name, n in lines.items() if n > 530} == {}

def exported():
    "(notebook, number of lines) of every exported cell"
    for path in NOTEBOOKS:
        for cell in read_cells(path):
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and source.startswith("#| export"):
                yield path.name, len(source.splitlines()) - 1

def test_exported_cells_are_short():
    cells = list(exported())
    assert [cell for cell in cells if cell[1] > 40] == []
    assert sum(n <= 25 for _, n in cells) / len(cells) >= 0.9 and statistics.median(n for _, n in cells) <= 17

def test_the_package_executes_no_notebooks():
    "What the package does works from an installed wheel, where there are no notebooks"
    assert [name for name in MODULES if re.search(r"^\s*(import|from) (papermill|nbformat|nbclient)\b",
                                                  module_file(name).read_text(), re.M)] == []

PARAMETERS = dict(train="aligner.data.TrainParams", evaluate="evaluation.tables.EvaluateParams",
                  align="tool.align.AlignParams",
                  classify="classifier.training.ClassifyParams", compare="study.comparison.CompareParams",
                  simulation="study.simulation.SimulationParams",
                  experiments="study.report.ExperimentsParams", experts="study.experts.ExpertParams",
                  readers="study.readers.ReadersParams",
                  positioning="study.interaction.PositioningParams",
                  learning_curve="study.learning_curve.LearningCurveParams",
                  prepare="study.full_run.FullRunParams",
                  localisation="study.localisation.LocalisationParams")
# a tiny example of a table of runs, or other tables than those of the class
DEMONSTRATIONS = {"real": "study.report.ExperimentsParams", "sweep": "study.sweep.SweepParams",
                  "ablate": "evaluation.ablation.AblateParams"}

def parameters(notebook):
    "The assignments of a notebook's parameter cell: name -> value"
    body = ast.parse(parameter_cell(ROOT/"nbs"/f"{notebook}.ipynb")).body
    return {node.targets[0].id: ast.literal_eval(node.value) for node in body}

def params_class(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(f"cxr_stn.{module}"), name)

@pytest.mark.parametrize("notebook", PARAMETERS)
def test_every_default_is_stated_once(notebook):
    "The cell that papermill overrides holds all parameters of its class, each with the default of the class"
    fields = {name: field.default for name, field in params_class(PARAMETERS[notebook]).model_fields.items()}
    assert parameters(notebook) == fields

@pytest.mark.parametrize("notebook", DEMONSTRATIONS)
def test_a_demonstration_shows_every_parameter(notebook):
    assert set(parameters(notebook)) == set(params_class(DEMONSTRATIONS[notebook]).model_fields)

@pytest.mark.parametrize("path", sorted((ROOT/"nbs"/"params").rglob("*.yaml")), ids=lambda path: path.stem)
def test_parameter_sets_name_only_what_differs(path):
    """From the notebook that they are for: papermill puts them in place of what its cell says. The cell of a
    demonstration is an example, which says nothing about what is usual"""
    text = path.read_text(encoding="utf-8")
    notebook = re.search(r"for (\w+)\.ipynb", text)[1]
    cell = parameters(notebook)
    if notebook in DEMONSTRATIONS:
        fields = params_class(DEMONSTRATIONS[notebook]).model_fields
        cell = {name: value for name, value in cell.items() if fields[name].default == value}
    given = yaml.safe_load(text)
    assert [name for name in given if name in cell and cell[name] == given[name]] == []
