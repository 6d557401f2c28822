"""What a developer does with the notebooks: execute them, make README.md, check that all is in sync.

    python tools/notebooks.py execute [NAME ...]   execute notebooks in place (all of them, index last)
    python tools/notebooks.py readme               make README.md from nbs/index.ipynb
    python tools/notebooks.py check                fail unless modules, notebooks and README.md are in sync
                                                   and every relative link and #anchor leads somewhere
"""
import argparse, filecmp, os, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path
from urllib.parse import unquote

import nbformat

ROOT = Path(__file__).resolve().parent.parent
STUDY = ["train", "evaluate", "align", "classify", "compare"]  # in the order in which they are used
FIGURES = Path("nbs/index_files")                              # the pictures of README.md


def notebooks(root=ROOT):
    "All notebooks: modules by number, then the study, then the rest, the index last"
    def place(path):
        name = path.stem
        return (0 if name[:1].isdigit() else 1 if name in STUDY else 3 if name == "index" else 2,
                STUDY.index(name) if name in STUDY else 0, name)
    return sorted((p for p in (root/"nbs").glob("*.ipynb") if not p.name.startswith((".", "_"))), key=place)


# --- execute -------------------------------------------------------------------------------------------

def readable(output):
    """Whether an output is worth keeping: progress bars and warnings carry times and paths, widgets cannot be
    read"""
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return not widget and not (output["output_type"] == "stream" and output["name"] == "stderr")

def complaints(cell):
    "What a cell wrote to the error stream"
    return "".join(o["text"] for o in cell.get("outputs", []) if o["output_type"] == "stream"
                   and o["name"] == "stderr")

def execute(path):
    "Execute one notebook in place, in its own folder; on failure it stays as it was"
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    nb, now = nbformat.read(path, as_version=4), {}
    for cell in nb.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
    client = NotebookClient(nb, timeout=None, kernel_name="python3",
                            resources={"metadata": {"path": str(path.parent)}},
                            on_cell_start=lambda cell, cell_index: now.update(index=cell_index, id=cell.id))
    try: client.execute()
    except (CellExecutionError, DeadKernelError) as e:
        raise SystemExit(f"{path.name}, cell {now.get('index')} (id {now.get('id')}) failed; "
                         f"the notebook was left as it was.\n{e}") from None
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        if text := complaints(cell):
            print(f"  {path.name}, cell {cell.id}, error stream (not kept):\n{text.rstrip()}")
        cell.outputs = [o for o in cell.outputs if readable(o)]
    part = path.with_name(f".part-{path.name}")
    try:
        nbformat.write(nb, part)
        os.replace(part, path)
    finally: part.unlink(missing_ok=True)

def execute_all(names):
    "Execute all notebooks, or those that are named"
    wanted, todo = {Path(n).name.removesuffix(".ipynb") for n in names}, notebooks()
    unknown = wanted - {p.stem for p in todo}
    if unknown: raise SystemExit(f"no such notebook in nbs/: {', '.join(sorted(unknown))}")
    todo = [p for p in todo if not wanted or p.stem in wanted]
    for i, path in enumerate(todo, 1):
        print(f"[{i}/{len(todo)}] {path.name} ...", flush=True)
        start = time.time()
        execute(path)
        print(f"[{i}/{len(todo)}] {path.name} executed in {time.time() - start:.0f} s", flush=True)


# --- links ---------------------------------------------------------------------------------------------

CODE = (r"(^ {0,3}```.*?^ {0,3}```[ \t]*$|^ {0,3}~~~.*?^ {0,3}~~~[ \t]*$|"   # blocks
        r"(?<!`)(?P<ticks>`+)(?!`)[^\n]*?(?<!`)(?P=ticks)(?!`))")             # spans
LINK = r"(\]\(<?)([^)\s>]+)(>?(?:\s+\"[^\"]*\")?\))"        # [text](target "title")
ATTRIBUTE = r"((?:src|href)=\")([^\"]+)(\")"
DEFINED = r"(^ {0,3}\[[^\]\n]+\]:\s+<?)(\S+?)(>?(?:\s.*)?$)"    # [text]: target
NO_DOCUMENTS = {"runs", "build", "dist", "_proc", "_docs"}     # folders that git ignores
ELSEWHERE = r"[a-zA-Z][a-zA-Z+.-]*:|//"                        # https:, mailto:, attachment:

def outside_code(text, change):
    "A text whose parts outside of code spans and blocks are changed"
    parts, at = [], 0
    for code in re.finditer(CODE, text, re.M | re.S):
        parts += [change(text[at:code.start()]), code.group(0)]
        at = code.end()
    return "".join([*parts, change(text[at:])])

def markdown(path):
    "The markdown of a notebook or of a .md file"
    if path.suffix != ".ipynb": return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(c.source for c in cells if c.cell_type == "markdown")

def relative_links(text):
    "Targets of links and pictures outside of code, those with a scheme left out"
    prose = re.sub(CODE, "", text, flags=re.M | re.S)
    found = [m.group(2) for form in (LINK, ATTRIBUTE, DEFINED) for m in re.finditer(form, prose, re.M)]
    return [target for target in dict.fromkeys(found) if not re.match(ELSEWHERE, target)]

def anchors(path):
    "What `#...` may name in a file: its headings as GitHub (and, in notebooks, Jupyter) names them, and ids"
    text, seen = markdown(path), {}
    prose = re.sub(r"^ {0,3}(```|~~~).*?^ {0,3}\1[ \t]*$", "", text, flags=re.M | re.S)
    names = set(re.findall(r"<[^>]*\b(?:id|name)=\"([^\"]+)\"", re.sub(CODE, "", text, flags=re.M | re.S)))
    for heading in re.findall(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*$", prose, re.M):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower().replace("*", "").replace("`", "")).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        names.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        if path.suffix == ".ipynb": names.add(plain.replace(" ", "-"))
    return names

def leads_nowhere(path, target, root):
    "Why a relative link of a file leads nowhere, or an empty text"
    file, _, anchor = unquote(target).partition("#")
    file = file.partition("?")[0]
    there = path if not file else root/file.lstrip("/") if file.startswith("/") else path.parent/file
    there = Path(os.path.normpath(there))
    if not there.is_relative_to(root): return "leaves the repository"
    if not there.exists(): return "no such file"
    if not anchor or there.suffix not in (".md", ".ipynb") or anchor in anchors(there): return ""
    return f"no heading of that name in {there.relative_to(root)}"

def documents(root=ROOT):
    "All .md files and notebooks of the repository; environments, runs and hidden folders are not part of it"
    for folder, below, files in os.walk(root):
        below[:] = sorted(d for d in below if not d.startswith(".") and d not in NO_DOCUMENTS
                          and not (Path(folder)/d/"pyvenv.cfg").exists())
        yield from (Path(folder)/f for f in sorted(files) if f.endswith((".md", ".ipynb")) and f[0] != ".")

def broken_links(root=ROOT):
    "(file, link, reason) of every relative link or anchor that leads nowhere"
    return [(str(path.relative_to(root)), target, why) for path in documents(root)
            for target in relative_links(markdown(path)) if (why := leads_nowhere(path, target, root))]


# --- readme --------------------------------------------------------------------------------------------

def from_root(text):
    "Links relative to nbs/ become links relative to the root, outside of code"
    def link(match):
        before, target, after = match.groups()
        if re.match(rf"{ELSEWHERE}|[#/]", target): return match.group(0)
        return before + os.path.normpath(os.path.join("nbs", target)).replace(os.sep, "/") + after
    def relinked(prose):
        for form in (LINK, ATTRIBUTE, DEFINED): prose = re.sub(form, link, prose, flags=re.M)
        return prose
    return outside_code(text, relinked)

def shown(nb):
    """The cells of a notebook as a reader should see them: `#| hide` and `#| echo: false` obeyed, directives
    gone"""
    keep = []
    for cell in nb.cells:
        if cell.cell_type == "code":
            directives = re.findall(r"^#\|\s*(.*?)\s*$", cell.source, re.M)
            if "hide" in directives or any(d.startswith("default_exp") for d in directives): continue
            code = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
            cell.source = "" if "echo: false" in directives else code
            cell.outputs = [o for o in cell.outputs if readable(o)]
            if not cell.source and not cell.outputs: continue
        keep.append(cell)
    nb.cells = keep
    return nb

def readme(root=ROOT):
    "README.md and its pictures, as a dictionary from path (relative to the root) to bytes"
    from nbconvert import MarkdownExporter
    from traitlets.config import Config
    index = root/"nbs"/"index.ipynb"
    if not index.exists(): raise SystemExit("nbs/index.ipynb is not there; README.md is made from it")
    nb = shown(nbformat.read(index, as_version=4))
    nb.metadata["language_info"] = {"name": "python"}  # nbdev_clean drops it; it colours the code
    pictures_as = {"enabled": True, "output_filename_template": "fig_{cell_index}_{index}{extension}"}
    text, resources = MarkdownExporter(
        config=Config(ExtractOutputPreprocessor=pictures_as)).from_notebook_node(nb)
    pictures = resources.get("outputs", {})
    for name in pictures: text = text.replace(f"({name})", f"({FIGURES.name}/{name})")
    text = re.sub(r"<style.*?</style>\n?", "", from_root(text), flags=re.S)
    text = re.sub(r"^```python\s*```\n", "", text, flags=re.M)  # cells that show their result only
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip() + "\n"
    note = "<!-- made from nbs/index.ipynb by `make readme`; edit the notebook -->\n\n"
    return {Path("README.md"): (note + text).encode(), **{FIGURES/n: data for n, data in pictures.items()}}

def differing_readme(root=ROOT):
    "Files of README.md that are missing, stale, or left over"
    made = readme(root)
    wrong = [p for p, data in made.items() if not (root/p).is_file() or (root/p).read_bytes() != data]
    left = [p.relative_to(root) for p in (root/FIGURES).glob("*") if p.relative_to(root) not in made]
    return [str(p) for p in wrong + left]

def write_readme(root=ROOT):
    "Write README.md and its pictures, and remove those of earlier ones"
    made = readme(root)
    shutil.rmtree(root/FIGURES, ignore_errors=True)
    for path, data in made.items():
        (root/path).parent.mkdir(parents=True, exist_ok=True)
        (root/path).write_bytes(data)
    print(f"README.md made from nbs/index.ipynb, with {len(made) - 1} pictures")


# --- check ---------------------------------------------------------------------------------------------

def copy_of(root, to):
    "Copy what nbdev needs: settings, notebooks, modules"
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".part-*")
    for name in ("nbs", "cxr_stn"): shutil.copytree(root/name, to/name, ignore=skip)
    for name in ("settings.ini", "pyproject.toml", "setup.py"): shutil.copy(root/name, to/name)

def nbdev(command, root):
    "Run an nbdev command of this Python's environment in a folder"
    script = shutil.which(command, path=str(Path(sys.executable).parent)) or command
    done = subprocess.run([script], cwd=root, capture_output=True, text=True)
    if done.returncode: raise SystemExit(f"{command} failed:\n{done.stdout}{done.stderr}")

def differing(root=ROOT):
    """Files that `nbdev_export` and `nbdev_clean` would change, make or remove.

    They run on a copy, so that a check never changes what it checks and works in a tree with unsaved work
    just as in a clean clone; there, a file that differs from the copy is a file that would differ from git.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)/root.name
        copy.mkdir()
        copy_of(root, copy)
        for module in (copy/"cxr_stn").rglob("*.py"):
            if module.name != "__init__.py": module.unlink()
        nbdev("nbdev_export", copy)
        nbdev("nbdev_clean", copy)
        names = {p.relative_to(r) for r in (root, copy) for d, end in (("nbs", "ipynb"), ("cxr_stn", "py"))
                 for p in (r/d).rglob(f"*.{end}") if not p.name.startswith(".")}
        files = lambda n: (root/n).is_file() and (copy/n).is_file()
        same = lambda n: files(n) and filecmp.cmp(root/n, copy/n, shallow=False)
        return sorted(str(n) for n in names if not same(n))

def check():
    "Say what is not in sync, and fail"
    wrong = differing()
    for name in wrong:
        print(f"  {name} is not what nbdev_export and nbdev_clean make, or belongs to no notebook")
    stale = differing_readme()
    for name in stale: print(f"  {name} is not what `make readme` makes of nbs/index.ipynb")
    broken = broken_links()
    for name, target, why in broken: print(f"  {name}: broken link {target} ({why})")
    if wrong or stale:
        raise SystemExit("not in sync: run `make export readme`, look at the changes, and commit them")
    if broken: raise SystemExit(f"{len(broken)} broken links")
    print(f"modules, {len(notebooks())} notebooks and README.md are in sync; every link leads somewhere")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["execute", "readme", "check"])
    parser.add_argument("names", nargs="*", help="notebooks to execute, if not all")
    args = parser.parse_args()
    {"execute": lambda: execute_all(args.names), "readme": write_readme, "check": check}[args.task]()
