"""export.py: the ONNX file gives what the model gives, and says what it is. Skipped without requirements-export.txt."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from conftest import make_windows
from test_v2 import CFG

import export
import inference
from bookkeeping.commands import UserError
from v2 import stages
from v2.networks import Network

NAMES = ["walking", "upstairs", "downstairs", "sitting&standing"]
RECORD = {"config": {"dataset": "a+b", "model_version": "v2"}, "made_from": {"x.npy": "12"}, "terms": "not for sale"}


def small_model(seed=0):
    """A Model of version v2 with random weights, norms that do something, and a temperature."""
    torch.manual_seed(seed)
    network = Network(CFG, 4).eval()
    for norm in network.norms:
        norm.running_mean.normal_(0, 0.1), norm.running_var.uniform_(0.5, 2)

    def logits_of(windows):
        return stages.predict(network, windows, CFG)

    return inference.Model(NAMES, logits_of, 0.7, "v2", RECORD, as_module=lambda: stages.Judge(network, CFG).eval())


@pytest.fixture(scope="module")
def exported():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -r requirements-export.txt")
    model = small_model()
    return model, export.to_onnx(model).SerializeToString()


def test_the_file_gives_the_same_probabilities(exported):
    import onnxruntime

    model, content = exported
    session = onnxruntime.InferenceSession(content)
    x = make_windows(40, seed=4)[0]
    x[5:9, :, 3:] = np.nan  # no gyroscope
    x[9, :, :], x[9, :, 2] = 0, 9.8  # a device that lies still
    for count in (40, 1, 13):  # N is free
        (found,) = session.run(None, {"windows": x[:count]})
        assert found.shape == (count, 4) and np.abs(found - model.probabilities(x[:count])).max() < 1e-4
    spread = np.ptp(model.probabilities(x), axis=0).max()
    assert spread > 0.02  # the windows differ, so that equality says something
    part = x[:1].copy()
    part[0, :7, 4] = np.nan  # missing in part is missing
    whole = x[:1].copy()
    whole[..., 3:] = np.nan
    assert np.array_equal(*(session.run(None, {"windows": w})[0] for w in (part, whole)))


def test_the_file_says_what_it_is_and_nothing_of_the_machine(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[1])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == NAMES and (about["rate_hz"], about["steps"]) == ("20", "120")
    assert "m/s^2" in about["channels"] and about["temperature"] == "0.7" and about["terms"] == "not for sale"
    assert json.loads(about["trained"]) == RECORD["config"] and json.loads(about["made_from"]) == {"x.npy": "12"}
    assert [i.name for i in session.get_inputs()] == ["windows"]
    for word in (b".py", b"/home", b"site-packages"):
        assert word not in exported[1]


def test_only_v2_is_exported():
    with pytest.raises(UserError, match="-mv v1: only models of version v2"):
        export.to_onnx(small_model()._replace(as_module=None, version="v1"))


def test_mistakes_are_one_line(project, monkeypatch):
    status, _, error = project.command("export.py", "--out", "model.bin")
    assert status == 2 and "ends with .onnx" in error and error.count("\n") == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="onnx, onnxscript not installed: .*requirements-export.txt"):
        export.main(export.get_args(["--out", "model.onnx"]))
