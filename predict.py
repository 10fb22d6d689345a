"""What somebody did, from a recording of their phone or watch: activities over time, with a model already trained.

    python predict.py --raw walk.zip --recordings walk.json --out walk.csv --figure walk.png

reads   the recordings under --raw, as dataset/prepare.py --recordings does (labels may be missing); a trained model:
        the one that comes with the project (saved/ready/), or one of your own named by -mv, -d, -dv, -s and -f
writes  --out, a CSV: recording, start, end, activity, confidence, one column a class; --figure, a time line (PNG)

A window of 6 s is judged every --step seconds, none across a gap, which has a row of its own. Prints the minutes by
activity of each recording, and where the recordings are labelled the scores. A day at 50 Hz takes about a minute.
"""

import argparse
import csv
import io
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import fast
import inference
import metrics
from bookkeeping import artefacts, configs, plots
from bookkeeping.commands import Parser, UserError, a_device, a_name, a_number, a_source, run
from dataset import recordings

DRAWN = 12  # recordings, at most, in a figure


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--raw", type=Path, required=True, help="a recording, a folder of them, or a zip")
    add("--recordings", default="auto", metavar="FILE.json|auto", help="what the files are (default: a known app's)")
    add("--out", type=Path, metavar="FILE.csv", help="write the windows' activities there")
    add("--figure", type=Path, metavar="FILE.png", help="draw the time line there")
    step = a_number(float, lambda x: 1 / inference.RATE <= x <= 3600, "a number of seconds from 0.05 to 3600")
    add("--step", type=step, default=3.0, help="seconds from one window of 6 s to the next (default 3)")
    share = a_number(float, lambda x: 0 <= x <= 1, "a probability from 0 to 1")
    add("--abstain", metavar="THRESHOLD", type=share, help=f"answer {inference.UNSURE!r} below this confidence")
    add("-mv", "--model_version", type=a_name, help="of a model of your own: its entry of the model configs")
    add("-d", "--dataset", type=a_source, help="of a model of your own: what it was trained on (default uci)")
    add("-dv", "--dataset_version", type=a_name, help="likewise: rate_length of the windows (default 20_120)")
    add("-s", "--save_model", type=a_name, help="likewise: its stem (default model)")
    add("-f", "--model_file", type=a_name, help="likewise: stem of its pretrained model (default that of -s)")
    add("-g", "--gpu", type=a_device, help="index of the GPU, or cpu (default: the first GPU, else the CPU)")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    for flag, path, end in (("--out", args.out, ".csv"), ("--figure", args.figure, ".png")):
        if path and path.suffix.lower() != end:
            parser.error(f"{flag} {path}: give a file name that ends with {end}")
        if path and args.raw.resolve() in (path.resolve(), *path.resolve().parents):
            parser.error(f"{flag} {path} is in --raw, where it would be read as a recording; write it elsewhere")
    return args


def load_model(args):
    """(the Model that the flags name, what it is in words)."""
    of_data = args.dataset, args.dataset_version
    files = inference.named(*of_data, args.model_version, args.save_model, args.model_file)
    if files is None:
        model = inference.load_ready(fast.engine(args.gpu))
        return (
            model,
            f"the model that comes with the project (-mv {model.version}, {model.record['config']['dataset']})",
        )
    is_v1 = configs.method_of(files.model_version) == "v1"
    encoder = configs.read_encoder_config(files.model_version) if is_v1 else None
    return inference.load(files, fast.engine(args.gpu, encoder=encoder), args.gpu), f"{files.classifier()}"


def summary(judged, names, abstain):
    """Minutes by activity of a recording, as a line."""
    amounts = inference.minutes(judged, names, abstain)
    text = ", ".join(f"{name} {amount:.1f}" for name, amount in amounts.items())
    without = "" if judged.gyroscope.all() else " (judged without gyroscope)"
    if judged.gyroscope.any() and without:
        without = f" ({(~judged.gyroscope).sum()} of {len(judged.gyroscope)} windows judged without gyroscope)"
    return f"{judged.name}: minutes of {text}{without}"


def scores(found, model, abstain):
    """Scores over all labelled windows as text and as a dict; None where nothing is labelled."""
    temperature = model.temperature or 1.0
    labels = np.concatenate([judged.labels for judged in found])
    rows = labels >= 0
    unknown = {}
    for judged in found:
        unknown = {name: unknown.get(name, 0) + judged.unknown.get(name, 0) for name in [*unknown, *judged.unknown]}
    left_out = ", ".join(f"{name} {count}" for name, count in unknown.items())
    lines = [f"windows with labels that the model does not know, left out of the scores: {left_out}"] if unknown else []
    if not rows.any():
        return "\n".join(lines), None
    probabilities = np.concatenate([judged.probabilities for judged in found])[rows]
    result = metrics.scores(labels[rows], probabilities.argmax(1), len(model.names))
    logits = temperature * np.log(np.maximum(probabilities, 1e-30))  # up to a constant
    confidence = metrics.assess(logits, labels[rows], temperature, abstain)
    lines += [
        metrics.report("labelled windows (they overlap)", result, model.names),
        metrics.confidence_report(confidence),
    ]
    return "\n".join(lines), result | confidence


def main(args):
    for path in filter(None, (args.out, args.figure)):
        artefacts.check_writable(path)
    model, what = load_model(args)
    print(f"judged by {what}: {', '.join(model.names)}")
    if model.temperature is None:
        print("temperature 1: none is recorded beside the classifier, so that its confidence is not calibrated")
    found, drawn, text, notes = [], [], io.StringIO(), recordings.Notes()
    writer = csv.DictWriter(text, inference.columns(model.names), lineterminator="\n")
    writer.writeheader()
    with tqdm(unit="s", unit_scale=True, disable=args.quiet, desc="recorded") as bar:

        def read():
            for recording in map(inference.Recording._make, recordings.read(args.raw, args.recordings, notes)):
                if args.figure and len(drawn) < DRAWN:
                    drawn.append(envelope(recording.time, np.linalg.norm(recording.samples[:, :3], axis=1)))
                yield recording

        for judged in inference.judge(model, read(), args.step, bar.update):
            found.append(judged)
            bar.write(summary(judged, model.names, args.abstain), file=sys.stdout)
            writer.writerows(inference.table(judged, model.names, args.abstain))
    print("\n".join(notes.lines()) or "all of it was read")
    if not any(len(judged.start) for judged in found):
        raise UserError(f"--raw {args.raw}: no stretch without a gap lasts the 6 s of a window; nothing to judge")
    report, result = scores(found, model, args.abstain)
    if report:
        print(report)
    if args.out:
        with artefacts.atomic(args.out) as handle:
            handle.write(text.getvalue().encode())
        print(f"written: {args.out}")
    if args.figure:
        left = f" (the first {DRAWN} of {len(found)} recordings)" if len(found) > DRAWN else ""
        plots.save(timeline(found[:DRAWN], drawn, model.names, args.abstain), args.figure)
        print(f"drawn: {args.figure}{left}")
    return {"judged": found, "names": model.names, "scores": result}


# ------------------------------------------------------------------------------------------------- the time line

PIXELS = 1500  # pieces that a recording's length is cut into, whatever it is
TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)  # s


def envelope(time, values):
    """(edges (p + 1,), lowest (p,), highest (p,)) of `values` (n,) at `time` (n,) s in pieces of time; NaN in gaps."""
    begin, end = time[0], time[-1] + 1 / inference.RATE
    pieces = int(np.clip((end - begin) * inference.RATE / 2, 1, PIXELS))
    edges = np.linspace(begin, end, pieces + 1)
    first = np.searchsorted(time, edges[:-1])
    filled = np.diff(np.append(first, len(time))) > 0
    low, high = np.full(pieces, np.nan), np.full(pieces, np.nan)
    low[filled], high[filled] = (f.reduceat(values, first[filled]) for f in (np.minimum, np.maximum))
    after = np.flatnonzero(filled[:-1] & filled[1:])  # a piece reaches to the next one's first value: no breaks between
    follows = values[first[after + 1]]
    low[after], high[after] = np.minimum(low[after], follows), np.maximum(high[after], follows)
    return edges, low, high


def runs_of(judged, chosen):
    """Spans of neighbouring windows with the same activity: {activity: [(start, length), ...]} in seconds."""
    result = {}
    for span, activity in zip(judged.spans.tolist(), chosen, strict=True):
        mine = result.setdefault(activity, [])
        if mine and mine[-1][0] + mine[-1][1] == span[0]:
            mine[-1] = (mine[-1][0], span[1] - mine[-1][0])
        else:
            mine.append((span[0], span[1] - span[0]))
    return result


def clock(axes, dated, begin, end):
    """Ticks at whole seconds, minutes or hours from `begin` to `end` (s), and their labels."""
    step = next((tick for tick in TICKS if (end - begin) / tick <= 10), TICKS[-1] * max(1, (end - begin) // 864000))
    ticks = np.arange(np.ceil(begin / step) * step, end, step)

    def label(seconds):
        minutes, rest = divmod(int(seconds), 60)
        hours = minutes // 60 % 24 if dated else minutes // 60
        if step >= 86400 and dated:
            return inference.when(seconds, True)[5:10]
        return f"{hours}:{minutes % 60:02d}" + (f":{rest:02d}" if step < 60 else "")

    axes.set(xticks=ticks, xticklabels=[label(tick) for tick in ticks], xlim=(begin, end))
    unit = "h:min:s" if step < 60 else "h:min"
    axes.set_xlabel(f"{inference.when(begin, True)[:10]}, {unit} UTC" if dated else f"time in the recording, {unit}")


def timeline(found, drawn, names, abstain=None):
    """The figure of the recordings `found`: above the acceleration's size, below activities and their confidence.

    `drawn` are the sizes' envelopes. Ten minutes and ten hours alike take a page's width.
    """
    lanes = [*names, *([inference.UNSURE] if abstain is not None else [])]
    with plots.plt.rc_context(plots.STYLE):
        heights = [1.2, 0.26 * len(lanes), 0.7]
        figure = plots.plt.figure(figsize=(11, (sum(heights) + 1.3) * len(found)), layout="constrained")
        for part, judged, line in zip(np.atleast_1d(figure.subfigures(len(found), 1)), found, drawn, strict=True):
            three = part.subplots(3, 1, sharex=True, height_ratios=heights)
            draw_recording(three, judged, line, lanes, inference.activities(judged, names, abstain))
            if abstain is not None:
                three[2].axhline(abstain, color="0.4", linestyle=":", linewidth=1)
    return figure


def draw_recording(three, judged, line, lanes, chosen):
    """A recording on three axes, one below the other."""
    (edges, low, high), (size, bands, confidence) = line, three
    size.stairs(high, edges, baseline=low, fill=True, color="0.35")
    size.set(title=judged.name, ylabel="|a|, m/s²", ylim=(0, max(20, np.nanmax(high))))
    colours = dict(zip(lanes, plots.COLOURS * len(lanes), strict=False)) | {inference.UNSURE: "0.6"}
    for activity, spans in runs_of(judged, chosen).items():  # an edge, so that seconds in hours leave a line
        bands.broken_barh(spans, (lanes.index(activity) - 0.4, 0.8), color=colours[activity], linewidth=0.5)
    bands.set(yticks=range(len(lanes)), yticklabels=lanes, ylim=(len(lanes) - 0.5, -0.5))
    if len(judged.start):
        draw_confidence(confidence, judged.spans, judged.probabilities.max(1), edges)
    confidence.set(ylabel="confidence", ylim=(0, 1.05))
    gaps = [(start, end - start) for start, end, _ in judged.gaps]
    for axes in three:
        low, high = axes.get_ylim()
        axes.broken_barh(gaps, (low, high - low), facecolor="0.9", hatch="///", edgecolor="0.75", zorder=0, linewidth=0)
    clock(confidence, judged.dated, edges[0], edges[-1])


def draw_confidence(axes, spans, top, edges):
    """The confidence `top` (W,) of the windows' spans (W, 2); its mean in each piece where windows are more than those.

    Nothing is drawn across a gap.
    """
    if len(top) > len(edges) - 1:
        first = np.searchsorted(spans.mean(1), edges)
        count, sums = np.diff(first), np.diff(np.append(0, top.cumsum())[first])
        axes.stairs(sums / np.where(count, count, np.nan), edges, color="0.2", baseline=None)
        return
    last = np.append(spans[1:, 0] > spans[:-1, 1] + 1e-6, True)  # the last window before a gap, or of all
    places = np.flatnonzero(last) + 1
    values, times = np.insert(top, places, np.nan), np.insert(spans[:, 0], places, spans[last, 1])
    axes.stairs(values[:-1], times, color="0.2", baseline=None)


if __name__ == "__main__":
    sys.exit(run(main, get_args))
