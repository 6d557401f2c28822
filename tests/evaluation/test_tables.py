"""Which images an evaluation judges."""
import cv2
from helpers import random_image

from cxr_stn.evaluation.tables import EvaluateParams, evaluation_dataset


def test_a_folder_is_judged_whole_unless_asked(tmp_path):
    for i in range(30): cv2.imwrite(str(tmp_path/f"{i:02}.png"), random_image(i))
    chosen = dict(data="folder", data_dir=str(tmp_path), n_images=None)
    whole, test = (evaluation_dataset(EvaluateParams(**chosen, split=s)) for s in (None, "test"))
    assert len(whole) == 30 and 3 <= len(test) < 30

def test_phantoms_are_judged_by_their_test_split():
    dataset = evaluation_dataset(EvaluateParams(data="phantom", n_images=4))
    assert set(dataset.table["split"]) == {"test"}
