/* Plain cross-entropy from labels across rows: each row against its target's own logit.
 *
 * Included once per REAL_BITS, after across.h. With d_j = x_j - x_y and r = sum_{j != y} exp(d_j)
 *
 *     loss = w log1p(r)        g_j = alpha exp(d_j) / (1 + r)        g_y = -alpha r / (1 + r),   alpha = w / normalizer
 *
 * from logits in the scratch to gradients in their place: sweep, epilogue and write of a tile, each a loop over
 * vectors of rows that do not wait for one another. All is in REAL but the loss; sums are pairs, high + low, since an
 * ULP of r may be two of the loss. Every class but the target is treated alike, whichever is the largest.
 *
 * Exps are staged as vmath.h has them, with a factor of the row that no quotient of two has: r = sum / exp(x_y) and
 * g_j = alpha exp(x_j) / (exp(x_y) + sum). Its power of two is 2^(ANCHOR_SHIFT - k) against x_y, 2^k near the largest
 * of exp(d_j): then neither an exp nor what it is multiplied by leaves the normal numbers. Where the largest logit m is
 * more than FAR_GAP above the target's the row is far. It has m for an anchor in the same sweep, and with r against m,
 * beside which exp(x_y - m) is nothing,
 *
 *     loss = w ((m - x_y) + log r)        g_j = alpha exp(x_j - m) / r        g_y = -alpha.
 *
 * Largest errors of float32 losses that hill climbing finds, among 2 to 10 classes: 1.91 ULP (v3) at logits of
 * -0.40629184, -7.3330407, -1.6735141 and 1.75 ULP (baseline) at 5.9087324, 0.02673393, 4.5059867, -2.7993119,
 * 0.70783275, -0.6921279, -2.813828, the first one the target's.
 *
 * Each row decides by its own numbers. Rows of an extreme weight take the walk by the maximum (across.h), in a tile
 * of their own.
 */
#ifndef FASTCE_ANCHORED_H
#define FASTCE_ANCHORED_H
#define LEAST_NORMALIZER 0x1p-20
#define MOST_NORMALIZER 0x1p37
#define FEW_CLASSES 8 /* up to so many a target is found by comparing, beyond in memory */
#endif

/* ANCHOR_LOWEST: of d_j - k ln 2, below which the scaled exp is subnormal; what MOST_WEIGHT / LEAST_NORMALIZER times
 * that is 0 as a REAL. With LEAST_WEIGHT / MOST_NORMALIZER each factor of an exp is still a normal number. */
#undef ANCHOR_SHIFT
#undef ANCHOR_LOWEST
#undef FAR_GAP
#undef MOST_WEIGHT
#undef LEAST_WEIGHT
#undef REAL_EPSILON
#if REAL_BITS == 64
#define ANCHOR_SHIFT 256
#define ANCHOR_LOWEST -885.0
#define FAR_GAP 600.0
#define MOST_WEIGHT 0x1p100
#define LEAST_WEIGHT 0x1p-300
#define REAL_EPSILON 0x1p-52
#else
#define ANCHOR_SHIFT 64
#define ANCHOR_LOWEST -131.5f
#define FAR_GAP 80.0f
#define MOST_WEIGHT 0x1p18
#define LEAST_WEIGHT 0x1p-15
#define REAL_EPSILON 0x1p-23f
#endif

/* What passes between sweep, epilogue and write. */
typedef struct {
    INT target[TILE];                          /* -1: ignored */
    REAL x_y[TILE], anchor[TILE], near[TILE];  /* near: 0 where the row is far */
    REAL gap[TILE], gap_low[TILE];             /* of the largest logit or, of two, the other above x_y; 0 of far rows */
    REAL sum[TILE], low[TILE];                 /* of the staged exps but the target's, and what that lacks */
    REAL own[TILE], own_low[TILE], by_own[TILE]; /* the staged exp of the anchor; 1 / own */
    REAL r[TILE];
    REAL unit[TILE], peak[TILE], whole[TILE];  /* what makes gradients of staged exps; -g_y; alpha */
} FN(Anchored);

INLINE FN(mask) FN(are_set)(const REAL *flags) { return FN(not_less)(FN(load)(flags), FN(splat)(1)); }

typedef struct { vec high, low; } FN(Sum); /* unevaluated */

/* term >= 0, and so are all before it */
INLINE void FN(add_term)(FN(Sum) *acc, vec term)
{
    const vec sum = acc->high + term;
    acc->low += FN(lesser)(acc->high, term) - (sum - FN(larger)(acc->high, term));
    acc->high = sum;
}

INLINE FN(Sum) FN(add_sums)(FN(Sum) a, FN(Sum) b)
{
    FN(add_term)(&a, b.high);
    a.low += b.low;
    return a;
}

/* by_b: 1 / b.high, nearly */
INLINE FN(Sum) FN(quotient)(FN(Sum) a, FN(Sum) b, vec by_b)
{
    const vec nearly = a.high * by_b, product = nearly * b.high;
    const vec error = (a.high - product) - FN(product_error)(nearly, b.high, product);
    const vec rest = (error + (a.low - nearly * b.low)) * by_b, high = nearly + rest;
    return (FN(Sum)){high, rest - (high - nearly)};
}

/* ---- Sweep --------------------------------------------------------------------------------- */

/* Exps against a logit, scaled as said above. gap: of the largest above it. */
INLINE FN(Exps) FN(anchored_exps)(vec anchor, vec gap)
{
    const vec k = FN(fma)(gap, FN(splat)((REAL)LOG2E), FN(splat)(TO_INTEGER)) - TO_INTEGER;
    FN(Exps) exps = FN(exps_against)(anchor, &FN(plain_units));
    exps.bias += STEPS * (ANCHOR_SHIFT - EXP_SHIFT) - STEPS * k;
    exps.lowest += gap + (ANCHOR_LOWEST - EXP_LOWEST);
    return exps;
}

INLINE FN(Sum) FN(exp_and_rest)(FN(Exp) e)
{
    const vec v = FN(value)(e);
    return (FN(Sum)){v, FN(lost)(e, v)};
}

/* The sum over a vector of rows but of their targets; stages the exps. few: the targets are not at -inf yet. */
INLINE FN(Sum) FN(sum_lanes)(REAL *x, ptrdiff_t n_classes, const FN(Exps) *exps, ivec y, int few, int stage)
{
    FN(Sum) sum = {{0}, {0}};
    ivec here = {0};
    for (ptrdiff_t c = 0; c < n_classes; c++, here += 1) {
        const FN(mask) others = few ? FN(differ)(y, here) : EVERY_LANE;
        const FN(Exp) e = FN(exp_where)(others, FN(load)(x + c * TILE), exps);
        const vec v = FN(value)(e);
        if (stage) FN(store)(x + c * TILE, v);
        FN(add_term)(&sum, v);
#ifndef HAS_FMA /* two roundings too many for a loss that may double them */
        sum.low += FN(lost)(e, v);
#endif
    }
    const vec high = sum.high + sum.low; /* now low is less than an ULP */
    return (FN(Sum)){high, sum.low - (high - sum.high)};
}

/* Of two classes the exp of their difference d, with what that has lost; own: of 0, no digits of which are lost. */
INLINE FN(Sum) FN(exp_of_two)(vec d, vec lost, FN(Sum) *own, vec *by_own)
{
    const vec k = FN(fma)(FN(larger)(d, (vec){0}), FN(splat)((REAL)LOG2E), FN(splat)(TO_INTEGER)) - TO_INTEGER;
    const vec exponent = TO_INTEGER + (EXPONENT_BIAS + ANCHOR_SHIFT) - k;
    const vec bias = exponent + (STEPS - 1) * (exponent - TO_INTEGER);
    const vec shifted = FN(fma)(d, FN(splat)(FN(plain_units).per_step), bias);
    FN(Reduced) t = FN(reduce)(d, shifted - bias, &FN(plain_units));
#if EXP_TABLE_BITS > 0
    t.high += lost;
#else
    t.low += lost;
#endif
    const FN(mask) counts = FN(not_less)(d, FN(splat)(ANCHOR_LOWEST));
    const vec power = (vec)((uvec)exponent << MANTISSA_BITS);
    const REAL scale = (REAL)EXP_TABLE_SCALE;
    *own = (FN(Sum)){power * scale, power * (REAL)(EXP_TABLE_SCALE - scale)};
    *by_own = (vec)((uvec)(2 * (TO_INTEGER + EXPONENT_BIAS) - exponent) << MANTISSA_BITS) * (REAL)(1 / EXP_TABLE_SCALE);
    return FN(exp_and_rest)((FN(Exp)){counts, FN(power_of_two)((uvec)shifted), FN(expm1_reduced)(t)});
}

/* Where the sums of a vector of rows start from, in a loop of its own: sums have nothing to wait for. */
INLINE void FN(find_anchors)(const REAL *x, ptrdiff_t n_classes, ptrdiff_t i, int few, FN(Anchored) *a)
{
    ivec y, here = {0};
    memcpy(&y, a->target + i, sizeof y);
    x += i;
    vec x_y = few ? FN(load)(x) : FN(load)(a->x_y + i), most = few ? x_y : FN(larger)(FN(load)(x), x_y);
    for (ptrdiff_t c = 1; c < n_classes; c++) {
        const vec x_c = FN(load)(x + c * TILE);
        here += 1;
        if (few) x_y = FN(select)(FN(differ)(y, here), x_y, x_c);
        most = FN(larger)(x_c, most); /* a NaN is passed over here and met by the sum */
    }
    if (n_classes == 2) most = FN(select)(FN(differ)(y, here), FN(load)(x + TILE), FN(load)(x)); /* the other */
    const vec gap = most - x_y, back = gap - most;
    const FN(mask) near = FN(not_less)(FN(splat)(FAR_GAP), gap);
    FN(store)(a->x_y + i, x_y);
    FN(store)(a->anchor + i, FN(select)(near, x_y, most));
    FN(store)(a->near + i, FN(keep)(near, FN(splat)(1)));
    FN(store)(a->gap + i, FN(keep)(near, gap));
    FN(store)(a->gap_low + i, FN(keep)(near, (most - (gap - back)) - (x_y + back))); /* TwoSum */
}

INLINE void FN(sum_exps)(REAL *x, ptrdiff_t n_classes, ptrdiff_t i, int few, int stage, FN(Anchored) *a)
{
    const vec anchor = FN(load)(a->anchor + i), gap = FN(load)(a->gap + i);
    FN(Sum) sum, own;
    vec by_own;
    if (n_classes == 2) sum = FN(exp_of_two)(gap, FN(load)(a->gap_low + i), &own, &by_own);
    else {
        ivec y;
        memcpy(&y, a->target + i, sizeof y);
        const FN(Exps) exps = FN(anchored_exps)(anchor, gap);
        own = FN(exp_and_rest)(FN(exp_where)(EVERY_LANE, anchor, &exps));
        by_own = 1 / own.high;
        if (FN(are_near)(&exps)) {
            const FN(Exps) near_exps = FN(near_exps)(exps);
            sum = FN(sum_lanes)(x + i, n_classes, &near_exps, y, few, stage);
        } else sum = FN(sum_lanes)(x + i, n_classes, &exps, y, few, stage);
    }
    FN(store)(a->sum + i, sum.high + (anchor - anchor)); /* NaN where that is infinite */
    FN(store)(a->low + i, sum.low);
    FN(store)(a->own + i, own.high);
    FN(store)(a->own_low + i, own.low);
    FN(store)(a->by_own + i, by_own);
}

/* ---- Epilogue ------------------------------------------------------------------------------ */

/* alpha of a vector of rows. weight: NULL if all are 1. */
INLINE FN(Sum) FN(alpha)(const double *weight, double normalizer)
{
    REAL high[LANES_COUNT], low[LANES_COUNT];
    for (ptrdiff_t k = 0; k < LANES; k += LANES_F64) {
        const vec_f64 alpha = (weight ? load_f64(weight + k) : splat_f64(1)) / normalizer;
        FN(store_narrow)(high + k, alpha);
        FN(store_narrow)(low + k, alpha - FN(load_wide)(high + k));
    }
    return (FN(Sum)){FN(load)(high), FN(load)(low)};
}

/* From sums to r, log(1 + r) or of a far row log r, and the factors of a gradient: of staged exps, and -g_y, which is
 * alpha where the row is far or it was rounded to more than that. */
INLINE void FN(finish)(ptrdiff_t i, const FN(Sum) *alpha, FN(Anchored) *a, Rows *rows)
{
    const FN(Sum) sum = {FN(load)(a->sum + i), FN(load)(a->low + i)};
    const FN(Sum) own = {FN(load)(a->own + i), FN(load)(a->own_low + i)};
    const FN(mask) near = FN(are_set)(a->near + i);
    const FN(Sum) r = FN(quotient)(sum, own, FN(load)(a->by_own + i));
    FN(store)(a->r + i, r.high);
    FN(store_as_f64)(rows->loss + i, FN(log1p_of_pair)(FN(select)(near, r.high, r.high - 1), r.low));
    if (!alpha) return;
    const FN(Sum) all = FN(add_sums)((FN(Sum)){FN(keep)(near, own.high), FN(keep)(near, own.low)}, sum);
    const vec whole = alpha->high, unit = FN(quotient)(*alpha, all, 1 / all.high).high, peak = sum.high * unit;
    const FN(mask) is_below = FN(not_less)(FN(absolute)(whole), FN(absolute)(peak));
    FN(store)(a->whole + i, whole);
    FN(store)(a->unit + i, unit);
    FN(store)(a->peak + i, FN(select)(is_below & near, peak, whole + 0 * peak)); /* NaN stays */
}

/* Losses of far rows, and weighted ones. */
INLINE void FN(finish_losses)(ptrdiff_t i, int plain, const FN(Anchored) *a, Rows *rows)
{
    for (ptrdiff_t k = i; k < i + LANES; k++) {
        const double w = plain ? 1 : rows->weight[k], log_s = rows->loss[k];
        const double half = (0.5 * a->anchor[k] - 0.5 * a->x_y[k]) + 0.5 * log_s; /* m - x_y may overflow */
        double loss = a->near[k] != 0 ? w * log_s : 2 * w * half;
        if (w == 0) loss = w * a->r[k]; /* no part in a loss of infinity */
        rows->loss[k] = plain || a->target[k] >= 0 ? loss : 0;
    }
}

INLINE void FN(anchored_epilogue)(const Tile *tile, int plain, FN(Anchored) *a, Rows *rows)
{
    const double normalizer = tile->formula->normalizer;
    FN(Sum) alpha = FN(alpha)(NULL, normalizer);
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        if (!plain && tile->grad) alpha = FN(alpha)(rows->weight + i, normalizer);
        FN(finish)(i, tile->grad ? &alpha : NULL, a, rows);
        if (!plain || !FN(every_lane)(FN(are_set)(a->near + i))) FN(finish_losses)(i, plain, a, rows);
    }
}

/* ---- Write --------------------------------------------------------------------------------- */

/* The gradient in place of the exps; of targets too if they are few. */
INLINE void FN(anchored_write)(REAL *x, ptrdiff_t n_classes, ptrdiff_t i, int few, int plain, const FN(Anchored) *a)
{
    const vec unit = FN(load)(a->unit + i), top = FN(load)(a->sum + i), peak = FN(load)(a->peak + i), down = 0 - peak;
    const vec alpha = FN(load)(a->whole + i), most = FN(absolute)(alpha);
    const FN(mask) near = FN(are_set)(a->near + i);
    const int below = FN(every_lane)(near & FN(not_less)(most, FN(absolute)(top * unit)));
    ivec y, here = {0};
    memcpy(&y, a->target + i, sizeof y);
    const FN(mask) used = FN(differ)(y, here - 1);
    x += i;
    for (ptrdiff_t c = 0; c < n_classes; c++, here += 1) {
        const vec e = FN(load)(x + c * TILE);
        vec g = n_classes == 2 ? peak : e * unit;
        if (n_classes != 2 && !below) { /* no gradient is above alpha, and a far row's only finite class has that */
            const FN(mask) is_one_of_some = near | FN(not_less)(top * (1 - REAL_EPSILON), e);
            g = FN(select)(is_one_of_some & FN(not_less)(most, FN(absolute)(g)), g, alpha + 0 * g);
        }
        if (few) g = FN(select)(FN(differ)(y, here), g, down);
        FN(store)(x + c * TILE, plain ? g : FN(keep)(used, g));
    }
}

/* ---- A tile -------------------------------------------------------------------------------- */

/* What is ahead of a vector of rows that lie in memory as they are computed. */
INLINE void FN(ask_for_rows)(const char *array, const Layout *layout, ptrdiff_t i, ptrdiff_t n_classes, int to_write)
{
    if (FN(is_contiguous)(layout))
        FN(ask_for)(array + i * layout->row_stride, AHEAD_ROWS, LANES * n_classes * sizeof(REAL), to_write);
}

/* Rows that are left to the walk by the maximum: of a weight that leaves no room for factors, or that wants digits of
 * an r that is subnormal. */
static ptrdiff_t FN(find_extreme)(const Tile *tile, const Rows *rows, const FN(Anchored) *a, ptrdiff_t *extreme)
{
    ptrdiff_t n = 0;
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        const double size = fabs(rows->weight[i]);
        const int moderate = size >= LEAST_WEIGHT && size <= MOST_WEIGHT && a->r[i] >= REAL_TINY * (REAL)MOST_WEIGHT;
        extreme[n] = i;
        n += a->target[i] >= 0 && !(size == 0 || size == 1 || moderate);
    }
    return n;
}

/* Losses, and gradients in the scratch, of all rows but the extreme; those are noted and counted. n_classes: that of
 * the tile, perhaps as a constant. */
INLINE ptrdiff_t FN(anchored_rows)(const Tile *tile, ptrdiff_t n_classes, int few, int plain, Rows *rows,
                                   ptrdiff_t *extreme)
{
    const int with_grad = tile->grad != NULL;
    REAL *x = (REAL *)tile->scratch;
    const ptrdiff_t n_rows = FN(in_vectors)(tile->n_rows);
    FN(Anchored) a;
    for (ptrdiff_t i = tile->n_rows; i < n_rows; i++) rows->label[i] = -1;
    for (ptrdiff_t i = 0; i < n_rows; i++) a.target[i] = (INT)rows->label[i];
    for (ptrdiff_t i = 0; !few && i < n_rows; i++) {
        a.x_y[i] = 0;
        if (a.target[i] < 0) continue;
        REAL *at = x + a.target[i] * TILE + i;
        a.x_y[i] = *at;
        *at = -INFINITY; /* out of the sum */
    }
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) FN(find_anchors)(x, n_classes, i, few, &a);
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        FN(ask_for_rows)(tile->logits, &tile->logits_layout, i, n_classes, 0);
        if (with_grad) FN(ask_for_rows)(tile->grad, &tile->grad_layout, i, n_classes, 1);
        FN(sum_exps)(x, n_classes, i, few, with_grad, &a);
    }
    FN(anchored_epilogue)(tile, plain, &a, rows);
    for (ptrdiff_t i = 0; with_grad && i < tile->n_rows; i += LANES)
        FN(anchored_write)(x, n_classes, i, few, plain, &a);
    for (ptrdiff_t i = 0; with_grad && !few && i < tile->n_rows; i++)
        if (a.target[i] >= 0) x[a.target[i] * TILE + i] = 0 - a.peak[i];
    return plain ? 0 : FN(find_extreme)(tile, rows, &a, extreme);
}

static ptrdiff_t FN(anchored_tile)(const Tile *tile, Rows *rows, ptrdiff_t *extreme)
{
    const ptrdiff_t n_classes = tile->n_classes;
    int64_t labels = 0;
    FN(fetch_plane)(tile, tile->logits, &tile->logits_layout, 0, n_classes, (REAL *)tile->scratch);
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) labels |= rows->label[i];
    const int plain = labels >= 0 && !rows->weighted;
    if (plain && n_classes == 2) return FN(anchored_rows)(tile, 2, 1, 1, rows, extreme);
    if (n_classes == 2) return FN(anchored_rows)(tile, 2, 1, 0, rows, extreme);
    if (plain && n_classes <= FEW_CLASSES) return FN(anchored_rows)(tile, n_classes, 1, 1, rows, extreme);
    if (plain) return FN(anchored_rows)(tile, n_classes, 0, 1, rows, extreme);
    return FN(anchored_rows)(tile, n_classes, 0, 0, rows, extreme);
}

/* The logits of extreme rows, which the scratch has no more, to a plane; and their gradients from there. */
static void FN(gather_extreme)(const Tile *tile, const ptrdiff_t *extreme, ptrdiff_t n, REAL *plane)
{
    const Layout *from = &tile->logits_layout;
    for (ptrdiff_t k = 0; k < n; k++) {
        const char *row = tile->logits + extreme[k] * from->row_stride;
        for (ptrdiff_t c = 0; c < tile->n_classes; c++)
            plane[c * TILE + k] = (REAL)load_number(row + c * from->class_stride, from->format, from->swapped);
    }
}

static void FN(scatter_extreme)(const Tile *tile, const ptrdiff_t *extreme, ptrdiff_t n, const REAL *plane)
{
    REAL *x = (REAL *)tile->scratch;
    for (ptrdiff_t c = 0; c < tile->n_classes; c++)
        for (ptrdiff_t k = 0; k < n; k++) x[c * TILE + extreme[k]] = plane[c * TILE + k];
}

static void FN(put_anchored)(const Tile *tile)
{
    FN(put_plane)(tile, tile->grad, &tile->grad_layout, 0, tile->n_classes, (const REAL *)tile->scratch);
}
