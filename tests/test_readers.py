"""Property-based tests: whatever a file holds, a reader returns what it promises or raises UserError, nothing else.

The examples are the same in every run (derandomize): a failure here is a fact, not luck.
"""

import argparse
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSIFIER, DATASET, ENCODER, MASK, PRETRAIN, TRAIN
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import utils
from bookkeeping import artefacts, commands, configs, resume
from bookkeeping.commands import UserError
from metrics import scores

FINE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=150, suppress_health_check=FINE)
settings.load_profile("fixed")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
CONFIGS = [
    (configs.PRETRAIN_KEYS, PRETRAIN),
    (configs.TRAIN_KEYS, TRAIN),
    (configs.MASK_KEYS, MASK),
    (configs.ENCODER_KEYS, ENCODER),
    (configs.CLASSIFIER_KEYS, CLASSIFIER),
]


def result_or_mistake(reader, *args, naming=""):
    """What a reader returns, or None for a user's mistake, whose message must be one that helps."""
    try:
        return reader(*args)
    except UserError as mistake:
        message = str(mistake)
        assert message.strip() and "Traceback" not in message
        assert naming in message, message
        return None


# --------------------------------------------------------------------------------- configurations


@given(
    content=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()),
    keys=st.sampled_from(CONFIGS),
)
@example(content=b"\xef\xbb\xbf{}", keys=CONFIGS[0])
@example(content=b"[" * 50_000, keys=CONFIGS[0])
@example(content=b'{"lr": ' + b"9" * 5000 + b"}", keys=CONFIGS[0])
def test_any_file_is_a_configuration_or_a_mistake_that_names_it(tmp_path, content, keys):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    config = result_or_mistake(configs.read_config, str(path), keys[0], naming="config.json")
    assert config is None or config.keys() == keys[0].keys()


@given(data=st.data(), keys=st.sampled_from(CONFIGS))
def test_a_configuration_with_one_value_replaced_is_valid_or_a_mistake_that_names_the_key(tmp_path, data, keys):
    known, valid = keys
    key, value = data.draw(st.sampled_from(sorted(known))), data.draw(json_values)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(valid | {key: value}))
    config = result_or_mistake(configs.read_config, str(path), known, naming=repr(key))
    if config is not None:
        assert known[key][0][0](value) and config[key] == value
        for number in config.values():
            assert not isinstance(number, float) or math.isfinite(number)


@given(key=st.text(max_size=12), keys=st.sampled_from(CONFIGS))
def test_an_unknown_key_is_named_and_a_dead_one_warned_of(tmp_path, capsys, key, keys):
    known, valid = keys
    assume(key not in known)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(valid | {key: 1}))
    assert result_or_mistake(configs.read_config, str(path), known, naming="unknown key") is None
    capsys.readouterr()
    config = configs.read_config(str(path), known, dead=(key,))
    assert key not in config and capsys.readouterr().err.count("warning: ") == 1


@given(data=st.data(), keys=st.sampled_from(CONFIGS))
def test_leaving_keys_out_takes_their_defaults_or_names_the_first_that_has_none(tmp_path, data, keys):
    known, valid = keys
    left = data.draw(st.sets(st.sampled_from(sorted(known))))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: value for key, value in valid.items() if key not in left}))
    required = [key for key in known if known[key][1] is configs.REQUIRED and key in left]
    config = result_or_mistake(configs.read_config, str(path), known, naming=repr(required[0]) if required else "")
    assert (config is None) == bool(required)
    if config is not None:
        assert all(config[key] == known[key][1] for key in left)


@given(
    entry=st.dictionaries(st.sampled_from([*DATASET, "x_label_index", "x_label_size"]), json_values),
    index=st.integers(0, 3),
)
def test_any_data_set_entry_has_label_names_or_is_a_mistake(entry, index):
    for config in (entry, DATASET | entry):
        found = result_or_mistake(configs.label_names, config, index, naming="dataset/data_config.json")
        if found is not None:
            name, names = found
            assert isinstance(name, str) and names and all(isinstance(n, str) for n in names)


# --------------------------------------------------------------------------------- names


@given(text=st.text(max_size=20) | st.from_regex(r"[\w./~-]{1,12}"))
@example(text="..")
@example(text="a/../b")
@example(text="a\0")
@example(text="a\n")
@example(text="~")
def test_a_name_that_is_accepted_stays_in_its_folder(text):
    try:
        name = commands.a_name(text)
    except argparse.ArgumentTypeError:
        return
    assert name == text and Path(name).name == name and name not in (".", "..") and not name.startswith((".", "-", "~"))
    folder = Path("/saved/x")
    assert (folder / f"{name}_masked_6_1.pt").resolve().parent == folder


# --------------------------------------------------------------------------------- arrays


def store(folder, data, labels, config=DATASET):
    (folder / "dataset" / "x").mkdir(parents=True, exist_ok=True)
    (folder / "dataset" / "data_config.json").write_text(json.dumps({"x_20_120": config}))
    for kind, array in (("data", data), ("label", labels)):
        np.save(folder / "dataset" / "x" / f"{kind}_20_120.npy", array, allow_pickle=True)


SMALL = DATASET | {"seq_len": 3, "dimension": 2}
dtypes = st.sampled_from("f2 f4 f8 >f4 i1 i4 i8 u1 u8 ? c8 U3 S2 M8[s] O f4,i4".split())
shapes = st.sampled_from([(4, 3, 2), (4, 3, 1), (4, 3), (4, 2, 3), (0, 3, 2), (4, 3, 2, 1), (), (1, 3, 2), (4, 3, 0)])


def arrays():
    """Arrays of many types and shapes, with NaN, infinities and huge numbers."""
    plain = st.tuples(dtypes, shapes).map(lambda both: np.ones(both[1], both[0]))
    wild = hnp.arrays(st.sampled_from(["f4", "f8", "i8"]), st.sampled_from([(4, 3, 2), (2, 3, 2)]))
    return plain | wild


@given(data=arrays(), labels=arrays())
def test_any_arrays_are_windows_as_promised_or_a_mistake(tmp_path, monkeypatch, data, labels):
    monkeypatch.chdir(tmp_path)
    store(tmp_path, data, labels, SMALL)
    loaded = result_or_mistake(utils.load_windows, "x", "20_120", naming="dataset/x/")
    if loaded is not None:
        windows, ids, config = loaded
        assert windows.ndim == 3 and windows.shape[1:] == (3, 2) and len(windows) > 0
        assert config == SMALL | {"file": "dataset/data_config.json"}
        assert ids.shape[:2] == windows.shape[:2] and ids.shape[2] > 0
        as_used = torch.tensor(np.asarray(windows, dtype=np.float32))
        assert torch.isfinite(as_used).all()
        found = result_or_mistake(utils.window_labels, ids, 0, ["a", "b"], "label.npy", naming="label.npy")
        if found is not None:
            assert found.dtype == np.int64 and found.shape == (len(windows),) and set(found) <= {-1, 0, 1}


@given(labels=hnp.arrays("f8", (6, 3, 1), elements=st.sampled_from([0, 1, 2, 3]) | st.floats(-2, 9)))
def test_window_labels_are_the_constant_columns(labels):
    names = ["a", "b", "c", "d"]
    found = result_or_mistake(utils.window_labels, labels, 0, names, "label.npy", naming="label.npy")
    whole = (labels == np.floor(labels)).all() and labels.min() >= 0 and labels.max() < 4
    assert (found is not None) == bool(whole)
    if found is not None:
        for row, id_ in zip(labels[:, :, 0], found, strict=True):
            assert id_ == (row[0] if len(set(row)) == 1 else -1)


def damaged(content):
    """The bytes of a file, damaged: bytes changed, cut, repeated, or others entirely."""

    def change(at, byte, length):
        result = bytearray(content[: max(0, len(content) - length)])
        if result:
            result[at % len(result)] = byte
        return bytes(result)

    changed = st.builds(change, st.integers(0, 400), st.integers(0, 255), st.sampled_from([0, 0, 0, 1, 50]))
    return changed | st.binary(max_size=200) | st.integers(0, len(content)).map(lambda n: content[:n])


def npy_bytes(array):
    import io

    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


NPY = npy_bytes(np.arange(24, dtype=np.float32).reshape(4, 3, 2))
HEADERS = [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }" % shape
    for shape in (b"-1,", b"9" * 30 + b",", b"4, 3, " + b"9" * 20, b"1.5,", b"'a',", b"True,", b"", b"(" * 300)
] + [
    b"{'descr': %s, 'fortran_order': False, 'shape': (4,), }" % descr
    for descr in (b"'O'", b"[('a', 'O')]", b"'<f' * 1000", b"'V0'", b"None", b"('<f4', (9, 9))", b"'<f99999999999'")
]


def with_header(header):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 96


@settings(max_examples=400)
@given(content=damaged(NPY) | st.sampled_from([with_header(header) for header in HEADERS]))
def test_any_bytes_are_an_array_of_numbers_or_a_mistake(tmp_path, content):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    array = result_or_mistake(artefacts.load_npy, path, "make it again", naming="x.npy")
    if array is not None:
        assert array.dtype.kind in "fiu"
        np.asarray(array).sum()  # its whole content can be read


STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}


@pytest.fixture(scope="module")
def state_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "x.pt"
    artefacts.save_state(path, STATE)
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@given(data=st.data())
def test_any_bytes_are_the_layers_weights_or_a_mistake(tmp_path, state_bytes, data):
    path = tmp_path / "x.pt"
    path.write_bytes(data.draw(damaged(state_bytes)))
    layer = torch.nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    try:
        artefacts.load_state(path, layer, hint="make it again")
        assert all(torch.isfinite(tensor).all() for tensor in layer.state_dict().values())
    except UserError as mistake:
        assert "x.pt" in str(mistake) and "make it again" in str(mistake)
        assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


SHAPES, TYPES = st.sampled_from([(2, 3), (2,), (3, 2), ()]), st.sampled_from(["float32", "float64", "int64", "bool"])
NUMBERS = st.sampled_from([1.0, math.nan, math.inf, 1e300])


@given(
    state=st.dictionaries(st.sampled_from(["weight", "bias", "fc.weight", "other"]), st.tuples(SHAPES, TYPES, NUMBERS))
)
def test_any_state_dict_fits_strictly_or_is_a_mistake(tmp_path, state):
    def tensor(shape, dtype, value):
        filled = torch.full(shape, value, dtype=torch.float64)
        return filled.to(getattr(torch, dtype))

    made = {name: tensor(*spec) for name, spec in state.items()}
    torch.save(made, tmp_path / "x.pt")
    layer = torch.nn.Linear(3, 2)
    fits = (
        {name for name in made if not name.startswith("fc.")} == {"weight", "bias"}
        and made["weight"].shape == (2, 3)
        and made["bias"].shape == (2,)
        and all(made[n].is_floating_point() and torch.isfinite(made[n].float()).all() for n in ("weight", "bias"))
    )
    try:
        artefacts.load_state(tmp_path / "x.pt", layer, dead=("fc.",), hint="make it again")
        assert fits and torch.equal(layer.weight, made["weight"].float())
    except UserError as mistake:
        assert not fits and "x.pt" in str(mistake)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@given(content=damaged(b'{"config": "{}", "state": {}}'))
def test_any_bytes_are_a_training_state_or_a_mistake(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    result_or_mistake(resume.Resume(tmp_path / "state.pt", {}).load, naming="--restart")


# --------------------------------------------------------------------------------- records, tables

parts = st.dictionaries(
    st.sampled_from(["fingerprint", "config", "made_from", "x"]), json_values | st.just({}), max_size=4
)


@given(value=json_values | parts)
def test_any_json_is_a_record_or_a_mistake(tmp_path, value):
    path = tmp_path / "it.pt"
    path.write_bytes(b"content")
    text = json.dumps(value)
    if isinstance(value, dict) and value.get("x"):
        text = json.dumps(value | {"fingerprint": artefacts.fingerprint(path)})
    (tmp_path / "it.json").write_text(text)
    record = result_or_mistake(artefacts.load_record, path, {"train": dict}, naming="it.")
    if record is not None:
        assert isinstance(record["config"]["train"], dict)
        result_or_mistake(artefacts.check_parents, path, record, "python it.py", naming="python it.py")


@given(
    recorded=st.dictionaries(st.sampled_from("abc"), json_values),
    now=st.dictionaries(st.sampled_from("abc"), json_values),
)
def test_settings_that_agree_pass_and_others_are_named(recorded, now):
    different = [key for key in now if key in recorded and recorded[key] != now[key]]
    try:
        artefacts.check_same("it.pt", recorded, now)
        assert not different
    except UserError as mistake:
        assert different and all(f"{key}" in str(mistake) for key in different)


# a lone carriage return is the one character that Python's csv writes without quotes and reads as a row's end
cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=12)


@given(rows=st.lists(st.dictionaries(st.sampled_from(["b", "c", "d"]), cells), min_size=1, max_size=4))
def test_rows_of_any_text_come_back_as_they_were(tmp_path, rows):
    path = tmp_path / "table.csv"
    path.unlink(missing_ok=True)
    rows = [{"a": "x"} | row for row in rows]
    for row in rows:
        artefacts.append_row(path, row)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    assert artefacts.read_table(path) == [{key: row.get(key, "") for key in columns} for row in rows]


@given(content=st.binary(max_size=80) | st.text('a,b"\n\r;1', max_size=30).map(str.encode))
def test_a_table_of_any_bytes_is_continued_or_left_alone(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    try:
        artefacts.append_row(path, {"a": "1", "b": "2"})
    except UserError as mistake:
        assert "table.csv" in str(mistake) and path.read_bytes() == content
    else:
        with open(path, newline="", encoding="utf-8") as handle:
            table = list(csv.DictReader(handle))
        assert table[-1]["a"] == "1" and table[-1]["b"] == "2" and list(table[-1])[0] == "a"


# --------------------------------------------------------------------------------- splits, scores


@given(
    count=st.integers(2, 80),
    copies=st.sampled_from([1, 6]),
    seed=st.integers(0, 2**32 - 1),
    split_by=st.sampled_from(["window", "copy"]),
    rate=st.floats(0.001, 1),
)
def test_splits_are_disjoint_complete_and_labels_come_from_training(count, copies, seed, split_by, rate):
    parts = utils.split_windows(count, copies, seed, split_by)
    assert sorted(np.concatenate(parts)) == list(range(count * copies))
    if len(parts[0]):
        labelled = utils.pick_labelled(parts[0], rate, count, copies, seed, split_by)
        assert 0 < len(set(labelled)) == len(labelled) and set(labelled) <= set(parts[0])
        if split_by == "window":
            assert {row % count for row in parts[0]}.isdisjoint(row % count for row in parts[2])


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_scores_are_the_textbooks(pairs):
    labels, predictions = np.array(pairs).T
    result = scores(labels, predictions, 4)
    confusion = np.array(result["confusion"])
    for i in range(4):
        for j in range(4):
            assert confusion[i, j] == sum((a, b) == (i, j) for a, b in pairs)
    hits, true, guessed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    precision, recall = (np.divide(hits, n, out=np.zeros(4), where=n > 0) for n in (guessed, true))
    f1 = np.divide(2 * hits, true + guessed, out=np.zeros(4), where=true + guessed > 0)
    assert result["accuracy"] == pytest.approx(hits.sum() / len(pairs)) == pytest.approx(result["f1_micro"])
    assert [result[f"{k}_macro"] for k in ("precision", "recall", "f1")] == pytest.approx(
        [precision.mean(), recall.mean(), f1.mean()]
    )
    assert result["majority"] == true.max() / len(pairs) and result["windows"] == len(pairs)
