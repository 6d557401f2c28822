"""A source archive is whole: a wheel is built from it, elsewhere and without network, and holds all that the
package needs."""
import email, shutil, subprocess, sys, tarfile, zipfile

import pytest
from helpers import ROOT


def run(*words, cwd):
    "Run a command in a folder; its errors are the message when it fails"
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_sources(to):
    "The repository without git, results and what earlier builds left, which would add files to the archive"
    skip = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "nbs", "results",
                                  "runs", "tests")
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
    assert {*modules, "cxr_stn/py.typed", "cxr_stn/released/chest.safetensors"} <= set(wheel.namelist())
    assert wheel.read("cxr_stn/released/chest.safetensors") == \
        (ROOT/"cxr_stn/released/chest.safetensors").read_bytes()


def test_the_wheel_says_what_it_needs(wheel):
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"dev", "baselines", "data", "fast"} == set(metadata.get_all("Provides-Extra"))
    assert "fastcore>=1.7" in metadata.get_all("Requires-Dist")


def test_without_its_manifest_the_archive_cannot_be_built_from(tmp_path):
    "The test of the archive can fail: settings.ini is in it because MANIFEST.in names it"
    source, unpacked = copy_sources(tmp_path/"source"), tmp_path/"unpacked"
    (source/"MANIFEST.in").unlink()
    unpacked.mkdir()
    folder = make_sdist(source, unpacked)
    assert not (folder/"settings.ini").exists()
    with pytest.raises(AssertionError, match="lib_name"): make_wheel(folder, tmp_path)
