"""The paper's tables and figures: every source -> target pair, seed and variant, from one command.

    python reproduce.py                         all ordered pairs of the data sets that are prepared, 3 seeds
    python reproduce.py --variants all          and every ablation and baseline of config/variants.json
    python reproduce.py --variants all_v2       likewise of version v2
    python reproduce.py --leave_one_out         each prepared set the target of all others: v1, v2, forest, CNN
    python reproduce.py --table                 the tables of what is in saved/results.csv, nothing is run
    python reproduce.py --figures               likewise the figures

reads   dataset/NAME/{data,label}_20_120.npy
writes  what the four scripts write, under stems like full_s3431 (variant and seed); saved/results.csv;
        results/table.{txt,md,tex,csv}, results/*.png, results/logs/JOB.log

It calls the four scripts (--commands prints their command lines), each source pretrained once a seed and tested on all
targets. A row that is in saved/results.csv is not run again, and a run that was stopped continues. An embedding is
removed when its classifiers are trained.
"""

import argparse
import sys

import torch

import utils
from bookkeeping import configs, ledger
from bookkeeping.commands import Parser, UserError, a_device, a_name, a_number, a_source, run
from experiments import figures, jobs, table
from experiments.grid import RATE, Grid, prepared, read_variants


def _epochs(text):
    """An argparse type: N, or SOURCE=N; gives (source or None, N)."""
    source, _, number = text.rpartition("=")
    count = a_number(int, lambda n: n > 0, "a number of epochs, or SOURCE=N")
    return a_name(source) if source else None, count(number)


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    whole = a_number(int, lambda n: n > 0, "a whole number from 1")
    rate = a_number(float, lambda x: 0 < x <= 1, "a share above 0 and up to 1")
    add("--sources", nargs="+", type=a_source, help="source data sets, several at once as uci,motion (default: all)")
    add("--targets", nargs="+", type=a_name, help="target data sets (default: those prepared)")
    add("--variants", nargs="+", type=a_name, help="of config/variants.json, or all, or all_v2 (default full)")
    add("--seeds", type=whole, help="how many seeds, each for pretraining and classifier (default 3)")
    add("--first_seed", type=a_number(int, lambda n: n >= 0, "a seed"), default=3431, help="default 3431")
    add("--classifier_seeds", type=whole, help="this many classifier seeds for every pretrained model")
    add("--label_rates", nargs="+", type=rate, help="shares of the labels that are seen (default 0.1)")
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
    add("--table", action="store_true", help="only the tables of the rows that are there")
    add("--figures", action="store_true", help="only the figures of what is there")
    add("--no_figures", action="store_true", help="run and print the tables without drawing figures")
    add("--projection", choices=("tsne", "pca"), default="tsne", help="of the representations' picture (default tsne)")
    add("--commands", action="store_true", help="print the scripts' command lines of the whole grid; nothing is run")
    add("--keep_embeddings", action="store_true", help="don't remove them after their classifiers are trained")
    add("--restart", action="store_true", help="start afresh where an interrupted training left its state")
    add("--only", metavar="JOB", help="run this one job (uci_full_s3431) in this process, no table; for a batch system")
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    return args


def make_grid(args):
    """The Grid of the flags; what they leave open is for a run the default, and for --table and --figures all there is.

    Raises UserError if no pair of data sets is left.
    """
    here = prepared(args.dataset_version)
    sources, targets = args.sources or here, args.targets or here
    if args.leave_one_out:
        if args.sources:
            raise UserError("--leave_one_out makes its sources itself; leave --sources out, or name sets by --targets")
        sources = ["+".join(other for other in targets if other != target) for target in targets]
    sources = [configs.in_order(source, args.dataset_version) for source in sources]
    for name in dict.fromkeys([*(name for source in sources for name in utils.sets_of(source)), *targets]):
        configs.dataset_config(name, args.dataset_version)
        if not utils.data_path(name, args.dataset_version).is_file():
            raise UserError(f"dataset/{name}: no windows here; make them with: python dataset/prepare.py -d {name}")
    if not any(t not in utils.sets_of(s) for s in sources for t in targets):
        make = "make them with python dataset/prepare.py, or see --sources and --targets"
        raise UserError(f"no pair of data sets: prepared here are {', '.join(here) or 'none'}; {make}")
    rows = ledger.read_rows().values() if args.table or args.figures else []
    seeds = [args.first_seed + i for i in range(args.seeds or 3)]
    runs = [(seed, seed) for seed in seeds]
    if args.classifier_seeds:
        runs = [(seed, args.first_seed + i) for seed in seeds for i in range(args.classifier_seeds)]
    if rows and not args.seeds and not args.classifier_seeds:
        runs = sorted({(int(row["pretrain_seed"] or row["seed"]), int(row["seed"])) for row in rows})
    rates = args.label_rates or sorted({float(row["label_rate"]) for row in rows}) or [RATE]
    epochs = {name: n for source, n in args.epochs for name in ([source] if source else sources)}
    versions = {row.get("model_version") or "v1" for row in rows}
    there = [name for name, entry in read_variants().items() if entry["model_version"] in versions]
    usual = ["full", "v2", "forest", "cnn"] if args.leave_one_out else ["full"]
    variants = args.variants or (there if rows and not args.leave_one_out else usual)
    more = {"version": args.dataset_version, "label_index": args.label_index, "epochs": epochs}
    more |= {"gpu": args.gpus[0] if args.gpus else None, "classifier_epochs": args.classifier_epochs}
    more["without_gyroscope"] = args.no_gyroscope or args.leave_one_out
    return Grid(sources, targets, variants, rates, runs, **more)


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


def main(args):
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
    only_read = args.table or args.figures
    failed = [] if only_read else run_grid(args, grid)
    result = None
    if args.table or not only_read:
        result = table.write(grid, args.leave_one_out)
    if args.figures or not (only_read or args.no_figures):
        figures.write(grid, args.projection, args.leave_one_out)
    if failed:
        print(f"{len(failed)} failed:", *failed, sep="\n  ", file=sys.stderr)
        raise SystemExit(1)
    return result


if __name__ == "__main__":
    sys.exit(run(main, get_args))
