"""The paper's tables and figures: every source -> target pair, seed and variant, from one command.

    python reproduce.py                         all ordered pairs of the data sets that are prepared, 3 seeds
    python reproduce.py --variants all          and every ablation and baseline of config/variants.json
    python reproduce.py --variants all_v2       likewise of version v2
    python reproduce.py --leave_one_out         each prepared set the target of all others: v1, v2, forest, CNN
    python reproduce.py --table                 the tables of what was run last, nothing is run; --figures likewise
    python reproduce.py --table --variants v2   of the last run with these flags

reads   dataset/NAME/{data,label}_20_120.npy
writes  what the four scripts write, under stems like full_s3431 (variant and seed); saved/results.csv;
        results/table_full.{txt,md,tex,csv}, results/KIND_full_SOURCE_TARGET.png (`full`: the variants and all other
        flags that make it another grid); results/logs/JOB.log

It calls the four scripts (--commands prints their command lines), each source pretrained once a seed and tested on all
targets. A row that is in saved/results.csv is not run again, and a run that was stopped continues. An embedding is
removed when its classifiers are trained.
"""

import argparse
import sys

import torch

import utils
from bookkeeping import artefacts, configs, ledger
from bookkeeping.commands import Parser, UserError, a_device, a_name, a_number, a_source, run
from experiments import figures, jobs, table
from experiments.grid import RATE, Grid, as_argv, command_of, prepared, read_variants, record_run, recorded_runs

# the flags that say which grid it is; the others say how it is run and shown
GRID = ("leave_one_out", "variants", "sources", "targets", "seeds", "first_seed", "classifier_seeds", "label_rates")
GRID += ("epochs", "classifier_epochs", "dataset_version", "label_index", "no_gyroscope")


def _epochs(text):
    """An argparse type: N, or SOURCE=N; gives (source or None, N)."""
    source, _, number = text.rpartition("=")
    count = a_number(int, lambda n: n > 0, "a number of epochs, or SOURCE=N")
    return a_source(source) if source else None, count(number)


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    whole = a_number(int, lambda n: n > 0, "a whole number from 1")
    rate = a_number(float, lambda x: 0 < x <= 1, "a share above 0 and up to 1")
    add("--sources", nargs="+", type=a_source, help="source data sets, several at once as uci,motion (default: all)")
    add("--targets", nargs="+", type=a_name, help="target data sets (default: those prepared)")
    add("--variants", nargs="+", type=a_name, help="of config/variants.json, or all, or all_v2 (default full)")
    add("--seeds", type=whole, default=3, help="how many seeds, each for pretraining and classifier (default 3)")
    add("--first_seed", type=a_number(int, lambda n: n >= 0, "a seed"), default=3431, help="default 3431")
    add("--classifier_seeds", type=whole, help="this many classifier seeds for every pretrained model")
    add("--label_rates", nargs="+", type=rate, default=[RATE], help="shares of the labels that are seen (default 0.1)")
    add("--epochs", nargs="+", type=_epochs, default=[], help="pretraining epochs, half and half: N, or SOURCE=N ...")
    add("--classifier_epochs", type=whole, help="default: those of config/train.json")
    add("-dv", "--dataset_version", type=a_name, default="20_120", help="rate_length of the windows (default 20_120)")
    column = a_number(int, lambda n: n >= 0, "a column's index")
    add("-l", "--label_index", type=column, default=0, help="label column")
    add("-g", "--gpus", nargs="+", type=a_device, help="GPUs to use, or cpu (default: all GPUs, else the CPU)")
    jobs = a_number(int, lambda n: n >= 0, "a whole number")
    add("--jobs", type=jobs, default=1, help="jobs side by side on each GPU, or on the CPU; 0: in this process")
    add("--leave_one_out", action="store_true", help="each set of --targets the target of all the others")
    add("--no_gyroscope", action="store_true", help="test v2 on every target without its gyroscope, too")
    add("--table", action="store_true", help="only the tables: of the last run, or the last one with these flags")
    add("--figures", action="store_true", help="only the figures, likewise")
    add("--no_figures", action="store_true", help="run and print the tables without drawing figures")
    add("--projection", choices=("tsne", "pca"), default="tsne", help="of the representations' picture (default tsne)")
    add("--commands", action="store_true", help="print the scripts' command lines of the whole grid; nothing is run")
    add("--keep_embeddings", action="store_true", help="don't remove them after their classifiers are trained")
    add("--restart", action="store_true", help="start afresh where an interrupted training left its state")
    add("--only", metavar="JOB", help="run this one job (uci_full_s3431) in this process, no table; for a batch system")
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    args.runs = None  # of rows that were made without this script; else the seeds say all
    return args


def grid_flags(args):
    """The flags that make it another grid than one without any, as text: {"label_rates": ["0.1", "1"]}."""
    usual, found = vars(get_args([])), {}
    for flag in GRID:
        value = getattr(args, flag)
        if value != usual[flag]:
            values = [] if value is True else value if isinstance(value, list) else [value]
            found[flag] = [as_text(part) for part in values]
    return found


def as_text(value):
    """A flag's value as one types it: uci=16 of ("uci", 16), 1 of 1.0."""
    return "=".join(str(part) for part in value if part) if isinstance(value, tuple) else str(value).removesuffix(".0")


def as_it_was_run(args):
    """The flags for --table and --figures, with those of the run that they ask for: the last one that had them.

    A run with just these goes first. Flags that no run had are a grid by themselves. Without flags and without a run,
    as after a shell loop, it is the rows that are there, of whatever variants, label rates and seeds.
    """
    asked, runs = grid_flags(args), recorded_runs()
    fitting = [run for run in runs if asked and run == asked]
    fitting += [run for run in runs if all(run.get(flag) == values for flag, values in asked.items())]
    if fitting:
        others = [command_of(run) for run in runs if run != fitting[0]]
        print(command_of(fitting[0]) + (f"   (also run here: {'; '.join(others)})" if others else ""))
        run = get_args(as_argv(fitting[0]))
        return argparse.Namespace(**vars(args) | {flag: getattr(run, flag) for flag in GRID})
    rows = [] if asked or runs else ledger.read_rows().values()
    if rows:
        versions = {row.get("model_version") or "v1" for row in rows}
        args.variants = [name for name, entry in read_variants().items() if entry["model_version"] in versions]
        args.label_rates = sorted({float(row["label_rate"]) for row in rows})
        args.runs = sorted({(int(row.get("pretrain_seed") or row["seed"]), int(row["seed"])) for row in rows})
    return args


def grid_sources(args, targets, here):
    """The sources of the grid, several at once as uci+motion in their canonical order, none twice."""
    sources = args.sources or here
    if args.leave_one_out:
        if args.sources:
            raise UserError("--leave_one_out makes its sources itself; leave --sources out, or name sets by --targets")
        sources = ["+".join(other for other in targets if other != target) for target in targets]
    return list(dict.fromkeys(configs.in_order(source, args.dataset_version) for source in sources if source))


def make_grid(args):
    """The Grid of the flags. Raises UserError for a data set that is not prepared, and if no pair of them is left."""
    version = args.dataset_version
    here = prepared(version)
    targets = list(dict.fromkeys(args.targets or here))
    sources = grid_sources(args, targets, here)
    for name in dict.fromkeys([*(name for source in sources for name in utils.sets_of(source)), *targets]):
        entry, hint = configs.dataset_config(name, version), configs.how_to_make(name, version)
        if not utils.data_path(name, version).is_file():
            raise UserError(f"dataset/{name}: no windows here; {hint}")
        utils.check_accepted(name, version)
        if utils.unlabelled(artefacts.load_npy(utils.data_path(name, version, "label"), hint), entry):
            raise UserError(f"dataset/{name} has no labels (-1): leave it out, see --sources and --targets")
    if not any(t not in utils.sets_of(s) for s in sources for t in targets):
        make = "make them with python dataset/prepare.py, or see --sources and --targets"
        raise UserError(f"no pair of data sets: prepared here are {', '.join(here) or 'none'}; {make}")
    seeds = [args.first_seed + i for i in range(args.seeds)]
    runs = args.runs or [(seed, seed) for seed in seeds]
    if args.classifier_seeds:
        runs = [(seed, args.first_seed + i) for seed in seeds for i in range(args.classifier_seeds)]
    lengths = [(source and configs.in_order(source, args.dataset_version), n) for source, n in args.epochs]
    usual = ["full", "v2", "forest", "cnn"] if args.leave_one_out else ["full"]
    return Grid(
        sources,
        targets,
        args.variants or usual,
        list(dict.fromkeys(args.label_rates)),
        runs,
        version=version,
        label_index=args.label_index,
        gpu=args.gpus[0] if args.gpus else None,
        epochs={name: n for source, n in lengths for name in ([source] if source else sources)},
        classifier_epochs=args.classifier_epochs,
        without_gyroscope=args.no_gyroscope or args.leave_one_out,
        leave_one_out=args.leave_one_out,
        flags=None if args.runs else grid_flags(args),
    )


def slots_for(args):
    """Where jobs run, an entry for each that may run at once: the GPUs in turn, --jobs times."""
    gpus = args.gpus or list(range(torch.cuda.device_count() if torch.cuda.is_available() else 0)) or ["cpu"]
    return gpus * max(1, args.jobs)


def print_commands(grid):
    """The command lines of the whole grid, as a shell would run them one after another."""
    for job in grid.jobs():
        cells = grid.cells(job)
        if not grid.labels_only(job.variant):
            print(grid.pretrain(job), grid.embedding(job), sep="\n")
        for rate, seed in dict.fromkeys((cell.rate, cell.seed) for cell in cells):
            part = [cell for cell in cells if (cell.rate, cell.seed) == (rate, seed)]
            if grid.is_baseline(job.variant):
                print(grid.baseline(part[0], [cell.target for cell in part]))
            else:
                print(grid.classifier(part[0]), *map(grid.test, part), sep="\n")


def run_grid(args, grid):
    """Run what is missing of the grid; returns the failures."""
    keys = {job: {grid.key(cell) for cell in grid.cells(job)} for job in grid.jobs()}

    def finished():
        there = ledger.read_rows().keys()
        return {job: (len(mine & there), len(mine)) for job, mine in keys.items()}

    missing = [job for job, (done, total) in finished().items() if done < total]
    done, total = (sum(counts) for counts in zip(*finished().values(), strict=True))
    print(f"{total} rows of {len(keys)} jobs; {total - done} rows of {len(missing)} jobs to make", flush=True)
    if not missing:
        return []
    if args.jobs == 0:
        work = {job: grid.work(job) for job in missing}
        return jobs.one_by_one(grid, missing, work, restart=args.restart, keep_embeddings=args.keep_embeddings)
    return jobs.side_by_side(args.argv, missing, slots_for(args), finished, {job: grid.work(job) for job in keys})


def show(args, grid):
    """Write the tables or the figures, or both after a run; returns the tables' text."""
    only = args.table or args.figures
    result = table.write(grid) if args.table or not only else None
    if args.figures or not (only or args.no_figures):
        figures.write(grid, args.projection)
    return result


def main(args):
    if args.table or args.figures:
        args = as_it_was_run(args)
        return show(args, make_grid(args))
    grid = make_grid(args)
    if args.commands:
        return print_commands(grid)
    if args.only:
        found = {job.name: job for job in grid.jobs()}
        if args.only not in found:
            raise UserError(f"--only {args.only}: no job of these flags; there are {', '.join(found)}")
        failed = jobs.run_job(grid, found[args.only], args.restart, keep_embeddings=args.keep_embeddings)
        if failed:
            raise SystemExit(1)
        return None
    record_run(grid_flags(args))
    failed = run_grid(args, grid)
    if failed:
        print(f"{len(failed)} failed:", *failed, sep="\n  ", file=sys.stderr)
    result = show(args, grid)
    if failed:
        raise SystemExit(1)
    return result


if __name__ == "__main__":
    sys.exit(run(main, get_args))
