/* Cross-entropy of few classes from distributions, or with a z-loss, across rows: smoothed labels and given
 * probabilities, where classes may have weights.
 *
 * Included once per REAL_BITS, after anchored.h. With the terms d_j of Formula, Q = sum_j d_j, the largest logit m and
 * s = sum_j exp((x_j - m) / T)
 *
 *     loss = Q log s + sum_j d_j (m - x_j) / T + z_loss lse^2        lse = m / T + log s
 *     g_j = ((Q + 2 z_loss lse) exp((x_j - m) / T) / s - d_j) / (normalizer T)
 *
 * times the sample weight. Against m no term of a loss is negative. The target, a label or the class of the largest d_j,
 * stays out of the sums as it does elsewhere: log s = log1p(r) where it has the largest logit, and
 * g_y = sum_{j != y} d_j - Q r / s where that has the smaller terms. Exps, logarithms and gradients are in the REALs'
 * precision, what a row has of the terms in float64.
 */
#ifndef FASTCE_TERMS_H
#define FASTCE_TERMS_H
enum { EVENLY, BY_CLASS, GIVEN }; /* d_j = even, even w_j, or any */
#endif

/* What passes between sweep, epilogue and write. */
typedef struct {
    INT target[TILE];                            /* -1: ignored */
    REAL max[TILE], x_y[TILE], q_y[TILE];
    REAL lost[TILE];                             /* NaN where a d_j that was multiplied became subnormal, else 0 */
    REAL sum[TILE], sum_low[TILE];               /* of the staged exps but the target's, and what that lacks */
    REAL top[TILE], top_low[TILE];               /* the staged exp of the largest logit, */
    REAL own[TILE], own_low[TILE];               /* and of the target */
    REAL all[TILE], all_low[TILE];               /* the sum with that */
    double mass_low[TILE], spread_low[TILE];     /* what sums of the terms lack */
    double size[TILE];                           /* of what is multiplied with the logarithm and the exps */
    REAL own_term[TILE], mass[TILE];             /* d_y and the other d_j, weighted and over normalizer T; */
    REAL alpha[TILE], by_lse[TILE];              /* with a z-loss also Q and 2 z_loss lse */
    REAL unit[TILE], whole[TILE], share[TILE], beta[TILE]; /* g_j = e_j unit - share d_j, e_j unit <= whole; g_y */
} FN(Mixture);

/* d: a plane, from the rows in question on; or weights of classes. */
INLINE vec FN(term_of)(int kind, const REAL *d, ptrdiff_t c)
{
    return kind == GIVEN ? FN(load)(d + c * TILE) : kind == BY_CLASS ? FN(splat)(d[c]) : FN(splat)(1);
}

/* ---- Sweep --------------------------------------------------------------------------------- */

/* The largest logits and the targets' of rows whose labels are known. */
INLINE void FN(find_logits)(const REAL *x, ptrdiff_t n_classes, ptrdiff_t i, FN(Mixture) *a)
{
    ivec y, here = {0};
    memcpy(&y, a->target + i, sizeof y);
    vec x_y = FN(load)(x + i), most = x_y;
    for (ptrdiff_t c = 1; c < n_classes; c++) {
        const vec x_c = FN(load)(x + c * TILE + i);
        here += 1;
        x_y = FN(select)(FN(differ)(y, here), x_y, x_c);
        most = FN(larger)(x_c, most);
    }
    FN(store)(a->max + i, most);
    FN(store)(a->x_y + i, x_y);
}

/* The same where the target is the class of the largest d_j, which take the place of the q_j. */
INLINE void FN(find_target)(const Formula *f, const REAL *x, REAL *q, ptrdiff_t n_classes, ptrdiff_t i,
                            const FN(Ahead) *ahead, FN(Mixture) *a)
{
    const vec even = FN(splat)((REAL)f->even), share = FN(splat)((REAL)f->share);
    const REAL *w = (const REAL *)f->term_weight;
    const int as_given = !w && f->even == 0 && f->share == 1;
    vec x_y = FN(load)(x + i), q_y = FN(load)(q + i), most = FN(splat)(-INFINITY), largest = most, lost = {0};
    ivec place = {0}, here = {0};
    for (ptrdiff_t c = 0; c < n_classes; c++, here += 1) {
        FN(ask_for)(ahead->q.at, c * ahead->q.step, 1, 0);
        const vec x_c = FN(load)(x + c * TILE + i), q_c = FN(load)(q + c * TILE + i);
        vec d = q_c;
        if (!as_given) {
            d = FN(fma)(q_c, share, even) * (w ? FN(splat)(w[c]) : FN(splat)(1));
            FN(store)(q + c * TILE + i, d);
            const FN(mask) normal = FN(not_less)(FN(absolute)(d), FN(splat)(REAL_TINY)) | ~FN(not_zero)(d);
            lost = FN(select)(normal, lost, FN(splat)(NAN));
        }
        const FN(mask) stays = FN(not_less)(largest, d);
        largest = FN(select)(stays, largest, d);
        x_y = FN(select)(stays, x_y, x_c);
        q_y = FN(select)(stays, q_y, q_c);
        place = (ivec)FN(select)(stays, (vec)place, (vec)here);
        most = FN(larger)(x_c, most);
    }
    memcpy(a->target + i, &place, sizeof place);
    FN(store)(a->max + i, most);
    FN(store)(a->x_y + i, x_y);
    FN(store)(a->q_y + i, q_y);
    FN(store)(a->lost + i, lost);
}

/* Sums over j != y of d_j, and of d_j (m - x_j), but for `even`; the latter over all j if they are EVENLY. A d_j of 0
 * counts nothing, also where x_j is -inf. */
typedef struct { vec mass, spread; } FN(TermOf);

INLINE FN(TermOf) FN(term_beside)(const REAL *x, const REAL *d, ptrdiff_t c, vec m, ivec y, int kind)
{
    const vec d_c = FN(term_of)(kind, d, c), gap = m - FN(load)(x + c * TILE);
    if (kind == EVENLY) return (FN(TermOf)){{0}, gap};
    const FN(mask) others = FN(differ)(y, (ivec){0} + (INT)c);
    const FN(mask) counts = others & FN(not_zero)(d_c);
    return (FN(TermOf)){FN(keep)(others, d_c), FN(keep)(counts, d_c * gap)};
}

INLINE void FN(sum_terms)(const REAL *x, const REAL *d, ptrdiff_t n_classes, ptrdiff_t i, int kind, FN(Mixture) *a,
                          Rows *rows)
{
    const vec m = FN(load)(a->max + i);
    const int sums_mass = kind == GIVEN || (kind == BY_CLASS && REAL_BITS == 64); /* see find_own_terms */
    sum_vec mass = {{0}, {0}}, spread = {{0}, {0}};
    ivec y;
    memcpy(&y, a->target + i, sizeof y);
    for (ptrdiff_t c = 0; c < n_classes; c++) {
        FN(TermOf) term = FN(term_beside)(x + i, d, c, m, y, kind);
        if (c + 1 < n_classes) { /* one rounding more saves two conversions or five additions */
            const FN(TermOf) next = FN(term_beside)(x + i, d, ++c, m, y, kind);
            term = (FN(TermOf)){term.mass + next.mass, term.spread + next.spread};
        }
        FN(add)(&spread, term.spread);
        if (sums_mass) FN(add)(&mass, term.mass);
    }
    FN(store_sums)(rows->spread + i, a->spread_low + i, spread);
    if (sums_mass) FN(store_sums)(rows->mass + i, a->mass_low + i, mass);
}

INLINE void FN(no_terms)(ptrdiff_t i, FN(Mixture) *a, Rows *rows)
{
    FN(store_sums)(rows->spread + i, a->spread_low + i, (sum_vec){{0}, {0}});
    FN(store_sums)(rows->mass + i, a->mass_low + i, (sum_vec){{0}, {0}});
}

INLINE void FN(sum_against_largest)(REAL *x, ptrdiff_t n_classes, ptrdiff_t i, int with_grad, const FN(Ahead) *ahead,
                                    const FN(Units) *units, FN(Mixture) *a)
{
    const vec m = FN(load)(a->max + i), x_y = FN(load)(a->x_y + i);
    ivec y;
    memcpy(&y, a->target + i, sizeof y);
    const FN(Staged) staged = FN(stage)(x + i, n_classes, m, (vec){0}, x_y, y, 1, with_grad, with_grad, ahead, units);
    FN(store)(a->sum + i, staged.others.high + (m - m)); /* NaN where that is infinite */
    FN(store)(a->sum_low + i, staged.others.low);
    FN(store)(a->top + i, staged.anchor.high);
    FN(store)(a->top_low + i, staged.anchor.low);
    FN(store)(a->own + i, staged.target.high);
    FN(store)(a->own_low + i, staged.target.low);
}

/* d_y where classes have weights, in float64: it is all there is where the target is one-hot. And what is left of all
 * weights without the target's. */
INLINE void FN(find_own_terms)(const Tile *tile, int kind, const FN(Mixture) *a, Rows *rows)
{
    const Formula *f = tile->formula;
    const REAL *w = (const REAL *)f->term_weight;
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        const double label_share = rows->weight[i] == 0 ? 0 : f->label_share; /* see replace_weightless */
        const ptrdiff_t y = a->target[i] < 0 ? 0 : a->target[i];
        const double w_y = f->class_weight[y];
        rows->own[i] = (kind == GIVEN ? f->even + f->share * a->q_y[i] : label_share + f->even) * w_y;
        if (kind == BY_CLASS && REAL_BITS == 32) rows->mass[i] = FN(weights_beside)(f, w, tile->n_classes, y);
    }
}

/* ---- Epilogue ------------------------------------------------------------------------------ */

/* s - 1 in units of staged exps; all: their sum. */
INLINE FN(Sum) FN(rest_of)(FN(Sum) all, FN(Sum) sum, FN(Sum) top, FN(mask) leads)
{
    const vec high = all.high - top.high; /* no less than 0 */
    vec low = ((all.high - high) - top.high) + all.low;
#ifndef HAS_FMA
    low -= top.low; /* which the sum has */
#endif
    return (FN(Sum)){FN(select)(leads, sum.high, high), FN(select)(leads, sum.low, low)};
}

/* What LANES_F64 rows have of the terms; left: of d_y, what is not in the spread. */
typedef struct { vec_f64 own, left, mass, spread; } FN(Masses);

INLINE FN(Masses) FN(masses)(const Tile *tile, ptrdiff_t i, int kind, const FN(Mixture) *a, const Rows *rows)
{
    const Formula *f = tile->formula;
    const double factor = kind == GIVEN ? 1 : f->even;
    vec_f64 mass = load_f64(rows->mass + i), spread = load_f64(rows->spread + i);
    vec_f64 own = splat_f64(f->label_share + f->even);
    if (REAL_BITS == 64) mass += load_f64(a->mass_low + i);
    if (REAL_BITS == 64) spread += load_f64(a->spread_low + i);
    if (kind == EVENLY) mass = splat_f64((double)(tile->n_classes - 1));
    if (kind == GIVEN) own = f->even + f->share * FN(load_wide)(a->q_y + i);
    if (f->class_weight) own = load_f64(rows->own + i);
    const vec_f64 left = kind == EVENLY && !f->class_weight ? splat_f64(f->label_share) : own;
    return (FN(Masses)){own, left, factor * mass, factor * spread};
}

/* Losses of a vector of rows, and what their gradients have of the terms. */
INLINE void FN(finish_terms)(const Tile *tile, ptrdiff_t i, int kind, FN(Mixture) *a, Rows *rows, FN(Usual) *usual)
{
    const Formula *f = tile->formula;
    const double divisor = divisor_of_gradient(f), inverse_t = f->temperature.factor / f->temperature.divisor;
    const FN(Sum) sum = {FN(load)(a->sum + i), FN(load)(a->sum_low + i)};
    const FN(Sum) top = {FN(load)(a->top + i), FN(load)(a->top_low + i)};
    const FN(Sum) own = {FN(load)(a->own + i), FN(load)(a->own_low + i)}, whole = FN(add_sums)(own, sum);
    const FN(Sum) rest = FN(rest_of)(whole, sum, top, FN(not_less)(FN(load)(a->x_y + i), FN(load)(a->max + i)));
    const FN(Sum) r = FN(joined)(FN(quotient)(rest, top, 1 / top.high)), log_s = FN(log1p_of_pair)(r.high, r.low);
    REAL log_high[LANES_COUNT], log_low[LANES_COUNT];
    FN(store)(log_high, log_s.high);
    FN(store)(log_low, log_s.low);
    FN(store)(a->all + i, whole.high);
    FN(store)(a->all_low + i, whole.low);
    for (ptrdiff_t k = 0; k < LANES; k += LANES_F64) {
        const FN(Masses) d = FN(masses)(tile, i + k, kind, a, rows);
        const vec_f64 log_sum = FN(load_wide)(log_high + k) + FN(load_wide)(log_low + k);
        const vec_f64 m = FN(load_wide)(a->max + i + k), gap = m - FN(load_wide)(a->x_y + i + k);
        const vec_f64 sample = load_f64(rows->sample + i + k), all = d.own + d.mass;
        vec_f64 loss = (d.left * gap + d.spread) * inverse_t + all * log_sum, by_lse = {0};
        if (f->z_loss != 0) {
            const vec_f64 lse = m * inverse_t + log_sum;
            loss += f->z_loss * lse * lse;
            by_lse = 2 * f->z_loss * lse;
        }
        vec_f64 size = absolute_f64(sample) * (absolute_f64(all) + absolute_f64(by_lse));
        if (kind == GIVEN) size += FN(load_wide)(a->lost + i + k);
        store_f64(rows->given + i + k, loss);
        store_f64(a->size + i + k, size);
        store_f64(rows->loss + i + k, keep_f64(are_used(rows, i + k), sample * loss));
        usual->moderate &= FN(are_moderate)(loss, size) & ~not_less_f64(loss, splat_f64(REAL_MAX)); /* nor a NaN */
        if (!tile->grad) continue;
        const vec_f64 scale = rows->weighted ? sample / divisor : splat_f64(1 / divisor);
        FN(store_narrow)(a->share + i + k, scale);
        FN(store_narrow)(a->own_term + i + k, scale * d.own);
        FN(store_narrow)(a->mass + i + k, scale * d.mass);
        FN(store_narrow)(a->whole + i + k, scale * (all + by_lse));
        if (f->z_loss == 0) continue;
        FN(store_narrow)(a->alpha + i + k, scale * all);
        FN(store_narrow)(a->by_lse + i + k, scale * by_lse);
    }
}

/* The factors of the gradients of a vector of rows; after all losses: what was written in parts of a vector is read as
 * a whole. */
INLINE void FN(find_factors)(ptrdiff_t i, int with_z_loss, FN(Mixture) *a)
{
    const vec sum = FN(load)(a->sum + i), own = FN(load)(a->own + i);
    const FN(Sum) all = {FN(load)(a->all + i), FN(load)(a->all_low + i)};
    const vec own_term = FN(load)(a->own_term + i), mass = FN(load)(a->mass + i), by_all = 1 / all.high;
    const vec alpha = FN(load)((with_z_loss ? a->alpha : a->whole) + i);
    const FN(Sum) units = FN(quotient)((FN(Sum)){alpha, {0}}, all, by_all);
    const vec unit = units.high + units.low, left = own * unit, right = sum * unit;
    const vec left_size = FN(larger)(FN(absolute)(left), FN(absolute)(own_term));
    const vec right_size = FN(larger)(FN(absolute)(right), FN(absolute)(mass));
    const vec beta = FN(select)(FN(not_less)(left_size, right_size), mass - right, left - own_term);
    if (!with_z_loss) {
        FN(store)(a->unit + i, unit);
        FN(store)(a->beta + i, beta);
        return;
    }
    const FN(Sum) with_lse = FN(quotient)((FN(Sum)){FN(load)(a->whole + i), {0}}, all, by_all);
    FN(store)(a->unit + i, with_lse.high + with_lse.low);
    /* own / all may be subnormal, or by_lse / all, where a sure row's target is 0 */
    const vec by_lse = FN(load)(a->by_lse + i);
    const FN(mask) is_large = FN(not_less)(FN(absolute)(by_lse), FN(splat)((REAL)0x1p-40));
    const vec e = FN(select)(is_large, own, own * by_all), factor = FN(select)(is_large, by_lse * by_all, by_lse);
    FN(store)(a->beta + i, FN(fma)(e, factor, beta));
}

/* ---- Write --------------------------------------------------------------------------------- */

/* The gradient in place of the exps. */
INLINE void FN(write_mixture)(REAL *x, const REAL *d, ptrdiff_t n_classes, ptrdiff_t i, int kind, REAL even,
                              const FN(Mixture) *a)
{
    const vec unit = FN(load)(a->unit + i), whole = FN(load)(a->whole + i), most = FN(absolute)(whole);
    const vec share = -even * FN(load)(a->share + i), beta = FN(load)(a->beta + i);
    const int below = FN(every_lane)(FN(not_less)(most, FN(absolute)(FN(load)(a->top + i) * unit)));
    ivec y, here = {0};
    memcpy(&y, a->target + i, sizeof y);
    const FN(mask) used = FN(differ)(y, here - 1);
    for (ptrdiff_t c = 0; c < n_classes; c++, here += 1) {
        REAL *at = x + c * TILE + i;
        vec g = FN(load)(at) * unit;
        if (!below) g = FN(select)(FN(not_less)(most, FN(absolute)(g)), g, whole);
        g = FN(fma)(share, FN(term_of)(kind, d, c), g);
        FN(store)(at, FN(keep)(used, FN(select)(FN(differ)(y, here), g, beta)));
    }
}

/* ---- A tile -------------------------------------------------------------------------------- */

/* See anchored_rows. */
INLINE ptrdiff_t FN(rows_of_mixtures)(const Tile *tile, int kind, FN(Mixture) *a, Rows *rows, ptrdiff_t *extreme)
{
    const Formula *f = tile->formula;
    const int with_grad = tile->grad != NULL;
    const ptrdiff_t n_classes = tile->n_classes, n_rows = tile->n_rows;
    const REAL even = kind == GIVEN ? 1 : (REAL)f->even;
    const FN(Units) units = *FN(units)(&f->temperature);
    const FN(Ahead) first = FN(ahead)(tile, n_classes);
    REAL *x = (REAL *)tile->scratch, *q = (REAL *)tile->second;
    const REAL *w = (const REAL *)f->term_weight;
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        const FN(Ahead) ahead = FN(ahead_of)(&first, tile, i);
        if (kind == GIVEN) FN(find_target)(f, x, q, n_classes, i, &ahead, a);
        else FN(find_logits)(x, n_classes, i, a);
    }
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        if (kind == GIVEN || even != 0) FN(sum_terms)(x, kind == GIVEN ? q + i : w, n_classes, i, kind, a, rows);
        else FN(no_terms)(i, a, rows);
    }
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        const FN(Ahead) ahead = FN(ahead_of)(&first, tile, i);
        FN(sum_against_largest)(x, n_classes, i, with_grad, &ahead, &units, a);
    }
    if (f->class_weight) FN(find_own_terms)(tile, kind, a, rows);
    FN(Usual) usual = FN(usual)();
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) FN(finish_terms)(tile, i, kind, a, rows, &usual);
    for (ptrdiff_t i = 0; with_grad && i < n_rows; i += LANES) FN(find_factors)(i, f->z_loss != 0, a);
    for (ptrdiff_t i = 0; with_grad && i < n_rows; i += LANES)
        FN(write_mixture)(x, kind == GIVEN ? q + i : w, n_classes, i, kind, even, a);
    return FN(is_usual)(usual) ? 0 : FN(find_extreme)(rows, n_rows, rows->given, a->size, extreme);
}

static __attribute__((noinline)) ptrdiff_t FN(tile_of_mixtures)(const Tile *tile, Rows *rows, ptrdiff_t *extreme)
{
    FN(Mixture) a;
    FN(prepare_planes)(tile, rows, 0, tile->n_classes);
    if (tile->q) return FN(rows_of_mixtures)(tile, GIVEN, &a, rows, extreme);
    FN(find_labels)(rows, tile->n_rows, a.target);
    if (tile->formula->term_weight) return FN(rows_of_mixtures)(tile, BY_CLASS, &a, rows, extreme);
    return FN(rows_of_mixtures)(tile, EVENLY, &a, rows, extreme);
}
