"""What holds for the whole source: nothing runs code from files or a shell, every configuration key is read."""

import ast

import pytest
from conftest import ROOT

from bookkeeping import configs

SOURCES = [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "dataset").glob("*.py"))]
TEXT = {path: path.read_text(encoding="utf-8") for path in SOURCES}


def calls(path):
    """(name as written, its keyword arguments) of every call in a source file."""
    for node in ast.walk(ast.parse(TEXT[path])):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_call_runs_code_from_a_file_or_a_shell(path):
    for name, keywords in calls(path):
        where = f"{path.name}: {name}"
        assert name not in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"), where
        assert keywords.get("shell", "False") == "False", where
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", where
        assert keywords.get("allow_pickle", "False") == "False", where
        if name in ("np.lib.format.read_array", "np.lib.format.write_array"):  # there the default would be to pickle
            assert "allow_pickle" in keywords, where
        assert name != "np.save", f"{where} pickles what is no array: artefacts.save_npy doesn't"


@pytest.mark.parametrize(
    "keys",
    [configs.PRETRAIN_KEYS, configs.MASK_KEYS, configs.ENCODER_KEYS, configs.CLASSIFIER_KEYS],
    ids=["pretrain", "mask", "encoder", "classifier"],
)
def test_every_configuration_key_is_read_by_something(keys):
    for key in keys:
        read = sum(text.count(f'["{key}"]') for text in TEXT.values())
        assert read, f"nothing reads {key!r}"


@pytest.mark.parametrize("script", ["pretrain", "embedding", "classifier", "cross_dataset_test"])
def test_scripts_say_what_they_read_and_write(script):
    doc = ast.get_docstring(ast.parse(TEXT[ROOT / f"{script}.py"]))
    assert f"python {script}.py -d uci" in doc and "\nreads " in doc and "\nwrites " in doc
