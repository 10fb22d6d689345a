"""A GPU kept busy: work on a stream aside, and steps recorded as CUDA graphs and replayed."""

import contextlib
import functools

import torch


@contextlib.contextmanager
def aside(device):
    """On a GPU, run the block's kernels beside what is queued, on a stream of their own; what follows waits."""
    if device.type != "cuda":
        yield
        return
    stream = side_stream(device)
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@functools.cache
def side_stream(device):
    """One stream for all that runs aside: memory freed there is only used there again."""
    return torch.cuda.Stream(device, priority=-1)


class Captured:
    """A function of static tensors, recorded as a CUDA graph at the first call of each `key` and replayed after.

    A training step is some 150 small kernels, and launching them one by one takes longer than running them. A graph
    replays the same kernels on the same addresses, so fn(key) must read and write tensors that stay in place.
    """

    def __init__(self, fn, modules=(), optimizer=None, sums=()):
        self.fn, self.modules, self.optimizer, self.sums, self.graphs = fn, modules, optimizer, sums, {}

    def __call__(self, key):
        if key not in self.graphs:
            self.graphs[key] = self.record(key)
        self.graphs[key].replay()

    def record(self, key):
        """Run a few times to settle what libraries choose at first use, undo what that changed, then record."""
        before = [(tensor, tensor.detach().clone()) for tensor in self.state()]
        known = {id(tensor) for tensor, _ in before}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.fn(key)
                with torch.no_grad():  # after each run: a step counter must not run past the epoch's last step
                    for tensor, value in before:
                        tensor.copy_(value)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            for tensor in self.state():
                if id(tensor) not in known:
                    tensor.zero_()  # the optimiser's moments and step counts, made by the first run
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's own thread goes on as it likes
            self.fn(key)
        return graph

    def state(self):
        """Every tensor that a step changes: parameters, buffers, sums of losses, the optimiser's state."""
        tensors = [*self.sums] + [t for module in self.modules for t in (*module.parameters(), *module.buffers())]
        if self.optimizer:
            tensors += [t for values in self.optimizer.state.values() for t in values.values()]
        return tensors
