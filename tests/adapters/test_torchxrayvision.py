"""torchxrayvision: its grey values, its datasets with their masks, its networks' squares."""
import pickle

import cv2
import numpy as np
import pytest
from helpers import DATA

xrv = pytest.importorskip("torchxrayvision", reason="not installed: pip install torchxrayvision")

import pandas as pd
import torch
from torchvision import transforms

from cxr_stn.adapters.torchxrayvision import AlignChest
from cxr_stn.inference import Aligner
from cxr_stn.phantom.dataset import Phantom


@pytest.fixture(scope="module")
def aligner(): return Aligner.load()


@pytest.fixture(scope="module")
def phantom(): return Phantom(n_images=6, size=256, seed=3)[1]


@pytest.fixture(scope="module")
def image(phantom): return xrv.utils.normalize(phantom.image[:, :224], 255, reshape=True)


def test_the_frame_is_that_of_the_aligner(image, phantom, aligner):
    "On grey values from -1024 to 1024 as on 8 bits"
    ours = AlignChest((240, 192), aligner)(image)
    plain = aligner(phantom.image[:, :224], (240, 192))
    assert (ours.shape, ours.dtype) == ((1, 240, 192), np.float32)
    inside = plain.apply(np.ones((1, 1), np.uint8)) > 0
    assert np.abs(ours[0] - xrv.utils.normalize(plain.image, 255))[inside].mean() < 4
    assert (ours[0][~inside] == -1024).all()


def test_outside_is_black(image, aligner):
    cut = AlignChest(aligner=aligner)(image[:, 60:, 60:])
    assert cut.shape == (1, 224, 224) and cut.min() == -1024 and cut.max() <= 1024


def test_the_square_shows_the_frame_in_its_middle(image, aligner):
    square, frame = AlignChest(240, aligner)(image)[0], AlignChest((240, 192), aligner)(image)[0]
    assert np.abs(square[:, 24:-24] - frame)[2:-2, 2:-2].mean() < 2
    wide, inner = (AlignChest(size, aligner).locate(image) for size in (240, (240, 192)))
    there, here = wide.to_original([[24, 0], [215, 239]]), inner.to_original([[0, 0], [191, 239]])
    np.testing.assert_allclose(there, here, atol=1e-6)


def test_a_network_of_theirs_takes_it(image, aligner, capsys):
    "Without a warning about size or grey values; its weights are random, there is nothing to download"
    network = xrv.models.DenseNet(weights=None, num_classes=18).eval()
    with torch.no_grad(): answer = network(torch.from_numpy(AlignChest(aligner=aligner)(image))[None])
    assert answer.shape == (1, 18) and torch.isfinite(answer).all()
    assert "Warning" not in capsys.readouterr().out


def test_a_map_there_and_back(image, phantom, aligner):
    aligned = AlignChest(aligner=aligner).locate(image)
    lungs = phantom.lungs.any(0)[:, :224]
    back, seen = aligned.restore(aligned.apply(lungs)), aligned.restore(np.ones((1, 1), bool))
    assert 2 * (back & lungs)[seen].sum() / (back[seen].sum() + lungs[seen].sum()) > .985
    assert aligned.restore(np.ones((7, 7))).shape == lungs.shape


def test_a_sample_with_masks(image, phantom, aligner):
    "One pose for all; the sample that was given stays as it was"
    lungs = phantom.lungs[:, :, :224].astype(np.float32)
    sample = {"img": image, "lab": np.ones(3), "idx": 0, "pathology_masks": {4: lungs[:1]},
              "semantic_masks": {"Left Lung": lungs[1:]}}
    align = AlignChest(aligner=aligner)
    result, aligned = align(sample), align.locate(image)
    np.testing.assert_array_equal(result["img"], align(image))
    for got, given in ((result["pathology_masks"][4], lungs[0]),
                       (result["semantic_masks"]["Left Lung"], lungs[1])):
        assert (got.shape, got.dtype) == ((1, 224, 224), np.float32)
        assert set(np.unique(got)) == {0, 1}
        assert (got[0] != aligned.apply(given > 0)).mean() < .001
    assert sample["img"] is image and result["idx"] == 0
    with pytest.raises(ValueError, match="whole sample"): align(lungs[:1])
    with pytest.raises(ValueError, match="1, H, W"): align(lungs)


@pytest.mark.data("nih14-sample")
def test_in_a_dataset_of_theirs(tmp_path, aligner):
    "NIH_Dataset on real files, with the transform among others"
    folder = DATA/"nih14-sample"
    names = [path.name for path in sorted((folder/"images").glob("*.png"))[:3]]
    table = pd.read_csv(folder/"Data_Entry_2017_v2020.csv")
    table[table["Image Index"].isin(names)].to_csv(tmp_path/"table.csv", index=False)
    (tmp_path/"images").mkdir()
    for name in names:
        grey = cv2.imread(str(folder/"images"/name), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(tmp_path/"images"/name), grey)
    both = transforms.Compose([xrv.datasets.XRayCenterCrop(), AlignChest(aligner=aligner)])
    dataset = xrv.datasets.NIH_Dataset(tmp_path/"images", csvpath=str(tmp_path/"table.csv"), views=["*"],
                                       unique_patients=False, transform=both)
    assert len(dataset) == 3
    for sample in dataset: assert sample["img"].shape == (1, 224, 224) and sample["img"].min() >= -1024


def test_it_is_sent_to_workers_without_its_aligner(image):
    align = AlignChest()
    there, copy = align(image), pickle.loads(pickle.dumps(align))
    assert copy.lazy_aligner._loaded is None
    np.testing.assert_array_equal(copy(image), there)
