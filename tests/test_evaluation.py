"""Which images an evaluation judges."""
import cv2
from helpers import draw

from cxr_stn.evaluation import EvaluateParams, evaluation_films


def test_a_folder_is_judged_whole_unless_asked(tmp_path):
    for i in range(30): cv2.imwrite(str(tmp_path/f"{i:02}.png"), draw(i))
    chosen = dict(data="folder", data_dir=str(tmp_path), n_films=None)
    whole, test = (evaluation_films(EvaluateParams(**chosen, split=s)) for s in (None, "test"))
    assert len(whole) == 30 and 3 <= len(test) < 30

def test_phantoms_are_judged_by_their_test_split():
    films = evaluation_films(EvaluateParams(data="phantom", n_films=4))
    assert set(films.table["split"]) == {"test"}
