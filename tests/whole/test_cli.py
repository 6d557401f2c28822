"""The command from the shell's point of view: exit codes, sizes, lists, masks, boxes, the way back, shards
that are killed, and a quick start."""
import json, os, signal, subprocess, sys, time

import cv2, numpy as np, pandas as pd, pytest, yaml
from helpers import DATA, environment, save_aligner

from cxr_stn.aligned import Aligned
from cxr_stn.aligner.batch import read_records
from cxr_stn.cli import COMMANDS, main
from cxr_stn.config import ParameterError
from cxr_stn.data.images import list_images, read_image, write_png
from cxr_stn.phantom.dataset import Phantom
from cxr_stn.tool.align import AlignParams

N = 12  # images that can be read
RUN = "import sys; from cxr_stn.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with originals, one of which is broken, a list of some of them, boxes, and an aligner"
    place = tmp_path_factory.mktemp("cli")
    save_aligner(place/"aligner.safetensors")
    phantom = Phantom(n_images=N, size=96, seed=1)
    for i in range(N):
        write_png(place/"originals"/f"ward {i % 2}"/f"{i:02}.png", phantom[i].image.astype(np.uint16) * 9)
    (place/"originals"/"page.png").write_text("<html>404</html>")
    (place/"list.txt").write_text("originals/ward 1/03.png\noriginals/ward 0/02.png\n")
    (place/"list.csv").write_text("patient,file\nanna,originals/ward 1/03.png\nanna,originals/ward 1/05.png\n"
                                  "bert,missing.png\n")
    (place/"boxes.csv").write_text("image,left,top,right,bottom,what\nward 0/02.png,20,30,60,70,heart\n"
                                   "page.png,0,0,5,5,none\n")
    return place

@pytest.fixture
def command(place, capfd, monkeypatch):
    "Run a command line in the folder of the originals: exit code, standard output, standard error"
    monkeypatch.chdir(place)
    def run(*words):
        capfd.readouterr()
        try: code = main([str(word) for word in words])
        except SystemExit as end: code = end.code
        return code, *capfd.readouterr()
    return run

@pytest.fixture
def align(command, place):
    "`cxr-stn align` with the aligner of the test"
    def run(source, out, *words):
        return command("align", "-i", source, "-o", out, "--checkpoint", place/"aligner.onnx", *words)
    return run

def tables(out): return {p.name: p.read_bytes() for p in out.iterdir()
                         if p.suffix in (".csv", ".json") and p.name != "provenance.json"}

def files(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in list_images(out)}

def transforms(out): return pd.read_csv(out/"transforms.csv").set_index("image")


# --- what a script relies on --------------------------------------------------------------------------------

def test_exit_codes_and_the_last_line(align, place, tmp_path):
    code, said, errors = align("originals", tmp_path/"some")
    assert code == 1 and said.splitlines()[-1] == f"{N} aligned, 0 flagged, 1 failed"
    assert errors.startswith("page.png: this is a web page or text, not an image") and errors.count("\n") == 1
    code, said, errors = align("originals/ward 0", tmp_path/"all")
    assert code == 0 and said.splitlines()[-1] == f"{N // 2} aligned, 0 flagged, 0 failed" and errors == ""

@pytest.mark.parametrize("words, message", [
    ((), "required: -i/--input, -o/--out-dir"),
    (("-i", "nowhere", "-o", "out"), "nowhere does not exist"),
    (("-i", "none", "-o", "out"), "--input: none means nothing here"),
    (("-i", "originals", "-o", "out", "--size", "large"), "--size: size 'large': choose native"),
    (("-i", "originals", "-o", "out", "--shard", "0/2"), "--shard: shard '0/2': write K/N"),
    (("-i", "originals", "-o", "out", "--n-images", "few"), "--n-images: 'few' is not an integer"),
    (("-i", "originals", "-o", "out", "--polish"), "unrecognized arguments: --polish"),
    (("-i", "originals", "-o", "out", "--device", "abacus"), "device 'abacus'"),
    (("-i", "originals", "-o", "out", "--checkpoint", "nowhere"), "checkpoint nowhere does not exist"),
    (("-i", "originals", "-o", "originals/out"), "one lies in the other"),
    (("-i", "list.txt", "-o", "originals"), "holds originals"),
    (("-i", "originals/ward 0", "-o", "out", "--boxes", "boxes.csv"), "'ward 0/02.png' is not among"),
    (("-i", "originals", "-o", "out", "--boxes", "list.csv"), "no column image, left, top, right, bottom")])
def test_wrong_arguments(command, place, words, message):
    code, said, errors = command("align", *words)
    assert code == 2 and said == "" and message in errors and "Traceback" not in errors
    assert not (place/"out").exists()

def test_no_command(command):
    assert command()[0] == 2 and command("polish")[0] == 2
    code, said, _ = command("--help")
    assert code == 0 and all(name in said for name in COMMANDS)

@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_teaches(command, name):
    code, said, _ = command(name, "--help")
    assert code == 0 and said.startswith(f"usage: cxr-stn {name}") and len(said) > 150
    assert "None:" not in said or name == "compare"

def test_old_parameters_are_told_their_new_name():
    with pytest.raises(ParameterError, match="'output_width': it is called 'size' now"):
        AlignParams(output_width=9)
    with pytest.raises(ParameterError, match="'batch_size': leave it out"): AlignParams(batch_size=9)

def test_a_quick_start():
    "Neither torch nor any other heavy package is loaded for a help text, nor torch for the whole work"
    code = ("import sys, cxr_stn.cli\n"
            "heavy = {'torch', 'numpy', 'pandas', 'cv2', 'onnxruntime'} & set(sys.modules)\n"
            "import cxr_stn.tool.align, cxr_stn.tool.restore, cxr_stn.study.compare, cxr_stn.report\n"
            "print(heavy, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, env=environment())
    assert done.stdout.strip() == "set() False", done.stderr


# --- what goes in, and what comes out -----------------------------------------------------------------------

def test_again_and_after_a_loss(align, place, tmp_path):
    align("originals", tmp_path)
    before = {p: p.stat().st_mtime_ns for p in list_images(tmp_path)}
    lost = tmp_path/"images"/"ward 1"/"03.png"
    lost.unlink()
    assert align("originals", tmp_path)[0] == 1
    assert [p for p, stamp in before.items() if p.stat().st_mtime_ns != stamp] == [lost]

def test_a_file(align, place, tmp_path):
    assert align("originals/ward 0/02.png", tmp_path)[0] == 0
    assert list(files(tmp_path)) == ["images/02.png"] and transforms(tmp_path).index.tolist() == ["02.png"]

def test_a_list(align, place, tmp_path):
    code, said, _ = align("list.txt", tmp_path)
    assert code == 0
    assert transforms(tmp_path).index.tolist() == ["originals/ward 1/03.png", "originals/ward 0/02.png"]
    assert sorted(files(tmp_path)) == ["images/ward 0/02.png", "images/ward 1/03.png"]

def test_a_table_with_a_missing_file(align, place, tmp_path):
    code, said, errors = align("list.csv", tmp_path)
    assert code == 1 and said.splitlines()[-1] == "2 aligned, 0 flagged, 1 failed"
    assert errors.strip() == "missing.png: No such file or directory"
    assert pd.read_csv(tmp_path/"index.csv")["patient"].tolist() == ["anna", "anna"]

@pytest.mark.parametrize("size, shape", [("native", None), ("60x48", (60, 48)), ("mm=0.5", "failed")])
def test_every_size(align, place, tmp_path, size, shape):
    code, *_ = align("originals/ward 0", tmp_path, "--size", size)
    table = transforms(tmp_path)
    if shape == "failed":
        reasons = pd.read_csv(tmp_path/"failures.csv")["reason"]
        assert code == 1 and len(reasons) == N // 2
        assert reasons.str.contains("spacing of the pixels is not known").all()
        return
    assert code == 0
    for name, row in table.iterrows():
        image, matrix = read_image(tmp_path/row["file"]), row[["m00", "m01", "m10", "m11"]].to_numpy(float)
        assert image.shape == (shape or (row["output_height"], row["output_width"]))
        assert image.dtype == np.uint16
        if shape is None:     # a pixel is a pixel, and the proportions are those of the frame
            assert abs(np.linalg.det(matrix.reshape(2, 2)) - 1) < .03
            assert abs(image.shape[0] / image.shape[1] - 30 / 24) < .02

def test_masks_boxes_and_report(align, place, tmp_path):
    code, said, _ = align("originals", tmp_path, "--masks", "--boxes", "boxes.csv", "--report")
    assert code == 1 and "boxes.csv, report.html" in said
    for _, row in transforms(tmp_path).query("status == 'aligned'").iterrows():
        mask = read_image(tmp_path/"masks"/row["file"].removeprefix("images/"))
        assert mask.shape == read_image(tmp_path/row["file"]).shape and set(np.unique(mask)) <= {0, 255}
    boxes = pd.read_csv(tmp_path/"boxes.csv")
    row = transforms(tmp_path).loc["ward 0/02.png"]
    expected = Aligned.load(row).boxes_to_aligned([[20, 30, 60, 70]])
    assert boxes[["image", "what"]].values.tolist() == [["ward 0/02.png", "heart"]]
    np.testing.assert_allclose(boxes[["left", "top", "right", "bottom"]], expected, atol=1e-6)
    assert (tmp_path/"report.html").stat().st_size < 20e6

def test_masks_are_added_to_what_is_there(align, place, tmp_path):
    align("originals", tmp_path)
    before = files(tmp_path)
    align("originals", tmp_path, "--masks")
    assert before.items() < files(tmp_path).items() and len(files(tmp_path)) == 2 * N

def test_dicom_in_and_out(command, place, tmp_path):
    "The files that pydicom brings: the spacing is used and said, no name comes out, only DICOM becomes DICOM"
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file
    source = tmp_path/"in"
    source.mkdir()
    ds = pydicom.dcmread(get_testdata_file("RG1_UNCR.dcm") or get_testdata_file("CT_small.dcm"))
    ds.PatientName, ds.PixelSpacing = "Secret^Name", [0.5, 0.5]
    ds.save_as(source/"a.dcm")
    write_png(source/"b.png", Phantom(n_images=1, size=64)[0].image)
    code, said, errors = command("align", "-i", source, "-o", tmp_path/"out", "--size", "mm=0.5",
                                 "--dicom-out")
    assert code == 1 and "b.png" in errors and "a.dcm" not in errors
    row = transforms(tmp_path/"out").loc["a.dcm"]
    assert row["spacing_row"] == .5 and row["photometric"] == ds.PhotometricInterpretation
    derived = pydicom.dcmread(tmp_path/"out"/"dicom"/"a.dcm")
    assert "DERIVED" in derived.ImageType
    assert derived.pixel_array.shape == (row["output_height"], row["output_width"])
    for path in (tmp_path/"out").rglob("*.*"):
        assert path.suffix == ".dcm" or b"Secret" not in path.read_bytes()

def test_one_image_of_several_is_chosen(align, place, tmp_path):
    "A file of two radiographs is refused; the chosen one is aligned as alone, and not taken for the other"
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file
    images = [np.rint(Phantom(n_images=2, size=64, seed=3)[i].image).astype(np.uint8) for i in (0, 1)]
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for name in ("PixelPaddingValue", "RescaleSlope", "RescaleIntercept"): del ds[name]
    ds.Rows, ds.Columns, ds.NumberOfFrames, ds.PixelRepresentation = 64, 64, 2, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelData = 8, 8, 7, np.stack(images).tobytes()
    ds["PixelData"].VR = "OB"
    ds.save_as(tmp_path/"two.dcm")
    code, _, errors = align(tmp_path/"two.dcm", tmp_path/"out")
    assert code == 1 and "holds 2 images" in errors and "(--frame on the command line)" in errors
    for number, image in ((2, images[1]), (1, images[0])):
        write_png(tmp_path/"alone.png", image)
        align(tmp_path/"alone.png", tmp_path/str(number))
        code, _, errors = align(tmp_path/"two.dcm", tmp_path/"out", "--frame", number, "--dicom-out")
        assert code == 0 and "frame changed since the last run" in errors
        assert (read_image(tmp_path/"out"/"images"/"two.png")
                == read_image(tmp_path/str(number)/"images"/"alone.png")).all()
        derived = pydicom.dcmread(tmp_path/"out"/"dicom"/"two.dcm")
        assert derived.SourceImageSequence[0].ReferencedFrameNumber == number
    assert "frame = 3: it holds 2" in align(tmp_path/"two.dcm", tmp_path/"out", "--frame", 3)[2]
    assert align("originals", tmp_path/"none", "--frame", 0)[0] == 2

@pytest.mark.data("nih14-sample")
def test_lungs_come_out(command, place, tmp_path):
    "The released aligner, real images: the mask is two lungs, and there and back it stays the same"
    source = DATA/"nih14-sample"/"images"
    assert command("align", "-i", source, "-o", tmp_path/"a", "--n-images", 3, "--masks")[0] == 0
    for path in list_images(tmp_path/"a"/"masks"):
        mask = read_image(path) > 0
        assert .1 < mask.mean() < .8 and cv2.connectedComponents(mask.astype(np.uint8))[0] >= 2
    assert command("restore", "-i", tmp_path/"a"/"masks", "-t", tmp_path/"a", "-o", tmp_path/"b")[0] == 0
    for name, row in transforms(tmp_path/"a").iterrows():
        back, mask = read_image(tmp_path/"b"/name), read_image(tmp_path/"a"/"masks"/name)
        again = Aligned.load(row).apply(back) > 0
        assert back.shape == (row["height"], row["width"])
        assert 2 * (again & (mask > 0)).sum() / (again.sum() + (mask > 0).sum()) > .99


# --- nothing is lost ----------------------------------------------------------------------------------------

def snapshot(folder): return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

@pytest.mark.parametrize("name", ["images", "masks", "dicom"])
def test_originals_are_safe_behind_links(align, tmp_path, name):
    source, out = tmp_path/"in", tmp_path/"out"
    write_png(source/"a.png", Phantom(n_images=1, size=64)[0].image)
    before = snapshot(source)
    out.mkdir()
    (out/name).symlink_to(source, target_is_directory=True)
    code, _, errors = align(source, out, "--masks", "--dicom-out")
    assert code == 2 and f"{name}/a." in errors and "choose an out_dir elsewhere" in errors
    assert snapshot(source) == before

def test_originals_that_are_links_are_safe(align, tmp_path):
    store, source, out = tmp_path/"store", tmp_path/"in", tmp_path/"out"
    write_png(store/"a.png", Phantom(n_images=1, size=64)[0].image)
    source.mkdir(), out.mkdir()
    (source/"a.png").symlink_to(store/"a.png")
    (out/"images").symlink_to(store, target_is_directory=True)
    before = snapshot(store)
    assert align(source, out)[0] == 2 and snapshot(store) == before

def test_files_of_others_are_safe(align, place, tmp_path):
    for name in ("index.csv", "transforms.csv", "images/02.png", "masks/02.png"):
        out = tmp_path/name.replace("/", " ")
        (out/name).parent.mkdir(parents=True)
        (out/name).write_text("precious")
        for shard in ("1/1", "1/2"):
            code, _, errors = align("originals/ward 0/02.png", out, "--masks", "--shard", shard)
            assert code == 2 and f"{name} is there already" in errors
            assert (out/name).read_text() == "precious"

def test_a_short_run_loses_nothing(align, place, tmp_path):
    align("originals", tmp_path)
    whole, before = tables(tmp_path), {p: p.stat().st_mtime_ns for p in list_images(tmp_path)}
    align("originals", tmp_path, "--n-images", 1)
    assert len(transforms(tmp_path)) == 1
    assert len(read_records(tmp_path/"records.jsonl")[1]) == N + 1
    align("originals", tmp_path)
    assert {p: p.stat().st_mtime_ns for p in list_images(tmp_path)} == before and tables(tmp_path) == whole

def test_images_without_a_row_are_counted(align, tmp_path):
    phantom = Phantom(n_images=3, size=64, seed=1)
    for i in range(3): write_png(tmp_path/"in"/f"{i}.png", phantom[i].image)
    (tmp_path/"in"/"index.csv").write_text("image\n1.png\n")
    code, said, _ = align(tmp_path/"in", tmp_path/"out")
    assert code == 0 and said.endswith("\n1 aligned, 0 flagged, 0 failed\n")
    assert f"2 images have no row in {tmp_path/'in'/'index.csv'} and were left out\n" in said

@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("shards", [1, 2])
def test_a_name_that_is_no_text(align, tmp_path, shards):
    write_png(tmp_path/"in"/"a.png", Phantom(n_images=1, size=64)[0].image)
    os.link(tmp_path/"in"/"a.png", os.fsencode(tmp_path/"in") + b"/b\xe9.png")
    for k in range(shards):
        code, _, errors = align(tmp_path/"in", tmp_path/"out", "--report", "--shard", f"{k + 1}/{shards}")
    assert code == 1 and r"b\udce9.png: rename it: its name is not UTF-8" in errors
    assert transforms(tmp_path/"out")["status"].to_dict() == {"a.png": "aligned", r"b\udce9.png": "failed"}

@pytest.mark.parametrize("words", [("-i", "maps", "-o", "in"), ("-i", "maps", "-o", "a/images"),
                                   ("-i", "maps", "-o", "a"), ("-i", "a/boxes.csv", "-o", "a")])
def test_the_way_back_replaces_nothing(align, command, tmp_path, words):
    write_png(tmp_path/"in"/"7.png", Phantom(n_images=1, size=64)[0].image)
    (tmp_path/"boxes.csv").write_text("image,left,top,right,bottom\n7.png,2,3,6,7\n")
    align(tmp_path/"in", tmp_path/"a", "--boxes", tmp_path/"boxes.csv")
    write_png(tmp_path/"maps"/"7.png", np.ones((9, 9), np.uint8))
    before = snapshot(tmp_path)
    given = [word if word.startswith("-") else tmp_path/word for word in words]
    code, _, errors = command("restore", *given, "-t", tmp_path/"a")
    assert code == 2 and "choose an" in errors and snapshot(tmp_path) == before

def test_two_maps_of_one_name(align, command, tmp_path):
    write_png(tmp_path/"in"/"7.png", Phantom(n_images=1, size=64)[0].image)
    align(tmp_path/"in", tmp_path/"a")
    for ending in ("png", "bmp"):
        (tmp_path/"maps").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path/"maps"/f"7.{ending}"), np.ones((9, 9), np.uint8))
    code, _, errors = command("restore", "-i", tmp_path/"maps", "-t", tmp_path/"a", "-o", tmp_path/"b")
    assert code == 2 and "7.bmp and 7.png would both become 7.png" in errors and not (tmp_path/"b").exists()


# --- the way back -------------------------------------------------------------------------------------------

def test_there_and_back(align, command, place, tmp_path):
    (place/"ward.csv").write_text("image,left,top,right,bottom\n02.png,20,30,60,70\n")
    align("originals/ward 0", tmp_path/"a", "--boxes", "ward.csv")
    code, said, _ = command("restore", "-i", tmp_path/"a"/"images", "-t", tmp_path/"a"/"transforms.csv",
                            "-o", tmp_path/"b")
    assert code == 0 and said.splitlines()[-1] == f"{N // 2} restored, 0 failed"
    for name, row in transforms(tmp_path/"a").iterrows():
        original, back = read_image(place/"originals"/"ward 0"/name), read_image(tmp_path/"b"/name)
        assert back.shape == original.shape and back.dtype == original.dtype
        inside = Aligned.load(row).restore(np.ones((30, 24), np.uint8))
        inside = cv2.erode(inside, np.ones((5, 5))) > 0
        if row["inverted"]: continue
        assert np.abs(back.astype(float) - original)[inside].mean() < .03 * original.max()
    assert command("restore", "-i", tmp_path/"a"/"boxes.csv", "-t", tmp_path/"a", "-o", tmp_path/"c")[0] == 0
    box = pd.read_csv(tmp_path/"c"/"boxes.csv").iloc[0]
    assert box["left"] <= 20.01 and box["right"] >= 59.99     # around the box that went there

def test_maps_without_an_image(align, command, place, tmp_path):
    align("originals/ward 0", tmp_path/"a")
    np.save(tmp_path/"02.npy", np.ones((4, 4), np.float32))
    (tmp_path/"maps").mkdir()
    (tmp_path/"02.npy").rename(tmp_path/"maps"/"02.npy")
    write_png(tmp_path/"maps"/"other.png", np.zeros((4, 4), np.uint8))
    code, said, errors = command("restore", "-i", tmp_path/"maps", "-t", tmp_path/"a", "-o", tmp_path/"b")
    assert code == 1 and said.splitlines()[-1] == "1 restored, 1 failed" and "other.png: no image" in errors
    assert np.load(tmp_path/"b"/"02.npy").shape == (96, 96)
    assert command("restore", "-i", tmp_path/"maps", "-t", tmp_path, "-o", tmp_path/"b")[0] == 2


# --- several processes --------------------------------------------------------------------------------------

SLOWLY = """
import sys, time
import cxr_stn.aligner.batch as batch
from cxr_stn.cli import main
real = batch.write_png
def slow(path, image):
    time.sleep(3)
    real(path, image)
batch.write_png = slow
sys.exit(main())
"""

def start(place, out, shard, code=RUN):
    words = ["align", "-i", place/"originals", "-o", out, "--checkpoint", place/"aligner.onnx",
             "--shard", shard, "--masks", "--boxes", place/"boxes.csv"]
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], text=True, env=environment(),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def test_three_shards_of_which_one_is_killed(align, place, tmp_path):
    "In the end, the bytes of one run: images, masks and tables"
    align("originals", tmp_path/"whole", "--masks", "--boxes", "boxes.csv")
    out = tmp_path/"parts"
    victim, others = start(place, out, "2/3", SLOWLY), [start(place, out, f"{k}/3") for k in (1, 3)]
    records = out/"shards"/"2-of-3"/"records.jsonl"
    until = time.monotonic() + 120
    while not read_records(records)[1] and time.monotonic() < until and victim.poll() is None: time.sleep(.01)
    assert victim.poll() is None, victim.stderr.read()
    victim.send_signal(signal.SIGKILL)
    for process in (victim, *others): process.communicate(timeout=120)
    assert [process.returncode for process in others] == [1, 0] and 0 < len(read_records(records)[1]) < 4
    assert not (out/"transforms.csv").exists()
    again = start(place, out, "2/3")
    said, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert tables(out) == tables(tmp_path/"whole") and files(out) == files(tmp_path/"whole")
    params = yaml.safe_load((out/"params.yaml").read_text())
    assert params["shard"] == "1/1" and params["out_dir"] == str(out)
    assert not list(out.rglob(".part-*"))

def test_shards_and_whole_runs_know_each_other(align, place, tmp_path):
    for k in (1, 2): assert align("originals", tmp_path, "--shard", f"{k}/2")[0] in (0, 1)
    before = {p: p.stat().st_mtime_ns for p in list_images(tmp_path)}
    assert len(before) == N and align("originals", tmp_path)[0] == 1
    assert align("originals", tmp_path, "--shard", "3/5")[0] in (0, 1)
    assert {p: p.stat().st_mtime_ns for p in list_images(tmp_path)} == before
    code, _, errors = align("originals", tmp_path, "--shard", "1/2", "--size", "60x48")
    assert code == 2 and "a shard removes nothing" in errors
    assert {p: p.stat().st_mtime_ns for p in list_images(tmp_path)} == before
    assert align("originals", tmp_path, "--size", "60x48")[0] == 1
    assert all(read_image(p).shape == (60, 48) for p in list_images(tmp_path))

def test_one_shard_is_aligned_once_at_a_time(align, place, tmp_path):
    process = start(place, tmp_path, "1/2", SLOWLY)
    records = tmp_path/"shards"/"1-of-2"/"records.jsonl"
    until = time.monotonic() + 120
    while not records.exists() and time.monotonic() < until: time.sleep(.01)
    for words in (("--shard", "1/2"), ()):
        code, _, errors = align("originals", tmp_path, *words)
        assert code == 1 and "another process works on shard" in errors
    process.kill()
    process.communicate()


# --- the other commands -------------------------------------------------------------------------------------

def test_version_and_info(command):
    from cxr_stn import __version__
    assert command("--version")[:2] == (0, f"cxr-stn {__version__}\n")
    code, said, _ = command("info")
    assert code == 0 and "onnxruntime" in said and "released aligner chest" in said

def test_notebooks(command, tmp_path):
    code, said, _ = command("notebooks", tmp_path/"study")
    assert code == 0 and (tmp_path/"study"/"params"/"nih.yaml").is_file()
    assert json.loads((tmp_path/"study"/"align.ipynb").read_text())["nbformat"] == 4
    assert command("notebooks", tmp_path/"study")[0] == 2

def test_export(command, place, tmp_path):
    code, said, _ = command("export", place/"aligner.safetensors", "-o", tmp_path/"mine.onnx")
    assert code == 0 and said.strip() == str(tmp_path/"mine.onnx")
    words = ("align", "-i", "list.txt", "-o", tmp_path/"out", "--checkpoint", tmp_path/"mine.onnx")
    assert command(*words)[0] == 0
    assert command("export", tmp_path/"none")[0] == 2

@pytest.mark.parametrize("words, package, extra", [("compare a.csv b.csv", "tabulate", "compare"),
                                                   ("export runs/train", "torch", "study")])
def test_a_missing_extra_is_named(words, package, extra):
    code = f"import sys; sys.modules[{package!r}] = None\n{RUN}"
    done = subprocess.run([sys.executable, "-c", code, *words.split()], text=True, capture_output=True,
                          env=environment())
    assert done.returncode == 1 and f"{package} is missing: pip install 'cxr_stn[{extra}]'" in done.stderr

def test_compare(command, tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 80)
    for name, noise in (("a", 1.5), ("b", .8)):
        prob = 1 / (1 + np.exp(-(label - .5 + noise * rng.normal(size=80))))
        pd.DataFrame(dict(image=np.arange(80).astype(str), patient=np.arange(80) // 2, label_Mass=label,
                          prob_Mass=prob)).to_csv(tmp_path/f"{name}.csv", index=False)
    code, said, errors = command("compare", tmp_path/"a.csv", tmp_path/"b.csv", "-o", tmp_path/"out")
    assert code == 0 and "Mass" in said and (tmp_path/"out"/"classes.csv").is_file(), errors
    assert command("compare", tmp_path/"a.csv", tmp_path/"none.csv")[0] == 2
