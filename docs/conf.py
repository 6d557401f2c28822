"""How the site is made: `make docs`. Its source folder is the repository itself, so that relative links of
notebooks and pages lead where they lead there. Notebooks are shown as they were executed."""
import inspect, json, re, sys
from configparser import ConfigParser
from pathlib import Path

from fastcore.docments import docments
from numpy.typing import ArrayLike

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
parser = ConfigParser(delimiters=["="])
parser.read(ROOT/"settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

project, author, copyright = settings["title"], settings["author"], settings["copyright"]
version = release = settings["version"]
root_doc = "docs/index"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx-mathjax-offline"]
include_patterns = ["**.md", "docs/api/*.rst", "nbs/*.ipynb"]
exclude_patterns = ["_docs", "runs", "build", "dist", "tests", "tools", "benchmarks", "*venv*", ".*", "**/.*"]
suppress_warnings = ["toc.not_included"]   # verdicts and tables of results/ are reached by links
nb_execution_mode, nb_merge_streams = "off", True
myst_enable_extensions, myst_heading_anchors = ["dollarmath"], 4
default_role, highlight_language = "code", "none"
autodoc_member_order = "bysource"
autodoc_typehints, autodoc_typehints_description_target = "description", "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
toc_object_entries_show_parents = "hide"

html_theme, html_title = "furo", project
templates_path = html_static_path = ["site"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "to_front_page.html"}
html_copy_source = html_show_sphinx = False


# --- a page for each module of the tool ---------------------------------------------------------------

MODULES = ["inference", "aligned", "geometry", "stn", "resampling", "data/images", "data/dicom*",
           "aligner/batch", "tool/*", "adapters/*", "cli", "report*", "study/compare", "config", "runs"]


def write_module_pages(app):
    "docs/api/MODULE.rst; what is not new is not written, so that a second build is quick"
    folder = ROOT/"docs"/"api"
    folder.mkdir(exist_ok=True)
    files = [path for name in MODULES for path in (ROOT/"cxr_stn").glob(f"{name}.py") if path.stem[0] != "_"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    pages = {folder/f"{name}.rst": f"{name[8:]}\n{'=' * len(name)}\n\n.. automodule:: {name}\n"
             for name in names}
    for path in set(folder.glob("*")) - set(pages): path.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text() != text: path.write_text(text)


# --- docstrings, with the comments behind arguments, fields and results, which say shapes and units ------

def escape(text):
    "Plain text as reStructuredText: only `code` is markup"
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = [re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def mark_up(lines):
    "A docstring, in which what is indented is code"
    for before, line in zip(["", *lines], lines):
        code, inside = line.startswith("    "), before.startswith("    ")
        if code and not before: yield from ("::", "")
        yield line if code or inside and not line else escape(line)


def comments(obj):
    "(name, comment, type or None) of arguments, of fields, and of the result, which is called return"
    if hasattr(obj, "model_fields"):
        fields = obj.model_fields.items()
        yield from ((name, field.description, None) for name, field in fields if field.description)
    elif inspect.isclass(obj) and (fields := getattr(obj, "__annotations__", {})):
        found = re.findall(r"^    (\w+):.*?#\s*(.+)$", inspect.getsource(obj), flags=re.M)
        yield from ((name, text, None) for name, text in found if name in fields)
    else:
        try: found = docments(obj, full=True)
        except (TypeError, OSError, SyntaxError): found = {}
        for name, said in found.items():
            if isinstance(said, dict) and said.get("docment"):
                yield name, said["docment"], "ArrayLike" if said.get("anno") == ArrayLike else None


def add_comments(app, what, name, obj, options, lines):
    "The docstring of an object as reStructuredText, its comments as a list of fields"
    lines[:] = [*mark_up(list(lines)), ""]
    if what not in ("function", "method", "class"): return
    for argument, text, type in comments(obj):
        field = ":returns:" if argument == "return" else f":param {argument}:"
        lines.append(f"{field} {escape(' '.join(text.split()))}")
        if type: lines.append(f":type {argument}: {type}")


def skip_alias(app, what, name, obj, skip, options):
    "Fields of a NamedTuple are in the list of its fields; how pydantic is set is of no interest"
    alias = (inspect.getdoc(obj) or "").startswith("Alias for field number")
    return True if alias or name == "model_config" else None


def without_directives(notebook):
    """The JSON text of a notebook without nbdev's directives, such as `#| export`, and without cells of which
    nothing is left"""
    nb = json.loads(notebook)
    for cell in nb["cells"]: cell["source"] = [line for line in cell["source"] if not line.startswith("#|")]
    nb["cells"] = [cell for cell in nb["cells"] if "".join(cell["source"]).strip()]
    return json.dumps(nb, ensure_ascii=False)


def relink(app, name, source):
    "Anchors of notebooks in GitHub's form; links to folders lead to the repository"
    def to_folder(link):
        folder = (ROOT/name).parent/link[1]
        if not link[1] or not folder.is_dir(): return link[0]
        path = folder.resolve().relative_to(ROOT).as_posix()
        return f"]({settings['git_url']}/tree/{settings['branch']}/{path})"
    text = without_directives(source[0]) if (ROOT/f"{name}.ipynb").exists() else source[0]
    text = re.sub(r"(\]\([\w./]*#)([\w-]+)(?=\))", lambda link: link[1] + link[2].lower(), text)
    source[0] = re.sub(r"\]\(([\w./-]*)\)", to_folder, text)


def setup(app):
    app.connect("builder-inited", write_module_pages)
    app.connect("autodoc-process-docstring", add_comments)
    app.connect("autodoc-skip-member", skip_alias)
    app.connect("source-read", relink)
