/* The epilogue: from the sums of a row to its loss and the coefficients of its gradient.
 *
 * Included after the float64 headers; all in float64, LANES rows at a time. With e_y = exp(x_y - m),
 * s = r + e_y and the row's weight w
 *
 *     loss    -log p_y = (m - x_y) + log s           alpha =  w / s
 *                                                    beta  = -w r / s        p_y - 1 = -r / s
 *
 * Nothing here cancels: where the target is the maximum log s = log1p(r), elsewhere r holds
 * the maximum's own 1 and log s = log1p((r - 1) + e_y).
 */
/* a * f, where f = r or so. Where r carries a scale that is for an r so small that it may be subnormal. */
INLINE vec times_rest(vec a, vec scaled, vec f, double rest_scale)
{
    const vec product = a * f;
    if (rest_scale == 1) return product;
    const vec rescued = a * scaled * (1 / rest_scale) + 0 * product; /* NaN stays NaN */
    return select_f64(not_less_f64(scaled, splat_f64(0x1p-900)), product, rescued);
}

INLINE void epilogue_cross_entropy(Rows *rows, ptrdiff_t n_rows, double normalizer, double rest_scale, int with_grad)
{
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        ivec label;
        memcpy(&label, rows->label + i, sizeof label);
        const mask_f64 used = differ_f64(label, (ivec){0} - 1);
        const vec m = load_f64(rows->max + i), x_y = load_f64(rows->at_target + i), e_y = load_f64(rows->target_exp + i);
        const vec scaled = load_f64(rows->rest + i), r = scaled * (1 / rest_scale), w = load_f64(rows->weight + i);
        const vec others = select_f64(not_less_f64(x_y, m), r, (r - 1) + e_y);
        const vec log_s = log1p_f64(others, rest_scale == 1);
        vec loss;
        if (rest_scale == 1) loss = w * ((m - x_y) + log_s);
        else loss = times_rest(2 * w, 0.5 * scaled, (0.5 * m - 0.5 * x_y) + 0.5 * log_s, rest_scale); /* m - x_y may overflow */
        store_f64(rows->loss + i, keep_f64(used, loss));
        if (!with_grad) continue;
        const vec alpha = w / (normalizer * (r + e_y));
        store_f64(rows->alpha + i, alpha);
        store_f64(rows->beta + i, 0 - times_rest(alpha, scaled, r, rest_scale)); /* 0 - : never -0.0 */
    }
}

/* Loss and weight summed over rows, in twice the precision of a double: the order of the rows
 * hardly ever shows in the result, and 10^8 rows cost it no digit. */
typedef struct { sum_vec_f64 loss, weight; } Sums;

INLINE void sum_losses(Sums *sums, const Rows *rows, ptrdiff_t n_rows)
{
    for (ptrdiff_t i = 0; i < n_rows; i += LANES)
        add_f64(&sums->loss, load_n_f64(rows->loss + i, smaller_f64(n_rows - i, LANES), 0));
}

/* Over the rows that are not ignored. */
INLINE void sum_weights(Sums *sums, const Rows *rows, ptrdiff_t n_rows)
{
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        ivec label;
        memcpy(&label, rows->label + i, sizeof label);
        const vec weight = load_n_f64(rows->weight + i, smaller_f64(n_rows - i, LANES), 0);
        add_f64(&sums->weight, keep_f64(differ_f64(label, (ivec){0} - 1), weight));
    }
}

INLINE void clear_sums(Sums *sums) { *sums = (Sums){{{0}, {0}}, {{0}, {0}}}; }

/* An unevaluated sum; infinity has no error term. */
typedef struct { double sum, error; } Pair;

INLINE void add_pair(Pair *total, Pair term)
{
    double sum = total->sum + term.sum, part = sum - total->sum;
    double lost = (total->sum - (sum - part)) + (term.sum - part);
    total->error += isfinite(sum) ? lost + term.error : 0;
    total->sum = sum;
}

INLINE Pair add_lanes(sum_vec_f64 lanes)
{
    Pair total = {0, 0};
    for (int i = 0; i < LANES; i++) add_pair(&total, (Pair){lanes.sum[i], lanes.error[i]});
    return total;
}

INLINE Pair total_loss(const Sums *sums) { return add_lanes(sums->loss); }
INLINE Pair total_weight(const Sums *sums) { return add_lanes(sums->weight); }

INLINE double add_pairs(const Pair *pairs, ptrdiff_t n)
{
    Pair total = {0, 0};
    for (ptrdiff_t i = 0; i < n; i++) add_pair(&total, pairs[i]);
    return total.sum + total.error;
}
