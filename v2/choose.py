"""How version v2's settings are chosen: on the source alone, by users held out and simulated shifts of their windows.

    python choose.py -d uci --versions v2 v2_single v2_no_position --seeds 3

reads   dataset/uci/{data,label}_20_120.npy (labels with a column `user`), the entries of config/ that -mv would name
prints  for each version accuracy and macro F1 on the held-out users, as recorded and under each shift, mean ± sample
        standard deviation over seeds, and their mean over all shifts: the number to choose by
writes  results/choose_uci.csv

Two fifths of the users are held out (drawn by the seed); of the other users' windows a share -lr of the source's size
keeps its labels. The network of the last step is scored. A version takes as long as classifier.py does, and as
pretraining where its entry has some.

The shifts are fixed cases, most of them outside of what the augmentation of config/physics.json draws or at its edge:
a wrist that swings by 0.45 rad, 0.55 m below the shoulder (augmentation: at most 0.4 rad, 0.5 m), a rotation 0.3 or 1.8
times the recorded one, a lever of 0.35 m along gravity, acceleration clipped at 1.7 g, acceleration that grows with the
tempo. They are no real device: they tell a setting that breaks from one that does not, not what a target will score.
"""

import copy
import math
import sys

import numpy as np
import torch

import utils
from augment import make_generator
from bookkeeping import artefacts, configs
from bookkeeping.commands import Parser, UserError, a_device, a_name, a_number, run
from metrics import scores, spread
from v2 import stages as v2
from v2.invariants import G, unit
from v2.networks import Masked, Network, Projection
from v2.physics import amplify, relocate, retime, shift, smooth


def get_args(argv=None):
    import argparse

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-d", "--dataset", type=a_name, default="uci", help="source data set (default uci)")
    add("-dv", "--dataset_version", type=a_name, default="20_120", help="rate_length of the windows (default 20_120)")
    add("--versions", nargs="+", type=a_name, default=["v2"], help="model versions to compare (default v2)")
    whole = a_number(int, lambda n: n > 0, "a whole number from 1")
    add("--seeds", type=whole, default=3, help="how many seeds (default 3)")
    add("--first_seed", type=a_number(int, lambda n: n >= 0, "a seed"), default=3431, help="default 3431")
    rate = a_number(float, lambda x: 0 < x <= 1, "a share above 0 and up to 1")
    add("-lr", "--label_rate", type=rate, default=0.1, help="labelled windows by the source's size (default 0.1)")
    add("-g", "--gpu", type=a_device, help="index of the GPU, or cpu (default: the first GPU, else the CPU)")
    return parser.parse_args(argv)


HELD_OUT = 0.4


def shifts(x):
    """{name: the windows x (N, T, 6) in m/s^2 and rad/s under that shift}; the same every time."""
    N, T, _ = x.shape
    generator = make_generator("cpu", "shifts")
    phase = 2 * math.pi * torch.rand(N, 1, 1, generator=generator)
    sideways = unit(torch.randn(N, 1, 3, generator=generator), 1e-12)
    noise = torch.randn(N, T, 6, generator=generator) * torch.tensor([0.03] * 3 + [0.05] * 3)
    phase, sideways, noise = (part.to(x.device) for part in (phase, sideways, noise))
    x = torch.cat([x[..., :3] / G, x[..., 3:]], -1)
    up = unit(x[..., :3].mean(1, keepdim=True), 1e-6)

    def moved(gain, swing, pendulum, damping):
        return relocate(
            x,
            *(x.new_full((N, 1, 1), a) for a in (gain, swing)),
            phase,
            *(x.new_full((N, 1, 1), a) for a in (pendulum, damping)),
        )

    def at_tempo(tempo):  # a faster walker steps harder, too
        return amplify(retime(x, T, x.new_full((N, 1), tempo), x.new_zeros(N, 1)), tempo, 1)

    noisy = x + noise
    made = {
        "as recorded": x,
        "weaker": amplify(x, 0.65, 0.65),
        "stronger": amplify(x, 1.5, 1.5),
        "slower": at_tempo(0.82),
        "faster": at_tempo(1.2),
        "filtered": smooth(x, x.new_full((N, 1, 1), 1.4)),
        "noisy, clipped": torch.cat([noisy[..., :3].clamp(-1.7, 1.7), noisy[..., 3:]], -1),
        "wrist": moved(0.8, 0.45, 0.55, 1.2),
        "forearm": moved(0.3, 0.25, 0.3, 0.5),
        "trunk": moved(0.3, 0, 0, 0.8),
        "other limb": shift(moved(1.8, 0.3, 0.3, 0.01), 0.15 * sideways),
        "0.35 m above": shift(x, 0.35 * up),
        "0.25 m aside": shift(x, 0.25 * sideways),
    }
    return {name: torch.cat([y[..., :3] * G, y[..., 3:]], -1) for name, y in made.items()}


def split_users(users, seed):
    """Rows of the windows of the other users, shuffled, and of those held out."""
    rng = np.random.RandomState(seed)
    order = rng.permutation(np.unique(users))
    held_out = np.isin(users, order[: max(1, int(len(order) * HELD_OUT))])
    return rng.permutation(np.flatnonzero(~held_out)), np.flatnonzero(held_out)


def fit(version, windows, labels, labelled, unlabelled, classes, seed):
    """A trained network of a version, and its two configurations."""
    device = windows.device
    model_cfg, cfg = configs.read_encoder_config(version), configs.read_classifier_config(version)
    torch.manual_seed(seed)
    masked, projection = Masked(model_cfg).to(device), Projection(model_cfg).to(device)
    network = Network(model_cfg, cfg, classes).to(device)
    optimizer = v2.make_optimizer([masked, projection], model_cfg["lr"], 0.001)
    odds = torch.zeros(model_cfg["members"], len(windows), device=device)
    odds[:, torch.as_tensor(unlabelled, device=device)] = 1
    step, first, total = 0, model_cfg["masked_steps"], model_cfg["masked_steps"] + model_cfg["joint_steps"]
    while step < total:
        now = min(v2.ROUND, (first if step < first else total) - step)
        generator = v2.seed_round(device, seed, "choose pretraining", step)
        v2.pretrain_round(masked, projection, optimizer, windows, odds, model_cfg, (6, 1), generator, step, now)
        step += now
    network.encoder.load_state_dict(masked.encoder.state_dict())
    mean, optimizer = copy.deepcopy(network), v2.make_optimizer([network], cfg["lr"], cfg["weight_decay"])
    odds = v2.class_odds(labels.cpu().numpy(), labelled, len(windows), cfg["balanced"]).to(device)
    odds = odds.expand(model_cfg["members"], -1)
    for step in range(0, cfg["steps"], v2.ROUND):
        now = min(v2.ROUND, cfg["steps"] - step)
        generator = v2.seed_round(device, seed, "choose", step)
        v2.train_round(network, mean, optimizer, windows, labels, odds, cfg, model_cfg, generator, step, now)
    return mean, cfg, model_cfg


def main(args):
    device = utils.pick_device(args.gpu)
    data, labels, entry = utils.load_windows(args.dataset, args.dataset_version)
    path = f"dataset/{args.dataset}/label_{args.dataset_version}.npy"
    if not isinstance(entry.get("user_label_index"), int) or entry["user_label_index"] < 0:
        raise UserError(f"{args.dataset} has no column `user` in dataset/data_config.json; nobody can be held out")
    names = configs.label_names(entry, 0)[1]
    ids = utils.window_labels(labels, 0, names, path)
    users = np.asarray(labels[:, 0, entry["user_label_index"]])
    if len(np.unique(users)) < 2:
        raise UserError(f"{path} has windows of a single user; nobody can be held out")
    for version in args.versions:
        if configs.method_of(version) != "v2":
            raise UserError(f"--versions {version}: only entries of config/pretrain_model.json with the method v2")
    kept = np.flatnonzero(ids >= 0)
    windows = torch.tensor(np.asarray(data[kept], dtype=np.float32), device=device)
    ids, users = ids[kept], users[kept]
    cases, rows = shifts(windows), []
    for version in args.versions:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            others, held_out = split_users(users, seed)
            labelled = others[: max(1, int(args.label_rate * (1 - HELD_OUT) * len(ids)))]
            fitted = fit(version, windows, torch.as_tensor(ids, device=device), labelled, others, len(names), seed)
            for case, changed in cases.items():
                guess = v2.predict(fitted[0], changed[held_out], *fitted[1:]).argmax(1).numpy()
                made = scores(ids[held_out], guess, len(names))
                rows.append(
                    {
                        "version": version,
                        "seed": seed,
                        "shift": case,
                        "accuracy": round(made["accuracy"], 6),
                        "f1_macro": round(made["f1_macro"], 6),
                    }
                )
            print(f"{version}, seed {seed}: {overall(rows, version, seed)}", flush=True)
    artefacts.save_table(f"results/choose_{args.dataset}.csv", rows)
    return show(rows, args.versions, list(cases))


def overall(rows, version, seed):
    """The means over all shifts of one run."""
    mine = [row for row in rows if (row["version"], row["seed"]) == (version, seed)]
    return "accuracy {:.3f}, macro F1 {:.3f}".format(*(np.mean([r[k] for r in mine]) for k in ("accuracy", "f1_macro")))


def show(rows, versions, cases):
    """Print macro F1 by shift and version; returns {version: mean over shifts and seeds}."""
    print("macro F1".ljust(16) + "".join(version.rjust(20) for version in versions))
    result = {}
    for case in [*cases, "mean"]:
        line = case.ljust(16)
        for version in versions:
            mine = [row for row in rows if row["version"] == version and case in (row["shift"], "mean")]
            seeds = dict.fromkeys(row["seed"] for row in mine)
            each = [np.mean([row["f1_macro"] for row in mine if row["seed"] == seed]) for seed in seeds]
            line += spread(each).rjust(20)
            result[version] = float(np.mean(each))
        print(line)
    return result


if __name__ == "__main__":
    sys.exit(run(main, get_args))
