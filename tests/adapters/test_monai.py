"""MONAI: the affine follows the pixels, Invertd brings everything back, axes in any order, one pose."""
import pickle, subprocess, sys, warnings

import cv2
import numpy as np
import pytest
from helpers import DATA, environment

pytest.importorskip("monai", reason="MONAI is not installed: pip install 'cxr_stn[monai]'")

import torch
from monai.data import decollate_batch, list_data_collate, MetaTensor, set_track_meta
from monai.transforms import (Compose, EnsureChannelFirstd, Invertd, LoadImaged, Resized, Rotate90d,
                              ScaleIntensityRangePercentilesd)

from cxr_stn.adapters.monai import AlignChestd
from cxr_stn.inference import Aligner
from cxr_stn.phantom.dataset import Phantom

KEYS = ["image", "mask"]


def dice(a, b): return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture(scope="module")
def aligner(): return Aligner.load()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    "A synthetic radiograph and the mask of its lungs, as files; not square"
    folder, phantom = tmp_path_factory.mktemp("sample"), Phantom(n_images=6, size=256, seed=3)[1]
    cv2.imwrite(str(folder/"image.png"), phantom.image[:, :224])
    cv2.imwrite(str(folder/"mask.png"), phantom.lungs.any(0)[:, :224].astype(np.uint8))
    return {name: str(folder/f"{name}.png") for name in KEYS}


@pytest.fixture(scope="module")
def loaded(paths): return Compose([LoadImaged(KEYS, image_only=True), EnsureChannelFirstd(KEYS)])(paths)


def test_readers_count_x_first(loaded, aligner):
    "The default is right for LoadImaged: the result is the one of the aligner itself, transposed"
    result = AlignChestd("image", aligner=aligner, spatial_size=(240, 192))(loaded)["image"]
    plain = aligner(loaded["image"][0].numpy().T.astype(np.uint8), (240, 192))
    assert tuple(result.shape) == (1, 192, 240) and result.dtype == torch.float32
    assert np.abs(result[0].numpy().T - plain.image).mean() < .6
    assert result.meta["aligned"]["flagged"] == plain.flagged


@pytest.mark.parametrize("indexing", ["xy", "ij"])
@pytest.mark.parametrize("affine", [np.eye(4), np.array(
    [[-.2, 0, 0, 50], [0, -.3, 0, 60], [0, 0, 1, 0], [0, 0, 0, 1]])])
def test_the_affine_leads_to_the_same_place(loaded, aligner, indexing, affine):
    def axes(tensor): return tensor if indexing == "xy" else tensor.transpose(1, 2)
    sample = {key: MetaTensor(axes(loaded[key].as_tensor()), affine=torch.as_tensor(affine)) for key in KEYS}
    align = AlignChestd(KEYS, aligner=aligner, spatial_size=(300, 240), indexing=indexing)
    result, aligned = align(sample), align.locate(sample)
    points = np.array([[10, 20], [200, 100.]])
    on_original = aligned.to_original(points)
    if indexing == "ij": points, on_original = points[:, ::-1], on_original[:, ::-1]
    def index(xy): return np.concatenate([xy, [[0, 1]] * 2], 1).T
    for key in KEYS:
        there, here = affine @ index(on_original), result[key].affine.numpy() @ index(points)
        np.testing.assert_allclose(here, there, atol=1e-6)
    assert tuple(result["mask"].shape) == ((1, 240, 300) if indexing == "xy" else (1, 300, 240))


def test_invertd_brings_a_prediction_back_through_a_pipeline(paths, aligner):
    "Transforms before and after; the prediction is the aligned mask itself"
    pipeline = Compose([
        LoadImaged(KEYS, image_only=True), EnsureChannelFirstd(KEYS), Rotate90d(KEYS),
        ScaleIntensityRangePercentilesd("image", 1, 99, 0, 1), Rotate90d(KEYS, k=3),
        AlignChestd(KEYS, aligner=aligner, spatial_size=(480, 384)),
        Resized(KEYS, (192, 240), mode="nearest")])
    sample = pipeline(paths)
    sample["pred"] = MetaTensor(sample["mask"].as_tensor())
    result = Invertd(["pred", "mask"], pipeline, orig_keys=["image", "mask"])(sample)
    original = Compose(pipeline.transforms[:2])(paths)
    seen = Invertd("ones", pipeline, orig_keys="image")(
        sample | {"ones": MetaTensor(torch.ones_like(sample["mask"]))})["ones"].numpy() > 0
    for key in ("pred", "mask"):
        assert result[key].shape == original["mask"].shape and set(result[key].unique().tolist()) == {0, 1}
        assert dice(result[key].numpy()[seen] > 0, original["mask"].numpy()[seen] > 0) > .985
        np.testing.assert_allclose(result[key].affine, original["image"].affine, atol=1e-6)


def test_alone_there_and_back(loaded, aligner):
    align = AlignChestd(KEYS, aligner=aligner, spatial_size=(480, 384))
    result = align(loaded)
    back, seen = align.inverse(result), align.locate(loaded).restore(np.ones((1, 1), bool)).T
    assert back["mask"].applied_operations == loaded["mask"].applied_operations
    assert dice(back["mask"][0].numpy()[seen] > 0, loaded["mask"][0].numpy()[seen] > 0) > .99
    difference = np.abs(back["image"].numpy() - loaded["image"].numpy())[0]
    assert difference[seen].mean() < 3 and (back["image"].numpy()[0][~seen] == 0).all()


def test_a_batch_remembers(loaded, aligner):
    align = AlignChestd(KEYS, aligner=aligner)
    samples = [align(loaded), align(loaded)]
    for one in decollate_batch(list_data_collate(samples)):
        back = align.inverse(one)
        assert [tuple(back[key].shape) for key in KEYS] == [(1, 224, 256)] * 2
        np.testing.assert_array_equal(back["mask"].numpy(), align.inverse(samples[0])["mask"].numpy())


def test_a_coarse_map_and_a_slice_come_back(loaded, aligner):
    "A map of 7 x 6, and a third axis of one slice as DICOM files have it"
    sample = {"image": MetaTensor(loaded["image"].as_tensor()[..., None])}
    align = AlignChestd("image", aligner=aligner)
    aligned = align(sample)["image"]
    assert tuple(aligned.shape) == (1, 96, 120, 1)
    coarse = MetaTensor(torch.rand(3, 6, 7, 1)).copy_meta_from(aligned)
    invert = Invertd("map", align, orig_keys="image", nearest_interp=False)
    back = invert({"image": aligned, "map": coarse})["map"]
    assert tuple(back.shape) == (3, 224, 256, 1)


def test_exchanged_axes_are_warned_of(loaded):
    "An aligner that finds a chest on its side, and mirrored"
    class Found:
        def __call__(self, image, shape=None):
            from cxr_stn.aligned import Aligned, Pose
            return Aligned(np.zeros(shape), np.eye(3), Pose(0, 0, 1, 1, -88), mirrored=True,
                           original_shape=image.shape[:2])
    align = AlignChestd("image", spatial_size=(30, 24))
    align.lazy_aligner._loaded = Found()
    with pytest.warns(UserWarning, match="needs indexing='ij'"): align(loaded)


@pytest.mark.data("lungmask-dev")
def test_exchanged_axes_of_real_images_are_seen(aligner):
    "Most of them: the network says that they lie on their side and are mirrored"
    files, warned = sorted((DATA/"lungmask-dev"/"images").glob("*.png"))[::8], {"xy": 0, "ij": 0}
    for path in files:
        image = torch.from_numpy(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))[None]
        for indexing in warned:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                AlignChestd("image", aligner=aligner, indexing=indexing)({"image": image})
            warned[indexing] += any("are exchanged" in str(w.message) for w in caught)
    assert warned["ij"] == 0 and warned["xy"] > .8 * len(files), (warned, len(files))


def test_one_pose_for_all_and_none_without_an_image(loaded, aligner):
    align = AlignChestd(["mask", "image"], image_key="image", aligner=aligner)
    np.testing.assert_array_equal(align(loaded)["mask"], AlignChestd(KEYS, aligner=aligner)(loaded)["mask"])
    assert set(align(loaded)["mask"].unique().tolist()) == {0, 1}
    with pytest.raises(KeyError): align({"mask": loaded["mask"]})
    with pytest.raises(ValueError, match="EnsureChannelFirstd"): align({"image": torch.zeros(5, 5)})
    assert "aligned" not in loaded["image"].meta, "the sample that was given stays as it was"


def test_without_metadata(loaded, aligner):
    set_track_meta(False)
    try: result = AlignChestd(KEYS, aligner=aligner)({key: loaded[key].as_tensor() for key in KEYS})
    finally: set_track_meta(True)
    assert not isinstance(result["image"], MetaTensor) and tuple(result["mask"].shape) == (1, 96, 120)


def test_it_is_sent_to_workers_without_its_aligner(loaded):
    align = AlignChestd(KEYS)
    there = align(loaded)
    copy = pickle.loads(pickle.dumps(align))
    assert copy.lazy_aligner._loaded is None
    np.testing.assert_array_equal(copy(loaded)["image"], there["image"])


def test_without_monai_the_extra_is_named():
    code = "import sys; sys.modules['monai'] = None; import cxr_stn.adapters.monai"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode != 0 and "pip install 'cxr_stn[monai]'" in done.stderr.splitlines()[-1]
