"""Image files as they come: broken ones are refused with path and reason, whole ones read the same from any
format."""
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import DATA, python
from PIL import Image

from cxr_stn.resampling import letterbox, letterbox_box, letterbox_matrix
from cxr_stn.data.dicom import list_radiographs
from cxr_stn.data.images import file_radiograph, ImageError, list_images, read_image, to_unit, write_png

real = pytest.mark.data("nih14-sample")


@pytest.fixture
def pixels():
    "A smooth random image, (120, 90) uint8."
    noise = np.random.default_rng(0).integers(0, 256, (120, 90)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "gif", "webp"])
def test_every_truncation_is_noticed(tmp_path, pixels, ending):
    whole = tmp_path / f"whole.{ending}"
    Image.fromarray(pixels).save(whole)
    data, cut = whole.read_bytes(), tmp_path / f"cut.{ending}"
    for share in (0.02, 0.3, 0.6, 0.9):
        cut.write_bytes(data[:int(len(data) * share)])
        with pytest.raises(ImageError): read_image(cut)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif"])
def test_size_is_limited_before_decoding(tmp_path, pixels, ending):
    path = tmp_path / f"image.{ending}"
    Image.fromarray(pixels).save(path)
    assert read_image(path, max_pixels=pixels.size).shape == pixels.shape
    with pytest.raises(ImageError, match="max_pixels"): read_image(path, max_pixels=pixels.size - 1)


def test_limit_of_pillow_itself_is_an_image_error(tmp_path, monkeypatch, pixels):
    Image.fromarray(pixels).save(tmp_path / "image.bmp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="decompression bomb"): read_image(tmp_path / "image.bmp")


def test_missing_file_and_folder_are_image_errors(tmp_path):
    with pytest.raises(ImageError, match="missing.png"): read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="directory"): read_image(tmp_path)


def test_decoders_that_stumble_over_damage_are_image_errors(tmp_path, monkeypatch, pixels):
    Image.fromarray(pixels).save(tmp_path / "image.bmp")
    for error in (NotImplementedError, AttributeError, IndexError, TypeError, ZeroDivisionError, EOFError):
        def fail(*_): raise error("of the decoder")
        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(ImageError, match=rf"image.bmp: the file is damaged \({error.__name__}\)"):
            read_image(tmp_path / "image.bmp")


def test_a_tag_that_cannot_be_read_is_no_reason_to_refuse_an_image(tmp_path, monkeypatch, pixels):
    Image.fromarray(pixels).save(tmp_path / "image.bmp")
    def fail(*_): raise ValueError("damaged")
    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert (file_radiograph(tmp_path / "image.bmp").pixels == pixels).all()


MODES = [(ending, mode) for ending in ("png", "tif") for mode in ("L", "RGB", "RGBA", "LA", "P")]


@pytest.mark.parametrize("ending, mode", [*MODES, ("tif", "PA"), ("tif", "CMYK")])
def test_grey_survives_every_mode(tmp_path, pixels, ending, mode):
    path = tmp_path / f"image.{ending}"
    Image.fromarray(pixels).convert(mode).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.shape == pixels.shape
    assert np.abs(image.astype(int) - pixels).max() <= (0 if mode != "CMYK" else 1)


def test_bilevel_and_16_bits(tmp_path, pixels):
    Image.fromarray(pixels).convert("1").save(tmp_path / "bilevel.png")
    assert set(np.unique(read_image(tmp_path / "bilevel.png"))) == {0, 255}
    deep = pixels.astype(np.uint16) * 257 - (pixels > 0)
    write_png(tmp_path / "deep.png", deep)
    for path in (tmp_path / "deep.png", tmp_path / "deep.tif"):
        if path.suffix == ".tif": Image.fromarray(deep).save(path)
        image = read_image(path)
        assert image.dtype == np.uint16 and (image == deep).all()


def test_colour_order_is_the_same_in_png_and_elsewhere(tmp_path):
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 0] = 200
    for ending in ("png", "bmp", "tif"):
        Image.fromarray(colour).save(tmp_path / f"red.{ending}")
        assert (read_image(tmp_path / f"red.{ending}") == 60).all()


def test_transparency_is_composited_on_black(tmp_path, pixels):
    alpha = np.zeros_like(pixels)
    alpha[:60] = 255
    Image.fromarray(np.dstack([pixels, pixels, pixels, alpha])).save(tmp_path / "half.png")
    image = read_image(tmp_path / "half.png")
    assert (image[:60] == pixels[:60]).all() and (image[60:] == 0).all()


def test_smallest_and_constant_images(tmp_path):
    for grey in (0, 255):
        write_png(tmp_path / "one.png", np.full((1, 1), grey, np.uint8))
        image = read_image(tmp_path / "one.png")
        assert image.shape == (1, 1) and to_unit(image).tolist() == [[0]]
        assert letterbox(image, 8).shape == (8, 8)


def test_a_failed_write_leaves_the_old_image(tmp_path, pixels, monkeypatch):
    write_png(tmp_path / "image.png", pixels)
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="image.png"): write_png(tmp_path / "image.png", 255 - pixels)
    assert (read_image(tmp_path / "image.png") == pixels).all()
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_unit_refuses_what_is_not_finite(pixels, bad):
    image = pixels.astype(np.float64)
    image[3, 4] = bad
    with pytest.raises(ValueError, match="NaN or infinite"): to_unit(image)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64, bool])
def test_unit_takes_every_type(pixels, kind):
    unit = to_unit(pixels.astype(kind))
    assert unit.dtype == np.float32 and unit.min() >= 0 and unit.max() <= 1
    if kind is not bool: assert np.abs(unit - to_unit(pixels)).max() < 1e-5


def test_unit_ignores_burnt_in_letters(pixels):
    marked = pixels // 2
    marked[:3, :3] = 255
    assert np.abs(to_unit(marked)[5:] - to_unit(pixels // 2)[5:]).max() < 0.02


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (500, 3), (97, 301), (224, 224), (1024, 1024),
                                   (3000, 2000)])
@pytest.mark.parametrize("size", [1, 32, 224])
def test_letterbox_matrix_maps_the_corners_of_the_image(shape, size):
    left, top, w, h = letterbox_box(shape, size)
    matrix = letterbox_matrix(shape, size)
    assert np.allclose(matrix @ [left - 0.5, top - 0.5, 1], [-0.5, -0.5, 1])
    assert np.allclose(matrix @ [left + w - 0.5, top + h - 0.5, 1], [shape[1] - 0.5, shape[0] - 0.5, 1])
    assert max(w, h) == size and 0 <= left and left + w <= size and 0 <= top and top + h <= size


def test_list_images_survives_a_circle_of_links(tmp_path, pixels):
    (tmp_path / "a").mkdir()
    write_png(tmp_path / "a" / "image.png", pixels)
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert [path.name for path in list_images(tmp_path)] == ["image.png"]


def test_list_images_follows_links(tmp_path, pixels):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").mkdir()
    write_png(tmp_path / "elsewhere" / "image.png", pixels)
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    assert list_images(tmp_path / "images") == [tmp_path / "images" / "link" / "image.png"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    output, errors = python(f"""
        import os
        from cxr_stn.data.images import list_images
        os.chdir({str(tmp_path)!r})
        os.mkdir("ward"); os.chmod("ward", 0); os.chmod(".", 0o755)
        if os.geteuid() == 0: os.seteuid(65534)  # permissions do not bind the superuser
        try: list_images(".")
        except PermissionError as e: print(e)
        """).communicate()
    assert "Permission denied" in output and "ward" in output, errors


def test_a_pipe_is_left_out_and_not_waited_for(tmp_path, pixels):
    write_png(tmp_path / "image.png", pixels)
    for name in ("pipe.png", "pipe"): os.mkfifo(tmp_path / name)
    assert [path.name for path in list_radiographs(tmp_path)] == ["image.png"]


@real
def test_rgba_images_read_as_grey():
    sample, count = Path(DATA, "nih14-sample"), 0
    for path in sorted((sample / "originals").glob("*.png")):
        stored, image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED), read_image(path)
        assert image.shape == (1024, 1024) and image.dtype == np.uint8
        if stored.ndim == 3: assert (image == stored[..., 0]).all()
        count += stored.ndim == 3
        reduced = read_image(sample / "images" / path.name)
        assert reduced.shape == (512, 512)
        assert np.abs(letterbox(image, 512).astype(int) - reduced).mean() < 2
    assert count == 4


@real
def test_a_real_image_agrees_with_its_letterbox_matrix():
    path = sorted(Path(DATA, "nih14-sample", "originals").glob("*.png"))[0]
    pixels = cv2.GaussianBlur(read_image(path), (0, 0), 12)
    warped = cv2.warpAffine(pixels, letterbox_matrix(pixels.shape, 224)[:2], (224, 224),
                            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    assert np.abs(warped.astype(int) - letterbox(pixels, 224))[2:-2, 2:-2].max() <= 2
