/* Across rows: every lane of a vector holds a row, and the classes pass one by one.
 *
 * Included once per REAL_BITS, after planes.h, whose planes hold the logits of a tile. The exps are staged there too.
 * What passes through them when is in bands.h.
 */
#ifndef FASTCE_ACROSS_H
#define FASTCE_ACROSS_H
enum {
    BEYOND_CHUNK = -1, /* for a target: no class of this chunk */
    IGNORED = -2,
    BAND = 4           /* tiles that pass together, at most */
};
#define MOVABLE 300.0 /* beyond this |m|, sums against m do not move by a power of two that a double holds */
#endif

#undef BAND_CHUNK
#define BAND_CHUNK (CHUNK_ACROSS / 4) /* of a tile in a band, so that its chunks stay in the first cache */

/* ---- A vector of rows: those from i on, of a plane in the scratch -------------------------- */

/* The target classes of rows, from `start` on. Returns whether no row is ignored. */
INLINE int FN(find_targets)(const int64_t *label, ptrdiff_t n_rows, int64_t start, int64_t n, INT *target)
{
    INT any_ignored = 0;
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const int64_t y = label[i] - start;
        target[i] = (INT)(label[i] < 0 ? IGNORED : y >= 0 && y < n ? y : BEYOND_CHUNK);
        any_ignored |= target[i] == IGNORED;
    }
    return !any_ignored;
}

/* What is known of the rows of a tile between two chunks. */
typedef struct {
    REAL max[TILE], at_target[TILE];
    INT target[TILE]; /* within the chunk; BEYOND_CHUNK; IGNORED */
    double sum[TILE], error[TILE];
    REAL fixed[TILE];  /* whether the sum was against an anchor beyond MOVABLE */
    double term_sum[4][TILE], term_error[4][TILE]; /* see lanes_terms */
    REAL most[TILE];  /* the largest d_j so far */
    REAL top[TILE];      /* for a Hessian: the maximum's exp, */
    double at_top[TILE]; /* and how many there are, perhaps more than a float32 can count */
} FN(Tally);

/* Whether a sweep for the maxima comes first: what else is counted from them does not move with them. */
INLINE int FN(knows_maxima)(const Tile *tile)
{
    return FN(is_single)(tile) || tile->formula->has_terms || tile->hess || tile->q;
}

/* The largest of m and n logits of each lane. A NaN is passed over here and met by the sums. */
INLINE vec FN(largest_in_lanes)(const REAL *x, ptrdiff_t n, vec m)
{
    vec m2 = m;
    ptrdiff_t c = 0;
    for (; c + 2 <= n; c += 2) {
        m = FN(larger)(FN(load)(x + c * TILE), m);
        m2 = FN(larger)(FN(load)(x + (c + 1) * TILE), m2);
    }
    if (c < n) m = FN(larger)(FN(load)(x + c * TILE), m);
    return FN(larger)(m, m2);
}

INLINE void FN(lanes_max)(const REAL *x, ptrdiff_t n, ptrdiff_t i, int first, FN(Tally) *tally)
{
    const vec m = first ? FN(splat)(-INFINITY) : FN(load)(tally->max + i);
    FN(store)(tally->max + i, FN(largest_in_lanes)(x + i, n, m));
}

/* Adds the exps of all classes but the targets, whose logits are noted; stages the exps in place if asked to. */
INLINE void FN(add_lanes)(const Tile *tile, REAL *x, ptrdiff_t start, ptrdiff_t n, ptrdiff_t i, int stage,
                          FN(Exps) exps, const FN(Ahead) *first, FN(Tally) *tally)
{
    const FN(Ahead) ahead = FN(ahead_of)(first, tile, i);
    const int asks = stage || (tile->grad && FN(is_single)(tile)); /* chunks ask when they are written */
    ivec y, here = {0};
    memcpy(&y, tally->target + i, sizeof y);
    sum_vec sum = start == 0 ? (sum_vec){{0}, {0}} : FN(load_sums)(tally->sum + i, tally->error + i);
    vec x_y = start == 0 ? FN(splat)(-INFINITY) : FN(load)(tally->at_target + i);
    for (ptrdiff_t c = 0; c < n; c++, here += 1) {
        FN(ask_for_class)(&ahead, c, asks);
        if (tile->q) FN(ask_for)(ahead.q.at, c * ahead.q.step, 1, 0);
        const vec logit = FN(load)(x + c * TILE + i);
        const FN(mask) others = FN(differ)(y, here);
        x_y = FN(select)(others, x_y, logit);
        const vec v = FN(exps_where)(others, logit, &exps);
        if (stage) FN(store)(x + c * TILE + i, v);
        FN(add)(&sum, v);
    }
    FN(store_sums)(tally->sum + i, tally->error + i, sum);
    FN(store)(tally->at_target + i, x_y);
}

/* The sums so far, from those against the maxima `from`, or 0 where that is -inf, to those against the tally's. An old
 * maximum that was the target joins them. */
static void FN(move_sums)(const Tile *tile, ptrdiff_t i, vec from, FN(Tally) *tally)
{
    const FN(Units) *units = FN(units)(&tile->formula->temperature);
    const vec to = FN(load)(tally->max + i), size = FN(absolute)(to) * units->inverse;
    const FN(Exps) old = FN(exps_against)(FN(larger)(from, FN(splat)(-REAL_MAX)), units);
    const FN(Exps) now = FN(exps_against)(to, units);
    const FN(mask) movable = FN(not_less)(FN(splat)((REAL)MOVABLE), size) | FN(not_less)(from, to);
    REAL doublings[LANES_COUNT];
    FN(store)(tally->fixed + i, FN(select)(movable, FN(load)(tally->fixed + i), FN(splat)(1)));
    FN(store)(doublings, FN(larger)(FN(lesser)((now.bias - old.bias) * (1 / STEPS), (vec){0}), FN(splat)(-1000)));
    for (ptrdiff_t k = 0; k < LANES; k += LANES_F64) {
        const vec_f64 shifted = FN(load_wide)(doublings + k) + (0x1.8p52 + 1023);
        const vec_f64 power = (vec_f64)((ivec_f64)shifted << 52);
        store_f64(tally->sum + i + k, power * load_f64(tally->sum + i + k));
        store_f64(tally->error + i + k, power * load_f64(tally->error + i + k));
    }
    if (!takes_maximum(tile)) return;
    sum_vec sum = FN(load_sums)(tally->sum + i, tally->error + i);
    FN(add)(&sum, FN(keep)(~FN(not_less)(from, to), FN(exps)(from, &now)));
    FN(store_sums)(tally->sum + i, tally->error + i, sum);
}

INLINE void FN(lanes_sum)(const Tile *tile, REAL *x, ptrdiff_t start, ptrdiff_t n, ptrdiff_t i, int stage,
                          const FN(Ahead) *first, FN(Tally) *tally)
{
    vec m = FN(load)(tally->max + i);
    if (!FN(knows_maxima)(tile)) m = FN(larger)(m, FN(splat)(-REAL_MAX)); /* there may be logits to come */
    const FN(Exps) exps = FN(exps_against)(m, FN(units)(&tile->formula->temperature));
    if (FN(are_near)(&exps)) FN(add_lanes)(tile, x, start, n, i, stage, FN(near_exps)(exps), first, tally);
    else FN(add_lanes)(tile, x, start, n, i, stage, exps, first, tally);
}

/* Notes as the rows' labels where the largest d_j stands first, found by the q_j where these rise together. */
static void FN(lanes_largest)(const Formula *formula, const REAL *q, const REAL *w, ptrdiff_t start, ptrdiff_t n,
                              ptrdiff_t i, FN(Tally) *tally, int64_t *label)
{
    REAL place[LANES_COUNT];
    vec most = start ? FN(load)(tally->most + i) : FN(splat)(-INFINITY), at = FN(splat)(-1), here = {0};
    for (ptrdiff_t c = 0; c < n; c++, here += 1) {
        vec v = FN(load)(q + c * TILE + i);
        if (!rises_with_q(formula)) v = ((REAL)formula->even + (REAL)formula->share * v) * (w ? w[c] : 1);
        const FN(mask) stays = FN(not_less)(most, v);
        most = FN(select)(stays, most, v);
        at = FN(select)(stays, at, here);
    }
    FN(store)(tally->most + i, most);
    FN(store)(place, at);
    for (ptrdiff_t k = 0; k < LANES; k++)
        if (place[k] >= 0 || start == 0) label[i + k] = start + (place[k] >= 0 ? (ptrdiff_t)place[k] : 0);
}

/* Adds to the sums of d_j and d_j (m - z_j) SPREAD_SCALE over j != y, of d_j = w_j if `even`, and of d_j = q_j w_j if
 * there are q. */
INLINE void FN(add_lanes_terms)(const REAL *x, const REAL *q, const REAL *w, int even, ptrdiff_t start, ptrdiff_t n,
                                ptrdiff_t i, FN(Tally) *tally)
{
    const vec scaled_m = FN(splat)((REAL)SPREAD_SCALE) * FN(load)(tally->max + i), none = {0}, one = FN(splat)(1);
    sum_vec mass[2] = {{{0}, {0}}}, spread[2] = {{{0}, {0}}}; /* of w_j, and of q_j w_j */
    ivec y, here = {0};
    memcpy(&y, tally->target + i, sizeof y);
    for (int k = 0; start > 0 && k < 2; k++) {
        mass[k] = FN(load_sums)(tally->term_sum[2 * k] + i, tally->term_error[2 * k] + i);
        spread[k] = FN(load_sums)(tally->term_sum[2 * k + 1] + i, tally->term_error[2 * k + 1] + i);
    }
    for (ptrdiff_t c = 0; c < n; c++, here += 1) {
        const vec scaled_gap = FN(fma)(FN(load)(x + c * TILE + i), FN(splat)((REAL)-SPREAD_SCALE), scaled_m);
        const FN(mask) others = FN(differ)(y, here);
        const vec weight = w ? FN(splat)(w[c]) : one;
        for (int k = !even; k < (q ? 2 : 1); k++) {
            const vec d = FN(keep)(others, k ? FN(load)(q + c * TILE + i) * weight : weight);
            if (k || w) FN(add)(&mass[k], d); /* ones are counted */
            FN(add)(&spread[k], FN(select)(FN(not_less)(none, FN(larger)(-d, d)), none, d * scaled_gap));
        }
    }
    for (int k = 0; k < 2; k++) {
        FN(store_sums)(tally->term_sum[2 * k] + i, tally->term_error[2 * k] + i, mass[k]);
        FN(store_sums)(tally->term_sum[2 * k + 1] + i, tally->term_error[2 * k + 1] + i, spread[k]);
    }
}

/* What that comes to so far, d_j = (even + share q_j) w_j, as the rows' mass and spread: see elements.h. */
static void FN(lanes_terms)(const Tile *tile, ptrdiff_t start, ptrdiff_t n, ptrdiff_t i, FN(Tally) *tally,
                            Rows *rows)
{
    const Formula *formula = tile->formula;
    const REAL *x = (const REAL *)tile->scratch, *q = tile->q ? (const REAL *)tile->second : NULL;
    const REAL *w = formula->term_weight ? (const REAL *)formula->term_weight + start : NULL;
    if (!q && !w) FN(add_lanes_terms)(x, NULL, NULL, 1, start, n, i, tally);
    else if (!q) FN(add_lanes_terms)(x, NULL, w, 1, start, n, i, tally);
    else if (!w && formula->even == 0) FN(add_lanes_terms)(x, q, NULL, 0, start, n, i, tally);
    else FN(add_lanes_terms)(x, q, w, formula->even != 0, start, n, i, tally);
    for (ptrdiff_t k = i; k < i + LANES; k += LANES_F64) {
        const double share = q ? formula->share : 0;
        vec_f64 sum[4], mass = {0}, spread = {0};
        for (int s = 0; s < 4; s++) {
            const vec_f64 high = load_f64(tally->term_sum[s] + k), size = larger_f64(high, -high);
            sum[s] = high;
            if (REAL_BITS == 64) /* infinity has no error term */
                sum[s] += keep_f64(not_less_f64(splat_f64(REAL_MAX_F64), size), load_f64(tally->term_error[s] + k));
        }
        for (ptrdiff_t j = 0; !w && j < LANES_F64; j++) /* ones are counted, the label's not among them */
            sum[0][j] = (double)(start + n - (rows->label[k + j] >= 0 && rows->label[k + j] < start + n));
        if (formula->even != 0) {
            mass = formula->even * sum[0];
            spread = formula->even * sum[1];
        }
        if (share != 0) {
            mass += share * sum[2];
            spread += share * sum[3];
        }
        store_f64(rows->mass + k, mass);
        store_f64(rows->spread + k, spread);
    }
}

/* For a Hessian: the sum of the staged exps below the maximum's. */
static void FN(lanes_below)(const Tile *tile, ptrdiff_t n, ptrdiff_t i, int first, FN(Tally) *tally, Rows *rows)
{
    const vec max = FN(load)(tally->max + i);
    const FN(Exps) exps = FN(exps_against)(max, FN(units)(&tile->formula->temperature));
    const vec top = FN(exps)(max, &exps);
    double sums[LANES_COUNT], errors[LANES_COUNT];
    REAL counts[LANES_COUNT];
    sum_vec below = {{0}, {0}};
    vec at_top = {0};
    for (ptrdiff_t c = 0; c < n; c++) {
        const vec v = FN(load)((const REAL *)tile->scratch + c * TILE + i);
        const FN(mask) is_top = FN(not_less)(v, top);
        FN(add)(&below, FN(select)(is_top, (vec){0}, v));
        at_top += FN(keep)(is_top, FN(splat)(1));
    }
    FN(store_sums)(sums, errors, below);
    FN(store)(tally->top + i, top);
    FN(store)(counts, at_top);
    for (ptrdiff_t k = 0; k < LANES; k++) {
        rows->below[i + k] += sums[k];
        tally->at_top[i + k] = (first ? 0 : tally->at_top[i + k]) + counts[k];
    }
}

/* What becomes of the exps of each row of a tile. */
typedef struct {
    REAL anchor[TILE], beta[TILE], even[TILE], share[TILE];
    FN(Factors) p, curve;
    REAL log_sum[TILE]; /* of LOG_SOFTMAX */
    REAL p_scale[TILE], lead[TILE], excess[TILE], hess_target[TILE], hess_top[TILE];
    INT target[TILE]; /* within the chunk; BEYOND_CHUNK; IGNORED */
} FN(Scaling);

INLINE vec FN(lanes_scaled)(vec e, const FN(Factors) *factors, ptrdiff_t i)
{
    return FN(scaled)(e, FN(load)(factors->a + i), FN(load)(factors->c + i), FN(load)(factors->b + i));
}

/* The gradient in place of the exps, or of the logits if they are not staged. `simple`: no row is ignored. */
INLINE void FN(lanes_write)(const Tile *tile, REAL *x, ptrdiff_t n, ptrdiff_t i, int staged, int simple,
                            const FN(Ahead) *first, const FN(Scaling) *scaling)
{
    const vec a = FN(load)(scaling->p.a + i), a_low = FN(load)(scaling->p.c + i), b = FN(load)(scaling->p.b + i);
    const vec beta = FN(load)(scaling->beta + i);
    FN(Exps) exps;
    if (!staged) exps = FN(exps_against)(FN(load)(scaling->anchor + i), FN(units)(&tile->formula->temperature));
    ivec y, here = {0};
    memcpy(&y, scaling->target + i, sizeof y);
    const FN(mask) used = FN(differ)(y, (ivec){0} + IGNORED);
    const FN(Ahead) ahead = FN(ahead_of)(first, tile, i);
    for (ptrdiff_t c = 0; c < n; c++, here += 1) {
        if (!staged) FN(ask_for_class)(&ahead, c, 1);
        vec v = FN(load)(x + c * TILE + i);
        v = FN(scaled)(staged ? v : FN(exps)(v, &exps), a, a_low, b);
        v = FN(select)(FN(differ)(y, here), v, beta);
        FN(store)(x + c * TILE + i, simple ? v : FN(keep)(used, v));
    }
}

/* The same with terms, a Hessian, or neither; see chunk_write and curves. */
static void FN(lanes_write_elements)(const Tile *tile, ptrdiff_t start, ptrdiff_t n, ptrdiff_t i, int staged,
                                     const FN(Scaling) *s)
{
    const Formula *formula = tile->formula;
    REAL *x = (REAL *)tile->scratch, *h = tile->hess ? (REAL *)tile->third : NULL;
    const REAL *q = formula->has_terms && tile->q ? (const REAL *)tile->second : NULL;
    const REAL *w = formula->has_terms && formula->term_weight ? (const REAL *)formula->term_weight + start : NULL;
    const vec beta = FN(load)(s->beta + i), p_scale = FN(load)(s->p_scale + i), lead = FN(load)(s->lead + i);
    const vec excess = FN(load)(s->excess + i), hess_top = FN(load)(s->hess_top + i);
    const vec max = FN(load)(s->anchor + i), hess_target = FN(load)(s->hess_target + i), one = FN(splat)(1);
    const FN(Exps) exps = FN(exps_against)(max, FN(units)(&formula->temperature));
    const vec top = FN(exps)(max, &exps);
    ivec y, here = {0};
    memcpy(&y, s->target + i, sizeof y);
    const FN(mask) used = FN(differ)(y, (ivec){0} + IGNORED);
    for (ptrdiff_t c = 0; c < n; c++, here += 1) {
        REAL *at = x + c * TILE + i;
        const FN(mask) others = FN(differ)(y, here);
        const vec e = staged ? FN(load)(at) : FN(exps)(FN(load)(at), &exps);
        if (h) {
            const vec below = FN(lanes_scaled)(e, &s->curve, i) * FN(fma)(e * p_scale, excess, lead);
            const vec v = FN(select)(FN(not_less)(e, top), hess_top, below);
            FN(store)(h + c * TILE + i, FN(keep)(used, FN(select)(others, v, hess_target)));
        }
        vec v = FN(lanes_scaled)(e, &s->p, i);
        if (formula->has_terms) {
            vec d = FN(load)(s->even + i);
            if (q) d = FN(fma)(FN(load)(q + c * TILE + i), FN(load)(s->share + i), d);
            v -= d * (w ? FN(splat)(w[c]) : one);
        }
        FN(store)(at, FN(keep)(used, FN(select)(others, v, beta)));
    }
}

/* Derivatives of a chunk with respect to the logits as given, 0 in ignored rows, to their arrays. */
static void FN(put_elements)(const Tile *tile, const Rows *rows, ptrdiff_t start, ptrdiff_t n)
{
    REAL *g = (REAL *)tile->scratch, *h = tile->hess ? (REAL *)tile->third : NULL, *x = (REAL *)tile->second;
    if (tile->formula->transform != AS_GIVEN) {
        FN(fetch_plane)(tile, tile->logits, &tile->logits_layout, start, n, x);
        for (ptrdiff_t c = 0; c < n * TILE; c += TILE)
            FN(apply_slopes)(x + c, g + c, h ? h + c : NULL, tile->n_rows, tile->formula);
        for (ptrdiff_t i = 0; i < tile->n_rows; i++)
            for (ptrdiff_t c = 0; rows->label[i] < 0 && c < n; c++) {
                g[c * TILE + i] = 0; /* whatever their logits hold */
                if (h) h[c * TILE + i] = 0;
            }
    }
    FN(put_plane)(tile, tile->grad, &tile->grad_layout, start, n, g);
    if (h) FN(put_plane)(tile, tile->hess, &tile->hess_layout, start, n, h);
}
