"""Raw recordings to windows: dataset/NAME/{data,label}_20_120.npy, 6 s at 20 Hz, for all four scripts.

    python dataset/prepare.py -d uci                     fetches the recordings (19 MB) into downloads/
    python dataset/prepare.py -d motion --raw FILE.zip   from the archive as distributed, or the folder it unpacks to
    python dataset/prepare.py -d sim                     a SIMULATED target domain: ten uci users; uci20: the others
    python dataset/prepare.py --look PATH                what a recording holds, and how to describe it
    python dataset/prepare.py -d NAME --raw PATH --recordings auto          your own: a known app's, or FILE.json
    python dataset/prepare.py --check NAME --figure FILE.png                looks at a prepared data set
    python dataset/prepare.py --accept NAME                                 takes it with its problems

Reads the archive in place, in memory; writes both files whole or not at all, with the set's dataset/NAME/entry.json,
and ends with the table of --check; a set with problems is used only once they are accepted. uci takes about 5 s after
the download, motion 20 s, hhar a minute.
Exit status 2 with one `error:` line if something is wrong with the input or the windows.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, this folder is there instead

from bookkeeping.commands import Parser, UserError, run, warn

BUILT_IN = ("uci", "motion", "shoaib", "hhar", "dsads", "uschad", "sim")


def get_args(argv=None):
    """Parse the flags."""
    parser = Parser(prog="prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-d", "--dataset", help=f"what to prepare: {', '.join(BUILT_IN)}, or a new name with --recordings")
    add("--raw", type=Path, help="the archive as distributed, or the folder it unpacks to (default: fetch it)")
    add("--recordings", metavar="FILE.json|auto", help="what your own recordings under --raw are; auto: a known app's")
    add(
        "--look", type=Path, metavar="PATH", help="print what a recording, folder or zip holds, and a description of it"
    )
    add("--partial", action="store_true", help="accept a built-in set with some of its files missing")
    add("--seed", type=int, help="of -d sim: who is held out, and how the other phones differ")
    add("--check", metavar="NAME", help="check a prepared data set and print its table")
    add("--accept", metavar="NAME", help="use a data set although its checks found problems, which it lists")
    add("--figure", type=Path, metavar="FILE.png", help="also draw a window per activity and the counts")
    args = parser.parse_args(argv)
    modes = {"check": args.check, "accept": args.accept, "look": args.look}
    given = [mode for mode, value in ({"d": args.dataset} | modes).items() if value is not None]
    if len(given) != 1:
        parser.error("give one of -d NAME, to prepare a data set, --check NAME, --accept NAME and --look PATH")
    name = args.dataset or args.check or args.accept or ""
    if args.look is None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        parser.error(f"{name!r} is not a plain name (letters, digits, '_', '-', '.'; no path)")
    if args.dataset is None:
        for flag in ("raw", "recordings", "partial", "seed", *(["figure"] if args.accept is not None else [])):
            if getattr(args, flag):
                parser.error(f"--{flag} does nothing with --{given[0]}")
    elif args.recordings is not None:
        if name in (*BUILT_IN, "uci20"):
            parser.error(f"-d {name} is a built-in set; give your own recordings another name")
        if args.raw is None:
            parser.error("--recordings needs --raw FOLDER, where the files lie")
        if args.partial:
            parser.error("--partial does nothing with --recordings")
    elif name == "uci20":
        parser.error("uci20 is made together with sim: python dataset/prepare.py -d sim")
    elif name not in BUILT_IN:
        parser.error(f"-d {name} is none of {', '.join(BUILT_IN)}; for your own recordings add --recordings FILE.json")
    if args.seed is not None and (name != "sim" or not 0 <= args.seed < 2**32):
        parser.error("--seed is for -d sim, and a whole number from 0 to 4294967295")
    return args


def main(args):
    """Prepare or check, print the tables; returns the Reports. Raises UserError, at the end also for problems found."""
    from dataset import store
    from dataset.check import check

    if args.look is not None:
        from dataset.look import look

        try:
            for line in look(args.look, args.figure):
                print(line)
        except UserError as error:
            raise UserError(str(error).replace("--raw", "--look")) from error
        return {}
    if args.accept is not None:
        for problem in store.accept(args.accept):
            print(f"accepted for dataset/{args.accept}: {problem}")
        return {}
    if args.check is not None:
        names = [args.check]
    elif args.recordings is not None:
        store.refuse_taken(args.dataset)
        names = prepare_recordings(args)
    else:
        names = prepare_built_in(args)
    found = {name: store.checked(name, check) for name in names}
    reports = {name: report for name, (report, _) in found.items()}
    for report in reports.values():
        print(report.text())
    if args.figure is not None:
        from dataset.figure import figure

        figure(names[0], args.figure)
        print(f"drawn: {args.figure}")
    refused = [name for name, (report, accepted) in found.items() if report.problems and not accepted]
    if refused:
        problems = sum(len(reports[name].problems) for name in refused)
        where = " and ".join(f"dataset/{name}" for name in refused)
        todo = f"mend it, or take it as it is with: python dataset/prepare.py --accept {refused[0]}"
        todo = "look before you use it" if found[refused[0]][1] is None else todo
        raise UserError(f"{problems} problem(s) found in {where}, listed above; {todo}")
    for name in names:
        if count := len(reports[name].problems):
            warn(f"{count} problem(s) found in dataset/{name}, listed above; you accepted them")
    return reports


def prepare_built_in(args):
    """Prepare one of BUILT_IN; returns the names written. Raises UserError."""
    from dataset.sources import read
    from dataset.store import save_dataset
    from dataset.windows import four_classes

    results, expected, provenance = read(args.dataset, args.raw, args.partial, args.seed)
    names = []
    for name, windows in results.items():
        windows, dropped = four_classes(windows)
        if not len(windows.data):
            raise UserError(f"-d {args.dataset}: the recordings hold no whole window of the four classes")
        if expected.get(name) not in (None, len(windows.data)) and not args.partial:
            exact, count = args.dataset in ("uci", "motion"), len(windows.data)
            trouble = f"{args.dataset}: {count} windows instead of the {expected[name]} of the published set"
            if exact:
                raise UserError(f"{trouble}: is it the original recording, and whole? (--partial takes it as it is)")
            warn(trouble)
        results[name] = windows
        names.append(name)
        left_out = ", ".join(f"{kind} {count}" for kind, count in dropped.items()) or "nothing"
        print(f"{'SIMULATED ' if name == 'sim' else ''}{name}: {len(windows.data)} windows; dropped: {left_out}")
    for name, windows in results.items():
        save_dataset(name, windows, {"command": "prepare", **provenance}, simulated=name == "sim")
    return names


def prepare_recordings(args):
    """Prepare the user's own recordings; returns the name written. Raises UserError."""
    from dataset.description import CLASSES, Layout
    from dataset.recordings import convert
    from dataset.store import save_dataset

    layout = args.recordings if args.recordings == "auto" else Layout.load(args.recordings)
    windows, notes = convert(layout, args.raw)
    for line in notes.lines():
        print(line)
    classes = CLASSES if layout == "auto" else layout.classes
    print(f"{args.dataset}: {len(windows.data)} windows{'' if windows.activity[0] else ', without labels'}")
    config = {"command": "prepare", "raw": str(args.raw), "recordings": str(args.recordings)}
    save_dataset(args.dataset, windows, config, classes=classes)
    return [args.dataset]


if __name__ == "__main__":
    run(main, get_args)
