"""How the project's figures look: colours, sizes, and saving one."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from bookkeeping import artefacts

matplotlib.use("Agg")  # no display is needed, nor looked for

# Okabe and Ito's colours, told apart by colour-blind readers too
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
STYLE = {
    "figure.dpi": 150,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
}


def save(figure, path, **about):
    """Write a figure as PNG, atomically, and close it; `about` is text kept in the file. Returns the path."""
    with artefacts.atomic(path) as handle:
        figure.savefig(handle, format="png", metadata=about)
    plt.close(figure)
    return Path(path)
