"""Scores of predictions, scikit-learn's over all classes, and confidence that means something; how both are printed.

Confidence after Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017: temperature
scaling, expected calibration error, abstention. A window's confidence is its top probability. The temperature is fitted
on the source's validation part, never on anything of a target.

logits (N, K) and labels (N,) are arrays or tensors on any device; all is computed in float64. Logits divided by a
temperature keep their order, so no prediction changes. A model that gives probabilities itself (a random forest) has
the temperature None: its "logits" are then taken as they are.
"""

from typing import NamedTuple

import numpy as np

BINS = 15  # as Guo et al. have them
LOWEST, HIGHEST = 0.05, 20.0  # bounds of the temperature


def scores(labels, predictions, classes):
    """Accuracy, macro precision/recall/F1, micro F1 and confusion matrix (rows: true) over ids 0 .. classes - 1.

    A class that never occurs counts with 0 in the macro means (labels=range(K), zero_division=0).
    """
    # here, not above: it takes over a second, and pretrain.py, which loads this file, never scores
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


# --------------------------------------------------------------------------------------------- confidence


class Reliability(NamedTuple):
    """What lies in each bin of confidence: arrays (bins,); confidence and accuracy are 0 where a bin is empty."""

    count: np.ndarray  # windows
    confidence: np.ndarray  # their mean top probability
    accuracy: np.ndarray  # the share of them that is right


def _arrays(values, labels):
    """(values float64 (N, K), labels int64 (N,)) as NumPy arrays. Raises ValueError if they don't belong together."""
    values, labels = (x.detach().cpu().double().numpy() if hasattr(x, "detach") else x for x in (values, labels))
    values, labels = np.asarray(values, np.float64), np.asarray(labels).astype(np.int64)
    if values.ndim != 2 or labels.shape != values.shape[:1] or len(labels) == 0:
        raise ValueError(f"values of shape {values.shape} and labels of shape {labels.shape}")
    return values, labels


def _softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def fit_temperature(logits, labels):
    """The temperature T at which softmax(logits / T) has the least negative log-likelihood (Guo et al., sec. 4.2).

    In 1/T the likelihood's logarithm is concave, so that there is one minimum, where the slope crosses zero; a root
    search finds it. If it lies outside LOWEST .. HIGHEST, the nearer bound is returned. If every label has the highest
    logit, the minimum lies at T = 0: such a set cannot say how often the model errs, and T is 1, the model as trained.
    Raises ValueError for logits that are not finite, and for none.
    """
    from scipy.optimize import brentq  # as in scores

    logits, labels = _arrays(logits, labels)
    if not np.isfinite(logits).all():
        raise ValueError("logits that are not finite")
    logits = logits - logits.max(1, keepdims=True)  # (N, K), the highest 0
    own = logits[np.arange(len(labels)), labels]
    if (own == 0).all():
        return 1.0

    def slope(log_t):  # of the mean negative log-likelihood, by 1/T; falls from LOWEST to HIGHEST
        return float(((_softmax(logits / np.exp(log_t)) * logits).sum(1) - own).mean())

    low, high = np.log(LOWEST), np.log(HIGHEST)
    if slope(low) <= 0:
        return LOWEST
    if slope(high) >= 0:
        return HIGHEST
    return float(np.exp(brentq(slope, low, high, xtol=1e-10)))


def probabilities(logits, temperature=1.0):
    """softmax(logits / temperature): (N, K) -> float64 (N, K); with the temperature None the values as they are."""
    values, _ = _arrays(logits, np.zeros(len(logits)))
    return values if temperature is None else _softmax(values / temperature)


def reliability(probabilities, labels, bins=BINS):
    """Windows by confidence in `bins` bins of equal width, ((m - 1) / bins, m / bins] (Guo et al., sec. 2)."""
    probabilities, labels = _arrays(probabilities, labels)
    top = probabilities.max(1)
    which = np.digitize(top, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    count, confidence, right = (
        np.bincount(which, weights, minlength=bins) for weights in (None, top, probabilities.argmax(1) == labels)
    )
    return Reliability(count, confidence / np.maximum(count, 1), right / np.maximum(count, 1))


def ece(probabilities, labels, bins=BINS):
    """Expected calibration error: mean over windows of their bin's |accuracy - confidence| (Guo et al., eq. 3)."""
    count, confidence, accuracy = reliability(probabilities, labels, bins)
    return float((count * np.abs(accuracy - confidence)).sum() / count.sum())


def errors(logits, labels, temperature):
    """{"ece": with the temperature, "ece_uncalibrated": without}; equal for a model of probabilities (None)."""
    plain = 1.0 if temperature is not None else None
    return {
        "ece": ece(probabilities(logits, temperature), labels),
        "ece_uncalibrated": ece(probabilities(logits, plain), labels),
    }


def kept(probabilities, threshold):
    """Which windows are answered when one abstains below a threshold: (N,) bool, top probability >= threshold."""
    return np.asarray(probabilities).max(1) >= threshold


def abstention(logits, labels, temperature, threshold):
    """What abstaining below `threshold` leaves: {abstain, windows_kept, coverage, accuracy_kept, f1_macro_kept}.

    The last two are None if no window is left.
    """
    values, labels = _arrays(logits, labels)
    mask = kept(probabilities(values, temperature), threshold)
    found = scores(labels[mask], values[mask].argmax(1), values.shape[1]) if mask.any() else {}
    return {
        "abstain": threshold,
        "windows_kept": int(mask.sum()),
        "coverage": float(mask.mean()),
        "accuracy_kept": found.get("accuracy"),
        "f1_macro_kept": found.get("f1_macro"),
    }


def assess(logits, labels, temperature, threshold=None):
    """Confidence on a test set: {temperature, ece, ece_uncalibrated}, and with a threshold abstention's figures."""
    found = {"temperature": temperature} | errors(logits, labels, temperature)
    return found | (abstention(logits, labels, temperature, threshold) if threshold is not None else {})


def confidence_report(found):
    """What `assess` found as a line of text, and with a threshold a second one."""
    at = "of its own probabilities" if found["temperature"] is None else f"at temperature {found['temperature']:.3f}"
    text = f"confidence: expected calibration error {found['ece']:.4f} {at}"
    text += "" if found["temperature"] is None else f", {found['ece_uncalibrated']:.4f} without"
    if "abstain" not in found:
        return text
    text += f"\nabstaining below {found['abstain']:g}: {found['windows_kept']} windows kept, coverage "
    text += f"{found['coverage']:.4f}"
    if found["windows_kept"]:
        text += f"; accuracy {found['accuracy_kept']:.4f}  macro F1 {found['f1_macro_kept']:.4f} on them"
    return text
