/* What some losses need of every element besides its exp: transformed logits, terms of all classes, the Hessian.
 *
 * Included once per REAL_BITS, after sweep.h. Runs of n elements, contiguous in cache; where a run is a plane of
 * rows side by side (across.h) what depends on the row or the class is done there.
 */

/* ---- Transforms and their slopes ----------------------------------------------------------- */

/* cap tanh u and its slope 1 - tanh^2 u for u = x / cap, both without cancellation. With e = exp(-2|u|) and
 * w = 2 e / (1 + e)
 *
 *     cap |tanh u| = cap - cap w, or |x| (1 + u^2 q(u^2)) below 1/2        slope = 4 e / (1 + e)^2
 *
 * e is taken of |x| in units of cap / 2: the rounding error of u would grow with u. What e, w and their products lose
 * is kept, so that the result is rounded about once: losses are differences of such numbers. The slope is a factor.
 * Worst error found for caps of 1.5, 30 and 50: 1.55 ULP at 17.4472 of 30 (float32, v3), float64 0.97. */
typedef struct { vec value, slope; } FN(Capped);

INLINE FN(Capped) FN(capped)(vec given, const Formula *formula)
{
    const vec cap = FN(splat)((REAL)formula->softcap), to_one = FN(splat)((REAL)(1 / EXP_SCALE));
    const vec cap_low = FN(splat)((REAL)(formula->softcap - (REAL)formula->softcap)); /* what cap lacks */
    const vec size = FN(larger)(-given, given), u = size / cap, x = u * u;
    const FN(Exps) exps = FN(exps_against)((vec){0}, FN(units)(&formula->half_cap));
    const FN(Exp) scaled = FN(exp_where)(EVERY_LANE, -size, &exps);
    const vec e = FN(value)(scaled) * to_one, e_low = FN(lost)(scaled, FN(value)(scaled)) * to_one;
    const vec whole = 1 + e, whole_low = (1 - whole) + e + e_low, inverse = 1 / whole;
    const vec w = 2 * e * inverse, w_low = (FN(residual)(2 * e, w, whole) + (2 * e_low - w * whole_low)) * inverse;
    const vec missing = cap * w, high = cap - missing;
    const vec lost = FN(product_error)(cap, w, missing) + cap * w_low;
    const vec low = ((cap - high) - missing) - (lost - FN(fma)(-cap_low, w, cap_low));
    vec q;
#if REAL_BITS == 64 /* relative error of the polynomial: 0.025 * 2^-53 */
    q = FN(splat)(0x1.dc73c74c85c85p-15);
    q = FN(fma)(q, x, FN(splat)(-0x1.c8d19a1b9aa45p-13));
    q = FN(fma)(q, x, FN(splat)(0x1.31d125c4bd249p-11));
    q = FN(fma)(q, x, FN(splat)(-0x1.7d491785a6297p-10));
    q = FN(fma)(q, x, FN(splat)(0x1.d6cdf8409b271p-9));
    q = FN(fma)(q, x, FN(splat)(-0x1.226e16365005cp-7));
    q = FN(fma)(q, x, FN(splat)(0x1.664f47b49aec4p-6));
    q = FN(fma)(q, x, FN(splat)(-0x1.ba1ba1b70a20cp-5));
    q = FN(fma)(q, x, FN(splat)(0x1.111111110e2b2p-3));
    q = FN(fma)(q, x, FN(splat)(-0x1.5555555555537p-2));
#else /* 0.007 * 2^-24 */
    q = FN(splat)(-0x1.b5bc66p-8f);
    q = FN(fma)(q, x, FN(splat)(0x1.5d4a12p-6f));
    q = FN(fma)(q, x, FN(splat)(-0x1.b995p-5f));
    q = FN(fma)(q, x, FN(splat)(0x1.110f6p-3f));
    q = FN(fma)(q, x, FN(splat)(-0x1.555552p-2f));
#endif
    const vec series = FN(fma)(size * x, q, size);
    const vec value = FN(select)(FN(not_less)(u, FN(splat)((REAL)0.5)), high + low, series);
    const ivec sign = (ivec)given & (ivec)FN(splat)((REAL)-0.0);
    return (FN(Capped)){(vec)((ivec)value | sign), 4 * e / (whole * whole)};
}

INLINE vec FN(clipped)(vec x) { return FN(lesser)(FN(splat)(1), FN(larger)(FN(splat)(-1), x)); } /* NaN stays */

static void FN(transform)(REAL *x, ptrdiff_t n, const Formula *formula)
{
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const ptrdiff_t count = FN(smaller)(n - j, LANES);
        const vec v = FN(load_n)(x + j, count, 0);
        FN(store_n)(x + j, count, formula->transform == SOFTCAP ? FN(capped)(v, formula).value : FN(clipped)(v));
    }
}

/* From derivatives with respect to the transformed logits z to those with respect to x, in place; no h: NULL. */
static void FN(apply_slopes)(const REAL *x, REAL *g, REAL *h, ptrdiff_t n, const Formula *formula)
{
    const vec cap = FN(splat)((REAL)formula->softcap);
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const ptrdiff_t count = FN(smaller)(n - j, LANES);
        const vec v = FN(load_n)(x + j, count, 0), by_z = FN(load_n)(g + j, count, 0);
        if (formula->transform == COSINES) {
            FN(store_n)(g + j, count, FN(keep)(FN(not_less)(FN(splat)(1), FN(larger)(-v, v)), by_z));
            continue;
        }
        const FN(Capped) t = FN(capped)(v, formula);
        FN(store_n)(g + j, count, by_z * t.slope);
        if (!h) continue;
        const vec second = -2 * (t.value / cap) * t.slope / cap;
        FN(store_n)(h + j, count, FN(load_n)(h + j, count, 0) * t.slope * t.slope + by_z * second);
    }
}

/* ---- Terms: d_j = (even + share q_j) w_j ---------------------------------------------------- */

/* Sums over j != y of d_j = a_j b_j and of d_j (m - z_j) SPREAD_SCALE, which does not overflow. NULL: ones. A d_j
 * of 0 counts nothing, also where z_j is -inf. */
typedef struct { double mass, spread; } FN(TermSums);

/* d_j (m - z_j) SPREAD_SCALE of a vector, and d_j; y: the target's place, counted from here. no_zeros: of d. */
INLINE vec FN(term)(const REAL *z, const REAL *a, const REAL *b, int no_zeros, ptrdiff_t n, vec scaled_m,
                    int has_target, ptrdiff_t y, vec *d)
{
    const vec one = FN(splat)(1), none = {0};
    REAL ones[LANES_COUNT];
    if (n >= LANES) {
        *d = a ? FN(load)(a) : b ? FN(load)(b) : one;
        if (a && b) *d *= FN(load)(b);
    } else {
        FN(store)(ones, one);
        *d = FN(load_n)(a ? a : b ? b : ones, n, 0);
        if (a && b) *d *= FN(load_n)(b, n, 0);
    }
    if (has_target) *d = FN(keep)(FN(differ)(FN(iota)(), (ivec){0} + (INT)y), *d);
    const vec v = n >= LANES ? FN(load)(z) : FN(load_n)(z, n, 0);
    const vec scaled_gap = FN(fma)(v, FN(splat)((REAL)-SPREAD_SCALE), scaled_m);
    if (no_zeros && n >= LANES && !has_target) return a || b ? *d * scaled_gap : scaled_gap;
    return FN(select)(FN(not_less)(none, FN(larger)(-*d, *d)), none, *d * scaled_gap);
}

INLINE FN(TermSums) FN(sum_products)(const REAL *z, const REAL *a, const REAL *b, int no_zeros, int with_mass,
                                     ptrdiff_t n, REAL m, ptrdiff_t y)
{
    const vec scaled_m = FN(splat)((REAL)SPREAD_SCALE * m);
    const ptrdiff_t pair = 2 * LANES, full = n - n % pair;
    sum_vec mass = {{0}, {0}}, spread = {{0}, {0}};
    vec d[2], t[2];
    for (ptrdiff_t j = 0; j < n; j += pair) {
        const int has_target = y >= j && y < j + pair;
        const REAL *at_a = a ? a + j : NULL, *at_b = b ? b + j : NULL;
        d[1] = t[1] = (vec){0};
        if (j < full && !has_target) {
            t[0] = FN(term)(z + j, at_a, at_b, no_zeros, LANES, scaled_m, 0, 0, &d[0]);
            t[1] = FN(term)(z + j + LANES, at_a ? at_a + LANES : NULL, at_b ? at_b + LANES : NULL, no_zeros, LANES,
                            scaled_m, 0, 0, &d[1]);
        } else {
            t[0] = FN(term)(z + j, at_a, at_b, no_zeros, FN(smaller)(n - j, LANES), scaled_m, 1, y - j, &d[0]);
            if (n - j > LANES)
                t[1] = FN(term)(z + j + LANES, at_a ? at_a + LANES : NULL, at_b ? at_b + LANES : NULL,
                                no_zeros, FN(smaller)(n - j - LANES, LANES), scaled_m, 1, y - j - LANES, &d[1]);
        }
#if REAL_BITS == 32 /* one addition in float32 saves two conversions, at half an ULP of the sum */
        FN(add)(&spread, t[0] + t[1]);
        if (with_mass) FN(add)(&mass, d[0] + d[1]);
#else
        FN(add)(&spread, t[0]);
        FN(add)(&spread, t[1]);
        if (with_mass) FN(add)(&mass, d[0]);
        if (with_mass) FN(add)(&mass, d[1]);
#endif
    }
    double total_mass = (double)(n - (y >= 0 && y < n)), total = FN(total)(spread);
    if (with_mass) total_mass = FN(total)(mass);
#if REAL_BITS == 64 /* an infinite sum has no error term */
    if (isinf(FN(add_up)(spread.sum))) total = FN(add_up)(spread.sum);
#endif
    return (FN(TermSums)){total_mass, total};
}

/* All weights of classes but the target's. Of float32 weights a float64 has digits to spare for the difference, unless
 * the others are far less. */
static double FN(weights_beside)(const Formula *formula, const REAL *w, ptrdiff_t n_classes, ptrdiff_t y)
{
    const double rest = formula->total_weight - (double)w[y];
    if (!(fabs(rest) < 0x1p-24 * fabs((double)w[y]))) return rest;
    double sum = 0;
    for (ptrdiff_t c = 0; c < n_classes; c++)
        if (c != y) sum += (double)w[c];
    return sum;
}

/* Adds what a run of n classes from `start` on, or the whole row, has of the terms to mass and spread. */
static void FN(add_terms)(const Formula *formula, const REAL *z, const REAL *q, int whole, ptrdiff_t start, ptrdiff_t n,
                          REAL m, int64_t y, double *mass, double *spread)
{
    const REAL *w = formula->term_weight ? (const REAL *)formula->term_weight + start : NULL;
    FN(TermSums) sums = {0, 0};
    if (formula->even != 0) {
        if (!w) sums = FN(sum_products)(z, NULL, NULL, 1, 0, n, m, y - start);
        else if (!formula->weights_positive) sums = FN(sum_products)(z, w, NULL, 0, 1, n, m, y - start);
        else if (REAL_BITS == 64 || !whole) sums = FN(sum_products)(z, w, NULL, 1, 1, n, m, y - start);
        else {
            sums = FN(sum_products)(z, w, NULL, 1, 0, n, m, y - start);
            sums.mass = FN(weights_beside)(formula, w, n, y);
        }
        *mass += formula->even * sums.mass;
        *spread += formula->even * sums.spread;
    }
    if (!q || formula->share == 0) return;
    sums = w ? FN(sum_products)(z, q, w, 0, 1, n, m, y - start) : FN(sum_products)(z, q, NULL, 0, 1, n, m, y - start);
    *mass += formula->share * sums.mass;
    *spread += formula->share * sums.spread;
}

/* What the gradient of a row has less than alpha p_j: (even + share q_j) w_j, of a run. NULL: no q, ones. */
typedef struct { const REAL *q, *w; REAL even, share; } FN(Terms);

INLINE vec FN(terms)(const FN(Terms) *t, ptrdiff_t j, ptrdiff_t n)
{
    vec d = FN(splat)(t->even);
    if (t->q) d = FN(fma)(n >= LANES ? FN(load)(t->q + j) : FN(load_n)(t->q + j, n, 0), FN(splat)(t->share), d);
    if (t->w) d *= n >= LANES ? FN(load)(t->w + j) : FN(load_n)(t->w + j, n, 0);
    return d;
}

/* ---- The Hessian --------------------------------------------------------------------------- */

/* h = curve p (lead + excess p), and that of the top where e is the maximum's: there 1 - p cancels. p = e p_scale; the
 * product of curve and p has a factor of its own, p may be subnormal. */
typedef struct { FN(Factor) curve; REAL p_scale, lead, excess, exp_top, top; } FN(Curve);

/* Of n staged exps: the sum of those below the top, and how many there are at it. */
typedef struct { double below, at_top; } FN(TopSums);

static FN(TopSums) FN(sum_below)(const REAL *e, ptrdiff_t n, REAL exp_top)
{
    const vec top = FN(splat)(exp_top), one = FN(splat)(1);
    sum_vec below = {{0}, {0}}, at_top = {{0}, {0}};
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const vec v = FN(load_n)(e + j, FN(smaller)(n - j, LANES), 0);
        const FN(mask) is_top = FN(not_less)(v, top);
        FN(add)(&below, FN(select)(is_top, (vec){0}, v));
        FN(add)(&at_top, FN(keep)(is_top, one));
    }
    return (FN(TopSums)){FN(total)(below), FN(total)(at_top)};
}

static void FN(curves)(const REAL *e, REAL *h, ptrdiff_t n, const FN(Curve) *row)
{
    const vec exp_top = FN(splat)(row->exp_top), top = FN(splat)(row->top);
    const vec excess = FN(splat)(row->excess), lead = FN(splat)(row->lead);
    const vec a = FN(splat)(row->curve.a), c = FN(splat)(row->curve.c), b = FN(splat)(row->curve.b);
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const ptrdiff_t count = FN(smaller)(n - j, LANES);
        const vec v = FN(load_n)(e + j, count, 0), curve_p = FN(scaled)(v, a, c, b);
        const vec below = curve_p * FN(fma)(v * row->p_scale, excess, lead);
        FN(store_n)(h + j, count, FN(select)(FN(not_less)(v, exp_top), top, below));
    }
}

/* ---- Sums of exps with factors: logsumexp with b ------------------------------------------- */

INLINE FN(mask) FN(not_zero)(vec a) { return FN(differ)((ivec)((uvec)a << 1), (ivec){0}); }

/* Takes out the elements whose factor is 0, whatever they are; a NaN comes back with the sum. */
static void FN(mask_zeros)(REAL *z, const REAL *b, ptrdiff_t n)
{
    const vec lowest = FN(splat)(-INFINITY);
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const ptrdiff_t count = FN(smaller)(n - j, LANES);
        const FN(mask) counts = FN(not_zero)(FN(load_n)(b + j, count, 0));
        FN(store_n)(z + j, count, FN(select)(counts, FN(load_n)(z + j, count, 0), lowest));
    }
}

/* The product in float64: a factor may lift an exp, which is scaled already, beyond float32. */
INLINE void FN(add_product)(sum_vec *sum, vec e, vec factor)
{
#if REAL_BITS == 32
    const sum_vec exps = FN(widened)(e), factors = FN(widened)(factor);
    sum->low += exps.low * factors.low;
    sum->high += exps.high * factors.high;
#else
    FN(add)(sum, e * factor);
#endif
}

static double FN(weighted_sum)(const REAL *e, const REAL *b, ptrdiff_t n)
{
    sum_vec sum = {{0}, {0}};
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const ptrdiff_t count = FN(smaller)(n - j, LANES);
        FN(add_product)(&sum, FN(load_n)(e + j, count, 0), FN(load_n)(b + j, count, 0));
    }
    return FN(total)(sum);
}
