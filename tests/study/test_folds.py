"""A cross-validation from its trainings to its comparison: every image is tested once, by a network that has
not seen its patient."""
from cxr_stn.classifier.predictions import read_predictions
from cxr_stn.classifier.training import fit_classifier
from cxr_stn.study.comparison import CompareParams, class_table, load_study
from cxr_stn.study.sweep import SweepParams, planned_runs


def test_every_image_is_tested_once_and_arms_are_compared_within_folds(tmp_path):
    experiment = SweepParams(experiment="crossed", arms=["standard", "oracle"], seeds=[0],
                             out_dir=str(tmp_path), parameters=dict(
                                 n_images=60, n_folds=2, input_size=32, epochs=1, batch_size=8,
                                 phantom_prevalence=10.0, cache_dir=str(tmp_path / "cache")))
    runs = planned_runs(experiment)
    assert list(runs) == ["standard-0-0", "oracle-0-0", "standard-0-1", "oracle-0-1"]
    tested, patients = {}, {}
    for name, params in runs.items():
        table, metadata = read_predictions(fit_classifier(params) / "predictions.parquet")
        assert (metadata["n_folds"], metadata["fold"]) == (2, int(name[-1]))
        test = table[table["split"] == "test"]
        tested[name], patients[name] = set(test["image"]), set(test["patient"])
    assert tested["standard-0-0"] == tested["oracle-0-0"]
    assert tested["oracle-0-1"] == tested["standard-0-1"]
    assert len(tested["standard-0-0"] | tested["standard-0-1"]) == 60
    assert not patients["standard-0-0"] & patients["standard-0-1"]
    study = load_study(CompareParams(experiment=str(tmp_path / "crossed")))
    assert len(study.images) == 60 and sorted(study.folds.unique()) == [0, 1]
    assert class_table(study)["images"][0] == 60
