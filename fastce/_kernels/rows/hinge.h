/* Hinges: what scores lack to a margin. The epilogue, and what both walks share.
 *
 * Included once per REAL_BITS, after all other rows' headers. With the margin M, the target y and the power p
 *
 *     one versus rest    sum_{j != y} max(0, x_j + M)^p + max(0, M - x_y)^p
 *     multi-margin       sum_{j != y} max(0, x_j + (M - x_y))^p / C
 *     Crammer, Singer    max(0, max_{j != y} x_j + (M - x_y))^p
 *
 * Every term but that of x_y alone is one of h_j = max(0, x_j + a), a being the row's edge:
 *
 *     sweep    rest = sum_{j != y} h_j^p,    mass = sum_{j != y} h_j^(p - 1)
 *     write    g_j = alpha h_j^(p - 1),  g_y = beta = -alpha mass        alpha = p w / normalizer, multi-margin's by C
 *
 * where h_j^0 is 0 at the kink, h_j = 0, and the third's sums have the largest h_j alone. The edge is an unevaluated
 * sum and so is, in float64, x_j + a; float32 adds in float64. So an h_j has one rounding, however much of it cancels,
 * and it is known exactly which are above 0. With p = 1 that is all that write asks for: x_j > floor, the largest REAL
 * that is not above -a.
 *
 * A class at -inf has no term. A target at -inf is infinitely far below all classes that are not: its edge is the
 * largest number and a bit, and the epilogue makes infinity of that. NaN stays, also that of inf - inf.
 */
#ifndef FASTCE_HINGE_H
#define FASTCE_HINGE_H

/* The edge of a target at -inf. The second part makes it more than any class below it, and is lost in all sums. */
#define FURTHEST 0x1.fffffffffffffp+1023
#define FURTHEST_LOW 0x1p960

/* Whether the edge is that of the target's score, not of the margin alone. */
INLINE int is_relative(const Formula *f) { return f->hinge != ONE_VS_REST; }

static void read_given(const Tile *tile, Rows *rows); /* rows.h */

/* max(0, h). NaN stays, as the second of the two. */
INLINE vec_f64 above_zero(vec_f64 h) { return larger_f64((vec_f64){0}, h); }

/* From the sums of rows to losses and the coefficients of gradients. NaN anywhere in a row is in its sum. */
static void epilogue_hinge(const Formula *f, Rows *rows, ptrdiff_t n_rows, ptrdiff_t n_classes)
{
    const vec_f64 zero = {0}, one = splat_f64(1), infinity = splat_f64(INFINITY);
    const double divisor = f->hinge == MULTI_MARGIN ? n_classes : 1;
    for (ptrdiff_t i = 0; i < n_rows; i += LANES_F64) {
        const vec_f64 w = load_f64(rows->weight + i), x_y = load_f64(rows->given + i);
        vec_f64 sum = load_f64(rows->rest + i), mass = load_f64(rows->mass + i);
        sum += keep_f64(not_less_f64(splat_f64(FURTHEST), sum), load_f64(rows->rest_low + i)); /* infinity has none */
        ivec_f64 label;
        memcpy(&label, rows->label + i, sizeof label);
        if (is_relative(f)) {
            const mask_f64 is_far = not_less_f64(-infinity, x_y); /* or NaN, which stays */
            sum = select_f64(is_far, sum * infinity, sum);        /* NaN where no class is above the target */
            if (f->power == 2) mass = select_f64(is_far, mass * infinity, mass);
        } else {
            const vec_f64 own = above_zero(f->margin - x_y);
            sum += f->power == 1 ? own : own * own;
            mass = f->power == 1 ? select_f64(not_less_f64(zero, own), zero, one) : own;
        }
        const vec_f64 nan = keep_f64(not_less_f64(-one, sum), sum); /* else 0, as no sum is negative */
        const vec_f64 alpha = w * f->power / f->normalizer / divisor;
        const mask_f64 is_weightless = not_less_f64(zero, larger_f64(w, -w));
        const mask_f64 is_flat = not_less_f64(zero, larger_f64(alpha, -alpha));
        const vec_f64 loss = zero + select_f64(is_weightless, w * nan, w * sum / divisor); /* never -0.0, as all here */
        const vec_f64 beta = nan + select_f64(is_flat, alpha, alpha * mass);
        store_f64(rows->loss + i, keep_f64(differ_f64(label, (ivec_f64){0} - 1), loss));
        store_f64(rows->alpha + i, alpha + nan);
        store_f64(rows->beta + i, zero - beta);
    }
}
#endif

/* ---- Edges --------------------------------------------------------------------------------- */

/* Of a vector of rows, or of one row in all lanes. */
#undef PARTS
#define PARTS (REAL_BITS == 64 ? 1 : 2)
typedef struct { vec_f64 a[2], low[2]; vec floor; } FN(Edge);

INLINE vec FN(of_parts)(const vec_f64 *part)
{
#if REAL_BITS == 64
    return part[0];
#else
    return FN(narrowed)(part[0], part[1]);
#endif
}

/* Where a lane of `where` is above 0 the next REAL below r, else r. */
INLINE vec FN(next_below)(vec r, vec where)
{
    const ivec sign = (ivec){0} + (INT)((UINT)1 << (REAL_BITS - 1));
    const ivec at = (ivec)r | ((ivec)(r == (vec){0}) & sign), is_negative = (ivec)(at < 0);
    return (vec)(at - ((ivec)(where > (vec){0}) & (2 * is_negative + 1)));
}

/* From the targets' scores. */
static void FN(set_edges)(const Formula *f, Rows *rows, ptrdiff_t n_rows)
{
    const vec_f64 margin = splat_f64(f->margin), zero = {0}, one = splat_f64(1), furthest = splat_f64(FURTHEST);
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        vec_f64 a[2] = {margin, margin}, low[2] = {zero, zero}, minus_a[2], is_above[2];
        for (int k = 0; is_relative(f) && k < PARTS; k++) {
            const vec_f64 x_y = load_f64(rows->given + i + k * LANES_F64), sum = margin - x_y, part = sum - margin;
            const mask_f64 is_finite = not_less_f64(furthest, larger_f64(sum, -sum));
            low[k] = select_f64(is_finite, (margin - (sum - part)) - (x_y + part), splat_f64(FURTHEST_LOW));
            a[k] = lesser_f64(furthest, sum); /* NaN stays */
        }
        for (int k = 0; k < PARTS; k++) minus_a[k] = zero - a[k];
        const vec nearest = FN(of_parts)(minus_a);
        double rounded[LANES_COUNT];
        FN(store_as_f64)(rounded, nearest);
        for (int k = 0; k < PARTS; k++) {
            const vec_f64 excess = (load_f64(rounded + k * LANES_F64) + a[k]) + low[k];
            is_above[k] = select_f64(not_less_f64(zero, excess), zero, one);
            store_f64(rows->edge + i + k * LANES_F64, a[k]);
            store_f64(rows->edge_low + i + k * LANES_F64, low[k]);
        }
        FN(store_as_f64)(rows->floor + i, FN(next_below)(nearest, FN(of_parts)(is_above)));
    }
}

INLINE FN(Edge) FN(edge_of_row)(const Rows *rows, ptrdiff_t i)
{
    const vec_f64 a = splat_f64(rows->edge[i]), low = splat_f64(rows->edge_low[i]);
    return (FN(Edge)){{a, a}, {low, low}, FN(splat)((REAL)rows->floor[i])};
}

INLINE FN(Edge) FN(edge_of_lanes)(const Rows *rows, ptrdiff_t i)
{
    FN(Edge) edge;
    vec_f64 floor[2];
    for (int k = 0; k < PARTS; k++) {
        edge.a[k] = load_f64(rows->edge + i + k * LANES_F64);
        edge.low[k] = load_f64(rows->edge_low + i + k * LANES_F64);
        floor[k] = load_f64(rows->floor + i + k * LANES_F64);
    }
    edge.floor = FN(of_parts)(floor);
    return edge;
}

typedef struct { vec_f64 h[2]; } FN(Hinges);

INLINE FN(Hinges) FN(hinges)(vec x, const FN(Edge) *edge)
{
    FN(Hinges) to = {{{0}}};
#if REAL_BITS == 64
    const vec sum = x + edge->a[0], part = sum - x, lost = (x - (sum - part)) + (edge->a[0] - part);
    const mask_f64 is_finite = not_less_f64(splat_f64(FURTHEST), larger_f64(sum, -sum));
    to.h[0] = above_zero(sum + keep_f64(is_finite, lost + edge->low[0]));
#else
    const sum_vec wide = FN(widened)(x);
    to.h[0] = above_zero((wide.low + edge->a[0]) + edge->low[0]);
    to.h[1] = above_zero((wide.high + edge->a[1]) + edge->low[1]);
#endif
    return to;
}

/* ---- Sums ---------------------------------------------------------------------------------- */

/* Of a vector of classes or of rows: rest, mass where p is 2, mass where it is 1, the largest x_j, NaN. */
typedef struct { sum_vec rest, mass; vec count, most; ivec nan; } FN(HingeSums);

INLINE FN(HingeSums) FN(no_hinges)(void)
{
    return (FN(HingeSums)){{{0}, {0}}, {{0}, {0}}, {0}, FN(splat)(-INFINITY), {0}};
}

INLINE void FN(add_wide)(sum_vec *acc, const vec_f64 *terms)
{
#if REAL_BITS == 64
    FN(add)(acc, terms[0]);
#else
    acc->low += terms[0];
    acc->high += terms[1];
#endif
}

/* x: -inf where there is no class, or the target. */
INLINE void FN(add_hinges)(FN(HingeSums) *sums, vec x, const FN(Edge) *edge, Hinge kind, int power, int with_mass)
{
    if (kind == CRAMMER_SINGER) {
        sums->most = FN(larger)(x, sums->most);
        sums->nan |= (ivec)(x != x);
        return;
    }
    FN(Hinges) terms = FN(hinges)(x, edge);
    if (with_mass && power == 1)
        sums->count += FN(select)(FN(not_less)(edge->floor, x), (vec){0}, FN(splat)(1));
    if (with_mass && power == 2) FN(add_wide)(&sums->mass, terms.h);
    for (int k = 0; power == 2 && k < PARTS; k++) terms.h[k] *= terms.h[k];
    FN(add_wide)(&sums->rest, terms.h);
}

/* Calls `action` with what the formula says as constants: the mass of one versus rest is the target's own. */
#define FOR_EACH_HINGE(f, with_grad, action) \
    do { \
        if ((f)->hinge == CRAMMER_SINGER) action(CRAMMER_SINGER, 1, 0); \
        else if ((f)->hinge == MULTI_MARGIN && (with_grad) && (f)->power == 1) action(MULTI_MARGIN, 1, 1); \
        else if ((f)->hinge == MULTI_MARGIN && (with_grad)) action(MULTI_MARGIN, 2, 1); \
        else if ((f)->power == 1) action(MULTI_MARGIN, 1, 0); \
        else action(MULTI_MARGIN, 2, 0); \
    } while (0)

/* What a row's largest x_j makes of it. NaN, wherever it stood, has taken the largest's place. */
static void FN(finish_largest)(const Formula *f, const REAL *most, Rows *rows, ptrdiff_t n_rows)
{
    const vec_f64 zero = {0}, one = splat_f64(1);
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        const FN(Edge) edge = FN(edge_of_lanes)(rows, i);
        const FN(Hinges) of = FN(hinges)(FN(load)(most + i), &edge);
        for (int k = 0; k < PARTS; k++) {
            const ptrdiff_t to = i + k * LANES_F64;
            const vec_f64 h = of.h[k];
            store_f64(rows->rest + to, f->power == 1 ? h : h * h);
            store_f64(rows->rest_low + to, zero);
            store_f64(rows->mass + to, f->power == 1 ? select_f64(not_less_f64(zero, h), zero, one) : h);
        }
    }
}

/* ---- Write --------------------------------------------------------------------------------- */

/* Gradients off the target: alpha h_j in rows with a ramp, else `value` above the floor and `below` elsewhere. */
typedef struct { double alpha[TILE]; REAL value[TILE], below[TILE], beta[TILE], ramp[TILE]; } FN(Slopes);

/* Returns whether all rows have a ramp. */
static int FN(set_slopes)(const Formula *f, const Rows *rows, ptrdiff_t n_rows, FN(Slopes) *to)
{
    const vec_f64 zero = {0}, one = splat_f64(1), infinity = splat_f64(INFINITY);
    const int has_ramps = f->power == 2 && f->hinge != CRAMMER_SINGER;
    int all = has_ramps;
    for (ptrdiff_t i = 0; i < n_rows; i += LANES_F64) {
        ivec_f64 label;
        memcpy(&label, rows->label + i, sizeof label);
        const mask_f64 used = differ_f64(label, (ivec_f64){0} - 1);
        const vec_f64 alpha = keep_f64(used, load_f64(rows->alpha + i));
        const vec_f64 nan = (vec_f64)((ivec_f64)alpha & (ivec_f64)(alpha != alpha));
        vec_f64 step = alpha + zero, ramp = zero;
        if (f->power == 2) {
            const mask_f64 is_flat = not_less_f64(zero, larger_f64(alpha, -alpha)); /* or NaN */
            const vec_f64 far = is_relative(f) ? load_f64(rows->given + i) : zero;
            const mask_f64 is_far = not_less_f64(-infinity, far);
            step = select_f64(is_flat, nan, select_f64(is_far, alpha * infinity, zero));
            if (has_ramps) ramp = select_f64(is_flat, zero, select_f64(is_far, zero, one));
            all &= every_lane_f64(not_less_f64(ramp, one));
        }
        store_f64(to->alpha + i, alpha);
        FN(store_narrow)(to->value + i, f->hinge == CRAMMER_SINGER ? nan : step);
        FN(store_narrow)(to->below + i, nan);
        FN(store_narrow)(to->beta + i, keep_f64(used, load_f64(rows->beta + i)));
        FN(store_narrow)(to->ramp + i, ramp);
    }
    return all;
}

/* Of a vector of rows, or of one row in all lanes. */
typedef struct { vec_f64 alpha[2]; vec value, below, ramp; } FN(Slope);

INLINE FN(Slope) FN(slope_of_row)(const FN(Slopes) *slopes, ptrdiff_t i)
{
    const vec_f64 alpha = splat_f64(slopes->alpha[i]);
    return (FN(Slope)){{alpha, alpha}, FN(splat)(slopes->value[i]), FN(splat)(slopes->below[i]),
                       FN(splat)(slopes->ramp[i])};
}

INLINE FN(Slope) FN(slope_of_lanes)(const FN(Slopes) *slopes, ptrdiff_t i)
{
    FN(Slope) slope = {{{0}}, FN(load)(slopes->value + i), FN(load)(slopes->below + i), FN(load)(slopes->ramp + i)};
    for (int k = 0; k < PARTS; k++) slope.alpha[k] = load_f64(slopes->alpha + i + k * LANES_F64);
    return slope;
}

INLINE vec FN(step)(vec x, const FN(Edge) *edge, const FN(Slope) *slope)
{
    return FN(select)(FN(not_less)(edge->floor, x), slope->below, slope->value);
}

INLINE vec FN(ramp)(vec x, const FN(Edge) *edge, const FN(Slope) *slope)
{
    FN(Hinges) of = FN(hinges)(x, edge);
    for (int k = 0; k < PARTS; k++) of.h[k] *= slope->alpha[k];
    return FN(of_parts)(of.h);
}
