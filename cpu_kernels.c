/* The encoder on a CPU but for its matrix products: embedding, attention, LayerNorm and GELU, each one pass either way.
   native.py compiles this once for a model's sizes: T steps of C channels and D features, K = D / heads, F in the
   feed-forward.

   PyTorch makes a head's T x T scores, weights and their gradients one after another, each a matrix in memory that a
   product of few features has to fill. Here a tile of VL queries goes through all of it in registers and the first
   cache, one query a lane: so softmax needs no sum over lanes. The backward makes the weights again from what the
   forward kept of them, once a tile of queries (for their gradient) and once a tile of keys (for keys and values).
   q (M, D) and k, v (T, D) of each window, M queries to T keys, are parts of wider rows; a head's features are turned
   into rows of their own when they are copied. Scores are not scaled: that is in q.

   All arithmetic is in float; BF16 says what lies in memory. Sums over rows are those of each thread, for the caller to
   add. */

#include <string.h>

#if defined(__AVX512F__)
#define VL 16 /* lanes of a register */
#define ROWS 20 /* sums that are kept in registers at once */
#else
#define VL 8
#define ROWS 10
#endif

#define UNROLL _Pragma("GCC unroll 32") /* so that the sums of a loop over registers stay in them */

typedef float vec __attribute__((vector_size(4 * VL)));
typedef int ivec __attribute__((vector_size(4 * VL)));

#if BF16 /* the upper half of a float */
typedef unsigned short number;
typedef number nvec __attribute__((vector_size(2 * VL)));

static inline vec widened(nvec x) { return (vec)(__builtin_convertvector(x, ivec) << 16); }

static inline float one(number x) { return widened((nvec){x})[0]; }

static inline nvec narrowed(vec x) { /* to the nearest, of two as near to the even one */
    ivec bits = (ivec)x;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nvec);
}
#else
typedef float number;
typedef vec nvec;

static inline vec widened(nvec x) { return x; }
static inline float one(number x) { return x; }
static inline nvec narrowed(vec x) { return x; }
#endif

#define STRIDE (((T + ROWS - 1) / ROWS * ROWS + VL - 1) / VL * VL) /* of a row of steps in a local copy, M <= T of them */

static inline vec larger(vec a, vec b) {
    ivec first = a > b;
    return (vec)(((ivec)a & first) | ((ivec)b & ~first));
}

static inline vec fill(float x) { return x - (vec){0}; }

/* How many of VL lanes from `start` on are before `end`. */
static inline int lanes_until(int end, int start) { return end - start < VL ? end - start : VL; }

/* e^x for x <= 0, to 2e-7 of it: 2^n times the Taylor series of the rest, |rest| <= ln 2 / 2. */
static inline vec exponential(vec x) {
    x = larger(fill(-87.0f), x); /* in this order, what is no number stays so */
    vec shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the fraction is rounded away, n is in the low bits */
    vec n = shifted - 12582912.0f;
    x = x - n * 0.693145752f; /* ln 2 in two parts: the first has bits to spare for n */
    x = x - n * 1.42860677e-6f;
    vec p = x * 1.98412698e-4f + 1.38888889e-3f;
    p = p * x + 8.33333333e-3f;
    p = p * x + 4.16666667e-2f;
    p = p * x + 1.66666667e-1f;
    p = p * x + 0.5f;
    p = p * x + 1.0f;
    p = p * x + 1.0f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

/* Rows to columns: halves of pairs of rows change places, then quarters, down to single lanes. */
#if VL == 16
#define LANES(f, n) {f(0, n), f(1, n), f(2, n), f(3, n), f(4, n), f(5, n), f(6, n), f(7, n), f(8, n), f(9, n), \
                     f(10, n), f(11, n), f(12, n), f(13, n), f(14, n), f(15, n)}
#else
#define LANES(f, n) {f(0, n), f(1, n), f(2, n), f(3, n), f(4, n), f(5, n), f(6, n), f(7, n)}
#endif
#define LOW(lane, n) ((lane) & (n) ? VL + (lane) - (n) : (lane))
#define HIGH(lane, n) ((lane) & (n) ? VL + (lane) : (lane) + (n))
#define EXCHANGE(n)                                                     \
    UNROLL                                                              \
    for (int r = 0; r < VL; r++)                                        \
        if (!(r & (n))) {                                               \
            const vec a = x[r], b = x[r + (n)];                         \
            x[r] = __builtin_shuffle(a, b, (ivec)LANES(LOW, n));        \
            x[r + (n)] = __builtin_shuffle(a, b, (ivec)LANES(HIGH, n)); \
        }

static inline void transpose(vec *x) {
#if VL == 16
    EXCHANGE(8)
#endif
    EXCHANGE(4)
    EXCHANGE(2)
    EXCHANGE(1)
}

/* A head's features of `steps` steps, `width` numbers apart: rows of features, zeros up to STRIDE. */
static inline void copy(float *to, const number *from, long width, int steps) {
    for (int start = 0; start < STRIDE; start += VL) {
        const int lanes = lanes_until(steps, start);
        vec rest[K % VL + 1] = {0};
        for (int i = 0; i < lanes; i++)
            for (int k = 0; k < K % VL; k++) rest[k][i] = one(from[(start + i) * width + K / VL * VL + k]);
        for (int k = 0; k < K % VL; k++) memcpy(to + (K / VL * VL + k) * STRIDE + start, &rest[k], sizeof *rest);
        for (int first = 0; first < K / VL * VL; first += VL) {
            vec x[VL] = {0};
            for (int i = 0; i < lanes; i++) {
                nvec row;
                memcpy(&row, from + (start + i) * width + first, sizeof row);
                x[i] = widened(row);
            }
            transpose(x);
            for (int k = 0; k < VL; k++) memcpy(to + (first + k) * STRIDE + start, &x[k], sizeof *x);
        }
    }
}

/* VL steps of such rows. */
static inline void load(vec *x, const float *from) {
    for (int k = 0; k < K; k++) memcpy(&x[k], from + k * STRIDE, sizeof *x);
}

/* A tile back to where its steps lie. */
static inline void store(number *to, const vec *x, long width, int lanes) {
    for (int first = 0; first < K / VL * VL; first += VL) {
        vec rows[VL];
        memcpy(rows, x + first, sizeof rows);
        transpose(rows);
        for (int i = 0; i < lanes; i++) {
            const nvec row = narrowed(rows[i]);
            memcpy(to + i * width + first, &row, sizeof row);
        }
    }
    for (int k = K / VL * VL; k < K; k++) {
        const nvec column = narrowed(x[k]);
        for (int i = 0; i < lanes; i++) to[i * width + k] = column[i];
    }
}

/* out[i] = sum over k of x[k] * y[k][i]: a tile's products with `steps` others. */
static inline void products(vec *out, const vec *x, const float *y, int steps) {
    for (int start = 0; start < steps; start += ROWS) {
        vec sums[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; r++) sums[r] = (vec){0};
        for (int k = 0; k < K; k++)
            UNROLL
            for (int r = 0; r < ROWS; r++) sums[r] += x[k] * y[k * STRIDE + start + r];
        UNROLL
        for (int r = 0; r < ROWS; r++) out[start + r] = sums[r];
    }
}

/* out[k] = sum over i of w[i] * y[k][i]: those others, weighted. */
static inline void weighted(vec *out, const vec *w, const float *y, int steps) {
    UNROLL
    for (int start = 0; start < K; start += ROWS) {
        vec sums[ROWS];
        const int rows = K - start < ROWS ? K - start : ROWS;
        UNROLL
        for (int r = 0; r < rows; r++) sums[r] = (vec){0};
        for (int i = 0; i < steps; i++)
            UNROLL
            for (int r = 0; r < rows; r++) sums[r] += w[i] * y[(start + r) * STRIDE + i];
        UNROLL
        for (int r = 0; r < rows; r++) out[start + r] = sums[r];
    }
}

/* One head of one window: out, and of each query the highest score and 1 / the sum of exponentials (2, M). */
static void head_forward(const number *q, long q_width, const number *k, const number *v, long kv_width, number *out,
                         long out_width, float *kept, int M) {
    float queries[K * STRIDE], keys[K * STRIDE], values[K * STRIDE];
    copy(queries, q, q_width, M), copy(keys, k, kv_width, T), copy(values, v, kv_width, T);
    for (int start = 0; start < M; start += VL) {
        const int lanes = lanes_until(M, start);
        vec x[K], e[STRIDE], total = {0}, highest = fill(-3e38f);
        load(x, queries + start);
        products(e, x, keys, T);
        for (int j = 0; j < T; j++) highest = larger(highest, e[j]);
        for (int j = 0; j < T; j++) e[j] = exponential(e[j] - highest), total += e[j];
        total = 1.0f / total;
        weighted(x, e, values, T);
        for (int r = 0; r < K; r++) x[r] *= total;
        store(out + start * out_width, x, out_width, lanes);
        memcpy(kept + start, &highest, 4 * lanes), memcpy(kept + M + start, &total, 4 * lanes);
    }
}

/* The same head: from g, the gradient of out, those of q, k and v, which lie as these do. */
static void head_backward(const number *q, long q_width, const number *k, const number *v, long kv_width,
                          const number *out, const number *g, long out_width, const float *kept, number *dq, number *dk,
                          number *dv, int M) {
    float queries[K * STRIDE], keys[K * STRIDE], values[K * STRIDE], gradients[K * STRIDE], results[K * STRIDE];
    float highest[STRIDE] = {0}, total[STRIDE] = {0}, along[STRIDE] = {0};
    copy(queries, q, q_width, M), copy(keys, k, kv_width, T), copy(values, v, kv_width, T);
    copy(gradients, g, out_width, M);
    memcpy(highest, kept, 4 * M), memcpy(total, kept + M, 4 * M);
    copy(results, out, out_width, M);
    for (int k = 0; k < K; k++)
        for (int i = 0; i < M; i++) along[i] += results[k * STRIDE + i] * gradients[k * STRIDE + i];
    for (int start = 0; start < M; start += VL) {
        const int lanes = lanes_until(M, start);
        vec x[K], w[STRIDE], d[STRIDE], most, scale, sum;
        memcpy(&most, highest + start, sizeof most), memcpy(&scale, total + start, sizeof scale);
        memcpy(&sum, along + start, sizeof sum);
        load(x, queries + start), products(w, x, keys, T);
        load(x, gradients + start), products(d, x, values, T);
        for (int j = 0; j < T; j++) d[j] = exponential(w[j] - most) * scale * (d[j] - sum);
        weighted(x, d, keys, T);
        store(dq + start * q_width, x, q_width, lanes);
    }
    for (int start = 0; start < T; start += VL) {
        const int lanes = lanes_until(T, start);
        vec x[K], w[STRIDE], d[STRIDE];
        load(x, keys + start), products(w, x, queries, M);
        load(x, values + start), products(d, x, gradients, M);
        for (int i = 0; i < M; i++) {
            w[i] = exponential(w[i] - highest[i]) * total[i];
            d[i] = w[i] * (d[i] - along[i]);
        }
        weighted(x, d, queries, M), store(dk + start * kv_width, x, kv_width, lanes);
        weighted(x, w, gradients, M), store(dv + start * kv_width, x, kv_width, lanes);
    }
}

/* All heads of B windows. A step's numbers in q are q_width long, in k and v kv_width, in out and g H * K. */
void attend_forward(const number *q, long q_width, const number *k, const number *v, long kv_width, number *out,
                    float *kept, long B, long H, long M, long threads) {
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (long n = 0; n < B * H; n++) {
        const long b = n / H, f = n % H * K, kv = b * T * kv_width + f;
        head_forward(q + b * M * q_width + f, q_width, k + kv, v + kv, kv_width, out + b * M * H * K + f, H * K,
                     kept + n * 2 * M, M);
    }
}

void attend_backward(const number *q, long q_width, const number *k, const number *v, long kv_width, const number *out,
                     const float *kept, const number *g, number *dq, number *dk, number *dv, long B, long H, long M,
                     long threads) {
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (long n = 0; n < B * H; n++) {
        const long b = n / H, f = n % H * K, mine = b * M * q_width + f, kv = b * T * kv_width + f;
        head_backward(q + mine, q_width, k + kv, v + kv, kv_width, out + b * M * H * K + f, g + b * M * H * K + f, H * K,
                      kept + n * 2 * M, dq + mine, dk + kv, dv + kv, M);
    }
}

/* ------------------------------------------------------------------------------------- LayerNorm, GELU */

#define TILES(width) ((width + VL - 1) / VL)

/* A row of `width` numbers, zeros in the other lanes. */
static inline void load_row(vec *x, const number *from, const int width) {
    UNROLL
    for (int t = 0; t < TILES(width); t++) {
        nvec part = {0};
        memcpy(&part, from + t * VL, lanes_until(width, t * VL) * sizeof *from);
        x[t] = widened(part);
    }
}

static inline void load_floats(vec *x, const float *from, const int width) {
    UNROLL
    for (int t = 0; t < TILES(width); t++) {
        x[t] = (vec){0};
        memcpy(&x[t], from + t * VL, lanes_until(width, t * VL) * sizeof *from);
    }
}

static inline void store_row(number *to, const vec *x, const int width) {
    UNROLL
    for (int t = 0; t < TILES(width); t++) {
        const nvec part = narrowed(x[t]);
        memcpy(to + t * VL, &part, lanes_until(width, t * VL) * sizeof *to);
    }
}

static inline void store_floats(float *to, const vec *x, const int width) {
    for (int t = 0; t < TILES(width); t++)
        memcpy(to + t * VL, &x[t], lanes_until(width, t * VL) * sizeof *to);
}

/* The sum of all lanes, in each of them. */
static inline vec lane_sum(vec x) {
#define ACROSS(lane, n) ((lane) ^ (n))
#if VL == 16
    x += __builtin_shuffle(x, (ivec)LANES(ACROSS, 8));
#endif
    x += __builtin_shuffle(x, (ivec)LANES(ACROSS, 4));
    x += __builtin_shuffle(x, (ivec)LANES(ACROSS, 2));
    return x + __builtin_shuffle(x, (ivec)LANES(ACROSS, 1));
}

static inline vec row_sum(const vec *x) {
    vec sum = x[0];
    UNROLL
    for (int t = 1; t < TILES(D); t++) sum += x[t];
    return lane_sum(sum);
}

/* 1 in the D lanes of a row, 0 in those beyond. */
static inline void mark_inside(vec *inside) {
    float ones[D];
    for (int i = 0; i < D; i++) ones[i] = 1;
    load_floats(inside, ones, D);
}

/* x to mean 0 and variance 1; returns 1 / its deviation. */
static inline float standardise(vec *x, const vec *inside) {
    vec square = {0};
    const vec mean = row_sum(x) / (float)D;
    UNROLL
    for (int t = 0; t < TILES(D); t++) x[t] = (x[t] - mean) * inside[t], square += x[t] * x[t];
    const float factor = 1 / __builtin_sqrtf(lane_sum(square)[0] / (float)D + 1e-12f);
    UNROLL
    for (int t = 0; t < TILES(D); t++) x[t] *= factor;
    return factor;
}

/* The gradient of x from that of standardised rows, d. */
static inline void standardise_backward(vec *d, const vec *unit, float factor) {
    vec along = {0};
    UNROLL
    for (int t = 0; t < TILES(D); t++) along += d[t] * unit[t];
    along = lane_sum(along) / (float)D;
    const vec mean = row_sum(d) / (float)D;
    UNROLL
    for (int t = 0; t < TILES(D); t++) d[t] = (d[t] - mean - unit[t] * along) * factor;
}

/* LayerNorm of z + residual + bias, n rows of D; residual may be null. unit (n, D) and scale (n,) are kept: the rows
   before gamma and beta, and 1 / their deviations. */
void norm_forward(const number *z, const number *residual, const float *bias, const float *gamma, const float *beta,
                  number *out, number *unit, float *scale, long n, long threads) {
    vec b[TILES(D)], g[TILES(D)], shift[TILES(D)], inside[TILES(D)];
    load_floats(b, bias, D), load_floats(g, gamma, D), load_floats(shift, beta, D), mark_inside(inside);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (long row = 0; row < n; row++) {
        vec x[TILES(D)], r[TILES(D)];
        load_row(x, z + row * D, D);
        if (residual) {
            load_row(r, residual + row * D, D);
            UNROLL
            for (int t = 0; t < TILES(D); t++) x[t] += r[t];
        }
        UNROLL
        for (int t = 0; t < TILES(D); t++) x[t] += b[t];
        const float factor = standardise(x, inside);
        store_row(unit + row * D, x, D), scale[row] = factor;
        UNROLL
        for (int t = 0; t < TILES(D); t++) x[t] = x[t] * g[t] + shift[t];
        store_row(out + row * D, x, D);
    }
}

/* ds (n, D), the gradient of z, residual and (summed) bias; sums (threads, 3, D): those of gamma, beta and bias. */
void norm_backward(const number *dy, const number *unit, const float *scale, const float *gamma, number *ds, float *sums,
                   long n, long threads) {
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (long part = 0; part < threads; part++) {
        vec g[TILES(D)], d_gamma[TILES(D)] = {0}, d_beta[TILES(D)] = {0}, d_bias[TILES(D)] = {0};
        load_floats(g, gamma, D);
        for (long row = n * part / threads; row < n * (part + 1) / threads; row++) {
            vec d[TILES(D)], u[TILES(D)];
            load_row(d, dy + row * D, D), load_row(u, unit + row * D, D);
            UNROLL
            for (int t = 0; t < TILES(D); t++) {
                d_gamma[t] += d[t] * u[t], d_beta[t] += d[t];
                d[t] *= g[t];
            }
            standardise_backward(d, u, scale[row]);
            UNROLL
            for (int t = 0; t < TILES(D); t++) d_bias[t] += d[t];
            store_row(ds + row * D, d, D);
        }
        store_floats(sums + part * 3 * D, d_gamma, D), store_floats(sums + part * 3 * D + D, d_beta, D);
        store_floats(sums + part * 3 * D + 2 * D, d_bias, D);
    }
}

/* The normal distribution's function of x, whose exact GELU is x times it, and its slope: both from one exponential
   (Abramowitz and Stegun 7.1.26, to 1e-7). */
static inline vec bell(vec x, vec *slope) {
    const ivec negative = x < fill(0);
    const vec size = larger(x, -x), t = 1.0f / (1.0f + 0.231641888f * size), e = exponential(-0.5f * x * x);
    vec tail = 1.061405429f * t - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = (tail * t + 0.254829592f) * t * e * 0.5f;
    *slope = e * 0.398942280f;
    return (vec)(((ivec)tail & negative) | ((ivec)(1.0f - tail) & ~negative));
}

/* GELU of pre + bias, n rows of F. */
void gelu_forward(const number *pre, const float *bias, number *out, long n, long threads) {
    vec b[TILES(F)];
    load_floats(b, bias, F);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (long row = 0; row < n; row++) {
        vec x[TILES(F)], slope;
        load_row(x, pre + row * F, F);
        UNROLL
        for (int t = 0; t < TILES(F); t++) x[t] += b[t], x[t] *= bell(x[t], &slope);
        store_row(out + row * F, x, F);
    }
}

/* dpre (n, F); sums (threads, F): the bias's. */
void gelu_backward(const number *dy, const number *pre, const float *bias, number *dpre, float *sums, long n,
                   long threads) {
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (long part = 0; part < threads; part++) {
        vec b[TILES(F)], sum[TILES(F)] = {0};
        load_floats(b, bias, F);
        for (long row = n * part / threads; row < n * (part + 1) / threads; row++) {
            vec x[TILES(F)], d[TILES(F)], slope;
            load_row(x, pre + row * F, F), load_row(d, dy + row * F, F);
            UNROLL
            for (int t = 0; t < TILES(F); t++) {
                x[t] += b[t];
                const vec share = bell(x[t], &slope);
                d[t] *= share + x[t] * slope;
                sum[t] += d[t];
            }
            store_row(dpre + row * F, d, F);
        }
        store_floats(sums + part * F, sum, F);
    }
}

/* ------------------------------------------------------------------------------------------- embedding */

typedef struct {
    vec weight[C][TILES(D)], bias[TILES(D)], gamma[TILES(D)], beta[TILES(D)], inside[TILES(D)];
} Embedding;

static void read_embedding(Embedding *to, const float *weight, const float *bias, const float *gamma, const float *beta) {
    float row[D];
    for (int c = 0; c < C; c++) {
        for (int i = 0; i < D; i++) row[i] = weight[i * C + c];
        load_floats(to->weight[c], row, D);
    }
    mark_inside(to->inside), load_floats(to->bias, bias, D);
    load_floats(to->gamma, gamma, D), load_floats(to->beta, beta, D);
}

/* A step's two norms: their standardised rows and 1 / their deviations. */
static inline void embed(const Embedding *of, const float *x, const float *position, vec *unit1, float *factor1,
                         vec *unit2, float *factor2) {
    UNROLL
    for (int t = 0; t < TILES(D); t++) {
        unit1[t] = of->bias[t];
        UNROLL
        for (int c = 0; c < C; c++) unit1[t] += of->weight[c][t] * x[c];
    }
    *factor1 = standardise(unit1, of->inside);
    load_floats(unit2, position, D);
    UNROLL
    for (int t = 0; t < TILES(D); t++) unit2[t] += unit1[t] * of->gamma[t] + of->beta[t];
    *factor2 = standardise(unit2, of->inside);
}

/* LN(LN(Linear(x)) + position), both with the same gamma and beta: x (n, C), steps of windows one after another. */
void embed_forward(const float *x, const float *weight, const float *bias, const float *gamma, const float *beta,
                   const float *position, number *out, long n, long threads) {
    Embedding of;
    read_embedding(&of, weight, bias, gamma, beta);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (long row = 0; row < n; row++) {
        vec unit1[TILES(D)], unit2[TILES(D)];
        float factor1, factor2;
        embed(&of, x + row * C, position + row % T * D, unit1, &factor1, unit2, &factor2);
        UNROLL
        for (int t = 0; t < TILES(D); t++) unit2[t] = unit2[t] * of.gamma[t] + of.beta[t];
        store_row(out + row * D, unit2, D);
    }
}

/* sums (threads, T + C + 3, D): the gradients of position, the weight's columns, bias, gamma and beta; zeros before. */
void embed_backward(const number *dh, const float *x, const float *weight, const float *bias, const float *gamma,
                    const float *beta, const float *position, float *sums, long n, long threads) {
    Embedding of;
    read_embedding(&of, weight, bias, gamma, beta);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (long part = 0; part < threads; part++) {
        vec d_weight[C][TILES(D)] = {0}, d_bias[TILES(D)] = {0}, d_gamma[TILES(D)] = {0}, d_beta[TILES(D)] = {0};
        float *mine = sums + part * (T + C + 3) * D;
        for (long row = n * part / threads; row < n * (part + 1) / threads; row++) {
            vec unit1[TILES(D)], unit2[TILES(D)], d[TILES(D)], place[TILES(D)];
            float factor1, factor2, *to = mine + row % T * D;
            embed(&of, x + row * C, position + row % T * D, unit1, &factor1, unit2, &factor2);
            load_row(d, dh + row * D, D), load_floats(place, to, D);
            UNROLL
            for (int t = 0; t < TILES(D); t++) d_gamma[t] += d[t] * unit2[t], d_beta[t] += d[t], d[t] *= of.gamma[t];
            standardise_backward(d, unit2, factor2);
            UNROLL
            for (int t = 0; t < TILES(D); t++) {
                d[t] *= of.inside[t];
                place[t] += d[t];
                d_gamma[t] += d[t] * unit1[t], d_beta[t] += d[t], d[t] *= of.gamma[t];
            }
            store_floats(to, place, D);
            standardise_backward(d, unit1, factor1);
            UNROLL
            for (int t = 0; t < TILES(D); t++) {
                d_bias[t] += d[t];
                UNROLL
                for (int c = 0; c < C; c++) d_weight[c][t] += d[t] * x[row * C + c];
            }
        }
        mine += T * D;
        for (int c = 0; c < C; c++) store_floats(mine + c * D, d_weight[c], D);
        store_floats(mine + C * D, d_bias, D), store_floats(mine + (C + 1) * D, d_gamma, D);
        store_floats(mine + (C + 2) * D, d_beta, D);
    }
}
