"""The Triton kernels of gpu.py: each one pass over its data, the forward and then its backward.

A tile is R rows by W columns, W the next power of two (Triton wants that), the columns beyond the row's end zero. A
program takes one tile, or goes from tile to tile and in the end writes its sums, which gpu.add_up adds. Activations
are float32 or bfloat16, all arithmetic but the products of tiles is float32. Large offsets are 64-bit and scalar, added
to the pointers once: a tile of 64-bit offsets would fill the registers.

Axes as in models.py. Every kernel is launched by the function of gpu.py that says what it computes.
"""

import triton
import triton.language as tl

EPS = tl.constexpr(1e-12)  # of models.LayerNorm


@triton.jit
def add_up(parts, out, n, F, R: tl.constexpr, W: tl.constexpr):
    cols = tl.program_id(0) * W + tl.arange(0, W)
    total = tl.zeros((R, W), tl.float32)
    for start in range(0, n, R):
        rows = start + tl.arange(0, R)
        total += tl.load(parts + rows[:, None] * F + cols[None, :], (rows < n)[:, None] & (cols < F)[None, :], 0.0)
    tl.store(out + cols, tl.sum(total, 0), cols < F)


@triton.jit
def standardise(s, inside, D: tl.constexpr, eps):
    """Rows of s to zero mean and unit variance over the D columns `inside`: (the rows, 1 / their deviation)."""
    mean = tl.sum(s, 1) / D
    centred = tl.where(inside, s - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
    return centred * scale[:, None], scale


@triton.jit
def standardise_backward(d, unit, scale, D: tl.constexpr):
    """The gradient of s from that of its standardised rows `unit`; zero outside the D columns if d and unit are."""
    along = tl.sum(d * unit, 1) / D
    return (d - (tl.sum(d, 1) / D)[:, None] - unit * along[:, None]) * scale[:, None]


@triton.jit
def norm_forward(z, residual, gamma, beta, out, n, D: tl.constexpr, ADD: tl.constexpr, R: tl.constexpr,
                 W: tl.constexpr):  # fmt: skip
    first, cols = tl.program_id(0).to(tl.int64) * R, tl.arange(0, W)
    inside = (tl.arange(0, R) < n - first)[:, None] & (cols < D)[None, :]
    at = tl.arange(0, R)[:, None] * D + cols[None, :]
    s = tl.load(z + first * D + at, inside, 0.0).to(tl.float32)
    if ADD:
        s += tl.load(residual + first * D + at, inside, 0.0).to(tl.float32)
    unit, _ = standardise(s, inside, D, EPS)
    y = unit * tl.load(gamma + cols, cols < D, 0.0)[None, :] + tl.load(beta + cols, cols < D, 0.0)[None, :]
    tl.store(out + first * D + at, y.to(out.dtype.element_ty), inside)


@triton.jit
def norm_backward(dy, z, residual, gamma, ds, sums, n, D: tl.constexpr, ADD: tl.constexpr, R: tl.constexpr,
                  W: tl.constexpr):  # fmt: skip
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
        unit, scale = standardise(s, inside, D, EPS)
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
def gelu_backward(dy, pre, dpre, sums, n, D: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    """dpre (n, D), the gradient before the exact GELU, and of each program its sum over rows: the bias's gradient."""
    cols = tl.arange(0, W)
    total = tl.zeros((R, W), tl.float32)
    at = tl.arange(0, R)[:, None] * D + cols[None, :]
    for block in range(tl.program_id(0), tl.cdiv(n, R), tl.num_programs(0)):
        first = tl.zeros((), tl.int64) + block * R
        inside = (tl.arange(0, R) < n - first)[:, None] & (cols < D)[None, :]
        x = tl.load(pre + first * D + at, inside, 0.0).to(tl.float32)
        slope = 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
        d = tl.load(dy + first * D + at, inside, 0.0).to(tl.float32) * slope
        tl.store(dpre + first * D + at, d.to(dpre.dtype.element_ty), inside)
        total += d
    tl.store(sums + tl.program_id(0) * D + cols, tl.sum(total, 0), cols < D)


@triton.jit
def embed_tile(x, weight, bias, rows, inside, cols, C: tl.constexpr, D: tl.constexpr):
    """Linear of the C channels of some steps, standardised: (unit rows, 1 / their deviation)."""
    y = tl.where(inside, tl.load(bias + cols, cols < D, 0.0)[None, :], 0.0)
    for c in tl.static_range(C):
        y += tl.load(x + rows * C + c)[:, None] * tl.load(weight + cols * C + c, cols < D, 0.0)[None, :]
    return standardise(y, inside, D, EPS)


@triton.jit
def embed_forward(x, weight, bias, gamma, beta, position, out, T, C: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
                  W: tl.constexpr):  # fmt: skip
    """A tile is R steps of one window: h = LN(LN(Linear(x)) + position)."""
    steps, cols = tl.program_id(1) * R + tl.arange(0, R), tl.arange(0, W)
    inside = (steps < T)[:, None] & (cols < D)[None, :]
    rows = tl.minimum(steps, T - 1)
    window = tl.program_id(0).to(tl.int64) * T
    g, b = tl.load(gamma + cols, cols < D, 0.0)[None, :], tl.load(beta + cols, cols < D, 0.0)[None, :]
    unit, _ = embed_tile(x + window * C, weight, bias, rows, inside, cols, C, D)
    place = tl.load(position + steps[:, None] * D + cols[None, :], inside, 0.0)
    unit, _ = standardise(unit * g + b + place, inside, D, EPS)
    tl.store(out + window * D + rows[:, None] * D + cols[None, :], (unit * g + b).to(out.dtype.element_ty), inside)


@triton.jit
def embed_backward(dh, x, weight, bias, gamma, beta, position, d_position, sums, B, T, C: tl.constexpr,
                   D: tl.constexpr, A: tl.constexpr, R: tl.constexpr, W: tl.constexpr):  # fmt: skip
    """A program takes R steps of every so many windows; A is C filled up to a power of two.

    Writes its sums of the gradients: d_position (programs, T, D) and sums (programs, tiles, C + 3, D), which are the
    Linear's C columns and its bias, gamma and beta (both norms together).
    """
    steps, cols = tl.program_id(1) * R + tl.arange(0, R), tl.arange(0, W)
    inside = (steps < T)[:, None] & (cols < D)[None, :]
    g, b = tl.load(gamma + cols, cols < D, 0.0)[None, :], tl.load(beta + cols, cols < D, 0.0)[None, :]
    place = tl.load(position + steps[:, None] * D + cols[None, :], inside, 0.0)
    d_place, d_gamma, d_beta = tl.zeros((R, W), tl.float32), tl.zeros((R, W), tl.float32), tl.zeros((R, W), tl.float32)
    d_bias = tl.zeros((R, W), tl.float32)
    rows = tl.minimum(steps, T - 1)
    at = rows[:, None] * D + cols[None, :]
    channels = tl.arange(0, A)
    d_weight = tl.zeros((A, R, W), tl.float32)
    for window in range(tl.program_id(0), B, tl.num_programs(0)):
        start = (tl.zeros((), tl.int64) + window) * T
        first, first_scale = embed_tile(x + start * C, weight, bias, rows, inside, cols, C, D)
        unit, scale = standardise(first * g + b + place, inside, D, EPS)
        d = tl.load(dh + start * D + at, inside, 0.0).to(tl.float32)
        d_gamma += d * unit
        d_beta += d
        d = tl.where(inside, standardise_backward(d * g, unit, scale, D), 0.0)
        d_place += d
        d_gamma += d * first
        d_beta += d
        d = tl.where(inside, standardise_backward(d * g, first, first_scale, D), 0.0)
        d_bias += d
        values = tl.load(x + start * C + rows[None, :] * C + channels[:, None], (channels < C)[:, None], 0.0)  # (A, R)
        d_weight += d[None, :, :] * values[:, :, None]
    tl.store(d_position + tl.program_id(0) * T * D + at, d_place, inside)
    mine = sums + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * (C + 3) * D + cols
    tl.store(mine[None, :] + channels[:, None] * D, tl.sum(d_weight, 1), (channels < C)[:, None] & (cols < D)[None, :])
    tl.store(mine + C * D, tl.sum(d_bias, 0), cols < D)
    tl.store(mine + (C + 1) * D, tl.sum(d_gamma, 0), cols < D)
    tl.store(mine + (C + 2) * D, tl.sum(d_beta, 0), cols < D)


@triton.jit
def attend_weights(q, k, scale, T, S: tl.constexpr, PRECISION: tl.constexpr):
    """softmax(q k^T * scale) over the first T of S keys, float32."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where((tl.arange(0, S) < T)[None, :], scores, float("-inf"))
    e = tl.exp(scores - tl.max(scores, 1)[:, None])
    return e / tl.sum(e, 1)[:, None]


@triton.jit
def attend_forward(q, kv, out, scale, M: tl.constexpr, T: tl.constexpr, Q: tl.constexpr, KV: tl.constexpr,
                   H: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, P: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """A program is one head of one window: keys and values of all its steps, R queries at a time.

    Q and KV are the lengths of a row of q and of kv in memory, K and P a head's features and their tile's width.
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
        weights = attend_weights(query, k, scale, T, S, PRECISION)
        a = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        tl.store(out + rows[:, None] * (H * K) + cols[None, :], a.to(out.dtype.element_ty), asked)


@triton.jit
def attend_backward(q, kv, da, dq, dkv, d_bias, scale, M: tl.constexpr, T: tl.constexpr, Q: tl.constexpr,
                    KV: tl.constexpr, H: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
                    P: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Like attend_forward; the weights are computed again. Keys' and values' gradients are summed transposed (P, S).

    d_bias (B, 2D) gets the sums over the window of dq and of the values' gradient: those of the biases.
    """
    window, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    steps, cols = tl.arange(0, S), tl.arange(0, P)
    there = (steps < T)[:, None] & (cols < K)[None, :]
    at = steps[:, None] * KV + cols[None, :]
    kv, dkv = kv + window * T * KV + head * K, dkv + window * T * KV + head * K
    q, dq, da = q + window * M * Q + head * K, dq + window * M * Q + head * K, da + window * M * H * K + head * K
    k, v = tl.load(kv + at, there, 0.0), tl.load(kv + H * K + at, there, 0.0)
    dk, dv, d_bias_q = tl.zeros((P, S), tl.float32), tl.zeros((P, S), tl.float32), tl.zeros((P,), tl.float32)
    for start in range(0, M, R):
        rows = start + tl.arange(0, R)
        asked = (rows < M)[:, None] & (cols < K)[None, :]
        place = rows[:, None] * Q + cols[None, :]
        query, d = tl.load(q + place, asked, 0.0), tl.load(da + rows[:, None] * (H * K) + cols[None, :], asked, 0.0)
        weights = attend_weights(query, k, scale, T, S, PRECISION)
        dv += tl.dot(tl.trans(d), weights.to(d.dtype), input_precision=PRECISION)
        d_weights = tl.dot(d, tl.trans(v), input_precision=PRECISION)
        ds = (weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None]) * scale).to(d.dtype)
        dk += tl.dot(tl.trans(query), ds, input_precision=PRECISION)
        d_query = tl.dot(ds, k, input_precision=PRECISION)
        d_bias_q += tl.sum(d_query, 0)
        tl.store(dq + place, d_query.to(dq.dtype.element_ty), asked)
    there = (cols < K)[:, None] & (steps < T)[None, :]
    at = steps[None, :] * KV + cols[:, None]
    tl.store(dkv + at, dk.to(dkv.dtype.element_ty), there)
    tl.store(dkv + H * K + at, dv.to(dkv.dtype.element_ty), there)
    d_bias += window * (2 * H * K) + head * K + cols
    tl.store(d_bias, d_bias_q, cols < K)
    tl.store(d_bias + H * K, tl.sum(dv, 1), cols < K)


@triton.jit
def pool_tokens(z, start, T, P: tl.constexpr, eps, R: tl.constexpr, W: tl.constexpr):
    """R of a window's tokens from step `start`, standardised: (inside, unit rows, 1 / their deviation)."""
    steps, cols = start + tl.arange(0, R), tl.arange(0, W)
    inside = (steps < T)[:, None] & (cols < P)[None, :]
    s = tl.load(z + steps[:, None] * P + cols[None, :], inside, 0.0).to(tl.float32)
    unit, scale = standardise(s, inside, P, eps)
    return inside, unit, scale


@triton.jit
def pool_forward(z, query, pooled, logs, T, eps, H: tl.constexpr, P: tl.constexpr, R: tl.constexpr,
                 W: tl.constexpr):  # fmt: skip
    """A program is one head of one window, R tokens at a time with a running maximum."""
    window, head, cols = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H, tl.arange(0, W)
    q = tl.load(query + head * P + cols, cols < P, 0.0)[None, :]
    highest, total, summed = float("-inf"), 0.0, tl.zeros((W,), tl.float32)
    for start in range(0, T, R):
        _, unit, _ = pool_tokens(z + window * T * P, start, T, P, eps, R, W)
        scores = tl.where(start + tl.arange(0, R) < T, tl.sum(unit * q, 1), float("-inf"))
        most = tl.maximum(highest, tl.max(scores, 0))
        e, before = tl.exp(scores - most), tl.exp(highest - most)
        summed = summed * before + tl.sum(unit * e[:, None], 0)
        highest, total = most, total * before + tl.sum(e, 0)
    tl.store(pooled + (window * H + head) * P + cols, summed / total, cols < P)
    tl.store(logs + window * H + head, highest + tl.log(total))


@triton.jit
def pool_backward(z, query, logs, d_pooled, shift, dz, sums, T, eps, H: tl.constexpr, P: tl.constexpr, R: tl.constexpr,
                  L: tl.constexpr, W: tl.constexpr):  # fmt: skip
    """A program is L steps of one window: dz (B, T, P), and its sums (B, programs, H + 1, P): the queries' gradients
    and z's bias's. shift (B, H) is what a score's gradient has beside weight * (unit . d_pooled).
    """
    window, part, cols = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, W)
    there, heads = cols < P, tl.arange(0, H)
    d_query, d_bias = tl.zeros((H, W), tl.float32), tl.zeros((W,), tl.float32)
    for start in range(part * L, tl.minimum(part * L + L, T), R):
        inside, unit, scale = pool_tokens(z + window * T * P, start, T, P, eps, R, W)
        d = tl.zeros((R, W), tl.float32)
        for head in tl.static_range(H):
            at = window * H + head
            q, dp = tl.load(query + head * P + cols, there, 0.0), tl.load(d_pooled + at * P + cols, there, 0.0)
            weights = tl.exp(tl.sum(unit * q[None, :], 1) - tl.load(logs + at))
            weights = tl.where(start + tl.arange(0, R) < T, weights, 0.0)
            d_scores = weights * (tl.sum(unit * dp[None, :], 1) + tl.load(shift + at))
            d += weights[:, None] * dp[None, :] + d_scores[:, None] * q[None, :]
            d_query += tl.where((heads == head)[:, None], tl.sum(unit * d_scores[:, None], 0)[None, :], 0.0)
        d = tl.where(inside, standardise_backward(d, unit, scale, P), 0.0)
        d_bias += tl.sum(d, 0)
        steps = start + tl.arange(0, R)
        tl.store(dz + window * T * P + steps[:, None] * P + cols[None, :], d.to(dz.dtype.element_ty), inside)
    out = sums + (window * tl.num_programs(1) + part) * (H + 1) * P + cols
    tl.store(out[None, :] + heads[:, None] * P, d_query, there[None, :])
    tl.store(out + H * P, d_bias, there)


@triton.jit
def similarities(z, mine, start, rows, n, temperature, FEATURES: tl.constexpr, S: tl.constexpr, P: tl.constexpr):
    """Of some rows to the S rows from `start`, -inf to themselves: (similarities (R, S), those S rows (S, P))."""
    others, cols = start + tl.arange(0, S), tl.arange(0, P)
    inside = (others < n)[:, None] & (cols < FEATURES)[None, :]
    z_others = tl.load(z + others[:, None] * FEATURES + cols[None, :], inside, 0.0)
    s = tl.dot(mine, tl.trans(z_others), input_precision="ieee") / temperature
    left_out = (rows[:, None] == others[None, :]) | (others >= n)[None, :]
    return tl.where(left_out, float("-inf"), s), z_others


@triton.jit
def nt_xent_forward(z, loss, logs, n, temperature, FEATURES: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
                    P: tl.constexpr):  # fmt: skip
    """A program is R rows: their losses, and the logs of the sums of exponentials."""
    rows, cols = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, P)
    inside = (rows < n)[:, None] & (cols < FEATURES)[None, :]
    mine = tl.load(z + rows[:, None] * FEATURES + cols[None, :], inside, 0.0)
    partner = (rows + n // 2) % n
    positive = tl.sum(mine * tl.load(z + partner[:, None] * FEATURES + cols[None, :], inside, 0.0), 1) / temperature
    highest, total = tl.full((R,), float("-inf"), tl.float32), tl.zeros((R,), tl.float32)
    for start in range(0, n, S):
        s, _ = similarities(z, mine, start, rows, n, temperature, FEATURES, S, P)
        most = tl.maximum(highest, tl.max(s, 1))
        total = total * tl.exp(highest - most) + tl.sum(tl.exp(s - most[:, None]), 1)
        highest = most
    tl.store(logs + rows, highest + tl.log(total), rows < n)
    tl.store(loss + rows, highest + tl.log(total) - positive, rows < n)


@triton.jit
def nt_xent_backward(z, logs, scale, dz, n, temperature, FEATURES: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
                     P: tl.constexpr):  # fmt: skip
    """A similarity counts in both its rows' softmax: its gradient is the sum of two weights, less 2 for a pair."""
    rows, cols = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, P)
    inside = (rows < n)[:, None] & (cols < FEATURES)[None, :]
    mine = tl.load(z + rows[:, None] * FEATURES + cols[None, :], inside, 0.0)
    my_logs = tl.load(logs + rows, rows < n, 0.0)[:, None]
    partner, d = (rows + n // 2) % n, tl.zeros((R, P), tl.float32)
    for start in range(0, n, S):
        s, z_others = similarities(z, mine, start, rows, n, temperature, FEATURES, S, P)
        others = start + tl.arange(0, S)
        ds = tl.exp(s - my_logs) + tl.exp(s - tl.load(logs + others, others < n, 0.0)[None, :])
        ds -= tl.where(partner[:, None] == others[None, :], 2.0, 0.0)
        d += tl.dot(ds, z_others, input_precision="ieee")
    d *= tl.load(scale) / (n * temperature)
    tl.store(dz + rows[:, None] * FEATURES + cols[None, :], d, inside)
