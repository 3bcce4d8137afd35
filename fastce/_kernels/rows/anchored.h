/* Cross-entropy from labels across rows, perhaps with a temperature: each row against its target's own logit.
 *
 * Included once per REAL_BITS, after plain.h. With d_j = (x_j - x_y) / T and r = sum_{j != y} exp(d_j)
 *
 *     loss = w log1p(r)        g_j = alpha exp(d_j) / (1 + r)        g_y = -alpha r / (1 + r)
 *
 * with alpha = w / (normalizer T), from logits in the scratch to gradients in their place: sweep, epilogue and write of
 * a tile, each a loop over vectors of rows that do not wait for one another. Every class but the target is treated
 * alike, whichever is the largest.
 *
 * Exps are staged as vmath.h has them, with a factor of the row that no quotient of two has: r = sum / exp(x_y) and
 * g_j = alpha exp(x_j) / (exp(x_y) + sum). Its power of two is 2^(ANCHOR_SHIFT - k) against x_y, 2^k near the largest
 * of exp(d_j): then neither an exp nor what it is multiplied by leaves the normal numbers. Where the largest logit m is
 * more than FAR_GAP above the target's the row is far. It has m for an anchor in the same sweep, and with r against m,
 * beside which exp(x_y - m) is nothing,
 *
 *     loss = w ((m - x_y) + log r)        g_j = alpha exp(x_j - m) / r        g_y = -alpha.
 *
 * Largest errors of float32 losses that hill climbing finds among 3 to 10 classes, without a temperature: 1.91 ULP (v3)
 * at logits of -0.40629184, -7.3330407, -1.6735141 and 1.75 ULP (baseline) at 5.9087324, 0.02673393, 4.5059867,
 * -2.7993119, 0.70783275, -0.6921279, -2.813828, the first one the target's.
 */
#ifndef FASTCE_ANCHORED_H
#define FASTCE_ANCHORED_H
#ifdef LEVEL_V4 /* up to so many a target is found by comparing, beyond in memory */
#define FEW_CLASSES 20
#else
#define FEW_CLASSES 8
#endif
#endif

#undef FAR_GAP
#undef REAL_EPSILON
#if REAL_BITS == 64
#define FAR_GAP 600.0
#define REAL_EPSILON 0x1p-52
#else
#define FAR_GAP 80.0f
#define REAL_EPSILON 0x1p-23f
#endif

/* What passes between sweep, epilogue and write. */
typedef struct {
    INT target[TILE];                          /* -1: ignored */
    REAL x_y[TILE], anchor[TILE], near[TILE];  /* near: 0 where the row is far */
    REAL gap[TILE];                            /* of the largest logit above x_y; 0 of far rows */
    REAL sum[TILE], low[TILE];                 /* of the staged exps but the target's, and what that lacks */
    REAL own[TILE], own_low[TILE], by_own[TILE]; /* the staged exp of the anchor; 1 / own */
    REAL unit[TILE], peak[TILE], whole[TILE];  /* what makes gradients of staged exps; -g_y; alpha */
} FN(Anchored);

INLINE FN(mask) FN(are_set)(const REAL *flags) { return FN(not_less)(FN(load)(flags), FN(splat)(1)); }

/* ---- Sweep --------------------------------------------------------------------------------- */

/* Exps against an anchor, scaled as said above. gap: of the largest logit above it. */
INLINE FN(Exps) FN(anchored_exps)(vec anchor, vec gap, const FN(Units) *units)
{
    const vec k = FN(fma)(gap * units->inverse, FN(splat)((REAL)LOG2E), FN(splat)(TO_INTEGER)) - TO_INTEGER;
    FN(Exps) exps = FN(exps_against)(anchor, units);
    exps.bias += STEPS * (ANCHOR_SHIFT - EXP_SHIFT) - STEPS * k;
    exps.lowest += gap + (ANCHOR_LOWEST / EXP_LOWEST - 1) * units->lowest;
    return exps;
}

/* The sum over a vector of rows but of their targets; stages the exps. few: the targets are not at -inf yet. writes:
 * memory to write to is asked for. */
INLINE FN(Sum) FN(sum_lanes)(REAL *x, ptrdiff_t n_classes, const FN(Exps) *exps, ivec y, int few, int stage, int writes,
                             const FN(Ahead) *ahead)
{
    FN(Sum) sum = {{0}, {0}};
    ivec here = {0};
    for (ptrdiff_t c = 0; c < n_classes; c++, here += 1) {
        FN(ask_for_class)(ahead, c, writes);
        const FN(mask) others = few ? FN(differ)(y, here) : EVERY_LANE;
        const vec logit = FN(load)(x + c * TILE);
        const FN(Exp) e = FN(exp_where)(others, logit, exps);
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

/* What sum_lanes returns, and the staged exps of the anchors and of the targets. */
typedef struct { FN(Sum) others, anchor, target; } FN(Staged);

INLINE FN(Staged) FN(stage_lanes)(REAL *x, ptrdiff_t n_classes, vec anchor, vec x_y, const FN(Exps) *exps, ivec y,
                                  int few, int stage, int writes, const FN(Ahead) *ahead)
{
    const FN(Sum) own = FN(exp_and_rest)(FN(exp_where)(EVERY_LANE, anchor, exps));
    const FN(Sum) target = FN(exp_and_rest)(FN(exp_where)(EVERY_LANE, x_y, exps));
    return (FN(Staged)){FN(sum_lanes)(x, n_classes, exps, y, few, stage, writes, ahead), own, target};
}

INLINE FN(Staged) FN(stage)(REAL *x, ptrdiff_t n_classes, vec anchor, vec gap, vec x_y, ivec y, int few, int stage,
                            int writes, const FN(Ahead) *ahead, const FN(Units) *units)
{
    const FN(Exps) plain = FN(anchored_exps)(anchor, gap, &FN(plain_units));
    if (units->inverse == 1 && FN(are_near)(&plain)) {
        const FN(Exps) near_exps = FN(near_exps)(plain);
        return FN(stage_lanes)(x, n_classes, anchor, x_y, &near_exps, y, few, stage, writes, ahead);
    }
    const FN(Exps) exps = FN(anchored_exps)(anchor, gap, units);
    return FN(stage_lanes)(x, n_classes, anchor, x_y, &exps, y, few, stage, writes, ahead);
}

/* Where the sums of a vector of rows start from, in a loop of its own: sums have nothing to wait for. */
INLINE void FN(find_anchors)(const REAL *x, ptrdiff_t n_classes, ptrdiff_t i, int few, const FN(Units) *units,
                             FN(Anchored) *a)
{
    ivec y, here = {0};
    memcpy(&y, a->target + i, sizeof y);
    x += i;
    vec x_y = few ? FN(load)(x) : FN(load)(a->x_y + i), most = x_y;
    if (!few) most = FN(largest_in_lanes)(x, n_classes, x_y);
    for (ptrdiff_t c = 1; few && c < n_classes; c++) {
        const vec x_c = FN(load)(x + c * TILE);
        here += 1;
        x_y = FN(select)(FN(differ)(y, here), x_y, x_c);
        most = FN(larger)(x_c, most);
    }
    const vec gap = most - x_y;
    const FN(mask) near = FN(not_less)(FN(splat)(FAR_GAP), gap * units->inverse);
    FN(store)(a->x_y + i, x_y);
    FN(store)(a->anchor + i, FN(select)(near, x_y, most));
    FN(store)(a->near + i, FN(keep)(near, FN(splat)(1)));
    FN(store)(a->gap + i, FN(keep)(near, gap));
}

INLINE void FN(sum_exps)(REAL *x, ptrdiff_t n_classes, ptrdiff_t i, int few, int stage, int writes,
                         const FN(Ahead) *ahead, const FN(Units) *units, FN(Anchored) *a)
{
    const vec anchor = FN(load)(a->anchor + i), gap = FN(load)(a->gap + i);
    ivec y;
    memcpy(&y, a->target + i, sizeof y);
    const FN(Staged) staged = FN(stage)(x + i, n_classes, anchor, gap, anchor, y, few, stage, writes, ahead, units);
    FN(store)(a->sum + i, staged.others.high + (anchor - anchor)); /* NaN where that is infinite */
    FN(store)(a->low + i, staged.others.low);
    FN(store)(a->own + i, staged.anchor.high);
    FN(store)(a->own_low + i, staged.anchor.low);
    FN(store)(a->by_own + i, 1 / staged.anchor.high);
}

/* ---- Epilogue ------------------------------------------------------------------------------ */

/* From sums to r, log(1 + r) or of a far row log r, and the factors of a gradient: of staged exps, and -g_y, which is
 * alpha where the row is far or it was rounded to more than that. */
INLINE void FN(finish)(const FN(Sum) *by, ptrdiff_t i, int plain, const FN(Sum) *alpha, FN(Anchored) *a, Rows *rows,
                       FN(Usual) *usual)
{
    const FN(Sum) sum = {FN(load)(a->sum + i), FN(load)(a->low + i)};
    const FN(Sum) own = {FN(load)(a->own + i), FN(load)(a->own_low + i)};
    const FN(mask) near = FN(are_set)(a->near + i);
    const FN(Sum) r = FN(joined)(FN(quotient)(sum, own, FN(load)(a->by_own + i)));
    const FN(Sum) log_s = FN(log1p_of_pair)(FN(select)(near, r.high, r.high - 1), r.low);
    const vec m = FN(load)(a->anchor + i), x_y = FN(load)(a->x_y + i), gap = m - x_y, back = gap - m;
    FN(Sum) gaps = {gap, (m - (gap - back)) - (x_y + back)}; /* TwoSum */
    if (by) gaps = FN(product)(gaps, *by);
    FN(finish_losses)(gaps, log_s, plain, i, rows, usual);
    if (!alpha) return;
    const FN(Sum) all = FN(add_sums)((FN(Sum)){FN(keep)(near, own.high), FN(keep)(near, own.low)}, sum);
    const FN(Sum) units = FN(quotient)(*alpha, all, 1 / all.high);
    const vec whole = alpha->high, unit = units.high + units.low, peak = sum.high * unit;
    const FN(mask) is_below = FN(not_less)(FN(absolute)(whole), FN(absolute)(peak));
    FN(store)(a->whole + i, whole);
    FN(store)(a->unit + i, unit);
    FN(store)(a->peak + i, FN(select)(is_below & near, peak, whole + 0 * peak)); /* NaN stays */
}

/* by: 1 / T, or NULL. Returns whether no row is extreme, for certain. */
INLINE int FN(finish_rows_by)(const Tile *tile, const FN(Sum) *by, int plain, const FN(Alphas) *alphas, FN(Anchored) *a,
                              Rows *rows)
{
    FN(Usual) usual = FN(usual)();
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        FN(Sum) alpha = {{0}, {0}};
        if (tile->grad) alpha = FN(alpha)(alphas, plain ? 0 : i);
        FN(finish)(by, i, plain, tile->grad ? &alpha : NULL, a, rows, &usual);
    }
    return FN(is_usual)(usual);
}

INLINE int FN(anchored_epilogue)(const Tile *tile, int plain, FN(Anchored) *a, Rows *rows)
{
    const Formula *f = tile->formula;
    FN(Alphas) alphas;
    if (tile->grad) FN(find_alphas)(f, rows, plain ? 1 : tile->n_rows, &alphas);
    if (f->temperature.factor == f->temperature.divisor) return FN(finish_rows_by)(tile, NULL, plain, &alphas, a, rows);
    const FN(Sum) by = FN(inverse)(&f->temperature);
    return FN(finish_rows_by)(tile, &by, plain, &alphas, a, rows);
}

/* ---- Write --------------------------------------------------------------------------------- */

/* The gradient in place of the exps; of targets too if they are few. */
INLINE void FN(anchored_write)(REAL *x, ptrdiff_t n_classes, ptrdiff_t i, int few, int plain,
                               const FN(Anchored) *a)
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
        vec g = e * unit;
        if (!below) { /* no gradient is above alpha, and a far row's only finite class has that */
            const FN(mask) is_one_of_some = near | FN(not_less)(top * (1 - REAL_EPSILON), e);
            g = FN(select)(is_one_of_some & FN(not_less)(most, FN(absolute)(g)), g, alpha + 0 * g);
        }
        if (few) g = FN(select)(FN(differ)(y, here), g, down);
        FN(store)(x + c * TILE, plain ? g : FN(keep)(used, g));
    }
}

/* Of an ignored row the first class: there is no need to branch on what is as good as random. */
INLINE ptrdiff_t FN(place_of_target)(const FN(Anchored) *a, ptrdiff_t i)
{
    return (a->target[i] < 0 ? 0 : a->target[i]) * TILE + i;
}

/* ---- A tile -------------------------------------------------------------------------------- */

/* Losses, and gradients in the scratch, of all rows but the extreme; those are noted and counted. few: targets are
 * found by comparing. */
INLINE ptrdiff_t FN(anchored_rows)(const Tile *tile, int few, int plain, FN(Anchored) *a, Rows *rows,
                                   ptrdiff_t *extreme)
{
    const int with_grad = tile->grad != NULL;
    const ptrdiff_t n_classes = tile->n_classes;
    const FN(Units) units = *FN(units)(&tile->formula->temperature); /* a copy: stores do not change it */
    REAL *x = (REAL *)tile->scratch;
    for (ptrdiff_t i = 0; !few && i < FN(in_vectors)(tile->n_rows); i++) {
        REAL *at = x + FN(place_of_target)(a, i);
        a->x_y[i] = *at;
        *at = -INFINITY; /* out of the sum */
    }
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) FN(find_anchors)(x, n_classes, i, few, &units, a);
    const FN(Ahead) first = FN(ahead)(tile, n_classes);
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        const FN(Ahead) ahead = FN(ahead_of)(&first, tile, i);
        FN(sum_exps)(x, n_classes, i, few, with_grad, with_grad, &ahead, &units, a);
    }
    const int usual = FN(anchored_epilogue)(tile, plain, a, rows);
    for (ptrdiff_t i = 0; with_grad && i < tile->n_rows; i += LANES)
        FN(anchored_write)(x, n_classes, i, few, plain, a);
    for (ptrdiff_t i = 0; with_grad && !few && i < tile->n_rows; i++)
        x[FN(place_of_target)(a, i)] = a->target[i] < 0 ? 0 : 0 - a->peak[i];
    if (usual) return 0;
    return FN(find_extreme)(rows, tile->n_rows, plain ? rows->loss : rows->given, plain ? NULL : rows->weight, extreme);
}

static __attribute__((noinline)) ptrdiff_t FN(anchored_tile)(const Tile *tile, Rows *rows, ptrdiff_t *extreme)
{
    const ptrdiff_t n_classes = tile->n_classes;
    if (n_classes == 2) return FN(tile_of_two)(tile, rows, extreme);
    FN(Anchored) a;
    FN(fetch_plane)(tile, tile->logits, &tile->logits_layout, 0, n_classes, (REAL *)tile->scratch);
    const int plain = FN(find_labels)(rows, tile->n_rows, a.target) && !rows->weighted;
    if (plain && n_classes <= FEW_CLASSES) return FN(anchored_rows)(tile, 1, 1, &a, rows, extreme);
    if (plain) return FN(anchored_rows)(tile, 0, 1, &a, rows, extreme);
    return FN(anchored_rows)(tile, 0, 0, &a, rows, extreme);
}

static void FN(put_anchored)(const Tile *tile)
{
    FN(put_plane)(tile, tile->grad, &tile->grad_layout, 0, tile->n_classes, (const REAL *)tile->scratch);
}
