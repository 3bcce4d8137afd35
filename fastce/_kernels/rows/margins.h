/* The exps of a tile's margins and what their rows sum to, for boosted trees.
 *
 * Included once per REAL_BITS, after binary.h. Every lane holds a row, the classes pass one by one. Exps are staged
 * with the factors that vmath.h leaves in them, which cancel.
 *
 * A probability near 1 is the maximum's, and only there 1 - p would cancel: so the sum is made without the maximum,
 * and 1 - p of the maximum is that rest by the sum.
 */
#ifndef FASTCE_MARGINS_H
#define FASTCE_MARGINS_H

enum { TILE = 128 }; /* rows that pass together */

/* One array of rows of classes. */
typedef struct {
    char *data;
    Layout layout;
} Matrix;

static void store_floats(float *p, vec_f64 a);

/* Asks for the rows after these, of an array that is read or written: columns are too many streams at once for the
 * processor to foresee. Asking for what is not there does no harm. */
INLINE void ask_for_next(const Matrix *m, ptrdiff_t first, ptrdiff_t n_rows, ptrdiff_t n_classes, int to_write)
{
    const Layout *layout = &m->layout;
    const ptrdiff_t size = (ptrdiff_t)format_size(layout->format);
    const int columns = layout->row_stride == size;
    const ptrdiff_t n_runs = columns ? n_classes : 1, bytes = n_rows * layout->row_stride;
    if (!columns && layout->row_stride != n_classes * size) return;
    uintptr_t at = (uintptr_t)m->data + (size_t)((first + n_rows) * layout->row_stride);
    for (ptrdiff_t run = 0; run < n_runs; run++, at += (size_t)layout->class_stride)
        for (ptrdiff_t i = 0; i < bytes; i += 64) {
            if (to_write) __builtin_prefetch((const void *)(at + (size_t)i), 1);
            else __builtin_prefetch((const void *)(at + (size_t)i), 0);
        }
}
#endif

/* Not called where REAL is double. */
static void FN(plane_to_rows)(const REAL *, char *, ptrdiff_t, ptrdiff_t, ptrdiff_t) __attribute__((unused));

#include "vector/transpose.h"

/* Of each row of a tile: the maximum's exp, 1 / sum in two parts, and what the others have of the sum. */
typedef struct { REAL top[TILE], inverse[TILE], inverse_low[TILE], rest[TILE]; } FN(RowSums);

INLINE int FN(is_whole)(const Layout *layout) { return layout->format == REAL_FORMAT && !layout->swapped; }

/* Where a tile's margins can be read class by class, the rows of one adjacent; they may have to be moved for that.
 * Sets the distance of two classes in bytes. */
static const char *FN(margins_of)(const Matrix *from, ptrdiff_t first, ptrdiff_t n_rows, ptrdiff_t n_classes,
                                  REAL *plane, ptrdiff_t *step)
{
    const Layout *layout = &from->layout;
    const char *at = from->data + first * layout->row_stride;
    *step = layout->class_stride;
    if (FN(is_whole)(layout) && layout->row_stride == sizeof(REAL)) return at;
    if (FN(is_whole)(layout) && layout->class_stride == sizeof(REAL))
        FN(rows_to_plane)(at, layout->row_stride, n_rows, n_classes, plane);
    else
        for (ptrdiff_t c = 0; c < n_classes; c++)
            FN(fetch)(at + c * layout->class_stride, layout->format, layout->swapped, layout->row_stride, n_rows,
                      plane + c * TILE);
    *step = TILE * sizeof(REAL);
    return (const char *)plane;
}

INLINE vec_f64 FN(part_of_sum)(sum_vec acc, int part)
{
#if REAL_BITS == 64
    (void)part;
    return acc.sum + acc.error;
#else
    return part ? acc.high : acc.low;
#endif
}

/* LANES rows, of which the first n are there. */
INLINE void FN(sweep_lanes)(const char *at, ptrdiff_t step, ptrdiff_t n, ptrdiff_t n_classes, REAL *staged,
                            FN(RowSums) *rows, ptrdiff_t i)
{
    const vec one = FN(splat)(1);
    vec m = FN(take)((const REAL *)at, n, 0);
    for (ptrdiff_t c = 1; c < n_classes; c++) m = FN(larger)(FN(take)((const REAL *)(at + c * step), n, 0), m);
    const FN(Exps) exps = FN(exps_against)(m, &FN(plain_units));
    const vec top = FN(exps)(m, &exps);
    vec tops = {0};
    sum_vec others = {{0}, {0}};
    for (ptrdiff_t c = 0; c < n_classes; c++) {
        const vec e = FN(exps)(FN(take)((const REAL *)(at + c * step), n, 0), &exps);
        const FN(mask) is_top = FN(not_less)(e, top); /* or NaN */
        tops += FN(keep)(is_top, one);
        FN(add)(&others, e - FN(keep)(is_top, e));
        FN(store)(staged + c * TILE + i, e);
    }
    for (int part = 0; part < N_PARTS; part++) {
        const vec_f64 exp_of_top = FN(widen)(top, part), count = FN(widen)(tops, part);
        const vec_f64 sum_of_others = FN(part_of_sum)(others, part), sum = sum_of_others + count * exp_of_top;
        const ptrdiff_t to = i + part * LANES_F64;
        const vec_f64 inverse = 1 / sum;
        FN(store_narrow)(rows->inverse + to, inverse);
        FN(store_narrow)(rows->inverse_low + to, inverse - FN(load_wide)(rows->inverse + to));
        FN(store_narrow)(rows->rest + to, (sum_of_others + (count - 1) * exp_of_top) * inverse);
    }
    FN(store)(rows->top + i, top);
}

/* `staged` may be the plane of the margins itself. */
static void FN(sweep_margins)(const char *margins, ptrdiff_t step, ptrdiff_t n_rows, ptrdiff_t n_classes,
                              REAL *staged, FN(RowSums) *rows)
{
    ptrdiff_t i = 0;
    for (; i + LANES <= n_rows; i += LANES)
        FN(sweep_lanes)(margins + i * sizeof(REAL), step, LANES, n_classes, staged, rows, i);
    if (i < n_rows) FN(sweep_lanes)(margins + i * sizeof(REAL), step, n_rows - i, n_classes, staged, rows, i);
}
