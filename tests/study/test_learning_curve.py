"Runs with few training patients and with many are brought together, or refused"
import pytest

from cxr_stn.classifier.predictions import PredictionError, write_predictions
from cxr_stn.classifier.training import ClassifyParams
from cxr_stn.study.learning_curve import (difference_table, LearningCurveParams, load_learning_curve,
                                          simulate_learning_curve, slope_table)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Simulated predictions as sweep.ipynb would leave them: two numbers of patients, two seeds"
    made = tmp_path_factory.mktemp("runs")
    for arm, number, _, table, metadata in simulate_learning_curve([50, 100]):
        run = made / f"patients_{number:g}" / f"{arm}-{metadata['seed']}"
        write_predictions(run / "predictions.parquet", table, metadata | dict(data="phantom"))
        params = ClassifyParams(data="phantom", n_images=400, n_train_patients=int(number), out_dir=str(run))
        (run / "params.yaml").write_text(params.to_yaml())
    return made


def parameters(folder, *names, **changes):
    return LearningCurveParams(experiments=[str(folder / name) for name in names], **changes)


def test_numbers_come_from_the_runs(folder):
    curve = load_learning_curve(parameters(folder, "patients_100", "patients_50"))
    assert (curve.arms, curve.levels, curve.study.seeds) == (["standard", "aligned"], [50, 100], [0, 1])
    table, slope = difference_table(curve), slope_table(curve).iloc[0]
    few, many = table[table["finding"] == "macro mean"]["difference"]
    assert slope["slope"] == pytest.approx(many - few, abs=1e-12) and slope["high"] < 0
    assert table.loc[table["endpoint"] == "primary", "training_patients"].tolist() == [50]


def test_seeds_can_be_chosen(folder):
    both = "patients_50", "patients_100"
    assert load_learning_curve(parameters(folder, *both, seeds=[1])).study.seeds == [1]
    with pytest.raises(PredictionError, match=r"patients_50: no run of aligned or .* with the seeds \[7\]"):
        load_learning_curve(parameters(folder, *both, seeds=[7]))


def test_what_makes_no_curve_is_refused(folder):
    with pytest.raises(ValueError, match="two numbers of training patients are needed"):
        load_learning_curve(parameters(folder, "patients_50"))
    with pytest.raises(PredictionError, match="seed 0 twice"):
        load_learning_curve(parameters(folder, "patients_50", "patients_50", "patients_100"))
    with pytest.raises(PredictionError, match="no arm 'end_to_end'"):
        load_learning_curve(parameters(folder, "patients_50", "patients_100", comparator="end_to_end"))
