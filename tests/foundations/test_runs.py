"""What the core promises when processes are killed, disks are full and several start at once."""
import os, signal, subprocess
from pathlib import Path

import nbformat, pytest
from helpers import papermill, python

from cxr_stn.config import input_path, ParameterError, Params, project_root
from cxr_stn.runs import atomic_path, atomic_write, claim, Run


def litter(folder): return [p.name for p in Path(folder).iterdir() if p.name.startswith(".")]


# --- whole files ---------------------------------------------------------------------------------------

def test_killed_while_writing_leaves_the_old_file(tmp_path):
    file = tmp_path/"weights.bin"
    atomic_write(file, b"old")
    writer = python(f"""
        from cxr_stn.runs import atomic_path
        with atomic_path({str(file)!r}) as part:
            with open(part, "wb") as f:
                f.write(b"n" * 1000); f.flush()
                print("half way", flush=True)
                input()
        """)
    assert writer.stdout.readline().strip() == "half way"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert file.read_bytes() == b"old"
    assert len(litter(tmp_path)) == 1, "the half file has a name of its own"
    (tmp_path/"checkpoints").mkdir()
    (tmp_path/"checkpoints"/".part-0-last.ckpt").write_text("half")
    with Run(tmp_path, {}):
        assert sorted(litter(tmp_path)) == [".lock", ".owner.json"], "the next run sweeps it away"
    assert litter(tmp_path/"checkpoints") == []

def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (order.append("synced"), fsync(f))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("renamed"), replace(a, b))[1])
    atomic_write(tmp_path/"table.csv", "1")
    assert order == ["synced", "renamed"]

def test_full_disk_is_named_and_harmless(tmp_path):
    file = tmp_path/"table.csv"
    atomic_write(file, "old")
    writer = python(f"""
        import resource, signal
        from cxr_stn.runs import atomic_write
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        atomic_write({str(file)!r}, "new" * 1000)
        """)
    _, err = writer.communicate()
    assert writer.returncode == 1 and f"cannot write {file}" in err
    assert file.read_text() == "old" and litter(tmp_path) == []

def test_read_only_folder(tmp_path):
    writer = python(f"""
        import os
        from cxr_stn.runs import atomic_write
        os.chdir({str(tmp_path)!r})
        os.chmod(".", 0o555)
        if os.geteuid() == 0: os.seteuid(65534)  # permissions do not bind the superuser
        try: atomic_write("x", "x")
        except PermissionError as e: print(e)
        """)
    out, err = writer.communicate()
    assert "cannot write x: Permission denied" in out, err
    assert litter(tmp_path) == []

def test_names_as_long_as_a_file_system_allows(tmp_path):
    for name in ("肺" * 85, "é" * 127 + "x", "x" * 255, os.fsdecode(b"\xff" * 255)):
        assert len(os.fsencode(name)) == 255
        atomic_write(tmp_path/name, "whole")
        assert (tmp_path/name).read_text() == "whole" and litter(tmp_path) == []

def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path/"f").write_text("x")
    with pytest.raises(OSError, match="cannot write"): atomic_write(tmp_path/"f"/"x", "x")

def test_whole_folders_and_nothing_written(tmp_path):
    with atomic_path(tmp_path/"cache") as part:
        part.mkdir()
        (part/"a").write_text("a")
    assert (tmp_path/"cache"/"a").read_text() == "a"
    with pytest.raises(FileNotFoundError, match="nothing was written for"):
        with atomic_path(tmp_path/"x"): pass
    assert litter(tmp_path) == []


# --- one run in a directory ----------------------------------------------------------------------------

HOLD = """
    from cxr_stn.runs import Run
    try: run = Run({folder!r}, dict(lr=1))
    except OSError as e: print("refused", e, flush=True)
    else:
        print("running", flush=True)
        input()
    """

def test_second_process_is_refused_and_a_killed_one_succeeded(tmp_path):
    first = python(HOLD.format(folder=str(tmp_path)))
    assert first.stdout.readline().strip() == "running"
    second = python(HOLD.format(folder=str(tmp_path)))
    out, err = second.communicate("\n")
    assert out.startswith("refused another run is writing to") and str(first.pid) in out, err
    first.kill()
    first.communicate()
    assert sorted(litter(tmp_path)) == [".lock", ".owner.json"], "a killed process cannot tidy up"
    with Run(tmp_path, dict(lr=1)) as run: assert run.restarted
    assert litter(tmp_path) == []

def test_of_many_that_find_a_stale_lock_one_wins(tmp_path):
    for name in (".lock", ".owner.json"):
        (tmp_path/name).write_text("left behind by a process that was killed")
    crowd = [python(HOLD.format(folder=str(tmp_path))) for _ in range(6)]
    said = [p.stdout.readline().split()[0] for p in crowd]
    for p in crowd: p.communicate("\n")
    assert sorted(said) == ["refused"] * 5 + ["running"]
    assert litter(tmp_path) == []

def test_a_forked_child_does_not_give_up_the_lock(tmp_path):
    parent = python(f"""
        import os
        from cxr_stn.runs import Run
        run = Run({str(tmp_path)!r}, {{}})
        child = os.fork()
        if child == 0: run.close(); os._exit(0)
        os.waitpid(child, 0)
        print((run.path/".lock").exists(), flush=True)
        input()
        """)
    assert parent.stdout.readline().strip() == "True", parent.communicate()[1]
    with pytest.raises(OSError, match=f"process {parent.pid} "): Run(tmp_path, {})
    parent.communicate("\n")
    assert not (tmp_path/".lock").exists(), "but the parent's end does"

def test_damaged_records_do_not_stop_a_run(tmp_path):
    for rubbish in ("{ half a", "", "null", "[1]", "7", '"text"'):
        (tmp_path/"provenance.json").write_text(rubbish)
        with Run(tmp_path, dict(lr=1)) as run: assert (run.restarted, run.changed) == (False, [])
        (tmp_path/".owner.json").write_text(rubbish)
        (tmp_path/".lock").write_text(rubbish)

def test_a_child_that_outlives_a_killed_run_does_not_keep_its_lock(tmp_path):
    "As the workers that load data do, for a moment"
    parent = python(f"""
        import os, time
        from cxr_stn.runs import Run
        run = Run({str(tmp_path)!r}, {{}})
        if os.fork() == 0: os.close(1); os.close(2); time.sleep(60); os._exit(0)
        print("forked", flush=True)
        input()
        """)
    assert parent.stdout.readline().strip() == "forked", parent.communicate()[1]
    parent.kill()
    parent.communicate()
    with Run(tmp_path, {}) as run: assert run.restarted

def test_who_waits_for_a_claim_gets_it_when_its_holder_is_killed(tmp_path):
    holder = python(f"""
        from pathlib import Path
        from cxr_stn.runs import claim
        with claim(Path({str(tmp_path/"cache")!r})): print("mine", flush=True); input()
        """)
    assert holder.stdout.readline().strip() == "mine", holder.communicate()[1]
    with claim(tmp_path/"cache") as mine: assert not mine
    holder.kill()
    with claim(tmp_path/"cache", wait=True) as mine: assert mine
    holder.communicate()
    assert litter(tmp_path) == []

def test_provenance_without_git(tmp_path):
    done = python(f"""
        import os; os.environ["PATH"] = {str(tmp_path)!r}
        from cxr_stn.runs import provenance
        print(provenance(dict(seed=1))["git"])
        """).communicate()
    assert done[0].strip() == "{'revision': None, 'dirty': None}", done[1]

def test_provenance_sees_uncommitted_work(tmp_path):
    from cxr_stn.runs import provenance
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True,
                              text=True)
        return done.stdout.strip()
    git("init")
    (tmp_path/"f").write_text("1")
    git("add", "f")
    git("commit", "-m", "one")
    assert provenance({}, root=tmp_path)["git"] == dict(revision=git("rev-parse", "HEAD"), dirty=False)
    (tmp_path/"f").write_text("2")
    assert provenance({}, root=tmp_path)["git"]["dirty"] is True


# --- parameters, as papermill really delivers them -----------------------------------------------------

@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    cell = nbformat.v4.new_code_cell
    kernel = dict(name="python3", display_name="python3", language="python")
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=kernel))
    nb.cells = [cell("lr = 1e-4\nflip = False\nlayers = [1]\ndata_dir = None",
                     metadata=dict(tags=["parameters"])),
                cell("from typing import Optional\nfrom cxr_stn.config import *\n"
                     "class P(Params):\n    lr: float = 1e-4\n    flip: bool = False\n"
                     "    layers: list[int] = [1]\n    data_dir: Optional[str] = None"),
                cell("params = P.from_namespace(globals())\nprint(params)")]
    path = tmp_path_factory.mktemp("papermill")/"nb.ipynb"
    nbformat.write(nb, path)
    return path

def execute(notebook, *words, wrong=False):
    "What papermill printed, and the output of the last cell"
    out = notebook.with_name("out.ipynb")
    printed = papermill(notebook, out, *words, wrong=wrong)
    return printed, "".join(o.get("text", "") for o in nbformat.read(out, as_version=4).cells[-1].outputs)

def test_papermill_values_arrive_typed(notebook):
    _, said = execute(notebook, "-p", "flip", "true", "-y", "lr: 1e-5", "-p", "layers", "2, 3",
                      "-r", "data_dir", "7")
    assert said.strip() == "lr=1e-05 flip=True layers=[2, 3] data_dir='7'"

def test_papermill_mistakes_fail_at_once_with_all_reasons(notebook):
    err, _ = execute(notebook, "-p", "lrr", "1", "-p", "flip", "3", wrong=True)
    assert "unknown parameter 'lrr'; did you mean 'lr'? Valid: lr, flip, layers, data_dir" in err
    assert "parameter 'flip': 3 is not true or false" in err

def test_a_misspelt_name_that_some_module_uses_for_its_value_is_no_import(notebook):
    "`stat.S_IXOTH` is the integer 1, and so is every other 1 of this Python"
    err, _ = execute(notebook, "-p", "S_IXOTH", "1", wrong=True)
    assert "unknown parameter 'S_IXOTH'" in err

def test_parameter_files_of_other_systems(tmp_path):
    class P(Params):
        lr: float = 1.0
    (tmp_path/"windows.yaml").write_bytes("\ufefflr: 1e-3\r\n".encode("utf-8"))
    assert P.from_yaml(tmp_path/"windows.yaml").lr == 1e-3
    (tmp_path/"latin.yaml").write_bytes(b"lr: 1 # \xe4\n")
    with pytest.raises(ParameterError, match="latin.yaml is not a text file"):
        P.from_yaml(tmp_path/"latin.yaml")


# --- paths ---------------------------------------------------------------------------------------------

def test_paths_are_found_from_any_folder(tmp_path, monkeypatch):
    root = project_root()
    for here in (root, root/"nbs", tmp_path):
        monkeypatch.chdir(here)
        assert project_root() == root
        assert input_path("settings.ini").samefile(root/"settings.ini")
    (tmp_path/"settings.ini").write_text("near")
    assert project_root() == tmp_path
    assert input_path("settings.ini").read_text() == "near"

def test_missing_input_names_all_affines(tmp_path, monkeypatch):
    root = project_root()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as e: input_path("no/such")
    assert str(tmp_path/"no/such") in str(e.value) and str(root/"no/such") in str(e.value)
