/* Plain cross-entropy from labels across rows: each row against its target's own logit.
 *
 * Included once per REAL_BITS, after across.h. With d_j = x_j - x_y and r = sum_{j != y} exp(d_j)
 *
 *     loss = w log1p(r)        g_j = alpha exp(d_j) / (1 + r)        g_y = -alpha r / (1 + r),    alpha = w / normalizer
 *
 * a vector of rows at a time, from logits in the scratch to gradients in their place. Exps, their sum and log1p are
 * in REAL; the sum is a pair, high + low, since an ULP of r may be two of the loss. Only the factors of a row are
 * float64. Every class but the target is treated alike, whichever is the largest.
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
#undef REAL_EPSILON
#if REAL_BITS == 64
#define ANCHOR_SHIFT 256
#define ANCHOR_LOWEST -885.0
#define FAR_GAP 600.0
#define MOST_WEIGHT 0x1p100
#define LEAST_WEIGHT 0x1p-300
#define ANCHOR_POWER 0x1p256
#define REAL_EPSILON 0x1p-52
#else
#define ANCHOR_SHIFT 64
#define ANCHOR_LOWEST -131.5f
#define FAR_GAP 80.0f
#define MOST_WEIGHT 0x1p18
#define LEAST_WEIGHT 0x1p-15
#define ANCHOR_POWER 0x1p64
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

/* Exps against x_y, scaled as said above. power: 2^k. */
typedef struct { FN(Exps) exps; vec power; } FN(Anchor);

INLINE FN(Anchor) FN(anchor)(vec x_y, vec gap)
{
    const vec shifted = FN(fma)(gap, FN(splat)((REAL)LOG2E), FN(splat)(TO_INTEGER)), k = shifted - TO_INTEGER;
    FN(Exps) exps = FN(exps_against)(x_y, &FN(plain_units));
    exps.bias += STEPS * (ANCHOR_SHIFT - EXP_SHIFT) - STEPS * k;
    exps.lowest += gap + (ANCHOR_LOWEST - EXP_LOWEST);
    return (FN(Anchor)){exps, (vec)(((uvec)shifted + EXPONENT_BIAS) << MANTISSA_BITS)};
}

/* The sum over a vector of rows, whose targets are at -inf; stages the exps if asked to. */
INLINE FN(Sum) FN(sum_lanes)(const REAL *x, ptrdiff_t n_classes, const FN(Exps) *exps, vec *e)
{
    FN(Sum) sum = {{0}, {0}};
    for (ptrdiff_t c = 0; c < n_classes; c++) {
        const vec v = FN(exps)(FN(load)(x + c * TILE), exps);
        if (e) e[c] = v;
        FN(add_term)(&sum, v);
    }
    const vec high = sum.high + sum.low; /* now low is less than an ULP */
    return (FN(Sum)){high, sum.low - (high - sum.high)};
}

/* Of two classes the exp of their difference, with what that has lost (TwoSum): no factor of the row is left. */
INLINE vec FN(exp_of_two)(vec other, vec x_y, FN(Anchor) *a)
{
    const vec d = other - x_y, back = d - other, lost = (other - (d - back)) - (x_y + back);
    const vec k = FN(fma)(FN(larger)(d, (vec){0}), FN(splat)((REAL)LOG2E), FN(splat)(TO_INTEGER));
    const vec bias = TO_INTEGER + STEPS * (EXPONENT_BIAS + ANCHOR_SHIFT) - STEPS * (k - TO_INTEGER);
    const vec shifted = FN(fma)(d, FN(splat)(FN(plain_units).per_step), bias);
    FN(Reduced) t = FN(reduce)(d, shifted - bias, &FN(plain_units));
#if EXP_TABLE_BITS > 0
    t.high += lost;
#else
    t.low += lost;
#endif
    const vec power = FN(power_of_two)((uvec)shifted);
    a->power = (vec)(((uvec)k + EXPONENT_BIAS) << MANTISSA_BITS);
    return FN(keep_fma)(FN(not_less)(d, FN(splat)(ANCHOR_LOWEST)), power, FN(expm1_reduced)(t), power);
}

/* ---- Epilogue ------------------------------------------------------------------------------ */

/* r as a pair; unit: what makes gradients of staged exps; peak: that of the sum, which none exceeds. */
typedef struct { vec r, r_low, unit, peak; } FN(Finished);

/* weight: of LANES rows, NULL: ones. has_offset: the exps are against the row's exps.offset. */
INLINE FN(Finished) FN(finish)(FN(Sum) sum, const FN(Anchor) *anchor, int has_offset, const double *weight,
                               double normalizer, int with_grad)
{
    REAL high[LANES_COUNT], low[LANES_COUNT], power[LANES_COUNT], r[LANES_COUNT], r_low[LANES_COUNT];
    REAL unit[LANES_COUNT], all[LANES_COUNT];
    FN(store)(high, sum.high);
    FN(store)(low, sum.low);
    FN(store)(power, anchor->power);
    for (ptrdiff_t k = 0; k < LANES; k += LANES_F64) {
        const vec_f64 none = {0}, scale = FN(load_wide)(power + k) * (EXP_POWER / REST_SCALE / ANCHOR_POWER);
        const FN(Wide) to_r = FN(to_rest)(has_offset ? FN(correction)(&anchor->exps, k) : none);
#if REAL_BITS == 64
        const FN(Wide) scaled = FN(wide_product)((FN(Wide)){sum.high, sum.low}, to_r), rest = {scaled.high * scale, scaled.low * scale};
#else
        const FN(Wide) rest = {(FN(load_wide)(high + k) + FN(load_wide)(low + k)) * (to_r.high * scale), {0}};
#endif
        FN(store_narrow)(r + k, rest.high);
        FN(store_narrow)(r_low + k, REAL_BITS == 64 ? rest.low : rest.high - FN(load_wide)(r + k));
        if (!with_grad) continue;
        const vec_f64 alpha = weight ? load_f64(weight + k) / normalizer : splat_f64(1 / normalizer);
        FN(store_narrow)(unit + k, alpha * (to_r.high * scale) / (1 + rest.high));
        FN(store_narrow)(all + k, alpha);
    }
    FN(Finished) row = {FN(load)(r), FN(load)(r_low), {0}, {0}};
    if (!with_grad) return row;
    const vec alpha = FN(load)(all), size = FN(larger)(alpha, -alpha);
    row.unit = FN(load)(unit);
    row.peak = sum.high * row.unit;
    const FN(mask) is_below = FN(not_less)(size, FN(larger)(row.peak, -row.peak));
    row.unit = FN(select)(is_below, row.unit, row.unit * (1 - REAL_EPSILON)); /* it was rounded up */
    row.peak = FN(select)(is_below, row.peak, alpha);
    return row;
}

/* ---- A vector of rows ---------------------------------------------------------------------- */

/* What comes with each row of a tile. */
typedef struct {
    INT target[TILE];        /* -1: ignored */
    REAL x_y[TILE];
    REAL furthest[TILE];     /* FAR_GAP, or -inf where the weight is extreme */
    REAL least[TILE];        /* of r: a smaller one may be without the digits that a weight wants */
    REAL done[TILE];         /* 0: the row is far */
} FN(Given);

/* Rows from i on of a tile whose logits are in the scratch: their losses, their gradients in its place but for the
 * targets of more than two classes, and those as x_y. plain: no row is ignored or has a weight. The logits of far
 * rows stay. */
INLINE void FN(anchored_lanes)(const Tile *tile, ptrdiff_t n_classes, ptrdiff_t i, int plain, int with_grad,
                               FN(Given) *given, Rows *rows)
{
    REAL *x = (REAL *)tile->scratch + i;
    vec e[FEW_BYTES / sizeof(REAL)], x_y, most, other = {0};
    ivec y;
    memcpy(&y, given->target + i, sizeof y);
    const FN(mask) used = FN(differ)(y, (ivec){0} - 1), is_second = FN(differ)(y, (ivec){0});
    if (n_classes == 2) {
        x_y = FN(select)(is_second, FN(load)(x + TILE), FN(load)(x));
        most = other = FN(select)(is_second, FN(load)(x), FN(load)(x + TILE));
    } else {
        most = x_y = FN(load)(given->x_y + i);
        for (ptrdiff_t c = 0; c < n_classes; c++)
            most = FN(larger)(FN(load)(x + c * TILE), most); /* a NaN is passed over here and met by the sum */
    }
    const vec gap = most - x_y;
    FN(mask) near = FN(not_less)(plain ? FN(splat)(FAR_GAP) : FN(load)(given->furthest + i), gap);
    if (!plain) near |= (FN(mask))~used;
    FN(store)(given->done + i, FN(keep)(near, FN(splat)(1)));
    if (FN(every_lane)((FN(mask))~near)) return;

    FN(Anchor) anchor;
    FN(Sum) sum = {{0}, {0}};
    if (n_classes == 2) sum.high = FN(exp_of_two)(other, x_y, &anchor);
    else {
        anchor = FN(anchor)(x_y, gap);
        if (FN(are_near)(&anchor.exps)) {
            const FN(Exps) exps = FN(near_exps)(anchor.exps);
            sum = FN(sum_lanes)(x, n_classes, &exps, with_grad ? e : NULL);
        } else sum = FN(sum_lanes)(x, n_classes, &anchor.exps, with_grad ? e : NULL);
    }
    sum.low += x_y - x_y; /* NaN where that is infinite */

    const FN(Finished) row = FN(finish)(sum, &anchor, n_classes != 2, plain ? NULL : rows->weight + i,
                                        tile->formula->normalizer, with_grad);
    FN(store_as_f64)(rows->loss + i, FN(log1p_of_pair)(row.r, row.r_low));
    if (!plain) {
        near &= FN(not_less)(row.r, FN(load)(given->least + i)) | (FN(mask))~used;
        FN(store)(given->done + i, FN(keep)(near, FN(splat)(1)));
        for (ptrdiff_t k = i; k < i + LANES; k++)
            rows->loss[k] = given->target[k] < 0 ? 0 : rows->weight[k] * rows->loss[k];
    }
    if (!with_grad) return;
    if (n_classes == 2) {
        const vec first = FN(select)(is_second, row.peak, 0 - row.peak), second = FN(select)(is_second, 0 - row.peak, row.peak);
        e[0] = plain ? first : FN(keep)(used, first);
        e[1] = plain ? second : FN(keep)(used, second);
    } else FN(store)(given->x_y + i, FN(select)(near, 0 - row.peak, x_y));
    const int whole = FN(every_lane)(near);
    for (ptrdiff_t c = 0; c < n_classes; c++) {
        vec g = n_classes == 2 ? e[c] : e[c] * row.unit;
        if (!plain) g = FN(keep)(used, g);
        FN(store)(x + c * TILE, whole ? g : FN(select)(near, g, FN(load)(x + c * TILE)));
    }
}

/* ---- A tile -------------------------------------------------------------------------------- */

/* What is ahead of a vector of rows that lie in memory as they are computed. */
INLINE void FN(ask_for_rows)(const char *array, const Layout *layout, ptrdiff_t i, ptrdiff_t n_classes, int to_write)
{
    if (FN(is_contiguous)(layout))
        FN(ask_for)(array + i * layout->row_stride, AHEAD_ROWS, LANES * n_classes * sizeof(REAL), to_write);
}

static void FN(give)(const Rows *rows, ptrdiff_t n_rows, FN(Given) *given)
{
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const double size = fabs(rows->weight[i]);
        given->furthest[i] = size == 0 || (size >= LEAST_WEIGHT && size <= MOST_WEIGHT) ? FAR_GAP : -INFINITY;
        given->least[i] = size != 1 ? REAL_TINY * (REAL)MOST_WEIGHT : 0;
    }
}

/* Losses, and gradients in the scratch, of all rows that are not far; those are noted and counted. */
static ptrdiff_t FN(anchored_tile)(const Tile *tile, Rows *rows, ptrdiff_t *far)
{
    const ptrdiff_t n_rows = tile->n_rows, n_classes = tile->n_classes;
    const int with_grad = tile->grad != NULL;
    REAL *x = (REAL *)tile->scratch;
    int64_t labels = 0;
    ptrdiff_t n_far = 0;
    FN(Given) given;
    FN(fetch_plane)(tile, tile->logits, &tile->logits_layout, 0, n_classes, x);
    for (ptrdiff_t i = n_rows; i < TILE; i++) rows->label[i] = -1;
    for (ptrdiff_t i = 0; i < TILE; i++) given.target[i] = (INT)rows->label[i];
    for (ptrdiff_t i = 0; i < n_rows; i++) labels |= rows->label[i];
    const int plain = labels >= 0 && !rows->weighted;
    if (!plain) FN(give)(rows, n_rows, &given);
    for (ptrdiff_t i = 0; n_classes != 2 && i < TILE; i++) {
        REAL *at = x + given.target[i] * TILE + i;
        given.x_y[i] = 0;
        if (given.target[i] < 0) continue;
        given.x_y[i] = *at;
        *at = -INFINITY; /* out of the sum */
    }
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        FN(ask_for_rows)(tile->logits, &tile->logits_layout, i, n_classes, 0);
        if (with_grad) FN(ask_for_rows)(tile->grad, &tile->grad_layout, i, n_classes, 1);
#define IN_LANES(n, plain) \
    do { \
        if (with_grad) FN(anchored_lanes)(tile, n, i, plain, 1, &given, rows); \
        else FN(anchored_lanes)(tile, n, i, plain, 0, &given, rows); \
    } while (0)
        if (plain && n_classes == 2) IN_LANES(2, 1);
        else if (plain) IN_LANES(n_classes, 1);
        else IN_LANES(n_classes, 0);
#undef IN_LANES
    }
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        if (given.target[i] >= 0 && n_classes != 2) x[given.target[i] * TILE + i] = given.x_y[i];
        far[n_far] = i;
        n_far += given.done[i] == 0;
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
