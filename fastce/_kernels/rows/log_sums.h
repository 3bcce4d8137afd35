/* log of the sum of exps of few classes across rows: a plain loss (anchored.h) whose target is the largest logit m.
 *
 *     log_s = log1p(r)        logsumexp = m + log_s        log_softmax_j = (x_j - m) - log_s
 *
 * Included once per REAL_BITS, after anchored.h. What is not finite is left to the epilogue (finish_log_sums).
 */

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

/* As float64: m, log_s and their sum. */
INLINE void FN(store_log_sums)(const FN(Anchored) *a, ptrdiff_t i, Rows *rows)
{
    const FN(Sum) sum = {FN(load)(a->sum + i), FN(load)(a->low + i)};
    const FN(Sum) own = {FN(load)(a->own + i), FN(load)(a->own_low + i)};
    const FN(Sum) r = FN(joined)(FN(quotient)(sum, own, FN(load)(a->by_own + i)));
    const FN(Sum) log_s = FN(log1p_of_pair)(r.high, r.low);
    REAL high[LANES_COUNT], low[LANES_COUNT];
    FN(store)(high, log_s.high);
    FN(store)(low, log_s.low);
    for (ptrdiff_t k = 0; k < LANES; k += LANES_F64) {
        const vec_f64 m = FN(load_wide)(a->anchor + i + k), whole = FN(load_wide)(high + k) + FN(load_wide)(low + k);
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
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) FN(find_largest)(x, tile->n_classes, i, &a);
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        const FN(Ahead) ahead = FN(ahead_of)(&first, tile, i);
        FN(sum_exps)(x, tile->n_classes, i, 1, 0, tile->grad != NULL, 0, &ahead, &a);
    }
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) FN(store_log_sums)(&a, i, rows);
}
