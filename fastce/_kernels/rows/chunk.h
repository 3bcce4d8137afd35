/* Runs of one row: maximum, sum of exps, gradient.
 *
 * Included once per REAL_BITS, after elements.h.
 */

INLINE REAL FN(max_of_run)(Run x, ptrdiff_t n)
{
    const vec lowest = FN(splat)(-INFINITY);
    vec m0 = lowest, m1 = lowest, m2 = lowest, m3 = lowest;
    ptrdiff_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES) {
        m0 = FN(larger)(FN(load_run)(x, j), m0); /* a NaN is passed over here and met by chunk_sum */
        m1 = FN(larger)(FN(load_run)(x, j + LANES), m1);
        m2 = FN(larger)(FN(load_run)(x, j + 2 * LANES), m2);
        m3 = FN(larger)(FN(load_run)(x, j + 3 * LANES), m3);
    }
    for (; j + LANES <= n; j += LANES) m0 = FN(larger)(FN(load_run)(x, j), m0);
    if (j < n) m1 = FN(larger)(FN(load_run_n)(x, j, n - j, -INFINITY), m1);
    return FN(largest_lane)(FN(larger)(FN(larger)(m0, m1), FN(larger)(m2, m3)));
}

static REAL FN(chunk_max)(Run x, ptrdiff_t n) { FOR_FORMAT(x, return FN(max_of_run)(x, n)); }

/* Where the arrays are while their elements may be elsewhere: what add_group asks for lies ahead of it. */
typedef struct { const char *logits, *grad, *q; ptrdiff_t logits_step, grad_step, q_step; } FN(Source);

/* Of classes far apart each is in a line of its own, and nothing is gained. */
INLINE ptrdiff_t FN(step_to_ask)(const Layout *layout) { return layout->class_stride <= 8 ? layout->class_stride : 0; }

INLINE FN(Source) FN(source)(const Tile *tile, ptrdiff_t i, ptrdiff_t start)
{
    const Layout *from = &tile->logits_layout, *to = &tile->grad_layout, *of_q = &tile->q_layout;
    return (FN(Source)){tile->logits + i * from->row_stride + start * from->class_stride,
                        tile->grad && !tile->streams ? tile->grad + i * to->row_stride + start * to->class_stride
                                                     : NULL,
                        tile->q ? tile->q + i * of_q->row_stride + start * of_q->class_stride : NULL,
                        FN(step_to_ask)(from), FN(step_to_ask)(to), FN(step_to_ask)(of_q)};
}

/* Adds the exps of four vectors from j on, or of the n elements that are left of a row, to the sum; stages them in e
 * unless that is NULL. Where the target may be among them, y is its place from j on, and its term is 0. */
INLINE void FN(add_group)(sum_vec *sum, vec *most, Run x, ptrdiff_t j, REAL *e, ptrdiff_t n, const FN(Exps) *exps,
                          int has_target, ptrdiff_t y)
{
    vec v[4];
    for (ptrdiff_t k = 0; k < 4; k++) {
        const ptrdiff_t at = k * LANES, count = n - at;
        if (count <= 0) {
            v[k] = (vec){0};
            continue;
        }
        const vec a = count >= LANES ? FN(load_run)(x, j + at) : FN(load_run_n)(x, j + at, count, -INFINITY);
        v[k] = has_target ? FN(exps_where)(FN(differ)(FN(iota)(), (ivec){0} + (INT)(y - at)), a, exps)
                          : FN(exps)(a, exps);
        if (most) *most = FN(larger)(a, *most); /* a NaN is passed over here and met by the sum */
        if (!e) continue;
        if (count >= LANES) FN(store)(e + j + at, v[k]);
        else FN(store_n)(e + j + at, count, v[k]);
    }
    for (ptrdiff_t k = 0; k < 4; k++) FN(add_positive)(sum, v[k]);
}

/* Sum of the exps over j != y, what it has lost, and in `largest`, unless that is NULL, the largest of x. */
INLINE double FN(chunk_sum)(Run x, REAL *e, ptrdiff_t n, FN(Exps) exps, ptrdiff_t y, REAL *largest, FN(Source) source,
                            double *error)
{
    const ptrdiff_t group = 4 * LANES, full = n - n % group;
    vec m = FN(splat)(-INFINITY), *most = largest ? &m : NULL;
    sum_vec sum = {{0}, {0}};
    for (ptrdiff_t j = 0; j < full; j += group) {
        FN(ask_for)(source.logits + j * source.logits_step, AHEAD_ROWS, group * source.logits_step, 0);
        if (source.grad) FN(ask_for)(source.grad + j * source.grad_step, AHEAD_ROWS, group * source.grad_step, 1);
        if (source.q) FN(ask_for)(source.q + j * source.q_step, AHEAD_ROWS, group * source.q_step, 0);
        if ((size_t)(y - j) < (size_t)group) FN(add_group)(&sum, most, x, j, e, group, &exps, 1, y - j);
        else FN(add_group)(&sum, most, x, j, e, group, &exps, 0, 0);
    }
    if (full < n) FN(add_group)(&sum, most, x, full, e, n - full, &exps, 1, y - full);
    if (largest) *largest = FN(largest_lane)(m);
    return FN(total_of_positive)(sum, error);
}

/* The loop once for each case that saves it something: rows that are near, runs in place, no gradient.
 * Against an anchor that is not the largest a float32 sum may be more than `total_of_positive` can tell from NaN: whoever
 * asks for the largest as well sums again against that, where the sum is NaN. */
INLINE double FN(sum_of_run)(Run x, REAL *e, ptrdiff_t n, const FN(Exps) *given, ptrdiff_t y, REAL *largest,
                             const FN(Source) *at, double *error)
{
    FN(Exps) exps = *given;
    FN(Source) source = *at;
    const ptrdiff_t size = (ptrdiff_t)format_size(x.format);
    const int in_place = source.logits_step == size && (!source.grad || source.grad_step == size);
    if (in_place) source.logits_step = source.grad_step = size;
    if (!FN(are_near)(given) || !in_place) return FN(chunk_sum)(x, e, n, exps, y, largest, source, error);
    exps = FN(near_exps)(exps);
    if (e && largest) return FN(chunk_sum)(x, e, n, exps, y, largest, source, error);
    if (e) return FN(chunk_sum)(x, e, n, exps, y, NULL, source, error);
    if (source.grad) return FN(chunk_sum)(x, NULL, n, exps, y, largest, source, error);
    source.grad = NULL;
    if (largest) return FN(chunk_sum)(x, NULL, n, exps, y, largest, source, error);
    return FN(chunk_sum)(x, NULL, n, exps, y, NULL, source, error);
}

static double FN(chunk_sum_of)(Run x, REAL *e, ptrdiff_t n, const FN(Exps) *exps, ptrdiff_t y, REAL *largest,
                               const FN(Source) *at, double *error)
{
    FOR_FORMAT(x, return FN(sum_of_run)(x, e, n, exps, y, largest, at, error));
}

/* Where a run of the gradient goes, and whether past the caches. */
typedef struct { char *at; Format format; int streams; } FN(Output);

INLINE FN(Output) FN(output)(REAL *g) { return (FN(Output)){(char *)g, REAL_FORMAT, 0}; }

/* n classes of row i from `start` on: in the gradient if that takes them, else in a scratch. */
INLINE FN(Output) FN(output_of_row)(const Tile *tile, ptrdiff_t i, ptrdiff_t start, int takes, REAL *scratch)
{
    const Layout *to = &tile->grad_layout;
    char *at = tile->grad + i * to->row_stride + start * to->class_stride;
    if (!takes) return FN(output)(scratch);
    return (FN(Output)){at, to->format, tile->streams && (uintptr_t)at % sizeof(REAL) == 0};
}

/* How many elements are before the first vector that is streamed. */
INLINE ptrdiff_t FN(before_streams)(FN(Output) g, ptrdiff_t n)
{
    return g.streams ? FN(smaller)(n, FN(before_vectors)((const REAL *)g.at)) : 0;
}

/* The first lanes of a vector, or all of them. */
INLINE void FN(put_lanes)(FN(Output) g, ptrdiff_t j, ptrdiff_t count, vec v)
{
    char *at = g.at + j * (ptrdiff_t)format_size(g.format);
    if (count == LANES && g.streams) FN(store_past)((REAL *)at, v);
    else if (count == LANES) FN(store_as)(at, g.format, v);
    else if (g.streams) FN(store_past_n)((REAL *)at, count, v);
    else FN(store_n_as)(at, g.format, count, v);
}

/* g = f * exps less the terms, if any, and g_y at y, if that is among them: a line that was streamed is not to be
 * written again. The exps are those of x, or x itself where `exps` is NULL; no f: one. */
INLINE void FN(chunk_write)(const REAL *x, FN(Output) g, ptrdiff_t n, const FN(Exps) *exps, const FN(Factor) *f,
                            const FN(Terms) *terms, ptrdiff_t y, REAL g_y)
{
    const vec a = FN(splat)(f ? f->a : 1), c = FN(splat)(f ? f->c : 0), b = FN(splat)(f ? f->b : 1);
    const ptrdiff_t end = FN(before_streams)(g, n);
    ptrdiff_t j = 0;
#define WRITE_LANES(count) \
    do { \
        vec v = count == LANES ? FN(load)(x + j) : FN(load_n)(x + j, count, 0); \
        if (exps) v = FN(exps)(v, exps); \
        if (f) v = FN(scaled)(v, a, c, b); \
        if (terms) v -= FN(terms)(terms, j, count); \
        if ((size_t)(y - j) < (size_t)LANES) \
            v = FN(select)(FN(differ)(FN(iota)(), (ivec){0} + (INT)(y - j)), v, FN(splat)(g_y)); \
        FN(put_lanes)(g, j, count, v); \
    } while (0)
    if (end > 0) WRITE_LANES(end);
    for (j = end; j + LANES <= n; j += LANES) WRITE_LANES(LANES);
    if (j < n) WRITE_LANES(n - j);
#undef WRITE_LANES
}

/* n classes of a row from `start` on, as contiguous REALs: in place where they are that, else in scratch. */
INLINE const REAL *FN(contiguous_run)(const char *row, const Layout *from, ptrdiff_t start, ptrdiff_t n,
                                      REAL *scratch)
{
    const char *run = row + start * from->class_stride;
    if (FN(is_contiguous)(from)) return (const REAL *)run;
    FN(fetch)(run, from->format, from->swapped, from->class_stride, n, scratch);
    return scratch;
}
