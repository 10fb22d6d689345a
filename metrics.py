"""Scores of predictions, scikit-learn's over all classes of the data set, and how they are printed."""

import numpy as np


def scores(labels, predictions, classes):
    """Accuracy, macro precision/recall/F1, micro F1 and confusion matrix (rows: true) over ids 0 .. classes - 1.

    A class that never occurs counts with 0 in the macro means (labels=range(K), zero_division=0).
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    ids = range(classes)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predictions, labels=ids, average="macro", zero_division=0
    )
    return {
        "windows": len(labels),
        "accuracy": float(accuracy_score(labels, predictions)),
        "precision_macro": float(precision),
        "recall_macro": float(recall),
        "f1_macro": float(f1),
        "f1_micro": float(f1_score(labels, predictions, labels=ids, average="micro", zero_division=0)),
        "confusion": confusion_matrix(labels, predictions, labels=ids).tolist(),
        "majority": float(np.bincount(labels, minlength=classes).max() / len(labels)),
    }


def report(title, result, names):
    """The scores as text: one line of figures, then the confusion matrix with the classes' names."""
    lines = [
        f"{title}: {result['windows']} windows",
        f"accuracy {result['accuracy']:.4f}  macro precision {result['precision_macro']:.4f}  "
        f"macro recall {result['recall_macro']:.4f}  macro F1 {result['f1_macro']:.4f}  "
        f"micro F1 {result['f1_micro']:.4f}  (majority class {result['majority']:.4f})",
    ]
    width = max(10, *(len(name) for name in names)) + 2
    lines.append("true \\ predicted".ljust(width + 2) + "".join(name.rjust(width) for name in names))
    for name, row in zip(names, result["confusion"], strict=True):
        lines.append(f"  {name}".ljust(width + 2) + "".join(str(count).rjust(width) for count in row))
    return "\n".join(lines)


def spread(values):
    """`0.741 ± 0.012`: mean and sample standard deviation; the mean alone of a single run, a dash of none (None)."""
    if values is None:
        return "–"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")
