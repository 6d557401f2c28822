"""Installs cxr_stn from the one place that states its name, version and requirements: settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
readme = here / "README.md"

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
    extras_require={extra: settings[f"{key}_requirements"].split() for extra, key in
                    (("dev", "dev"), ("baselines", "baseline"), ("data", "data"), ("fast", "fast"))},
    entry_points={"nbdev": [f"{settings['lib_path']}={settings['lib_path']}._modidx:d"]},
    zip_safe=False,
)
