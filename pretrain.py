"""Stage 1: hierarchical self-supervised pretraining on the source data set's windows, without labels.

    python pretrain.py -d uci

reads   dataset/uci/{data,label}_20_120.npy (python dataset/prepare.py -d uci makes them)
writes  saved/pretrain_base_uci_20_120/model_masked_6_1.pt   the masked model: encoder and reconstruction head
        saved/pretrain_base_uci_20_120/model_TC_6_1.pt       the contrastive head
        a JSON beside each, and model_losses_6_1.csv with every epoch's losses

The first epochs minimise the masked loss alone, the last n_epochs_cl epochs lambda1 * masked + lambda2 * contrastive;
the epoch with the lowest validation loss of that second part is saved. Interrupted, the same command continues.
"""

import sys

from utils import make_parser, run


def get_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--plain", action="store_true", help="the plain path instead of the fast one (same numbers)")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), help="default fp32 on a CPU, tf32 on a GPU")
    parser.add_argument("--restart", action="store_true", help="start afresh where an interrupted run left its state")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


args = get_args() if __name__ == "__main__" else None  # before the heavy imports: --help and a typo answer at once

import math  # noqa: E402
from typing import NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import artefacts  # noqa: E402
import fast  # noqa: E402
import utils  # noqa: E402
from augment import Masks, augment_copies, copy_count, draw_masks, make_generator, two_views  # noqa: E402
from models import DEAD_MASKED, Contrastive, MaskedModel, draw_keep, losses  # noqa: E402
from resume import Resume  # noqa: E402
from utils import UserError  # noqa: E402


class Draw(NamedTuple):
    """Everything random of an epoch, one row a step."""

    order: torch.Tensor  # (steps, B) int64: the windows of a step
    masks: Masks  # of its 2B visits, first the weak views, then the strong ones
    keep: dict  # the class token's dropout factors at those visits

    def step(self, index):
        """What step `index`, a (1,) tensor on the device, uses: no number goes to the host and back."""
        order, masks, keep = self
        at = lambda part: part.index_select(0, index)[0] if part.numel() else part  # noqa: E731
        return at(order), Masks(*map(at, masks)), {name: at(part) for name, part in keep.items()}


def draw_epoch(n, B, steps, shape, mask_cfg, head, generator):
    """Draw an epoch's randomness in one batched call: n training windows of `shape` (T, C), `steps` batches of B."""
    order = torch.randperm(n, generator=generator, device=generator.device)[: steps * B].view(steps, B)
    masks = draw_masks(steps * 2 * B, *shape, mask_cfg, generator)
    keep = draw_keep(steps * 2 * B, head.seq_transformer.c_token.shape[-1], head.P_FF, generator)
    rows = lambda part: part.unflatten(0, (steps, 2 * B)) if part.numel() else part  # noqa: E731
    return Draw(order, Masks(*map(rows, masks)), {name: rows(part) for name, part in keep.items()})


def copy_into(static, new):
    """Copy a Draw's tensors into another's, which stay where they are: a recorded step reads them there."""
    pairs = [(static.order, new.order), *zip(static.masks, new.masks, strict=True)]
    for old, fresh in pairs + [(static.keep[name], new.keep[name]) for name in new.keep]:
        old.copy_(fresh)


def train_step(step_losses, model, head, optimizer, views, cfg, draw, index, total, both):
    """One update of both networks; adds the (masked, contrastive) losses to `total`, which stays on the device."""
    order, masks, keep = draw.step(index)
    masked, contrastive = step_losses(model, head, views.index_select(1, order), masks, keep, both)
    loss = cfg["lambda1"] * masked + cfg["lambda2"] * contrastive if both else masked
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    total += torch.stack([masked.detach(), contrastive.detach()])


@torch.no_grad()
def validate(step_losses, model, head, views, masks, batch_size, both):
    """Mean (masked, contrastive) validation loss of networks in eval mode, with the same masks every time.

    All windows, in equal batches of at most batch_size: the contrastive loss depends on the batch's size.
    """
    n = views.shape[1]
    total = torch.zeros(2, device=views.device)
    for part in torch.arange(n, device=views.device).tensor_split(math.ceil(n / batch_size)):
        both_views = torch.cat([part, part + n])
        total += torch.stack(step_losses(model, head, views[:, part], masks.pick(both_views), None, both)) * len(part)
    return total / n


def main(args):
    if args.deterministic:
        utils.set_deterministic()
    if utils.method_of(args.model_version) == "v2":
        import v2  # all of -mv v2 stands there

        return v2.pretrain(args)
    cfg = utils.read_train_config(args)
    mask_cfg = utils.read_config(args.mask_cfg, utils.MASK_KEYS, dead=("mask_alpha",))
    model_cfg = utils.read_encoder_config(args.model_version)
    device = utils.pick_device(args.gpu)
    seed, method = cfg["seed"], args.augument_method or "channel_aug"
    data, _, data_cfg = utils.load_windows(args.dataset, args.dataset_version)
    utils.check_fits(model_cfg, data_cfg, mask_cfg)
    data_path = f"dataset/{args.dataset}/data_{args.dataset_version}.npy"

    # data: the augmented set, split; two views of every window, drawn once (and for training anew each epoch if asked)
    windows = augment_copies(torch.tensor(np.asarray(data, dtype=np.float32), device=device), method, seed)
    rows = utils.split_windows(len(data), copy_count(method), seed, cfg["split_by"])
    windows, val_windows = (windows[torch.as_tensor(part, device=device)] for part in rows[:2])
    if min(len(windows), len(val_windows)) < 2:
        raise UserError(f"{data_path} holds {len(data)} windows, too few to train and validate on: add more")
    views = two_views(windows, make_generator(device, seed, "views"))
    val_views = two_views(val_windows, make_generator(device, seed, "validation views"))
    shape = views.shape[2:]  # (T, C)
    val_masks = draw_masks(2 * len(val_windows), *shape, mask_cfg, make_generator(device, seed, "validation masks"))
    B = min(cfg["batch_size"], len(windows))
    steps = len(windows) // B  # the last partial batch is dropped

    # networks and optimiser: one Adam for both; it skips the head until that has gradients
    torch.manual_seed(seed)
    model, head = MaskedModel(model_cfg).to(device), Contrastive(model_cfg["hidden"]).to(device)
    weights, stem = utils.loss_weights(cfg), utils.pretrain_stem(args, args.save_model)
    made_from = [data_path]
    if args.model_file:
        made_from += load_pretrained(utils.pretrain_stem(args, args.model_file), weights, model, head)
    optimizer = torch.optim.Adam(
        [*model.parameters(), *head.parameters()], lr=cfg["lr"], fused=True, capturable=device.type == "cuda"
    )
    precision = args.precision or ("fp32" if device.type == "cpu" or args.plain else "tf32")
    step_losses = losses if args.plain else fast.losses_for(model_cfg, device, precision)

    # where an interrupted run of the same configuration stopped
    config = {
        "dataset": args.dataset, "dataset_version": args.dataset_version, "augment_method": method,
        "model_version": args.model_version, "train": cfg, "mask": mask_cfg, "model": model_cfg, "precision": precision,
    }  # fmt: skip
    parents = {path: artefacts.fingerprint(path) for path in made_from}
    path = "plain" if args.plain else "fast"  # a state goes on where it began: by rounding, the paths differ
    how = {"made_from": parents, "device": device.type, "path": path}
    resume = Resume(f"{stem}_state_{weights}.pt", config | how, args.restart)
    first, best, history = 0, {"loss": math.inf}, []
    if state := resume.load():
        model.load_state_dict(state["model"]), head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        first, best, history = state["epoch"], state["best"], state["history"]
        print(f"continuing from {resume.path}: {first} of {cfg['n_epochs']} epochs are done")

    # what a step reads and writes stays in place, so that a step can be recorded and replayed
    def draw_of(epoch):
        return draw_epoch(len(windows), B, steps, shape, mask_cfg, head, make_generator(device, seed, "epoch", epoch))

    draw, index = draw_of(first), torch.zeros(1, dtype=torch.int64, device=device)
    upcoming = draw
    trained, validated = torch.zeros(2, device=device), torch.zeros(2, device=device)

    def train(both):
        train_step(step_losses, model, head, optimizer, views, cfg, draw, index, trained, both)
        index.add_(1)

    def evaluate(both):
        validated.copy_(validate(step_losses, model, head, val_views, val_masks, cfg["batch_size"], both))

    if device.type == "cuda" and not args.plain:
        train = fast.Captured(train, [model, head], optimizer, [trained, index])
        evaluate = fast.Captured(evaluate)

    print(f"{args.dataset}: {len(data)} windows, {len(windows)} for training and {len(val_windows)} for validation "
          f"with their copies ({method}); {steps} steps an epoch on {device}, {precision}")  # fmt: skip
    joint = cfg["n_epochs"] - cfg["n_epochs_cl"]  # the first epoch with both losses
    with resume.guard(), tqdm(total=cfg["n_epochs"], initial=first, unit="epoch", disable=args.quiet) as bar:
        for epoch in range(first, cfg["n_epochs"]):
            now = min(steps, cfg["total_steps"] - epoch * steps) if cfg["total_steps"] else steps
            if now <= 0:
                break
            both = epoch >= joint
            if epoch == joint:
                best = {"loss": math.inf}  # what is saved comes from the epochs with both losses
            copy_into(draw, upcoming)
            if cfg["views"] == "epoch" and epoch > 0:
                views.copy_(two_views(windows, make_generator(device, seed, "views", epoch)))

            model.train(), head.train(), trained.zero_(), index.zero_()
            for _ in range(now):
                train(both)
            model.eval(), head.eval()
            evaluate(both)
            with fast.aside(device):  # while a GPU is still busy with all that
                upcoming = draw_of(epoch + 1)

            row = epoch_row(epoch, torch.cat([trained / now, validated]).tolist(), cfg, both)
            history.append(row)
            if row["val_loss"] < best["loss"]:
                best = {"loss": row["val_loss"], "epoch": epoch + 1, "model": cloned(model), "head": cloned(head)}
            bar.set_postfix_str(f"masked {row['train_masked']:.3f} contrastive {row['train_contrastive']:.3f} "
                                f"validation {row['val_loss']:.3f} best {best['loss']:.3f}", refresh=False)  # fmt: skip
            bar.update()
            resume.after_epoch(lambda epoch=epoch, best=best: {
                "model": model.state_dict(), "head": head.state_dict(), "optimizer": optimizer.state_dict(),
                "epoch": epoch + 1, "best": best, "history": history,
            })  # fmt: skip

    paths = [f"{stem}_masked_{weights}.pt", f"{stem}_TC_{weights}.pt"]
    with resume.guard():  # a signal or a full disk here must not cost the run either
        for path, part in zip(paths, ("model", "head"), strict=True):
            record = artefacts.make_record(config, made_from, str(device), epoch=best["epoch"], epochs=len(history))
            artefacts.save_state(path, best[part], record)
        artefacts.save_table(f"{stem}_losses_{weights}.csv", history)
    resume.finished()
    print(f"lowest validation loss {best['loss']:.4f} in epoch {best['epoch']}; saved {paths[0]}, {paths[1]}")
    return {"paths": paths, "best_loss": best["loss"], "best_epoch": best["epoch"], "history": history}


def epoch_row(epoch, values, cfg, both):
    """An epoch's losses as a row of the CSV. Raises UserError if one is not finite."""
    row = dict(zip(("train_masked", "train_contrastive", "val_masked", "val_contrastive"), values, strict=True))
    if not all(map(math.isfinite, values)):
        terms = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
        raise UserError(f"the loss is not finite in epoch {epoch + 1} ({terms}); lower 'lr' in the -t config")
    joint = cfg["lambda1"] * row["val_masked"] + cfg["lambda2"] * row["val_contrastive"]
    return {"epoch": epoch + 1, **row, "val_loss": joint if both else row["val_masked"]}


def cloned(module):
    """A copy of a network's state, which further training does not touch."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def load_pretrained(stem, weights, model, head=None):
    """Load the masked model, and the contrastive head if given, from STEM_{masked,TC}_6_1.pt; returns the paths."""
    hint = f"make it with: python pretrain.py -s {stem.name}"
    paths = [f"{stem}_masked_{weights}.pt"]
    artefacts.load_state(paths[0], model, DEAD_MASKED, hint)
    if head is not None:
        names = [f"{stem}_{name}_{weights}.pt" for name in ("TC", "Contrastive")]  # ours, else the released code's
        paths += [next((name for name in names if artefacts.Path(name).exists()), names[0])]
        artefacts.load_state(paths[1], head, hint=hint)
    return paths


if __name__ == "__main__":
    sys.exit(run(main, args))
