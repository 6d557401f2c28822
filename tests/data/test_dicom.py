"""DICOM in and out: grey values as the standard says, real files of pydicom, nothing of a person, and what is
refused."""
import io
import logging
import os
import pickle
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from helpers import python, random_image
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra dicom)")
from pydicom import pixels, uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from cxr_stn.data import dicom_out
from cxr_stn.data.cache import build_cache
from cxr_stn.data.datasets import load_folder
from cxr_stn.data.dicom import is_dicom, list_radiographs, read_dicom, read_radiograph
from cxr_stn.data.dicom_out import write_dicom
from cxr_stn.data.dicom_values import expected_orientation, header_conflicts
from cxr_stn.data.images import ImageError, list_images, write_png
from cxr_stn.sources import load_dataset

DX = "1.2.840.10008.5.1.4.1.1.1.1"
SECRETS = ("Doe", "Jane", "ID-1234", "19560712", "Dr^Who", "Street")
NATIVE = {uid.ImplicitVRLittleEndian: (True, True), uid.ExplicitVRLittleEndian: (False, True),
          uid.ExplicitVRBigEndian: (False, False)}


def sample_file(name):
    "A file of pydicom or pydicom-data; skips the test where it is missing"
    path = get_testdata_file(name, download=False)
    return path or pytest.skip(f"{name}: pydicom-data is not installed")


def header(stored, syntax=uid.ExplicitVRLittleEndian, **entries):
    "A DX header for these stored values, with a person in it"
    ds, bits = Dataset(), 8 * stored.dtype.itemsize
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = DX, "1.2.3.4", "1.2.3"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Doe^Jane", "ID-1234", "19560712"
    ds.ReferringPhysicianName, ds.StudyDescription = "Dr^Who", "chest of Jane Doe"
    ds.PatientAddress = "Street 1"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    for keyword, value in entries.items(): setattr(ds, keyword, value)
    if "BitsStored" in entries and "HighBit" not in entries: ds.HighBit = ds.BitsStored - 1
    return ds


def write(path, stored, syntax=uid.ExplicitVRLittleEndian, preamble=True, meta=True, **entries):
    "A DICOM file with these stored values, with or without the first 132 bytes and group 2; its path"
    ds = header(stored, syntax, **entries)
    order = "<" if NATIVE[syntax][1] else ">"
    ds.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    ds["PixelData"].VR = "OW"
    if stored.dtype.itemsize == 1 and order == ">": ds["PixelData"].VR = "OB"
    if not meta: ds.file_meta = FileMetaDataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(path, implicit_vr=NATIVE[syntax][0], little_endian=NATIVE[syntax][1],
                   enforce_file_format=preamble)
    return path


def lut(entries, first=0, bits=16, vr="US"):
    "An item of a LUT sequence"
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    data = np.asarray(entries)
    item.add_new("LUTData", vr, data.astype("<u2").tobytes() if vr == "OW" else data.tolist())
    return item


@pytest.fixture
def file(tmp_path): return tmp_path / "x.dcm"


@pytest.fixture
def stored():
    "A smooth image of 12 bits, (60, 50) uint16"
    return random_image(0, (60, 50)).astype(np.uint16) * 16 + 7


@pytest.fixture(scope="module")
def aligner():
    from cxr_stn.inference import Aligner
    return Aligner.load()


def full(share, bits=16): return np.rint(np.round(np.asarray(share) * (2**bits - 1), 6)).astype(np.int64)


# --- grey values -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_windows_follow_the_formulas_of_the_standard(file, stored, function):
    centre, width = 1800, 1000
    more = {} if function is None else {"VOILUTFunction": function}
    write(file, stored, BitsStored=12, WindowCenter=centre, WindowWidth=width, **more)
    x = stored.astype(np.float64)
    if function == "SIGMOID": expected = 1 / (1 + np.exp(-4 * (x - centre) / width))
    elif function == "LINEAR_EXACT":
        expected = np.where(x <= centre - width / 2, 0,
                            np.where(x > centre + width / 2, 1, (x - centre) / width + .5))
    else:
        low, high = centre - .5 - (width - 1) / 2, centre - .5 + (width - 1) / 2
        expected = np.where(x <= low, 0, np.where(x > high, 1, (x - (centre - .5)) / (width - 1) + .5))
    image = read_dicom(file)
    assert (image.pixels == full(expected)).all() and (image.values == stored).all() and image.warnings == ()


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_voi_lut_sequence_goes_before_the_window(file, stored, vr, syntax, bits):
    table = (np.linspace(0, 1, 3000)**2 * (2**bits - 1)).astype(int)
    write(file, stored, syntax, BitsStored=12, VOILUTSequence=[lut(table, 500, bits, vr)], WindowCenter=5,
          WindowWidth=9)
    expected = table[np.clip(stored.astype(int) - 500, 0, 2999)] / (2**bits - 1)
    assert (read_dicom(file).pixels == full(expected)).all()


def test_luts_of_big_endian_files(file, stored):
    table = np.arange(4096) * 5
    item = lut(table, vr="OW")
    item["LUTData"].value = table.astype(">u2").tobytes()
    write(file, stored, uid.ExplicitVRBigEndian, BitsStored=12, ModalityLUTSequence=[item])
    assert (read_dicom(file).values == stored.astype(int) * 5).all()


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_a_modality_lut_may_begin_below_zero(file, syntax):
    stored = np.arange(-60, 60, dtype=np.int16).reshape(10, 12)
    table = np.arange(100) * 3
    write(file, stored, syntax, BitsStored=12, ModalityLUTSequence=[lut(table, -50)])
    assert (read_dicom(file).values == table[np.clip(stored + 50, 0, 99)]).all()


def test_rescale_goes_before_the_window(file, stored):
    write(file, stored, BitsStored=12, RescaleSlope=0.5, RescaleIntercept=-100, WindowCenter=800,
          WindowWidth=601)
    image, measured = read_dicom(file), stored * 0.5 - 100
    assert image.values.dtype == np.float32 and (image.values == measured.astype(np.float32)).all()
    assert (image.pixels == full(np.clip((measured - 799.5) / 600 + .5, 0, 1))).all()


def test_a_negative_slope_turns_the_polarity_once(file, stored):
    write(file, stored, BitsStored=12, RescaleSlope=-1, RescaleIntercept=4095)
    assert (read_dicom(file).values == 4095 - stored).all()


INVERSIONS = [("MONOCHROME1", None), ("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "INVERSE"),
              ("MONOCHROME1", "IDENTITY")]


@pytest.mark.parametrize("function, mirror", [("LINEAR", 4096), ("LINEAR_EXACT", 4095), ("SIGMOID", 4095)])
@pytest.mark.parametrize("kind, shape", INVERSIONS)
def test_both_polarities_give_one_result(tmp_path, stored, function, mirror, kind, shape):
    more = dict(BitsStored=12, WindowWidth=1501, VOILUTFunction=function)
    plain = read_dicom(write(tmp_path / "a", stored, WindowCenter=2100.5, PresentationLUTShape="IDENTITY",
                             **more))
    shapes = {} if shape is None else {"PresentationLUTShape": shape}
    image = read_dicom(write(tmp_path / "b", 4095 - stored, PhotometricInterpretation=kind,
                             WindowCenter=mirror - 2100.5, **shapes, **more))
    assert (image.pixels == plain.pixels).all() and (image.values == plain.values).all()
    contradiction = (kind, shape) in [("MONOCHROME2", "INVERSE"), ("MONOCHROME1", "IDENTITY")]
    assert any("contradict" in text for text in image.warnings) == contradiction and plain.warnings == ()


@pytest.mark.parametrize("bits", range(8, 17))
@pytest.mark.parametrize("signed", [False, True])
def test_every_depth_is_exact_and_uses_the_whole_range(file, bits, signed):
    low = -2**(bits - 1) if signed else 0
    values = np.linspace(low, low + 2**bits - 1, 48).astype(np.int64).reshape(6, 8)
    kind = {(8, False): np.uint8, (8, True): np.int8}.get((bits, signed), np.int16 if signed else np.uint16)
    image = read_dicom(write(file, values.astype(kind), BitsStored=bits))
    assert (image.values == values).all() and image.values.dtype in (np.uint8, np.uint16, np.int16)
    assert (image.pixels == full((values - low) / (2**bits - 1), 8 if bits == 8 else 16)).all()
    assert image.pixels.dtype == (np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_unused_bits_do_not_count(file, stored, kind):
    values = (stored.astype(np.int32) - (2048 if kind == np.int16 else 0)).astype(kind)
    overlay = np.where(np.eye(60, 50, dtype=bool), 0xF000, 0x3000).astype(np.uint16)
    dirty = ((values.view(np.uint16) & 0x0FFF) | overlay).view(kind)
    assert (read_dicom(write(file, dirty, BitsStored=12)).values == values).all()


def test_values_at_the_top_of_sixteen_bits(file, stored):
    assert (read_dicom(write(file, stored << 4 | 5, BitsStored=12, HighBit=15)).values == stored).all()


@pytest.mark.parametrize("entries, warning", [
    (dict(WindowCenter=5, WindowWidth=0), "window is not valid"),
    (dict(WindowCenter=5), "window is not valid"),
    (dict(WindowCenter=2000, WindowWidth=900, VOILUTFunction="STEEP"), "VOILUTFunction"),
    (dict(RescaleSlope=0, RescaleIntercept=0), "RescaleSlope"),
    (dict(PresentationIntentType="FOR PROCESSING"), "FOR PROCESSING"),
    (dict(BurnedInAnnotation="YES"), "burned")])
def test_warnings_of_the_header(file, stored, entries, warning):
    image = read_dicom(write(file, stored, BitsStored=12, **entries))
    assert len(image.warnings) == 1 and warning in image.warnings[0] and image.pixels.std() > 0
    assert (image.values == stored).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("centre", [-500, 99999])
@pytest.mark.parametrize("padding", [{}, dict(PixelPaddingValue=0)])
def test_a_window_beside_all_values_is_not_applied(tmp_path, stored, photometric, centre, padding):
    stored[:5] = 0
    more = dict(BitsStored=12, PhotometricInterpretation=photometric, **padding)
    image = read_dicom(write(tmp_path / "a", stored, WindowCenter=centre, WindowWidth=2, **more))
    whole = read_dicom(write(tmp_path / "b", stored, **more))
    assert (image.pixels == whole.pixels).all() and image.pixels[5:].std() > 0 and whole.warnings == ()
    assert image.warnings == ("the window shows nothing and was not applied",)


def test_what_shows_nothing_by_itself_is_no_fault_of_the_window(file, stored):
    flat = np.full_like(stored, 7)
    assert read_dicom(write(file, flat, BitsStored=12, WindowCenter=99999, WindowWidth=2)).warnings == ()
    assert read_dicom(write(file, stored, BitsStored=12, PixelPaddingValue=0, PixelPaddingRangeLimit=4095,
                            WindowCenter=99999, WindowWidth=2)).warnings == ()


@pytest.mark.parametrize("keyword, number", [("RescaleSlope", b"0.1259"), ("WindowWidth", b"900.71"),
                                             ("NumberOfFrames", b"000001"), ("PixelSpacing", b"0.1259")])
def test_entries_that_are_no_numbers_are_dropped_and_named(file, stored, keyword, number):
    values = [number.decode()] * (2 if keyword == "PixelSpacing" else 1)
    write(file, stored, WindowCenter=2000, **{keyword: values if len(values) > 1 else values[0]})
    assert number in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(number, b"1,2 mm"))
    found = read_dicom(file)
    assert f"{keyword} could not be read" in found.warnings and found.spacing is None
    assert (found.values == stored).all()


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("value, limit", [(0, None), (4095, None), (0, 300), (4095, 3900)])
def test_padding_does_not_count_in_either_polarity(tmp_path, stored, aligner, syntax, value, limit):
    "Black where it lies, no part of the grey values, and no reason for another pose"
    chest = cv2.resize(random_image(0, (60, 50)), (200, 240), interpolation=cv2.INTER_CUBIC)
    plain = np.clip(chest.astype(np.uint16) * 12 + 400, 301, 3899)
    padded, darkest = np.zeros(plain.shape, bool), plain[:, 30:].min()
    padded[:, :30] = True
    images = []
    for kind, turned in ("MONOCHROME2", False), ("MONOCHROME1", True):
        pixels, edges = np.where(padded, value, plain), [value, limit]
        if limit is not None: pixels = np.where(padded & (np.arange(200) % 2 == 1), limit, pixels)
        if turned: pixels, edges = 4095 - pixels, [None if edge is None else 4095 - edge for edge in edges]
        more = {} if limit is None else {"PixelPaddingRangeLimit": edges[1]}
        path = write(tmp_path / kind, pixels.astype(np.uint16), syntax, BitsStored=12,
                     PhotometricInterpretation=kind, PresentationLUTShape="INVERSE" if turned else "IDENTITY",
                     WindowCenter=2048, WindowWidth=4096, PixelPaddingValue=edges[0], **more)
        images.append(read_dicom(path))
    for image in images:
        assert (image.values == np.where(padded, darkest, plain)).all() and image.warnings == ()
        assert (image.pixels[padded] == 0).all()
        assert (image.pixels[~padded] == full(plain / 4095)[~padded]).all()
    poses = [aligner(values).matrix for values in (images[0].values, images[1].values,
                                                   np.where(padded, darkest, plain))]
    assert (poses[0] == poses[1]).all() and (poses[0] == poses[2]).all()


@pytest.mark.parametrize("vr", [b"SS", b"US"])
@pytest.mark.parametrize("syntax", NATIVE)
def test_padding_of_signed_pixels(file, syntax, vr):
    "Its value may be written as an unsigned one, 63536 for -2000"
    values = np.arange(-60, 60, dtype=np.int16).reshape(10, 12)
    write(file, np.where(np.eye(10, 12), -2000, values).astype(np.int16), syntax, PixelPaddingValue=-2000)
    data = file.read_bytes()
    for tag in (b"\x28\x00\x20\x01", b"\x00\x28\x01\x20"): data = data.replace(tag + b"SS", tag + vr)
    file.write_bytes(data)
    assert (read_dicom(file).values == np.where(np.eye(10, 12), -59, values)).all()


def test_overlay_planes_are_not_burned_in(tmp_path, stored):
    plain = read_dicom(write(tmp_path / "a", stored, BitsStored=12))
    ds = header(stored, BitsStored=12)
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"
    for tag, vr, entry in [(0x60000010, "US", 60), (0x60000011, "US", 50), (0x60000040, "CS", "G"),
                           (0x60000050, "SS", [1, 1]), (0x60000100, "US", 1), (0x60000102, "US", 0),
                           (0x60003000, "OW", bytes([255] * 376))]: ds.add_new(tag, vr, entry)
    ds.save_as(tmp_path / "b", enforce_file_format=True)
    assert (read_dicom(tmp_path / "b").pixels == plain.pixels).all()


def group(**macros):
    "A functional group: name of the macro's sequence -> its entries"
    ds = Dataset()
    for name, entries in macros.items():
        item = Dataset()
        for keyword, value in entries.items(): setattr(item, keyword, value)
        setattr(ds, name, [item])
    return ds


@pytest.mark.parametrize("syntax", NATIVE)
def test_functional_groups_are_read_where_the_plain_entry_is_absent(tmp_path, stored, syntax):
    both = np.stack([stored, stored[::-1]])
    groups = dict(
        SharedFunctionalGroupsSequence=[group(PixelMeasuresSequence=dict(PixelSpacing=[0.2, 0.3]),
                                              FrameVOILUTSequence=dict(WindowCenter=1, WindowWidth=1))],
        PerFrameFunctionalGroupsSequence=[
            group(PixelValueTransformationSequence=dict(RescaleSlope=k, RescaleIntercept=-k),
                  FrameVOILUTSequence=dict(WindowCenter=1000 * k, WindowWidth=500 * k,
                                           VOILUTFunction="LINEAR_EXACT"),
                  PatientOrientationInFrameSequence=dict(PatientOrientation=["L", "F"])) for k in (1, 2)])
    def run(name, **entries):
        return write(tmp_path / name, both, syntax, BitsStored=12, NumberOfFrames=2, Rows=60, Columns=50,
                     **entries)
    path = run("a", **groups)
    for k, image in ((1, read_dicom(path, 1)), (2, read_dicom(path, 2))):
        measured = both[k - 1].astype(int) * k - k
        assert (image.values == measured).all() and image.spacing == (0.2, 0.3) and image.warnings == (
            "the pixels are not square",)
        assert image.patient_orientation == "L/F"
        assert (image.pixels == full(np.clip((measured - 1000 * k) / (500 * k) + .5, 0, 1))).all()
        write_dicom(tmp_path / "b", path, image.pixels, np.diag([2, 2, 1.0]), frame=k)
        ds = pydicom.dcmread(tmp_path / "b")
        assert ds.PixelSpacing == [0.4, 0.6] and ds.PatientOrientation == ["L", "F"]
        assert ds.RescaleSlope == 1 and "VOILUTFunction" not in ds
        assert not [element for element in ds if "FunctionalGroups" in element.keyword]
    plain = read_dicom(run("c", PixelSpacing=[1, 1], RescaleSlope=3, RescaleIntercept=0, **groups), 2)
    assert plain.spacing == (1, 1) and (plain.values == 3 * both[1].astype(int)).all()


def test_functional_groups_of_a_real_file():
    path = sample_file("eCT_Supplemental.dcm")
    ds, image = pydicom.dcmread(path), read_dicom(path, 2)
    shared = ds.SharedFunctionalGroupsSequence[0]
    assert image.spacing == tuple(shared.PixelMeasuresSequence[0].PixelSpacing) == (0.388672, 0.388672)
    assert "RescaleSlope" not in ds and (image.values == ds.pixel_array[1] - 1024.0).all()


# --- real files ------------------------------------------------------------------------------------------

WINDOWED = ["MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm",
            "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "693_J2KI.dcm", "vlut_04.dcm",
            "mlut_18.dcm", "RG1_UNCR.dcm", "RG3_UNCR.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "MR2_UNCR.dcm",
            "JPEGLSNearLossless_16.dcm", "bad_sequence.dcm"]


@pytest.mark.parametrize("name", WINDOWED)
def test_real_files_agree_with_pydicom(name):
    path = sample_file(name)
    image, ds = read_dicom(path), pydicom.dcmread(path)
    measured = pixels.apply_modality_lut(ds.pixel_array, ds).astype(np.float64)
    padded = ds.pixel_array == ds.get("PixelPaddingValue", 99999)
    assert padded.any() == (name == "693_J2KI.dcm") and (image.pixels[padded] == 0).all()
    if "VOILUTSequence" in ds or "WindowCenter" in ds:
        shown = pixels.apply_voi_lut(measured if "VOILUTSequence" not in ds else ds.pixel_array,
                                     ds).astype(np.float64)
        if "VOILUTSequence" in ds: low, high = 0, 2**ds.VOILUTSequence[0].LUTDescriptor[2] - 1
        else:
            low, high = ((0, 2**ds.BitsStored - 1) if not ds.PixelRepresentation
                         else (-2**(ds.BitsStored - 1), 2**(ds.BitsStored - 1) - 1))
            low, high = (edge * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
                         for edge in (low, high))
        share = (shown - low) / (high - low)
        share = 1 - share if ds.PhotometricInterpretation == "MONOCHROME1" else share
        assert np.abs(image.pixels - share * np.iinfo(image.pixels.dtype).max)[~padded].max() < 0.51
    sign = -1 if ds.PhotometricInterpretation == "MONOCHROME1" else 1
    shift = (image.values.astype(np.float64) - sign * measured)[~padded]
    assert (image.values[padded] == image.values[~padded].min()).all()
    assert np.ptp(shift) < 1e-3 and image.transfer_syntax == ds.file_meta.TransferSyntaxUID.name


def test_the_chest_is_the_same_plain_and_compressed(aligner):
    plain, lossless, lossy = (read_dicom(sample_file(f"RG1_{kind}.dcm")) for kind in ("UNCR", "J2KR", "J2KI"))
    assert (plain.pixels == lossless.pixels).all() and (plain.values == lossless.values).all()
    assert (plain.spacing, plain.view, plain.lateral, plain.photometric,
            plain.warnings) == (None, "PA", False, "MONOCHROME1", ())
    one, two, three = (aligner(image.values) for image in (plain, lossless, lossy))
    assert (one.matrix == two.matrix).all() and not one.flagged and not one.inverted
    corners = np.array([[0, 0, 1], [one.shape[1], one.shape[0], 1]])
    assert np.abs(corners @ (one.matrix - three.matrix).T).max() < 20     # of 1955 pixels
    assert header_conflicts(plain, one.mirrored, one.inverted, one.pose.theta) == ()
    windowed = aligner(plain.pixels)
    assert np.abs(corners @ (one.matrix - windowed.matrix).T).max() < 40


def test_header_and_network_of_a_real_chest_agree_or_are_told_apart(aligner):
    image = read_dicom(sample_file("RG1_UNCR.dcm"))
    def conflicts(values, orientation):
        a = aligner(np.ascontiguousarray(values))
        return header_conflicts(image._replace(patient_orientation=orientation), a.mirrored, a.inverted,
                                a.pose.theta)
    upright, mirrored = image.values, image.values[:, ::-1]
    for values, orientation in [(np.rot90(upright, -1), "H/L"), (np.rot90(upright), "F/R"),
                                (np.rot90(upright, 2), "R/H"), (mirrored, "R/F"),
                                (upright[::-1], "L/H"), (np.rot90(mirrored, -1), "H/R")]:
        assert conflicts(values, orientation) == ()
        assert len(conflicts(values, "L/F")) >= 1
    assert [text.split(":")[0] for text in conflicts(65535 - upright, "L/F")] == ["polarity"]


COLOUR = {"SC_rgb_dcmtk_+eb+cr.dcm": "RGB", "SC_rgb_jpeg_dcmtk.dcm": "YBR_FULL",
          "SC_ybr_full_422_uncompressed.dcm": "YBR_FULL_422", "examples_jpeg2k.dcm": "YBR_RCT",
          "examples_palette.dcm": "PALETTE COLOR", "SC_rgb_rle_16bit.dcm": "RGB",
          "SC_rgb_jpeg_gdcm.dcm": "RGB", "GDCMJ2K_TextGBR.dcm": "YBR_RCT", "US1_J2KI.dcm": "YBR_ICT"}


@pytest.mark.parametrize("name", COLOUR)
def test_colour_becomes_grey_with_a_warning(name):
    path = sample_file(name)
    image, ds = read_dicom(path), pydicom.dcmread(path)
    rgb = ds.pixel_array
    if COLOUR[name] == "PALETTE COLOR": rgb = pixels.apply_color_lut(rgb, ds)
    luma = rgb[..., :3].astype(np.float64) @ [.299, .587, .114]
    assert np.abs(image.pixels - luma).max() <= max(1, luma.max() / 10_000)
    assert image.photometric == COLOUR[name]
    assert image.warnings[0] == f"colour ({COLOUR[name]}) was converted to grey"


def test_computed_radiographs_of_pydicom():
    root = os.path.dirname(sample_file("dicomdirtests/DICOMDIR"))
    found = [read_dicom(path) for path in list_radiographs(os.path.join(root, "77654033"))]
    cr = [image for image in found if image.photometric == "MONOCHROME1"]
    assert len(cr) == 3 and {image.spacing for image in cr} == {(0.1, 0.1)}
    assert sorted((image.view, image.lateral) for image in cr) == [("AP", False), ("AP", False), ("LL", True)]
    [lateral] = [image for image in cr if image.lateral]
    assert lateral.warnings[0].startswith("lateral view by header") and "contradict" in lateral.warnings[1]


# --- spacing and view ------------------------------------------------------------------------------------

@pytest.mark.parametrize("entries, spacing", [
    ({}, None), (dict(PixelSpacing=[0, 0]), None), (dict(PixelSpacing=[0.1, 0]), None),
    (dict(PixelSpacing=""), None), (dict(PixelSpacing=[-1, 1]), None),
    (dict(PixelSpacing=[0.14, 0.15]), (0.14, 0.15)), (dict(ImagerPixelSpacing=[0.2, 0.2]), (0.2, 0.2)),
    (dict(NominalScannedPixelSpacing=[0.3, 0.3]), (0.3, 0.3)),
    (dict(PixelSpacing=[0.1, 0.1], ImagerPixelSpacing=[0.2, 0.2], NominalScannedPixelSpacing=[0.3, 0.3]),
     (0.1, 0.1)),
    (dict(ImagerPixelSpacing=[0.2, 0.2], NominalScannedPixelSpacing=[0.3, 0.3]), (0.2, 0.2)),
    (dict(PixelSpacing=[0, 0], ImagerPixelSpacing=[0.2, 0.2]), (0.2, 0.2))])
def test_spacing_is_read_in_order_and_never_invented(file, stored, entries, spacing):
    assert read_dicom(write(file, stored, **entries)).spacing == spacing


def code(value):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", "a view"
    return item


@pytest.mark.parametrize("entries, view, lateral", [
    (dict(ViewPosition="PA"), "PA", False), (dict(ViewPosition="AP "), "AP", False),
    (dict(ViewPosition="LL"), "LL", True), (dict(ViewPosition="LATERAL"), "LATERAL", True),
    (dict(ViewPosition="LLD"), "LLD", False), (dict(ViewCodeSequence=[code("399348003")]), "AP", False),
    (dict(ViewCodeSequence=[code("R-10236")]), "LL", True),
    (dict(PatientOrientation=["A", "F"]), "", True), (dict(PatientOrientation=["P", "F"]), "", True),
    (dict(PatientOrientation=["L", "F"]), "", False),
    (dict(ViewPosition="PA", PatientOrientation=["A", "F"]), "PA", False)])
def test_views(file, stored, entries, view, lateral):
    image = read_dicom(write(file, stored, **entries))
    assert (image.view, image.lateral) == (view, lateral)
    assert any(text.startswith("lateral view by header") for text in image.warnings) == lateral


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("quarter", range(4))
def test_orientation_letters_agree_with_the_pixels(flip, quarter):
    "Letters carried along with an image that is mirrored and rotated name what was done"
    up = dict(left="R", right="L", top="H", bottom="F")
    if flip: up["left"], up["right"] = up["right"], up["left"]
    for _ in range(quarter): up = dict(top=up["left"], right=up["top"], bottom=up["right"], left=up["bottom"])
    assert expected_orientation(f"{up['right']}/{up['bottom']}") == (flip, 90 * quarter)


# --- files -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("preamble, meta", [(True, True), (False, True), (False, False)])
def test_files_are_found_by_their_content(tmp_path, stored, syntax, preamble, meta):
    path = write(tmp_path / "1.2.840.99", stored, syntax, preamble, meta)
    assert is_dicom(path) and list_radiographs(tmp_path) == [path]
    image = read_radiograph(path)
    assert (image.values == stored).all() and image.transfer_syntax == syntax.name


def test_what_is_no_dicom(tmp_path, stored):
    others = {"a.txt": b"text " * 400, "b.csv": b"image,patient\n" * 90, "c": bytes(3000),
              "d.npy": b"\x93NUMPY" + bytes(999), "e": b"", "f": b"\x08\x00",
              "g": np.random.default_rng(0).bytes(5000), "h.zip": b"PK\x03\x04" + bytes(900)}
    for name, content in others.items(): (tmp_path / name).write_bytes(content)
    assert list_radiographs(tmp_path) == []
    with pytest.raises(ImageError, match="this is no DICOM file"): read_dicom(tmp_path / "a.txt")
    with pytest.raises(ImageError, match="a.txt"): read_radiograph(tmp_path / "a.txt")


def test_a_broken_dicom_file_is_listed_and_refused(tmp_path):
    (tmp_path / "x.dcm").write_bytes(b"nothing")
    assert [path.name for path in list_radiographs(tmp_path)] == ["x.dcm"]
    with pytest.raises(ImageError, match="x.dcm"): read_radiograph(tmp_path / "x.dcm")


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm",
                                  "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm",
                                  "SC_rgb_dcmtk_+eb+cr.dcm", "693_J2KI.dcm", "image_dfl.dcm"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95])
def test_truncation_is_noticed(tmp_path, name, share):
    data = open(sample_file(name), "rb").read()
    (tmp_path / "cut.dcm").write_bytes(data[:int(len(data) * share)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="cut.dcm"): read_dicom(tmp_path / "cut.dcm")


def test_headers_that_lack_a_part_are_refused(file, stored):
    hollow, empty = Dataset(), lut([])
    hollow.LUTDescriptor = [9, 0, 8]
    for entries in (dict(VOILUTSequence=[hollow]), dict(ModalityLUTSequence=[hollow]),
                    dict(VOILUTSequence=[empty]), dict(PhotometricInterpretation="PALETTE COLOR")):
        with pytest.raises(ImageError, match="x.dcm: "): read_dicom(write(file, stored, **entries))


def test_damage_is_never_another_exception(tmp_path, stored):
    data = write(tmp_path / "whole", stored, BitsStored=12, WindowCenter=9, WindowWidth=9).read_bytes()
    random, bad = np.random.default_rng(0), tmp_path / "bad"
    for _ in range(150):
        copy = bytearray(data)
        for position in random.integers(132, 1100, 4): copy[position] = random.integers(256)
        bad.write_bytes(copy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try: read_radiograph(bad)
            except ImageError: pass


@pytest.mark.parametrize("name", ["emri_small.dcm", "emri_small_RLE.dcm", "emri_small_jpeg_2k_lossless.dcm",
                                  "SC_rgb_rle_2frame.dcm"])
def test_an_image_of_several_has_to_be_chosen(name):
    path = sample_file(name)
    ds = pydicom.dcmread(path)
    with pytest.raises(ImageError,
                       match=f"holds {ds.NumberOfFrames} images.*frame = 1 to {ds.NumberOfFrames}"):
        read_dicom(path)
    with pytest.raises(ImageError, match="counted from 1"): read_radiograph(path, frame=0)
    with pytest.raises(ImageError, match="counted from 1"): read_radiograph(path, frame=ds.NumberOfFrames + 1)
    second = read_radiograph(path, frame=2)
    if ds.SamplesPerPixel == 1: assert (second.values == ds.pixel_array[1]).all()
    assert second.pixels.shape == (ds.Rows, ds.Columns)
    assert not any("enhanced" in text for text in second.warnings)


def test_the_size_is_limited_before_decoding(file, stored, monkeypatch):
    write(file, stored)
    assert read_dicom(file, max_pixels=stored.size).pixels.shape == stored.shape
    monkeypatch.setattr(pixels, "get_decoder", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="50 x 60 pixels are more than max_pixels"):
        read_dicom(file, max_pixels=stored.size - 1)


@pytest.mark.parametrize("kind, syntax", [("JPEG", uid.JPEGBaseline8Bit), ("JPEG2000", uid.JPEG2000Lossless)])
def test_a_compressed_image_larger_than_its_header_says(file, kind, syntax, monkeypatch):
    small, out = random_image(1, (40, 30)), io.BytesIO()
    Image.fromarray(small).save(out, kind)
    for shape in ((40, 30), (10, 10)):
        ds = header(np.zeros(shape, np.uint8), syntax)
        ds.PixelData = encapsulate([out.getvalue()])
        ds["PixelData"].VR = "OB"
        ds.save_as(file, enforce_file_format=True)
        if shape == small.shape: assert np.abs(read_dicom(file).pixels.astype(int) - small).max() < 20
    with pytest.raises(ImageError, match="30 x 40 pixels, but its header says 10 x 10"): read_dicom(file)


def test_a_deflated_file_cannot_fill_the_memory(file, stored):
    flat = np.zeros((3000, 3000), np.uint16)
    ds = header(flat, uid.DeflatedExplicitVRLittleEndian, NumberOfFrames=1)
    ds.PixelData = flat.tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(file, enforce_file_format=True)
    assert file.stat().st_size < 100_000 and read_dicom(file).pixels.shape == flat.shape
    with pytest.raises(ImageError, match="deflated file holds more than"):
        read_dicom(file, max_pixels=1_000_000)


def test_jpeg_with_twelve_bits_is_refused_by_name(file):
    for name in ("JPGExtended.dcm", "JPEG-lossy.dcm"):
        with pytest.raises(ImageError, match=r"JPEG with 12 bits a pixel \(transfer syntax JPEG Extended"
                                             r".*permissive licence"):
            read_dicom(sample_file(name))


def test_other_depths_and_objects_are_refused(tmp_path, file, stored):
    for name, reason in {"rtdose_1frame.dcm": "pixels of 32 bits", "liver_1frame.dcm": "pixels of 1 bits",
                         "rtplan.dcm": "holds no image", "test-SR.dcm": "holds no image"}.items():
        with pytest.raises(ImageError, match=f"{name}: .*{reason}"): read_dicom(sample_file(name))
    with pytest.raises(ImageError, match="PhotometricInterpretation"):
        read_dicom(write(file, stored, PhotometricInterpretation="CMYK"))


def test_without_pydicom_only_dicom_is_missing(tmp_path, stored, monkeypatch):
    path = write(tmp_path / "x.dcm", stored)
    write_png(tmp_path / "y.png", stored)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert (read_radiograph(tmp_path / "y.png").pixels == stored).all()
    assert len(list_radiographs(tmp_path)) == 2
    for call in (lambda: read_radiograph(path), lambda: write_dicom(tmp_path / "z", path, stored, np.eye(3))):
        with pytest.raises(ImageError, match=r"needs pydicom: pip install 'cxr_stn\[dicom\]'"): call()


def test_pydicom_is_imported_when_it_is_needed():
    _, errors = python("import sys, cxr_stn.data.dicom, cxr_stn.data.dicom_out\n"
                       "assert not {'pydicom', 'torch'} & set(sys.modules)").communicate()
    assert errors == ""


def test_a_missing_decoder_is_named(monkeypatch):
    path = sample_file("MR_small_jpeg_ls_lossless.dcm")
    monkeypatch.setattr(pixels.decoders.base.Decoder, "is_available", property(lambda self: False))
    with pytest.raises(ImageError,
                       match=r"JPEG-LS Lossless.* needs a decoder.*pip install 'cxr_stn\[dicom\]'"):
        read_dicom(path)


def test_nothing_of_a_person_gets_out(tmp_path, stored, caplog, recwarn):
    "Not even where a name was typed into a technical entry, and not from errors"
    warnings.simplefilter("always")
    caplog.set_level(logging.DEBUG)
    names = dict(ViewPosition="Jane Doe, sitting", PatientOrientation=["Jane", "Doe"],
                 PresentationLUTShape="doe", VOILUTFunction="Doe", BurnedInAnnotation="Jane",
                 ViewCodeSequence=[code("Doe")])
    said = []
    with pydicom.config.disable_value_validation():
        for k, entries in enumerate([{}, names, dict(PhotometricInterpretation="JANE DOE"),
                                     dict(NumberOfFrames="7"), dict(BitsAllocated=32)]):
            path = write(tmp_path / f"{k}.dcm", stored, **entries)
            data = path.read_bytes()
            path.write_bytes(data.replace(b"19560712", b"1956071x"))
    del recwarn.list[:], caplog.records[:]
    for k in range(5):
        path = tmp_path / f"{k}.dcm"
        try:
            said.append(repr(read_dicom(path)))
            write_dicom(tmp_path / "out" / f"{k}.dcm", path, stored, np.eye(3))
        except ImageError as error: said += [str(error), repr(error.__cause__), repr(error.__context__)]
    data = (tmp_path / "0.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[:300])
    with pytest.raises(ImageError) as error: read_dicom(tmp_path / "cut.dcm")
    said += [str(error.value), *(str(warning.message) for warning in recwarn.list), caplog.text]
    assert not [word for word in (*SECRETS, "1956071", "doe", "JANE")
                if word in " ".join(said).replace(str(tmp_path), "")]
    assert len(said) > 6


def test_threads_read_alike(tmp_path, stored):
    paths = [write(tmp_path / f"{k}", np.roll(stored, k), BitsStored=12, WindowCenter=999 + k,
                   WindowWidth=999) for k in range(24)]
    alone = [read_dicom(path).pixels for path in paths]
    mode = pydicom.config.settings.reading_validation_mode
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda path: read_dicom(path).pixels, paths * 3))
    assert all((a == b).all() for a, b in zip(alone * 3, together))
    assert pydicom.config.settings.reading_validation_mode == mode


# --- folders ---------------------------------------------------------------------------------------------

def test_a_folder_of_both_kinds(tmp_path, stored):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    write_png(folder / "a.png", random_image(1))
    write(folder / "deep" / "IM001", stored, BitsStored=12, PixelSpacing=[0.1, 0.2], ViewPosition="PA",
          WindowCenter=900, WindowWidth=99)
    write(folder / "b.dcm", stored, NumberOfFrames=3)
    dataset = load_dataset("folder", folder)
    assert dataset.table["image"].tolist() == ["a.png", "b.dcm", "deep/IM001"]
    image = dataset.read_radiograph(2)
    assert (image.spacing, image.view, image.warnings) == ((0.1, 0.2), "PA", ("the pixels are not square",))
    assert (dataset.read(2) == image.pixels).all() and (image.values == stored).all()
    assert (dataset.read_radiograph(0).values == random_image(1)).all()
    cache = build_cache(pickle.loads(pickle.dumps(dataset)), 32, tmp_path / "cache", workers=1)
    assert cache.images.shape == (2, 32, 32) and "frame = 1 to 3" in cache.failures["reason"][0]


def test_a_folder_of_image_files_is_what_it_was(tmp_path):
    for k in range(6): write_png(tmp_path / f"{k}.png", random_image(k))
    cv2.imwrite(str(tmp_path / "7.jpg"), random_image(7))
    (tmp_path / "index.csv").write_text("image\n" + "".join(f"{k}.png\n" for k in range(5)))
    plain, both = load_folder(tmp_path), load_dataset("folder", tmp_path)
    assert plain.manifest_hash() == both.manifest_hash() and plain.content_hash() == both.content_hash()
    assert plain.table.equals(both.table) and plain.counts == both.counts
    assert all((plain.read(i) == both.read(i)).all() for i in range(len(plain)))
    assert list_radiographs(tmp_path) == list_images(tmp_path)


# --- writing ---------------------------------------------------------------------------------------------

TILTED = np.array([[2 * np.cos(.1), -3 * np.sin(.1), 5], [2 * np.sin(.1), 3 * np.cos(.1), 7], [0, 0, 1]])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(7, 5), (40, 30)])
@pytest.mark.parametrize("syntax", NATIVE)
def test_written_images_are_read_back(tmp_path, stored, kind, shape, syntax):
    source = write(tmp_path / "a.dcm", stored, syntax, BitsStored=12, PhotometricInterpretation="MONOCHROME1",
                   PresentationLUTShape="INVERSE", WindowCenter=500, WindowWidth=9, RescaleSlope=2,
                   RescaleIntercept=-9, ImagerPixelSpacing=[0.1, 0.2], PixelSpacing=[0, 0],
                   PixelPaddingValue=0, ImageType=["ORIGINAL", "PRIMARY", "X"])
    aligned = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, endpoint=True).astype(kind)
    written = write_dicom(tmp_path / "b.dcm", source, aligned, TILTED, settings="aligner chest")
    image, ds = read_dicom(tmp_path / "b.dcm"), pydicom.dcmread(tmp_path / "b.dcm")
    assert (image.pixels == aligned).all() and image.pixels.dtype == kind and (image.values == aligned).all()
    assert image.warnings == ("the pixels are not square",) and (ds.pixel_array == aligned).all()
    assert np.allclose(pixels.apply_voi_lut(pixels.apply_modality_lut(ds.pixel_array, ds), ds), aligned)
    row = np.hypot(.2 * TILTED[0, 1], .1 * TILTED[1, 1])
    column = np.hypot(.2 * TILTED[0, 0], .1 * TILTED[1, 0])
    assert np.allclose(ds.ImagerPixelSpacing, (row, column))
    assert "PixelSpacing" not in ds and "PixelPaddingValue" not in ds
    assert ds.ImageType == ["DERIVED", "PRIMARY", "X"]
    assert ds.SOPInstanceUID == written == ds.file_meta.MediaStorageSOPInstanceUID != "1.2.3.4"
    assert ds.SeriesInstanceUID != "1.2.3"
    assert uid.UID(written).is_valid and uid.UID(ds.SeriesInstanceUID).is_valid
    [reference] = ds.SourceImageSequence
    assert (reference.ReferencedSOPInstanceUID, reference.ReferencedSOPClassUID) == ("1.2.3.4", DX)
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    matrix = [float(number)
              for number in ds.DerivationDescription.split("source pixel: ")[1].split(". ")[0].split()]
    assert np.allclose(matrix, TILTED[:2].ravel(), rtol=1e-8) and "aligner chest" in ds.DerivationDescription
    assert ds.PatientName == "Doe^Jane" and ds.PatientBirthDate == "19560712" and ds.SOPClassUID == DX


def test_the_same_call_writes_the_same_bytes(tmp_path, stored):
    source = write(tmp_path / "a.dcm", stored)
    def run(name, image=stored, matrix=TILTED, settings=""):
        written = write_dicom(tmp_path / name, source, image, matrix, settings=settings)
        return written, (tmp_path / name).read_bytes()
    assert run("b") == run("c")
    uids = {run("d", **more)[0] for more in ({}, dict(matrix=np.eye(3)), dict(settings="other"),
                                             dict(image=stored + 1))}
    assert len(uids) == 4
    series = {pydicom.dcmread(tmp_path / name).SeriesInstanceUID for name in ("b", "c")}
    run("e", settings="other")
    assert len(series) == 1 and pydicom.dcmread(tmp_path / "e").SeriesInstanceUID not in series


@pytest.mark.parametrize("annotation", [None, "YES", "NO"])
def test_burned_in_annotation_is_copied(tmp_path, stored, annotation):
    more = {} if annotation is None else {"BurnedInAnnotation": annotation}
    write_dicom(tmp_path / "b", write(tmp_path / "a", stored, **more), stored, np.eye(3))
    assert pydicom.dcmread(tmp_path / "b").get("BurnedInAnnotation") == annotation


def test_old_pixels_leave_nothing_behind(tmp_path, stored):
    ds = header(stored, BitsStored=12, VOILUTSequence=[lut(range(99))], ModalityLUTSequence=[lut(range(99))],
                SmallestImagePixelValue=0, ShutterShape="RECTANGULAR", ShutterLeftVerticalEdge=3,
                PresentationLUTShape="INVERSE", PatientOrientation=["H", "L"])
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"
    ds.private_block(0x0009, "a maker", create=True).add_new(1, "LO", "Jane Doe again")
    ds.add_new(0x60000010, "US", 60)
    ds.add_new(0x60003000, "OW", bytes(400))
    ds.save_as(tmp_path / "a", enforce_file_format=True)
    on_its_side = np.array([[0, -1, 49], [1, 0, 0], [0, 0, 1.0]])
    write_dicom(tmp_path / "b", tmp_path / "a", stored, on_its_side)
    new = pydicom.dcmread(tmp_path / "b")
    assert not {element.keyword for element in new} & {
        "VOILUTSequence", "ModalityLUTSequence", "SmallestImagePixelValue", "ShutterShape",
        "ShutterLeftVerticalEdge"}
    assert not [element for element in new if element.tag.is_private or element.tag.group >= 0x6000
                and element.keyword != "PixelData"]
    assert new.PatientOrientation == ["L", "F"] and new.PresentationLUTShape == "IDENTITY"


def test_what_a_validator_asks_for(tmp_path, stored):
    "What dciodvfy said of derived images, and not of their sources"
    outdated = dict(ImagePositionPatient=[1, 2, 3], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                    FrameOfReferenceUID="1.2.9", PixelPresentation="COLOR", LUTExplanation="old",
                    PixelSpacingCalibrationType="FIDUCIAL", PixelAspectRatio="", PixelSpacing=[0, 0])
    for intent in ("FOR PROCESSING", "FOR PRESENTATION"):
        source = write(tmp_path / "a", stored, BitsStored=12, PresentationIntentType=intent, **outdated)
        write_dicom(tmp_path / "b", source, stored, np.diag([2, 3, 1.0]))
        ds = pydicom.dcmread(tmp_path / "b")
        assert ("WindowWidth" in ds) == ("WindowCenter" in ds) == (intent == "FOR PRESENTATION")
        assert ds["PatientOrientation"].is_empty and ds.PixelAspectRatio == [1500, 1000]
        assert not set(outdated) - {"PixelAspectRatio"} & {element.keyword for element in ds}


def test_an_image_of_several_becomes_a_secondary_capture(tmp_path):
    path = sample_file("emri_small_jpeg_2k_lossless.dcm")
    second = read_dicom(path, frame=2)
    write_dicom(tmp_path / "b", path, second.pixels, np.eye(3), frame=2)
    image, ds = read_dicom(tmp_path / "b"), pydicom.dcmread(tmp_path / "b")
    assert (image.pixels == second.pixels).all() and ds.SOPClassUID == uid.SecondaryCaptureImageStorage
    assert ds.SourceImageSequence[0].ReferencedFrameNumber == 2 and "NumberOfFrames" not in ds


@pytest.mark.parametrize("name", ["RG1_J2KI.dcm", "SC_rgb_jpeg_dcmtk.dcm", "examples_palette.dcm",
                                  "MR_small_bigendian.dcm", "CT_small.dcm", "JPEGLSNearLossless_08.dcm",
                                  "bad_sequence.dcm"])
def test_derived_images_of_real_files(tmp_path, name):
    path = sample_file(name)
    image = read_dicom(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: write_dicom(tmp_path / "b", path, image.pixels, np.eye(3))
        except ImageError as error:
            return pytest.fail(str(error)) if "SOPInstanceUID" not in error.reason else None
    again, ds = read_dicom(tmp_path / "b"), pydicom.dcmread(tmp_path / "b")
    assert (again.pixels == image.pixels).all() and again.spacing == image.spacing
    assert again.photometric == "MONOCHROME2"
    lossy = "J2KI" in name or "jpeg_dcmtk" in name or "Near" in name
    assert (ds.get("LossyImageCompression") == "01") >= lossy
    assert ds.get("PatientID") == pydicom.dcmread(path).get("PatientID")


def test_writing_is_atomic_and_refuses_what_is_no_image(tmp_path, stored, monkeypatch):
    source = write(tmp_path / "a", stored)
    for bad in (stored.astype(np.float32), stored[None], stored.astype(np.int16)):
        with pytest.raises(ValueError, match="expected"): write_dicom(tmp_path / "b", source, bad, np.eye(3))
    with pytest.raises(ImageError, match="no DICOM file"):
        write_dicom(tmp_path / "b", tmp_path / "nowhere", stored, np.eye(3))
    def full_disk(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="cannot write .*b: No space"):
        write_dicom(tmp_path / "b", source, stored, np.eye(3))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_damaged_source_is_an_error_that_names_it(tmp_path, stored, monkeypatch):
    source = write(tmp_path / "two.dcm", stored, SOPInstanceUID=["1.2.3", "4.5"])
    with pytest.raises(ImageError, match=r"two.dcm: its header is damaged \(TypeError\)$"):
        write_dicom(tmp_path / "b", source, stored, np.eye(3))
    source = write(tmp_path / "a.dcm", stored)
    for error in (NotImplementedError("Doe"), OSError("Doe"), ValueError("Doe"), KeyError("Doe")):
        def fail(_): raise error
        monkeypatch.setattr(dicom_out, "remove_outdated", fail)
        with pytest.raises(ImageError, match="a.dcm: its header is damaged") as caught:
            write_dicom(tmp_path / "b", source, stored, np.eye(3))
        assert "Doe" not in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_an_image_type_of_one_value_stays_whole(tmp_path, stored):
    for kind in ("ORIGINAL", "DERIVED"):
        write_dicom(tmp_path / "b", write(tmp_path / "a", stored, ImageType=kind), stored, np.eye(3))
        assert list(pydicom.dcmread(tmp_path / "b").ImageType) == ["DERIVED", "PRIMARY"]
