"""Installs cxr_stn from the one place that states its name, version and requirements: settings.ini."""
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
readme = here / "README.md"
extras = {name: settings[f"{name}_requirements"].split()
          for name in ("study", "compare", "dicom", "monai", "itk", "docs", "baselines", "data", "dev")}
extras["dev"] += [r for name in ("study", "compare", "dicom", "monai", "itk", "docs") for r in extras[name]]


class BuildWithNotebooks(build_py):
    """A wheel carries the study's notebooks and their parameter sets, for `cxr-stn notebooks`."""
    def run(self):
        super().run()
        if self.editable_mode: return
        target, source = Path(self.build_lib) / settings["lib_name"] / "notebooks", here / "nbs"
        chosen = [*source.glob("00_*.ipynb"), *source.glob("[a-z]*.ipynb"), *source.glob("params/**/*.*")]
        for path in chosen:
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            if path.stem != "index": shutil.copyfile(path, to)


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    keywords=settings["keywords"],
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    packages=find_packages(include=[settings["lib_path"], settings["lib_path"] + ".*"]),
    package_data={settings["lib_path"]: ["released/*", "py.typed"]},
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={"nbdev": [f"{settings['lib_path']}={settings['lib_path']}._modidx:d"],
                  "console_scripts": [f"cxr-stn={settings['lib_path']}.cli:main"]},
    cmdclass={"build_py": BuildWithNotebooks},
    zip_safe=False,
)
