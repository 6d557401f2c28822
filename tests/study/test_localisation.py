"""Where networks look: maps that lie where the image is, hits, intervals, and runs that go on."""
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np, pandas as pd, pytest, torch
from helpers import DATA

from cxr_stn.classifier.arms import affine_table, arm_affines, build_arm_cache
from cxr_stn.classifier.training import ClassifierTraining, ClassifyParams
from cxr_stn.phantom.dataset import Phantom
from cxr_stn.runs import Run, atomic_write
from cxr_stn.stn import mirror_frame, pose_to_affine
from cxr_stn.study.localisation import (bring_together, compare_hits, grad_cam, Inputs, known_boxes,
                                        LocalisationParams, localisation_table, map_maxima, maps_on_image,
                                        pair_maps, points_on_image, run_inputs, run_scores, score_maps,
                                        trained_runs)
from cxr_stn.study.localisation_figures import choose_examples, example_maps, plot_examples

pytestmark = pytest.mark.usefixtures("one_thread")


class Bright(torch.nn.Module):
    "A network that says what is bright: its map is the brightness of cells of 4 x 4 pixels"
    def __init__(self):
        super().__init__()
        self.network = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Conv2d(1, 1, 1, bias=False))
        self.head = torch.nn.Linear(1, 14, bias=False)
        for layer in (self.network[1], self.head): torch.nn.init.ones_(layer.weight)

    def forward(self, images): return self.head(self.network(images).mean((2, 3)))


POSES = {"whole": [0, 0, 1, 1, 0, 0], "shifted": [.2, -.15, 1, 1, 0, 0], "rotated": [0, 0, 1, 1, .5, 0],
         "placed": [.1, .05, .7, .85, -.4, 0], "partly outside": [.6, .3, 1.1, 1, .2, 0]}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("pose", POSES.values(), ids=POSES)
def test_a_network_that_looks_at_a_spot_is_found_to_look_there(pose, mirrored):
    spot, size = np.array([.31, .12]), 128
    axis = (2 * np.arange(size) + 1) / size - 1
    image = 250 * np.exp(-((axis[None] - spot[0])**2 + (axis[:, None] - spot[1])**2) / .1**2)
    affine = mirror_frame(pose_to_affine(torch.tensor([pose], dtype=torch.float32)), torch.tensor([mirrored]))
    inputs = Inputs(image[None].astype(np.uint8), pd.DataFrame(dict(image=["a"], patient=[1])), affine)
    pairs = pd.DataFrame(dict(image=["a"], patient=[1], finding=["Mass"], row=[0],
                              boxes=[np.array([[*(spot - .05), *(spot + .05)]])]))
    module = SimpleNamespace(classifier=Bright(), locate=lambda images, affines: affines,
                             params=SimpleNamespace(input_size=64))
    maps, affines = pair_maps(module, inputs, pairs, "1")
    scores = score_maps(maps, affines, pairs["boxes"], size)
    assert scores["hit"].item() == 1
    assert np.abs(scores[["x", "y"]].to_numpy()[0] - spot).max() < .02      # a cell is 0.125 wide
    on_image = maps_on_image(maps, affines, size)[0].numpy()
    middle = np.array([(on_image.sum(0) * axis).sum(), (on_image.sum(1) * axis).sum()]) / on_image.sum()
    assert np.abs(middle - spot).max() < .01                                # a pixel is 0.016


def test_a_map_is_not_off_by_half_a_pixel():
    "Mirrored twice, or moved by whole cells, it comes out the same to the last digit"
    maps, still = torch.rand(1, 8, 8, generator=torch.manual_seed(0)), torch.eye(2, 3)[None]
    whole = maps_on_image(maps, still, 64)
    back = maps_on_image(maps.flip(2), mirror_frame(still, torch.tensor([True])), 64)
    torch.testing.assert_close(back, whole, atol=1e-5, rtol=0)
    cell = pose_to_affine(torch.tensor([[2 / 8, 0, 1, 1, 0, 0]]))           # a frame one cell further right
    torch.testing.assert_close(maps_on_image(maps, cell, 64)[:, :, 9:], whole[:, :, 1:-8], atol=1e-5, rtol=0)
    torch.testing.assert_close(points_on_image(map_maxima(maps), cell)[0, 0] - map_maxima(maps)[0, 0],
                               torch.tensor(2 / 8))
    peak = torch.zeros(1, 8, 8); peak[0, 2, 5] = 1
    x, y = map_maxima(peak)[0]                                              # the cell's centre, in pixels
    assert ((x + 1) * 32 - .5, (y + 1) * 32 - .5) == (43.5, 19.5)


def hits(gain, seed, pairs, ease):
    rng = np.random.default_rng(seed)
    drive = ease[pairs["patient"]] + gain + rng.normal(size=len(pairs))
    return pairs.assign(hit=(drive > .5).astype(float), share=.1, hit_swapped=0.0, area=.1)


def test_intervals_agree_with_a_bootstrap_of_patients():
    images = Phantom(n_images=1500, prevalence=5.0, seed=2).table
    findings = ["Atelectasis", "Effusion", "Mass"]
    pairs = images.melt(["image", "patient"], findings, "finding").query("value == 1")
    rng = np.random.default_rng(0)
    ease = [rng.normal(size=images["patient"].max() + 1) for _ in range(2)]
    looked = bring_together([("standard", 0, hits(0, 1, pairs, ease[0])),
                             ("aligned", 0, hits(.2, 2, pairs, .7 * ease[0] + .7 * ease[1]))])
    formula = compare_hits(looked, "hit", "aligned").set_index("finding")["se_patients"]
    difference = looked.values["hit"]["aligned"][0] - looked.values["hit"]["standard"][0]
    codes, of = looked.pairs["patient"].to_numpy(), looked.pairs["finding"].to_numpy()
    count = codes.max() + 1
    weights = rng.multinomial(count, np.full(count, 1 / count), 1000)[:, codes]
    means = {f: (weights * difference)[:, of == f].sum(1) / weights[:, of == f].sum(1) for f in findings}
    means["mean of findings"] = np.mean([means[f] for f in findings], 0)
    for name, resampled in means.items(): assert abs(resampled.std() / formula[name] - 1) < .12, name
    naive = looked.pairs.assign(patient=np.arange(len(looked.pairs)))
    alone = compare_hits(looked._replace(pairs=naive), "hit", "aligned")["se_patients"][0]
    assert alone < .9 * formula["mean of findings"], "who takes images for patients is too sure"


def test_a_missing_library_is_named():
    with mock.patch.dict(sys.modules, {"monai.visualize.class_activation_maps": None}):
        with pytest.raises(ImportError, match=r"pip install 'cxr_stn\[monai\]'"): grad_cam(Bright(), "1")


def untrained_run(folder, cache_dir, **params):
    "A run folder as classify.ipynb leaves it, with a network that has learned nothing"
    params = ClassifyParams(out_dir=str(folder), cache_dir=str(cache_dir), classifier_weights="none",
                            **params)
    module = ClassifierTraining(params.model_dump(), [.5] * 14)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(dict(state_dict=module.state_dict(), epoch=0), folder / "checkpoints" / "best.ckpt")
    atomic_write(folder / "params.yaml", params.to_yaml())
    atomic_write(folder / "arm.json", f'{{"arm": "{params.arm}", "aligner": null, "area": 0.7}}\n')
    atomic_write(folder / "predictions.parquet", b"")
    return params


@pytest.fixture
def phantom_runs(tmp_path):
    for arm in ("standard", "center_crop"):
        for seed in (0, 1):
            folder = tmp_path / "runs" / f"{arm}-{seed}"
            untrained_run(folder, tmp_path / "cache", arm=arm, seed=seed, n_images=40, input_size=32,
                          phantom_prevalence=8.0)
            atomic_write(folder / "affines.csv", "image\n")
    return LocalisationParams(experiment=str(tmp_path / "runs"), n_images=12, layer="blocks.2",
                              cache_dir=str(tmp_path / "cache"))


def looks(params, out, broken_after=None):
    "Table and bytes of all files of a run of the notebook's steps, perhaps interrupted"
    runs = trained_runs(params)
    with Run(out, params) as run:
        boxes = known_boxes(run, runs, params)
        tables = []
        for number, trained in enumerate(runs):
            if number == broken_after: raise KeyboardInterrupt
            tables.append((trained.arm, trained.seed, run_scores(run, params, trained, boxes)))
        run.write_table("localisation", localisation_table(bring_together(tables)))
    return {path.name: path.read_bytes() for path in run.path.rglob("*.csv")}


def test_an_interrupted_run_goes_on_to_the_same_bytes(phantom_runs, tmp_path):
    whole = looks(phantom_runs, tmp_path / "whole")
    assert len(whole) == 6                                                  # boxes, four runs, one table
    with pytest.raises(KeyboardInterrupt): looks(phantom_runs, tmp_path / "broken", broken_after=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken" / "maps").iterdir()}
    assert len(before) == 3
    assert looks(phantom_runs, tmp_path / "broken") == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was done is not done again"


def test_another_network_is_looked_at_anew(phantom_runs, tmp_path):
    runs = trained_runs(phantom_runs)
    with Run(tmp_path / "out", phantom_runs) as run:
        boxes = known_boxes(run, runs, phantom_runs)
        run_scores(run, phantom_runs, runs[0], boxes)
        weights = (runs[1].folder / "checkpoints" / "best.ckpt").read_bytes()
        (runs[0].folder / "checkpoints" / "best.ckpt").write_bytes(weights)
        run_scores(run, phantom_runs, runs[0], boxes)
    assert len(list((tmp_path / "out" / "maps").glob(f"{runs[0].arm}-{runs[0].folder.name}-*"))) == 2


def test_runs_on_other_phantoms_are_refused(phantom_runs, tmp_path):
    folder = tmp_path / "runs" / "odd"
    untrained_run(folder, tmp_path / "cache", n_images=40, input_size=32, phantom_prevalence=2.0, seed=5)
    atomic_write(folder / "affines.csv", "image\n")
    with Run(tmp_path / "out", phantom_runs) as run, pytest.raises(ValueError, match="not like those of"):
        known_boxes(run, trained_runs(phantom_runs), phantom_runs)


@pytest.mark.slow
@pytest.mark.data("nih14-sample")
def test_each_radiograph_is_looked_at_by_the_network_of_its_fold(tmp_path):
    for arm in ("standard", "center_crop"):
        for fold in (0, 1):
            folder = tmp_path / "crossed" / f"{arm}-0-{fold}"
            params = untrained_run(folder, tmp_path / "cache", arm=arm, data="nih",
                                   crop_area=.7 if arm == "center_crop" else None,
                                   data_dir=str(DATA / "nih14-sample"), n_folds=2, fold=fold, input_size=32)
            cache = build_arm_cache(params)
            table = affine_table(cache.dataset, arm_affines(params, cache)[0])
            atomic_write(folder / "affines.csv", table.to_csv(index=False))
    params = LocalisationParams(experiment=str(tmp_path / "crossed"), layer="blocks.2",
                                boxes=str(DATA / "nih14-sample" / "BBox_List_2017.csv"),
                                cache_dir=str(tmp_path / "cache"))
    runs = trained_runs(params)
    with Run(tmp_path / "out", params) as run:
        boxes = known_boxes(run, runs, params)
        tables = [(trained.arm, trained.seed, run_scores(run, params, trained, boxes)) for trained in runs]
    looked = bring_together(tables)
    here = boxes[boxes["image"].isin(cache.dataset.table["image"])]
    assert looked.pairs["image"].nunique() == here["image"].nunique() > 20
    first = set(run_inputs(runs[0].folder, params).table["image"])
    assert set(tables[0][2]["image"]) == first & set(here["image"])
    examples = example_maps(runs, params, boxes, choose_examples(looked.pairs, 3))
    assert [set(example.maps) for example in examples] == [{"standard", "center_crop"}] * 3
    assert len(plot_examples(examples).axes) == 9
