/* What one read of a row of logits tells of it: how probable a token is, at which rank, how unsure the row is, and
 * which are its best classes.
 *
 * Included once per REAL_BITS, after elements.h. With the transformed logits z, their maximum m and the target y
 *
 *     others = sum of exp((z_j - m) / T) over all j but one maximum             log s = log1p(others)
 *     log p_y = -((m - z_y) / T + log s)          H = log s + (sum of exp((z_j - m) / T) (m - z_j) / T) / (1 + others)
 *     rank = 1 + how many x_j > x_y
 *
 * No sum has a negative term, so none cancels, however sure the row is. A row is read in blocks that stay in the
 * first cache: once for the maximum, the rank and the best, once for the exps. They are taken against an anchor, at first the
 * target's logit and from then on the largest so far; the anchor's own element is the one that is not in the
 * sums. Where the target is the maximum the anchor never moves, and no digit is lost; where it moves, the sums up to
 * there are multiplied by one exp.
 *
 * Blocks make pieces, which depend on the number of classes alone. Each begins with the target as its anchor,
 * and they are merged in their order: so threads may share a row, and bits depend neither on them nor on
 * the layout.
 *
 * Errors: log p_y has those of the losses (docs/accuracy.md). H is within 4 ULP in float32 and 8 in float64: a term has
 * those of its exp, its difference and its product, four are added in REAL, the rest in more.
 */
#ifndef FASTCE_GATHER_H
#define FASTCE_GATHER_H

#include "rows/best.h"

enum {
    BLOCK = 1024,      /* classes: 4 KiB of float32 */
    PANEL = 64         /* rows that are fetched together where a class is far from the next */
};
_Static_assert((int)PANEL == (int)TILE, "transpose.h moves planes of TILE rows");

/* Of all sums here: they keep the digits of what would be subnormal. */
#define SUM_SCALE 0x1p64

typedef struct {
    double anchor;
    int passed;              /* the anchor's own element has been read: it belongs to this piece */
    double rest, rest_low;   /* sum of exp((z_j - anchor) / T) but the anchor's own, times SUM_SCALE */
    double spread;           /* the same, each times (anchor - z_j) / T */
    int64_t above;           /* logits above the target's */
} Gathered;

/* A call, as far as rows need to know. */
typedef struct {
    ptrdiff_t n_classes;
    Layout layout;           /* of the logits */
    const Formula *formula;  /* temperature and softcap */
    int only_best;           /* neither ranks nor sums */
} Gathering;

/* What becomes of a row. */
typedef struct {
    double logprob, entropy, log_s, max;
    int64_t rank;
} Scored;

INLINE ptrdiff_t count_blocks(ptrdiff_t n_classes) { return (n_classes + BLOCK - 1) / BLOCK; }

/* Classes far apart: each would be a cache line, and often a page, of its own. */
INLINE int is_panel(const Layout *layout)
{
    const ptrdiff_t apart = layout->class_stride;
    return apart >= 64 || apart <= -64;
}

INLINE double in_units_of_t(double a, double b, const Temperature *t) /* (a - b) / T without overflow on the way */
{
    return 2 * ((0.5 * a - 0.5 * b) / t->divisor * t->factor);
}

/* exp((a - b) / T) SUM_SCALE, a <= b. */
static double exp_between(double a, double b, const Units_f64 *units)
{
    const Exps_f64 exps = exps_against_f64(splat_f64(b), units);
    const double e = exps_f64(splat_f64(a), &exps)[0] * (1 / exp_scale_f64 * SUM_SCALE);
    return fma(e, correction_f64(&exps, 0)[0], e);
}

/* hi + lo as one sum with less than half an ULP in lo. */
INLINE void add_to_rest(Gathered *g, double high, double low)
{
    const double sum = g->rest + high, part = sum - g->rest;
    const double lost = ((g->rest - (sum - part)) + (high - part)) + (g->rest_low + low);
    g->rest = sum + lost;
    g->rest_low = lost - (g->rest - sum);
}

/* Makes b, if it is larger, the anchor. */
static void raise_anchor(Gathered *g, double b, const Temperature *temperature)
{
    const double a = g->anchor;
    if (!(b > a)) return;
    const double f = a == -INFINITY ? 0 : exp_between(a, b, &temperature->f64);
    if (g->passed) add_to_rest(g, SUM_SCALE, 0);
    if (f == 0) { /* also where b - a is infinite; NaN in the sums stays */
        g->rest *= 0;
        g->rest_low = 0;
        g->spread *= 0;
    } else {
        g->spread = fma(in_units_of_t(b, a, temperature), g->rest, g->spread) * f / SUM_SCALE;
        g->rest_low = g->rest_low * f / SUM_SCALE;
        g->rest = g->rest * f / SUM_SCALE;
    }
    g->anchor = b;
    g->passed = 1;
}

/* The next piece of the row joins those before it. */
static void merge_gathered(Gathered *g, Gathered next, const Temperature *temperature)
{
    g->above += next.above;
    if (next.anchor > g->anchor) raise_anchor(g, next.anchor, temperature);
    else if (next.anchor < g->anchor) raise_anchor(&next, g->anchor, temperature);
    else {
        if (next.passed && g->passed) add_to_rest(g, SUM_SCALE, 0);
        g->passed |= next.passed;
    }
    add_to_rest(g, next.rest, next.rest_low);
    g->spread += next.spread;
}

/* log(1 + others). A sum so small is its own logarithm, also where it is subnormal. */
static double log_of_one_and(double others, double others_low)
{
    if (others < 0x1p-60 * SUM_SCALE) return others / SUM_SCALE;
    return log1p_of_sum_f64(splat_f64(others / SUM_SCALE), splat_f64(others_low / SUM_SCALE), 0)[0];
}

/* -((m - z) / T + log s): the logarithm of the probability of any class. */
INLINE double log_probability(double m, double z, double log_s, const Temperature *t)
{
    const double half = (0.5 * m - 0.5 * z) / t->divisor * t->factor + 0.5 * log_s;
    return 0 - 2 * half; /* 0 - : never -0.0 */
}

/* NaN or +inf in the row, or nothing but -inf, make all of it NaN. */
static Scored conclude(const Gathered *g, double z_y, const Temperature *temperature)
{
    const double m = g->anchor, log_s = log_of_one_and(g->rest, g->rest_low);
    if (!(m > -INFINITY && m < INFINITY) || log_s != log_s) return (Scored){NAN, NAN, NAN, NAN, 0};
    const double logprob = m == z_y ? 0 - log_s : log_probability(m, z_y, log_s, temperature);
    const int tiny = g->rest < 0x1p-60 * SUM_SCALE; /* perhaps subnormal: to be rounded once */
    const double entropy = tiny ? (g->rest + g->spread) / SUM_SCALE : log_s + g->spread / (SUM_SCALE + g->rest);
    return (Scored){logprob, entropy, log_s, m, 1 + g->above};
}
#endif

/* A piece that is being read. */
typedef struct {
    Gathered so_far;
    REAL target;               /* x_y, as it was given */
    ptrdiff_t place;           /* of the anchor's element in the row */
    double sum, error, spread; /* what joined since the anchor is what it is, in units of the exps */
    FN(Exps) exps;
    int is_nan;
} FN(Open);

INLINE void FN(set_exps)(FN(Open) *piece, REAL anchor, const Temperature *temperature)
{
    piece->exps = FN(exps_against)(FN(splat)(anchor == -INFINITY ? 0 : anchor), FN(units)(temperature));
}

/* A threshold to begin with: each of k groups has a number that is not below the least of their maxima. */
static double FN(first_threshold)(const REAL *x, ptrdiff_t n, ptrdiff_t k)
{
    REAL least = INFINITY;
    for (ptrdiff_t i = 0; i < k; i++) {
        const ptrdiff_t start = n * i / k;
        const REAL m = FN(chunk_max)(x + start, n * (i + 1) / k - start);
        least = m < least ? m : least;
    }
    return REAL_BITS == 64 ? nextafter(least, -INFINITY) : nextafterf((float)least, -INFINITY);
}

/* Puts those above the threshold on the list; returns whether there is a NaN. */
static int FN(note_best)(const REAL *x, ptrdiff_t n, int64_t index, Best *best)
{
    const ptrdiff_t group = 4 * LANES;
    int is_nan = 0;
    if (best->threshold == -INFINITY && best->k <= n / 16) best->threshold = FN(first_threshold)(x, n, best->k);
    for (ptrdiff_t j = 0; j < n; j += group) {
        const vec least = FN(splat)((REAL)best->threshold);
        vec v[4];
        for (ptrdiff_t k = 0; k < 4; k++) {
            const ptrdiff_t at = j + k * LANES, count = n - at;
            v[k] = count >= LANES ? FN(load)(x + at)
                                  : count > 0 ? FN(load_n)(x + at, count, -INFINITY) : FN(splat)(-INFINITY);
        }
        if (__builtin_expect(!FN(beyond_any)(v[0], v[1], v[2], v[3], least), 1)) continue;
        uint64_t bits = 0;
        for (int k = 0; k < 4; k++) bits |= (uint64_t)FN(bits_beyond)(v[k], least) << (k * LANES);
        for (; bits; bits &= bits - 1) {
            const ptrdiff_t i = j + __builtin_ctzll(bits);
            if (x[i] > best->threshold) add_to_best(best, x[i], index + i);
            else is_nan |= x[i] != x[i];
        }
    }
    return is_nan;
}

/* Sum of exps times distances from the anchor, and how many of the logits as given are above the target's. */
INLINE void FN(add_spread)(FN(Open) *piece, const REAL *given, const REAL *z, const REAL *e, ptrdiff_t n, int is_near)
{
    const vec anchor = FN(splat)(piece->so_far.anchor == -INFINITY ? 0 : (REAL)piece->so_far.anchor);
    const vec target = FN(splat)(piece->target), inverse = FN(splat)(piece->exps.units.inverse);
    const vec most = FN(splat)(FAR); /* the exp is 0 from there on; 0 times infinity would be NaN */
    sum_vec spread = {{0}, {0}};
    ivec above[2] = {{0}, {0}};
    for (ptrdiff_t j = 0; j < n; j += 4 * LANES) {
        vec products = {0};
        for (ptrdiff_t k = 0; k < 4; k++) {
            const ptrdiff_t at = j + k * LANES, count = n - at;
            if (count <= 0) break;
            const int whole = count >= LANES;
            const vec x = whole ? FN(load)(given + at) : FN(load_n)(given + at, count, -INFINITY);
            const vec gap = anchor - (whole ? FN(load)(z + at) : FN(load_n)(z + at, count, -INFINITY));
            const vec v = whole ? FN(load)(e + at) : FN(load_n)(e + at, count, 0);
            above[k & 1] += (ivec)(x > target);
            products = FN(fma)(v, FN(lesser)(is_near ? gap : gap * inverse, most), products);
        }
        FN(add)(&spread, products);
    }
    piece->spread += FN(total)(spread);
    const ivec sum = above[0] + above[1];
    for (int i = 0; i < LANES; i++) piece->so_far.above -= sum[i];
}

/* What has been added against the present anchor joins the sums in their units. */
static void FN(close_sums)(FN(Open) *piece)
{
    const double unit = SUM_SCALE / EXP_SCALE, unit_low = fma(-unit, EXP_SCALE / SUM_SCALE, 1.0) * unit;
    const double c = FN(correction)(&piece->exps, 0)[0];
    const double high = piece->sum, low = piece->error, product = high * unit;
    const double lost = product_error_f64(splat_f64(high), splat_f64(unit), splat_f64(product))[0];
    add_to_rest(&piece->so_far, product, (lost + high * unit_low) + fma(product, c, low * unit));
    const double spread = piece->spread * unit;
    piece->so_far.spread += fma(spread, c, spread);
    piece->sum = piece->error = piece->spread = 0;
}

/* Adds the exps of n logits to the sum, but that of the one at y if that is among them; stages them in e unless that
 * is NULL. `run` is where the logits come from: more is asked for from there on. */
INLINE void FN(add_exps)(FN(Open) *piece, const REAL *z, REAL *e, ptrdiff_t n, ptrdiff_t y, const char *run)
{
    const FN(Source) source = {run, NULL, NULL, sizeof(REAL), 0, 0};
    double low;
    const double high = FN(total_and_error)(FN(chunk_sum_of)(z, e, n, &piece->exps, y, NULL, &source), &low);
    FN(add_number)(&piece->sum, &piece->error, high, low);
}

/* n logits of the row, from `start` on, contiguous. */
static void FN(gather_block)(const Gathering *call, FN(Open) *piece, Best *best, const REAL *x, ptrdiff_t n,
                             ptrdiff_t start, const char *run)
{
    REAL e[BLOCK], transformed[BLOCK];
    const REAL *z = x;
    if (call->only_best) {
        piece->is_nan |= FN(note_best)(x, n, start, best);
        return;
    }
    REAL top = FN(chunk_max)(x, n);
    if (top > best->threshold) FN(note_best)(x, n, start, best);
    if (call->formula->transform != AS_GIVEN) {
        FN(copy)(x, n, transformed);
        FN(transform)(transformed, n, call->formula);
        z = transformed;
        top = FN(chunk_max)(z, n);
    }
    if (top > piece->so_far.anchor) {
        FN(close_sums)(piece);
        raise_anchor(&piece->so_far, top, &call->formula->temperature);
        piece->place = start + FN(place_of)(top, z, n);
        FN(set_exps)(piece, top, &call->formula->temperature);
    }
    const ptrdiff_t y = piece->place - start;
    piece->so_far.passed |= y >= 0 && y < n;
    FN(add_exps)(piece, z, e, n, y, run);
    if (FN(are_near)(&piece->exps)) FN(add_spread)(piece, x, z, e, n, 1);
    else FN(add_spread)(piece, x, z, e, n, 0);
}

/* ---- Pieces of rows -------------------------------------------------------------------------- */

/* The logit of one class as it is, and as the exps are taken of it. */
static double FN(logit_of)(const Gathering *call, const char *row, int64_t class, double *z)
{
    const Layout *from = &call->layout;
    REAL x = FN(load_one)(row + class * from->class_stride, from->format, from->swapped);
    const double given = x;
    if (call->formula->transform != AS_GIVEN) FN(transform)(&x, 1, call->formula);
    *z = x;
    return given;
}

/* n classes of up to PANEL rows from `start` on, each row contiguous, `apart` elements from the next. */
static void FN(fetch_panel)(const Layout *from, const char *rows, ptrdiff_t n_rows, ptrdiff_t start, ptrdiff_t n,
                            REAL *panel, ptrdiff_t apart)
{
    REAL plane[32 * TILE];
    for (ptrdiff_t c = 0; c < n; c += 32) {
        const ptrdiff_t count = FN(smaller)(n - c, 32);
        for (ptrdiff_t k = 0; k < count; k++)
            FN(fetch)(rows + (start + c + k) * from->class_stride, from->format, from->swapped, from->row_stride,
                      n_rows, plane + k * TILE);
        FN(plane_to_rows)(plane, (char *)(panel + c), apart * sizeof(REAL), n_rows, count);
    }
}

/* A place from which on nothing is asked for that is not in cache. */
INLINE const char *FN(in_cache)(const REAL *scratch) { return (const char *)((uintptr_t)scratch - AHEAD_ROWS); }

static void FN(begin_piece)(const Gathering *call, const char *row, int64_t label, FN(Open) *piece)
{
    double z = 0, x = 0;
    if (!call->only_best) x = FN(logit_of)(call, row, label, &z);
    piece->so_far = (Gathered){z, 0, 0, 0, 0, 0};
    piece->target = (REAL)x;
    piece->place = label;
    piece->is_nan = 0;
    piece->sum = piece->error = piece->spread = 0;
    FN(set_exps)(piece, (REAL)z, &call->formula->temperature);
}

static Gathered FN(end_piece)(const Gathering *call, FN(Open) *piece)
{
    if (call->only_best) piece->so_far.rest = piece->is_nan ? NAN : 0;
    else FN(close_sums)(piece);
    return piece->so_far;
}

/* One piece of up to PANEL rows. Rows with a label below 0 are not read. */
static void FN(gather_piece)(const Gathering *call, const char *rows, ptrdiff_t n_rows, const int64_t *label,
                             ptrdiff_t number, Best *best, Gathered *result, void *memory)
{
    const Layout *from = &call->layout;
    const ptrdiff_t length = piece_length(call->n_classes), first = number * length;
    const ptrdiff_t end = FN(smaller)(first + length, call->n_classes);
    FN(Open) *piece = (FN(Open) *)(((uintptr_t)memory + 63) & ~(uintptr_t)63); /* vectors are aligned */
    REAL *panel = (REAL *)(piece + PANEL), scratch[BLOCK];
    const int direct = FN(is_contiguous)(from), by_panel = is_panel(from);
    const int is_dense = from->class_stride == (ptrdiff_t)format_size(from->format);

    for (ptrdiff_t i = 0; i < n_rows; i++)
        if (label[i] >= 0) FN(begin_piece)(call, rows + i * from->row_stride, label[i], piece + i);
    for (ptrdiff_t at = first; by_panel && at < end; at += BLOCK) {
        const ptrdiff_t n = FN(smaller)(end - at, BLOCK);
        FN(fetch_panel)(from, rows, n_rows, at, n, panel, BLOCK);
        for (ptrdiff_t i = 0; i < n_rows; i++)
            if (label[i] >= 0)
                FN(gather_block)(call, piece + i, best + i, panel + i * BLOCK, n, at, FN(in_cache)(panel + i * BLOCK));
    }
    for (ptrdiff_t i = 0; !by_panel && i < n_rows; i++) {
        if (label[i] < 0) continue;
        for (ptrdiff_t at = first; at < end; at += BLOCK) {
            const ptrdiff_t n = FN(smaller)(end - at, BLOCK);
            const char *run = rows + i * from->row_stride + at * from->class_stride;
            if (!direct) FN(fetch)(run, from->format, from->swapped, from->class_stride, n, scratch);
            FN(gather_block)(call, piece + i, best + i, direct ? (const REAL *)run : scratch, n, at,
                             is_dense ? run : FN(in_cache)(scratch));
        }
    }
    for (ptrdiff_t i = 0; i < n_rows; i++)
        if (label[i] >= 0) result[i] = FN(end_piece)(call, piece + i);
}

/* Of what gather_piece calls `memory`. */
static const size_t FN(piece_memory) = 64 + PANEL * (sizeof(FN(Open)) + BLOCK * sizeof(REAL));
