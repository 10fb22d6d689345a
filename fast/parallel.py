"""Training one model in several processes, each on its share of every batch: torchrun --nproc_per_node=N pretrain.py

The result is that of one process, up to rounding. Every process draws the same batches and dropout and takes its share;
the class tokens of all shares are gathered before BatchNorm and NT-Xent, which so see the whole batch in every process;
gradients are averaged. Validation deals out whole batches. Without torchrun there is one process, and nothing happens.
"""

import atexit
import contextlib
import importlib
import os
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

import utils
from bookkeeping import commands
from bookkeeping.commands import UserError


class Processes:
    """The processes that train together; this one's number is `rank` of `size`, its own device `device`."""

    def __init__(self, gpu=None):
        """Joins the others if torchrun started this process; `gpu` is the -g flag. Raises UserError."""
        self.rank, self.size = commands.process_number(), commands.process_count()
        if self.size > 1 and gpu not in (None, "cpu"):
            raise UserError(f"-g {gpu}: under torchrun each process takes a GPU of its own; leave -g out, or -g cpu")
        on_gpu = self.size > 1 and gpu is None and torch.cuda.is_available()
        if on_gpu and int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
            raise UserError(f"--nproc_per_node is more than the {torch.cuda.device_count()} GPUs here; lower it")
        self.device = utils.pick_device(int(os.environ["LOCAL_RANK"]) if on_gpu else gpu)
        if self.size > 1:
            self.join("nccl" if on_gpu else "gloo", self.device if on_gpu else None)
        if self.rank:  # what all have to say, one says
            sys.stdout = open(os.devnull, "w", encoding="utf-8")

    def join(self, backend, device):
        """Become one of the group, to part from it in any case: see leave."""
        # whoever imports this later (torch.compile does): its functions' default is the group that there is by then,
        # which so would outlive its end, threads and all
        importlib.import_module("torch.distributed.nn.functional")
        with ended_by_signals():
            dist.init_process_group(backend, device_id=device)
        if backend == "gloo":  # after a mistake too; NCCL would then wait for the others
            atexit.register(self.leave)

    @property
    def first(self):
        return self.rank == 0

    def share(self, B):
        """The slice of each batch of B rows that is this process's. Raises UserError if B cannot be shared equally."""
        if B % self.size:
            raise UserError(f"a batch of {B} windows is no multiple of the {self.size} processes; change 'batch_size'")
        return slice(self.rank * B // self.size, (self.rank + 1) * B // self.size)

    def gather(self, x):
        """Everybody's x (2, b, ...), in the order of the batch: (2, B, ...). Differentiable."""
        return Gather.apply(x, self) if self.size > 1 else x

    def average(self, tensors):
        """Put the mean over the processes into the tensors, in one message."""
        tensors = list(tensors)
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors]).div_(self.size)
            together(dist.all_reduce, flat)
            parts = flat.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])

    def wait(self):
        """Until all are here."""
        here = torch.zeros(1, device=self.device)
        self.average([here])
        here.item()

    def leave(self):
        """Part from the others, if that has not been done; Gloo's threads have ended then.

        They must, while Python still runs: a thread that lets go of a collective's tensor takes Python's lock for it,
        and where the interpreter is shutting down that ends the process ("terminate called without an active
        exception"), be its work done or not.
        """
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


class Gather(torch.autograd.Function):
    """Everybody's share of a batch; the gradient of a process's own share goes back to it."""

    @staticmethod
    def forward(ctx, x, processes):
        ctx.processes = processes
        shares = [torch.empty_like(x) for _ in range(processes.size)]
        together(dist.all_gather, shares, x.contiguous())
        return torch.cat(shares, dim=1)

    @staticmethod
    def backward(ctx, gradient):
        """Every process has the same loss of all shares, and its gradient; `average` will divide by their number."""
        processes = ctx.processes
        return gradient[:, processes.share(gradient.shape[1])] * processes.size, None


@contextlib.contextmanager
def ended_by_signals():
    """Ctrl-C and SIGTERM end the process at once meanwhile: while it waits in C++, handlers in Python don't run."""
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def together(operation, *args):
    """A collective operation. Raises UserError where another process has gone.

    On CPUs the wait for the others is in pieces, between which Ctrl-C and SIGTERM are heard.
    """
    try:
        if args[-1].is_cuda:
            operation(*args)
            return
        work = operation(*args, async_op=True)
        while not work.is_completed():
            with contextlib.suppress(RuntimeError):  # not yet there
                work.wait(timedelta(seconds=0.2))
        work.wait()
    except RuntimeError as error:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise  # a collective that cannot be recorded
        ended = "another process of this torchrun command has ended; the same command continues the run"
        raise UserError(ended) from error
