"""A source archive is whole: a wheel is built from it, elsewhere and without network, and holds all that the
package needs."""
import email, os, shutil, subprocess, sys, tarfile, zipfile

import pytest
from helpers import ROOT

from cxr_stn.data.images import write_png
from cxr_stn.phantom.dataset import Phantom


def run(*words, cwd):
    "Run a command in a folder; its errors are the message when it fails"
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_sources(to):
    "The repository without git, results and what earlier builds left, which would add files to the archive"
    skip = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "results", "runs",
                                  "tests")
    return shutil.copytree(ROOT, to, ignore=skip)


def make_sdist(source, to):
    "Build the source archive and unpack it in `to`: the one folder that is in it"
    run(sys.executable, "setup.py", "-q", "sdist", "-d", to, cwd=source)
    [archive] = to.glob("*.tar.gz")
    with tarfile.open(archive) as file: file.extractall(to, filter="data")
    [folder] = [path for path in to.iterdir() if path.is_dir()]
    return folder


def make_wheel(source, to):
    "Build the wheel of a folder with the setuptools of this environment"
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation",
        "-w", to, source, cwd=to)
    [wheel] = to.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    "The unpacked source archive"
    folder = tmp_path_factory.mktemp("sdist")
    return make_sdist(copy_sources(folder/"source"), tmp_path_factory.mktemp("unpacked"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    "The wheel that is built from the source archive"
    with make_wheel(sdist, tmp_path_factory.mktemp("wheel")) as file: yield file


def test_the_archive_holds_what_setup_reads(sdist):
    for name in ("settings.ini", "README.md", "LICENSE", "pyproject.toml", "setup.py"):
        assert (sdist/name).is_file(), name


def test_the_wheel_holds_the_package(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT/"cxr_stn").rglob("*.py")}
    assert len(modules) > 50
    released = [f"cxr_stn/released/chest{ending}" for ending in (".onnx", ".safetensors")]
    assert {*modules, "cxr_stn/py.typed", *released} <= set(wheel.namelist())
    for name in released: assert wheel.read(name) == (ROOT/name).read_bytes()
    notebooks = {"train.ipynb", "align.ipynb", "00_the_whole_method.ipynb", "params/nih.yaml"}
    assert {f"cxr_stn/notebooks/{name}" for name in notebooks} <= set(wheel.namelist())


def test_the_wheel_says_what_it_needs(wheel):
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Requires-Python"] == ">=3.11"
    extras = {"study", "compare", "dicom", "monai", "itk", "docs", "baselines", "data", "dev"}
    assert extras == set(metadata.get_all("Provides-Extra"))
    base = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert "onnxruntime>=1.19" in base and not [line for line in base
                                                if line.startswith(("torch", "jupyter"))]


NOT_THERE = ["torch", "torchvision", "pytorch_lightning", "timm", "albumentations", "jupyter", "papermill",
             "scipy",
             "matplotlib", "seaborn", "sklearn", "pyarrow", "safetensors", "pydicom"]
ALIGN = """import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split()))  # what is None there cannot be imported
import cxr_stn
assert cxr_stn.__file__.startswith(sys.argv[2]), cxr_stn.__file__
from cxr_stn.cli import main
sys.exit(main(["align", "-i", "radiographs", "-o", "aligned", "--report"]))
"""

def test_the_wheel_aligns_from_an_empty_folder_without_the_extras(wheel, tmp_path):
    site, phantom = tmp_path/"site", Phantom(n_images=3, size=96, seed=1)
    wheel.extractall(site)
    (tmp_path/"empty"/"radiographs").mkdir(parents=True)
    for i in range(3): write_png(tmp_path/"empty"/"radiographs"/f"{i}.png", phantom[i].image)
    done = subprocess.run([sys.executable, "-c", ALIGN, " ".join(NOT_THERE), str(site)], cwd=tmp_path/"empty",
                          env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 aligned, 0 flagged, 0 failed" in done.stdout + done.stderr
    assert (tmp_path/"empty"/"aligned"/"report.html").is_file()


def test_without_its_manifest_the_archive_cannot_be_built_from(tmp_path):
    "The test of the archive can fail: settings.ini is in it because MANIFEST.in names it"
    source, unpacked = copy_sources(tmp_path/"source"), tmp_path/"unpacked"
    (source/"MANIFEST.in").unlink()
    unpacked.mkdir()
    folder = make_sdist(source, unpacked)
    assert not (folder/"settings.ini").exists()
    with pytest.raises(AssertionError, match="study_requirements"): make_wheel(folder, tmp_path)
