/* Sweep and write: everything that touches the logits and the gradient of a tile.
 *
 * Included once per REAL_BITS, before all that walks rows. For a row x with target y
 *
 *     sweep   m = max_j x_j,  r = sum_{j != y} exp(x_j - m),  x_y,  exp(x_y - m)   -> Rows
 *     write   g_j = alpha p_j,  g_y = beta                                         <- Rows
 *
 * The target's own term never enters r, so loss and gradient lose no digits where the model is
 * sure. Two walks do the same work:
 *
 *     along    the row lies along the vectors    class axis contiguous, many classes
 *     across   a row in every lane               few classes, or rows adjacent in memory
 *
 * The sweep stages its exps, along a row in the gradient itself where that is contiguous native
 * memory, else in a scratch, and write only scales them. Those of a row that is too long for it write
 * computes again, to the same bits.
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

/* Fills in the rows' sums from the maxima, the targets' logits and the sums of the exps but the target's. Where
 * the target is not the maximum, the latter's own term is exactly 1 in r, whatever it was in the sum. */
INLINE void FN(finish_rows_in)(const Tile *tile, const FN(Units) *units, const REAL *max, const REAL *at_target,
                               const double *sum, const double *error, Rows *rows)
{
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        const vec m = FN(load)(max + i);
        const FN(Exps) exps = FN(exps_against)(m, units);
        REAL top[LANES_COUNT], target[LANES_COUNT];
        FN(store)(top, FN(exps)(m, &exps));
        FN(store)(target, FN(exps)(FN(load)(at_target + i), &exps));
        for (ptrdiff_t k = 0; k < LANES; k += LANES_F64) {
            const vec_f64 m_wide = FN(load_wide)(max + i + k), x_y = FN(load_wide)(at_target + i + k);
            const mask_f64 is_max = not_less_f64(x_y, m_wide);
            const FN(Wide) to_rest = FN(to_rest)(FN(correction)(&exps, k));
            const FN(Wide) s = FN(normalised)(load_f64(sum + i + k), load_f64(error + i + k));
            const FN(Wide) rest = FN(wide_product)(s, to_rest);
            const FN(Wide) without_top = FN(wide_product)(FN(wide_sum)(s, -FN(load_wide)(top + k)), to_rest);
            const FN(Wide) with_one = FN(wide_sum)(without_top, splat_f64(REST_SCALE));
            const vec_f64 e_y = FN(load_wide)(target + k);
            store_f64(rows->max + i + k, m_wide);
            store_f64(rows->at_target + i + k, x_y);
            store_f64(rows->rest + i + k, select_f64(is_max, rest.high, with_one.high));
            store_f64(rows->rest_low + i + k, select_f64(is_max, rest.low, with_one.low));
            store_f64(rows->target_exp + i + k, select_f64(is_max & not_less_f64(m_wide, x_y), REST_SCALE + 0 * x_y,
                                                           FN(wide_product)((FN(Wide)){e_y, {0}}, to_rest).high));
            if (!tile->grad) continue;
            const FN(Wide) all = FN(wide_sum)(s, e_y);
            const vec_f64 unit = EXP_POWER / all.high;
            store_f64(rows->unit + i + k, fma_f64(-unit, all.low / all.high, unit));
        }
    }
}

static void FN(finish_rows)(const Tile *tile, const REAL *max, const REAL *at_target, const double *sum,
                            const double *error, Rows *rows)
{
    const FN(Units) *units = FN(units)(&tile->formula->temperature);
    if (units->inverse == 1) FN(finish_rows_in)(tile, &FN(plain_units), max, at_target, sum, error, rows);
    else FN(finish_rows_in)(tile, units, max, at_target, sum, error, rows);
}

/* ---- What write multiplies exps by -------------------------------------------------------- */

/* coefficient * scale / EXP_POWER as a product a b b, where b is nearly always 1: as one factor it could be
 * subnormal in REAL and cost a normal gradient its digits. Then a is larger by LIFT and b a power of two. A finite
 * a stays finite, or an exp of 0 would make it NaN. Returns whether all b are 1. */
#undef LIFT
#undef UNLIFT
#if REAL_BITS == 64
#define LIFT 0x1p200
#define UNLIFT 0x1p-132 /* squared: 1 / (EXP_POWER LIFT) */
#else
#define LIFT 0x1p48
#define UNLIFT 0x1p-72
#endif
INLINE int FN(factors)(vec_f64 coefficient, double scale, REAL *a, REAL *b)
{
    const vec_f64 scaled = coefficient * (scale / EXP_POWER), most = splat_f64(REAL_MAX);
    const mask_f64 normal = not_less_f64(larger_f64(scaled, -scaled), splat_f64(REAL_TINY));
    vec_f64 first = select_f64(normal, scaled, coefficient * (scale * LIFT));
    const mask_f64 finite = not_less_f64(splat_f64(REAL_MAX_F64), larger_f64(first, -first));
    if (REAL_BITS == 32) first = select_f64(finite, lesser_f64(most, larger_f64(-most, first)), first);
    FN(store_narrow)(a, first);
    FN(store_narrow)(b, select_f64(normal, splat_f64(1), splat_f64(UNLIFT)));
    return every_lane_f64(normal);
}

typedef struct { REAL a, b; } FN(Factor);

INLINE FN(Factor) FN(factor)(double coefficient, double scale)
{
    REAL a[LANES_COUNT], b[LANES_COUNT];
    FN(factors)(splat_f64(coefficient), scale, a, b);
    return (FN(Factor)){a[0], b[0]};
}

INLINE void FN(write_target)(const Tile *tile, const Rows *rows, ptrdiff_t i)
{
    const Layout *to = &tile->grad_layout;
    if (rows->label[i] < 0 || tile->formula->by_element || tile->formula->kind == LOG_SOFTMAX) return;
    char *at = tile->grad + i * to->row_stride + rows->label[i] * to->class_stride;
    if (FN(is_native)(to)) FN(store_one)(at, (REAL)rows->beta[i], REAL_FORMAT, 0);
    else FN(store_one)(at, (REAL)rows->beta[i], to->format, to->swapped);
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
