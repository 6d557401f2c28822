"""Properties of the statistics that hold for any scores, and agreement with independent implementations.

The functions that begin with `slow_` are written from the papers, over all pairs of images, and share no code
with the program.
"""

import numpy as np
import pandas as pd
import pytest
from helpers import DATA
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from cxr_stn.data.chestxray14 import FINDINGS
from cxr_stn.classifier.metrics import auroc, class_aurocs, macro_auroc
from cxr_stn.study.auroc import bootstrap_aurocs, compare_arms, holm, influence, paired_test, scatter
from cxr_stn.study.calibration import choose_threshold, clustered_mean, operating_point, reliability
from cxr_stn.study.simulation import simulate_error_rates, simulation_images, SimulationParams

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 100_000)


def made_up(seed, images=120, arms=2, patients=30, levels=None):
    "Scores (N, arms), labels with both kinds, patients; few levels make ties."
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, patients, images)
    labels = rng.random(images) < rng.uniform(.15, .6)
    labels[:4] = [True, True, False, False]
    owner[:4] = [0, 1, 2, 3]
    scores = labels[:, None] + rng.normal(size=(patients, arms))[owner] + rng.normal(size=(images, arms))
    return (scores if levels is None else np.floor(scores * levels) / levels), labels, owner


def slow_kernel(scores, labels):
    x, y = scores[labels], scores[~labels]
    return (x[:, None] > y[None]) + .5 * (x[:, None] == y[None])


def slow_delong(a, b, labels):
    "Difference, its variance and p by DeLong et al. (1988), over all pairs."
    one, two = slow_kernel(a, labels), slow_kernel(b, labels)
    change = two - one
    variance = change.mean(1).var(ddof=1) / labels.sum() + change.mean(0).var(ddof=1) / (~labels).sum()
    difference = change.mean()
    return difference, variance, 2 * stats.norm.sf(abs(difference) / variance**.5)


# AUROC

@quick
@given(seeds, st.sampled_from([None, 1, 3]))
def test_auroc_is_that_of_scikit_learn(seed, levels):
    scores, labels, _ = made_up(seed, levels=levels)
    assert auroc(scores[:, 0], labels) == pytest.approx(roc_auc_score(labels, scores[:, 0]), abs=1e-12)


@quick
@given(seeds, st.sampled_from([None, 2]))
def test_auroc_sees_the_order_alone(seed, levels):
    scores, labels, _ = made_up(seed, levels=levels)
    for change in (np.exp, np.arctan, lambda s: 3 * s - 7, lambda s: stats.rankdata(s)):
        assert auroc(change(scores[:, 0]), labels) == pytest.approx(auroc(scores[:, 0], labels), abs=1e-12)


@quick
@given(seeds, st.sampled_from([None, 2]))
def test_swapping_labels_or_signs_gives_the_complement(seed, levels):
    scores, labels, owner = made_up(seed, levels=levels)
    area = auroc(scores[:, 0], labels)
    assert auroc(scores[:, 0], ~labels) == pytest.approx(1 - area, abs=1e-12)
    assert auroc(-scores[:, 0], labels) == pytest.approx(1 - area, abs=1e-12)
    here, there = (paired_test(*scores.T, y, owner) for y in (labels, ~labels))
    assert there["difference"] == pytest.approx(-here["difference"], abs=1e-12)
    assert there["se"] == pytest.approx(here["se"], rel=1e-9)
    assert there["p"] == pytest.approx(here["p"], rel=1e-6)


def test_all_scores_equal_is_one_half():
    assert auroc(np.zeros(9), [1, 0, 0, 1, 0, 0, 0, 0, 1]) == .5


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], [np.nan] * 3, [1, np.nan, 1]])
def test_a_class_without_both_labels_is_not_estimable(labels):
    labels = np.array(labels, float)
    table = class_aurocs(np.c_[[1., 2, 3], [1., 2, 3]], np.c_[labels, [0, 1, 0]], ["Mass", "Edema"])
    assert list(table["note"]) == ["not estimable", ""] and np.isnan(table["auroc"][0])
    assert macro_auroc(np.c_[[1., 2, 3], [1., 2, 3]], np.c_[labels, [0, 1, 0]]) == table["auroc"][1] == .5
    assert np.isnan(macro_auroc([[1.], [2], [3]], labels[:, None]))
    counts = table.loc[0, ["images", "positives", "negatives"]].tolist()
    assert counts == [(~np.isnan(labels)).sum(), (labels == 1).sum(), (labels == 0).sum()]


# The test

@quick
@given(seeds, st.sampled_from([None, 2]))
def test_one_image_a_patient_is_delong(seed, levels):
    scores, labels, _ = made_up(seed, levels=levels)
    difference, variance, p = slow_delong(*scores.T, labels)
    names = np.random.default_rng(seed).permutation(len(labels))
    for patients in (None, names, [f"patient {n}" for n in names]):
        ours = paired_test(*scores.T, labels, patients)
        assert ours["difference"] == pytest.approx(difference, abs=1e-12)
        assert ours["se"]**2 == pytest.approx(variance, abs=1e-14, rel=1e-10)
        assert ours["p"] == pytest.approx(p, abs=1e-10)


@quick
@given(seeds)
def test_clustered_variance_patient_by_patient(seed):
    scores, labels, owner = made_up(seed)
    kernel, (m, n) = slow_kernel(scores[:, 0], labels), (labels.sum(), (~labels).sum())
    V, W, total = kernel.mean(1) - kernel.mean(), kernel.mean(0) - kernel.mean(), 0
    for patient in set(owner):
        mine, yours = owner[labels] == patient, owner[~labels] == patient
        total += (V[mine].sum() / m / (1 - mine.mean())**.5 + W[yours].sum() / n / (1 - yours.mean())**.5)**2
    h = influence(scores[:, 0], labels)[1]
    assert scatter(h, labels, owner, 30).variance[0] == pytest.approx(total, rel=1e-10)


@quick
@given(seeds)
def test_the_order_of_images_and_the_names_of_patients_do_not_matter(seed):
    scores, labels, owner = made_up(seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    one = paired_test(*scores.T, labels, owner)
    two = paired_test(*scores[order].T, labels[order], [f"p{x * 7 % 31}" for x in owner[order]])
    assert all(one[k] == pytest.approx(two[k], rel=1e-9, abs=1e-12) for k in one)


@quick
@given(seeds)
def test_swapped_arms_swap_the_difference(seed):
    scores, labels, owner = made_up(seed)
    one, two = paired_test(*scores.T, labels, owner), paired_test(*scores[:, ::-1].T, labels, owner)
    assert two["difference"] == -one["difference"] and two["p"] == pytest.approx(one["p"])
    assert (two["low"], two["high"]) == pytest.approx((-one["high"], -one["low"]))


@quick
@given(seeds)
def test_images_given_twice_prove_nothing_new(seed):
    """Every image twice, under the same patient: the clustered test stays, the naive one believes in twice
    the data"""
    scores, labels, _ = made_up(seed, patients=120)
    owner = np.arange(len(labels))
    once = paired_test(*scores.T, labels, owner)
    twice = paired_test(*np.tile(scores.T, 2), np.tile(labels, 2), np.tile(owner, 2))
    fooled = paired_test(*np.tile(scores.T, 2), np.tile(labels, 2))
    assert twice["se"] == pytest.approx(once["se"], rel=1e-9) and fooled["se"] < .75 * once["se"]
    assert twice["p"] >= once["p"] * (1 - 1e-9)


def test_identical_predictions_and_single_patients():
    scores, labels, owner = made_up(0)
    same = paired_test(scores[:, 0], scores[:, 0], labels, owner)
    assert same["p"] == 1 and same["difference"] == same["low"] == same["high"] == 0
    alone = paired_test(*scores.T, labels, np.where(labels, -1, owner))
    assert np.isnan([alone["p"], alone["low"], alone["se"]]).all() and np.isfinite(alone["difference"])
    table = compare_arms(scores[:, :1], scores[:, 1:], labels[:, None] * 1., np.where(labels, -1, owner),
                         ["Mass"])
    assert list(table["note"]) == ["not estimable"] * 2 and table["p"].isna().all()
    assert table["auroc_a"][1] > .5
    nobody = compare_arms(scores[:, :1], scores[:, 1:], labels[:, None] * 0., owner, ["Mass"])
    assert nobody[["auroc_a", "auroc_b", "difference", "p"]].isna().all(axis=None)


@pytest.mark.parametrize("change, said", [
    (dict(labels=[0, 1, 3]), "label 3"), (dict(a=[0, np.inf, 1]), "image 1 is not finite"),
    (dict(a=[0, 1], b=[0, 1]), "do not belong to 3 images"),
    (dict(patients=[1, 2]), "2 patients for 3 images"),
    (dict(patients=[1, np.nan, 2]), "patient of image 1 is not known")])
def test_bad_input_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        paired_test(**dict(a=[.1, .2, .3], b=[.3, .2, .1], labels=[0, 1, 0], patients=[1, 2, 3]) | change)


def test_images_whose_label_is_not_known_do_not_count():
    scores, labels, owner = made_up(3)
    known = np.arange(len(labels)) % 5 > 0
    part = paired_test(*scores[known].T, labels[known], owner[known])
    whole = paired_test(*scores.T, np.where(known, labels, np.nan), owner)
    assert all(part[k] == pytest.approx(whole[k], rel=1e-12) for k in part)
    draws = [bootstrap_aurocs(scores[:, :1], scores[:, 1:], np.where(known, labels, np.nan)[:, None],
                              owner, 5)]
    assert np.isfinite(draws).all()


# All findings, seeds

def several(seeds=3, classes=5, images=200):
    rng = np.random.default_rng(1)
    owner = rng.integers(0, 60, images)
    labels = (rng.random((images, classes)) < .3).astype(float)
    scores = labels + rng.normal(size=(2, seeds, 60,
                                       classes))[:, :, owner] + rng.normal(size=(2, seeds, images, classes))
    return *scores, labels, owner, [f"F{c}" for c in range(classes)]


def test_the_macro_mean_knows_that_findings_are_correlated():
    a, b, labels, owner, names = several(seeds=1)
    same = compare_arms(np.repeat(a[..., :1], 4, 2), np.repeat(b[..., :1], 4, 2),
                        np.repeat(labels[:, :1], 4, 1), owner, names[:4])
    assert same["se_patients"][0] == pytest.approx(same["se_patients"][1], rel=1e-9)
    apart = compare_arms(a, b, labels, owner, names)
    assert apart["se_patients"][0] < .75 * apart["se_patients"][1:].mean()


def test_seeds_add_their_variance():
    a, b, labels, owner, names = several()
    table = compare_arms(a, b, labels, owner, names)
    runs = [[roc_auc_score(labels[:, c], s[:, c]) for c in range(5)] for s in np.concatenate([a, b])]
    change = np.array(runs[3:]) - np.array(runs[:3])
    assert np.allclose(table["difference"][1:], change.mean(0), atol=1e-12)
    assert np.allclose(table["se_seeds"][1:], change.std(0, ddof=1) / 3**.5, atol=1e-12)
    assert table["se_seeds"][0] == pytest.approx(change.mean(1).std(ddof=1) / 3**.5, abs=1e-12)
    half = (table["high"] - table["low"]) / 2
    wanted = stats.t.ppf(.975, table["df"]) * np.hypot(table["se_patients"], table["se_seeds"])
    assert np.allclose(half, wanted)
    order = [2, 0, 1]
    pd.testing.assert_frame_equal(compare_arms(a[order], b[order], labels, owner, names), table)


def test_holm_is_that_of_statsmodels():
    a, b, labels, owner, names = several()
    table = compare_arms(a, b, labels, owner, names)
    assert np.allclose(table["p_holm"][1:], multipletests(table["p"][1:], method="holm")[1])
    assert np.isnan(table["p_holm"][0]) and len(holm([])) == 0


def test_bootstrap_agrees_and_repeats_itself():
    a, b, labels, owner, names = several(seeds=2)
    draws = bootstrap_aurocs(a, b, labels, owner, 600, seed=1)
    assert (draws == bootstrap_aurocs(a, b, labels, owner, 600, seed=1, block=37)).all()
    assert not (draws == bootstrap_aurocs(a, b, labels, owner, 600, seed=2)).any()
    table = compare_arms(a, b, labels, owner, names)
    assert np.allclose((draws[:, 1] - draws[:, 0]).std(0) / table["se_patients"][1:], 1, atol=.15)


# Other measures

@quick
@given(seeds, st.floats(.5, 1))
def test_thresholds_keep_their_promise_on_the_images_they_were_chosen_on(seed, specificity):
    scores, labels, owner = made_up(seed, levels=3)
    cut = choose_threshold(scores[:, 0], labels, specificity)
    kept = (scores[~labels, 0] < cut).mean()
    assert kept >= specificity - 1e-9
    lower = scores[scores[:, 0] < cut, 0]
    if len(lower): assert (scores[~labels, 0] < lower.max()).mean() < specificity
    youden = choose_threshold(scores[:, 0], labels)
    gain = lambda t: (scores[labels, 0] >= t).mean() - (scores[~labels, 0] >= t).mean()
    assert gain(youden) == pytest.approx(max(gain(t) for t in scores[:, 0]))


def test_shares_are_clustered():
    scores, labels, owner = made_up(5)
    point, naive = (operating_point(scores[:, 0], labels, .5, patients) for patients in (owner, None))
    assert point["sensitivity"] == naive["sensitivity"] == (scores[labels, 0] >= .5).mean()
    assert point["specificity_high"] - point["specificity_low"] > \
        naive["specificity_high"] - naive["specificity_low"]
    mean, variance, df = clustered_mean(scores[:, 0])
    assert variance == pytest.approx(scores[:, 0].var(ddof=1) / len(labels)) and df == np.inf


@quick
@given(seeds, st.booleans())
def test_reliability_loses_no_image(seed, equal_width):
    rng = np.random.default_rng(seed)
    p, y = rng.random(90)**3, (rng.random(90) < .2) * 1.
    y[::9] = np.nan
    table = reliability(p, y, 7, equal_width)
    assert table["images"].sum() == 80
    assert (table["share"] * table["images"]).sum() == pytest.approx(np.nansum(y))


# The error rate

def test_the_simulation_is_the_same_for_the_same_seed():
    images = simulation_images(SimulationParams(n_images=400, seed=2))
    labels = images[list(FINDINGS[:3])].to_numpy()
    runs = [simulate_error_rates(labels, images["patient"], FINDINGS[:3], 4, seed) for seed in (5, 5)]
    pd.testing.assert_frame_equal(*runs)


def test_without_patient_effects_both_tests_keep_five_per_cent():
    images = simulation_images(SimulationParams(n_images=1500, seed=2))
    labels = images[["Infiltration"]].to_numpy()
    calm = dict(patient=.3, image=.3, arm_patient=0, arm_image=.4)
    rates = simulate_error_rates(labels, images["patient"], ["Infiltration"], 400, 3, shares=calm)
    assert rates[["naive", "clustered"]].iloc[0].between(.02, .085).all()




@pytest.mark.data("nih14-sample/test_list.txt")
def test_the_real_test_images():
    images = simulation_images(SimulationParams(data="nih", data_dir=str(DATA / "nih14-sample")))
    assert len(images) == 25_596 and images["patient"].nunique() == 2_797
    assert images.groupby("patient").size().max() == 184
    rates = simulate_error_rates(images[["Effusion"]].to_numpy(), images["patient"], ["Effusion"], 100, 0)
    assert rates["naive"][0] > .14 and rates["clustered"][0] < .12
