"""torchvision v2: one pose a sample, coordinates as torchvision counts them, every kind of annotation."""
import pickle, subprocess, sys

import numpy as np
import pytest
from helpers import environment

pytest.importorskip("torchvision", reason="torchvision is not installed: pip install 'cxr_stn[study]'")

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from cxr_stn.adapters.torchvision import AlignChest
from cxr_stn.inference import Aligner
from cxr_stn.phantom.dataset import Phantom

SIZE = (240, 192)


@pytest.fixture(scope="module")
def align(): return AlignChest(SIZE, aligner=Aligner.load())


@pytest.fixture(scope="module")
def phantom(): return Phantom(n_images=6, size=256, seed=3)[1]


@pytest.fixture(scope="module")
def sample(phantom):
    lungs, image = phantom.lungs[:, :, :224], phantom.image[:, :224]
    boxes = [[np.nonzero(lung.any(0))[0][0], np.nonzero(lung.any(1))[0][0],
              np.nonzero(lung.any(0))[0][-1] + 1, np.nonzero(lung.any(1))[0][-1] + 1] for lung in lungs]
    return {"image": tv_tensors.Image(image), "masks": tv_tensors.Mask(lungs), "labels": torch.tensor([1, 2]),
            "boxes": tv_tensors.BoundingBoxes(np.float32(boxes), format="XYXY", canvas_size=image.shape),
            "points": tv_tensors.KeyPoints(torch.tensor([[[100., 60], [.5, .5]]]), canvas_size=image.shape)}


def test_all_parts_follow_one_pose(align, sample):
    result, aligned = align(sample), align.locate(sample["image"])
    assert {name: type(part) for name, part in result.items()} == {n: type(p) for n, p in sample.items()}
    np.testing.assert_array_equal(result["image"][0], aligned.image[..., 0])
    np.testing.assert_array_equal(result["masks"], aligned.apply(
        sample["masks"].numpy().transpose(1, 2, 0)).transpose(2, 0, 1))
    np.testing.assert_allclose(result["points"].numpy().reshape(-1, 2),
                               aligned.to_aligned([[99.5, 59.5], [0, 0]]) + .5, atol=1e-4)
    assert result["labels"] is sample["labels"]
    assert result["boxes"].canvas_size == result["points"].canvas_size == SIZE


def test_boxes_are_those_of_torchvision(align, sample):
    "For a frame that is the whole image, our boxes and points are those of torchvision's own resizing"
    class Whole:
        def __call__(self, image, shape):
            from cxr_stn.aligned import Aligned, Pose, rescale_matrix
            return Aligned(np.zeros(shape), rescale_matrix(shape, image.shape), Pose(0, 0, 1, 1, 0),
                           original_shape=image.shape[:2])
    ours, theirs = AlignChest((128, 112)), v2.Resize((128, 112), antialias=True)
    ours.lazy_aligner._loaded = Whole()
    ours, theirs = ours(sample), theirs(sample)
    for name in ("boxes", "points"): torch.testing.assert_close(ours[name], theirs[name])
    assert np.abs(ours["image"].numpy().astype(int) - theirs["image"].numpy()).mean() < 2
    assert (ours["masks"].numpy() != theirs["masks"].numpy()).mean() < .02


@pytest.mark.parametrize("format", ["XYXY", "XYWH", "CXCYWH"])
def test_box_formats_agree(align, sample, format):
    convert = v2.ConvertBoundingBoxFormat
    there = convert("XYXY")(align(sample["image"], convert(format)(sample["boxes"]))[1])
    torch.testing.assert_close(there, align(sample)["boxes"], atol=1e-3, rtol=0)


def test_boxes_around_lungs_stay_around_lungs(align, sample):
    result = align(sample)
    for lung, (left, top, right, bottom) in zip(result["masks"], result["boxes"].tolist()):
        y, x = torch.nonzero(lung).T
        assert left <= x.min() + 1 and top <= y.min() + 1 and right >= x.max() and bottom >= y.max()


def test_boxes_outside_lose_their_area_and_are_removed(align, sample):
    box = tv_tensors.BoundingBoxes([[5000., 5000, 5050, 5050], [100, 60, 140, 90]], format="XYXY",
                                   canvas_size=sample["image"].shape[1:])
    mapped = align({"image": sample["image"], "boxes": box, "labels": torch.tensor([0, 1])})
    assert v2.SanitizeBoundingBoxes()(mapped)["labels"].tolist() == [1]
    rotated = tv_tensors.BoundingBoxes([[9., 9, 5, 5, 30]], format="CXCYWHR", canvas_size=(9, 9))
    with pytest.raises(TypeError, match="CXCYWHR"): align(sample["image"], rotated)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.float64, torch.bfloat16])
def test_types_of_images(align, sample, dtype):
    image = v2.ToDtype(dtype, scale=True)(sample["image"])
    result = align(image)
    assert (result.dtype, type(result), tuple(result.shape)) == (dtype, tv_tensors.Image, (1, *SIZE))


def test_pillow_and_colour(align, phantom):
    grey = Image.fromarray(phantom.image)
    assert align(grey).size == SIZE[::-1] and align(grey).mode == "L"
    assert align(grey.convert("RGB")).mode == "RGB"
    tensor = v2.functional.pil_to_tensor(align(grey))
    np.testing.assert_array_equal(tensor, align(torch.from_numpy(phantom.image)[None]))


def test_a_map_comes_back(align, sample):
    back = align.locate(sample["image"]).restore(np.ones((7, 6)))
    assert back.shape == tuple(sample["image"].shape[1:])


def test_in_a_pipeline_and_sent_to_workers(sample):
    transform = v2.Compose([AlignChest(SIZE), v2.RandomHorizontalFlip(1),
                            v2.ToDtype(torch.float32, scale=True)])
    there = transform(sample)
    copy = pickle.loads(pickle.dumps(transform))
    assert copy.transforms[0].lazy_aligner._loaded is None
    np.testing.assert_array_equal(copy(sample)["image"], there["image"])


def test_several_images_none_and_videos_are_refused(align, sample):
    for wrong in ((sample["image"], sample["image"]), (sample["masks"],), (sample["boxes"], sample["masks"])):
        with pytest.raises(TypeError, match="one image"): align(*wrong)
    with pytest.raises(TypeError, match="one image a call"): align(torch.zeros(2, 1, 30, 30))
    with pytest.raises(TypeError, match="no video"): align(tv_tensors.Video(torch.zeros(2, 1, 30, 30)))


def test_without_torchvision_the_extra_is_named():
    code = "import sys; sys.modules['torchvision'] = None; import cxr_stn.adapters.torchvision"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode != 0 and "pip install 'cxr_stn[study]'" in done.stderr.splitlines()[-1]
