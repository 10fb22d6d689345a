"""The Triton kernels of gpu.py: each one pass over its data, the forward and then its backward.

A tile is R rows by W columns, W the next power of two (Triton wants that), the columns beyond the row's end zero unless
a comment says otherwise. A program takes one tile, or goes from tile to tile and in the end writes its sums, which
gpu.add_up adds. Activations are float32 or bfloat16, all arithmetic but the products of tiles is float32. Large offsets
are 64-bit and scalar, added to the pointers once: a tile of 64-bit offsets would fill the registers.

Axes as in models.py. Every kernel is launched by the function of gpu.py that says what it computes.
"""

import functools

import triton
import triton.language as tl

EPS = tl.constexpr(1e-12)  # of models.LayerNorm
LOG2_E = tl.constexpr(1.4426950408889634)
jit = functools.partial(triton.jit, do_not_specialize=["n"])  # n rows are only compared with: one compilation for all


@jit
def add_up(parts, out, n, F, R: tl.constexpr, W: tl.constexpr):
    cols = tl.program_id(0) * W + tl.arange(0, W)
    total = tl.zeros((R, W), tl.float32)
    for start in range(0, n, R):
        rows = start + tl.arange(0, R)
        total += tl.load(parts + rows[:, None] * F + cols[None, :], (rows < n)[:, None] & (cols < F)[None, :], 0.0)
    tl.store(out + cols, tl.sum(total, 0), cols < F)


@triton.jit
def standardise(s, inside, D: tl.constexpr, eps):
    """Rows of s to zero mean and unit variance over the D columns `inside`: (the rows, 1 / their deviation, mean)."""
    mean = tl.sum(s, 1) / D
    centred = tl.where(inside, s - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
    return centred * scale[:, None], scale, mean


@triton.jit
def standardise_backward(d, unit, scale, D: tl.constexpr):
    """The gradient of s from that of its standardised rows `unit`; for the caller to mask beyond the D columns."""
    along = tl.sum(d * unit, 1) / D
    return (d - (tl.sum(d, 1) / D)[:, None] - unit * along[:, None]) * scale[:, None]


@jit
def norm_forward(
    z, bias, residual, gamma, beta, out, n, D: tl.constexpr, ADD: tl.constexpr, R: tl.constexpr, W: tl.constexpr
):
    """ADD: z gets its bias and a residual; without it there is neither."""
    first, cols = tl.program_id(0).to(tl.int64) * R, tl.arange(0, W)
    inside = (tl.arange(0, R) < n - first)[:, None] & (cols < D)[None, :]
    at = tl.arange(0, R)[:, None] * D + cols[None, :]
    s = tl.load(z + first * D + at, inside, 0.0).to(tl.float32)
    if ADD:
        s += tl.load(residual + first * D + at, inside, 0.0).to(tl.float32)
        s += tl.load(bias + cols, cols < D, 0.0)[None, :]
    unit, _, _ = standardise(s, inside, D, EPS)
    y = unit * tl.load(gamma + cols, cols < D, 0.0)[None, :] + tl.load(beta + cols, cols < D, 0.0)[None, :]
    tl.store(out + first * D + at, y.to(out.dtype.element_ty), inside)


@jit
def norm_backward(
    dy, z, bias, residual, gamma, ds, sums, n, D: tl.constexpr, ADD: tl.constexpr, R: tl.constexpr, W: tl.constexpr
):
    """ds (n, D), and of each program the sums over its rows that are the gradients of gamma, beta and z's bias."""
    cols = tl.arange(0, W)
    g = tl.load(gamma + cols, cols < D, 0.0)[None, :]
    d_gamma, d_beta, d_bias = tl.zeros((R, W), tl.float32), tl.zeros((R, W), tl.float32), tl.zeros((R, W), tl.float32)
    at = tl.arange(0, R)[:, None] * D + cols[None, :]
    for block in range(tl.program_id(0), tl.cdiv(n, R), tl.num_programs(0)):
        first = tl.zeros((), tl.int64) + block * R
        inside = (tl.arange(0, R) < n - first)[:, None] & (cols < D)[None, :]
        s = tl.load(z + first * D + at, inside, 0.0).to(tl.float32)
        if ADD:
            s += tl.load(residual + first * D + at, inside, 0.0).to(tl.float32)
            s += tl.load(bias + cols, cols < D, 0.0)[None, :]
        unit, scale, _ = standardise(s, inside, D, EPS)
        d = tl.load(dy + first * D + at, inside, 0.0).to(tl.float32)
        d_gamma += d * unit
        d_beta += d
        d = tl.where(inside, standardise_backward(d * g, unit, scale, D), 0.0)
        tl.store(ds + first * D + at, d.to(ds.dtype.element_ty), inside)
        d_bias += d
    mine = sums + tl.program_id(0) * 3 * D + cols
    tl.store(mine, tl.sum(d_gamma, 0), cols < D)
    tl.store(mine + D, tl.sum(d_beta, 0), cols < D)
    tl.store(mine + 2 * D, tl.sum(d_bias, 0), cols < D)


@triton.jit
def gelu_forward(pre, bias, out, size, D: tl.constexpr, BLOCK: tl.constexpr):
    """The exact GELU of pre + bias, `size` numbers in rows of D."""
    at = tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    inside = at < size - first
    x = tl.load(pre + first + at, inside, 0.0).to(tl.float32) + tl.load(bias + ((first % D).to(tl.int32) + at) % D)
    y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    tl.store(out + first + at, y.to(out.dtype.element_ty), inside)


@jit
def gelu_backward(dy, pre, bias, dpre, sums, n, D: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    """dpre (n, D), the gradient before the GELU, and of each program its sum over rows: the bias's gradient.

    A program takes W of the columns and every so many tiles of rows.
    """
    cols = tl.program_id(1) * W + tl.arange(0, W)
    b, total = tl.load(bias + cols, cols < D, 0.0)[None, :], tl.zeros((R, W), tl.float32)
    at = tl.arange(0, R)[:, None] * D + cols[None, :]
    for block in range(tl.program_id(0), tl.cdiv(n, R), tl.num_programs(0)):
        first = tl.zeros((), tl.int64) + block * R
        inside = (tl.arange(0, R) < n - first)[:, None] & (cols < D)[None, :]
        x = tl.load(pre + first * D + at, inside, 0.0).to(tl.float32) + b
        slope = 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
        d = tl.load(dy + first * D + at, inside, 0.0).to(tl.float32) * slope
        tl.store(dpre + first * D + at, d.to(dpre.dtype.element_ty), inside)
        total += d
    tl.store(sums + tl.program_id(0) * D + cols, tl.sum(total, 0), cols < D)


@triton.jit
def column(at, cols, D: tl.constexpr, stride: tl.constexpr, CENTRED: tl.constexpr):
    """D numbers from memory, `stride` apart, 0 beyond; CENTRED takes their mean from them."""
    x = tl.load(at + cols * stride, cols < D, 0.0)
    if CENTRED:
        x = tl.where(cols < D, x - tl.sum(x, 0) / D, 0.0)
    return x[None, :]


@triton.jit
def linear(x, weight, bias, rows, cols, C: tl.constexpr, D: tl.constexpr, CENTRED: tl.constexpr):
    """Linear of the C channels of some rows of x, 0 beyond the D columns.

    CENTRED takes from each row its mean over the columns, by taking it from the weights (as fast.embed does).
    """
    y = column(bias, cols, D, 1, CENTRED)
    for c in tl.static_range(C):
        y += tl.load(x + rows * C + c)[:, None] * column(weight + c, cols, D, C, CENTRED)
    return y


@triton.jit
def embed_forward(
    x,
    weight,
    bias,
    gamma,
    beta,
    position,
    out,
    norm,
    T,
    C: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
):
    """A tile is R steps of one window: h = LN(LN(Linear(x)) + position).

    norm (B, T, 2) gets what the second norm multiplies a row with and what it then adds. (Keeping the first norm's too
    makes Triton choose a layout that takes twice as long.)
    """
    steps, cols = tl.program_id(1) * R + tl.arange(0, R), tl.arange(0, W)
    inside = (steps < T)[:, None] & (cols < D)[None, :]
    rows = tl.minimum(steps, T - 1)
    window = tl.program_id(0).to(tl.int64) * T
    g, b = tl.load(gamma + cols, cols < D, 0.0)[None, :], tl.load(beta + cols, cols < D, 0.0)[None, :]
    y = linear(x + window * C, weight, bias, rows, cols, C, D, False)
    y = standardise(y, inside, D, EPS)[0] * g + b
    y += tl.load(position + steps[:, None] * D + cols[None, :], inside, 0.0)
    unit, scale, mean = standardise(y, inside, D, EPS)
    norm += (window + rows) * 2
    tl.store(norm, scale, steps < T)
    tl.store(norm + 1, -mean * scale, steps < T)
    tl.store(out + window * D + rows[:, None] * D + cols[None, :], (unit * g + b).to(out.dtype.element_ty), inside)


@triton.jit
def embed_backward(
    dh,
    x,
    weight,
    bias,
    gamma,
    beta,
    position,
    norm,
    d_position,
    sums,
    B,
    T,
    C: tl.constexpr,
    D: tl.constexpr,
    A: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
):
    """A program takes R steps of every so many windows; A is C + 1 filled up to a power of two.

    Writes its sums of the gradients: d_position (programs, T, D) and sums (programs, tiles, C + 3, D), which are the
    Linear's C columns and its bias, gamma and beta (both norms together).

    The first norm takes from a row's gradient its mean over the D columns. Here that is left out of the rows and taken
    from the sums: times a channel and summed over rows, it is the same in all columns, and nothing else in a sum has a
    mean, as unit rows have none. Beyond the D columns `unit` and `d` are not 0, but gamma and `first` are.
    """
    steps, cols = tl.program_id(1) * R + tl.arange(0, R), tl.arange(0, W)
    inside = (steps < T)[:, None] & (cols < D)[None, :]
    rows, channels = tl.minimum(steps, T - 1), tl.arange(0, A)
    at = rows[:, None] * D + cols[None, :]
    g, b = tl.load(gamma + cols, cols < D, 0.0)[None, :], tl.load(beta + cols, cols < D, 0.0)[None, :]
    place = tl.load(position + at, inside, 0.0) + b
    d_place, d_gamma, d_beta = tl.zeros((R, W), tl.float32), tl.zeros((R, W), tl.float32), tl.zeros((R, W), tl.float32)
    d_weight = tl.zeros((A, R, W), tl.float32)
    for window in range(tl.program_id(0), B, tl.num_programs(0)):
        start = (tl.zeros((), tl.int64) + window) * T
        d = tl.load(dh + start * D + at, inside, 0.0).to(tl.float32)
        y = linear(x + start * C, weight, bias, rows, cols, C, D, True)
        first_scale = tl.rsqrt(tl.sum(y * y, 1) / D + EPS)
        first, mine = y * first_scale[:, None], norm + start * 2 + rows * 2
        scale, shift = tl.load(mine)[:, None], tl.load(mine + 1)[:, None]
        unit = (first * g + place) * scale + shift
        d_gamma += d * unit
        d_beta += d
        d *= g
        mean, along = tl.sum(d, 1)[:, None] * (scale / D), tl.sum(d * unit, 1)[:, None] * (scale / D)
        d = d * scale - (unit * along + mean)
        d_place += d
        d_gamma += d * first
        d *= g
        d = (d - first * (tl.sum(d * first, 1)[:, None] / D)) * first_scale[:, None]
        # (A, R); channel C, always 1, is the bias's
        values = tl.load(x + start * C + rows[None, :] * C + channels[:, None], (channels < C)[:, None], 1.0)
        d_weight += d[None, :, :] * values[:, :, None]
    tl.store(d_position + tl.program_id(0) * T * D + at, d_place, inside)
    mine = sums + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * (C + 3) * D + cols
    real, total = (cols < D)[None, :], tl.sum(d_weight, 1)
    total -= tl.sum(tl.where(real, total, 0.0), 1)[:, None] / D
    tl.store(mine[None, :] + channels[:, None] * D, total, (channels <= C)[:, None] & real)
    tl.store(mine + (C + 1) * D, tl.sum(d_gamma, 0), cols < D)
    tl.store(mine + (C + 2) * D, tl.sum(d_beta + d_place, 0), cols < D)


@triton.jit
def attend_forward(
    q,
    kv,
    out,
    logs,
    scale,
    M: tl.constexpr,
    T: tl.constexpr,
    Q: tl.constexpr,
    KV: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    PRECISION: tl.constexpr,
    R: tl.constexpr,
):
    """A program is one head of one window: keys and values of all its steps, R queries at a time.

    Q and KV are the lengths of a row of q and of kv in memory, K and P a head's features and their tile's width, S that
    of a tile of steps. logs (B, H, M) gets the base-2 logarithms of the softmax's sums.
    """
    window, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    steps, cols = tl.arange(0, S), tl.arange(0, P)
    there = (steps < T)[:, None] & (cols < K)[None, :]
    at = steps[:, None] * KV + cols[None, :]
    kv, q, out = kv + window * T * KV + head * K, q + window * M * Q + head * K, out + window * M * H * K + head * K
    k, v = tl.load(kv + at, there, 0.0), tl.load(kv + H * K + at, there, 0.0)
    for start in range(0, M, R):
        rows = start + tl.arange(0, R)
        asked = (rows < M)[:, None] & (cols < K)[None, :]
        query = tl.load(q + rows[:, None] * Q + cols[None, :], asked, 0.0)
        scores = tl.dot(query, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
        scores = tl.where((steps < T)[None, :], scores, float("-inf"))
        highest = tl.max(scores, 1)
        e = tl.exp2(scores - highest[:, None])
        total = tl.sum(e, 1)
        a = tl.dot(e.to(v.dtype), v, input_precision=PRECISION) / total[:, None]
        tl.store(out + rows[:, None] * (H * K) + cols[None, :], a.to(out.dtype.element_ty), asked)
        tl.store(logs + tl.program_id(0) * M + rows, highest + tl.log2(total), rows < M)


@triton.jit
def attend_backward(
    q,
    kv,
    out,
    logs,
    da,
    dq,
    dkv,
    d_bias,
    scale,
    M: tl.constexpr,
    T: tl.constexpr,
    Q: tl.constexpr,
    KV: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    PRECISION: tl.constexpr,
    R: tl.constexpr,
):
    """Like attend_forward; the weights are computed again, transposed (S, R), from the logs of their sums.

    What a row's softmax subtracts is its da . out, so no sum over the steps is needed. d_bias (B, 2D) gets the sums
    over the window of dq and of the values' gradient: those of the biases.
    """
    window, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    steps, cols = tl.arange(0, S), tl.arange(0, P)
    there = (steps < T)[:, None] & (cols < K)[None, :]
    at = steps[:, None] * KV + cols[None, :]
    kv, dkv = kv + window * T * KV + head * K, dkv + window * T * KV + head * K
    q, dq = q + window * M * Q + head * K, dq + window * M * Q + head * K
    out, da = out + window * M * H * K + head * K, da + window * M * H * K + head * K
    k, v = tl.load(kv + at, there, 0.0), tl.load(kv + H * K + at, there, 0.0)
    dk, dv, d_bias_q = tl.zeros((S, P), tl.float32), tl.zeros((S, P), tl.float32), tl.zeros((R, P), tl.float32)
    for start in range(0, M, R):
        rows = start + tl.arange(0, R)
        asked = (rows < M)[:, None] & (cols < K)[None, :]
        place, mine = rows[:, None] * Q + cols[None, :], rows[:, None] * (H * K) + cols[None, :]
        query, d = tl.load(q + place, asked, 0.0), tl.load(da + mine, asked, 0.0)
        along = tl.sum(d.to(tl.float32) * tl.load(out + mine, asked, 0.0).to(tl.float32), 1)
        scores = tl.dot(k, tl.trans(query), input_precision=PRECISION) * (scale * LOG2_E)
        weights = tl.exp2(scores - tl.load(logs + tl.program_id(0) * M + rows, rows < M, 0.0)[None, :])
        weights = tl.where((steps < T)[:, None], weights, 0.0)
        dv += tl.dot(weights.to(d.dtype), d, input_precision=PRECISION)
        d_weights = tl.dot(v, tl.trans(d), input_precision=PRECISION)
        ds = (weights * (d_weights - along[None, :])).to(d.dtype)
        dk += tl.dot(ds, query, input_precision=PRECISION)
        d_query = tl.dot(tl.trans(ds), k, input_precision=PRECISION) * scale
        d_bias_q += d_query
        tl.store(dq + place, d_query.to(dq.dtype.element_ty), asked)
    tl.store(dkv + at, (dk * scale).to(dkv.dtype.element_ty), there)
    tl.store(dkv + H * K + at, dv.to(dkv.dtype.element_ty), there)
    d_bias += window * (2 * H * K) + head * K + cols
    tl.store(d_bias, tl.sum(d_bias_q, 0), cols < K)
    tl.store(d_bias + H * K, tl.sum(dv, 0), cols < K)


@triton.jit
def pool_tokens(z, bias, token, start, T, P: tl.constexpr, eps, R: tl.constexpr, W: tl.constexpr):
    """R of a window's tokens z + bias from `start`, standardised, `token` being number T: (those of the window itself,
    unit rows, 1 / their deviation). z points to the window.
    """
    steps, cols = start + tl.arange(0, R), tl.arange(0, W)
    there = cols < P
    own = (steps < T)[:, None] & there[None, :]
    s = tl.load(z + steps[:, None] * P + cols[None, :], own, 0.0).to(tl.float32)
    s += tl.load(bias + cols, there, 0.0)[None, :]
    s = tl.where((steps == T)[:, None], tl.load(token + cols, there, 0.0)[None, :], s)
    unit, scale, _ = standardise(s, (steps <= T)[:, None] & there[None, :], P, eps)
    return own, unit, scale


@triton.jit
def pool_forward(
    z,
    bias,
    token,
    query,
    pooled,
    logs,
    T,
    eps,
    H: tl.constexpr,
    P: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    G: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program is one window, R tokens at a time with a running maximum. G is H filled up to 16, a product's least."""
    window, cols, heads = tl.program_id(0).to(tl.int64), tl.arange(0, W), tl.arange(0, G)
    at, there = heads[:, None] * P + cols[None, :], (heads < H)[:, None] & (cols < P)[None, :]
    q = tl.load(query + at, there, 0.0).to(z.dtype.element_ty)
    highest, total = tl.full((G,), float("-inf"), tl.float32), tl.zeros((G,), tl.float32)
    summed = tl.zeros((G, W), tl.float32)
    for start in range(0, T + 1, R):
        unit = pool_tokens(z + window * T * P, bias, token, start, T, P, eps, R, W)[1].to(q.dtype)
        scores = tl.dot(q, tl.trans(unit), input_precision=PRECISION)  # (G, R)
        scores = tl.where((start + tl.arange(0, R) <= T)[None, :], scores, float("-inf"))
        most = tl.maximum(highest, tl.max(scores, 1))
        e, before = tl.exp(scores - most[:, None]), tl.exp(highest - most)
        summed = summed * before[:, None] + tl.dot(e.to(q.dtype), unit, input_precision=PRECISION)
        highest, total = most, total * before + tl.sum(e, 1)
    tl.store(pooled + window * H * P + at, summed / total[:, None], there)
    tl.store(logs + window * H + heads, highest + tl.log(total), heads < H)


@triton.jit
def pool_backward(
    z,
    bias,
    token,
    query,
    logs,
    d_pooled,
    shift,
    dz,
    sums,
    T,
    eps,
    H: tl.constexpr,
    P: tl.constexpr,
    R: tl.constexpr,
    L: tl.constexpr,
    W: tl.constexpr,
):
    """A program is L tokens of one window, R at a time: dz (B, T, P), and its sums (B, programs, H + 2, P), which are
    the gradients of the queries, of z's bias and of the class token. A score's is weight * (unit . d_pooled - shift).
    Computed in float32, where the forward's products round to bfloat16 or TF32: within that its weights add up to 1.
    """
    window, part, cols = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, W)
    there, heads = cols < P, tl.arange(0, H)
    d_query, d_bias, d_token = tl.zeros((H, W), tl.float32), tl.zeros((W,), tl.float32), tl.zeros((W,), tl.float32)
    for start in range(part * L, tl.minimum(part * L + L, T + 1), R):
        own, unit, scale = pool_tokens(z + window * T * P, bias, token, start, T, P, eps, R, W)
        steps = start + tl.arange(0, R)
        d = tl.zeros((R, W), tl.float32)
        for head in tl.static_range(H):
            at = window * H + head
            q, dp = tl.load(query + head * P + cols, there, 0.0), tl.load(d_pooled + at * P + cols, there, 0.0)
            weights = tl.exp(tl.sum(unit * q[None, :], 1) - tl.load(logs + at))
            weights = tl.where(steps <= T, weights, 0.0)
            d_scores = weights * (tl.sum(unit * dp[None, :], 1) - tl.load(shift + at))
            d += weights[:, None] * dp[None, :] + d_scores[:, None] * q[None, :]
            d_query += tl.where((heads == head)[:, None], tl.sum(unit * d_scores[:, None], 0)[None, :], 0.0)
        d = standardise_backward(d, unit, scale, P)
        d_token += tl.sum(tl.where((steps == T)[:, None], d, 0.0), 0)
        d = tl.where(own, d, 0.0)
        d_bias += tl.sum(d, 0)
        tl.store(dz + window * T * P + steps[:, None] * P + cols[None, :], d.to(dz.dtype.element_ty), own)
    out = sums + (window * tl.num_programs(1) + part) * (H + 2) * P + cols
    tl.store(out[None, :] + heads[:, None] * P, d_query, there[None, :])
    tl.store(out + H * P, d_bias, there)
    tl.store(out + (H + 1) * P, d_token, there)


@triton.jit
def unit_rows(z, rows, n, FEATURES: tl.constexpr, P: tl.constexpr):
    """Rows of z divided by their lengths: (those, 1 / the lengths, 1, or 0 where 1e-8 stands for a smaller length)."""
    cols = tl.arange(0, P)
    x = tl.load(z + rows[:, None] * FEATURES + cols[None, :], (rows < n)[:, None] & (cols < FEATURES)[None, :], 0.0)
    length = tl.sqrt(tl.sum(x * x, 1))
    scale = 1 / tl.maximum(length, 1e-8)
    return x * scale[:, None], scale, tl.where(length > 1e-8, 1.0, 0.0)


@triton.jit
def similarities(mine, others, rows, columns, n, temperature):
    """Of unit rows (R, P) to S others, -inf to themselves: (R, S)."""
    s = tl.dot(mine, tl.trans(others), input_precision="tf32x3") / temperature
    return tl.where((rows[:, None] == columns[None, :]) | (columns >= n)[None, :], float("-inf"), s)


@jit
def nt_xent_forward(
    z, loss, logs, n, temperature, FEATURES: tl.constexpr, R: tl.constexpr, S: tl.constexpr, P: tl.constexpr
):
    """A program is R rows: their losses, and the logs of the sums of exponentials."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    mine = unit_rows(z, rows, n, FEATURES, P)[0]
    partner = unit_rows(z, (rows + n // 2) % n, n, FEATURES, P)[0]
    highest, total = tl.full((R,), float("-inf"), tl.float32), tl.zeros((R,), tl.float32)
    for start in range(0, n, S):
        columns = start + tl.arange(0, S)
        others = unit_rows(z, columns, n, FEATURES, P)[0]
        s = similarities(mine, others, rows, columns, n, temperature)
        most = tl.maximum(highest, tl.max(s, 1))
        total = total * tl.exp(highest - most) + tl.sum(tl.exp(s - most[:, None]), 1)
        highest = most
    tl.store(logs + rows, highest + tl.log(total), rows < n)
    tl.store(loss + rows, highest + tl.log(total) - tl.sum(mine * partner, 1) / temperature, rows < n)


@jit
def nt_xent_backward(
    z, logs, scale, dz, n, temperature, FEATURES: tl.constexpr, R: tl.constexpr, S: tl.constexpr, P: tl.constexpr
):
    """A similarity counts in both its rows' softmax: its gradient is the sum of two weights, less 2 for a pair."""
    rows, cols = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, P)
    mine, over_length, free = unit_rows(z, rows, n, FEATURES, P)
    my_logs = tl.load(logs + rows, rows < n, 0.0)[:, None]
    partner, d = (rows + n // 2) % n, tl.zeros((R, P), tl.float32)
    for start in range(0, n, S):
        columns = start + tl.arange(0, S)
        others = unit_rows(z, columns, n, FEATURES, P)[0]
        s = similarities(mine, others, rows, columns, n, temperature)
        ds = tl.exp(s - my_logs) + tl.exp(s - tl.load(logs + columns, columns < n, 0.0)[None, :])
        ds -= tl.where(partner[:, None] == columns[None, :], 2.0, 0.0)
        d += tl.dot(ds, others, input_precision="tf32x3")
    d *= tl.load(scale) / (n * temperature)
    d = (d - mine * (tl.sum(d * mine, 1) * free)[:, None]) * over_length[:, None]
    inside = (rows < n)[:, None] & (cols < FEATURES)[None, :]
    tl.store(dz + rows[:, None] * FEATURES + cols[None, :], d, inside)


@jit
def add_spans(chosen, lengths, starts, out, n, rounds, M, T: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    """Of R rows of chosen (n, T): in each round a span from where nothing is chosen yet, cut to what is missing."""
    first = tl.program_id(0).to(tl.int64) * R
    rows, steps = tl.arange(0, R), tl.arange(0, W)[None, :]
    real = rows < n - first
    at, inside = rows[:, None] * T + steps, real[:, None] & (steps < T)
    taken = tl.load(chosen + first * T + at, inside, 0).to(tl.int32)
    for i in range(rounds):
        place = (tl.zeros((), tl.int64) + i) * n + first
        start = tl.load(starts + place + rows, real, 0).to(tl.int32)[:, None]
        length = tl.load(lengths + place + rows, real, 0).to(tl.int32)
        end = tl.minimum(start + tl.minimum(length, M - tl.sum(taken, 1))[:, None], T - 1)
        free = tl.sum(tl.where(steps == start, taken, 0), 1)[:, None] == 0
        taken = tl.where((steps >= start) & (steps < end) & free, 1, taken)
    tl.store(out + first * T + at, taken != 0, inside)


@triton.jit
def hide(
    x, positions, zeroed, out, M, T: tl.constexpr, C: tl.constexpr, P: tl.constexpr, S: tl.constexpr, A: tl.constexpr
):
    """A program is one window of x (B, T, C): 0 at its M positions if it is a zeroed one. Tiles are (S, P), (S, A)."""
    window = tl.program_id(0).to(tl.int64)
    x, out = x + window * T * C, out + window * T * C
    steps, chosen, cols = tl.arange(0, S), tl.arange(0, P), tl.arange(0, A)
    places = tl.load(positions + window * M + chosen, chosen < M, -1).to(tl.int32)
    gone = tl.max((steps[:, None] == places[None, :]).to(tl.int32), 1) * tl.load(zeroed + window).to(tl.int32)
    at, inside = steps[:, None] * C + cols[None, :], (steps < T)[:, None] & (cols < C)[None, :]
    tl.store(out + at, tl.load(x + at, inside & (gone == 0)[:, None], 0.0), inside)
