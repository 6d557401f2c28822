"""Picture files as they come: broken ones are refused with path and reason, whole ones read the same from any format."""
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cxr_stn.images import (ImageError, letterbox, letterbox_matrix, letterbox_place, list_images, read_image, to_unit,
                            write_png)

DATA = os.environ.get("CXR_STN_DATA")
real = pytest.mark.skipif(not DATA, reason="CXR_STN_DATA does not name the folder of real films")


@pytest.fixture
def film():
    "A smooth random picture, (120, 90) uint8."
    noise = np.random.default_rng(0).integers(0, 256, (120, 90)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "gif", "webp"])
def test_every_truncation_is_noticed(tmp_path, film, ending):
    whole = tmp_path / f"whole.{ending}"
    Image.fromarray(film).save(whole)
    data, cut = whole.read_bytes(), tmp_path / f"cut.{ending}"
    for share in (0.02, 0.3, 0.6, 0.9):
        cut.write_bytes(data[:int(len(data) * share)])
        with pytest.raises(ImageError): read_image(cut)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif"])
def test_size_is_limited_before_decoding(tmp_path, film, ending):
    path = tmp_path / f"film.{ending}"
    Image.fromarray(film).save(path)
    assert read_image(path, max_pixels=film.size).shape == film.shape
    with pytest.raises(ImageError, match="max_pixels"): read_image(path, max_pixels=film.size - 1)


def test_limit_of_pillow_itself_is_an_image_error(tmp_path, monkeypatch, film):
    Image.fromarray(film).save(tmp_path / "film.bmp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="decompression bomb"): read_image(tmp_path / "film.bmp")


def test_missing_file_and_folder_are_image_errors(tmp_path):
    with pytest.raises(ImageError, match="missing.png"): read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="directory"): read_image(tmp_path)


MODES = [(ending, mode) for ending in ("png", "tif") for mode in ("L", "RGB", "RGBA", "LA", "P")]


@pytest.mark.parametrize("ending, mode", [*MODES, ("tif", "PA"), ("tif", "CMYK")])
def test_grey_survives_every_mode(tmp_path, film, ending, mode):
    path = tmp_path / f"film.{ending}"
    Image.fromarray(film).convert(mode).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.shape == film.shape
    assert np.abs(image.astype(int) - film).max() <= (0 if mode != "CMYK" else 1)


def test_bilevel_and_16_bits(tmp_path, film):
    Image.fromarray(film).convert("1").save(tmp_path / "bilevel.png")
    assert set(np.unique(read_image(tmp_path / "bilevel.png"))) == {0, 255}
    deep = film.astype(np.uint16) * 257 - (film > 0)
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


def test_transparency_is_composited_on_black(tmp_path, film):
    alpha = np.zeros_like(film)
    alpha[:60] = 255
    Image.fromarray(np.dstack([film, film, film, alpha])).save(tmp_path / "half.png")
    image = read_image(tmp_path / "half.png")
    assert (image[:60] == film[:60]).all() and (image[60:] == 0).all()


def test_smallest_and_constant_pictures(tmp_path):
    for grey in (0, 255):
        write_png(tmp_path / "one.png", np.full((1, 1), grey, np.uint8))
        image = read_image(tmp_path / "one.png")
        assert image.shape == (1, 1) and to_unit(image).tolist() == [[0]]
        assert letterbox(image, 8).shape == (8, 8)


def test_a_failed_write_leaves_the_old_picture(tmp_path, film, monkeypatch):
    write_png(tmp_path / "film.png", film)
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="film.png"): write_png(tmp_path / "film.png", 255 - film)
    assert (read_image(tmp_path / "film.png") == film).all()
    assert [path.name for path in tmp_path.iterdir()] == ["film.png"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_unit_refuses_what_is_not_finite(film, bad):
    image = film.astype(np.float64)
    image[3, 4] = bad
    with pytest.raises(ValueError, match="NaN or infinite"): to_unit(image)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64, bool])
def test_unit_takes_every_type(film, kind):
    unit = to_unit(film.astype(kind))
    assert unit.dtype == np.float32 and unit.min() >= 0 and unit.max() <= 1
    if kind is not bool: assert np.abs(unit - to_unit(film)).max() < 1e-5


def test_unit_ignores_burnt_in_letters(film):
    marked = film // 2
    marked[:3, :3] = 255
    assert np.abs(to_unit(marked)[5:] - to_unit(film // 2)[5:]).max() < 0.02


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (500, 3), (97, 301), (224, 224), (1024, 1024), (3000, 2000)])
@pytest.mark.parametrize("size", [1, 32, 224])
def test_letterbox_matrix_maps_the_corners_of_the_film(shape, size):
    left, top, w, h = letterbox_place(shape, size)
    matrix = letterbox_matrix(shape, size)
    assert np.allclose(matrix @ [left - 0.5, top - 0.5, 1], [-0.5, -0.5, 1])
    assert np.allclose(matrix @ [left + w - 0.5, top + h - 0.5, 1], [shape[1] - 0.5, shape[0] - 0.5, 1])
    assert max(w, h) == size and 0 <= left and left + w <= size and 0 <= top and top + h <= size


def test_list_images_survives_a_circle_of_links(tmp_path, film):
    (tmp_path / "a").mkdir()
    write_png(tmp_path / "a" / "film.png", film)
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert [path.name for path in list_images(tmp_path)] == ["film.png"]


def test_list_images_follows_links(tmp_path, film):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "films").mkdir()
    write_png(tmp_path / "elsewhere" / "film.png", film)
    (tmp_path / "films" / "link").symlink_to(tmp_path / "elsewhere")
    assert list_images(tmp_path / "films") == [tmp_path / "films" / "link" / "film.png"]


@real
def test_rgba_films_read_as_grey():
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
def test_a_real_film_agrees_with_its_letterbox_matrix():
    path = sorted(Path(DATA, "nih14-sample", "originals").glob("*.png"))[0]
    film = cv2.GaussianBlur(read_image(path), (0, 0), 12)
    warped = cv2.warpAffine(film, letterbox_matrix(film.shape, 224)[:2], (224, 224),
                            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    assert np.abs(warped.astype(int) - letterbox(film, 224))[2:-2, 2:-2].max() <= 2
