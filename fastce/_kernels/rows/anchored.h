/* Plain cross-entropy from labels across rows: each row against its target's own logit.
 *
 * Included once per REAL_BITS, after across.h. With d_j = x_j - x_y and r = sum_{j != y} exp(d_j)
 *
 *     loss = w log1p(r)        g_j = alpha exp(d_j) / (1 + r)        g_y = -alpha r / (1 + r),    alpha = w / normalizer
 *
 * all of it in REAL, a vector of rows at a time. Where REAL has too few digits a number is a pair, high + low: r, since
 * an ULP of it may be two of the loss; 1 + r; alpha. Every class but the target is treated alike, whichever is the largest.
 *
 * exp(d_j) is staged times 2^(ANCHOR_SHIFT - k), 2^k near the largest: then neither it nor what it is multiplied by
 * leaves the normal numbers. Rows for which that does not hold are `far`: their largest logit is more than FAR_GAP
 * above the target's, or their weight is extreme. They take the walk by the maximum (across.h), in a tile of their
 * own. Each row decides by its own numbers.
 */
#ifndef FASTCE_ANCHORED_H
#define FASTCE_ANCHORED_H
#define LEAST_NORMALIZER 0x1p-20
#define MOST_NORMALIZER 0x1p37
#endif

/* ANCHOR_LOWEST: of d_j - k ln 2, below which the scaled exp is subnormal; what MOST_WEIGHT / LEAST_NORMALIZER times
 * that is 0 as a REAL. With LEAST_WEIGHT / MOST_NORMALIZER each factor of an exp is still a normal number. */
#undef ANCHOR_SHIFT
#undef ANCHOR_LOWEST
#undef FAR_GAP
#undef MOST_WEIGHT
#undef LEAST_WEIGHT
#undef ANCHOR_POWER
#undef NEARLY_RECIPROCAL
#undef REAL_EPSILON
#if REAL_BITS == 64
#define ANCHOR_SHIFT 256
#define ANCHOR_LOWEST -885.0
#define FAR_GAP 600.0
#define MOST_WEIGHT 0x1p100
#define LEAST_WEIGHT 0x1p-300
#define ANCHOR_POWER 0x1p256
#define NEARLY_RECIPROCAL 0x7fde623822fc16e6u /* less the bits of s: 1 / s to a twentieth */
#define REAL_EPSILON 0x1p-52
#else
#define ANCHOR_SHIFT 64
#define ANCHOR_LOWEST -131.5f
#define FAR_GAP 80.0f
#define MOST_WEIGHT 0x1p18
#define LEAST_WEIGHT 0x1p-15
#define ANCHOR_POWER 0x1p64
#define NEARLY_RECIPROCAL 0x7ef311c1u
#define REAL_EPSILON 0x1p-23f
#endif

typedef struct { vec high, low; } FN(Sum); /* unevaluated */

/* term >= 0, and so are all before it */
INLINE void FN(add_term)(FN(Sum) *acc, vec term)
{
    const vec sum = acc->high + term;
    acc->low += FN(lesser)(acc->high, term) - (sum - FN(larger)(acc->high, term));
    acc->high = sum;
}

/* ---- Sweep --------------------------------------------------------------------------------- */

/* power: 2^k. `bias`, to TO_INTEGER, has the exponent's bias, ANCHOR_SHIFT and -k. */
typedef struct { vec x_y, bias, lowest, power; } FN(Anchor);

INLINE FN(Anchor) FN(anchor)(vec x_y, vec gap)
{
    const vec shifted = FN(fma)(gap, FN(splat)((REAL)LOG2E), FN(splat)(TO_INTEGER)), k = shifted - TO_INTEGER;
    return (FN(Anchor)){x_y, TO_INTEGER + STEPS * (EXPONENT_BIAS + ANCHOR_SHIFT) - STEPS * k, gap + ANCHOR_LOWEST,
                        (vec)(((uvec)shifted + EXPONENT_BIAS) << MANTISSA_BITS)};
}

/* exp(x - x_y) 2^(ANCHOR_SHIFT - k) EXP_TABLE_SCALE: as exps_where, with what the difference has lost (TwoSum). */
INLINE vec FN(exp_from)(const FN(Anchor) *a, FN(mask) where, vec x)
{
    const vec d = x - a->x_y, back = d - x, lost = (x - (d - back)) - (a->x_y + back);
    const vec shifted = FN(fma)(d, FN(splat)(FN(plain_units).per_step), a->bias);
    FN(Reduced) t = FN(reduce)(d, shifted - a->bias, &FN(plain_units));
#if EXP_TABLE_BITS > 0
    t.high += lost;
#else
    t.low += lost;
#endif
    const vec power = FN(power_of_two)((uvec)shifted);
    return FN(keep_fma)(where & FN(not_less)(d, a->lowest), power, FN(expm1_reduced)(t), power);
}

/* ---- Epilogue ------------------------------------------------------------------------------ */

/* alpha as a REAL, and what makes alpha of staged exps as a pair. */
typedef struct { vec alpha, high, low; } FN(Share);

/* loss: without its weight. unit: what makes gradients of staged exps; peak: that of the sum, which none exceeds. */
typedef struct { vec r, loss, unit, peak; } FN(Finished);

INLINE FN(Finished) FN(finish)(FN(Sum) sum, vec power, const FN(Share) *share, int with_grad)
{
    const vec scale = power * ((REAL)(1 / EXP_TABLE_SCALE) / (REAL)ANCHOR_POWER), r = sum.high * scale;
    vec r_low = sum.low * scale;
#if EXP_TABLE_BITS > 0 /* what the REAL has lost */
    const double lost = (1 / EXP_TABLE_SCALE - (REAL)(1 / EXP_TABLE_SCALE)) + EXP_TABLE_RECIPROCAL_LOW;
    r_low += FN(fma)(sum.high, scale, -r) + sum.high * (power * ((REAL)lost / (REAL)ANCHOR_POWER));
#endif
    FN(Finished) row = {r, FN(log1p_of_pair)(r, r_low), {0}, {0}};
    if (!with_grad) return row;
    const vec s = r + 1, s_low = (r - (s - 1)) + r_low, nearly_reciprocal = (vec)(NEARLY_RECIPROCAL - (uvec)s);
    const vec high = share->high * power, quotient = high / s;
    vec rest = FN(fma)(-quotient, s_low, share->low * power);
#ifdef HAS_FMA
    rest += FN(fma)(-quotient, s, high);
#endif
    row.unit = FN(fma)(rest, nearly_reciprocal, quotient);
    row.peak = sum.high * row.unit;
    const FN(mask) is_below = FN(not_less)(FN(larger)(share->alpha, -share->alpha), FN(larger)(row.peak, -row.peak));
    row.unit = FN(select)(is_below, row.unit, row.unit * (1 - REAL_EPSILON)); /* it was rounded up */
    row.peak = FN(select)(is_below, row.peak, share->alpha);
    return row;
}

/* ---- A vector of rows ---------------------------------------------------------------------- */

/* What comes with each row of a tile. */
typedef struct {
    REAL alpha[TILE], high[TILE], low[TILE]; /* see Share */
    REAL furthest[TILE];                     /* FAR_GAP, or -inf where the weight is extreme */
    REAL least[TILE];                        /* of r: a smaller one may be without the digits that a weight wants */
    INT target[TILE];                        /* -1: ignored */
} FN(Given);

static void FN(give)(const Formula *formula, const Rows *rows, ptrdiff_t n_rows, FN(Given) *given)
{
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const double w = rows->weight[i], size = fabs(w), alpha = w / formula->normalizer;
        const double per_exp = alpha * (1 / EXP_TABLE_SCALE) / ANCHOR_POWER;
        const REAL high = (REAL)per_exp;
        given->alpha[i] = (REAL)alpha;
        given->high[i] = high;
        given->low[i] = (REAL)((per_exp - high) + alpha * (EXP_TABLE_RECIPROCAL_LOW / ANCHOR_POWER));
        given->furthest[i] = w == 0 || (size >= LEAST_WEIGHT && size <= MOST_WEIGHT) ? FAR_GAP : -INFINITY;
        given->least[i] = size != 1 ? REAL_TINY * (REAL)MOST_WEIGHT : 0;
    }
}

/* Rows from i on of a tile whose logits are in the scratch: their losses, and their gradients in its place. plain: no
 * row is ignored and all have the first one's weight, 1. Returns which rows are done; the logits of the others stay. */
INLINE FN(mask) FN(anchored_lanes)(const Tile *tile, ptrdiff_t n_classes, ptrdiff_t i, int plain, int with_grad,
                                   const FN(Given) *given, Rows *rows)
{
    REAL *x = (REAL *)tile->scratch + i;
    vec e[FEW_BYTES / sizeof(REAL)], x_y = {0}, most = FN(splat)(-INFINITY);
    ivec y, here = {0};
    memcpy(&y, given->target + i, sizeof y);
    const FN(mask) used = FN(differ)(y, (ivec){0} - 1), skipped = plain ? (FN(mask)){0} : (FN(mask))~used;
    for (ptrdiff_t c = 0; c < n_classes; c++, here += 1) {
        const vec logit = FN(load)(x + c * TILE);
        x_y = FN(select)(FN(differ)(y, here), x_y, logit);
        most = FN(larger)(logit, most); /* a NaN is passed over here and met by the sum */
    }
    const vec gap = most - x_y;
    FN(mask) near = FN(not_less)(plain ? FN(splat)(FAR_GAP) : FN(load)(given->furthest + i), gap) | skipped;
    if (FN(every_lane)((FN(mask))~near)) return near;

    const FN(Anchor) anchor = FN(anchor)(x_y, gap);
    FN(Sum) sum = {{0}, x_y - x_y}; /* NaN where that is infinite */
    if (n_classes == 2) { /* one exp */
        const vec other = FN(select)(FN(differ)(y, (ivec){0}), FN(load)(x), FN(load)(x + TILE));
        sum.high = FN(exp_from)(&anchor, EVERY_LANE, other);
    } else {
        here = (ivec){0};
        for (ptrdiff_t c = 0; c < n_classes; c++, here += 1) {
            const vec v = FN(exp_from)(&anchor, FN(differ)(y, here), FN(load)(x + c * TILE));
            if (with_grad) e[c] = v;
            FN(add_term)(&sum, v);
        }
        const vec high = sum.high + sum.low; /* now low is less than an ULP */
        sum = (FN(Sum)){high, sum.low - (high - sum.high)};
    }

    const ptrdiff_t at = plain ? 0 : i;
    FN(Share) share = {FN(load)(given->alpha + at), FN(load)(given->high + at), FN(load)(given->low + at)};
    if (plain) share = (FN(Share)){FN(splat)(given->alpha[0]), FN(splat)(given->high[0]), FN(splat)(given->low[0])};
    const FN(Finished) row = FN(finish)(sum, anchor.power, &share, with_grad);
    FN(store_as_f64)(rows->loss + i, row.loss);
    if (!plain) {
        near = (near & FN(not_less)(row.r, FN(load)(given->least + i))) | skipped;
        for (ptrdiff_t k = i; k < i + LANES; k++) rows->loss[k] = given->target[k] < 0 ? 0 : rows->weight[k] * rows->loss[k];
    }
    if (!with_grad) return near;

    const int whole = FN(every_lane)(near);
    here = (ivec){0};
    for (ptrdiff_t c = 0; c < n_classes; c++, here += 1) {
        vec g = FN(select)(FN(differ)(y, here), n_classes == 2 ? row.peak : e[c] * row.unit, 0 - row.peak);
        if (!plain) g = FN(keep)(used, g);
        FN(store)(x + c * TILE, whole ? g : FN(select)(near, g, FN(load)(x + c * TILE)));
    }
    return near;
}

/* What is ahead of a vector of rows that lie in memory as they are computed. */
INLINE void FN(ask_for_rows)(const char *array, const Layout *layout, ptrdiff_t i, ptrdiff_t n_classes, int to_write)
{
    if (FN(is_contiguous)(layout))
        FN(ask_for)(array + i * layout->row_stride, AHEAD_ROWS, LANES * n_classes * sizeof(REAL), to_write);
}

/* ---- A tile -------------------------------------------------------------------------------- */

/* Losses, and gradients in the scratch, of all rows that are not far; those are noted and counted. */
static ptrdiff_t FN(anchored_tile)(const Tile *tile, Rows *rows, ptrdiff_t *far)
{
    const ptrdiff_t n_rows = tile->n_rows, n_classes = tile->n_classes;
    const int with_grad = tile->grad != NULL;
    ptrdiff_t n_far = 0;
    FN(Given) given;
    FN(fetch_plane)(tile, tile->logits, &tile->logits_layout, 0, n_classes, (REAL *)tile->scratch);
    int64_t labels = 0;
    for (ptrdiff_t i = n_rows; i < TILE; i++) rows->label[i] = -1;
    for (ptrdiff_t i = 0; i < TILE; i++) given.target[i] = (INT)rows->label[i];
    for (ptrdiff_t i = 0; i < n_rows; i++) labels |= rows->label[i];
    const int plain = labels >= 0 && !rows->weighted;
    FN(give)(tile->formula, rows, plain ? 1 : n_rows, &given);
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        FN(mask) near;
        FN(ask_for_rows)(tile->logits, &tile->logits_layout, i, n_classes, 0);
        if (with_grad) FN(ask_for_rows)(tile->grad, &tile->grad_layout, i, n_classes, 1);
#define LANES_OF(n, plain) \
    near = with_grad ? FN(anchored_lanes)(tile, n, i, plain, 1, &given, rows) \
                     : FN(anchored_lanes)(tile, n, i, plain, 0, &given, rows)
        if (plain && n_classes == 2) LANES_OF(2, 1);
        else if (plain) LANES_OF(n_classes, 1);
        else LANES_OF(n_classes, 0);
#undef LANES_OF
        if (FN(every_lane)(near)) continue;
        REAL done[LANES_COUNT];
        FN(store)(done, FN(keep)(near, FN(splat)(1)));
        for (ptrdiff_t k = i; k < n_rows && k < i + LANES; k++)
            if (done[k - i] == 0) far[n_far++] = k;
    }
    return n_far;
}

/* The logits of far rows, from the scratch to another; and their gradients, back to where these were. */
static void FN(gather_far)(const Tile *tile, const ptrdiff_t *far, ptrdiff_t n_far, REAL *plane)
{
    const REAL *x = (const REAL *)tile->scratch;
    for (ptrdiff_t c = 0; c < tile->n_classes; c++)
        for (ptrdiff_t k = 0; k < n_far; k++) plane[c * TILE + k] = x[c * TILE + far[k]];
}

static void FN(scatter_far)(const Tile *tile, const ptrdiff_t *far, ptrdiff_t n_far, const REAL *plane)
{
    REAL *x = (REAL *)tile->scratch;
    for (ptrdiff_t c = 0; c < tile->n_classes; c++)
        for (ptrdiff_t k = 0; k < n_far; k++) x[c * TILE + far[k]] = plane[c * TILE + k];
}

static void FN(put_anchored)(const Tile *tile)
{
    FN(put_plane)(tile, tile->grad, &tile->grad_layout, 0, tile->n_classes, (const REAL *)tile->scratch);
}
