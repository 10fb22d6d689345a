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

from utils import a_number, make_parser, run


def get_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--plain", action="store_true", help="the plain path instead of the fast one (same numbers)")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), help="default fp32 on a CPU (bf16 needs AMX "
                        "there), bf16 on a GPU")  # fmt: skip
    size = a_number(float, lambda x: x >= 0, "a number of gigabytes")
    parser.add_argument("--memory_gb", type=size, help="most the views may take before they are streamed (default: "
                        "most of what is free)")  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="start afresh where an interrupted run left its state")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


args = get_args() if __name__ == "__main__" else None  # before the heavy imports: --help and a typo answer at once

import functools  # noqa: E402
import itertools  # noqa: E402
import math  # noqa: E402

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import artefacts  # noqa: E402
import configs  # noqa: E402
import fast  # noqa: E402
import parallel  # noqa: E402
import utils  # noqa: E402
from augment import copy_count, draw_masks, make_generator  # noqa: E402
from batches import InMemory, copy_into, draw_epoch, open_views, section_steps  # noqa: E402
from models import Contrastive, MaskedModel  # noqa: E402
from pretrained import cloned, epoch_row, load_pretrained, save  # noqa: E402
from resume import Resume  # noqa: E402
from utils import UserError  # noqa: E402


def train_step(step_losses, model, head, optimizer, views, cfg, draw, index, total, both, average=None):
    """One update of both networks; adds the (masked, contrastive) losses to `total`, which stays on the device.

    `average` puts the mean of the gradients over the processes that train together into them.
    """
    order, masks, keep = draw.step(index)
    masked, contrastive = step_losses(model, head, views.batch(order), masks, keep, both)
    loss = cfg["lambda1"] * masked + cfg["lambda2"] * contrastive if both else masked
    optimizer.zero_grad()
    loss.backward()
    if average:
        average([p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None])
    optimizer.step()
    total += torch.stack([masked.detach(), contrastive.detach()])


@torch.no_grad()
def validate(step_losses, model, head, views, masks, batch_size, both, rank=0, size=1):
    """Mean (masked, contrastive) validation loss of networks in eval mode, with the same masks every time.

    All windows, in equal batches of at most batch_size: the contrastive loss depends on the batch's size. Of several
    processes each takes every size-th batch, from `rank` on; the mean of what they return is the loss.
    """
    n, device = len(views), next(model.parameters()).device
    total = torch.zeros(2, device=device)
    edges = [int(part[0]) for part in torch.arange(n).tensor_split(math.ceil(n / batch_size))] + [n]
    for start, stop in list(itertools.pairwise(edges))[rank::size]:
        part = torch.arange(start, stop, device=device)
        part_masks = masks.pick(torch.cat([part, part + n]))
        both_losses = step_losses(model, head, views.between(start, stop), part_masks, None, both)
        total += torch.stack(both_losses) * len(part)
    return total * size / n


def main(args):
    if args.deterministic:
        utils.set_deterministic()
    if configs.method_of(args.model_version) == "v2":
        import v2  # all of -mv v2 stands there

        return v2.pretrain(args)
    cfg = configs.read_train_config(args)
    mask_cfg = configs.read_config(args.mask_cfg, configs.MASK_KEYS, dead=("mask_alpha",))
    model_cfg = configs.read_encoder_config(args.model_version)
    processes = parallel.Processes(args.gpu)  # one, unless torchrun started more
    device = processes.device
    precision = args.precision or fast.default_precision(model_cfg, device, args.plain)
    step_losses = fast.losses_for(model_cfg, device, precision, args.plain)
    seed, method = cfg["seed"], args.augument_method or "channel_aug"
    data, _, data_cfg = utils.load_windows(args.dataset, args.dataset_version)
    configs.check_fits(model_cfg, data_cfg, mask_cfg)
    data_path = f"dataset/{args.dataset}/data_{args.dataset_version}.npy"

    # data: the rows of the augmented set, split; two views of each, drawn once (for training anew each epoch if asked)
    rows = utils.split_windows(len(data), copy_count(method), seed, cfg["split_by"])[:2]
    n, val_n = map(len, rows)
    if min(n, val_n) < 2:
        raise UserError(f"{data_path} holds {len(data)} windows, too few to train and validate on: add more")
    views, val_views = open_views(data, rows, method, seed, device, args.memory_gb)
    shape = data.shape[1:]  # (T, C)
    val_masks = draw_masks(2 * val_n, *shape, mask_cfg, make_generator(device, seed, "validation masks"))
    B = min(cfg["batch_size"], n)
    mine = processes.share(B)  # of each batch
    steps, section = n // B, section_steps(B)  # of an epoch, the last partial batch dropped; drawn at once

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
    joined_losses = functools.partial(step_losses, gather=processes.gather) if processes.size > 1 else step_losses

    # where an interrupted run of the same configuration stopped
    config = {
        "dataset": args.dataset, "dataset_version": args.dataset_version, "augment_method": method,
        "model_version": args.model_version, "train": cfg, "mask": mask_cfg, "model": model_cfg, "precision": precision,
    }  # fmt: skip
    parents = {path: artefacts.fingerprint(path) for path in made_from}
    path = "plain" if args.plain else "fast"  # a state goes on where it began: by rounding, the paths differ
    how = {"made_from": parents, "device": device.type, "path": path}
    how |= {"processes": processes.size} if processes.size > 1 else {}
    resume = Resume(f"{stem}_state_{weights}.pt", config | how, args.restart, writes=processes.first)
    processes.wait()  # until a state that must not count is gone
    first, best, history = 0, {"loss": math.inf}, []
    if state := resume.load():
        model.load_state_dict(state["model"]), head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        first, best, history = state["epoch"], state["best"], state["history"]
        print(f"continuing from {resume.path}: {first} of {cfg['n_epochs']} epochs are done")

    # what a step reads and writes stays in place, so that a step can be recorded and replayed
    draws = (
        draw for epoch in itertools.count(first)
        for draw in draw_epoch(n, B, steps, shape, mask_cfg, head, make_generator(device, seed, "epoch", epoch), mine)
    )  # fmt: skip
    draw = upcoming = next(draws)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    trained, validated = torch.zeros(2, device=device), torch.zeros(2, device=device)

    def train(both):
        average = processes.average if processes.size > 1 else None
        train_step(joined_losses, model, head, optimizer, views, cfg, draw, index, trained, both, average)
        index.add_(1)

    def evaluate(both):
        batch_size, of_all = cfg["batch_size"], (processes.rank, processes.size)
        validated.copy_(validate(step_losses, model, head, val_views, val_masks, batch_size, both, *of_all))

    if device.type == "cuda" and not args.plain:
        if processes.size == 1 or parallel.RECORD:
            train = fast.Captured(train, [model, head], optimizer, [trained, index])
        if isinstance(val_views, InMemory) and val_n <= 100 * cfg["batch_size"]:
            evaluate = fast.Captured(evaluate)

    print(f"{args.dataset}: {len(data)} windows, {n} for training and {val_n} for validation "
          f"with their copies ({method}); {steps} steps an epoch on {device}, {precision}")  # fmt: skip
    quiet = args.quiet or not processes.first
    joint = cfg["n_epochs"] - cfg["n_epochs_cl"]  # the first epoch with both losses
    with resume.guard(), tqdm(total=cfg["n_epochs"], initial=first, unit="epoch", disable=quiet) as bar:
        for epoch in range(first, cfg["n_epochs"]):
            now = min(steps, cfg["total_steps"] - epoch * steps) if cfg["total_steps"] else steps
            if now <= 0:
                break
            both = epoch >= joint
            if epoch == joint:
                best = {"loss": math.inf}  # what is saved comes from the epochs with both losses
            if cfg["views"] == "epoch" and epoch > 0:
                views.renew(seed, epoch)

            model.train(), head.train(), trained.zero_()
            for start in range(0, now, section):  # once, unless the data are many
                copy_into(draw, upcoming), index.zero_()
                for _ in views.batches(draw.order[: min(section, now - start)]):
                    train(both)
                if start + section >= now:
                    model.eval(), head.eval()
                    evaluate(both)
                with fast.aside(device):  # while a GPU is still busy with all that
                    upcoming = next(draws)

            sums = torch.cat([trained / now, validated])
            processes.average([sums])
            row = epoch_row(epoch, sums.tolist(), cfg, both)
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

    with resume.guard():  # a signal or a full disk here must not cost the run either
        record = artefacts.make_record(config, made_from, str(device), epoch=best["epoch"], epochs=len(history))
        paths = save(stem, weights, best, history, record, processes.first)
    resume.finished()
    del train, evaluate  # recorded collectives go before their processes part
    processes.leave()
    print(f"lowest validation loss {best['loss']:.4f} in epoch {best['epoch']}; saved {paths[0]}, {paths[1]}")
    return {"paths": paths, "best_loss": best["loss"], "best_epoch": best["epoch"], "history": history}


if __name__ == "__main__":
    sys.exit(run(main, args))
