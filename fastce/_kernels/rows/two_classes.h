/* Cross-entropy of two classes from labels across rows: every lane of a vector holds a row.
 *
 * Included once per REAL_BITS, after plain.h. With d = (x_other - x_y) / T, a sum of two REALs, and e = exp(-|d|)
 *
 *     loss = w (max(d, 0) + log1p(e))        g_other = alpha (d > 0 ? 1 : e) / (1 + e)        g_y = -g_other
 *
 * in two loops over vectors of rows that do not wait for one another. Largest errors that hill climbing finds without a
 * temperature: losses 1.61 ULP (float32) and 1.60 (float64), gradients 1.6 ULP; of weighted rows 1.66 and 2.26,
 * gradients 2.6.
 */

typedef struct {
    INT target[TILE];               /* -1: ignored */
    REAL gap[TILE], gap_low[TILE];  /* max(d, 0) */
    REAL e[TILE], e_low[TILE];      /* times ANCHOR_UNIT */
} FN(TwoClasses);

/* exp(d) ANCHOR_UNIT for d.high <= 0. A table's scale is a whole number of its steps and what is left, in d. */
INLINE FN(Sum) FN(exp_of_sum)(FN(Sum) d)
{
    const vec bias = FN(splat)(TO_INTEGER + STEPS * (EXPONENT_BIAS + ANCHOR_SHIFT) - EXP_TABLE_STEPS);
    const vec shifted = FN(fma)(d.high + (REAL)EXP_TABLE_LEFT, FN(splat)(FN(plain_units).per_step), bias);
    FN(Reduced) t = FN(reduce)(d.high, shifted - bias, &FN(plain_units));
#if EXP_TABLE_BITS > 0
    t.high += d.low + (REAL)EXP_TABLE_LEFT;
#else
    t.low += d.low;
#endif
    const FN(mask) counts = FN(not_less)(d.high, FN(splat)(ANCHOR_LOWEST));
    return FN(exp_and_rest)((FN(Exp)){counts, FN(power_of_two)((uvec)shifted), FN(expm1_reduced)(t)});
}

/* by: 1 / T, or NULL. */
INLINE void FN(sweep_two)(const REAL *x, ptrdiff_t i, const FN(Sum) *by, FN(TwoClasses) *a)
{
    ivec y;
    memcpy(&y, a->target + i, sizeof y);
    const uvec sign = (uvec)FN(splat)(-0.0f), flip = (uvec)y << (REAL_BITS - 1);
    const vec x0 = FN(load)(x + i), x1 = FN(load)(x + TILE + i), up = x1 - x0, back = up - x1;
    const vec up_low = (x1 - (up - back)) - (x0 + back); /* TwoSum */
    FN(Sum) d = {(vec)((uvec)up ^ flip), (vec)((uvec)up_low ^ flip)};
    if (by) d = FN(product)(d, *by);
    const FN(mask) below = FN(not_less)((vec){0}, d.high);
    const FN(Sum) e = FN(exp_of_sum)((FN(Sum)){(vec)((uvec)d.high | sign),
                                               (vec)((uvec)d.low ^ (~(uvec)d.high & sign))});
    FN(store)(a->gap + i, FN(larger)((vec){0}, d.high));
    FN(store)(a->gap_low + i, FN(select)(below, 0 * d.high, d.low)); /* infinity leaves a NaN */
    FN(store)(a->e + i, e.high);
    FN(store)(a->e_low + i, e.low);
}

INLINE void FN(losses_of_two)(ptrdiff_t i, int plain, const FN(TwoClasses) *a, Rows *rows, FN(Usual) *usual)
{
    const REAL unscaled = 1 / ANCHOR_UNIT;
    const vec e = FN(load)(a->e + i) * unscaled, e_low = FN(load)(a->e_low + i) * unscaled;
    const FN(Sum) gap = {FN(load)(a->gap + i), FN(load)(a->gap_low + i)};
    FN(finish_losses)(gap, FN(log1p_of_fraction)(e, e_low), plain, i, rows, usual);
}

/* 1 + e, e without its factor. */
INLINE FN(Sum) FN(sum_of_two)(vec e, vec e_low)
{
    const REAL unscaled = 1 / ANCHOR_UNIT;
    const vec all = 1 + e * unscaled;
    return (FN(Sum)){all, (e * unscaled - (all - 1)) + e_low * unscaled};
}

INLINE void FN(write_two)(REAL *x, ptrdiff_t i, int plain, FN(Sum) alpha, const FN(TwoClasses) *a)
{
    const REAL unscaled = 1 / ANCHOR_UNIT;
    const vec e = FN(load)(a->e + i), e_low = FN(load)(a->e_low + i);
    const FN(mask) below = FN(not_less)((vec){0}, FN(load)(a->gap + i));
    const FN(Sum) all = FN(sum_of_two)(e, e_low);
    const FN(Sum) others = {FN(select)(below, e, FN(splat)(ANCHOR_UNIT)), FN(keep)(below, e_low)};
    const FN(Sum) p = FN(quotient)(others, all, 1 / all.high);
    const vec high = alpha.high * unscaled, low = alpha.low * unscaled;
    const vec g = FN(fma)(p.high, high, FN(fma)(p.low, high, p.high * low));
    ivec y;
    memcpy(&y, a->target + i, sizeof y);
    const FN(mask) used = FN(differ)(y, (ivec){0} - 1);
    const vec g1 = (vec)((uvec)g ^ (uvec)y << (REAL_BITS - 1)) + 0, g0 = 0 - g1; /* never -0.0 */
    FN(store)(x + i, plain ? g0 : FN(keep)(used, g0));
    FN(store)(x + TILE + i, plain ? g1 : FN(keep)(used, g1));
}

INLINE void FN(ask_for_two)(const Tile *tile)
{
    const FN(Ahead) first = FN(ahead)(tile, 2);
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        const FN(Ahead) ahead = FN(ahead_of)(&first, tile, i);
        FN(ask_for)(ahead.in.at, 0, 2 * ahead.in.step, 0);
        if (tile->grad) FN(ask_for)(ahead.out.at, 0, 2 * ahead.out.step, 1);
    }
}

/* See anchored_rows. */
INLINE ptrdiff_t FN(rows_of_two)(const Tile *tile, int plain, FN(TwoClasses) *a, Rows *rows, ptrdiff_t *extreme)
{
    const int with_grad = tile->grad != NULL;
    const Formula *f = tile->formula;
    REAL *x = (REAL *)tile->scratch;
    FN(Alphas) alphas;
    FN(Usual) usual = FN(usual)();
    FN(ask_for_two)(tile);
    if (f->temperature.factor == f->temperature.divisor) {
        for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) FN(sweep_two)(x, i, NULL, a);
    } else {
        const FN(Sum) by = FN(inverse)(&f->temperature);
        for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) FN(sweep_two)(x, i, &by, a);
    }
    if (with_grad) FN(find_alphas)(f, rows, plain ? 1 : tile->n_rows, &alphas);
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        FN(losses_of_two)(i, plain, a, rows, &usual);
        if (with_grad) FN(write_two)(x, i, plain, FN(alpha)(&alphas, plain ? 0 : i), a);
    }
    if (FN(is_usual)(usual)) return 0;
    return FN(find_extreme)(rows, tile->n_rows, plain ? rows->loss : rows->given, plain ? NULL : rows->weight, extreme);
}

static ptrdiff_t FN(tile_of_two)(const Tile *tile, Rows *rows, ptrdiff_t *extreme)
{
    FN(TwoClasses) a;
    FN(fetch_plane)(tile, tile->logits, &tile->logits_layout, 0, 2, (REAL *)tile->scratch);
    if (FN(find_labels)(rows, tile->n_rows, a.target) && !rows->weighted)
        return FN(rows_of_two)(tile, 1, &a, rows, extreme);
    return FN(rows_of_two)(tile, 0, &a, rows, extreme);
}
