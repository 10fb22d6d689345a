"""reproduce.py: no grid's tables and figures are another's, --table finds the run again, a figure can be read."""

import itertools
import json

import numpy as np
import pytest
from conftest import ROOT, make_windows
from sklearn.metrics import confusion_matrix

import metrics
import reproduce
from bookkeeping import artefacts, ledger, plots
from bookkeeping.commands import UserError
from experiments import baselines, figures, grid, table


def run(*flags):
    """reproduce.py in this process, on the CPU; returns the tables' text."""
    return reproduce.main(reproduce.get_args([*flags, "--jobs", "0", "-g", "cpu", "--projection", "pca"]))


def name(*flags):
    return grid.name_of(reproduce.grid_flags(reproduce.get_args(flags)))


@pytest.fixture
def forest(project, monkeypatch):
    """A project for grids that take a second: --variants forest."""
    monkeypatch.setattr(baselines, "TREES", 5)
    return project


def written(folder):
    """Tables and figures with their bytes."""
    return {path.name: path.read_bytes() for path in (folder / "results").glob("*") if path.is_file()}


# --------------------------------------------------------------------------------------------------------- names


def test_other_flags_are_another_name():
    grids = [
        [],
        ["--variants", "v2"],
        ["--variants", "full", "v2"],
        ["--sources", "a"],
        ["--sources", "a", "b"],
        ["--sources", "a,b"],
        ["--targets", "a"],
        ["--seeds", "2"],
        ["--first_seed", "2"],
        ["--classifier_seeds", "2"],
        ["--label_rates", "0.1", "1"],
        ["--label_rates", "1"],
        ["--epochs", "2"],
        ["--epochs", "a=2"],
        ["--classifier_epochs", "2"],
        ["-dv", "50_120"],
        ["-l", "1"],
        ["--leave_one_out"],
        ["--leave_one_out", "--variants", "full"],
        ["--no_gyroscope"],
    ]
    assert len({name(*flags) for flags in grids}) == len(grids)
    assert all(reproduce.grid_flags(reproduce.get_args(flags)) or not flags for flags in grids)
    for flags in grids:  # what is recorded is typed as it was
        asked = reproduce.grid_flags(reproduce.get_args(flags))
        assert reproduce.grid_flags(reproduce.get_args(grid.as_argv(asked))) == asked
    assert name() == name("--seeds", "3", "--label_rates", "0.1", "-g", "cpu", "--jobs", "4", "--table") == "full"
    assert name("--label_rates", "0.1", "1", "--variants", "v2", "cnn") == "v2+cnn_label_rates=0.1,1"


def test_a_long_name_fits_a_file_and_stays_its_own():
    long = [["--sources", *(f"set{i}" for i in range(40)), "--targets", target] for target in ("a", "b")]
    names = {name(*flags) for flags in long}
    assert len(names) == 2 and max(map(len, names)) <= 120


# ------------------------------------------------------------------------------- what was run, and what it left


def test_grids_leave_each_others_tables_and_figures_alone(forest):
    for flags in (["--seeds", "2"], ["--seeds", "1"], ["--seeds", "1", "--label_rates", "0.5", "1"]):
        before = written(forest.folder)
        run("--variants", "forest", *flags)
        after = written(forest.folder)
        assert len(after) >= len(before) + 4 + 4  # the table's four forms, two figures of each pair
        assert {path: after[path] for path in before} == before


def test_tables_and_figures_without_flags_are_those_of_the_last_run(forest, capsys):
    first = run("--variants", "forest", "--seeds", "2", "--no_figures")
    second = run("--variants", "forest", "cnn", "--seeds", "1", "--classifier_epochs", "1", "--no_figures")
    assert first.splitlines()[-1] == "python reproduce.py --variants forest --seeds 2"
    assert run("--table") == second
    assert run("--table", "--variants", "forest") == first  # the last run with that, not a grid that never was
    out = capsys.readouterr().out
    assert "\npython reproduce.py --variants forest --seeds 2   (also run here: python reproduce.py --variants" in out
    made = {path for path in written(forest.folder) if path.endswith(".png")}
    assert not made
    run("--figures")
    made = {path for path in written(forest.folder) if path.endswith(".png")}
    assert f"ablation_{name('--variants', 'forest', 'cnn', '--seeds', '1', '--classifier_epochs', '1')}.png" in made
    run("--variants", "forest", "--seeds", "2", "--no_figures")
    assert run("--table") == first


def test_a_run_with_just_these_flags_goes_before_a_later_one_with_more(forest):
    first = run("--variants", "forest", "--no_figures")
    run("--variants", "forest", "--label_rates", "0.5", "--no_figures")
    assert run("--table", "--variants", "forest") == first


def test_rows_without_a_run_are_shown_all(forest):
    """As a shell loop leaves them: no run is recorded."""
    run("--variants", "forest", "--label_rates", "0.5", "--first_seed", "7", "--seeds", "2", "--no_figures")
    for path in (forest.folder / "results/grids").iterdir():
        path.unlink()
    text = run("--table")
    assert "label rate 0.5" in text and "): 7, 8." in text
    assert (forest.folder / "results/table_rows.txt").read_text() == text


def test_a_grid_without_rows_says_which_there_are(forest):
    run("--variants", "forest", "--seeds", "1", "--no_figures")
    there = r"no row of saved/results.csv belongs to this grid \(python reproduce.py --variants cnn\); "
    for what in ("--table", "--figures"):
        with pytest.raises(UserError, match=there + "grids that were run: python reproduce.py --variants forest"):
            run(what, "--variants", "cnn")
    assert not (forest.folder / "results/grids" / f"{name('--variants', 'cnn')}.json").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"flags": {"seeds": 3}}', '{"flags": {"seeds": [3]}}', '{"flags": 1}'])
def test_a_foreign_record_is_one_line(project, content):
    (project.folder / "results/grids").mkdir(parents=True)
    (project.folder / "results/grids/full.json").write_text(content)
    with pytest.raises(UserError, match="results/grids/full.json"):
        run("--table")


def test_a_record_whose_time_is_odd_counts_as_the_oldest(forest):
    run("--variants", "forest", "--seeds", "1", "--no_figures")
    other = forest.folder / "results/grids/other.json"
    other.write_text(json.dumps({"flags": {"variants": ["cnn"]}, "time": "now"}))
    assert [flags["variants"] for flags in grid.recorded_runs()] == [["forest"], ["cnn"]]


def test_losses_are_drawn_only_of_this_grids_own_trainings(project):
    """Grids that differ in their schedules train under the same stems: what is left there is the last one's."""
    flags = ["--seeds", "1", "--sources", "a", "--classifier_epochs", "1"]
    run(*flags, "--epochs", "2")
    run(*flags, "--epochs", "3")
    for path in (project.folder / "results").glob("*.png"):
        path.unlink()
    run("--figures", *flags, "--epochs", "2")
    assert not {path for path in written(project.folder) if path.startswith(("losses", "representations"))}
    run("--figures", *flags, "--epochs", "3")
    kinds = {path.split("_")[0] for path in written(project.folder)}
    assert {"losses", "representations"} <= kinds


# ------------------------------------------------------------------------------------------------------- figures


def made_up(project, K, names, flags=()):
    """Results of a grid whose predictions are made up, for K classes."""
    counts = {"a": 4 * K, "b": 6 * K}
    for dataset, count in counts.items():
        data, labels = make_windows(count)
        labels[:, :, 0] = (np.arange(count) % K)[:, None]
        project.dataset(dataset, data=data, labels=labels, activity_label_size=K, activity_label=names)
    result, rng = reproduce.make_grid(reproduce.get_args(["--seeds", "2", *flags])), np.random.default_rng(0)
    for cell in itertools.chain.from_iterable(map(result.cells, result.jobs())):
        y = np.arange(counts[cell.target]) % K
        logits = np.eye(K)[y] + rng.standard_normal((len(y), K))
        settings = {"augment_method": "channel_aug", "label_rate": cell.rate, "seed": cell.seed}
        settings |= {"config_hash": result.key(cell), "pretrain_seed": cell.job.seed, "epochs": 4}
        pair, scores = (cell.job.source, cell.target, "20_120"), metrics.scores(y, logits.argmax(1), K)
        confidence = ledger.confidence_columns(metrics.assess(logits, y, 2.0), None)
        ledger.save_test(result.predictions(cell), pair, settings, scores, (np.arange(len(y)), y, logits), confidence)
    return table.Results(result)


def overlap(one, other):
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved."""
    found = []
    monkeypatch.setattr(figures.plots, "save", lambda figure, path: found.append(figure))
    yield found
    plots.plt.close("all")


@pytest.mark.parametrize("K", [4, 7, 30])
def test_the_confusion_matrix_can_be_read(project, drawn, K):
    """No number is wider or higher than its square, no name stands on another; each is of a size that can be read."""
    names = [f"activity & {'long ' * (i % 3)}{i}" for i in range(K)]
    figures.confusion(made_up(project, K, names), "full", "a", "b", [])
    (figure,) = drawn
    figure.canvas.draw()
    (axis,), renderer = figure.axes, figure.canvas.get_renderer()
    edges = axis.transData.transform([[0, 0], [1, 1]])
    width, height = np.abs(edges[1] - edges[0])
    assert len(axis.texts) >= K and min(text.get_fontsize() for text in axis.texts) >= 7
    for text in axis.texts:
        box = text.get_window_extent(renderer)
        assert box.width < width and box.height < height
    boxes = [label.get_window_extent(renderer) for label in axis.get_yticklabels()]
    assert not any(overlap(*two) for two in itertools.pairwise(boxes))
    labels = axis.get_xticklabels()
    angle, high = np.radians(labels[0].get_rotation()), labels[0].get_fontsize() * figure.dpi / 72
    if angle:  # turned names stand beside each other
        assert width * np.sin(angle) > high
    else:
        boxes = [label.get_window_extent(renderer) for label in labels]
        assert not any(overlap(*two) for two in itertools.pairwise(boxes))


def test_squares_and_titles_are_those_of_the_predictions(project, drawn):
    results = made_up(project, 4, list("wxyz"))
    figures.confusion(results, "full", "a", "b", []), figures.reliability(results, "full", "a", "b", [])
    saved = figures.saved_predictions(results, "full", "a", "b")
    counts = np.mean([confusion_matrix(labels, logits.argmax(1)) for labels, logits, _ in saved], axis=0)
    squares = {tuple(map(int, text.get_position()))[::-1]: text.get_text() for text in drawn[0].axes[0].texts}
    for (true, predicted), count in np.ndenumerate(counts):
        assert squares[true, predicted] == f"{count / counts[true].sum():.0%}\n{count:.0f}"
    for axis, temperature in zip(drawn[1].axes, (1.0, 2.0), strict=False):
        errors = [metrics.ece(metrics.probabilities(logits, temperature), labels) for labels, logits, _ in saved]
        assert axis.get_title().endswith(f"ECE {metrics.spread(errors)}")


def test_a_band_is_one_sample_standard_deviation_wide(drawn):
    axis = plots.plt.figure().subplots()
    values = np.array([[1.0, 2.0], [3.0, 2.5]])
    line = figures.band(axis, [0, 1], values, "x")
    edges = axis.collections[0].get_paths()[0].vertices
    assert line.get_ydata().tolist() == [2, 2.25]
    assert edges[edges[:, 0] == 0][:, 1].max() == pytest.approx(2 + np.std([1, 3], ddof=1))
    assert edges[edges[:, 0] == 1][:, 1].min() == pytest.approx(2.25 - np.std([2, 2.5], ddof=1))


@pytest.fixture
def without_gyroscope(project):
    """Results of v2 with tests on targets whose gyroscope was taken away beside the others."""
    for config in ("pretrain_model", "classifier"):
        project.config(config, json.loads((ROOT / f"config/{config}.json").read_text()))
    return made_up(project, 9, list("qrstuvwxy"), ["--variants", "v2", "--no_gyroscope"])


def test_a_pairs_figures_hold_each_run_once(without_gyroscope):
    assert len(without_gyroscope.cells("v2", 0.1, "a")) == 4
    assert len(figures.saved_predictions(without_gyroscope, "v2", "a", "b")) == 2


def test_scores_without_the_gyroscope_have_rows_of_their_own(without_gyroscope):
    made, means = without_gyroscope.grid, {}
    text, rows = table.write(made), ledger.read_rows()
    cells = [cell for job in made.jobs() for cell in made.cells(job)]
    for kind in itertools.product("ab", (True, False)):
        mine = [cell for cell in cells if (cell.target, cell.gyroscope) == kind]
        means[kind] = np.mean([float(rows[made.key(cell)]["accuracy"]) for cell in mine])
    assert len({f"{mean:.3f}" for mean in means.values()}) == 4
    wanted = {target + ("" if there else " without gyroscope"): mean for (target, there), mean in means.items()}
    wanted["average without gyroscope"] = np.mean([means[target, False] for target in "ab"])
    found = {row["target"]: row["accuracy_mean"] for row in artefacts.read_table(f"results/table_{made.name}.csv")}
    for target, mean in wanted.items():
        assert float(found[target]) == pytest.approx(mean, abs=1e-5)
    after = dict(itertools.pairwise(text.splitlines()))
    (line,) = [after[line] for line in after if line.startswith("a → b  ") and "without" in after[line]]
    assert f"{means['b', False]:.3f} ±" in line
