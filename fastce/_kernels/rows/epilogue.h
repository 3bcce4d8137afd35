/* The epilogue: from the sums of a row to its loss and the coefficients of its gradient.
 *
 * Included after the float64 headers; all in float64, LANES rows at a time. With e_y = exp(x_y - m),
 * s = r + e_y and the row's weight w
 *
 *     loss    -log p_y = (m - x_y) + log s           alpha =  w
 *                                                    beta  = -w r / s        p_y - 1 = -r / s
 *
 * Nothing here cancels: where the anchor m is the target's logit log s = log1p(r), elsewhere m is a larger one, r holds
 * its own 1 and log s = log1p((r - 1) + e_y).
 */
/* w * loss; a weight of 0 has no part in a loss of infinity. NaN stays, as s, the sum of all exps, has it. */
INLINE vec weighted(vec w, vec loss, vec s)
{
    const vec zero = {0};
    return select_f64(not_less_f64(zero, larger_f64(-w, w)), w * s, loss);
}

/* a * f, where f = r, e_y or so. Their scale in float64 is for those so small that they may be subnormal. */
INLINE vec times_rest(vec a, vec scaled, vec f, double rest_scale)
{
    const vec product = a * f;
    if (rest_scale == 1) return product;
    const vec rescued = a * scaled * (1 / rest_scale) + 0 * product; /* NaN stays NaN */
    return select_f64(not_less_f64(scaled, splat_f64(0x1p-900)), product, rescued);
}

/* a r / s, where r and s may be large, or subnormal as above. */
INLINE vec share_of_rest(vec a, vec scaled, vec r, vec s, double rest_scale)
{
    return select_f64(not_less_f64(r, splat_f64(1)), a * (r / s), times_rest(a / s, scaled, r, rest_scale));
}

/* What the sweep found out about LANES rows, from i on. */
typedef struct {
    mask_f64 used;   /* not ignored */
    vec m, x_y;
    vec scaled, r;   /* r times rest_scale, and r */
    vec scaled_e_y, e_y;
    vec others, others_low; /* sum of all exps but one maximum's: log s = log1p(others) */
} Swept;

INLINE Swept swept(const Rows *rows, ptrdiff_t i, double rest_scale)
{
    Swept row;
    row.used = are_used(rows, i);
    row.m = load_f64(rows->anchor + i);
    row.x_y = load_f64(rows->at_target + i);
    row.scaled_e_y = load_f64(rows->target_exp + i);
    row.e_y = row.scaled_e_y * (1 / rest_scale);
    row.scaled = load_f64(rows->rest + i);
    row.r = row.scaled * (1 / rest_scale);
    row.others_low = load_f64(rows->rest_low + i) * (1 / rest_scale);
    row.others = select_f64(not_less_f64(row.x_y, row.m), row.r, (row.r - 1) + row.e_y);
    return row;
}

INLINE void epilogue_cross_entropy(Rows *rows, ptrdiff_t n_rows, double normalizer, double rest_scale, int with_grad)
{
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        const Swept row = swept(rows, i, rest_scale);
        const vec w = load_f64(rows->weight + i), log_s = log1p_of_sum_f64(row.others, row.others_low, rest_scale == 1);
        vec loss;
        if (rest_scale == 1) loss = w * ((row.m - row.x_y) + log_s);
        else /* of halves: m - x_y may overflow */
            loss = times_rest(2 * w, 0.5 * row.scaled, (0.5 * row.m - 0.5 * row.x_y) + 0.5 * log_s, rest_scale);
        store_f64(rows->loss + i, keep_f64(row.used, weighted(w, loss, row.r + row.e_y)));
        if (!with_grad) continue;
        const vec alpha = w / normalizer, rest = share_of_rest(alpha, row.scaled, row.r, row.r + row.e_y, rest_scale);
        store_f64(rows->alpha + i, alpha);
        store_f64(rows->beta + i, 0 - rest); /* 0 - : never -0.0 */
    }
}

/* Most temperatures have no divisor, and a division takes its time. */
INLINE vec over_divisor(vec x, const Temperature *t) { return t->divisor == 1 ? x : x / t->divisor; }

/* 2 z_loss lse times w: what stands before p_j. */
INLINE vec times_lse(const Formula *f, vec w, const Swept *row, vec log_s, double rest_scale)
{
    const vec times_m = over_divisor(w * row->m, &f->temperature) * f->temperature.factor;
    return 2 * f->z_loss * (times_m + times_rest(w, row->scaled, log_s, rest_scale));
}

/* With terms, a z-loss, a temperature or a Hessian. Q = d_y + mass is the sum of all d_j, and
 *
 *     loss   =  Q log s + d_y (m - z_y) + spread + z_loss lse^2
 *     dz_j   =  Q p_j - d_j + 2 z_loss lse p_j               dz_y = mass - Q r / s + 2 z_loss lse p_y
 *     d2z_j  =  (Q + 2 z_loss lse) p_j (1 - p_j) + 2 z_loss p_j^2
 *
 * times the sample weight; each derivative by 1 / T as well. No term of the loss is negative where
 * weights and targets are not. */
INLINE void epilogue_terms(const Formula *f, Rows *rows, ptrdiff_t n_rows, double rest_scale, int with_grad)
{
    const double inverse_t = f->temperature.factor / f->temperature.divisor, by_z = inverse_t / f->normalizer;
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        const Swept row = swept(rows, i, rest_scale);
        const vec sample = load_f64(rows->sample + i), zero = {0};
        vec own = load_f64(rows->weight + i), mass = zero, spread = zero; /* times the sample weight, all of them */
        if (f->has_terms) {
            own = sample * load_f64(rows->own + i);
            mass = sample * load_f64(rows->mass + i);
            spread = sample * load_f64(rows->spread + i);
        }
        const vec log_s = log1p_of_sum_f64(row.others, row.others_low, rest_scale == 1), all = own + mass;
        const vec s = row.r + row.e_y;
        const Temperature *t = &f->temperature;
        vec half = own * over_divisor(0.5 * row.m - 0.5 * row.x_y, t); /* in halves: neither overflows */
        half = weighted(own, half, s) + over_divisor(weighted(sample, spread, s) * (0.5 / SPREAD_SCALE), t);
        half = half * t->factor;
        if (f->z_loss != 0) {
            const vec lse = over_divisor(row.m, t) * t->factor + log_s;
            half += 0.25 * times_lse(f, sample, &row, log_s, rest_scale) * lse;
        }
        const vec loss = 2 * half + times_rest(all, row.scaled, log_s, rest_scale);
        store_f64(rows->loss + i, keep_f64(row.used, loss));
        if (!with_grad) continue;
        const vec scaled_p_y = row.scaled_e_y / s, p_y = scaled_p_y * (1 / rest_scale);
        const vec share = sample * by_z, alpha_of_terms = by_z * all;
        const vec by_lse = f->z_loss != 0 ? times_lse(f, share, &row, log_s, rest_scale) : zero;
        store_f64(rows->alpha + i, alpha_of_terms + by_lse);
        /* At the target Q p_y - d_y = mass - Q r / s, whichever has the smaller terms. */
        const vec left = times_rest(all, scaled_p_y, p_y, rest_scale);
        const vec by_lse_p_y = times_rest(by_lse, scaled_p_y, p_y, rest_scale);
        const vec right = share_of_rest(alpha_of_terms, row.scaled, row.r, s, rest_scale);
        const vec left_size = larger_f64(larger_f64(-left, left), larger_f64(-own, own));
        const vec right_size = larger_f64(larger_f64(-mass, mass), all * (row.r / s));
        const vec by_left = by_z * (left - own) + by_lse_p_y;
        const vec by_right = (by_z * mass + by_lse_p_y) - right;
        store_f64(rows->beta + i, select_f64(not_less_f64(left_size, right_size), by_right, by_left));
        store_f64(rows->even + i, share * f->even);
        store_f64(rows->share + i, share * f->share);
        if (!f->by_element) continue;
        const vec curve = inverse_t * (alpha_of_terms + by_lse), square = 2 * inverse_t * f->z_loss * share;
        const vec others = select_f64(not_less_f64(row.x_y, row.m), row.r / s, load_f64(rows->below + i) + p_y);
        /* p_j (curve + (square - curve) p_j) in units of the larger: either may be 0. */
        const mask_f64 is_curve = not_less_f64(larger_f64(-curve, curve), larger_f64(-square, square));
        const vec unit = select_f64(is_curve, curve, square);
        store_f64(rows->curve + i, unit);
        store_f64(rows->lead + i, weighted(unit, curve / unit, s));
        store_f64(rows->excess + i, weighted(unit, (square - curve) / unit, s));
        store_f64(rows->hess_target + i, times_rest(curve * (row.r / s) + square * p_y, scaled_p_y, p_y, rest_scale));
        store_f64(rows->hess_top + i, (curve * others + square / s) / s);
    }
}

/* The focal loss u^gamma (-log p_y) with u = 1 - p_y = r / s (Lin et al. 2017). Its gradient is that of
 * cross-entropy times
 *
 *     kappa = u^gamma (1 + gamma p_y (-log p_y) / u)        the quotient is 1 where u vanishes */
static void epilogue_focal(const Formula *f, Rows *rows, ptrdiff_t n_rows, double rest_scale)
{
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        const Swept row = swept(rows, i, rest_scale);
        const vec w = load_f64(rows->weight + i), s = row.r + row.e_y, u = row.r / s, p_y = row.e_y / s, zero = {0};
        const vec entropy = (row.m - row.x_y) + log1p_of_sum_f64(row.others, row.others_low, rest_scale == 1);
        vec power = u * u, quotient = p_y * entropy / u;
        for (int k = 0; f->gamma != 2 && k < LANES; k++) {
            if (u[k] < 0x1p-900) power[k] = pow(row.scaled[k] / s[k], f->gamma) * pow(rest_scale, -f->gamma);
            else power[k] = pow(u[k], f->gamma);
        }
        quotient = select_f64(not_less_f64(zero, u) & not_less_f64(u, zero), 1 + zero * u, quotient);
        quotient = select_f64(not_less_f64(zero, row.e_y) & not_less_f64(row.e_y, zero), zero * u, quotient);
        const vec kappa = power * (1 + f->gamma * quotient), coefficient = w * kappa / f->normalizer;
        const vec loss = times_rest(w * power, row.scaled, entropy, rest_scale);
        store_f64(rows->loss + i, keep_f64(row.used, weighted(w, loss, s)));
        store_f64(rows->alpha + i, coefficient);
        store_f64(rows->beta + i, 0 - share_of_rest(coefficient, row.scaled, row.r, s, rest_scale));
    }
}

/* ---- Margins between cosines ---------------------------------------------------------------- */

typedef struct { double value, slope; } Margin;

/* What the sine of an angle counts as at least, where a slope is divided by it: sqrt(eps) of the cosines' format. */
static const double least_sine[] = {
    [FORMAT_F64] = 0x1p-26, [FORMAT_F32] = 0x1.6a09e667f3bcdp-12, [FORMAT_F16] = 0x1p-5,
    [FORMAT_BF16] = 0x1.6a09e667f3bcdp-4,
};

/* What the target's cosine c = cos t becomes, and its derivative:
 *
 *     cos(margin1 t + margin2) - margin3            (Deng et al. 2019)
 *
 * continued so that it falls for all t in [0, pi]: with one multiple beyond margin1 t + margin2 = pi by the
 * straight line c - margin2 sin(margin2), else by (-1)^k cos(...) - 2k in the k-th half turn (Liu et al. 2017).
 * t + margin2 is beyond pi where its sine is negative; but for margins of more than pi, which leave no other angle. */
static Margin margin_of(const Formula *f, Format format, double c)
{
    const double sine = sqrt((1 - c) * (1 + c)), least = least_sine[format];
    const double divisor = sine > least ? sine : least, pi = 0x1.921fb54442d18p+1;
    if (f->margin1 == 1) {
        const double cos2 = cos(f->margin2), sin2 = sin(f->margin2);
        if (f->margin2 > 0 && (sine * cos2 + c * sin2 < 0 || f->margin2 > pi))
            return (Margin){c - f->margin2 * sin2 - f->margin3, 1};
        return (Margin){c * cos2 - sine * sin2 - f->margin3, cos2 + c / divisor * sin2};
    }
    /* From the nearer end of [0, pi], where margin1 pi is a whole number of half turns: the angle is as exact as c. */
    const int from_pi = c < 0 && floor(f->margin1) == f->margin1;
    const double angle = (from_pi ? -f->margin1 * acos(-c) : f->margin1 * acos(c)) + f->margin2;
    const double turns = floor(angle / pi), k = turns + (from_pi ? f->margin1 : 0), sign = fmod(turns, 2) == 0 ? 1 : -1;
    return (Margin){sign * cos(angle) - 2 * k - f->margin3, sign * sin(angle) * f->margin1 / divisor};
}

/* The sweep has left the target out, from the maximum too: here it joins with its margin. */
static void epilogue_margin(const Tile *tile, Rows *rows, double rest_scale)
{
    const Formula *f = tile->formula;
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        const double c = rows->given[i], w = rows->weight[i], clipped = c > 1 ? 1 : c < -1 ? -1 : c;
        const Margin margin = margin_of(f, tile->logits_layout.format, clipped);
        const int alone = tile->n_classes == 1;
        const double m = alone ? margin.value : rows->anchor[i], top = m > margin.value ? m : margin.value;
        const double shift = exp(f->scale * (m - top)), e_y = exp(f->scale * (margin.value - top));
        const double r = alone ? 0 : rows->rest[i] / rest_scale * shift, s = r + e_y;
        const double log_s = log1p(margin.value >= m ? r : (r - 1) + e_y);
        const double factor = w * f->scale / f->normalizer;
        rows->loss[i] = rows->label[i] < 0 ? 0 : w * (f->scale * (top - margin.value) + log_s); /* always finite */
        rows->alpha[i] = factor * (r / s); /* the sweep's p_j are shares of r */
        rows->beta[i] = 0 - factor * margin.slope * (r / s);
    }
}

/* Of log-probabilities (Kind NLL): nothing was swept. */
static void epilogue_nll(Rows *rows, ptrdiff_t n_rows)
{
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const double w = rows->weight[i], x_y = rows->given[i];
        rows->loss[i] = rows->label[i] < 0 || (w == 0 && !isnan(x_y)) ? 0 : 0 - w * x_y;
    }
}

/* ---- Softmax, its logarithm and that of its sum --------------------------------------------- */

INLINE void epilogue_softmax(Rows *rows, ptrdiff_t n_rows)
{
    for (ptrdiff_t i = 0; i < n_rows; i++) rows->alpha[i] = 1;
}

/* How many infinities of either sign a row has when its exps count with their factors, and whether it has a NaN. */
typedef struct { ptrdiff_t positive, negative; int nan; } Infinities;

INLINE int any_nan(const char *row, ptrdiff_t n, ptrdiff_t stride, int is_double)
{
    int found = 0;
    for (ptrdiff_t j = 0; j < n; j++) { /* aligned or not */
        double wide = 0;
        float narrow = 0;
        if (is_double) memcpy(&wide, row + j * stride, sizeof wide);
        else memcpy(&narrow, row + j * stride, sizeof narrow);
        found |= is_double ? isnan(wide) : isnan(narrow);
    }
    return found;
}

static int has_nan(const Layout *from, const char *row, ptrdiff_t n)
{
    const ptrdiff_t stride = from->class_stride;
    int found = 0;
    if (!from->swapped && from->format == FORMAT_F64)
        return stride == sizeof(double) ? any_nan(row, n, sizeof(double), 1) : any_nan(row, n, stride, 1);
    if (!from->swapped && from->format == FORMAT_F32)
        return stride == sizeof(float) ? any_nan(row, n, sizeof(float), 0) : any_nan(row, n, stride, 0);
    for (ptrdiff_t j = 0; j < n; j++) found |= isnan(load_number(row + j * stride, from->format, from->swapped));
    return found;
}

/* Of a row whose largest logit is m, beside which a maximum has passed over NaN. */
static Infinities count_infinities(const Tile *tile, ptrdiff_t i, double m)
{
    const Layout *from = &tile->logits_layout, *of_q = &tile->q_layout;
    Infinities found = {0, 0, 0};
    if (!tile->q) {
        found.positive = m == INFINITY;
        found.nan = isfinite(m) || has_nan(from, tile->logits + i * from->row_stride, tile->n_classes);
        return found;
    }
    for (ptrdiff_t j = 0; j < tile->n_classes; j++) {
        const double x = load_number(tile->logits + i * from->row_stride + j * from->class_stride,
                                     from->format, from->swapped);
        const double b = load_number(tile->q + i * of_q->row_stride + j * of_q->class_stride,
                                     of_q->format, of_q->swapped);
        if (b == 0) continue;
        found.nan |= isnan(x) || isnan(b) || (isinf(b) && x == -INFINITY);
        found.positive += (x == INFINITY && b > 0) || (b == INFINITY && x > -INFINITY);
        found.negative += (x == INFINITY && b < 0) || (b == -INFINITY && x > -INFINITY);
    }
    return found;
}

#define LN2_64 0x1.62e42fefa39efp+5 /* log 2^64 */

/* log |sum of b_j exp(x_j - m)| and its sign, where products with the scaled exps have left the numbers: there b_j is
 * so large that the rounding of x_j - m is nothing beside the result. */
typedef struct { double log_size, sign; } LargeSum;

static LargeSum large_sum(const Tile *tile, ptrdiff_t i, double m)
{
    const Layout *from = &tile->logits_layout, *of_q = &tile->q_layout;
    sum_vec large = {{0}, {0}}, rest = {{0}, {0}}; /* the former times 2^-64 */
    for (ptrdiff_t j = 0; j < tile->n_classes; j++) {
        const double x = load_number(tile->logits + i * from->row_stride + j * from->class_stride,
                                     from->format, from->swapped);
        const double b = load_number(tile->q + i * of_q->row_stride + j * of_q->class_stride,
                                     of_q->format, of_q->swapped);
        if (fabs(b) >= 0x1p800) add_f64(&large, splat_f64(b * 0x1p-64 * exp(x - m)));
        else if (b != 0) add_f64(&rest, splat_f64(b * exp(x - m)));
    }
    const double others = rest.sum[0] + rest.error[0], whole = large.sum[0] + (large.error[0] + others * 0x1p-64);
    const int cancelled = large.sum[0] == 0 && large.error[0] == 0;
    const double size = cancelled ? log(fabs(others)) : log(fabs(whole)) + LN2_64, value = cancelled ? others : whole;
    return (LargeSum){size, value > 0 ? 1 : value < 0 ? -1 : 0};
}

/* Signs, and what has a maximum that is not finite: infinities count as SciPy counts them, as terms of a sum of their
 * exps. */
static void finish_log_sums(const Tile *tile, Rows *rows, double rest_scale)
{
    int any = tile->q != NULL;
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) { /* in vectors */
        rows->sign[i] = 1;
        any |= !(fabs(rows->loss[i]) <= REAL_MAX_F64);
    }
    for (ptrdiff_t i = 0; any && i < tile->n_rows; i++) {
        double sign = 1;
        if (!isfinite(rows->anchor[i]) || (tile->q ? !isfinite(rows->rest[i]) : isnan(rows->loss[i]))) {
            const Infinities found = count_infinities(tile, i, rows->anchor[i]);
            if (isfinite(rows->anchor[i]) && !found.nan && !found.positive && !found.negative) {
                const LargeSum large = large_sum(tile, i, rows->anchor[i]);
                rows->loss[i] = rows->anchor[i] + large.log_size;
                rows->sign[i] = large.sign;
                continue;
            }
            const int none = !found.positive && !found.negative;
            const int unknown = found.nan || (found.positive && found.negative);
            rows->loss[i] = unknown ? NAN : none ? -INFINITY : INFINITY;
            rows->log_sum[i] = unknown || none ? NAN : INFINITY;
            rows->anchor[i] = 0;
            sign = unknown ? NAN : none ? 0 : found.positive ? 1 : -1;
        } else if (tile->q) {
            const double scaled = rows->rest[i], sum = scaled / rest_scale;
            const int subnormal = rest_scale != 1 && fabs(sum) < 0x1p-1000;
            rows->loss[i] = rows->anchor[i] + (subnormal ? log(fabs(scaled)) - LN2_64 : log(fabs(sum)));
            sign = sum > 0 ? 1 : sum < 0 ? -1 : sum;
        }
        rows->sign[i] = sign;
    }
}

static void epilogue_log_sum(const Tile *tile, Rows *rows, double rest_scale)
{
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        const Swept row = swept(rows, i, rest_scale);
        const vec log_s = log1p_of_sum_f64(row.others, row.others_low, rest_scale == 1);
        store_f64(rows->log_sum + i, log_s + 0 * row.e_y); /* a NaN may be in the target's place */
        store_f64(rows->loss + i, row.m + log_s + 0 * row.e_y);
    }
    finish_log_sums(tile, rows, rest_scale);
}

/* Loss and weight summed over rows, in twice the precision of a double: the order of the rows
 * hardly ever shows in the result, and 10^8 rows cost it no digit. */
typedef struct { sum_vec_f64 loss, weight; } Sums;

/* Float32 losses none of which is negative take nothing from one another: those of a tile are added up in float64 as they
 * are, what that loses is kept once for all of them. */
INLINE int sums_tile_first(const Tile *tile, const Rows *rows)
{
    return tile->formula->kind == CROSS_ENTROPY && tile->logits_layout.format != FORMAT_F64 && !tile->q && !rows->weighted;
}

INLINE void sum_losses(Sums *sums, const Tile *tile, const Rows *rows)
{
    const ptrdiff_t n_rows = tile->n_rows;
    const int tile_first = sums_tile_first(tile, rows);
    sum_vec whole = sums->loss;
    vec of_tile = {0};
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        const vec loss = i + LANES <= n_rows ? load_f64(rows->loss + i) : load_n_f64(rows->loss + i, n_rows - i, 0);
        if (tile_first) of_tile += loss;
        else add_f64(&whole, loss);
    }
    if (tile_first) add_f64(&whole, of_tile);
    sums->loss = whole;
}

/* Over the rows that are not ignored. */
INLINE void sum_weights(Sums *sums, const Rows *rows, ptrdiff_t n_rows)
{
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        const int whole = i + LANES <= n_rows;
        const vec weight = whole ? load_f64(rows->weight + i) : load_n_f64(rows->weight + i, n_rows - i, 0);
        add_f64(&sums->weight, keep_f64(are_used(rows, i), weight));
    }
}

INLINE void clear_sums(Sums *sums) { sums->loss = sums->weight = (sum_vec_f64){{0}, {0}}; }

INLINE Pair total_loss(const Sums *sums) { return add_lanes(sums->loss); }
INLINE Pair total_weight(const Sums *sums) { return add_lanes(sums->weight); }
