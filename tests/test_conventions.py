"""What holds for the whole source: who may import whom, one door a folder, short functions, no code run from files."""

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import FOLDERS, ROOT, Project

import v2
from bookkeeping import configs

SOURCES = sorted(ROOT.glob("*.py")) + [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
EVERYTHING = SOURCES + [path for folder in ("tests", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))]
DOCS = [ROOT / "README.md", ROOT / "saved/ready/TERMS.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {path: path.read_text(encoding="utf-8") for path in EVERYTHING + DOCS}
TREE = {path: ast.parse(TEXT[path]) for path in EVERYTHING}
FLOORS = (  # from the top; whoever stands higher may import what stands lower
    ("reproduce",),
    ("experiments",),
    ("pretrain", "embedding", "classifier", "cross_dataset_test", "predict", "export"),
    ("fast", "inference"),
    ("plain", "batches"),
    ("models", "v2", "dataset"),
    ("augment", "utils"),
    ("bookkeeping", "metrics"),
)
FLOOR = {room: len(FLOORS) - number for number, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {  # what may be asked of a folder from outside; bookkeeping's modules all, by name
    "fast": {"engine"},
    "v2": {"train", "load_classifier", "load_judge", "read_encoder", "read_classifier"},
    "experiments": {"grid", "jobs", "table", "figures"},
    "dataset": {"prepare", "recordings"},
}
READS_ARGS = {"bookkeeping/configs.py", "v2/__init__.py", "v2/stages.py"}  # beside the scripts
LONGEST, AT_THE_TOP = 70, 14  # lines of a function, Python files


def place(path):
    return str(path.relative_to(ROOT))


def room(path):
    """The file at the top, or the folder, that a source file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """(module as it is written, names taken from it or None, line) of each import of ours, within functions too."""
    for node in ast.walk(TREE[path]):
        if isinstance(node, ast.Import):
            yield from ((a.name, None, node.lineno) for a in node.names if a.name.split(".")[0] in FLOOR)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(path)}:{node.lineno}: a relative import"
            if node.module.split(".")[0] in FLOOR:
                yield node.module, [alias.name for alias in node.names], node.lineno


def file_of(module):
    path = ROOT / module.replace(".", "/")
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found in SOURCES), None)


def files_of(module, names):
    """The source files that an import reads from: those of the modules among the names, else the module's own."""
    return {file_of(f"{module}.{name}") or file_of(module) for name in names} if names else {file_of(module)}


def attributes(path, name):
    """What is read or set of a variable: {"gpu"} of args.gpu."""
    nodes = [node for node in ast.walk(TREE[path]) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == name}


def functions(path):
    return [node for node in ast.walk(TREE[path]) if isinstance(node, ast.FunctionDef)]


def is_script(path):
    return any(function.name == "get_args" for function in functions(path))


def docstrings(path):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [text for node in ast.walk(TREE[path]) if isinstance(node, kinds) and (text := ast.get_docstring(node))]


# ------------------------------------------------------------------------------------------ who may import whom


def test_every_room_has_its_floor():
    assert {room(path) for path in SOURCES} <= set(FLOOR)


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_no_arrow_points_upward(path):
    """Nor to another room of the same floor: the scripts are joined by files alone, as in a shell loop."""
    here = room(path)
    for module, _, line in imports(path):
        there = module.split(".")[0]
        assert there == here or FLOOR[there] < FLOOR[here], f"{place(path)}:{line} imports {module}"


def test_no_circle():
    arrows = {path: {f for module, names, _ in imports(path) for f in files_of(module, names)} for path in SOURCES}
    while arrows:  # take away whoever imports nothing that is left
        free = {path for path, found in arrows.items() if not found & arrows.keys()}
        assert free, f"a circle among {sorted(map(place, arrows))}"
        arrows = {path: found for path, found in arrows.items() if path not in free}


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_a_folder_is_entered_by_its_door(path):
    for module, names, line in imports(path):
        folder, *rest = module.split(".")
        if folder == room(path) or folder not in DOORS:
            continue
        where = f"{place(path)}:{line}"
        asked = set(rest[:1] or names or ())  # of `import fast`: the attributes
        if not rest and names is None:
            asked = attributes(path, folder)
        assert asked <= DOORS[folder], f"{where}: {asked - DOORS[folder]} of {folder}/ is not for outside"
        assert folder != "fast" or (not rest and names is None), f"{where}: write `import fast`, `fast.engine`"
        assert folder != "experiments" or room(path) == "reproduce", f"{where}: only reproduce.py opens {folder}/"


def test_the_door_of_v2_is_as_wide_as_is_said_here():
    assert set(v2.__all__) == DOORS["v2"]


@pytest.mark.parametrize("path", [path for path in SOURCES if place(path) not in READS_ARGS], ids=place)
def test_flags_are_read_in_the_scripts_and_the_readers_of_configurations(path):
    """What goes down from there is plain values."""
    read = attributes(path, "args")
    assert not read or is_script(path), f"{place(path)} reads args: {read}"


def test_fast_may_be_deleted(tmp_path):
    """Without it the scripts run on the plain engine, when whoever says `import fast` says `import plain as fast`."""
    folder = tmp_path / "tree"
    for path in SOURCES:
        if room(path) != "fast":
            (folder / place(path)).parent.mkdir(parents=True, exist_ok=True)
            text = re.sub("^import fast$", "import plain as fast", TEXT[path], flags=re.MULTILINE)
            (folder / place(path)).write_text(text)
    shutil.copytree(ROOT / "config", folder / "config")
    project = Project(folder)
    project.config("pretrain", n_epochs=2, n_epochs_cl=1), project.config("train", n_epochs=1)
    project.dataset("a", 24, seed=1), project.dataset("b", 12, seed=2)
    scripts = """
import sys
import classifier, cross_dataset_test, embedding, pretrain, reproduce
for script in (pretrain, embedding, classifier, cross_dataset_test):
    script.main(script.get_args("-d a -td b -g cpu".split()))
assert "fast" not in sys.modules
"""
    how = {"cwd": folder, "capture_output": True, "text": True, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    done = subprocess.run([sys.executable, "-c", scripts], timeout=120, **how)
    assert done.returncode == 0, done.stderr
    assert "a -> b: 12 windows" in done.stdout and (folder / "saved/results.csv").exists()


# ------------------------------------------------------------------------------------------ how it is written


def test_few_files_stand_at_the_top():
    assert len(list(ROOT.glob("*.py"))) <= AT_THE_TOP


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_no_function_is_long(path):
    for function in functions(path):
        doc = function.body[0].end_lineno - function.body[0].lineno + 1 if ast.get_docstring(function) else 0
        lines = function.end_lineno - function.lineno + 1 - doc
        assert lines <= LONGEST, f"{place(path)}: {function.name} has {lines} lines"


@pytest.mark.parametrize("path", EVERYTHING, ids=place)
def test_the_formatter_has_no_exceptions_and_imports_stand_at_the_head(path):
    for exception in ("fmt: " + "skip", "fmt: " + "off", "noqa: " + "E402", "noqa: " + "E731"):
        assert exception not in TEXT[path], f"{place(path)}: {exception}"


@pytest.mark.parametrize("path", EVERYTHING + DOCS, ids=place)
def test_the_files_it_speaks_of_exist(path):
    """Source, tests and pages named in a docstring or a page: by their path, or where it is clear by name alone."""
    texts = [TEXT[path]] if path.suffix == ".md" else docstrings(path)
    paths = {place(other) for other in [*EVERYTHING, *DOCS, ROOT / "saved/ready/TERMS.md"]}
    names = paths | {path.rsplit("/", 1)[-1] for path in paths}
    for name in re.findall(r"\w[\w./{},-]*\w\.(?:py|md)\b", " ".join(texts)):
        assert name in names or "NAME" in name, f"{place(path)} speaks of {name}"


@pytest.mark.parametrize("script", ["pretrain", "embedding", "classifier", "cross_dataset_test"])
def test_scripts_say_what_they_read_and_write(script):
    doc = ast.get_docstring(TREE[ROOT / f"{script}.py"])
    assert f"python {script}.py -d uci" in doc and "\nreads " in doc and "\nwrites " in doc


@pytest.mark.parametrize(
    "keys",
    [configs.PRETRAIN_KEYS, configs.MASK_KEYS, configs.ENCODER_KEYS, configs.CLASSIFIER_KEYS],
    ids=["pretrain", "mask", "encoder", "classifier"],
)
def test_every_configuration_key_is_read_by_something(keys):
    for key in keys:
        read = sum(TEXT[path].count(f'["{key}"]') for path in SOURCES)
        assert read, f"nothing reads {key!r}"


# ------------------------------------------------------------------------------------------ what it never does


def calls(path):
    """(name as written, its keyword arguments) of every call in a source file."""
    for node in ast.walk(TREE[path]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_no_call_runs_code_from_a_file_or_a_shell(path):
    for name, keywords in calls(path):
        where = f"{place(path)}: {name}"
        assert name not in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"), where
        assert keywords.get("shell", "False") == "False", where
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", where
        assert keywords.get("allow_pickle", "False") == "False", where
        if name in ("np.lib.format.read_array", "np.lib.format.write_array"):  # there the default would be to pickle
            assert "allow_pickle" in keywords, where
        assert name != "np.save", f"{where} pickles what is no array: artefacts.save_npy doesn't"
