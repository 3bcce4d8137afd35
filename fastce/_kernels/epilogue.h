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
/* a * f, where f = r = scaled / REST_SCALE if that is so small that it may be subnormal. */
INLINE vec times_rest(vec a, vec scaled, vec f)
{
    ivec tiny = (ivec)(scaled < 0x1p-900);
    vec product = a * f, rescued = a * scaled * (1 / REST_SCALE) + 0 * product; /* NaN stays NaN */
    return (vec)(((ivec)rescued & tiny) | ((ivec)product & ~tiny));
}

INLINE void epilogue_cross_entropy(Rows *rows, ptrdiff_t n_rows, double normalizer)
{
    const double per_weight = 1 / normalizer;
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        ivec label;
        memcpy(&label, rows->label + i, sizeof label);
        ivec ignored = (ivec)(label < 0);
        vec m = load_f64(rows->max + i), scaled = load_f64(rows->rest + i), w = load_f64(rows->weight + i);
        vec x_y = load_f64(rows->at_target + i), e_y = load_f64(rows->target_exp + i);
        vec r = scaled * (1 / REST_SCALE);
        ivec is_max = (ivec)(x_y == m);
        vec others = (r - 1) + e_y;
        others = (vec)(((ivec)r & is_max) | ((ivec)others & ~is_max));
        vec reciprocal = 1 / (r + e_y);
        vec half = (0.5 * m - 0.5 * x_y) + 0.5 * log1p_f64(others, reciprocal); /* m - x_y may overflow */
        vec loss = times_rest(2 * w, 0.5 * scaled, half);
        vec alpha = w * per_weight * reciprocal;
        store_f64(rows->loss + i, (vec)((ivec)loss & ~ignored));
        store_f64(rows->alpha + i, alpha);
        store_f64(rows->beta + i, 0 - times_rest(alpha, scaled, r)); /* 0 - : never -0.0 */
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
        vec weight = load_n_f64(rows->weight + i, smaller_f64(n_rows - i, LANES), 0);
        add_f64(&sums->weight, (vec)((ivec)weight & ~(ivec)(label < 0)));
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
