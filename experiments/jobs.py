"""Running the grid's jobs: the stages of one job in this process, and many jobs side by side in processes of their own.

What is there already is not made again: a finished row is known by its config_hash, an artefact by its JSON, an
interrupted training by its state file. So a run that was killed continues when it is started again.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tqdm import tqdm

from bookkeeping import artefacts, ledger
from bookkeeping.commands import UserError
from bookkeeping.locks import locked
from experiments.grid import SCRIPTS

LOGS = Path("results/logs")
POLL_SECONDS = 0.5
TRAINING = ("pretrain.py", "classifier.py", "-m experiments.baselines")  # what takes --restart


@contextlib.contextmanager
def alone(name):
    """Hold a job's lock: a second run of the same job waits here, and finds the rows done then."""
    path, busy = Path("results/locks") / name, f"{name}: another process is at it; waiting"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path, busy))
        except UserError as error:
            if str(error) != busy:
                raise
            print(busy, flush=True)
            stack.enter_context(locked(path))
        yield


def current(path, wanted, state=None):
    """Whether an artefact is complete, was made with the configuration `wanted`, and its parents are as they were.

    `state` is the training state that an unfinished run leaves beside it.
    """
    if not Path(path).exists() or (state and Path(state).exists()):
        return False
    try:
        record = artefacts.load_record(path)
        if record is None:
            return False
        artefacts.check_parents(path, record, "")
    except UserError:
        return False
    return all(record["config"].get(key) == value for key, value in wanted.items())


def is_there(grid, job):
    """Whether the pretrained model of a job is there as this grid makes it: another one's may have the same stem."""
    state = grid.files(job).pretraining("state", grid.weights(job))
    return current(grid.checkpoint(job), grid.pretrain_config(job), state)


def call(command, restart=False):
    """Print a command and run it in this process: the script's main(args)."""
    print(f"\n$ {command}", flush=True)
    more = ["--restart"] if restart and command.script in TRAINING else []
    return SCRIPTS[command.script].main(command.args(*more))


def run_job(grid, job, restart=False, keep_embeddings=False):
    """Run what is missing of a job's cells; returns the messages of the tests that failed.

    restart: throw away the state of interrupted trainings; keep_embeddings: don't remove the embedding in the end.
    Raises UserError when training itself fails.
    """
    with alone(job.name):
        missing = [cell for cell in grid.cells(job) if grid.key(cell) not in ledger.read_rows()]
        trainings = {(cell.rate, cell.seed): cell for cell in missing}
        if grid.is_baseline(job.variant):
            for which, cell in trainings.items():
                targets = [other.target for other in missing if (other.rate, other.seed) == which]
                call(grid.baseline(cell, targets), restart)
            return []
        failed = []
        try:
            for which, cell in trainings.items():
                train(grid, cell, restart)
                for other in missing:
                    if (other.rate, other.seed) == which:
                        failed += attempt(grid.test(other))
        except KeyboardInterrupt:
            keep_embeddings = True  # the same command will want it in a moment
            raise
        finally:
            if not keep_embeddings:
                remove_embedding(grid, job)
        return failed


def attempt(command):
    """Run a test on a target; one that fails must not keep the source's other targets from being tested."""
    try:
        call(command)
    except UserError as error:
        print(f"error: {error}", flush=True)
        return [str(error)]
    return []


def train(grid, cell, restart):
    """Make the classifier of a cell and all that it needs, as far as it is not there already."""
    job, path = cell.job, grid.classifier_path(cell)
    trained = current(path, grid.classifier_config(cell), grid.classifier_path(cell, "transformer_state.pt"))
    if grid.is_v2(job.variant):
        if not trained:
            call(grid.classifier(cell), restart)
        return
    pretrained = is_there(grid, job)
    if pretrained and trained:
        return
    if not pretrained:
        call(grid.pretrain(job), restart)
    command = grid.embedding(job)
    embed_path, label_path = (grid.files(job).embedding(kind) for kind in ("embed", "label"))
    made_from = {"checkpoint": str(grid.checkpoint(job))}
    if not (current(embed_path, made_from) and current(label_path, made_from)):
        call(command)
    call(grid.classifier(cell), restart)


def remove_embedding(grid, job):
    """Remove a job's embedding: up to gigabytes, made again in a moment, needed only to train classifiers."""
    for kind in ("embed", "label"):
        path = grid.files(job).embedding(kind)
        path.unlink(missing_ok=True)
        artefacts.record_path(path).unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------- many jobs


def progress_bar(total, **more):
    """A tqdm bar; where nobody watches (a log file) a line every half minute."""
    return tqdm(total=total, smoothing=0, desc="grid", mininterval=0.5 if sys.stderr.isatty() else 30, **more)


def worker_command(argv, job, gpu):
    """The command line of one job: the grid's, for this job alone, on one device."""
    script = Path(__file__).resolve().parents[1] / "reproduce.py"
    return [sys.executable, "-u", str(script), *argv, "--only", job.name, "-g", str(gpu)]


class Worker:
    """One job in a process of its own, its output in results/logs/JOB.log."""

    def __init__(self, argv, job, gpu, threads):
        self.job, self.log = job, LOGS / f"{job.name}.log"
        environment = os.environ.copy()
        environment.setdefault("OMP_NUM_THREADS", str(threads))  # else each job would start a thread per core
        environment.setdefault("TQDM_MININTERVAL", "5")  # a log, not a screen
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "w") as out:
            # a session of its own: Ctrl-C reaches the jobs through this process alone, which waits for them
            self.process = subprocess.Popen(
                worker_command(argv, job, gpu),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    def pretrained(self):
        """The share of its pretraining that its log shows as done."""
        text = self.log.read_text(errors="replace")
        commands = re.findall(r"^\$ python (\w+)\.py", text, re.MULTILINE)
        if not commands or commands[-1] != "pretrain":
            return bool(commands) * 1.0
        percent = re.findall(r"(\d+)%\|", text)
        return int(percent[-1]) / 100 if percent else 0.0

    def reason(self):
        """Why it failed: the last line of its log that says so."""
        lines = self.log.read_text(errors="replace").splitlines()
        told = [line for line in lines if line.startswith("error:")] or [line for line in lines if line.strip()]
        return f"{self.job.name}: {told[-1] if told else f'status {self.process.returncode}'} (see {self.log})"


PRETRAINING = 0.85  # the share of a job's time, for the time left


def side_by_side(argv, jobs, slots, finished, work):
    """Run jobs in processes, one for each entry of `slots` (a GPU's index, or cpu); returns the failures.

    finished() gives for each job (finished rows, all its rows); work: {job: how long it takes, in any unit}, which the
    time left is reckoned with. Interrupted, it stops the processes, which keep their state, and waits for them.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // len(slots))
    waiting, free, running, failed = list(jobs), list(slots), {}, []

    def done():
        rows = finished()
        shares = {job: count / total for job, (count, total) in rows.items()}
        for worker in running:
            early = worker.pretrained() * PRETRAINING
            shares[worker.job] = max(shares[worker.job], early + (1 - PRETRAINING) * shares[worker.job])
        text = f"{sum(count for count, _ in rows.values())}/{sum(total for _, total in rows.values())} rows"
        return sum(
            shares[job] * work[job] for job in work
        ), f"{text}; jobs: {len(running)} running, {len(waiting)} waiting"

    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}"
    with progress_bar(sum(work.values()), initial=done()[0], bar_format=form) as bar:
        try:
            while waiting or running:
                while waiting and free:
                    slot = free.pop(0)
                    running[Worker(argv, waiting.pop(0), slot, threads)] = slot
                time.sleep(POLL_SECONDS)
                for worker in [w for w in running if w.process.poll() is not None]:
                    free.append(running.pop(worker))
                    if worker.process.returncode:
                        failed.append(worker.reason())
                        bar.write(f"failed: {failed[-1]}")
                share, text = done()
                bar.set_postfix_str(text, refresh=False)
                bar.update(share - bar.n)
        except BaseException:
            for worker in running:
                worker.process.terminate()
            for worker in running:
                worker.process.wait()
            raise
    return failed


def one_by_one(grid, jobs, work, **flags):
    """Run jobs in this process, one after another; returns the failures. One that fails doesn't stop the others."""
    failed = []
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}\n"
    with progress_bar(sum(work.values()), bar_format=form, leave=False) as bar:
        for job in jobs:
            bar.set_postfix_str(job.name)
            try:
                failed += [f"{job.name}: {message}" for message in run_job(grid, job, **flags)]
            except UserError as error:
                failed.append(f"{job.name}: error: {error}")
            except Exception as error:  # whatever it is, the other jobs go on and the user is told
                traceback.print_exc()
                failed.append(f"{job.name}: {type(error).__name__}: {error}")
            bar.update(work[job])
    return failed
