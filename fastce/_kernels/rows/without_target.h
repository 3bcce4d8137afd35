/* Softmax, its logarithm and that of its sum, of few classes across rows: no class is a target.
 *
 *     logsumexp = m + log_s        log_softmax_j = (x_j - m) - log_s        log_s = log1p(r)
 *
 * r and log_s are those of a plain loss (anchored.h, two_classes.h) whose target is the largest logit m. A softmax is
 * the exps against m, divided by their sum. Included once per REAL_BITS, after anchored.h. What of a logarithm is not
 * finite is left to the epilogue (finish_log_sums).
 */

/* ---- Of two: the larger logit is the target ------------------------------------------------- */

INLINE void FN(sweep_larger)(const REAL *x, ptrdiff_t i, FN(TwoClasses) *a)
{
    const FN(mask) is_first = FN(not_less)(FN(load)(x + i), FN(load)(x + TILE + i));
    const ivec first = {0}, y = (ivec)FN(select)(is_first, (vec)first, (vec)(first + 1));
    memcpy(a->target + i, &y, sizeof y);
    FN(sweep_two)(x, i, NULL, a);
}

INLINE FN(Sum) FN(log_sums_of_two)(const FN(TwoClasses) *a, ptrdiff_t i)
{
    const REAL unscaled = 1 / ANCHOR_UNIT;
    return FN(log1p_of_fraction)(FN(load)(a->e + i) * unscaled, FN(load)(a->e_low + i) * unscaled);
}

/* 1 / (1 + e) and e / (1 + e); NaN where the larger logit is infinite. */
INLINE void FN(write_shares_of_two)(REAL *x, ptrdiff_t i, const FN(TwoClasses) *a)
{
    const vec m = FN(larger)(FN(load)(x + i), FN(load)(x + TILE + i)), e = FN(load)(a->e + i);
    const vec e_low = FN(load)(a->e_low + i);
    const FN(Sum) all = FN(sum_of_two)(e, e_low);
    const vec by_all = 1 / all.high, unscaled = FN(splat)(1 / ANCHOR_UNIT) + (m - m);
    const FN(Sum) more = FN(quotient)((FN(Sum)){FN(splat)(1), {0}}, all, by_all);
    const FN(Sum) less = FN(quotient)((FN(Sum)){e, e_low}, all, by_all);
    const vec p = (more.high + more.low) + (m - m), q = (less.high + less.low) * unscaled;
    ivec y;
    memcpy(&y, a->target + i, sizeof y);
    const FN(mask) second = FN(differ)(y, (ivec){0});
    FN(store)(x + i, FN(select)(second, q, p));
    FN(store)(x + TILE + i, FN(select)(second, p, q));
}

/* ---- Logarithms ----------------------------------------------------------------------------- */

/* The largest logit of each row, and where it stands first. */
INLINE void FN(find_largest)(const REAL *x, ptrdiff_t n_classes, ptrdiff_t i, FN(Anchored) *a)
{
    vec most = FN(splat)(-INFINITY);
    ivec place = {0}, here = {0};
    for (ptrdiff_t c = 0; c < n_classes; c++, here += 1) {
        const vec x_c = FN(load)(x + c * TILE + i);
        place = (ivec)FN(select)(FN(not_less)(most, x_c), (vec)place, (vec)here);
        most = FN(larger)(x_c, most); /* a NaN is passed over here and met by the sum */
    }
    memcpy(a->target + i, &place, sizeof place);
    FN(store)(a->x_y + i, most);
    FN(store)(a->anchor + i, most);
    FN(store)(a->gap + i, (vec){0});
}

INLINE FN(Sum) FN(log_sums)(const FN(Anchored) *a, ptrdiff_t i)
{
    const FN(Sum) sum = {FN(load)(a->sum + i), FN(load)(a->low + i)};
    const FN(Sum) own = {FN(load)(a->own + i), FN(load)(a->own_low + i)};
    const FN(Sum) r = FN(joined)(FN(quotient)(sum, own, FN(load)(a->by_own + i)));
    return FN(log1p_of_pair)(r.high, r.low);
}

/* As float64: m, log_s and their sum. */
INLINE void FN(store_log_sums)(const REAL *anchor, FN(Sum) log_s, ptrdiff_t i, Rows *rows)
{
    REAL high[LANES_COUNT], low[LANES_COUNT];
    FN(store)(high, log_s.high);
    FN(store)(low, log_s.low);
    for (ptrdiff_t k = 0; k < LANES; k += LANES_F64) {
        const vec_f64 m = FN(load_wide)(anchor + k), whole = FN(load_wide)(high + k) + FN(load_wide)(low + k);
        store_f64(rows->anchor + i + k, m);
        store_f64(rows->log_sum + i + k, whole);
        store_f64(rows->loss + i + k, m + whole);
    }
}

static void FN(sweep_log_sums)(const Tile *tile, Rows *rows)
{
    const FN(Ahead) first = FN(ahead)(tile, tile->n_classes);
    REAL *x = (REAL *)tile->scratch;
    FN(Anchored) a;
    FN(fetch_plane)(tile, tile->logits, &tile->logits_layout, 0, tile->n_classes, x);
    if (tile->n_classes == 2) {
        FN(TwoClasses) two;
        FN(ask_for_two)(tile);
        for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) FN(sweep_larger)(x, i, &two);
        for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
            FN(store)(a.anchor + i, FN(larger)(FN(load)(x + i), FN(load)(x + TILE + i)));
            FN(store_log_sums)(a.anchor + i, FN(log_sums_of_two)(&two, i), i, rows);
        }
        return;
    }
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) FN(find_largest)(x, tile->n_classes, i, &a);
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        const FN(Ahead) ahead = FN(ahead_of)(&first, tile, i);
        FN(sum_exps)(x, tile->n_classes, i, 1, 0, tile->grad != NULL, &ahead, &FN(plain_units), &a);
    }
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES)
        FN(store_log_sums)(a.anchor + i, FN(log_sums)(&a, i), i, rows);
}

/* Exps that factors may lift: of float32 as far as the normal numbers go, which products in float64 bear. */
#undef FACTOR_SHIFT
#undef FACTOR_LOWEST
#if REAL_BITS == 64
#define FACTOR_SHIFT ANCHOR_SHIFT
#define FACTOR_LOWEST ANCHOR_LOWEST
#else
#define FACTOR_SHIFT 126
#define FACTOR_LOWEST -174.5f
#endif

/* The sum of the exps times their factors b_j, against the largest logit whose factor is not 0, as finish_log_sums takes
 * it: times REST_SCALE_F64. */
INLINE void FN(sum_factors)(REAL *x, const REAL *b, ptrdiff_t n_classes, ptrdiff_t i, Rows *rows)
{
    const vec lowest = FN(splat)(-INFINITY);
    vec m = lowest;
    for (ptrdiff_t c = 0; c < n_classes; c++) {
        REAL *at = x + c * TILE + i;
        const FN(mask) counts = FN(not_zero)(FN(load)(b + c * TILE + i));
        const vec x_c = FN(select)(counts, FN(load)(at), lowest);
        FN(store)(at, x_c);
        m = FN(larger)(x_c, m);
    }
    const vec anchor = FN(select)(FN(not_less)(lowest, m), (vec){0}, m);
    FN(Exps) exps = FN(anchored_exps)(anchor, (vec){0}, &FN(plain_units));
    exps.bias += STEPS * (FACTOR_SHIFT - ANCHOR_SHIFT);
    exps.lowest += FACTOR_LOWEST - ANCHOR_LOWEST;
    sum_vec sum = {{0}, {0}};
    for (ptrdiff_t c = 0; c < n_classes; c++)
        FN(add_product)(&sum, FN(exps)(FN(load)(x + c * TILE + i), &exps), FN(load)(b + c * TILE + i));
    const FN(Sum) own = FN(exp_and_rest)(FN(exp_where)(EVERY_LANE, anchor, &exps));
    REAL m_of[LANES_COUNT], high[LANES_COUNT], low[LANES_COUNT];
    double total[LANES_COUNT], error[LANES_COUNT];
    FN(store)(m_of, m);
    FN(store)(high, own.high);
    FN(store)(low, own.low);
    FN(store_sums)(total, error, sum);
    for (ptrdiff_t k = 0; k < LANES; k += LANES_F64) {
        const vec_f64 of_anchor = FN(load_wide)(high + k), lost = FN(load_wide)(low + k) / of_anchor;
        vec_f64 whole = load_f64(total + k);
        if (REAL_BITS == 64) whole += load_f64(error + k);
        store_f64(rows->anchor + i + k, FN(load_wide)(m_of + k));
        store_f64(rows->rest + i + k, whole * (REST_SCALE_F64 / of_anchor * (1 - lost)));
    }
}

static void FN(sweep_factors)(const Tile *tile, Rows *rows)
{
    FN(prepare_planes)(tile, rows, 0, tile->n_classes);
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES)
        FN(sum_factors)((REAL *)tile->scratch, (const REAL *)tile->second, tile->n_classes, i, rows);
}

/* ---- Softmaxes ------------------------------------------------------------------------------ */

/* The sum of all exps, which are staged. */
INLINE FN(Sum) FN(stage_all)(REAL *x, ptrdiff_t n_classes, const FN(Exps) *exps, const FN(Ahead) *ahead)
{
    FN(Sum) sum = {{0}, {0}};
    for (ptrdiff_t c = 0; c < n_classes; c++) {
        FN(ask_for_class)(ahead, c, 1);
        const vec e = FN(exps)(FN(load)(x + c * TILE), exps);
        FN(store)(x + c * TILE, e);
        FN(add_term)(&sum, e);
    }
    return FN(joined)(sum);
}

INLINE void FN(stage_exps)(REAL *x, ptrdiff_t n_classes, ptrdiff_t i, const FN(Ahead) *ahead, FN(Anchored) *a)
{
    const vec m = FN(largest_in_lanes)(x + i, n_classes, FN(splat)(-INFINITY));
    const FN(Exps) exps = FN(anchored_exps)(m, (vec){0}, &FN(plain_units));
    FN(Sum) sum;
    if (FN(are_near)(&exps)) {
        const FN(Exps) near_exps = FN(near_exps)(exps);
        sum = FN(stage_all)(x + i, n_classes, &near_exps, ahead);
    } else sum = FN(stage_all)(x + i, n_classes, &exps, ahead);
    FN(store)(a->sum + i, sum.high); /* NaN where m is infinite, as all exps against it are */
    FN(store)(a->low + i, sum.low);
}

/* See Factor in sweep.h. No exp is so far from the others that it needs a power of two. */
INLINE void FN(divide_exps)(REAL *x, ptrdiff_t n_classes, ptrdiff_t i, const FN(Anchored) *a)
{
    const vec sum = FN(load)(a->sum + i), one = FN(splat)(1);
#ifdef HAS_FMA
    const vec by_sum = 1 / sum, rest = (FN(fma)(-by_sum, sum, one) - by_sum * FN(load)(a->low + i)) * by_sum;
#else
    const vec by_sum = sum, rest = one;
#endif
    for (ptrdiff_t c = 0; c < n_classes; c++) {
        REAL *at = x + c * TILE + i;
        FN(store)(at, FN(scaled)(FN(load)(at), by_sum, rest, one));
    }
}

static void FN(softmax_of_few)(const Tile *tile)
{
    const ptrdiff_t n_classes = tile->n_classes;
    const FN(Ahead) first = FN(ahead)(tile, n_classes);
    REAL *x = (REAL *)tile->scratch;
    FN(fetch_plane)(tile, tile->logits, &tile->logits_layout, 0, n_classes, x);
    if (n_classes == 2) {
        FN(TwoClasses) two;
        FN(ask_for_two)(tile);
        for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) FN(sweep_larger)(x, i, &two);
        for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) FN(write_shares_of_two)(x, i, &two);
    } else {
        FN(Anchored) a;
        for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
            const FN(Ahead) ahead = FN(ahead_of)(&first, tile, i);
            FN(stage_exps)(x, n_classes, i, &ahead, &a);
        }
        for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) FN(divide_exps)(x, n_classes, i, &a);
    }
    FN(put_plane)(tile, tile->grad, &tile->grad_layout, 0, n_classes, x);
}
