"""experiments/table.py and figures.py on rows made up for the purpose."""

import csv

import numpy as np
import pytest
from conftest import make_windows

import metrics
import reproduce
from bookkeeping import ledger
from experiments import figures, table
from metrics import scores

RATES = ["0.1", "0.5"]
FLAGS = ["--variants", "full", "copy", "forest", "--label_rates", *RATES, "--seeds", "3"]
NAME = "full+copy+forest_label_rates=0.1,0.5"


@pytest.fixture
def made(project):
    """A grid of two data sets with made-up predictions: seed 3431 + i has i wrong windows in 12."""
    project.dataset("a", 12, seed=1)
    result = reproduce.make_grid(reproduce.get_args(FLAGS))
    for job in result.jobs():
        for cell in result.cells(job):
            y = make_windows(12)[1][:, 0, 0].astype(int)
            logits = np.eye(4)[y]
            logits[: cell.seed - 3431] = np.eye(4)[3]  # the first windows are of activities 0, 1, 2
            settings = {"augment_method": "channel_aug", "label_rate": cell.rate, "seed": cell.seed}
            settings |= {"config_hash": result.key(cell), "pretrain_seed": job.seed, "epochs": 4}
            found = scores(y, logits.argmax(1), 4)
            settings |= ledger.source_scores(found)
            npz = result.predictions(cell)
            confidence = {}
            if job.variant != "copy":  # as rows of an older version
                assessed = metrics.assess(logits, y, cell.seed - 3430.0)
                confidence = ledger.confidence_columns(assessed, {"ece": 0.25, "ece_uncalibrated": 0.5})
            pair, predictions = (job.source, cell.target, "20_120"), (np.arange(12), y, logits)
            ledger.save_test(npz, pair, settings, found, predictions, confidence)
    return result


def test_mean_and_standard_deviation_by_hand(made):
    table.write(made)
    rows = list(csv.DictReader(open(f"results/table_{NAME}.csv", newline="")))
    values = np.array([12, 11, 10]) / 12
    assert len(rows) == 3 * 2 * 7  # variants, rates; 2 pairs, 2 averages, 2 own test parts, 1 average of all
    for row in rows:
        assert float(row["accuracy_mean"]) == pytest.approx(values.mean(), abs=1e-5)
        assert float(row["accuracy_sd"]) == pytest.approx(values.std(ddof=1), abs=1e-5)
        assert row["runs"] == "3" and row["majority"] in ("", "0.250000")


def test_an_average_over_pairs_is_taken_within_a_run(monkeypatch):
    """Two pairs that go up and down together between runs, or against each other."""

    def part(values):
        return {(i, i): {"accuracy": value} for i, value in enumerate(values)}

    assert table.spread(table.mean_over([part([0.4, 0.6]), part([0.6, 0.4])], "accuracy")) == "0.500 ± 0.000"
    assert table.spread(table.mean_over([part([0.4, 0.6]), part([0.4, 0.6])], "accuracy")) == "0.500 ± 0.141"
    assert table.spread(table.mean_over([part([0.4, 0.6]), part([0.4])], "accuracy")) == "0.400"
    assert table.spread(table.mean_over([part([0.4]), {}], "accuracy")) == "–"


def test_the_four_forms_agree(made, capsys):
    text = table.write(made)
    assert text in capsys.readouterr().out
    for ending in ("txt", "md", "tex"):
        content = open(f"results/table_{NAME}.{ending}").read()
        assert content.count("0.083") >= 20, ending
    latex = open(f"results/table_{NAME}.tex").read()
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == latex.count(r"\end{table}") == 5
    assert "±" not in latex.replace("% mean ± sample", "") and r"a $\to$ b" in latex
    assert text.count("=\n") == 5


def test_confidence_by_hand(made):
    """The temperatures are 1, 2, 3; copy's rows are of an older version, without any."""
    text = table.write(made)
    (section,) = [part for part in text.split("\n\n") if part.startswith("Confidence: ")]
    assert section.startswith("Confidence: CrossHAR, label rate 0.1\n")
    line = {words.split("  ")[0]: words for words in section.splitlines()}
    top = np.array([1 / (1 + 3 * np.exp(-1 / t)) for t in (1, 2, 3)])
    accuracy = np.array([12, 11, 10]) / 12
    for name in ("a → b", "all pairs, average"):
        errors = table.spread(np.abs(accuracy - top[0])), table.spread(np.abs(accuracy - top))
        assert line[name].split()[-10:] == ["2.000", "±", "1.000", *" ".join(errors).split(), "3"]
    assert line["b → own test part"].split()[-7:] == ["0.500", "±", "0.000", "0.250", "±", "0.000", "3"]
    with open(f"results/table_{NAME}.csv", newline="") as handle:
        rows = {(r["variant"], r["label_rate"], r["source"], r["target"]): r for r in csv.DictReader(handle)}
    assert float(rows["forest", "0.5", "a", "b"]["ece_mean"]) == pytest.approx(np.abs(accuracy - top).mean(), abs=1e-6)
    assert rows["copy", "0.5", "a", "b"]["ece_mean"] == rows["copy", "0.5", "a", "b"]["temperature_sd"] == ""


def test_figures_are_drawn(made):
    names = {path.split("/")[-1] for path in figures.write(made, "pca")}
    pairs = {f"{kind}_{NAME}_{pair}.png" for kind in ("confusion", "reliability") for pair in ("a_b", "b_a")}
    assert names == pairs | {f"label_rate_{NAME}.png", f"ablation_{NAME}.png"}  # nothing was trained


def test_the_losses_and_representations_are_drawn(project):
    reproduce.main(reproduce.get_args(["--seeds", "1", "--jobs", "0", "-g", "cpu", "--projection", "pca"]))
    found = {path.name for path in (project.folder / "results").glob("*.png")}
    pairs = {f"{kind}_full_seeds=1_{pair}.png" for kind in ("confusion", "representations") for pair in ("a_b", "b_a")}
    assert found >= {"losses_full_seeds=1_a.png", "losses_full_seeds=1_b.png"} | pairs
    assert all(path.stat().st_size > 5000 for path in (project.folder / "results").glob("*.png"))


def test_a_variants_difference_is_paired_by_run(made):
    results, values = table.Results(made), {"full": (0.5, 0.6, 0.9), "copy": (0.45, 0.57, 0.88), "forest": (0.4,) * 3}
    for (variant, *_, target), runs in results.found.items():
        for run, value in zip(sorted(runs), values[variant], strict=True):
            runs[run] = {"f1_macro": value + (target == "b") * 0.04}
    assert results.difference("copy", 0.1) == "-3.33 ± 0.88"  # of -5, -3, -2
    assert results.difference("full", 0.1) == ""
    bare = {run: {"f1_macro": value - 1} for run, value in zip(sorted(runs), values["full"], strict=True)}
    results.found["full", 0.1, "a", "b without gyroscope"] = bare
    assert results.difference("copy", 0.1) == "-3.33 ± 0.88"  # which the other was not tested on
    less = {run: {"f1_macro": row["f1_macro"] - 0.3} for run, row in bare.items()}
    results.found["copy", 0.1, "a", "b without gyroscope"] = less
    assert results.difference("copy", 0.1) == "-12.22 ± 0.59"  # a third of it -30
    del results.found["forest", 0.1, "a", "b"][3433, 3433]
    assert results.difference("forest", 0.1) == "-15.00 ± 5.00"  # of the two runs that both have


def test_the_label_rate_shown_is_the_papers_or_else_the_largest(made, monkeypatch):
    assert table.Results(made).rate == 0.1
    monkeypatch.setattr(table, "RATE", 0.3)
    assert table.Results(made).rate == 0.5


def test_an_encoder_that_was_only_drawn_has_no_epochs(made):
    results = table.Results(made)
    assert table.pretraining_epochs(results) == "pretraining epochs: a 4, b 4"
    for key in [key for key in results.found if key[0] == "full"]:
        results.found["random", *key[1:]] = {run: row | {"epochs": "1"} for run, row in results.found[key].items()}
    assert table.pretraining_epochs(results) == "pretraining epochs: a 4, b 4"
