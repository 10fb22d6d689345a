"""Model version v2, behind the scripts' -mv v2: a small network on channels that no turning of the device changes.

physically-informed augmentation   physics.py draws how the movement would have been recorded elsewhere, anew each time
                                   a window is visited; there are no copies
few labels                         train: the network on the labelled windows of the sources, each source equally often
                                   and in it each class; halfway it labels the sources' other training windows itself
                                   and goes on with all; the last step's weights are kept, nothing is chosen

A round of steps is a function of (seed, its first step) and of the state at its start, so that an interrupted run
continues to the same bits on the CPU.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import metrics
import utils
from augment import make_generator
from bookkeeping import artefacts, configs
from bookkeeping.commands import LABEL_RATE, UserError
from bookkeeping.resume import Resume
from bookkeeping.stems import replacing
from v2.invariants import represent
from v2.networks import Network
from v2.physics import augment

ROUND = 50  # steps between states that a run can continue from
WARM_UP = 30  # steps


def cumulative_odds(labels, sources):
    """The cumulative chances (n,) with which windows are drawn: sources equally often, in each its classes likewise.

    `sources` are the rows of each source's windows that have a label, `labels` (n,) the ids of all windows.
    """
    odds = np.zeros(len(labels))
    for rows in sources:
        counts = np.bincount(labels[rows])
        odds[rows] = 1 / (counts[labels[rows]] * np.count_nonzero(counts) * len(sources))
    return odds.cumsum()


class Lessons(nn.Module):
    """What is learnt from: windows (n, T, 6), labels (n,), -1 where none may be seen, and cumulative odds (n,).

    A module, so that labels and odds belong to the state that a run continues from. They stay in place.
    """

    def __init__(self, windows, labels, rows):
        super().__init__()
        self.windows, self.rows, given = windows, rows[:2], np.concatenate(rows[0])
        seen, odds = np.full(len(labels), -1), cumulative_odds(labels, rows[0])
        seen[given] = labels[given]
        self.labels, self.odds = (nn.Buffer(torch.from_numpy(x).to(windows.device)) for x in (seen, odds))

    def label_others(self, network, cfg):
        """The other training windows get the classes that the network finds for them, and are drawn from now on."""
        labelled, train = self.rows
        others = np.setdiff1d(np.concatenate(train), np.concatenate(labelled))
        if len(others):
            self.labels[others] = predict(network, self.windows[others], cfg).argmax(1).to(self.labels.device)
            self.odds.copy_(torch.from_numpy(cumulative_odds(self.labels.cpu().numpy(), train)))
        network.train()


def make_step(engine, network, optimizer, lessons, cfg, sums):
    """A training step, to be called again and again; `sums` are two scalars on the device: steps done, losses.

    Data, drawing and the rate of learning stay on the device, so that a GPU's engine can record a step and replay it.
    """
    windows, labels, odds = lessons.windows, lessons.labels, lessons.odds
    (done, losses), members, lr = sums, network.members, torch.zeros((), device=windows.device)
    optimizer.param_groups[0]["lr"] = lr

    def step(_):
        draws = torch.rand(cfg["batch_size"] * members, dtype=odds.dtype, device=odds.device) * odds[-1]
        rows = torch.searchsorted(odds, draws, right=True)
        x = represent(augment(windows[rows], cfg["physics"]), cfg["channels"]).unflatten(
            0, (-1, members)
        )  # (B, E, C, L)
        loss = F.cross_entropy(network(x).flatten(0, 1), labels[rows])
        warm, share = ((done + 1) / WARM_UP).clamp(max=1), done / cfg["steps"]
        lr.copy_(cfg["lr"] * warm * (0.5 + 0.5 * torch.cos(math.pi * share)))  # a short warm-up, a cosine down to 0
        optimizer.zero_grad()
        (loss * members).backward()  # a sum over members, none of whose gradients depends on another's loss
        optimizer.step()
        done.add_(1), losses.add_(loss.detach())

    return engine.recorded(step, [network], optimizer, sums)


class Judge(nn.Module):
    """A network and what it is used with: windows (N, T, 6) -> logits (N, K), in operations that can be exported.

    The logarithm of the members' mean probability. A window without gyroscope has NaN for its rate, or 0.
    """

    def __init__(self, network, cfg):
        super().__init__()
        self.network, self.channels = network, cfg["channels"]

    def forward(self, windows):
        p = self.network(represent(windows.nan_to_num(), self.channels)).softmax(2).mean(1)
        return p.clamp(min=1e-9).log()


@torch.no_grad()
def predict(network, windows, cfg, batch_size=256):
    """Logits (N, K) on the CPU of windows (N, T, 6), as Judge gives them."""
    device, judge = next(network.parameters()).device, Judge(network, cfg).eval()
    return torch.cat([judge(part.to(device)) for part in windows.split(batch_size)]).cpu()


def as_tensor(windows):
    """Windows (N, T, 6) as float32; the rate of those without gyroscope, NaN, is 0, as the channels want it."""
    return torch.tensor(np.asarray(windows, dtype=np.float32)).nan_to_num()


def settings(args):
    """All that the classifier depends on, as its JSON keeps it. Raises UserError for flags that mean nothing here."""
    version = args.model_version
    if getattr(args, "precision", None):
        raise UserError(f"--precision {args.precision}: -mv {version} computes in float32; leave it out")
    if args.augument_method:
        how = "makes no copies; its augmentation is config/physics.json; leave -am out"
        raise UserError(f"-am {args.augument_method}: -mv {version} {how}")
    if args.model_file:
        raise UserError(f"-f {args.model_file}: -mv {version} starts from no pretrained model; leave -f out")
    entry = configs.dataset_config(args.dataset, args.dataset_version)
    return {
        "dataset": args.dataset,
        "dataset_version": args.dataset_version,
        "model_version": version,
        "label_index": args.label_index,
        "label_rate": LABEL_RATE if args.label_rate is None else args.label_rate,
        "augment_method": "physics",
        "train": configs.read_train_config(args),
        "model": configs.read_classifier_config(version),
        "classes": configs.label_names(entry, args.label_index)[1],
        "embedding": {},  # none is read
    }


def load(args, config, device):
    """(windows on the device, labels, rows of each source for labelled, training, validation and test), checked."""
    data, labels, entry = utils.load_windows(args.dataset, args.dataset_version)
    configs.check_fits(config["model"], entry)
    utils.check_gravity(args.dataset, args.dataset_version, data, refuse=True)
    where = utils.data_path(args.dataset, args.dataset_version, "label")
    ids, train = utils.window_labels(labels, args.label_index, config["classes"], where), config["train"]
    counts = utils.counts_of(args.dataset, args.dataset_version)
    by = 1, train["seed"], train["split_by"]
    rows = utils.labelled_split(ids, config["classes"], where, config["label_rate"], counts, *by)
    return as_tensor(data).to(device), ids, rows


def halfway(cfg):
    """The step from which on the network's own labels are learnt, too: half of all, in whole rounds."""
    return ROUND * math.ceil(cfg["steps"] / 2 / ROUND) if cfg["own_labels"] else cfg["steps"]


def fit(engine, network, lessons, config, resume, quiet):
    """Train the network on the lessons to the last step; the losses by round."""
    cfg, seed = config["model"], config["train"]["seed"]
    capturable = {"capturable": engine.device.type == "cuda"}
    optimizer = utils.Adam(network.parameters(), lr=torch.zeros((), device=engine.device), fused=True, **capturable)
    parts = {"network": network, "optimizer": optimizer, "lessons": lessons}
    first, _, history = resume.restore(parts, cfg["steps"], "steps")
    done, losses = sums = [torch.full((), float(n), device=engine.device) for n in (first, 0)]
    step = make_step(engine, network, optimizer, lessons, cfg, sums)
    end = min(cfg["steps"], config["train"]["total_steps"] or cfg["steps"])
    bar = tqdm(total=end, initial=first, unit="step", disable=quiet)
    with resume.guard(), bar:
        network.train()
        for start in range(first, end, ROUND):
            now = min(ROUND, end - start)
            if start == halfway(cfg):
                lessons.label_others(network, cfg)
            torch.manual_seed(make_generator("cpu", seed, "v2", start).initial_seed())
            losses.zero_()
            for _ in range(now):
                step("step")
            if not math.isfinite(loss := losses.item() / now):
                where = f"'lr' of transformer_{config['model_version']} in config/classifier.json"
                raise UserError(f"the loss is not finite by step {start + now} ({loss:.4g}); lower {where}")
            history.append({"step": start + now, "train_loss": loss})
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(now)
            resume.after_epoch(parts, epoch=start + now, best={}, history=history)
    return history


def train(args, engine):
    """classifier.py -mv v2: the whole network, on the same labelled windows as v1 picks."""
    config = settings(args)
    files = utils.Files(args.dataset, args.dataset_version, args.model_version, args.save_model)
    with replacing(files.classifier(), config, args.restart):
        return train_and_save(args, engine, files, config)


def train_and_save(args, engine, files, config):
    """Train, test on the sources' test parts and save, as `config` says (train)."""
    device, cfg, names = engine.device, config["model"], config["classes"]
    windows, ids, rows = load(args, config, device)
    labelled, train_rows, val, test = map(np.concatenate, rows)
    torch.manual_seed(config["train"]["seed"])
    network = Network(cfg, len(names)).to(device)
    made_from, size = files.data("data", "label"), sum(p.numel() for p in network.parameters())
    resume = Resume(files.classifier("transformer_state.pt"), config | engine.how(made_from), args.restart)
    parts = f"{len(labelled)} labelled of {len(train_rows)} training windows, {len(val)} for validation"
    parts += f", {len(test)} for test"
    print(f"{args.dataset}: {parts}; {cfg['steps']} steps of {network.members} members, {size} parameters, on {device}")
    if (others := len(train_rows) - len(labelled)) and halfway(cfg) < cfg["steps"]:
        print(f"from step {halfway(cfg)} on also the other {others} training windows, as the network labels them")

    history = fit(engine, network, Lessons(windows, ids, rows), config, resume, args.quiet)
    predicted = [predict(network, windows[part], cfg) for part in (val, test)]
    result = metrics.scores(ids[test], predicted[1].argmax(1).numpy(), len(names))
    found = {"temperature": metrics.fit_temperature(predicted[0], ids[val])}
    result |= metrics.errors(predicted[1], ids[test], found["temperature"])
    record = artefacts.make_record(config, made_from, str(device), **found, source_test=result)
    artefacts.save_state(files.classifier(), network.state_dict(), record)
    artefacts.save_table(files.classifier("transformer_losses.csv"), history)
    resume.finished()
    print(f"loss {history[-1]['train_loss']:.4f} at the last step; saved {files.classifier()}")
    print(metrics.report(f"{args.dataset}, test part", result, names))
    print(metrics.confidence_report(result | found))
    return result | {"path": files.classifier(), "names": names}


def load_judge(path, cfg, names, hint):
    """A trained classifier as a module (Judge), in eval mode. Raises UserError for a file that isn't one."""
    network = Network(cfg, len(names))
    artefacts.load_state(Path(path), network, hint=hint)
    return Judge(network, cfg).eval()


def load_classifier(path, cfg, names, hint):
    """What cross_dataset_test.py needs of a trained classifier: a function from windows (N, T, 6) to logits (N, K)."""
    network = load_judge(path, cfg, names, hint).network
    return lambda windows, device: predict(network.to(device), windows, cfg)
