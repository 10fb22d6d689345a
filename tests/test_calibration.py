"""metrics.py on generated predictions whose calibration is known, and confidence in the scripts end to end."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import CLASSIFIER, TRAIN, make_windows

import cross_dataset_test
import metrics
import utils
from bookkeeping import ledger
from bookkeeping.commands import UserError
from experiments import baselines
from metrics import scores
from models import Classifier

CLASSIFIED = "saved/classifier_base_transformer_a_20_120"
COLUMNS = ["temperature", "ece", "ece_uncalibrated", "source_ece", "source_ece_uncalibrated"]


def rows():
    with open("saved/results.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def generated(n=20000, classes=4, seed=0):
    """(logits, labels drawn from their softmax): predictions that are calibrated at temperature 1."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, classes))
    cumulative = np.exp(logits).cumsum(1)
    return logits, (rng.random((n, 1)) * cumulative[:, -1:] > cumulative).sum(1)


def likelihood(logits, labels, temperature):
    """Mean negative log-likelihood, plainly."""
    return float(torch.nn.functional.cross_entropy(torch.tensor(logits) / temperature, torch.tensor(labels)))


def plain_ece(probabilities, labels, bins):
    """Guo et al., eq. 3, window by window."""
    total = 0.0
    for m in range(bins):
        inside = [i for i, p in enumerate(probabilities) if m / bins < p.max() <= (m + 1) / bins]
        if inside:
            accuracy = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            confidence = np.mean([probabilities[i].max() for i in inside])
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


# -------------------------------------------------------------------------------------------- temperature


@pytest.mark.parametrize("scale", [0.06, 0.4, 1, 2.5, 10, 19])
def test_the_temperature_undoes_a_known_miscalibration(scale):
    logits, labels = generated()
    found = metrics.fit_temperature(scale * logits, labels)
    assert found == pytest.approx(scale, rel=0.03)
    assert found == pytest.approx(scale * metrics.fit_temperature(logits, labels), rel=1e-6)
    error = metrics.errors(scale * logits, labels, found)
    assert error["ece"] < 0.012
    assert scale == 1 or error["ece_uncalibrated"] > 0.1


def test_the_temperature_has_the_least_negative_log_likelihood():
    logits, labels = generated(50, seed=3)
    found = metrics.fit_temperature(3 * logits, labels)
    best = likelihood(3 * logits, labels, found)
    others = np.geomspace(metrics.LOWEST, metrics.HIGHEST, 400)
    assert all(best <= likelihood(3 * logits, labels, t) + 1e-12 for t in others)
    assert best < min(likelihood(3 * logits, labels, t) for t in (0.99 * found, 1.01 * found))


def test_no_prediction_changes_and_no_offset_counts():
    logits, labels = generated(300)
    found = metrics.fit_temperature(2 * logits, labels)
    assert np.array_equal(metrics.probabilities(2 * logits, found).argmax(1), logits.argmax(1))
    assert metrics.fit_temperature(2 * logits + 1e4 * labels[:, None], labels) == pytest.approx(found, rel=1e-6)
    np.testing.assert_allclose(metrics.probabilities(logits * 1e4).sum(1), 1)  # no overflow


def test_tensors_give_what_arrays_give():
    logits, labels = (part[:200] for part in generated())
    logits = logits.astype(np.float32)
    tensors = torch.tensor(logits, requires_grad=True), torch.tensor(labels)
    assert metrics.fit_temperature(*tensors) == metrics.fit_temperature(logits, labels)
    assert metrics.assess(*tensors, 2.0, 0.5) == metrics.assess(logits, labels, 2.0, 0.5)


def test_where_the_likelihood_has_no_minimum_within_the_bounds():
    logits, labels = generated(200)
    assert metrics.fit_temperature(logits, logits.argmax(1)) == 1  # all right: the set says nothing about errors
    assert metrics.fit_temperature(np.zeros((5, 3)), np.arange(5) % 3) == 1
    assert metrics.fit_temperature(logits, logits.argmin(1)) == metrics.HIGHEST == 20
    mostly = logits.argmax(1)
    mostly[0] = logits[0].argmin()
    assert metrics.fit_temperature(1e-4 * logits, mostly) == metrics.LOWEST == 0.05


@pytest.mark.parametrize(
    "logits, labels",
    [(np.zeros((0, 3)), np.zeros(0)), (np.ones((4, 3)), np.zeros(3)), (np.full((2, 2), np.nan), [0, 1])],
)
def test_what_cannot_be_fitted_is_an_error(logits, labels):
    with pytest.raises(ValueError):
        metrics.fit_temperature(logits, labels)


# -------------------------------------------------------------------------------- calibration error, abstention


def test_the_error_of_calibrated_and_of_overconfident_predictions():
    logits, labels = generated(100000)
    assert metrics.ece(metrics.probabilities(logits), labels) < 0.006
    sure = np.tile([0.9, 0.06, 0.04], (1000, 1))
    labels = np.repeat([0, 1], [700, 300])
    assert metrics.ece(sure, labels) == pytest.approx(0.2)
    count, confidence, accuracy = metrics.reliability(sure, labels)
    assert count[13] == count.sum() == 1000 and (confidence[13], accuracy[13]) == pytest.approx((0.9, 0.7))


@pytest.mark.parametrize("bins", [5, 15])
def test_the_error_is_that_of_a_plain_loop(bins):
    logits, labels = generated(400, seed=1)
    probabilities = metrics.probabilities(logits)
    edges = [[0.6, 0.4], [1 / 5, 4 / 5], [2 / 3, 1 / 3], [1.0, 0.0]]  # on a bin's upper edge: that bin's own
    probabilities[:4] = np.pad(edges, ((0, 0), (0, 2)))
    assert metrics.ece(probabilities, labels, bins) == pytest.approx(plain_ece(probabilities, labels, bins))


def test_abstention_counts_the_windows_of_at_least_the_threshold():
    logits, labels = generated(500, seed=2)
    top = metrics.probabilities(logits, 1.5).max(1)
    threshold = float(np.sort(top)[200])  # one of them: it is kept
    found = metrics.abstention(logits, labels, 1.5, threshold)
    mask = np.array([t >= threshold for t in top])
    assert (found["windows_kept"], found["coverage"]) == (300, 0.6)
    assert found["accuracy_kept"] == np.mean(logits[mask].argmax(1) == labels[mask])
    assert found["f1_macro_kept"] == scores(labels[mask], logits[mask].argmax(1), 4)["f1_macro"]
    everything = metrics.abstention(logits, labels, 1.5, 0)
    assert everything["coverage"] == 1 and everything["accuracy_kept"] == np.mean(logits.argmax(1) == labels)
    nothing = metrics.assess(logits, labels, 1.5, 1)
    assert nothing["coverage"] == 0 and nothing["accuracy_kept"] is None
    assert metrics.confidence_report(nothing).endswith("0 windows kept, coverage 0.0000")


# ---------------------------------------------------------------------------------------------- the scripts


@pytest.fixture
def unsure(trained):
    """`trained` with a classifier that is right in some validation windows: its temperature is within the bounds."""
    trained.config("train", n_epochs=12, lr=0.01)
    trained.run("classifier", "-d", "a", "-lr", 0.5)
    (trained.folder / "saved/results.csv").unlink()
    return trained


def classifier_logits(part):
    """Logits and ids of a part (0 train, 1 validation, 2 test) of the embedding under the saved weights."""
    model = Classifier(CLASSIFIER, 4).eval()
    model.load_state_dict(torch.load(f"{CLASSIFIED}/model_transformer.pt", weights_only=True))
    chosen = utils.split_windows(32, 6, TRAIN["seed"], "window")[part]
    h = torch.from_numpy(np.load("embed/embed_a_20_120.npy")[chosen])
    with torch.no_grad():
        return model(h).numpy(), np.load("embed/label_a_20_120.npy")[chosen, 0, 0].astype(int)


def test_the_temperature_is_fitted_on_the_sources_validation_part(unsure, capsys):
    record = json.load(open(f"{CLASSIFIED}/model_transformer.json"))
    assert record["temperature"] == pytest.approx(metrics.fit_temperature(*classifier_logits(1)), rel=1e-4)
    assert record["temperature"] not in (1, metrics.LOWEST, metrics.HIGHEST)
    for name, value in metrics.errors(*classifier_logits(2), record["temperature"]).items():
        assert record["source_test"][name] == pytest.approx(value, abs=1e-5)
    unsure.run("classifier", "-d", "a", "-lr", 0.5)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("confidence: ") and f"{record['source_test']['ece']:.4f} at temperature" in line


def test_rows_gain_their_columns_after_the_old_ones(unsure):
    unsure.run("cross_dataset_test", "-d", "a", "-td", "b")
    (row,) = rows()
    assert list(row)[list(row).index("majority") + 1 :] == COLUMNS
    _, label, logits = ledger.read_predictions(f"{CLASSIFIED}/model_transformer_b.npz", row["config_hash"])
    temperature = ledger.read_temperature(f"{CLASSIFIED}/model_transformer_b.npz")
    record = json.load(open(f"{CLASSIFIED}/model_transformer.json"))
    assert temperature == record["temperature"]
    for name, value in {"temperature": temperature, **metrics.errors(logits, label, temperature)}.items():
        assert float(row[name]) == pytest.approx(value, abs=1e-6)
    assert float(row["source_ece"]) == round(record["source_test"]["ece"], 6)
    assert row["ece"] != row["ece_uncalibrated"] and row["source_ece"] != row["source_ece_uncalibrated"]


def test_a_temperature_changes_no_other_column(unsure):
    unsure.run("cross_dataset_test", "-d", "a", "-td", "b")
    path = unsure.folder / f"{CLASSIFIED}/model_transformer.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"temperature": 3.7}))
    unsure.run("cross_dataset_test", "-d", "a", "-td", "b", "--abstain", 0.3)
    first, second = rows()
    changed = {name for name in second if first[name] != second[name]}
    assert {"temperature", "ece"} <= changed <= {"temperature", "ece", "abstain", "coverage", "accuracy_kept"}


def test_the_targets_labels_leave_temperature_and_artefacts_as_they_are(unsure):
    unsure.run("cross_dataset_test", "-d", "a", "-td", "b")
    before = unsure.files()
    data, labels = make_windows(12, seed=2)
    unsure.dataset("b", data=data, labels=labels[::-1])
    unsure.run("classifier", "-d", "a", "-lr", 0.5)
    unsure.run("cross_dataset_test", "-d", "a", "-td", "b")
    after = unsure.files()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"dataset/b/label_20_120.npy", "saved/results.csv", f"{CLASSIFIED}/model_transformer_b.npz"}
    first, second = rows()
    assert first["temperature"] == second["temperature"] and first["ece"] != second["ece"]


def test_abstaining_end_to_end(unsure, capsys):
    unsure.run("cross_dataset_test", "-d", "a", "-td", "b", "--abstain", 0)
    assert "12 windows kept, coverage 1.0000" in capsys.readouterr().out
    npz = f"{CLASSIFIED}/model_transformer_b.npz"
    key = rows()[0]["config_hash"]
    _, label, logits = ledger.read_predictions(npz, key)
    top = metrics.probabilities(logits, ledger.read_temperature(npz)).max(1)
    threshold = round(float(np.median(top)), 4)
    unsure.run("cross_dataset_test", "-d", "a", "-td", "b", "--abstain", threshold)
    mask = top >= threshold
    accuracy, coverage = np.mean(logits[mask].argmax(1) == label[mask]), mask.mean()
    assert 0 < coverage < 1
    out = capsys.readouterr().out
    assert f"{mask.sum()} windows kept, coverage {coverage:.4f}; accuracy {accuracy:.4f}  macro F1 " in out
    row = rows()[-1]
    assert list(row)[-3:] == ["abstain", "coverage", "accuracy_kept"]
    assert [float(row[name]) for name in list(row)[-3:]] == pytest.approx([threshold, coverage, accuracy], abs=1e-6)
    unsure.run("cross_dataset_test", "-d", "a", "-td", "b", "--abstain", 1)
    assert (rows()[-1]["coverage"], rows()[-1]["accuracy_kept"]) == ("0.0", "")


@pytest.mark.parametrize("script", [cross_dataset_test, baselines])
@pytest.mark.parametrize("threshold", ["1.01", "-0.1", "nan", "most"])
def test_a_wrong_threshold_is_one_line(script, threshold, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.get_args(["-d", "a", "-td", "b", "--abstain", threshold])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert "--abstain" in err and threshold in err and "from 0 to 1" in err


@pytest.mark.parametrize("what", ["released", "older"])
def test_a_classifier_without_a_temperature_has_1(unsure, capsys, what):
    path = unsure.folder / f"{CLASSIFIED}/model_transformer.json"
    record = json.loads(path.read_text())
    path.unlink()
    if what == "older":
        source = {key: value for key, value in record["source_test"].items() if not key.startswith("ece")}
        del record["temperature"]
        path.write_text(json.dumps(record | {"source_test": source}))
    unsure.run("cross_dataset_test", "-d", "a", "-td", "b")
    out = capsys.readouterr().out
    assert "temperature 1: none is recorded beside" in out and "model_transformer.pt" in out
    (row,) = rows()
    assert row["temperature"] == "1.0" and row["ece"] == row["ece_uncalibrated"] != ""
    assert row["source_ece"] == "" and (row["source_accuracy"] == "") == (what == "released")


@pytest.mark.parametrize("value", ['"2"', "0", "-1", "NaN", "Infinity", "true", "null"])
def test_a_temperature_that_is_none_is_refused(trained, value):
    path = trained.folder / f"{CLASSIFIED}/model_transformer.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"temperature": json.loads(value)}))
    with pytest.raises(UserError, match="model_transformer.json: 'temperature' must be a number above 0"):
        trained.run("cross_dataset_test", "-d", "a", "-td", "b")


@pytest.mark.parametrize("name", ["cnn", "forest"])
def test_baselines_have_the_same_columns(project, monkeypatch, capsys, name):
    monkeypatch.setattr(baselines, "TREES", 10)
    project.config("train", n_epochs=2)
    flags = ["-d", "a", "-td", "b", "-b", name, "-lr", 0.2, "-am", "none", "--abstain", 0.4, "--quiet"]
    project.run("experiments.baselines", *flags)
    (row,) = rows()
    assert list(row)[list(row).index("majority") + 1 :] == [*COLUMNS, "abstain", "coverage", "accuracy_kept"]
    npz = f"saved/baseline_{name}_a_20_120/model_b.npz"
    _, label, values = ledger.read_predictions(npz, row["config_hash"])
    temperature = ledger.read_temperature(npz)
    found = metrics.assess(values, label, temperature, 0.4)
    for column in ("ece", "ece_uncalibrated", "coverage", "accuracy_kept"):
        assert float(row[column]) == pytest.approx(found[column], abs=1e-6)
    out = capsys.readouterr().out
    assert out.count("confidence: ") == 2 and "abstaining below 0.4" in out
    if name == "forest":
        np.testing.assert_allclose(values.sum(1), 1, rtol=1e-5)
        assert temperature is None and row["temperature"] == "" and row["ece"] == row["ece_uncalibrated"]
    else:
        record = json.load(open("saved/baseline_cnn_a_20_120/model.json"))
        assert temperature == record["temperature"] and float(row["temperature"]) == round(temperature, 6)
