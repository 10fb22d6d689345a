"""Model version v2, behind the four scripts' -mv v2: the three steps on channels that no turning of the device changes.

physically-informed augmentation   physics.py draws how the movement would have been recorded elsewhere, anew each time
                                   a window is visited; there are no copies
self-supervised pretraining        pretrain: masked modelling, then masked and contrastive between two augmented views
few labels                         train: encoder and classifier together on the labelled windows of the source, every
                                   class equally often; a running mean of the weights is what is validated and kept

The training of a member (models_v2.py) is a function of (seed, round) and of the state at the round's start, so an
interrupted run continues to the same bits on the CPU.
"""

import copy
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
from bookkeeping import artefacts, commands, configs
from bookkeeping.commands import UserError
from bookkeeping.resume import Resume
from metrics import report, scores
from v2.invariants import represent
from v2.networks import Masked, Network, Projection, hidden_steps, nt_xent
from v2.physics import augment, retime

ROUND = 50  # steps between validations, and between states that a run can continue from
DRAW = 10  # steps whose windows are drawn and turned into channels at once
WARM_UP = 30  # steps
KEEP = 0.98  # the share of the running mean of the weights that a step keeps
VALIDATION_COPIES = 4  # altered copies of each validation window, drawn once, beside the window itself


def batches(windows, odds, cfg, steps, batch_size, generator, views=1):
    """Yields for each of `steps` steps (index (E, B), [channels (B, E, C, L) of each view]).

    odds (E, n) are the chances of the n windows (n, T, 6) for each member, which draws its own.
    """
    for first in range(0, steps, DRAW):
        now, E = min(DRAW, steps - first), len(odds)
        index = torch.multinomial(odds, now * batch_size, replacement=True, generator=generator)
        chosen = windows[index.T.flatten()]
        made = [
            represent(augment(chosen, cfg["physics"], generator), tuple(cfg["channels"]), cfg["compression"])
            .unflatten(0, (now, batch_size, E)) for _ in range(views)
        ]  # fmt: skip
        for step in range(now):
            rows = slice(step * batch_size, (step + 1) * batch_size)
            yield index[:, rows], [view[step] for view in made]


def learning_rate(lr, step, total):
    """A short warm-up, then a cosine down to 0."""
    return lr * min(1, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / total))


def update(optimizer, loss, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def make_optimizer(modules, lr, weight_decay):
    parameters = [p for module in modules for p in module.parameters()]
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def seed_round(device, *key):
    """The generator of a round; PyTorch's own, which dropout uses, starts from it too."""
    generator = make_generator(device, *key)
    torch.manual_seed(generator.initial_seed())
    return generator


# ------------------------------------------------------------------------------------------ stage 1: pretraining


def pretrain_round(masked, projection, optimizer, windows, odds, cfg, weights, generator, first, steps):
    """`steps` steps from number `first` on; returns the mean (masked, contrastive) loss of a member.

    The first masked_steps of all have the masked loss alone, the rest lambda1 * masked + lambda2 * contrastive.
    """
    total, seen = cfg["masked_steps"] + cfg["joint_steps"], torch.zeros(2, device=windows.device)
    both = first >= cfg["masked_steps"]
    masked.train(), projection.train()
    drawn = batches(windows, odds, cfg, steps, cfg["batch_size"], generator, 2 if both else 1)
    for step, (_, views) in enumerate(drawn, first):
        reconstruction, features = torch.zeros(len(odds), device=windows.device), []
        for x in views:
            hidden = hidden_steps(x, generator)
            guess, h = masked(x * ~hidden)
            error = ((guess - x).square() * hidden).sum((0, 2, 3)) / (hidden.sum((0, 2, 3)) * x.shape[2])
            reconstruction, features = reconstruction + error / len(views), [*features, projection(h)]
        contrast = nt_xent(*features) if both else torch.zeros_like(reconstruction)
        # a sum over members, none of whose gradients depends on another's loss
        loss = weights[0] * reconstruction.sum() + weights[1] * contrast.sum() if both else reconstruction.sum()
        update(optimizer, loss, learning_rate(cfg["lr"], step, total))
        seen += torch.stack([reconstruction.mean(), contrast.mean()]).detach()
    return (seen / steps).tolist()


def pretrain(args, engine):
    """pretrain.py -mv v2: writes the same files as v1; without steps the encoder as it was initialised."""
    cfg, model_cfg = configs.read_train_config(args), configs.read_encoder_config(args.model_version)
    device, seed, files = engine.device, cfg["seed"], files_of(args)
    refuse_flags(args)
    if commands.process_count() > 1:
        raise UserError(f"-mv {args.model_version} trains in one process: leave torchrun out")
    data, _, data_cfg = utils.load_windows(args.dataset, args.dataset_version)
    configs.check_fits(model_cfg, data_cfg)
    data_path = files.data()[0]
    train = utils.split_windows(len(data), 1, seed, cfg["split_by"])[0]
    windows = torch.tensor(np.asarray(data, dtype=np.float32)[train], device=device)
    if len(windows) < 2:
        raise UserError(f"{data_path} holds {len(data)} windows, too few to train on: add more")
    torch.manual_seed(seed)
    masked, projection = Masked(model_cfg).to(device), Projection(model_cfg).to(device)
    weights = utils.loss_weights(cfg)
    paths, made_from = [files.pretraining(part, weights) for part in ("masked", "TC")], [data_path]
    if args.model_file:
        made_from += [files.pretraining(part, weights, args.model_file) for part in ("masked", "TC")]
        for path, module in zip(made_from[1:], (masked, projection), strict=True):
            artefacts.load_state(path, module, hint=f"make it with: python pretrain.py -s {args.model_file}")
    config = {
        "dataset": args.dataset, "dataset_version": args.dataset_version, "augment_method": "physics",
        "model_version": args.model_version, "train": cfg, "mask": None, "model": model_cfg,
    }  # fmt: skip
    optimizer = make_optimizer([masked, projection], model_cfg["lr"], 0.001)
    how = engine.how(made_from)
    resume = Resume(files.pretraining("state", weights), config | how, args.restart)
    networks = {"masked": masked, "projection": projection, "optimizer": optimizer}
    step, _, history = resume.restore(networks, model_cfg["masked_steps"] + model_cfg["joint_steps"], "steps")

    total = model_cfg["masked_steps"] + model_cfg["joint_steps"]
    print(f"{args.dataset}: {len(windows)} windows for training, {total} steps on {device}"
          + ("" if total else " (masked_steps and joint_steps are 0): the encoder as it was initialised"))  # fmt: skip
    odds = torch.ones(model_cfg["members"], len(windows), device=device)
    loss_weights = (cfg["lambda1"], cfg["lambda2"])
    end = min(total, cfg["total_steps"] or total)
    with resume.guard(), tqdm(total=end, initial=step, unit="step", disable=args.quiet or not end) as bar:
        while step < end:
            until = model_cfg["masked_steps"] if step < model_cfg["masked_steps"] else end
            now = min(ROUND, until - step, end - step)  # a round has one kind of loss
            generator = seed_round(device, seed, "v2 pretraining", step)
            losses = pretrain_round(masked, projection, optimizer, windows, odds, model_cfg, loss_weights, generator,
                                    step, now)  # fmt: skip
            step += now
            if not all(map(math.isfinite, losses)):
                raise UserError(f"the loss is not finite by step {step} ({losses}); lower 'lr' of base_"
                                f"{args.model_version} in config/pretrain_model.json")  # fmt: skip
            history.append({"step": step, "train_masked": losses[0], "train_contrastive": losses[1]})
            bar.set_postfix_str("masked {:.3f} contrastive {:.3f}".format(*losses), refresh=False), bar.update(now)
            resume.after_epoch(networks, epoch=step, best={}, history=history)
        for path, module in zip(paths, (masked, projection), strict=True):
            record = artefacts.make_record(config, made_from, str(device), epochs=0, steps=step)
            artefacts.save_state(path, module.state_dict(), record)
        artefacts.save_table(files.pretraining("losses", weights), history)
    resume.finished()
    print(f"saved {paths[0]}, {paths[1]}")
    return {"paths": paths, "history": history}


def load_pretrained(args, model_cfg):
    """The masked model that stages 2a and 2b start from: (Masked, its path, its JSON's configuration)."""
    cfg = configs.read_config("config/pretrain.json", configs.PRETRAIN_KEYS, configs.DEAD_KEYS)
    files = files_of(args)
    path = str(files.checkpoint(utils.loss_weights(cfg)))
    again = f"python pretrain.py -mv {args.model_version} -d {args.dataset} -s {files.pretrained}"
    model = Masked(model_cfg)
    record = artefacts.load_record(path, {"train": dict, "model": dict})
    if record:
        artefacts.check_parents(path, record, again)
        artefacts.check_same(path, record["config"], {"model": model_cfg, "dataset": args.dataset})
    artefacts.load_state(path, model, hint=f"make it with: {again}")
    return model, path, record["config"] if record else {}


def files_of(args):
    """Where this run reads and writes."""
    return utils.Files(args.dataset, args.dataset_version, args.model_version, args.save_model, source=args.model_file)


def refuse_flags(args):
    """Raises UserError for flags that mean nothing here."""
    if getattr(args, "precision", None):
        raise UserError(f"--precision {args.precision}: -mv {args.model_version} computes in float32; leave it out")
    if args.augument_method:
        raise UserError(f"-am {args.augument_method}: -mv {args.model_version} makes no copies; its augmentation is "
                        "config/physics.json; leave -am out")  # fmt: skip


# ------------------------------------------------------------------------------------ stage 2a: representations


@torch.no_grad()
def features(encoder, windows, cfg, batch_size=512):
    """The encoder's features of raw windows (N, T, 6), yielded in batches: (n, T / 4, E * D) float32 on the CPU."""
    device = next(encoder.parameters()).device
    encoder.eval()
    for part in windows.split(batch_size):
        x = represent(part.to(device), tuple(cfg["channels"]), cfg["compression"])
        h = encoder(x[:, None].expand(-1, cfg["members"], -1, -1))
        yield h.flatten(1, 2).transpose(1, 2).contiguous().cpu()


def embed(args, engine):
    """embedding.py -mv v2: what the pretrained encoder makes of the source, for a look or another classifier.

    Stage 2b does not read it: it trains the encoder too, on windows that are augmented anew each time.
    """
    model_cfg, device = configs.read_encoder_config(args.model_version), engine.device
    files = files_of(args)
    refuse_flags(args)
    data, labels, data_cfg = utils.load_windows(args.dataset, args.dataset_version)
    configs.check_fits(model_cfg, data_cfg)
    model, checkpoint, pretrained = load_pretrained(args, model_cfg)
    windows = torch.tensor(np.asarray(data, dtype=np.float32))
    paths = files.embedding(), files.embedding("label")
    folder = f"dataset/{args.dataset}"
    made_from = [checkpoint, *(f"{folder}/{kind}_{args.dataset_version}.npy" for kind in ("data", "label"))]
    config = {
        "dataset": args.dataset, "dataset_version": args.dataset_version, "augment_method": "none", "copies": 1,
        "model_version": args.model_version, "model": model_cfg, "checkpoint": checkpoint,
        "pretrain": pretrained.get("train", {}), "epochs": 0, "seed": pretrained.get("train", {}).get("seed"),
    }  # fmt: skip
    record = artefacts.make_record(config, made_from, str(device))
    made = features(model.encoder.to(device), windows, model_cfg)
    first = next(made)
    shape = (len(windows), *first.shape[1:])
    with artefacts.npy_writer(paths[0], shape, record=record) as write:
        for part in (first, *made):
            write(part.numpy())
    every = labels.shape[1] // shape[1]  # one label for each step that pooling leaves
    artefacts.save_npy(paths[1], labels[:, : every * shape[1] : every], record)
    print(f"{shape[0]} representations of shape {shape[1:]} in {paths[0]}")
    return {"embed": paths[0], "label": paths[1], "shape": shape}


# ----------------------------------------------------------------------------------------- stage 2b: classifier


def class_odds(labels, rows, n, balanced):
    """The chances (n,) with which the labelled `rows` are drawn: each class equally often if `balanced`."""
    odds = torch.zeros(n)
    counts = np.bincount(labels[rows])
    odds[torch.as_tensor(rows)] = torch.as_tensor(1 / counts[labels[rows]] if balanced else np.ones(len(rows))).float()
    return odds


def train_round(network, mean, optimizer, windows, labels, odds, cfg, model_cfg, generator, first, steps):
    """`steps` steps from number `first` on; `mean` follows as running mean. Returns a member's mean loss, a tensor."""
    network.train()
    seen = torch.zeros((), device=windows.device)
    drawn = batches(windows, odds, model_cfg, steps, cfg["batch_size"], generator)
    for step, (index, (x,)) in enumerate(drawn, first):
        logits = network(x).transpose(0, 1)  # (E, B, K)
        loss = F.cross_entropy(logits.flatten(0, 1), labels[index].flatten())
        update(optimizer, loss * len(odds), learning_rate(cfg["lr"], step, cfg["steps"]))
        with torch.no_grad():
            keep = min(KEEP, (step + 1) / (step + 10))
            for old, new in zip(mean.parameters(), network.parameters(), strict=True):
                old.lerp_(new, 1 - keep)
        seen += loss.detach()
    for old, new in zip(mean.buffers(), network.buffers(), strict=True):
        old.copy_(new)
    return seen / steps


class Judge(nn.Module):
    """A trained network and all around it: raw windows (N, T, 6) -> logits (N, K), as predict gives them.

    In m/s^2 and rad/s; NaN in the rotation rate says that there is no gyroscope. Each tempo is a crop from the window's
    middle, replayed as if the person moved so much faster or slower; the logits are the logarithm of the mean
    probability of members and tempos. Operations that torch's exporter knows, N is free.
    """

    def __init__(self, network, cfg, model_cfg):
        super().__init__()
        self.network, self.cfg, self.model_cfg = network, cfg, model_cfg

    def probabilities(self, windows):
        """Each member's class probabilities (N, E, K), the mean over the tempos."""
        x, T, total = windows.nan_to_num(), windows.shape[1], 0
        L = min(self.model_cfg["physics"]["crop"], T)
        for tempo in self.cfg["tempos"]:
            view = x
            if tempo != 1:  # nothing is gained by leaving a part out
                start = max(0.0, (T - 1 - (L - 1) * tempo) / 2)
                view = retime(x, L, torch.full_like(x[:, :1, 0], tempo), torch.full_like(x[:, :1, 0], start))
            made = represent(view, tuple(self.model_cfg["channels"]), self.model_cfg["compression"])
            total = total + self.network(made[:, None].expand(-1, self.model_cfg["members"], -1, -1)).softmax(-1)
        return total / len(self.cfg["tempos"])

    def forward(self, windows):
        return self.probabilities(windows).mean(1).clamp(min=1e-9).log()


@torch.no_grad()
def predict(network, windows, cfg, model_cfg, batch_size=256):
    """Logits (N, K) on the CPU of raw windows (N, T, 6): the logarithm of the members' mean probability."""
    device, judge = next(network.parameters()).device, Judge(network, cfg, model_cfg).eval()
    return torch.cat([judge(part.to(device)) for part in windows.split(batch_size)]).cpu()


def validation_set(windows, cfg, generator):
    """Validation windows as channels (copies * n, 1, C, L): as they are and altered copies, drawn once."""
    copies = [augment(windows, cfg["physics"], generator) for _ in range(VALIDATION_COPIES)]
    L = copies[0].shape[1]
    middle = (windows.shape[1] - L) // 2
    x = torch.cat([windows[:, middle : middle + L], *copies])
    return represent(x, tuple(cfg["channels"]), cfg["compression"])[:, None]


@torch.no_grad()
def validate(network, x, labels, members):
    """The cross-entropy of the members' mean probability on a validation_set."""
    network.eval()
    each = [network(part.expand(-1, members, -1, -1)).softmax(-1).mean(1) for part in x.split(512)]
    return F.nll_loss(torch.cat(each).clamp(min=1e-9).log(), labels.repeat(VALIDATION_COPIES + 1)).item()


def train(args, engine):
    """classifier.py -mv v2: encoder and classifier together, on the same labelled windows as v1 picks."""
    cfg, train_cfg = configs.read_classifier_config(args.model_version), configs.read_train_config(args)
    model_cfg = configs.read_encoder_config(args.model_version)
    device, paths = engine.device, files_of(args)
    refuse_flags(args)
    seed, rate = train_cfg["seed"], 0.1 if args.label_rate is None else args.label_rate
    data, raw_labels, data_cfg = utils.load_windows(args.dataset, args.dataset_version)
    configs.check_fits(model_cfg, data_cfg)
    names = configs.label_names(data_cfg, args.label_index)[1]
    files = [f"dataset/{args.dataset}/{kind}_{args.dataset_version}.npy" for kind in ("data", "label")]
    ids = utils.window_labels(raw_labels, args.label_index, names, files[1])
    rows = [part[ids[part] >= 0] for part in utils.split_windows(len(data), 1, seed, train_cfg["split_by"])]
    if min(map(len, rows)) == 0:
        raise UserError(f"{files[1]}: {len(data)} windows are too few to train, validate and test on")
    if len(np.unique(ids[ids >= 0])) < 2:
        raise UserError(f"{files[1]}: column {args.label_index} holds a single class; nothing to classify")
    train_rows, val_rows, test_rows = rows
    labelled = utils.pick_labelled(train_rows, rate, len(data), 1, seed, train_cfg["split_by"])
    if missing := [name for i, name in enumerate(names) if i not in ids[labelled]]:
        commands.warn(f"no labelled window of {', '.join(missing)} at label rate {rate:g}, seed {seed}")
    windows = torch.tensor(np.asarray(data, dtype=np.float32), device=device)
    labels = torch.as_tensor(ids, device=device)

    pretrained, checkpoint, pretrain_config = load_pretrained(args, model_cfg)
    torch.manual_seed(seed)
    network = Network(model_cfg, cfg, len(names)).to(device)
    network.encoder.load_state_dict(pretrained.encoder.state_dict())
    mean = copy.deepcopy(network)
    optimizer = make_optimizer([network], cfg["lr"], cfg["weight_decay"])
    path = paths.classifier()
    config = {
        "dataset": args.dataset, "dataset_version": args.dataset_version, "model_version": args.model_version,
        "label_index": args.label_index, "label_rate": rate, "augment_method": "physics", "train": train_cfg,
        "model": cfg, "classes": names,
        "embedding": {"model": model_cfg, "checkpoint": checkpoint, "pretrain": pretrain_config.get("train", {})},
    }  # fmt: skip
    made_from = [*files, checkpoint]
    how = engine.how(made_from)
    resume = Resume(path.with_name(f"{path.stem}_state.pt"), config | how, args.restart)
    networks = {"network": network, "mean": mean, "optimizer": optimizer}
    step, best, history = resume.restore(networks, cfg["steps"], "steps")

    print(f"{args.dataset}: {len(labelled)} labelled of {len(train_rows)} training windows, {len(val_rows)} for "
          f"validation, {len(test_rows)} for test; {cfg['steps']} steps of {model_cfg['members']} members with "
          f"{sum(p.numel() for p in network.parameters())} parameters on {device}")  # fmt: skip
    odds = class_odds(ids, labelled, len(data), cfg["balanced"]).to(device).expand(model_cfg["members"], -1)
    val_x = validation_set(windows[val_rows], model_cfg, make_generator(device, seed, "v2 validation"))
    val_y = labels[val_rows]
    end = min(cfg["steps"], train_cfg["total_steps"] or cfg["steps"])
    with resume.guard(), tqdm(total=end, initial=step, unit="step", disable=args.quiet) as bar:
        while step < end:
            now = min(ROUND, end - step)
            generator = seed_round(device, seed, "v2 classifier", step)
            loss = train_round(network, mean, optimizer, windows, labels, odds, cfg, model_cfg, generator, step, now)
            step, loss, val_loss = step + now, loss.item(), validate(mean, val_x, val_y, model_cfg["members"])
            if not math.isfinite(loss + val_loss):
                raise UserError(f"the loss is not finite by step {step} (training {loss:.4g}, validation "
                                f"{val_loss:.4g}); lower 'lr' of transformer_{args.model_version} in "
                                "config/classifier.json")  # fmt: skip
            history.append({"step": step, "train_loss": loss, "val_loss": val_loss})
            if val_loss < best["loss"]:
                weights = {name: tensor.clone() for name, tensor in mean.state_dict().items()}
                best = {"loss": val_loss, "step": step, "network": weights}
            bar.set_postfix_str(f"loss {loss:.3f} validation {val_loss:.3f} best {best['loss']:.3f}", refresh=False)
            bar.update(now)
            resume.after_epoch(networks, epoch=step, best=best, history=history)

        mean.load_state_dict(best["network"])
        logits = predict(mean, windows[test_rows], cfg, model_cfg)
        result = scores(ids[test_rows], logits.argmax(1).numpy(), len(names))
        val_logits = predict(mean, windows[val_rows], cfg, model_cfg)
        temperature = metrics.fit_temperature(val_logits, ids[val_rows])
        result |= metrics.errors(logits, ids[test_rows], temperature)
        more = {"step": best["step"], "temperature": temperature, "source_test": result}
        artefacts.save_state(path, best["network"], artefacts.make_record(config, made_from, str(device), **more))
        artefacts.save_table(path.with_name(f"{path.stem}_losses.csv"), history)
    resume.finished()
    print(f"lowest validation loss {best['loss']:.4f} at step {best['step']}; saved {path}")
    print(report(f"{args.dataset}, test part", result, names))
    print(metrics.confidence_report(result | {"temperature": temperature}))
    return result | {"path": path, "best_step": best["step"], "names": names}


# ---------------------------------------------------------------------------------------------- stage 3: target


def load_judge(path, model_cfg, classifier_cfg, names, hint):
    """A trained classifier as a module, in eval mode: raw windows -> logits (Judge). Raises UserError."""
    network = Network(model_cfg, classifier_cfg, len(names))
    artefacts.load_state(Path(path), network, hint=hint)
    return Judge(network, classifier_cfg, model_cfg).eval()


def load_classifier(path, model_cfg, classifier_cfg, names, hint):
    """What cross_dataset_test.py needs of a trained classifier: a function from raw windows to logits on the CPU."""
    network = load_judge(path, model_cfg, classifier_cfg, names, hint).network

    def logits_of(windows, device):
        return predict(network.to(device), windows, classifier_cfg, model_cfg)

    return logits_of
