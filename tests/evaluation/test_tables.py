"""Which images an evaluation judges."""
import cv2
import numpy as np
from helpers import random_image

from cxr_stn.data.datasets import load_masked
from cxr_stn.evaluation.tables import EvaluateParams, evaluation_dataset, make_method, mask_table, read_all


def test_a_folder_is_judged_whole_unless_asked(tmp_path):
    for i in range(30): cv2.imwrite(str(tmp_path/f"{i:02}.png"), random_image(i))
    chosen = dict(data="folder", data_dir=str(tmp_path), n_images=None)
    whole, test = (evaluation_dataset(EvaluateParams(**chosen, split=s)) for s in (None, "test"))
    assert len(whole) == 30 and 3 <= len(test) < 30

def test_phantoms_are_judged_by_their_test_split():
    dataset = evaluation_dataset(EvaluateParams(data="phantom", n_images=4))
    assert set(dataset.table["split"]) == {"test"}

def test_an_image_whose_mask_cannot_judge_is_listed_and_left_out(tmp_path):
    for folder in ("images", "masks"): (tmp_path/folder).mkdir()
    lungs = np.zeros((60, 80), np.uint8)
    lungs[10:50, 10:30] = lungs[10:50, 50:70] = 255
    one = np.where(np.arange(80) < 40, lungs, 0)
    masks = [lungs, lungs[:50], np.zeros_like(lungs), one, lungs, lungs]
    for i, mask in enumerate(masks):
        cv2.imwrite(str(tmp_path/"images"/f"{i}.png"), random_image(i, (60, 80)))
        cv2.imwrite(str(tmp_path/"masks"/f"{i}.png"), mask)
    (tmp_path/"masks"/"4.png").write_bytes(b"")
    images, kept, failures = read_all(load_masked(tmp_path))
    assert len(images) == 2 and kept.table["image"].tolist() == ["0.png", "5.png"]
    assert failures["image"].tolist() == ["1.png", "2.png", "3.png", "4.png"]
    reasons = ("its mask: a mask of shape", "no lungs in the mask", "only the viewer's-left lung",
               "its mask: the file is empty")
    assert all(part in reason for reason, part in zip(failures["reason"], reasons))
    resized = make_method("resize", (60, 80), None)
    assert mask_table(kept, images, [resized], (60, 80))["dice"].tolist() == [1]
