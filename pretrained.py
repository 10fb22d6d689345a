"""What pretraining leaves behind, and how it is read back: two checkpoints, and every epoch's losses as a table."""

import math

import artefacts
from models import DEAD_MASKED
from utils import UserError


def save(stem, weights, best, history, record, write):
    """Write the best epoch's masked model and contrastive head, and every epoch's losses.

    Returns the models' paths; of several processes one may `write`.
    """
    paths = [f"{stem}_masked_{weights}.pt", f"{stem}_TC_{weights}.pt"]
    if write:
        artefacts.save_state(paths[0], best["model"], record)
        artefacts.save_state(paths[1], best["head"], record)
        artefacts.save_table(f"{stem}_losses_{weights}.csv", history)
    return paths


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
