"""The fast path of pretraining: the losses of models.py with fewer operations, exact up to rounding.

Each shortcut says what is saved and why the result is the same; tests/test_fast.py holds them against the plain
functions, gradients included.

Axes as in models.py.
"""

import contextlib
import copy
import ctypes
import functools

import torch
import torch.nn.functional as F

from augment import hide, take_steps
from models import losses as plain_losses
from models import merge_heads, nt_xent, split_heads
from utils import UserError


def shortcuts_hold(model_cfg):
    """Whether the encoder is of the kind that the fast paths compute: one pass, embeddings normalised."""
    return model_cfg["n_layers"] == 1 and model_cfg["emb_norm"]


def default_precision(model_cfg, device, plain=False):
    return "bf16" if device.type == "cuda" and shortcuts_hold(model_cfg) and not plain else "fp32"


def has_amx():
    """Whether this CPU multiplies bfloat16 matrices in tiles (AMX). Without, such products may take minutes."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def settle_precision(precision, device):
    """The type in which large products are made, None for that of their inputs; sets PyTorch's own on a GPU.

    Raises UserError for bf16 on a CPU without AMX.
    """
    if device.type == "cpu":
        keep_freed_memory()
        if precision == "bf16" and not has_amx():
            raise UserError("--precision bf16 on a CPU needs one with AMX, which this one is not; leave it out")
        return torch.bfloat16 if precision == "bf16" else None
    # with bf16 too: what it leaves in float32 is small
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    return torch.bfloat16 if precision == "bf16" else None


def losses_for(model_cfg, device, precision, plain=False):
    """The losses of pretraining: the fast ones where they hold for this encoder, else the plain ones, with one line.

    Settles the precision. Raises UserError where bf16 is not to be had.
    """
    dtype = settle_precision(precision, device)
    if plain or not shortcuts_hold(model_cfg):
        if precision == "bf16":
            raise UserError("--precision bf16 is for the fast path, an encoder of one pass (n_layers 1) with emb_norm "
                            "and no --plain; leave it out")  # fmt: skip
        if not plain:
            print("plain path: the shortcuts need an encoder of one pass (n_layers 1) with emb_norm")
        return plain_losses
    chosen = losses if device.type == "cpu" else fused_losses()
    return functools.partial(chosen, dtype=dtype) if dtype else chosen


def fused_losses():
    """gpu.losses, or those here where Triton does not work, with one line that says so."""
    if gpu := fused():
        return gpu.losses
    print("slower path: Triton is not installed or cannot build, so PyTorch's own kernels do the work of gpu.py")
    return losses


@functools.cache
def fused():
    """The module gpu, or None without a Triton that can build a kernel (PyTorch for CUDA brings it; it needs gcc)."""
    try:
        import gpu

        gpu.add_up(torch.ones(1, 1, device="cuda"))
    except Exception:  # whatever it is: a missing module, compiler or driver, a folder that cannot be written
        return None
    return gpu


def encoder_for(transformer, device):
    """A function like models.Transformer, (B, T, C) -> (B, T, D), without gradients, with weights as they are now."""
    if transformer.n_layers != 1 or not transformer.embed.emb_norm:
        return transformer
    if device.type == "cpu":
        return functools.partial(all_steps, transformer)
    gpu = fused()
    return functools.partial(gpu.encode, transformer) if gpu else transformer


def keep_freed_memory():
    """Have glibc keep freed memory for the next step instead of returning it (a third of a step's time on a CPU).

    A step allocates and frees the same large blocks again and again; by default each comes fresh from the system,
    which fills it with zeros page by page. Does nothing where the C library is another one.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def embed(embedding, x, positions=None):
    """models.Embedding with one LayerNorm fewer over D features: (B, T, C) -> (B, T, D).

    The first LayerNorm follows a Linear from only C channels, so its mean is that of the weights' columns (taken out
    of the weights), and its variance a quadratic form of the C channels and 1: what remains of it is one factor per
    step, applied to the C channels before the Linear. `positions` (B, M) says which steps x holds, where not all.
    """
    W, b, gamma, beta = embedding.lin.weight, embedding.lin.bias, embedding.norm.gamma, embedding.norm.beta
    dtype = W.dtype
    W = torch.cat([W, b[:, None]], dim=1).to(x.dtype)  # (D, C + 1)
    W = W - W.mean(0)
    x = F.pad(x, (0, 1), value=1.0)
    variance = ((x @ (W.T @ W / len(W))) * x).sum(-1, keepdim=True)
    x = x * torch.rsqrt(variance + 1e-12)
    if positions is None:
        position = (embedding.pos_embed.weight + beta).expand(len(x), -1, -1)
    else:
        position = F.embedding(positions, embedding.pos_embed.weight) + beta
    W = (gamma[:, None] * W).T.to(dtype)
    h = torch.baddbmm(position, x.to(dtype), W.expand(len(x), -1, -1))
    return embedding.norm(h)


def chosen_steps(transformer, x, positions):
    """The representation of the chosen steps only: x (B, T, C), positions (B, M) -> (B, M, D).

    The masked loss reads nothing else. Keys and values need all T steps, but queries, attention rows, norms and
    feed-forward only M. With so few queries, the key weights are applied to the queries and the value weights to the
    attention's result (q . (W h) = (W^T q) . h, and the sum of a W h = W (the sum of a h)), so that neither keys nor
    values of the T steps are ever made; the key's bias adds the same to all of a row's scores, which softmax ignores.
    """
    attn, H = transformer.attn, transformer.attn.H
    h = embed(transformer.embed, x)  # (B, T, D)
    chosen = embed(transformer.embed, take_steps(x, positions), positions)  # (B, M, D)
    B, M, D = chosen.shape
    W_k, W_v = attn.proj_k.weight.view(H, -1, D), attn.proj_v.weight.view(H, -1, D)  # (H, K, D)
    q = attn.proj_q(chosen).view(B, M, H, -1) * (D // H) ** -0.5
    folded = torch.einsum("bmhk,hkd->bmhd", q, W_k).reshape(B, M * H, D)
    weights = torch.softmax(folded @ h.transpose(1, 2), dim=-1)  # (B, M * H, T)
    mixed = (weights @ h).view(B, M, H, D)
    a = torch.einsum("bmhd,hkd->bmhk", mixed, W_v).reshape(B, M, D) + attn.proj_v.bias
    return transformer.after_attention(a)


def all_steps(transformer, x):
    """models.Transformer with the shorter embedding and one product for q, k, v: x (B, T, C) -> (B, T, D).

    On a GPU the heads' K features are filled up with zeros to a multiple of 4 (float32) or 8 (bfloat16): the fused
    attention kernels need that, and without them every score is written to memory. Zeros change no product.
    """
    h = embed(transformer.embed, x)
    attn, D = transformer.attn, h.shape[-1]
    K = D // attn.H
    fill = -K % (4 if h.dtype == torch.float32 else 8) if h.is_cuda else 0
    W = torch.stack([attn.proj_q.weight, attn.proj_k.weight, attn.proj_v.weight]).view(3, attn.H, K, D)
    # the key's bias changes no weight (see chosen_steps)
    b = torch.stack([attn.proj_q.bias, torch.zeros_like(attn.proj_k.bias), attn.proj_v.bias]).view(3, attn.H, K)
    W, b = F.pad(W, (0, 0, 0, fill)).flatten(0, 2), F.pad(b, (0, fill)).flatten()
    q, k, v = (split_heads(part, attn.H) for part in F.linear(h, W, b).chunk(3, dim=-1))
    a = F.scaled_dot_product_attention(q, k, v, scale=K**-0.5)  # (B, H, T, K + fill)
    return transformer.after_attention(merge_heads(a[..., :K]))


def class_output(head, h, keep=None):
    """models.Contrastive.class_output for the class token alone: (B, T, D) -> (B, P).

    Only the class token's output is used, so there is one query a window instead of T + 1 and no MLP on the others.
    Before the layer that token is the same for all windows: its query is folded into the key weights, which leaves
    one vector a head to multiply the tokens with, and the value weights are applied after the weighting.
    """
    patch, _, norm1, attention, _, _ = head.parts()
    H = attention.H
    own, key = head.class_query()  # (P,), (H, P)
    others = norm1(patch(h))  # (B, T, P)
    scores = others @ key.T  # (B, T, H)
    scores = torch.cat([(key @ own).expand(len(h), 1, H), scores], dim=1)
    weights = torch.softmax(scores, dim=1).transpose(1, 2)  # (B, H, 1 + T)
    mixed = weights[:, :, :1] * own + weights[:, :, 1:] @ others  # (B, H, P)
    return head.after_class_query(mixed, keep)


def in_bfloat16(*modules):
    """Copies of the modules that compute with the parameters rounded to bfloat16; gradients reach the originals.

    The weights stay float32, those are what the optimiser sees. All are cast in one piece: one kernel, not seventy.
    """
    copies = [copy.deepcopy(module) for module in modules]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    flat = torch.cat([parameter.flatten() for parameter in parameters]).to(torch.bfloat16)
    pieces = iter(flat.split([parameter.numel() for parameter in parameters]))
    for module in (part for copied in copies for part in copied.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            del module._parameters[name]
            setattr(module, name, next(pieces).view_as(parameter))
    return copies


def losses(model, head, views, masks, keep, both, gather=lambda classes: classes, dtype=torch.float32):
    """models.losses by the shortcuts: views (2, B, T, C) -> (masked, contrastive), contrastive 0 unless `both`.

    With dtype bfloat16 the encoder and the class token's layer compute in it (their sums stay float32 inside the
    kernels), the two losses and everything from BatchNorm on in float32.
    """
    x = views.flatten(0, 1)  # (2B, T, C)
    hidden, project = hide(x, masks), head.project
    if dtype != torch.float32:
        model, head = in_bfloat16(model, head)
    if both:
        h = all_steps(model.transformer, hidden)
        chosen = take_steps(h, masks.positions)
    else:
        chosen = chosen_steps(model.transformer, hidden, masks.positions)
    reconstruction = model.reconstruct(chosen).to(x.dtype)
    masked = F.mse_loss(reconstruction, take_steps(x, masks.positions))
    if not both:
        return masked, torch.zeros_like(masked)
    factors = {name: f.to(dtype) for name, f in keep.items()} if keep else None
    classes = class_output(head, h, factors).to(x.dtype).unflatten(0, (2, -1))
    return masked, nt_xent(*project(gather(classes)).chunk(2))


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
