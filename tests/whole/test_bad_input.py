"""Every kind of bad input, in one table for each door of the program.

What cannot be used is refused with an error that names the file, the row or the parameter and says what to
do; in a batch it is left out and listed with its reason; what only looks odd is read. The doors: image files
and arrays, the metadata of ChestX-ray14, the index of a folder, checkpoints, predictions, parameters.
"""
import io
import json
import math
import os
import pickle
import shutil
import struct
import zlib
from functools import partial
from unittest import mock

import cv2
import numpy as np
import onnx
import pandas as pd
import psutil
import pytest
import timm
import torch
from helpers import Payload, random_image, save_aligner
from PIL import Image
from safetensors.torch import save

from cxr_stn.config import CheckpointError, ParameterError
from cxr_stn.runs import atomic_write
from cxr_stn.data.images import ImageError, read_image, write_png
from cxr_stn.data.chestxray14 import MetadataError
from cxr_stn.data.datasets import load_folder, load_masked
from cxr_stn.data.chestmnist import ChestMNISTDataset
from cxr_stn.data.cache import build_cache, cache_folder, open_cache
from cxr_stn.sources import load_dataset
from cxr_stn.backbones import load_network
from cxr_stn.trainer import StepSeeds
from cxr_stn.aligner.networks import AlignerNetwork
from cxr_stn.aligner.checkpoints import CHECKPOINT_FORMAT, read_network
from cxr_stn.aligner.data import TrainParams
from cxr_stn.aligner.training import fit_aligner
from cxr_stn.inference import Aligner, find_checkpoint
from cxr_stn.aligner.batch import align_dataset, read_records
from cxr_stn.tool.align import AlignParams
from cxr_stn.evaluation.tables import EvaluateParams
from cxr_stn.classifier.predictions import PredictionError, read_predictions
from cxr_stn.classifier.training import ClassifyParams, fit_classifier
from cxr_stn.study.comparison import CompareParams
from cxr_stn.study.sweep import SweepParams

IMAGE = random_image(0, (120, 90))


# --- image files --------------------------------------------------------------------------------------------

def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, body=b"", bits=8):
    "A grey PNG of that size in its header, whatever its pixels"
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(body, 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def image(array, kind="png", mode=None, **options):
    "The bytes of an image as Pillow writes them"
    out, made = io.BytesIO(), Image.fromarray(array)
    (made.convert(mode) if mode else made).save(out, kind, **options)
    return out.getvalue()


WHOLE = image(IMAGE)
BOMB = png(20_000, 20_000, bytes(20_000 * 2_501), bits=1)  # 50 kB, which decoders make 400 MB of
GIF = image(IMAGE, "gif")
NAN = IMAGE.astype(np.float32) / 255
NAN[5, 5] = np.nan

UNREADABLE = { # content, and what the reason says
    "zero bytes.png": (b"", "the file is empty (0 bytes)"),
    "truncated.png": (WHOLE[:len(WHOLE) // 2], "truncated"),
    "signature alone.png": (WHOLE[:8], "truncated"),
    "flipped bit.png": (WHOLE[:300] + bytes([WHOLE[300] ^ 1]) + WHOLE[301:], "checksum"),
    "size of 0.png": (png(0, 10), "header"),
    "web page.png": (b"<!DOCTYPE html><html><body>403</body></html>", "web page"),
    "error message.jpg": (b'{"error": "not found"}', "not an image"),
    "DICOM.png": (bytes(128) + b"DICM" + bytes(100), "DICOM"),
    "noise.jpg": (bytes(range(256)), "no known image format"),
    "text.png": (b"hello", "no known image format"),
    "bomb.png": (BOMB,
                 "20000 x 20000 pixels are more than max_pixels = 100,000,000; if the file can be trusted"),
    "bomb.gif": (GIF[:6] + struct.pack("<HH", 20_000, 20_000) + GIF[10:], "decompression bomb"),
    "NaN.tif": (image(NAN, "tiff"), "32 bits"),
    "infinite.tif": (image(np.where(np.isnan(NAN), np.inf, NAN), "tiff"), "32 bits"),
    "palette out of range.png": (image(IMAGE, "png", "P").replace(b"PLTE", b"PLTX"), "damaged"),
}
SHORT = png(100, 100, bytes(101 * 3))
if cv2.imdecode(np.frombuffer(SHORT, np.uint8), -1) is None: # some versions of OpenCV fill it up
    UNREADABLE["too few pixels.png"] = (SHORT, "cannot be decoded")
BLANK = { # whole files on which there is nothing to see
    "all black.png": image(np.zeros((40, 40), np.uint8)),
    "all white.png": image(np.full((40, 40), 255, np.uint8)),
    "one pixel.png": image(np.uint8([[7]])), "all black 16 bits.png": image(np.zeros((40, 40), np.uint16)),
}
ANIMATED = image(IMAGE, save_all=True, append_images=[Image.fromarray(255 - IMAGE)])
READ = { # content, and the largest difference of a grey value from the plain image
    "plain.png": (WHOLE, 0), "palette.png": (image(IMAGE, "png", "P"), 0), "animated.png": (ANIMATED, 0),
    "16 bits.png": (image(IMAGE.astype(np.uint16) * 257), 0),
    "16 bits.tif": (image(IMAGE.astype(np.uint16) * 257, "tiff"), 0),
    "RGB.png": (image(IMAGE, "png", "RGB"), 0), "opaque RGBA.png": (image(IMAGE, "png", "RGBA"), 0),
    "CMYK.tif": (image(IMAGE, "tiff", "CMYK"), 1), "CMYK.jpg": (image(IMAGE, "jpeg", "CMYK", quality=95), 8),
    "Thorax à gauche (2) 胸部, 100%.png": (WHOLE, 0), " led by a space .png": (WHOLE, 0),
    "upper case.PNG": (WHOLE, 0),
    "JPEG called.png": (image(IMAGE, "jpeg", quality=100), 3),
}


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """All these files in one folder, prepared for a network and aligned: the folder, both outcomes by name,
    the outputs"""
    folder = tmp_path_factory.mktemp("bad input")
    for name, content in UNREADABLE.items(): atomic_write(folder/"images"/name, content[0])
    for name, content in BLANK.items(): atomic_write(folder/"images"/name, content)
    for name, content in READ.items(): atomic_write(folder/"images"/name, content[0])
    dataset = load_dataset("folder", folder/"images")
    cache = build_cache(dataset, 32, folder/"cache")
    aligner = Aligner.load(save_aligner(folder/"aligner.safetensors"))
    table = align_dataset(dataset, aligner, folder/"out", folder/"images",
                          progress=False).set_index("image")
    return folder, cache, table


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_named_and_left_out(batch, name):
    folder, cache, table = batch
    with pytest.raises(ImageError) as caught: read_image(folder/"images"/name)
    reason = UNREADABLE[name][1]
    assert str(folder/"images"/name) in str(caught.value) and reason in caught.value.reason
    assert reason in cache.failures.set_index("image")["reason"][name]
    assert table["status"][name] == "failed" and reason in table["reason"][name] and table["m00"].isna()[name]
    assert not (folder/"out"/table["file"][name]).exists()


@pytest.mark.parametrize("name", BLANK)
def test_a_blank_image_is_read_and_left_out(batch, name):
    folder, cache, table = batch
    assert np.ptp(read_image(folder/"images"/name)) == 0
    assert "same grey value" in cache.failures.set_index("image")["reason"][name]
    assert table["status"][name] == "failed" and "same grey value" in table["reason"][name]


@pytest.mark.parametrize("name", READ)
def test_what_only_looks_odd_is_read(batch, name):
    (folder, cache, table), allowed = batch, READ[name][1]
    image = read_image(folder/"images"/name)
    plain = read_image(folder/"out"/table["file"]["plain.png"]).astype(float)
    full = np.iinfo(image.dtype).max / 255
    assert np.abs(image / full - IMAGE).max() <= allowed
    row = cache.dataset.table["image"].tolist().index(name)
    assert np.abs(cache.images[row].astype(float) - cache.images[0]).max() <= 2 * allowed + 255 * (row == -1)
    assert table["status"][name] == "aligned"
    aligned = read_image(folder/"out"/table["file"][name])
    assert aligned.dtype == image.dtype and np.abs(aligned / full - plain).mean() <= 1 + allowed


def test_nothing_else_became_of_them(batch):
    folder, cache, table = batch
    assert len(table) == len(UNREADABLE) + len(BLANK) + len(READ)
    assert sorted(cache.dataset.table["image"]) == sorted(READ) == \
        sorted(table.index[table["status"] == "aligned"])
    listed = pd.read_csv(cache_folder(load_dataset("folder", folder/"images"), 32,
                                      folder/"cache")/"failures.csv")
    assert listed.to_dict("list") == cache.failures.to_dict("list")
    again = build_cache(load_dataset("folder", folder/"images"), 32, folder/"cache", verify=True)
    assert again.failures.equals(cache.failures) and (again.images == cache.images).all()


def test_a_bomb_is_refused_before_memory_is_asked_for(tmp_path):
    resource = pytest.importorskip("resource")
    (tmp_path/"bomb.png").write_bytes(BOMB)
    _, hard = before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 100_000_000, hard))
    try:
        with pytest.raises(ImageError, match="more than max_pixels"): read_image(tmp_path/"bomb.png")
        with pytest.raises((ImageError, MemoryError)) as trusted:
            read_image(tmp_path/"bomb.png", max_pixels=10**9)
    finally: resource.setrlimit(resource.RLIMIT_AS, before)
    assert "max_pixels" not in str(trusted.value), "without the limit it would have been decoded"


def test_nothing_usable_is_an_error(tmp_path):
    for name in ("a.png", "b.png"): atomic_write(tmp_path/"images"/name, b"")
    with pytest.raises(ImageError, match="a.png: .*0 bytes.*none of the 2 images"):
        build_cache(load_folder(tmp_path/"images"), 32, tmp_path/"cache")


# --- images as arrays ---------------------------------------------------------------------------------------

ARRAYS = {
    "one dimension": (np.zeros(5, np.uint8), r"\(H, W\)"),
    "four": (np.zeros((1, 1, 5, 5), np.uint8), r"\(H, W\)"),
    "empty": (np.zeros((0, 4), np.uint8), r"\(0, 4\)"),
    "five channels": (np.zeros((4, 4, 5), np.uint8), "channels"),
    "bool": (np.eye(5) > 0, "not bool"), "object": (np.array([[None, 1]]), "not object"),
    "int64": (np.eye(5, dtype=int), "not int64"), "complex": (np.eye(5) * 1j, "not complex"),
    "big-endian": (np.eye(5, dtype=">u2"), "not >u2"), "path": ("image.png", "convert it first"),
    "nothing": (None, "not object"), "one pixel": (np.uint8([[7]]), "same grey value"),
    "all black": (np.zeros((5, 5), np.uint8), "same grey value"),
    "all white": (np.full((5, 5), 65535, np.uint16), "same grey value"),
    "NaN": (np.diag([1, np.nan, 2]), "1 pixels of the image are NaN or infinite; replace them"),
    "all NaN": (np.full((3, 3), np.nan), "9 pixels"),
    "infinite": (np.diag([1, np.inf, 2]), "NaN or infinite"),
    "minus infinity": (np.diag([1, -np.inf]), "NaN or infinite"), "huge": (np.diag([1, 1e300]), "too large"),
    "transparent": (np.dstack([np.eye(5, dtype=np.uint8)] * 3 + [np.zeros((5, 5), np.uint8)]),
                    "same grey value"),
    "too long": (np.zeros((1, 40_000), np.uint8), "32,766"),
}


@pytest.fixture(scope="module")
def aligner(batch): return Aligner.load(batch[0]/"aligner.safetensors")


@pytest.mark.parametrize("kind", ARRAYS)
def test_bad_arrays(aligner, kind):
    image, reason = ARRAYS[kind]
    with pytest.raises(ValueError, match=reason): aligner(image)
    with pytest.raises(ValueError, match=f"image 2: .*{reason}"): aligner.batch([IMAGE, IMAGE, image])


@pytest.mark.parametrize("shape", [(0, 4), (4,), "ab", (3.5, 4), (-1, 4), (10**6, 4), (math.nan, 4)])
def test_bad_output_shapes(aligner, shape):
    with pytest.raises(ValueError, match="shape ="): aligner(IMAGE, shape)


# --- the metadata of ChestX-ray14 ---------------------------------------------------------------------------

HEADER = ("Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
          "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]")
ROWS = ["1_0.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143",
        "1_1.png,No Finding,1,1,58,M,PA,2894,2729,0.143,0.143",
        "2_0.png,Mass|Nodule,0,2,80,F,AP,2500,2048,0.171,0.171"]
GOOD = "\n".join([HEADER, *ROWS]) + "\n"
CSV, TRAIN, TEST = "Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"


@pytest.fixture
def dataset(tmp_path):
    "Three images of two patients in the official layout"
    for name, text in ((CSV, GOOD), (TRAIN, "1_0.png\n1_1.png\n"), (TEST, "2_0.png\n")):
        atomic_write(tmp_path/"nih"/name, text)
    for k, name in enumerate(("1_0.png", "1_1.png", "2_0.png")):
        write_png(tmp_path/"nih"/"images"/name, random_image(k, (20, 16)))
    return tmp_path/"nih"


CHANGES = { # what is replaced by what, and what the error must say
    "unknown finding": ("Mass|Nodule", "Mass|Nodul", ["row 4", "'Nodul'", "did you mean 'Nodule'"]),
    "no label": ("Cardiomegaly", "", ["row 2", "no label"]),
    "contradiction": ("No Finding", "No Finding|Mass", ["row 3", "contradiction"]),
    "missing column": ("Patient ID", "Person", ["no column for patientid", "Person"]),
    "no header": (HEADER + "\n", "", ["no column for imageindex", "columns seen: 1_0.png"]),
    "a column twice": ("Follow-up #", "Patient ID", ["is duplicated"]),
    "wrong delimiter": (",", ";", ["';'", "save it with commas"]),
    "tabulators": (",", "\t", [r"'\t'", "save it with commas"]),
    "path traversal": ("1_1.png", "../x.png", ["row 3", "'../x.png'", "paths are refused"]),
    "absolute path": ("1_1.png", "/etc/x.png", ["row 3", "'/etc/x.png'"]),
    "Windows path": ("1_1.png", r"..\x.png", ["row 3"]),
    "no name": ("1_1.png", "", ["row 3"]),
    "patient is a word": (",1,57", ",one,57", ["row 2", "patient is 'one'"]),
    "no patient": (",1,57", ",,57", ["row 2", "patient is ''"]),
    "half a patient": (",1,57", ",1.5,57", ["row 2", "'1.5'"]),
    "infinite width": ("2682", "inf", ["row 2", "width is 'inf'"]),
    "age is a word": ("57", "adult", ["row 2", "'adult'"]),
    "negative age": ("57", "-3", ["row 2", "'-3'"]),
    "a row too short": (",0.171,0.171", "", ["row 4", "9 fields", "11"]),
    "a row too long": ("0.171,0.171", "0.171,0.171,extra", ["row 4", "12 fields", "11"]),
    "an open quotation mark": ("Cardiomegaly", '"Cardiomegaly', ["quotation mark"]),
    "a comma in a name": ("1_1.png", "1,1.png", ["row 3", "12 fields"]),
    "an image twice, labelled otherwise": (ROWS[2], f"{ROWS[2]}\n{ROWS[1].replace('No Finding', 'Mass')}",
                                           ["rows 3 and 5", "'1_1.png'"]),
    "empty": (GOOD, "", ["the file is empty", "fetch it again"]),
    "blank lines": (GOOD, "\n \n", ["the file is empty"]),
    "a header alone": (GOOD, HEADER, ["no row"]),
    "a web page": (GOOD, "<html>404</html>", ["web page"]),
    "not a text": (GOOD, "\ud800", ["UTF-8"]),
    "images of others": ("_", "__", ["none of the 3 images has a row"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_bad_metadata(dataset, name):
    old, new, said = CHANGES[name]
    (dataset/CSV).write_bytes(GOOD.replace(old, new).encode("utf-8", "surrogatepass"))
    with pytest.raises(MetadataError) as caught: load_dataset("nih", dataset)
    for part in [str(dataset) if name == "images of others" else str(dataset/CSV), *said]:
        assert part in str(caught.value)


HARMLESS = { # the same table in another dress
    "BOM": GOOD.encode("utf-8-sig"), "CRLF": GOOD.replace("\n", "\r\n").encode(),
    "CR": GOOD.replace("\n", "\r").encode(),
    "BOM and CRLF": GOOD.replace("\n", "\r\n").encode("utf-8-sig"), "no line end": GOOD.rstrip().encode(),
    "label with trailing spaces":
        GOOD.replace("Cardiomegaly", "Cardiomegaly  ").replace("No Finding", " No Finding ").encode(),
    "spaces in a label": GOOD.replace("Mass|Nodule", " Mass | Nodule ").encode(),
    "name with trailing spaces": GOOD.replace("1_1.png", " 1_1.png ").encode(),
    "a row twice": (GOOD + ROWS[1] + "\n").encode(), "blank lines": GOOD.replace("\n", "\n\n").encode(),
    "quotes": GOOD.replace("No Finding", '"No Finding"').encode(),
    "columns without a name": GOOD.replace("\n", ",,\n").encode(),
    "sex for gender": GOOD.replace("Gender", "Sex").encode(),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_metadata(dataset, name):
    plain = load_dataset("nih", dataset)
    (dataset/CSV).write_bytes(HARMLESS[name])
    loaded = load_dataset("nih", dataset)
    pd.testing.assert_frame_equal(loaded.table, plain.table)
    assert loaded.counts["repeated rows"] == (name == "a row twice")


@pytest.mark.parametrize("text, age", [("414", None), ("148", None), ("058Y", 58), ("011M", 0),
                                       ("", None), (" 44 ", 44), ("120", 120)])
def test_impossible_and_odd_ages(dataset, text, age):
    (dataset/CSV).write_text(GOOD.replace(",57,", f",{text},"))
    loaded = load_dataset("nih", dataset)
    assert loaded.table["age"].isna()[0] if age is None else loaded.table["age"][0] == age
    assert loaded.counts["ages not known"] == (age is None) and len(loaded) == 3


LISTS = { # train_val_list.txt, test_list.txt, and what the error must say
    "a patient in both": ("1_0.png\n", "1_1.png\n2_0.png\n",
                          ["patient 1 is in two splits", "'1_0.png' in train", "'1_1.png' in test"]),
    "an image in both": ("1_0.png\n1_1.png\n", "2_0.png\n1_1.png\n",
                         ["'1_1.png' is on the list for training and on the one for testing"]),
    "path traversal": ("1_0.png\n../1_1.png\n", "2_0.png\n", [TRAIN, "row 2", "'../1_1.png'"]),
    "empty": ("", "2_0.png\n", [TRAIN, "the file is empty"]),
    "a web page": ("1_0.png\n", "<html>", [TEST, "web page"]),
}


@pytest.mark.parametrize("name", LISTS)
def test_bad_lists(dataset, name):
    train, test, said = LISTS[name]
    for file, text in ((TRAIN, train), (TEST, test)): (dataset/file).write_text(text)
    with pytest.raises(MetadataError) as caught: load_dataset("nih", dataset)
    for part in said: assert part in str(caught.value)


def test_lists_that_name_missing_images_are_counted(dataset):
    (dataset/TRAIN).write_bytes("\ufeff1_0.png \r\n1_1.png\r\n\r\n7_0.png\r\n1_0.png\r\n".encode())
    os.remove(dataset/"images"/"1_0.png")
    write_png(dataset/"images"/"stray.png", IMAGE)
    dataset = load_dataset("nih", dataset)
    counts = {k: dataset.counts[k] for k in ("listed names without a row", "rows without a file",
                                             "files without a row", "rows on no list")}
    assert counts == {"listed names without a row": 1, "rows without a file": 1, "files without a row": 1,
                      "rows on no list": 0}
    assert dataset.table["image"].tolist() == ["1_1.png", "2_0.png"]


MISSING = {CSV: "no Data_Entry_2017", TRAIN: f"{TRAIN} is missing; fetch it, or remove the other list",
           TEST: f"{TEST} is missing",
           "images": "no images in images/"}


@pytest.mark.parametrize("name", MISSING)
def test_missing_parts_of_the_dataset(dataset, name):
    os.rename(dataset/name, dataset/"elsewhere")
    with pytest.raises(FileNotFoundError, match=MISSING[name]) as caught: load_dataset("nih", dataset)
    assert str(dataset) in str(caught.value)


# --- folders with an index or masks -------------------------------------------------------------------------

INDEX = {
    "empty": ("", "the file is empty"),
    "no column": ("name\na.png\n", "no column image or file; columns seen: name"),
    "wrong delimiter": ("file;patient\na.png;1\n", "';'"),
    "an image twice": ("file\na.png\na.png\n", "row 3: 'a.png' is duplicated"),
    "label": ("file,Mass\na.png,2\n", "row 2: Mass is '2', not one of 0, 1"),
    "split": ("file,split\na.png,dev\n", "row 2: split is 'dev'"),
    "path traversal": ("file\n../x.png\n", "names none of the 2 images"),
    "a row too short": ("file,patient,Mass\na.png,1\n", "row 2: 2 fields"),
    "a patient in two splits": ("file,patient,split\na.png,1,train\nb.png,1,test\n",
                                "patient 1 is in two splits"),
    "missing images alone": ("file\nc.png\n", "names none of the 2 images, such as 'a.png'"),
    "a web page": ("<html>", "web page"),
}


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate(("a.png", "b.png")): write_png(tmp_path/"images"/name, random_image(k))
    return tmp_path/"images"


@pytest.mark.parametrize("name", INDEX)
def test_bad_index(folder, name):
    content, said = INDEX[name]
    (folder/"index.csv").write_text(content)
    with pytest.raises(MetadataError) as caught: load_dataset("folder", folder)
    assert said in str(caught.value)


def test_an_index_in_another_dress(folder):
    (folder/"index.csv").write_bytes(
        "\ufefffile,patient,Mass\r\n b.png ,P1,1 \r\na.png,P2, 0\r\nmissing.png,P3,1\r\n".encode())
    dataset = load_dataset("folder", folder)
    assert dataset.table[["image", "patient", "Mass"]].values.tolist() == \
        [["a.png", "P2", 0], ["b.png", "P1", 1]]
    assert dataset.counts["rows without a file"] == 1


def test_bad_folders(folder, tmp_path):
    (tmp_path/"nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="nothing: no image"): load_folder(tmp_path/"nothing")
    with pytest.raises(FileNotFoundError, match="nowhere"): load_dataset("folder", tmp_path/"nowhere")
    with pytest.raises(FileNotFoundError, match="images: no folder images/"): load_masked(folder)
    write_png(tmp_path/"masked"/"images"/"a.png", IMAGE)
    write_png(tmp_path/"masked"/"masks"/"a.png", IMAGE[:50])
    with pytest.raises(ImageError, match=r"a.png: a mask of shape \(50, 90\) for an image of \(120, 90\)"):
        load_masked(tmp_path/"masked").mask(0)


# --- checkpoints, and other files that the program wrote ----------------------------------------------------

def resnet(): return {k: v for k, v in timm.create_model("resnet18").state_dict().items()}
def network(**given):
    return AlignerNetwork(**dict(weights="none", input_size=32, frame_height=30, frame_width=24) | given)


def checkpoint(state, **about):
    tensors = {f"network.{k}": v.contiguous() for k, v in state.items()}
    return save(tensors, metadata=dict(format=CHECKPOINT_FORMAT, config=json.dumps(network().config),
                                       metadata="{}") | about)


def zipped(value):
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


CHECKPOINTS = { # content, and what the error says
    "another program": (lambda: save(resnet()), "not an aligner"),
    "a classifier of timm": (lambda: checkpoint(resnet()), "does not fit its own settings"),
    "another backbone": (lambda: checkpoint(network(backbone="resnet18").state_dict()),
                         "does not fit its own settings"),
    "another family": (lambda: checkpoint(network(family="affine").state_dict()),
                       "does not fit its own settings"),
    "an unknown backbone": (lambda: checkpoint({}, config=json.dumps(network().config | dict(backbone="x"))),
                            "no model 'x'"),
    "an unknown setting": (lambda: checkpoint({}, config=json.dumps(network().config | dict(new=1))), "new"),
    "settings of a wrong type":
        (lambda: checkpoint({}, config=json.dumps(network().config | dict(input_size="wide"))),
         "does not fit"),
    "settings that are no mapping": (lambda: checkpoint({}, config="[1]"), "does not fit"),
    "no settings": (lambda: save(resnet(), metadata=dict(format=CHECKPOINT_FORMAT)), "does not fit"),
    "an older format": (lambda: checkpoint({}, format="cxr_stn aligner 1"), "not an aligner"),
    "NaN weights": (lambda: checkpoint({k: v * math.nan if v.is_floating_point() else v
                                        for k, v in network().state_dict().items()}),
                    "not finite"),
    "empty": (lambda: b"", "cannot be read"),
    "text": (lambda: b"hello, this is no checkpoint", "cannot be read"),
    "half": (lambda: checkpoint(network().state_dict())[:40_000], "cannot be read"),
    "one byte short": (lambda: checkpoint(network().state_dict())[:-1], "cannot be read"),
    "tensors of PyTorch": (lambda: zipped(network().state_dict()), "cannot be read"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bad_checkpoints(tmp_path, name):
    make, said = CHECKPOINTS[name]
    (tmp_path/"mine.safetensors").write_bytes(make())
    with pytest.raises(CheckpointError) as caught: read_network(tmp_path/"mine.safetensors")
    assert str(tmp_path/"mine.safetensors") in str(caught.value) and said in str(caught.value)


def of_another_program():
    model = onnx.load_from_string(find_checkpoint().read_bytes())
    onnx.helper.set_model_props(model, {"format": "another"})
    return model.SerializeToString()


GRAPHS = {"empty": lambda: b"", "text": lambda: b"hello, this is no graph",
          "half": lambda: find_checkpoint().read_bytes()[:5_000_000],
          "safetensors": lambda: checkpoint(network().state_dict()), "another program": of_another_program}


@pytest.mark.parametrize("name", GRAPHS)
def test_bad_graphs(tmp_path, name):
    (tmp_path/"mine.onnx").write_bytes(GRAPHS[name]())
    with pytest.raises(CheckpointError) as caught: Aligner.load(tmp_path/"mine.onnx")
    said = "not an aligner" if name == "another program" else "cannot be read"
    assert str(tmp_path/"mine.onnx") in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("how", [partial(pickle.dumps, protocol=2),
                                 lambda trap: zipped({"state_dict": trap})], ids=["pickle", "torch"])
@pytest.mark.parametrize("name", ["evil.onnx", "evil.safetensors", "evil.pt", "evil.ckpt", "chest"])
def test_no_pickle_is_executed(tmp_path, name, how):
    trap = tmp_path/"executed"
    (tmp_path/name).write_bytes(how(Payload(trap)))
    load = read_network if name.endswith(".safetensors") else Aligner.load
    with pytest.raises(CheckpointError, match=name): load(tmp_path/name)
    with pytest.raises(ValueError, match=f"{name}.*not a state dict"):
        load_network("resnet18", str(tmp_path/name))
    assert not trap.exists()
    data = (tmp_path/name).read_bytes()
    pickle.loads(data) if how.__class__ is partial else torch.load(io.BytesIO(data), weights_only=False)
    assert trap.exists(), "the trap of this test does not work"


def test_weights_of_another_network(tmp_path):
    torch.save(resnet(), tmp_path/"resnet18.pth")
    assert load_network("resnet18", str(tmp_path/"resnet18.pth"))
    with pytest.raises(ValueError, match="resnet18.pth.*do not fit.*resnet34"):
        load_network("resnet34", str(tmp_path/"resnet18.pth"))


ALIGNER = dict(n_images=30, n_phantoms=24, input_size=64, frame_height=60, frame_width=48, batch_size=8,
               epochs=2,
               backbone_weights="none", loss_network_weights="none", accelerator="cpu")
CLASSIFIER = dict(n_images=60, input_size=32, batch_size=16, epochs=2, phantom_prevalence=6.0,
                  classifier_weights="none",
                  accelerator="cpu")
FITS = {"aligner": (fit_aligner, TrainParams, ALIGNER, "aligner.safetensors"),
        "classifier": (fit_classifier, ClassifyParams, CLASSIFIER, "predictions.parquet")}
STORED = { # what happens to a checkpoint of a run that broke off, and what the error says
    "empty": (lambda file, trap: file.write_bytes(b""), "cannot be read"),
    "text": (lambda file, trap: file.write_text("hello, this is no checkpoint"), "cannot be read"),
    "half": (lambda file, trap: os.truncate(file, file.stat().st_size // 2), "cannot be read"),
    "a flipped bit": (lambda file, trap: flip(file, file.stat().st_size // 2), "checksum"),
    "pickle": (lambda file, trap: file.write_bytes(pickle.dumps(Payload(trap), protocol=2)),
               "cannot be read"),
    "code beside the weights":
        (lambda file, trap: torch.save(torch.load(file) | dict(hyper=Payload(trap)), file), "cannot be read"),
    "a list": (lambda file, trap: torch.save([1], file), "not that of a training"),
    "another program": (lambda file, trap: torch.save(dict(state_dict=resnet()), file), "of another network"),
    "another backbone": (lambda file, trap: other_shapes(file), "of another network"),
}


def flip(file, folder):
    content = bytearray(file.read_bytes())
    content[folder] ^= 1
    file.write_bytes(content)


def other_shapes(file):
    "The same names, as another width of the same architecture has them"
    kept = torch.load(file, weights_only=True)
    kept["state_dict"] = {k: torch.cat([v, v]) if v.ndim else v for k, v in kept["state_dict"].items()}
    torch.save(kept, file)


@pytest.fixture(scope="module", params=FITS)
def broken_off(request, tmp_path_factory):
    """A run that ended unbroken, one of the same parameters that broke off in its last epoch, and how to go
    on with it"""
    fit, kind, given, result = FITS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    def go_on(name): return fit(kind(**given, out_dir=str(folder/name), cache_dir=str(folder/"cache")))
    go_on("whole")
    class PowerCut(Exception): pass
    def cut(self, trainer, module):
        if trainer.current_epoch == 1: raise PowerCut
    with mock.patch.object(StepSeeds, "on_validation_start", cut, create=True), pytest.raises(PowerCut):
        go_on("broken")
    return folder, go_on, result


@pytest.mark.parametrize("name", STORED)
def test_a_spoilt_checkpoint_is_not_gone_on_from(broken_off, tmp_path, name):
    folder, go_on, result = broken_off
    (spoil, said), last, trap = STORED[name], folder/"broken"/"checkpoints"/"last.ckpt", tmp_path/"executed"
    content = last.read_bytes()
    try:
        spoil(last, trap)
        trap.unlink(missing_ok=True)  # what making it may have executed
        with pytest.raises(CheckpointError) as caught: go_on("broken")
    finally: last.write_bytes(content)
    assert f"checkpoint {last}" in str(caught.value) and said in str(caught.value)
    assert f"remove the folder {last.parent}, and the run begins from scratch" in str(caught.value)
    assert not trap.exists() and not (folder/"broken"/result).exists()


def test_without_its_checkpoints_a_run_begins_from_scratch(broken_off):
    "As the error says; and it ends like the run that nothing happened to"
    folder, go_on, result = broken_off
    shutil.rmtree(folder/"broken"/"checkpoints")
    go_on("broken")
    for name in ("log.csv", result):
        assert (folder/"broken"/name).read_bytes() == (folder/"whole"/name).read_bytes(), name


RUBBISH = ["", "{", "null", "[]", "{}", "7", '"text"', '{"failed": 1}', "\x00\x01"]


@pytest.mark.parametrize("text", RUBBISH)
def test_rubbish_in_the_cache_is_made_again(folder, tmp_path, text):
    dataset = load_dataset("folder", folder)
    whole = build_cache(dataset, 32, tmp_path/"cache").images.copy()
    folder = cache_folder(dataset, 32, tmp_path/"cache")
    for name in ("index.json", "block_00000000.json"): (folder/name).write_text(text)
    assert open_cache(dataset, 32, folder) is None
    assert (build_cache(dataset, 32, tmp_path/"cache").images == whole).all()


@pytest.mark.parametrize("text", [*RUBBISH, '{"image": 1}', '{"checkpoint": "x"}\n[]',
                                  '{"checkpoint": "x"}\n{"image": "a.png"}'])
def test_rubbish_in_the_records_is_aligned_again(folder, tmp_path, aligner, text):
    dataset = load_dataset("folder", folder)
    (tmp_path/"out").mkdir()
    (tmp_path/"out"/"records.jsonl").write_text(text + "\n")
    table = align_dataset(dataset, aligner, tmp_path/"out", folder, progress=False)
    assert (table["status"] == "aligned").all() and len(read_records(tmp_path/"out"/"records.jsonl")[1]) == 2


def test_records_that_name_files_elsewhere_remove_none(folder, tmp_path, aligner):
    keep, out = tmp_path/"keep.png", tmp_path/"out"
    write_png(keep, IMAGE)
    align_dataset(load_dataset("folder", folder), aligner, out, folder, progress=False)
    text = (out/"records.jsonl").read_text()
    text = text.replace('"images/a.png"', '"../keep.png"').replace('"images/b.png"', json.dumps(str(keep)))
    (out/"records.jsonl").write_text(text)
    align_dataset(load_dataset("folder", folder), aligner, out, folder, (60, 48), progress=False)
    assert keep.exists()


PARQUET = {"empty": b"", "text": b"image,prob_Mass\n", "half": b"PAR1" + bytes(50), "pickle": pickle.dumps(1)}


@pytest.mark.parametrize("name", PARQUET)
def test_bad_predictions(tmp_path, name):
    (tmp_path/"predictions.parquet").write_bytes(PARQUET[name])
    with pytest.raises(PredictionError, match="predictions.parquet"):
        read_predictions(tmp_path/"predictions.parquet")


def test_bad_files_of_chestmnist(tmp_path):
    file, trap = tmp_path/"chestmnist_64.npz", tmp_path/"executed"
    np.savez(tmp_path/"evil.npz", train_images=np.array([Payload(trap)], object), allow_pickle=True)
    for content in (b"", b"PK\x03\x04 half", pickle.dumps(Payload(trap)), (tmp_path/"evil.npz").read_bytes()):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="chestmnist_64.npz"): ChestMNISTDataset(file, 64)
    assert not trap.exists()


# --- parameters ---------------------------------------------------------------------------------------------

PARAMETERS = [
    (TrainParams, dict(lr="fast"), "parameter 'lr': 'fast' is not a number"),
    (TrainParams, dict(lr=math.nan), "parameter 'lr': nan is not a finite number"),
    (TrainParams, dict(lr=-1), "parameter 'lr'"),
    (TrainParams, dict(lr=True), "parameter 'lr': True is not a number"),
    (TrainParams, dict(epochs=2.5), "parameter 'epochs': 2.5 is not an integer"),
    (TrainParams, dict(epochs="many"), "parameter 'epochs': 'many' is not an integer"),
    (TrainParams, dict(resume="perhaps"), "parameter 'resume': 'perhaps' is not true or false"),
    (TrainParams, dict(crop="0.1, 0.2, high, 1"), "parameter 'crop': item 2: 'high' is not a number"),
    (TrainParams, dict(crop=[0.1, 0.2]), "parameter 'crop'"),
    (TrainParams, dict(loss_layers={"a": 1}), "parameter 'loss_layers': {'a': 1} is not a list"),
    (TrainParams, dict(data="nhi"), "'nhi' is not one of 'phantom', 'nih', 'folder'; did you mean 'nih'?"),
    (TrainParams, dict(data=None), "parameter 'data': None is not one of"),
    (TrainParams, dict(data_dir=["a", "b"]), "parameter 'data_dir': ['a', 'b'] is not a string"),
    (TrainParams, dict(batchsize=8), "unknown parameter 'batchsize'; did you mean 'batch_size'?"),
    (TrainParams, dict(seed=None), "parameter 'seed': None is not an integer"),
    (AlignParams, dict(n_images=0), "parameter 'n_images'"),
    (AlignParams, dict(passes="two"), "parameter 'passes': 'two' is not an integer"),
    (AlignParams, dict(output_height=8), "unknown parameter 'output_height': it is called 'size' now"),
    (ClassifyParams, dict(arm="oracle", data="nih"), "arm = 'oracle' needs data = 'phantom'"),
    (ClassifyParams, dict(crop_area=2), "parameter 'crop_area'"),
    (AlignParams, dict(devices=2), "unknown parameter 'devices'"),  # training alone is spread over several
    (EvaluateParams, dict(devices=2), "unknown parameter 'devices'"),
    (EvaluateParams, dict(n_images="all"), "parameter 'n_images': 'all' is not an integer"),
    (CompareParams, dict(level=95), "parameter 'level'"),
    (SweepParams, dict(arms="standrad"), "'standrad' is not one of"),
    (SweepParams, dict(parameters=[1]), "parameter 'parameters'"),
]


@pytest.mark.parametrize("kind, given, said", PARAMETERS, ids=lambda value: getattr(value, "__name__", None)
                         or str(value)[:40])
def test_wrong_parameters(kind, given, said):
    with pytest.raises(ParameterError) as caught: kind(**given)
    assert said in str(caught.value)
    with pytest.raises(ParameterError): kind.from_namespace(given)


OPTIONS = [(dict(data="nhi"), "'nih'"), (dict(data="nih"), "data_dir"), (dict(n_images=0), "n_images"),
           (dict(data_dir="here"), "data_dir"),
           (dict(posse=1), "posse"), (dict(valid=0.2), "valid"),
           (dict(data="folder", data_dir=".", pose=1), "pose"), (dict(pose=-1.0), "pose"),
           (dict(data="folder", data_dir="/nowhere/at/all"), "/nowhere/at/all"),
           (dict(data="nih", data_dir="/nowhere"), "/nowhere")]


@pytest.mark.parametrize("given, said", OPTIONS, ids=lambda value: str(value)[:40])
def test_wrong_options_of_images(given, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said): load_dataset(**given)


@pytest.mark.parametrize("fraction", [1, -0.1, math.nan, 7])
def test_impossible_fractions(dataset, fraction):
    with pytest.raises(ValueError, match="valid_fraction"):
        load_dataset("nih", dataset, valid_fraction=fraction)
    with pytest.raises(ValueError, match="test_fraction"):
        load_dataset("folder", dataset/"images", test_fraction=fraction)


@pytest.mark.parametrize("given, said", [(dict(device="quantum"), "choose auto, cpu, cuda"),
                                         (dict(passes=0), "passes = 0"),
                                         (dict(checkpoint="chesst"), "released aligners: ")])
def test_wrong_options_of_the_aligner(batch, given, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        Aligner.load(**dict(checkpoint=batch[0]/"aligner.safetensors") | given)


def test_sizes_that_nothing_can_be_prepared_at(folder, tmp_path):
    with pytest.raises(ValueError, match="size = 0"): build_cache(load_dataset("folder", folder), 0, tmp_path)
    with pytest.raises(ValueError, match="no images to cache"):
        build_cache(load_dataset("folder", folder).select([]), 32, tmp_path)
