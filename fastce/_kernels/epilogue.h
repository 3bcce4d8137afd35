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
INLINE void epilogue_cross_entropy(Rows *rows, ptrdiff_t n_rows, double normalizer)
{
    const double per_weight = 1 / normalizer;
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        ivec label;
        memcpy(&label, rows->label + i, sizeof label);
        ivec ignored = (ivec)(label < 0);
        vec m = load_f64(rows->max + i), r = load_f64(rows->rest + i);
        vec x_y = load_f64(rows->at_target + i), w = load_f64(rows->weight + i);
        vec e_y = exp_from_f64(x_y, m) * (1 / EXP_SCALE);
        ivec is_max = (ivec)(x_y == m);
        vec others = (r - 1) + e_y;
        others = (vec)(((ivec)r & is_max) | ((ivec)others & ~is_max));
        vec reciprocal = 1 / (r + e_y);
        vec loss = w * ((m - x_y) + log1p_f64(others, reciprocal));
        vec alpha = w * per_weight * reciprocal;
        store_f64(rows->loss + i, (vec)((ivec)loss & ~ignored));
        store_f64(rows->alpha + i, alpha);
        store_f64(rows->beta + i, 0 - alpha * r); /* 0 - : never -0.0 */
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

/* The sums of n parts, each given by its total, in order. */
INLINE double sum_doubles(const double *part, ptrdiff_t n)
{
    sum_vec_f64 sum = {{0}, {0}};
    for (ptrdiff_t i = 0; i < n; i += LANES) add_f64(&sum, load_n_f64(part + i, smaller_f64(n - i, LANES), 0));
    return total_f64(sum);
}

INLINE void clear_sums(Sums *sums) { *sums = (Sums){{{0}, {0}}, {{0}, {0}}}; }
INLINE double total_loss(const Sums *sums) { return total_f64(sums->loss); }
INLINE double total_weight(const Sums *sums) { return total_f64(sums->weight); }
