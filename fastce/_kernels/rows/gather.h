/* What one read of a row of logits tells of it: how probable a token is, at which rank, how unsure the row is, and
 * which are its best classes (gathered.h has the formulas).
 *
 * Included once per REAL_BITS, after elements.h. A row is read in blocks that stay in the first cache: once for the
 * maximum and the best, once for the exps, the rank and what is added up.
 *
 * Blocks make pieces, which depend on the number of classes alone. Each begins with the target as its anchor, or the
 * largest of its first block, and they are merged in their order: so threads may share a row, and bits depend neither
 * on them nor on the layout. Each has to find its own maximum, in a few steps that cost as much as some hundred logits:
 * so pieces are long.
 */
#ifndef FASTCE_GATHER_H
#define FASTCE_GATHER_H

#include "rows/best.h"
#include "rows/gathered.h"

enum {
    BLOCK = 1024,       /* classes: 4 KiB of float32 */
    PIECE = 16 * BLOCK, /* at most; a row of 32000 classes is two, for two threads */
    PANEL = 64          /* rows that are fetched together where a class is far from the next */
};
_Static_assert((int)PANEL == (int)TILE, "transpose.h moves planes of TILE rows");

/* A call, as far as rows need to know. */
typedef struct {
    ptrdiff_t n_classes;
    Layout layout;           /* of the logits */
    const Formula *formula;  /* temperature and softcap */
    int only_best;           /* neither ranks nor sums */
} Gathering;

INLINE ptrdiff_t count_blocks(ptrdiff_t n_classes) { return (n_classes + BLOCK - 1) / BLOCK; }

INLINE ptrdiff_t count_gathered(ptrdiff_t n_classes) { return (n_classes + PIECE - 1) / PIECE; }

/* The first class of a piece. All have as many blocks, or one less. */
INLINE ptrdiff_t first_gathered(ptrdiff_t n_classes, ptrdiff_t piece)
{
    const ptrdiff_t first = count_blocks(n_classes) * piece / count_gathered(n_classes) * BLOCK;
    return first < n_classes ? first : n_classes;
}

/* Classes far apart: each would be a cache line, and often a page, of its own. */
INLINE int is_panel(const Layout *layout)
{
    const ptrdiff_t apart = layout->class_stride;
    return apart >= 64 || apart <= -64;
}
#endif

/* What joined since the anchor is what it is, in units of the exps, and minus how many were above the target. */
typedef struct { sum_vec rest, spread; ivec above; } FN(Running);

/* A piece that is being read. */
typedef struct {
    Gathered so_far;
    REAL target;           /* x_y, as it was given */
    ptrdiff_t place;       /* of the anchor's element in the row */
    FN(Exps) exps;
    FN(Running) sums;
    int is_nan;
} FN(Open);

INLINE void FN(set_exps)(FN(Open) *piece, REAL anchor, const Temperature *temperature)
{
    piece->exps = FN(exps_against)(FN(splat)(anchor == -INFINITY ? 0 : anchor), FN(units)(temperature));
}

/* A threshold to begin with, if n numbers, at most BLOCK, are enough for that: the k-th of the maxima of twice as many
 * groups or more, lanes of vectors that are far apart, is just below the k-th of all in most rows. */
static void FN(begin_threshold)(const REAL *x, ptrdiff_t n, Best *best)
{
    const ptrdiff_t k = best->k, n_vectors = n / LANES;
    ptrdiff_t n_groups = 1;
    Candidate list[BLOCK / 4];
    if (best->threshold != -INFINITY || k > n / 16) return;
    while (n_groups * LANES < 2 * k) n_groups *= 2;
    for (ptrdiff_t i = 0; i < n_groups; i++) {
        vec most = FN(splat)(-INFINITY);
        for (ptrdiff_t j = i; j < n_vectors; j += n_groups) most = FN(larger)(FN(load)(x + j * LANES), most);
        for (ptrdiff_t k = i * LANES; k < (i + 1) * LANES; k++) list[k] = (Candidate){most[k % LANES], 0, k};
    }
    const double least = least_of_best(list, n_groups * LANES, k);
    best->threshold = REAL_BITS == 64 ? nextafter(least, -INFINITY) : nextafterf((float)least, -INFINITY);
}

/* Vector k of a group of four, where n numbers are left. */
INLINE vec FN(of_group)(const REAL *x, ptrdiff_t n, ptrdiff_t k)
{
    const ptrdiff_t at = k * LANES, count = n - at;
    if (count >= LANES) return FN(load)(x + at);
    return count > 0 ? FN(load_n)(x + at, count, -INFINITY) : FN(splat)(-INFINITY);
}

INLINE vec FN(largest_of_group)(const REAL *x, ptrdiff_t n) /* a NaN is passed over */
{
    return FN(larger)(FN(larger)(FN(of_group)(x, n, 0), FN(of_group)(x, n, 1)),
                      FN(larger)(FN(of_group)(x, n, 2), FN(of_group)(x, n, 3)));
}

/* Puts those above the threshold on the list; returns whether there is a NaN. */
static int FN(note_best)(const REAL *x, ptrdiff_t n, int64_t index, Best *best)
{
    const ptrdiff_t group = 4 * LANES;
    int is_nan = 0;
    for (ptrdiff_t j = 0; j < n; j += group) {
        const vec least = FN(splat)((REAL)best->threshold);
        vec v[4];
        for (ptrdiff_t k = 0; k < 4; k++) v[k] = FN(of_group)(x + j, n - j, k);
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

/* What the exps of a piece are taken against, and what its logits are compared with. */
typedef struct { FN(Exps) exps; vec anchor, target; } FN(Against);

/* Adds n logits, four vectors or fewer, transformed and as they were given; with the anchor's element at y, if it may be
 * among them. Each step is taken for all four vectors: what one waits for, another computes. */
INLINE void FN(add_group_of_logits)(FN(Running) *to, const REAL *z, const REAL *given, ptrdiff_t n,
                                    const FN(Against) *against, int is_near, int has_anchor, ptrdiff_t y)
{
    const FN(Exps) *exps = &against->exps;
    vec d[4], shifted[4], e[4], products = {0};
    FN(Reduced) t[4];
    FN(mask) where[4];
    /* What is as far away as -inf counts as exp(EXP_LOWEST): as float32 that of any number of them is 0. */
    for (ptrdiff_t k = 0; k < 4; k++) {
        d[k] = FN(of_group)(z, n, k) - exps->base;
        where[k] = REAL_BITS == 32 ? EVERY_LANE : FN(not_less)(d[k], exps->lowest);
        d[k] = FN(larger)(exps->lowest, d[k]);
    }
    for (ptrdiff_t k = 0; k < 4; k++) shifted[k] = FN(shifted)(d[k], exps);
    for (ptrdiff_t k = 0; k < 4; k++) t[k] = FN(reduce)(d[k], shifted[k] - exps->bias, &exps->units);
    for (ptrdiff_t k = 0; k < 4; k++) {
        e[k] = FN(value)(FN(exp_of_reduced)(where[k], shifted[k], t[k]));
        if (has_anchor) e[k] = FN(keep)(FN(differ)(FN(iota)(), (ivec){0} + (INT)(y - k * LANES)), e[k]);
        const vec gap = against->anchor - d[k];
        products = FN(fma)(e[k], is_near ? gap : gap * FN(splat)(exps->units.inverse), products);
        to->above += (ivec)(FN(of_group)(given, n, k) > against->target);
    }
    for (ptrdiff_t k = 0; k < 4; k++) FN(add_positive)(&to->rest, e[k]);
    FN(add_positive)(&to->spread, products);
}

/* Adds groups up to the end, but for the first only those that hold nothing above the bound; returns where it stopped.
 * `ahead` is where they come from, `step` bytes each: what is next there is asked for. */
INLINE ptrdiff_t FN(add_groups)(FN(Running) *to, const REAL *z, const REAL *given, ptrdiff_t j, ptrdiff_t end,
                                const FN(Against) *against, REAL bound, const char *ahead, ptrdiff_t step, int is_near)
{
    const ptrdiff_t group = 4 * LANES;
    const vec most = FN(splat)(bound);
    FN(Running) sums = *to;
    do {
        FN(ask_for)(ahead + j * step, AHEAD_ROWS, group * (ptrdiff_t)sizeof(REAL), 0);
        FN(add_group_of_logits)(&sums, z + j, given + j, group, against, is_near, 0, 0);
        j += group;
    } while (j < end && !FN(bits_above)(FN(largest_of_group)(z + j, group), most));
    *to = sums;
    return j;
}

/* Adds n logits from `start` on, up to a group that holds one above the anchor, and puts those above the threshold on the
 * list; returns where it stopped. The first is number `index` of the row. */
INLINE ptrdiff_t FN(add_logits)(FN(Open) *piece, Best *best, const REAL *z, const REAL *given, ptrdiff_t start,
                                ptrdiff_t n, int64_t index, const char *ahead, ptrdiff_t step, int is_near)
{
    const ptrdiff_t group = 4 * LANES, y = piece->place - index, full = n - n % group;
    const ptrdiff_t of_anchor = y >= start && y < full ? y - y % group : full; /* its group is added by itself */
    const REAL anchor = (REAL)piece->so_far.anchor;
    FN(Against) against;
    against.exps = is_near ? FN(near_exps)(piece->exps) : piece->exps;
    against.anchor = FN(splat)(anchor == -INFINITY ? 0 : anchor) - against.exps.base;
    against.target = FN(splat)(piece->target);
    for (ptrdiff_t j = start; j < n;) {
        const REAL most = FN(largest_lane)(FN(largest_of_group)(z + j, n - j));
        if (most > anchor) return j;
        if (z == given && most > best->threshold)
            FN(note_best)(given + j, FN(smaller)(n - j, group), index + j, best);
        const REAL bound = z == given && best->threshold < anchor ? (REAL)best->threshold : anchor;
        if (j == of_anchor || j == full) {
            FN(add_group_of_logits)(&piece->sums, z + j, given + j, FN(smaller)(n - j, group), &against, is_near, 1,
                                    y - j);
            j += group;
        } else
            j = FN(add_groups)(&piece->sums, z, given, j, j < of_anchor ? of_anchor : full, &against, bound, ahead, step,
                               is_near);
    }
    return n;
}

/* What has been added against the present anchor joins the sums in their units. */
static void FN(close_sums)(FN(Open) *piece)
{
    const double unit = SUM_SCALE / EXP_SCALE, unit_low = fma(-unit, EXP_SCALE / SUM_SCALE, 1.0) * unit;
    const double c = FN(correction)(&piece->exps, 0)[0];
    double low, spread_low;
    const double high = FN(total_of_positive)(piece->sums.rest, &low), product = high * unit;
    const double lost = product_error_f64(splat_f64(high), splat_f64(unit), splat_f64(product))[0];
    add_to_rest(&piece->so_far, product, (lost + high * unit_low) + fma(product, c, low * unit));
    const double spread = (FN(total_of_positive)(piece->sums.spread, &spread_low) + spread_low) * unit;
    piece->so_far.spread += fma(spread, c, spread);
    piece->sums.rest = piece->sums.spread = (sum_vec){{0}, {0}};
}

/* Makes the largest of n logits the anchor, if it is larger; the first is number `index` of the row. */
static void FN(raise_to_largest)(const Gathering *call, FN(Open) *piece, const REAL *z, ptrdiff_t n, int64_t index)
{
    const REAL top = FN(chunk_max)(FN(reals)(z), n);
    if (!(top > (REAL)piece->so_far.anchor)) return;
    raise_anchor(&piece->so_far, top, &call->formula->temperature);
    piece->place = index + FN(place_of)(top, FN(reals)(z), n);
    FN(set_exps)(piece, top, &call->formula->temperature);
}

/* n logits of the row, from `start` on, contiguous. */
static void FN(gather_block)(const Gathering *call, FN(Open) *piece, Best *best, const REAL *x, ptrdiff_t n,
                             ptrdiff_t start, int is_first, const char *ahead, ptrdiff_t step)
{
    REAL transformed[BLOCK];
    const REAL *z = x;
    const int is_given = call->formula->transform == AS_GIVEN;
    FN(begin_threshold)(x, n, best);
    if (call->only_best || !is_given) piece->is_nan |= FN(note_best)(x, n, start, best);
    if (call->only_best) return;
    if (!is_given) {
        FN(copy)(x, n, transformed);
        FN(transform)(transformed, n, call->formula);
        z = transformed;
    }
    if (is_first) FN(raise_to_largest)(call, piece, z, n, start); /* the target is the largest of all in few rows */
    for (ptrdiff_t j = 0;;) {
        if (is_given && FN(are_near)(&piece->exps)) j = FN(add_logits)(piece, best, x, x, j, n, start, ahead, step, 1);
        else j = FN(add_logits)(piece, best, z, x, j, n, start, ahead, step, 0);
        piece->so_far.passed |= piece->place >= start && piece->place < start + j;
        if (j >= n) break;
        FN(close_sums)(piece);
        FN(raise_to_largest)(call, piece, z + j, n - j, start + j);
    }
}

/* A place from which on nothing is asked for that is not in cache. */
INLINE const char *FN(in_cache)(const REAL *x) { return (const char *)((uintptr_t)x - AHEAD_ROWS); }

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

static void FN(begin_piece)(const Gathering *call, const char *row, int64_t label, FN(Open) *piece)
{
    double z = 0, x = 0;
    if (!call->only_best) x = FN(logit_of)(call, row, label, &z);
    piece->so_far = (Gathered){z, 0, 0, 0, 0, 0};
    piece->target = (REAL)x;
    piece->place = label;
    piece->is_nan = 0;
    piece->sums = (FN(Running)){{{0}, {0}}, {{0}, {0}}, {0}};
    FN(set_exps)(piece, (REAL)z, &call->formula->temperature);
}

static Gathered FN(end_piece)(const Gathering *call, FN(Open) *piece)
{
    if (call->only_best) piece->so_far.rest = piece->is_nan ? NAN : 0;
    else FN(close_sums)(piece);
    for (int i = 0; i < LANES; i++) piece->so_far.above -= piece->sums.above[i];
    return piece->so_far;
}

/* One piece of up to PANEL rows. Rows with a label below 0 are not read. */
static void FN(gather_piece)(const Gathering *call, const char *rows, ptrdiff_t n_rows, const int64_t *label,
                             ptrdiff_t number, Best *best, Gathered *result, void *memory)
{
    const Layout *from = &call->layout;
    const ptrdiff_t first = first_gathered(call->n_classes, number), end = first_gathered(call->n_classes, number + 1);
    FN(Open) *piece = (FN(Open) *)(((uintptr_t)memory + 63) & ~(uintptr_t)63); /* vectors are aligned */
    REAL *panel = (REAL *)(piece + PANEL), scratch[BLOCK];
    const int direct = FN(is_contiguous)(from), by_panel = is_panel(from);
    const ptrdiff_t element = (ptrdiff_t)format_size(from->format);

    for (ptrdiff_t i = 0; i < n_rows; i++)
        if (label[i] >= 0) FN(begin_piece)(call, rows + i * from->row_stride, label[i], piece + i);
    for (ptrdiff_t at = first; by_panel && at < end; at += BLOCK) {
        const ptrdiff_t n = FN(smaller)(end - at, BLOCK);
        FN(fetch_panel)(from, rows, n_rows, at, n, panel, BLOCK);
        for (ptrdiff_t i = 0; i < n_rows; i++)
            if (label[i] >= 0)
                FN(gather_block)(call, piece + i, best + i, panel + i * BLOCK, n, at, at == first, FN(in_cache)(panel),
                                 0);
    }
    for (ptrdiff_t i = 0; !by_panel && i < n_rows; i++) {
        if (label[i] < 0) continue;
        for (ptrdiff_t at = first; at < end; at += BLOCK) {
            const ptrdiff_t n = FN(smaller)(end - at, BLOCK);
            const char *run = rows + i * from->row_stride + at * from->class_stride;
            if (!direct) FN(fetch)(run, from->format, from->swapped, from->class_stride, n, scratch);
            const int is_dense = from->class_stride == element;
            FN(gather_block)(call, piece + i, best + i, direct ? (const REAL *)run : scratch, n, at, at == first,
                             is_dense ? run : FN(in_cache)(scratch), is_dense ? element : 0);
        }
    }
    for (ptrdiff_t i = 0; i < n_rows; i++)
        if (label[i] >= 0) result[i] = FN(end_piece)(call, piece + i);
}

/* Of what gather_piece calls `memory`. */
static const size_t FN(piece_memory) = 64 + PANEL * (sizeof(FN(Open)) + BLOCK * sizeof(REAL));
