"""Malformed input of every kind: status 2, one `error:` line that names the file, key or flag, nothing changed on disk.

Most cases call main in this process, where a user's mistake is a UserError (or argparse's SystemExit); the last test
runs a few as commands of their own and sees the status and the line.
"""

import io
import json
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from conftest import CLASSIFIER as CLASSIFIER_CONFIG
from conftest import DATASET, ENCODER, MASK, TRAIN

from bookkeeping.commands import UserError

PRETRAINED = "saved/pretrain_base_a_20_120/model_masked_6_1"
CLASSIFIED = "saved/classifier_base_transformer_a_20_120/model_transformer"
MASKED, MASKED_JSON = f"{PRETRAINED}.pt", f"{PRETRAINED}.json"
HEAD = "saved/pretrain_base_a_20_120/model_TC_6_1.pt"
STATE = "saved/pretrain_base_a_20_120/model_state_6_1.pt"
DATA, LABEL = "dataset/a/data_20_120.npy", "dataset/a/label_20_120.npy"
DATA_B, LABEL_B = "dataset/b/data_20_120.npy", "dataset/b/label_20_120.npy"
ENTRIES, RESULTS = "dataset/data_config.json", "saved/results.csv"
EMBED, EMBED_LABEL = "embed/embed_a_20_120", "embed/label_a_20_120"
PRETRAIN_A, EMBED_A, CLASSIFY_A = ("pretrain", "-d", "a"), ("embedding", "-d", "a"), ("classifier", "-d", "a")
TEST_A_B = ("cross_dataset_test", "-d", "a", "-td", "b")
MAX_GRAM_TWICE = json.dumps(MASK)[:-1] + ', "max_gram": 5}'


# --------------------------------------------------------------------------------- ways to break a project


def nothing(project):
    pass


def text(path, content):
    def breaks(project):
        target = project.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    return breaks


def gone(path):
    return lambda project: (project.folder / path).unlink()


def cut(path, size=100):
    return lambda project: (project.folder / path).write_bytes((project.folder / path).read_bytes()[:size])


def config(name, *removed, **changes):
    """config/NAME.json with some keys changed or removed."""

    def breaks(project):
        path = project.folder / "config" / f"{name}.json"
        value = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: item for key, item in value.items() if key not in removed}))

    return breaks


def encoder(**changes):
    return config("pretrain_model", base_v1=ENCODER | changes)


def head(**changes):
    return config("classifier", transformer_v1=CLASSIFIER_CONFIG | changes)


def entry(**changes):
    return text("dataset/data_config.json", json.dumps({"a_20_120": DATASET | changes, "b_20_120": DATASET}))


def array(path, change):
    """An .npy file whose array went through `change`."""

    def breaks(project):
        np.save(project.folder / path, change(np.load(project.folder / path)), allow_pickle=True)

    return breaks


def at(index, value):
    """A change of some numbers of an array."""

    def change(x):
        x = x.copy()
        x[index] = value
        return x

    return change


def without_json(path):
    """An .npy or .pt file's breaking, and its JSON gone: as if it came from elsewhere."""

    def then(breaks):
        def both(project):
            breaks(project)
            (project.folder / path).with_suffix(".json").unlink()

        return both

    return then


def loose(stem, change):
    """An .npy file whose array went through `change`, without its JSON."""
    return without_json(f"{stem}.npy")(array(f"{stem}.npy", change))


def fewer_rows(count):
    """An embedding and its labels cut to `count` rows, without JSON."""

    def breaks(project):
        for stem in (EMBED, EMBED_LABEL):
            array(f"{stem}.npy", lambda x: x[:count])(project)

    return without_json(f"{EMBED}.npy")(breaks)


def state(stem, change):
    """A checkpoint whose state dict went through `change`, without its JSON."""

    def breaks(project):
        path = project.folder / f"{stem}.pt"
        torch.save(change(torch.load(path, weights_only=True)), path)

    return without_json(f"{stem}.pt")(breaks)


def weights(name, tensor, stem=PRETRAINED):
    """A checkpoint with one tensor put in, without its JSON."""
    return state(stem, lambda found: found | {name: tensor})


def another_network(project):
    checkpoint((project.folder / f"{CLASSIFIED}.pt").read_bytes())(project)


def saved_again(project):
    torch.save(torch.load(f"{PRETRAINED}.pt"), f"{PRETRAINED}.pt")


def checkpoint(content):
    """The masked model's file with other content, and without its JSON."""
    return without_json(f"{PRETRAINED}.pt")(text(f"{PRETRAINED}.pt", content))


def record(path, **changes):
    """An artefact's JSON with some keys changed."""

    def breaks(project):
        file = project.folder / path
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return breaks


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self):
        return (exec, ("open('unpickled', 'w').close()",))


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def zip_of(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def folder_instead(path):
    def breaks(project):
        (project.folder / path).unlink()
        (project.folder / path).mkdir()

    return breaks


def file_instead(path):
    """A plain file where a folder should be: nothing can be written into it, not even by root."""

    def breaks(project):
        (project.folder / path).rename(project.folder / "moved")
        (project.folder / path).write_text("")

    return breaks


def pretrained_again(*flags):
    return lambda project: project.run("pretrain", "-d", "a", *flags)


def copied_to_b(project):
    """The embedding of a under the name of b, JSON and all."""
    for kind in ("embed", "label"):
        for ending in ("npy", "json"):
            content = (project.folder / f"embed/{kind}_a_20_120.{ending}").read_bytes()
            (project.folder / f"embed/{kind}_b_20_120.{ending}").write_bytes(content)


def few(count):
    return lambda project: project.dataset("a", count)


def other_activities(project):
    project.dataset("b", 12, activity_label=["run", "sit", "lie", "fly"])


def other_training(project):
    text("config/other.json", json.dumps(TRAIN | {"lr": 0.5}))(project)


def npz_instead(project):
    np.savez(open(project.folder / DATA, "wb"), x=np.zeros(3))


def one_class(x):
    return at((slice(None), slice(None), 0), 2)(x)


def first_step_differs(x):
    return at((slice(None), 0, 0), (x[:, 1, 0] + 1) % 4)(x)


# --------------------------------------------------------------------------------- the table
# (name, breaking, script and flags, what the error line must match)

FLAGS = [
    ("label rate 0", nothing, (*CLASSIFY_A, "-lr", "0"), "-lr.*share above 0"),
    ("label rate 1.5", nothing, (*CLASSIFY_A, "-lr", "1.5"), "-lr.*share above 0"),
    ("label rate nan", nothing, (*CLASSIFY_A, "-lr", "nan"), "-lr.*share above 0"),
    ("label rate a word", nothing, (*CLASSIFY_A, "-lr", "tenth"), "-lr.*'tenth'"),
    ("negative label rate", nothing, (*CLASSIFY_A, "-lr", "-0.1"), "-lr"),
    ("label rate missing", nothing, (*CLASSIFY_A, "-lr"), "-lr.*expected one argument"),
    ("GPU not there", nothing, (*PRETRAIN_A, "-g", "99"), "-g 99: no such GPU; GPUs here: "),
    ("GPU a word", nothing, (*PRETRAIN_A, "-g", "first"), "-g.*'first'"),
    ("negative GPU", nothing, (*PRETRAIN_A, "-g", "-1"), "-g.*'-1'"),
    ("unknown augmentation", nothing, (*PRETRAIN_A, "-am", "mirror"), "-am.*mirror.*channel_aug"),
    ("negative seed", nothing, (*PRETRAIN_A, "--seed", "-1"), "--seed.*'-1'"),
    ("seed too large", nothing, (*PRETRAIN_A, "--seed", "4294967296"), "--seed.*4294967296"),
    ("seed with a fraction", nothing, (*PRETRAIN_A, "--seed", "1.5"), "--seed.*'1.5'"),
    ("unknown flag", nothing, (*PRETRAIN_A, "--epochs", "3"), "--epochs"),
    ("stray word", nothing, (*PRETRAIN_A, "uci"), "unrecognized.*uci"),
    ("negative label column", nothing, (*CLASSIFY_A, "-l", "-1"), "-l.*'-1'"),
    ("label column not there", nothing, (*CLASSIFY_A, "-l", "5"), "-l 5.*0 .activity., 1 .user."),
    ("stem with a path", nothing, (*PRETRAIN_A, "-s", "../../out"), "-s.*plain name"),
    ("absolute stem", nothing, (*EMBED_A, "-f", "/etc/passwd"), "-f.*plain name"),
    ("data set with a path", nothing, ("pretrain", "-d", "../a"), "-d.*plain name"),
    ("target with a path", nothing, ("cross_dataset_test", "-d", "a", "-td", "a/../b"), "-td.*plain name"),
    ("version with a path", nothing, (*PRETRAIN_A, "-dv", "20_120/../x"), "-dv.*plain name"),
    ("hidden stem", nothing, (*PRETRAIN_A, "-s", ".hidden"), "-s.*plain name"),
    ("empty stem", nothing, (*PRETRAIN_A, "-s", ""), "-s.*plain name"),
    ("endless stem", nothing, (*PRETRAIN_A, "-s", "x" * 300), "-s.*plain name"),
    ("stem of two lines", nothing, (*PRETRAIN_A, "-s", "a\nb"), "-s.*plain name"),
    ("model version not there", nothing, (*PRETRAIN_A, "-mv", "v9"), "pretrain_model.json.*'base_v9'.*base_v1.*-mv"),
    ("data set not there", nothing, ("pretrain", "-d", "nosuch"), "data_config.json.*'nosuch_20_120'.*a_20_120.*-d"),
    ("target not there", nothing, ("cross_dataset_test", "-d", "a", "-td", "nosuch"), "'nosuch_20_120'.*-td"),
    ("data version not there", nothing, (*PRETRAIN_A, "-dv", "50_300"), "'a_50_300'.*-dv"),
    ("-t not there", nothing, (*PRETRAIN_A, "-t", "config/nosuch.json"), "config/nosuch.json is missing"),
    ("-t a folder", nothing, (*PRETRAIN_A, "-t", "config"), "config is missing"),
    ("-t endless", nothing, (*PRETRAIN_A, "-t", "x" * 5000), "is missing"),
    ("-a not there", nothing, (*PRETRAIN_A, "-a", "nosuch.json"), "nosuch.json is missing"),
    (
        "-f of no model",
        nothing,
        (*PRETRAIN_A, "-s", "new", "-f", "nosuch"),
        "nosuch_masked_6_1.pt is missing.*pretrain.py",
    ),
]

CONFIGS = [
    ("no JSON", text("config/pretrain.json", "{'seed': 1}"), PRETRAIN_A, "config/pretrain.json.*JSON"),
    ("cut JSON", cut("config/pretrain.json", 30), PRETRAIN_A, "config/pretrain.json.*JSON"),
    ("empty JSON file", text("config/mask.json", ""), PRETRAIN_A, "config/mask.json.*JSON"),
    ("no UTF-8", text("config/mask.json", b"\xff\xfe{}"), PRETRAIN_A, "config/mask.json"),
    ("endless nesting", text("config/mask.json", "[" * 100_000), PRETRAIN_A, "config/mask.json"),
    ("endless number", text("config/mask.json", '{"max_gram": ' + "9" * 5000 + "}"), PRETRAIN_A, "config/mask.json"),
    ("a list", text("config/train.json", "[]"), CLASSIFY_A, "config/train.json.*object"),
    ("key twice", text("config/mask.json", MAX_GRAM_TWICE), PRETRAIN_A, "'max_gram'.*twice"),
    ("unknown key", config("pretrain", temperature=0.2), PRETRAIN_A, "config/pretrain.json.*'temperature'.*known keys"),
    ("mistyped key", config("pretrain", batchsize=3), PRETRAIN_A, "'batchsize'.*did you mean 'batch_size'"),
    ("mistyped mask key", config("mask", "mask_ratio", maskratio=0.15), PRETRAIN_A, "did you mean 'mask_ratio'"),
    ("missing key", config("pretrain", "lr"), PRETRAIN_A, "config/pretrain.json.*'lr' is missing"),
    ("missing model key", config("pretrain_model", base_v1={"hidden": 8}), PRETRAIN_A, "base_v1.*missing"),
    ("model entry no object", config("pretrain_model", base_v1=3), PRETRAIN_A, "pretrain_model.json, base_v1.*object"),
    ("lr a text", config("pretrain", lr="0.001"), PRETRAIN_A, "'lr' is \"0.001\".*number"),
    ("lr 0", config("pretrain", lr=0), PRETRAIN_A, "'lr' is 0.*above 0"),
    ("lr NaN", config("pretrain", lr=float("nan")), PRETRAIN_A, "'lr' is NaN"),
    ("lr infinite", config("train", lr=float("inf")), CLASSIFY_A, "'lr' is Infinity"),
    ("lr null", config("pretrain", lr=None), PRETRAIN_A, "'lr' is null"),
    ("lr a list", config("pretrain", lr=[0.1]), PRETRAIN_A, "'lr' is"),
    ("lambda1 negative", config("pretrain", lambda1=-1), PRETRAIN_A, "'lambda1' is -1"),
    ("lambda2 huge", config("pretrain", lambda2=10**400), PRETRAIN_A, "'lambda2' is 1000"),
    ("batch of one", config("pretrain", batch_size=1), PRETRAIN_A, "'batch_size' is 1.*from 2"),
    ("batch size 2.5", config("train", batch_size=2.5), CLASSIFY_A, "'batch_size' is 2.5.*whole"),
    ("no epochs", config("train", n_epochs=0), CLASSIFY_A, "'n_epochs' is 0"),
    ("epochs true", config("pretrain", n_epochs=True), PRETRAIN_A, "'n_epochs' is true"),
    ("more joint epochs than epochs", config("pretrain", n_epochs_cl=5), PRETRAIN_A, "'n_epochs_cl' 5.*n_epochs 4"),
    ("seed too large for NumPy", config("train", seed=2**32), CLASSIFY_A, "'seed' is 4294967296"),
    ("total_steps negative", config("pretrain", total_steps=-5), PRETRAIN_A, "'total_steps' is -5"),
    ("unknown split", config("train", split_by="user"), CLASSIFY_A, "'split_by'.*window, copy"),
    ("unknown views", config("pretrain", views="never"), PRETRAIN_A, "'views'.*once, epoch"),
    ("mask_ratio 0", config("mask", mask_ratio=0), PRETRAIN_A, "mask.json.*'mask_ratio' is 0"),
    ("mask_ratio 1.5", config("mask", mask_ratio=1.5), PRETRAIN_A, "mask.json.*'mask_ratio' is 1.5"),
    ("mask_prob 2", config("mask", mask_prob=2), PRETRAIN_A, "'mask_prob' is 2"),
    ("replace_prob below 0", config("mask", replace_prob=-0.1), PRETRAIN_A, "'replace_prob' is -0.1"),
    ("max_gram 0", config("mask", max_gram=0), PRETRAIN_A, "'max_gram' is 0"),
    ("heads that don't divide", encoder(n_heads=3), PRETRAIN_A, "base_v1.*'hidden' 8.*n_heads"),
    ("no layers", encoder(n_layers=0), PRETRAIN_A, "'n_layers' is 0"),
    ("emb_norm a text", encoder(emb_norm="yes"), PRETRAIN_A, "'emb_norm' is \"yes\".*true or false"),
    ("model of nine channels", encoder(feature_num=9), PRETRAIN_A, "'feature_num' is 9.*'dimension' is 6"),
    ("model of 100 steps", encoder(seq_len=100), EMBED_A, "'seq_len' is 100.*120"),
    ("classifier of other features", head(input_size=72), CLASSIFY_A, "8 features.*'input_size' is 72"),
    ("dropout 1", head(dropout_ratio=1), CLASSIFY_A, "'dropout_ratio' is 1"),
    ("odd hidden size", head(hidden_size=15, num_heads=3), CLASSIFY_A, "'hidden_size' 15.*even"),
    ("data_config no JSON", text(ENTRIES, "uci"), PRETRAIN_A, "data_config.json is not readable"),
    ("data_config a list", text(ENTRIES, "[1]"), PRETRAIN_A, "data_config.json has no entry"),
    ("entry a number", text(ENTRIES, '{"a_20_120": 5}'), PRETRAIN_A, "no entry 'a_20_120'"),
    ("names don't fit the size", entry(activity_label_size=5), CLASSIFY_A, "activity_label_size"),
    ("size a text", entry(activity_label_size="4"), CLASSIFY_A, "activity_label_size"),
    ("names no list", entry(activity_label=7), CLASSIFY_A, "activity_label"),
    ("label column a list", entry(activity_label_index=[0]), CLASSIFY_A, "-l 0.*data_config.json"),
    ("no seq_len", text(ENTRIES, '{"a_20_120": {}}'), PRETRAIN_A, "data_20_120.npy.*shape"),
]

WINDOWS = [
    ("no windows", gone(DATA), PRETRAIN_A, f"{DATA} is missing.*prepare.py -d a"),
    ("no labels", gone(LABEL), EMBED_A, f"{LABEL} is missing.*prepare.py -d a"),
    ("windows a folder", folder_instead(DATA), PRETRAIN_A, f"{DATA} is missing"),
    ("empty file", text(DATA, ""), PRETRAIN_A, f"{DATA} is not a readable"),
    ("cut header", cut(DATA, 60), PRETRAIN_A, f"{DATA} is not a readable"),
    ("cut numbers", cut(DATA, 5000), PRETRAIN_A, f"{DATA} is not a readable"),
    ("text file", text(DATA, "0.1 0.2 0.3"), PRETRAIN_A, f"{DATA} is not a readable"),
    ("npz file", npz_instead, PRETRAIN_A, f"{DATA} is not a readable"),
    ("pickled array", array(DATA, lambda x: np.array([Bomb()], object)), PRETRAIN_A, f"{DATA} is not a readable"),
    ("pickle file", text(DATA, pickle.dumps(Bomb())), PRETRAIN_A, f"{DATA} is not a readable"),
    ("texts", array(DATA, lambda x: x.astype("U8")), PRETRAIN_A, f"{DATA} holds <U8"),
    ("complex numbers", array(DATA, lambda x: x + 1j), PRETRAIN_A, f"{DATA} holds complex"),
    ("records", array(DATA, lambda x: np.zeros(3, "f4,i4")), PRETRAIN_A, f"{DATA} holds"),
    ("two axes", array(DATA, lambda x: x[:, :, 0]), PRETRAIN_A, r"shape \(32, 120\)"),
    ("a single number", array(DATA, lambda x: np.float32(1)), PRETRAIN_A, r"shape \(\)"),
    ("windows of 100 steps", array(DATA, lambda x: x[:, :100]), PRETRAIN_A, r"shape \(32, 100, 6\), not .*120, 6"),
    ("three channels", array(DATA, lambda x: x[:, :, :3]), PRETRAIN_A, r"shape \(32, 120, 3\)"),
    ("channels first", array(DATA, lambda x: x.swapaxes(1, 2)), PRETRAIN_A, r"shape \(32, 6, 120\)"),
    ("no window at all", array(DATA, lambda x: x[:0]), PRETRAIN_A, f"{DATA}|{LABEL}"),
    ("empty set", few(0), PRETRAIN_A, DATA),
    ("NaN", array(DATA, at((3, 4, 5), np.nan)), PRETRAIN_A, f"{DATA} holds NaN"),
    ("infinity", array(DATA, at((31, 119, 0), -np.inf)), EMBED_A, f"{DATA} holds NaN, infinity"),
    ("beyond float32", array(DATA, lambda x: at((0, 0, 0), 1e300)(x.astype("f8"))), PRETRAIN_A, "beyond float32"),
    ("NaN in the target", array(DATA_B, at(0, np.nan)), TEST_A_B, "dataset/b/data.*NaN"),
    ("target of three channels", array(DATA_B, lambda x: x[:, :, 3:]), TEST_A_B, "dataset/b/data"),
    ("fewer labels than windows", array(LABEL, lambda x: x[:-1]), PRETRAIN_A, rf"{LABEL} has shape \(31, 120, 2\)"),
    ("labels per window", array(LABEL, lambda x: x[:, 0]), EMBED_A, rf"{LABEL} has shape \(32, 2\)"),
    ("labels of no column", array(LABEL, lambda x: x[:, :, :0]), EMBED_A, rf"{LABEL} has shape \(32, 120, 0\)"),
    ("label NaN", array(LABEL, at((0, 0, 0), np.nan)), EMBED_A, f"{LABEL} holds NaN"),
    ("label texts", array(LABEL, lambda x: x.astype("U4")), EMBED_A, f"{LABEL} holds"),
    ("target ids from 1", array(LABEL_B, lambda x: x + 1), TEST_A_B, "dataset/b/label.*start at 1"),
    ("target id out of range", array(LABEL_B, at(0, 9)), TEST_A_B, "dataset/b/label.*0 to 9"),
    ("target id negative", array(LABEL_B, at(0, -1)), TEST_A_B, "dataset/b/label.*-1 to"),
    ("target id huge", array(LABEL_B, at(0, 1e30)), TEST_A_B, "dataset/b/label.*1e.30"),
    ("target id a fraction", array(LABEL_B, at(0, 0.5)), TEST_A_B, "dataset/b/label"),
    (
        "target without constant labels",
        array(LABEL_B, first_step_differs),
        TEST_A_B,
        "dataset/b/label_20_120.npy: no window has one label",
    ),
    (
        "target with one column",
        array(LABEL_B, lambda x: x[:, :, :1]),
        (*TEST_A_B, "-l", "1"),
        "-l 1.*dataset/b/label.*only 1",
    ),
    ("target names other activities", other_activities, TEST_A_B, "walking.*run"),
    ("ten windows", few(10), ("pretrain", "-d", "a", "-am", "none"), "10 windows, too few"),
    ("one window", few(1), PRETRAIN_A, "1 windows, too few"),
]

CHECKPOINTS = [
    ("no checkpoint", gone(MASKED), EMBED_A, f"{MASKED} is missing.*python pretrain.py -d a"),
    ("no checkpoint in stage 3", gone(MASKED), TEST_A_B, f"{MASKED} is missing"),
    ("no classifier", gone(f"{CLASSIFIED}.pt"), TEST_A_B, f"{CLASSIFIED}.pt is missing.*classifier.py"),
    ("empty checkpoint", checkpoint(""), EMBED_A, f"{MASKED} is not a readable checkpoint"),
    ("cut checkpoint", without_json(MASKED)(cut(MASKED, 3000)), EMBED_A, f"{MASKED} is not a re"),
    ("cut checkpoint beside its JSON", cut(MASKED, 3000), EMBED_A, f"{MASKED} is not the file"),
    ("text as checkpoint", checkpoint("weights"), EMBED_A, f"{MASKED} is not a readable checkpoint"),
    ("zip as checkpoint", checkpoint(zip_of(a="b")), EMBED_A, f"{MASKED} is not a readable"),
    ("malicious pickle", checkpoint(pickle.dumps(Bomb())), EMBED_A, f"{MASKED} is not a readable"),
    ("malicious checkpoint", checkpoint(saved({"a": Bomb()})), EMBED_A, f"{MASKED} is not a readable"),
    ("a whole module", checkpoint(saved(torch.nn.Linear(2, 2))), EMBED_A, f"{MASKED} is not a read"),
    ("a list of tensors", checkpoint(saved([torch.zeros(2)])), EMBED_A, "not a plain state dict"),
    ("nested states", state(PRETRAINED, lambda s: {"model": s, "epoch": 3}), EMBED_A, "not a plain state dict"),
    ("numbered weights", state(PRETRAINED, lambda s: dict(enumerate(s.values()))), EMBED_A, "plain state dict"),
    ("weights missing", state(PRETRAINED, lambda s: dict(list(s.items())[1:])), EMBED_A, "lacks the weights 'tr"),
    ("foreign weights", weights("conv.weight", torch.zeros(2)), EMBED_A, "'conv.weight'"),
    ("another network", another_network, EMBED_A, f"{MASKED} lacks"),
    (
        "wrong shape",
        weights("decoder.bias", torch.zeros(7)),
        EMBED_A,
        r"'decoder.bias' have shape \(7,\) instead of \(6,\)",
    ),
    ("NaN weights", weights("decoder.bias", torch.full((6,), torch.nan)), EMBED_A, "'decoder.bias' hold NaN"),
    (
        "weights beyond float32",
        weights("norm.beta", torch.full((8,), 1e300, dtype=torch.float64)),
        EMBED_A,
        "'norm.beta' hold NaN or infinity",
    ),
    (
        "whole-number weights",
        weights("norm.beta", torch.zeros(8, dtype=torch.int64)),
        EMBED_A,
        "'norm.beta' are no plain numbers",
    ),
    (
        "complex weights",
        weights("norm.beta", torch.zeros(8, dtype=torch.complex64)),
        EMBED_A,
        "'norm.beta' are no plain numbers",
    ),
    ("sparse weights", weights("norm.beta", torch.zeros(8).to_sparse()), EMBED_A, "'norm.beta' are no plain numbers"),
    (
        "NaN in the classifier",
        weights("fc.bias", torch.full((4,), torch.inf), CLASSIFIED),
        TEST_A_B,
        f"{CLASSIFIED}.pt.*'fc.bias' hold NaN or infinity",
    ),
    ("classifier of three classes", weights("fc.bias", torch.zeros(3), CLASSIFIED), TEST_A_B, "'fc.bias'"),
    ("checkpoint without its head", gone(HEAD), (*PRETRAIN_A, "-s", "new", "-f", "model"), f"{HEAD} is missing"),
    (
        "checkpoint replaced beside its JSON",
        saved_again,
        EMBED_A,
        f"{MASKED} is not the file that model_masked_6_1.json describes",
    ),
    ("JSON that is none", text(MASKED_JSON, "{"), EMBED_A, f"{MASKED_JSON} is not readable"),
    ("JSON of someone else", text(MASKED_JSON, '{"version": 1}'), EMBED_A, f"{MASKED_JSON} was not written"),
    ("JSON with parts of wrong types", record(MASKED_JSON, made_from=[]), EMBED_A, f"{MASKED_JSON} was not written"),
    ("JSON without its training", record(MASKED_JSON, config={}), EMBED_A, f"{MASKED_JSON} was not written"),
    (
        "JSON of the classifier emptied",
        record(f"{CLASSIFIED}.json", config={"train": 1}),
        TEST_A_B,
        f"{CLASSIFIED}.json was not",
    ),
    (
        "other heads than the checkpoint's",
        encoder(n_heads=4),
        EMBED_A,
        r"model_masked_6_1.pt.*model.n_heads \(2 then, 4 now\)",
    ),
    ("other passes in stage 3", encoder(n_layers=2), TEST_A_B, r"model.n_layers \(1 then, 2 now\)"),
    ("other classifier heads in stage 3", head(num_heads=4), TEST_A_B, r"model_transformer.pt.*model.num_heads"),
]

EMBEDDINGS = [
    ("no embedding", gone(f"{EMBED}.npy"), CLASSIFY_A, f"{EMBED}.npy is missing.*python embedding.py -d a"),
    ("no labels of the embedding", gone(f"{EMBED_LABEL}.npy"), CLASSIFY_A, f"{EMBED_LABEL}.npy is missing"),
    ("cut embedding", cut(f"{EMBED}.npy", 5000), CLASSIFY_A, f"{EMBED}.npy is not a readable"),
    (
        "pickled embedding",
        array(f"{EMBED}.npy", lambda x: np.array([Bomb()], object)),
        CLASSIFY_A,
        f"{EMBED}.npy is not a",
    ),
    ("float64 embedding", array(f"{EMBED}.npy", lambda x: x.astype("f8")), CLASSIFY_A, f"{EMBED}.npy is float64"),
    (
        "embedding of two axes",
        array(f"{EMBED}.npy", lambda x: x.mean(1)),
        CLASSIFY_A,
        rf"{EMBED}.npy is float32 \(192, 8\)",
    ),
    (
        "labels of other rows",
        array(f"{EMBED_LABEL}.npy", lambda x: x[:6]),
        CLASSIFY_A,
        rf"{EMBED_LABEL}.npy.*\(6, 120, 2\)",
    ),
    ("embedding changed", array(f"{EMBED}.npy", lambda x: x + 1), CLASSIFY_A, f"{EMBED}.npy is not the file"),
    ("NaN in the embedding", loose(EMBED, at(slice(None), np.nan)), CLASSIFY_A, f"{EMBED}.npy holds NaN"),
    ("rows that are no multiple", fewer_rows(100), CLASSIFY_A, "100 rows, no multiple of 6"),
    ("empty embedding", fewer_rows(0), CLASSIFY_A, f"{EMBED}.npy"),
    ("another augmentation asked for", nothing, (*CLASSIFY_A, "-am", "jitter"), "-am jitter contradicts.*channel_aug"),
    ("another augmentation than the model's", nothing, (*EMBED_A, "-am", "none"), "-am none contradicts.*channel_aug"),
    ("another seed than the model's", nothing, (*EMBED_A, "--seed", "8"), "--seed 8 contradicts.*made with 5"),
    ("embedding of another data set", copied_to_b, ("classifier", "-d", "b"), r"embed_b.*dataset \(a then, b now\)"),
    (
        "embedding of an older checkpoint",
        pretrained_again("--seed", "8"),
        CLASSIFY_A,
        "was made from an older .*model_masked_6_1.pt; repeat: python embedding.py -d a",
    ),
    ("source ids from 1", loose(EMBED_LABEL, lambda x: x + 1), CLASSIFY_A, f"{EMBED_LABEL}.npy.*start at 1"),
    ("source of a single class", loose(EMBED_LABEL, one_class), CLASSIFY_A, f"{EMBED_LABEL}.npy.*single class"),
    ("source id out of range", loose(EMBED_LABEL, at(0, 4)), CLASSIFY_A, f"{EMBED_LABEL}.npy.*0 to 4"),
]

STAGE_3 = [
    ("label rate contradicts", nothing, (*TEST_A_B, "-lr", "0.1"), "-lr 0.1 contradicts.*made with 0.5"),
    ("seed contradicts", nothing, (*TEST_A_B, "--seed", "6"), "--seed 6 contradicts.*made with 5"),
    ("augmentation contradicts", nothing, (*TEST_A_B, "-am", "none"), "-am none contradicts.*channel_aug"),
    ("label column contradicts", nothing, (*TEST_A_B, "-l", "1"), "-l 1 contradicts.*-l 0"),
    (
        "configuration contradicts",
        other_training,
        (*TEST_A_B, "-t", "config/other.json"),
        r"-t config/other.json contradicts.*lr \(0.003 then, 0.5 now\)",
    ),
    (
        "older checkpoint",
        pretrained_again("--seed", "8"),
        TEST_A_B,
        "was made from an older .*repeat: python embedding.py",
    ),
    (
        "another pretrained model",
        pretrained_again("-s", "other"),
        (*TEST_A_B, "-f", "other", "-s", "model"),
        "check -f and -s",
    ),
    ("windows changed since", lambda p: p.dataset("a", 32, seed=9), TEST_A_B, "older dataset/a/data_20_120.npy"),
    ("results of another table", text(RESULTS, "name,value\nx,1\n"), TEST_A_B, "results.csv is another table"),
    ("results with a cut row", text(RESULTS, "source,target\na\n"), TEST_A_B, "results.csv has rows that don't fit"),
    ("results with a long row", text(RESULTS, "source,target\na,b,c\n"), TEST_A_B, "results.csv has rows that don't"),
    ("results that are no text", text(RESULTS, b"\xff\xfe\x00"), TEST_A_B, "results.csv is not a readable table"),
    ("results a folder", folder_instead(RESULTS), TEST_A_B, "results.csv"),
]

PLACES = [
    ("saved a file, pretrain", file_instead("saved"), PRETRAIN_A, "saved/.* cannot be written"),
    ("saved a file, classifier", file_instead("saved"), CLASSIFY_A, "saved/.* cannot be written"),
    ("embed a file", file_instead("embed"), EMBED_A, "embed/.* cannot be written"),
    ("state of no run", text(STATE, "state"), PRETRAIN_A, "not a readable training state.*--restart"),
    ("state without content", text(STATE, saved({"config": "[]"})), PRETRAIN_A, "not a readable training"),
    ("malicious state", text(f"{CLASSIFIED}_state.pt", saved(Bomb())), CLASSIFY_A, "not a readable training state"),
    (
        "state of another run",
        text(STATE, saved({"config": '{"seed": 3}', "state": {}})),
        PRETRAIN_A,
        "another configuration: .*--restart",
    ),
]

TABLE = FLAGS + CONFIGS + WINDOWS + CHECKPOINTS + EMBEDDINGS + STAGE_3 + PLACES


def test_the_table_is_large_and_each_case_has_its_name():
    assert len(TABLE) >= 60 and len({name for name, *_ in TABLE}) == len(TABLE)
    assert {call[0] for _, _, call, _ in TABLE} == {"pretrain", "embedding", "classifier", "cross_dataset_test"}


def mistake(project, capsys, script, *flags):
    """The error line of a run that must end with a user's mistake."""
    with pytest.raises((UserError, SystemExit)) as caught:
        project.run(script, *flags)
    if isinstance(caught.value, SystemExit):  # argparse
        assert caught.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1 and line.endswith("\n")
        return line
    assert caught.value.args[0].strip()
    return f"error: {caught.value}"


@pytest.mark.filterwarnings("ignore::UserWarning:torch")  # torch's own remarks about the odd files made here
@pytest.mark.parametrize("breaks, call, wanted", [case[1:] for case in TABLE], ids=[case[0] for case in TABLE])
def test_malformed_input_is_one_error_line_and_changes_nothing(trained, capsys, breaks, call, wanted):
    breaks(trained)
    before = trained.files()
    capsys.readouterr()
    line = mistake(trained, capsys, *call)
    assert re.search(wanted, line, re.DOTALL), line
    assert trained.files() == before
    assert not (trained.folder / "unpickled").exists(), "code of the file ran"


COMMANDS = ["label rate 0", "NaN", "malicious checkpoint", "NaN in the embedding", "results of another table"]


@pytest.mark.parametrize("name", COMMANDS)
def test_as_a_command_the_status_is_2_and_stderr_one_line(trained, name):
    breaks, (script, *flags), _ = next(case[1:] for case in TABLE if case[0] == name)
    breaks(trained)
    before = trained.files()
    status, out, err = trained.command(f"{script}.py", *flags, "-g", "cpu")
    assert status == 2
    *warnings, error = err.splitlines()
    assert error.startswith("error: ") and all(line.startswith("warning: ") for line in warnings), err
    assert "Traceback" not in out and trained.files() == before
