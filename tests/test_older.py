"""Files of older versions: artefacts and tables go on to be read (of an older training state: tests/test_resume.py)."""

import csv
import json

import pytest

from bookkeeping import ledger

CLASSIFIED = "saved/classifier_base_transformer_a_20_120/model_transformer"
PRETRAINED = "saved/pretrain_base_a_20_120/model_masked_6_1"
ALL = "artefact fingerprint config made_from versions device"
RUN = "dataset dataset_version model_version augment_method"
# What stood in the JSONs of commit ee66fa8 (2026-11): (keys, keys of its configuration)
KEYS = {
    PRETRAINED: (f"{ALL} epoch epochs", f"{RUN} train mask model precision"),
    "embed/embed_a_20_120": (ALL, f"{RUN} copies model checkpoint pretrain epochs seed"),
    "embed/label_a_20_120": (ALL, f"{RUN} copies model checkpoint pretrain epochs seed"),
    CLASSIFIED: (
        f"{ALL} epoch precision temperature source_test",
        f"{RUN} label_index label_rate train model classes embedding",
    ),
}
HEADER = (
    "source,target,dataset_version,augment_method,label_rate,seed,windows,accuracy,precision_macro,recall_macro,f1_macro,"
    "f1_micro,pretrain_seed,epochs,split_by,label_index,model_version,save_model,lambda1,lambda2,config_hash,"
    "source_windows,source_accuracy,source_f1_macro,majority,temperature,ece,ece_uncalibrated,source_ece,"
    "source_ece_uncalibrated"
)
HASH = "5635426cdee4ade1"  # that version's config_hash of the project's test on made-up fingerprints of the data


def only(value, keys):
    return {key: value[key] for key in keys.split()}


@pytest.fixture
def older(trained):
    """The project whose JSONs hold what older ones held, and nothing that was added since."""
    for stem, (keys, config_keys) in KEYS.items():
        path = trained.folder / f"{stem}.json"
        record = json.loads(path.read_text())
        embedding = KEYS["embed/embed_a_20_120"][1]
        record["config"] = only(record["config"], config_keys)
        if "embedding" in record["config"]:
            record["config"]["embedding"] = only(record["config"]["embedding"], embedding)
        path.write_text(json.dumps(only(record, keys)))
    return trained


def test_every_stage_goes_on_from_older_artefacts_to_the_same_bits(older):
    before = older.files()
    for script, flags in (("classifier", ["-lr", 0.5]), ("embedding", []), ("classifier", ["-lr", 0.5])):
        older.run(script, "-d", "a", *flags)
        after = older.files()
        assert all(before[name] == after[name] for name in before if name.endswith((".pt", ".npy", ".csv")))
    older.run("pretrain", "-d", "a", "-s", "tuned", "-f", "model")


def test_a_row_joins_an_older_table_and_is_known_by_its_hash(older, monkeypatch):
    """The same experiment has the same config_hash in either version, so that reproduce.py does not repeat it."""
    made_up = "{0} {1} windows", "{0} {1} labels"
    monkeypatch.setattr(ledger, "data_fingerprints", lambda *which: [text.format(*which) for text in made_up])
    with open("saved/results.csv", "w") as table:
        table.write(HEADER + "\n" + ",".join(f"old{i}" for i in range(HEADER.count(",") + 1)) + "\n")
    older.run("cross_dataset_test", "-d", "a", "-td", "b")
    with open("saved/results.csv", newline="") as table:
        assert table.readline().strip() == HEADER + ",classes"
        table.seek(0)
        first, row = csv.DictReader(table)
    assert list(first.values()) == [f"old{i}" for i in range(len(first) - 1)] + [""]
    assert row["config_hash"] == HASH and "" not in row.values()
    assert {"old20", HASH} == set(ledger.read_rows())
