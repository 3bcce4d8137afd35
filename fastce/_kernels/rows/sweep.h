/* Sweep and write: everything that touches the logits and the gradient of a tile.
 *
 * Included once per REAL_BITS, before all that walks rows. For a row x with target y
 *
 *     sweep   r = sum_{j != y} exp(x_j - m),  x_y,  exp(x_y - m)   -> Rows
 *     write   g_j = alpha p_j,  g_y = beta                         <- Rows
 *
 * m, the anchor, is x_y itself where that is near the largest logit, and the largest else. (Of a softmax, which has no
 * target, it lies above the first logits where that is near.) The target's own term never enters r, so loss and
 * gradient lose no digits where the model is sure. Two walks do the same work:
 *
 *     along    the row lies along the vectors    class axis contiguous, many classes
 *     across   a row in every lane               few classes, or rows adjacent in memory
 *
 * The sweep stages its exps, along a row in the gradient itself where that is contiguous native memory and not to be
 * written past the caches, else in a scratch, and write only scales them. Those of a row that is too long for it
 * write computes again, to the same bits.
 *
 * Sums are in more than REAL (sum_vec) from the first addition on, and have the same tree at every place in a
 * batch. Adding pairs in REAL would be a tenth faster, and its rounding error enough to take a loss beyond 2 ULP:
 * where log1p(r) lies just below a power of two and r above, an ULP of r counts twice.
 */

#undef REAL_MAX
#undef REAL_TINY
#define REAL_MAX_F64 0x1.fffffffffffffp+1023
#if REAL_BITS == 64
#define REAL_MAX REAL_MAX_F64
#define REAL_TINY 0x1p-1022
#else
#define REAL_MAX 0x1.fffffep+127
#define REAL_TINY 0x1p-126
#endif

INLINE int FN(is_native)(const Layout *layout)
{
    return layout->format == REAL_FORMAT && !layout->swapped;
}

INLINE int FN(is_contiguous)(const Layout *layout)
{
    return FN(is_native)(layout) && layout->class_stride == sizeof(REAL);
}

INLINE ptrdiff_t FN(smaller)(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* So many rows, and what is left of the last vector of them. */
INLINE ptrdiff_t FN(in_vectors)(ptrdiff_t n_rows) { return (n_rows + LANES - 1) / LANES * LANES; }

#if REAL_BITS == 64
/* Rows from i on that are not ignored. */
INLINE mask_f64 are_used(const Rows *rows, ptrdiff_t i)
{
    ivec label;
    memcpy(&label, rows->label + i, sizeof label);
    return differ_f64(label, (ivec){0} - 1);
}
#endif

/* ---- Which anchor ------------------------------------------------------------------------- */

#ifndef FASTCE_ANCHOR_H
#define FASTCE_ANCHOR_H
/* The exps count with factors of their own. */
INLINE int is_weighted(const Tile *tile) { return tile->formula->kind == LOG_SUM_EXP && tile->q; }

INLINE int has_target(const Tile *tile)
{
    const Kind kind = tile->formula->kind;
    return kind != SOFTMAX && kind != LOG_SOFTMAX && kind != LOG_SUM_EXP;
}

/* log s = log1p(r) wants the maximum as the target, where any class would do. */
INLINE int takes_maximum(const Tile *tile) { return !has_target(tile) && tile->formula->kind != SOFTMAX && !tile->q; }

/* A loss of one term, where a row needs no maximum but to know that its target is near it. What has other terms counts
 * them from the maximum, so that none is negative. */
INLINE int anchors_at_target(const Tile *tile)
{
    const Formula *f = tile->formula;
    return (f->kind == CROSS_ENTROPY || f->kind == FOCAL) && !f->has_terms && !f->by_element && f->z_loss == 0;
}

#define FIRST_LOGITS 64 /* of a softmax, that say where the anchor lies */
#define LONG_ROW 1024 /* shorter ones are in the first cache */

/* Rows are summed before their largest logit is known, in one read where that turns out to be near the anchor. */
INLINE int anchors_early(const Tile *tile)
{
    if (tile->formula->kind == SOFTMAX) return !tile->formula->by_element && tile->n_classes >= LONG_ROW;
    return anchors_at_target(tile);
}
#endif

/* Whether no exp against the anchor overflows, m being the largest logit. */
INLINE int FN(is_near)(REAL m, REAL anchor, const FN(Units) *units) { return (m - anchor) * units->inverse <= NEAR; }

/* Whether the sweep leaves the exps for write. The logarithm of a softmax is written from the logits. */
INLINE int FN(stages)(const Tile *tile) { return tile->grad && tile->formula->kind != LOG_SOFTMAX; }

/* ---- What sweep hands on ------------------------------------------------------------------ */

/* A number as an unevaluated sum. In float64 r is one: log1p may make two ULP of one. */
typedef struct { vec_f64 high, low; } FN(Wide);

/* What makes sums of exp(x_j - m) REST_SCALE of sums of staged exps: the factor REST_SCALE exp(-offset) / EXP_SCALE. */
INLINE FN(Wide) FN(to_rest)(vec_f64 correction)
{
#if REAL_BITS == 64 /* REST_SCALE = EXP_POWER */
    const vec_f64 scale = splat_f64(1 / EXP_TABLE_SCALE), high = fma_f64(scale, correction, scale);
    const vec_f64 product = scale * correction, lost = product_error_f64(scale, correction, product);
    return (FN(Wide)){high, ((scale - high) + product) + (lost + EXP_TABLE_RECIPROCAL_LOW)};
#else
    const vec_f64 scale = splat_f64(REST_SCALE / EXP_SCALE);
    return (FN(Wide)){fma_f64(scale, correction, scale), {0}};
#endif
}

/* The same number, `low` less than half an ULP of `high`. */
INLINE FN(Wide) FN(normalised)(vec_f64 high, vec_f64 low)
{
#if REAL_BITS == 64
    const vec_f64 sum = high + low;
    return (FN(Wide)){sum, low - (sum - high)};
#else
    (void)low;
    return (FN(Wide)){high, {0}};
#endif
}

INLINE FN(Wide) FN(wide_product)(FN(Wide) a, FN(Wide) b)
{
    const vec_f64 high = a.high * b.high;
#if REAL_BITS == 64
    return FN(normalised)(high, product_error_f64(a.high, b.high, high) + (a.high * b.low + a.low * b.high));
#else
    return FN(normalised)(high, (vec_f64){0});
#endif
}

INLINE FN(Wide) FN(wide_sum)(FN(Wide) a, vec_f64 b)
{
    const vec_f64 high = a.high + b;
#if REAL_BITS == 64
    const vec_f64 part = high - a.high;
    return FN(normalised)(high, ((a.high - (high - part)) + (b - part)) + a.low);
#else
    return FN(normalised)(high, (vec_f64){0});
#endif
}

/* Fills in the rows' sums, in units of the anchors' exp, from the anchors, the targets' logits and the sums of the
 * staged exps but the target's. Where it is not in the row's sums, a target has the logit -inf. An anchor that is not the
 * target is the maximum: its own term is exactly 1 in r, whatever it was in the sum, or the row's log s could be none. */
INLINE void FN(finish_rows_in)(const Tile *tile, const FN(Units) *units, const REAL *anchor, const REAL *at_target,
                               const double *sum, const double *error, Rows *rows)
{
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        const FN(Exps) exps = FN(exps_against)(FN(load)(anchor + i), units);
        REAL top[LANES_COUNT], target[LANES_COUNT];
        FN(store)(top, FN(exps)(FN(load)(anchor + i), &exps));
        FN(store)(target, FN(exps)(FN(load)(at_target + i), &exps));
        for (ptrdiff_t k = 0; k < LANES; k += LANES_F64) {
            const vec_f64 m = FN(load_wide)(anchor + i + k), x_y = FN(load_wide)(at_target + i + k);
            const mask_f64 is_anchor = not_less_f64(x_y, m) & not_less_f64(m, x_y);
            const FN(Wide) to_rest = FN(to_rest)(FN(correction)(&exps, k));
            const FN(Wide) s = FN(normalised)(load_f64(sum + i + k), load_f64(error + i + k));
            const FN(Wide) whole = FN(wide_product)(s, to_rest);
            const FN(Wide) without_top = FN(wide_product)(FN(wide_sum)(s, -FN(load_wide)(top + k)), to_rest);
            const FN(Wide) with_one = FN(wide_sum)(without_top, splat_f64(REST_SCALE));
            const FN(Wide) rest = {select_f64(is_anchor, whole.high, with_one.high),
                                   select_f64(is_anchor, whole.low, with_one.low)};
            const vec_f64 e_y = FN(load_wide)(target + k);
            store_f64(rows->anchor + i + k, m);
            store_f64(rows->at_target + i + k, x_y);
            store_f64(rows->rest + i + k, is_weighted(tile) ? whole.high : rest.high);
            store_f64(rows->rest_low + i + k, is_weighted(tile) ? whole.low : rest.low);
            store_f64(rows->target_exp + i + k, select_f64(is_anchor, REST_SCALE + 0 * x_y,
                                                           FN(wide_product)((FN(Wide)){e_y, {0}}, to_rest).high));
            if (!tile->grad) continue;
            const FN(Wide) all = FN(wide_sum)(s, e_y);
            store_f64(rows->all + i + k, all.high);
            store_f64(rows->all_low + i + k, all.low);
        }
    }
}

/* A softmax has no target: its exps are divided by their sum, whatever the anchor. */
INLINE void FN(finish_softmaxes)(const Tile *tile, const REAL *anchor, const double *sum, const double *error,
                                 Rows *rows)
{
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES_F64) {
        const FN(Wide) all = FN(normalised)(load_f64(sum + i), load_f64(error + i));
        store_f64(rows->anchor + i, FN(load_wide)(anchor + i));
        store_f64(rows->all + i, all.high);
        store_f64(rows->all_low + i, all.low);
    }
}

static void FN(finish_rows)(const Tile *tile, const REAL *anchor, const REAL *at_target, const double *sum,
                            const double *error, Rows *rows)
{
    const FN(Units) *units = FN(units)(&tile->formula->temperature);
    if (tile->formula->kind == SOFTMAX) FN(finish_softmaxes)(tile, anchor, sum, error, rows);
    else if (units->inverse == 1) FN(finish_rows_in)(tile, &FN(plain_units), anchor, at_target, sum, error, rows);
    else FN(finish_rows_in)(tile, units, anchor, at_target, sum, error, rows);
}

/* ---- What write multiplies exps by ---------------------------------------------------------
 *
 * f p_j = f e_j / s, where s is the sum of all exps and f is rounded to REAL: a softmax is a distribution, and so is
 * a gradient off the target but for its factor.
 *
 *     with a fused multiply-add    fma(e, a, e c) b,  a + c = f / (s b) in two parts, a between 4 and 8
 *     without                      e / a c b,         a = s / LIFT, c b = f / LIFT
 *
 * b is a power of two: nothing on the way overflows or is subnormal, but where f is extreme. Either way the result grows
 * with e, which is at most s; at e = s, where no other class counts, it is f; and equal exps have equal results. */
typedef struct { REAL a, c, b; } FN(Factor);

#undef LIFT
#undef MOST
#if REAL_BITS == 64
#define LIFT 0x1p500
#define MOST 0x1p1000 /* of b, and of 1 / b */
#else
#define LIFT 0x1p96
#define MOST 0x1p126
#endif

/* The power of two below |v|, which may be 0, times `by`; between 1 / MOST and MOST. */
INLINE vec_f64 FN(power_below)(vec_f64 v, double by)
{
    const vec_f64 power = (vec_f64)((ivec_f64)v & (int64_t)0x7ff0000000000000) * by;
    return larger_f64(splat_f64(1 / MOST), lesser_f64(splat_f64(MOST), power));
}

/* As a REAL: a finite number stays finite, or an exp of 0 would make it NaN. */
INLINE void FN(store_finite)(REAL *p, vec_f64 v)
{
    const vec_f64 most = splat_f64(REAL_MAX);
    const mask_f64 finite = not_less_f64(splat_f64(REAL_MAX_F64), larger_f64(v, -v));
    FN(store_narrow)(p, select_f64(finite, lesser_f64(most, larger_f64(-most, v)), v));
}

/* Those of LANES_F64 rows, whose exps have the sums s + s_low. */
INLINE void FN(factors)(vec_f64 f, vec_f64 s, vec_f64 s_low, REAL *a, REAL *c, REAL *b)
{
    const vec_f64 zero = {0}, most = splat_f64(REAL_MAX);
    FN(store_narrow)(a, f);
    f = select_f64(not_less_f64(most, larger_f64(f, -f)), FN(load_wide)(a), f); /* or beyond what REAL can hold */
#ifdef HAS_FMA
    const vec_f64 by_s = 1 / s, power = FN(power_below)(f * by_s, 0.25);
    /* f / power: biased exponents of 2^k and 2^-k add up to 2046, and neither is at the end of its range. */
    const vec_f64 lifted = f * (vec_f64)((int64_t)0x7fe0000000000000 - (ivec_f64)power);
    FN(store_finite)(a, lifted * by_s);
    const vec_f64 whole = FN(load_wide)(a), rest = (fma_f64(-whole, s, lifted) - whole * s_low) * by_s;
    const vec_f64 least = whole * 0x1p-20; /* more: a is REAL_MAX or infinite */
    FN(store_narrow)(c, select_f64(not_less_f64(larger_f64(least, -least), larger_f64(rest, -rest)), rest, zero));
#else
    (void)s_low;
    const vec_f64 power = FN(power_below)(f, 1 / LIFT), lowered = s * (1 / LIFT);
    FN(store_narrow)(a, lowered);
    FN(store_finite)(c, f / power * (1 / LIFT) * (FN(load_wide)(a) / lowered) + zero); /* with what a was rounded by */
#endif
    FN(store_narrow)(b, power);
}

/* Those of all rows of a tile. */
typedef struct { REAL a[TILE], c[TILE], b[TILE]; } FN(Factors);

INLINE void FN(set_factors)(const Rows *rows, const double *f, ptrdiff_t n_rows, FN(Factors) *p)
{
    for (ptrdiff_t i = 0; i < n_rows; i += LANES_F64)
        FN(factors)(load_f64(f + i), load_f64(rows->all + i), load_f64(rows->all_low + i), p->a + i, p->c + i, p->b + i);
}

INLINE FN(Factor) FN(factor_of_row)(const FN(Factors) *p, ptrdiff_t i) { return (FN(Factor)){p->a[i], p->c[i], p->b[i]}; }

INLINE FN(Factor) FN(factor)(double f, double s, double s_low)
{
    REAL a[LANES_COUNT], c[LANES_COUNT], b[LANES_COUNT];
    FN(factors)(splat_f64(f), splat_f64(s), splat_f64(s_low), a, c, b);
    return (FN(Factor)){a[0], c[0], b[0]};
}

INLINE vec FN(scaled)(vec e, vec a, vec c, vec b)
{
#ifdef HAS_FMA
    return FN(fma)(e, a, e * c) * b;
#else
    return e / a * c * b;
#endif
}

/* ---- Fetching ahead ------------------------------------------------------------------------
 *
 * A tile is read and written in bursts, with arithmetic between them in which the memory would idle, and
 * the hardware's prefetchers see only the bursts. So while a tile's exps are computed the lines of the
 * tiles to come are asked for, as many as are being used: a third off the time of a batch in memory.
 * A prefetch of an address that is not ours is harmless. */
#ifndef AHEAD_ROWS
#define AHEAD_ROWS 32768 /* bytes: along rows */
#define AHEAD_PLANE 512 /* and where rows are adjacent */
#endif

INLINE void FN(ask_for)(const void *p, ptrdiff_t ahead, ptrdiff_t bytes, int to_write)
{
    for (ptrdiff_t line = 0; line < bytes; line += 64) {
        const char *address = (const char *)((uintptr_t)p + (uintptr_t)(ahead + line));
        if (to_write) __builtin_prefetch(address, 1, 3);
        else __builtin_prefetch(address, 0, 3);
    }
}
