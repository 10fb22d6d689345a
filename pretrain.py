"""Stage 1: hierarchical self-supervised pretraining on the source data set's windows, without labels.

    python pretrain.py -d uci

reads   dataset/uci/{data,label}_20_120.npy (python dataset/prepare.py -d uci makes them)
writes  saved/pretrain_base_uci_20_120/model_masked_6_1.pt   the masked model: encoder and reconstruction head
        saved/pretrain_base_uci_20_120/model_TC_6_1.pt       the contrastive head
        a JSON beside each, and model_losses_6_1.csv with every epoch's losses

The first epochs minimise the masked loss alone, the last n_epochs_cl epochs lambda1 * masked + lambda2 * contrastive;
the epoch with the lowest validation loss of that second part is saved. Interrupted, the same command continues.
"""

import itertools
import math
import sys

import numpy as np
import torch
from tqdm import tqdm

import fast
import utils
from augment import copy_count, draw_masks, make_generator
from batches import Draws, InMemory, open_views
from bookkeeping import artefacts, configs
from bookkeeping.commands import UserError, a_number, again, make_parser, run
from bookkeeping.resume import Resume
from bookkeeping.stems import replacing
from models import DEAD_MASKED, Contrastive, MaskedModel, losses


def get_args(argv=None):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--plain", action="store_true", help="the plain path instead of the fast one (same numbers)")
    kinds = "default fp32 on a CPU (bf16 needs AMX there), bf16 on a GPU"
    add("--precision", choices=("fp32", "tf32", "bf16"), help=kinds)
    size = a_number(float, lambda x: x >= 0, "a number of gigabytes")
    most = "most the views may take before they are streamed (default: most of what is free)"
    add("--memory_gb", type=size, help=most)
    add("--restart", action="store_true", help="start afresh where a run left its state")
    add("--quiet", action="store_true", help="no progress bar")
    return configs.parse(parser, argv)


def load_views(args, config, engine):
    """(windows, their shape, rows of each source, two views of each row for training, the same for validation)."""
    data, _, data_cfg = utils.load_windows(args.dataset, args.dataset_version)
    configs.check_fits(config["model"], data_cfg, config["mask"])
    utils.check_gravity(args.dataset, args.dataset_version, data)
    cfg, method = config["train"], config["augment_method"]
    counts = utils.counts_of(args.dataset, args.dataset_version)
    rows = list(utils.split_sources(counts, copy_count(method), cfg["seed"], cfg["split_by"]))
    if min(len(part) for source in rows for part in source[:2]) < 2:
        few = f"{args.dataset} has {' and '.join(map(str, counts))} windows"
        raise UserError(f"dataset/{few}, too few to train and validate on: add more")
    parts = [np.concatenate(part) for part in list(zip(*rows, strict=True))[:2]]
    views = open_views(engine, data, parts, method, cfg["seed"], args.memory_gb)
    return len(data), data.shape[1:], [len(train) for train, _, _ in rows], *views


def make_networks(files, config, device, repeat):
    """The two networks and their optimiser, from scratch or from the model of -f; and the paths that they come from.

    One Adam for both, which skips the head until that has gradients; `repeat` is the command that makes that model.
    """
    cfg, model_cfg, made_from = config["train"], config["model"], files.data()
    torch.manual_seed(cfg["seed"])
    model, head = MaskedModel(model_cfg).to(device), Contrastive(model_cfg["hidden"]).to(device)
    if files.source:
        sources = len(made_from)
        weights, hint = utils.loss_weights(cfg), f"make it with: {repeat}"
        names = [files.pretraining(part, weights, files.source) for part in ("masked", "TC", "Contrastive")]
        made_from += [names[0], names[2 if names[2].exists() and not names[1].exists() else 1]]  # the released name
        artefacts.load_state(made_from[sources], model, DEAD_MASKED, hint)
        artefacts.load_state(made_from[sources + 1], head, hint=hint)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = utils.Adam(parameters, lr=cfg["lr"], fused=True, capturable=device.type == "cuda")
    return {"model": model, "head": head, "optimizer": optimizer}, made_from


def train_step(engine, networks, views, draws, cfg, both):
    """One update of both networks; returns their (masked, contrastive) losses, which stay on the device."""
    model, head, optimizer = networks.values()
    order, masks, keep = draws.step()
    masked, contrastive = losses(engine, model, head, views.batch(order), masks, keep, both, engine.team.gather)
    loss = cfg["lambda1"] * masked + cfg["lambda2"] * contrastive if both else masked
    optimizer.zero_grad()
    loss.backward()
    engine.team.average([p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None])
    optimizer.step()
    return torch.stack([masked.detach(), contrastive.detach()])


@torch.no_grad()
def validate(engine, networks, views, masks, batch_size, both):
    """Mean (masked, contrastive) validation loss of networks in eval mode, with the same masks every time.

    All windows, in equal batches of at most batch_size: the contrastive loss depends on the batch's size. Of several
    processes each takes every size-th batch, from its rank on; the mean of what they return is the loss.
    """
    n, team, total = len(views), engine.team, torch.zeros(2, device=engine.device)
    edges = [int(part[0]) for part in torch.arange(n).tensor_split(math.ceil(n / batch_size))] + [n]
    for start, stop in list(itertools.pairwise(edges))[team.rank :: team.size]:
        part = torch.arange(start, stop, device=engine.device)
        part_masks = masks.pick(torch.cat([part, part + n]))
        model, head, _ = networks.values()
        found = losses(engine, model, head, views.between(start, stop), part_masks, None, both)
        total += torch.stack(found) * len(part)
    return total * team.size / n


def recorded(engine, networks, views, val_views, draws, config):
    """(step(both), check(both), the sums they leave): what they read and write stays in place, so a GPU replays it."""
    cfg, (T, C) = config["train"], draws.shape
    generator = make_generator(engine.device, cfg["seed"], "validation masks")
    masks = draw_masks(2 * len(val_views), T, C, config["mask"], generator, engine.add_spans)
    trained, validated = torch.zeros(2, device=engine.device), torch.zeros(2, device=engine.device)

    def step(both):
        trained.add_(train_step(engine, networks, views, draws, cfg, both))

    def check(both):
        validated.copy_(validate(engine, networks, val_views, masks, cfg["batch_size"], both))

    model, head, optimizer = networks.values()
    step = engine.recorded(step, [model, head], optimizer, [trained, draws.index])
    if isinstance(val_views, InMemory) and len(val_views) <= 100 * cfg["batch_size"]:
        check = engine.recorded(check)
    return step, check, (trained, validated)


def epoch_row(epoch, values, cfg, both):
    """An epoch's losses as a row of the CSV. Raises UserError if one is not finite."""
    row = dict(zip(("train_masked", "train_contrastive", "val_masked", "val_contrastive"), values, strict=True))
    if not all(map(math.isfinite, values)):
        terms = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
        raise UserError(f"the loss is not finite in epoch {epoch + 1} ({terms}); lower 'lr' in the -t config")
    joint = cfg["lambda1"] * row["val_masked"] + cfg["lambda2"] * row["val_contrastive"]
    return {"epoch": epoch + 1, **row, "val_loss": joint if both else row["val_masked"]}


def save(files, best, history, record, weights):
    """Write the best epoch's masked model and contrastive head, and every epoch's losses; returns the models' paths."""
    paths = [files.pretraining(part, weights) for part in ("masked", "TC")]
    artefacts.save_state(paths[0], best["model"], record)
    artefacts.save_state(paths[1], best["head"], record)
    artefacts.save_table(files.pretraining("losses", weights), history)
    return paths


def main(args):
    configs.refuse_v2(args)
    config = configs.read_pretraining(args)
    weights = utils.loss_weights(config["train"])
    flags = {"precision": args.precision, "plain": args.plain}
    engine = fast.engine(args.gpu, args.deterministic, encoder=config["model"], training=True, on_gpu="bf16", **flags)
    team, config["precision"] = engine.team, engine.precision
    if engine.note:
        print(engine.note)
    files = utils.Files(args.dataset, args.dataset_version, args.model_version, args.save_model, source=args.model_file)
    with replacing(files.pretraining("masked", weights), config, args.restart, team.first):
        return fit(args, engine, files, config)


def fit(args, engine, files, config):
    """Train as `config` says (main), and save."""
    cfg, weights, team = config["train"], utils.loss_weights(config["train"]), engine.team
    count, shape, sizes, views, val_views = load_views(args, config, engine)
    networks, made_from = make_networks(files, config, engine.device, again("pretrain", vars(args)))
    model, head, _ = networks.values()
    draws = Draws(engine, sizes, shape, config, head)

    resume = Resume(files.pretraining("state", weights), config | engine.how(made_from), args.restart, team.first)
    team.wait()  # until a state that must not count is gone
    first, best, history = resume.restore(networks, cfg["n_epochs"])
    draws.start(first)
    step, check, found = recorded(engine, networks, views, val_views, draws, config)

    parts = f"{len(views)} for training and {len(val_views)} for validation with their copies"
    where = f"{draws.steps} steps an epoch on {engine.device}, {engine.precision}"
    print(f"{args.dataset}: {count} windows, {parts} ({config['augment_method']}); {where}")
    joint = cfg["n_epochs"] - cfg["n_epochs_cl"]  # the first epoch with both losses
    bar = tqdm(total=cfg["n_epochs"], initial=first, unit="epoch", disable=args.quiet or not team.first)
    with resume.guard(), bar:
        for epoch in range(first, cfg["n_epochs"]):
            steps = min(draws.steps, cfg["total_steps"] - epoch * draws.steps) if cfg["total_steps"] else draws.steps
            if steps <= 0:
                break
            both = epoch >= joint
            if epoch == joint:
                best = {"loss": math.inf}  # what is saved comes from the epochs with both losses
            if cfg["views"] == "epoch" and epoch > 0:
                views.renew(cfg["seed"], epoch)

            model.train(), head.train(), found[0].zero_()
            for order in draws.epoch(steps):  # once, unless the data are many
                for _ in views.batches(order):
                    step(both)
            model.eval(), head.eval()
            check(both)
            draws.ahead()  # while a GPU is still busy with all that

            sums = torch.cat([found[0] / steps, found[1]])
            team.average([sums])
            row = epoch_row(epoch, sums.tolist(), cfg, both)
            history.append(row)
            if row["val_loss"] < best["loss"]:
                best = {"loss": row["val_loss"], "epoch": epoch + 1, **artefacts.states(model=model, head=head)}
            text = "masked {train_masked:.3f} contrastive {train_contrastive:.3f} validation {val_loss:.3f}"
            bar.set_postfix_str(f"{text.format(**row)} best {best['loss']:.3f}", refresh=False)
            bar.update()
            resume.after_epoch(networks, epoch=epoch + 1, best=best, history=history)

        record = artefacts.make_record(config, made_from, str(engine.device), epoch=best["epoch"], epochs=len(history))
        paths = save(files, best, history, record, weights) if team.first else []
    resume.finished()
    del step, check  # recorded collectives go before their processes part
    team.leave()
    print(f"lowest validation loss {best['loss']:.4f} in epoch {best['epoch']}; saved", ", ".join(map(str, paths)))
    return {"paths": paths, "best_loss": best["loss"], "best_epoch": best["epoch"], "history": history}


if __name__ == "__main__":
    sys.exit(run(main, get_args, several=True))
