/* Across rows: every lane of a vector holds a row, and the classes pass one by one.
 *
 * Included once per REAL_BITS, after transpose.h and sweep.h. The logits of a tile are brought into the scratch as a plane:
 * contiguous rows of a few classes transposed through registers, adjacent rows as they are, the rest gathered. The
 * exps are staged there too. So each line of the arrays is read once and written once, and it does not
 * matter that the classes of an image lie a power of two apart and share one set of every cache. More than
 * CHUNK_ACROSS classes pass in chunks, and the exps are then computed again to be written.
 */
#ifndef FASTCE_ACROSS_H
#define FASTCE_ACROSS_H
enum {
    BEYOND_CHUNK = -1, /* for a target: no class of this chunk */
    IGNORED = -2
};
#endif

#undef CHUNK_ACROSS
#define CHUNK_ACROSS ((ptrdiff_t)(FEW_BYTES / sizeof(REAL))) /* classes */

/* ---- Between the arrays and the scratch ---------------------------------------------------- */

INLINE int FN(is_plane)(const Layout *layout) /* rows are adjacent in memory */
{
    return FN(is_native)(layout) && layout->row_stride == sizeof(REAL);
}

/* Contiguous rows that are not native reals pass through the second half of the scratch. */
INLINE REAL *FN(scratch_rows)(const Tile *tile) { return (REAL *)tile->scratch + TILE * CHUNK_ACROSS; }

/* n classes from `start` on. */
static void FN(fetch_plane)(const Tile *tile, ptrdiff_t start, ptrdiff_t n)
{
    const Layout *from = &tile->logits_layout;
    const ptrdiff_t element = (ptrdiff_t)format_size(from->format), n_rows = tile->n_rows;
    const char *logits = tile->logits + start * from->class_stride;
    REAL *plane = (REAL *)tile->scratch;
    if (FN(is_plane)(from)) {
        for (ptrdiff_t c = 0; c < n; c++, logits += from->class_stride) {
            FN(ask_for)(logits, AHEAD_PLANE, n_rows * sizeof(REAL), 0);
            FN(copy)((const REAL *)logits, n_rows, plane + c * TILE);
        }
    } else if (FN(is_contiguous)(from)) {
        FN(rows_to_plane)(logits, from->row_stride, n_rows, n, plane);
    } else if (from->class_stride == element && n <= CHUNK_ACROSS) {
        REAL *rows = FN(scratch_rows)(tile);
        const ptrdiff_t at_once = from->row_stride == n * element ? n_rows : 1; /* adjoining rows: one run */
        for (ptrdiff_t i = 0; i < n_rows; i += at_once)
            FN(fetch)(logits + i * from->row_stride, from->format, from->swapped, element, at_once * n, rows + i * n);
        FN(rows_to_plane)((char *)rows, n * sizeof(REAL), n_rows, n, plane);
    } else {
        for (ptrdiff_t c = 0; c < n; c++, logits += from->class_stride)
            FN(fetch)(logits, from->format, from->swapped, from->row_stride, n_rows, plane + c * TILE);
    }
}

static void FN(put_plane)(const Tile *tile, ptrdiff_t start, ptrdiff_t n)
{
    const Layout *to = &tile->grad_layout;
    const ptrdiff_t element = (ptrdiff_t)format_size(to->format), n_rows = tile->n_rows;
    const REAL *plane = (const REAL *)tile->scratch;
    char *grad = tile->grad + start * to->class_stride;
    if (FN(is_plane)(to)) {
        for (ptrdiff_t c = 0; c < n; c++, grad += to->class_stride) {
            FN(ask_for)(grad, AHEAD_PLANE, n_rows * sizeof(REAL), 1);
            FN(copy)(plane + c * TILE, n_rows, (REAL *)grad);
        }
    } else if (FN(is_contiguous)(to)) {
        FN(plane_to_rows)(plane, grad, to->row_stride, n_rows, n);
    } else if (to->class_stride == element && n <= CHUNK_ACROSS) {
        REAL *rows = FN(scratch_rows)(tile);
        const ptrdiff_t at_once = to->row_stride == n * element ? n_rows : 1;
        FN(plane_to_rows)(plane, (char *)rows, n * sizeof(REAL), n_rows, n);
        for (ptrdiff_t i = 0; i < n_rows; i += at_once)
            FN(put)(rows + i * n, to->format, to->swapped, element, at_once * n, grad + i * to->row_stride);
    } else {
        for (ptrdiff_t c = 0; c < n; c++, grad += to->class_stride)
            FN(put)(plane + c * TILE, to->format, to->swapped, to->row_stride, n_rows, grad);
    }
}

/* What to ask for while a vector of rows goes through its classes: `step` bytes for each of them. */
typedef struct { const char *at; ptrdiff_t step; } FN(Stream);

INLINE FN(Stream) FN(stream)(const char *array, const Layout *layout, ptrdiff_t i, ptrdiff_t n_classes)
{
    const char *first = array + i * layout->row_stride;
    if (FN(is_plane)(layout)) return (FN(Stream)){array, 0};
    return (FN(Stream)){first + AHEAD_ROWS, LANES * layout->row_stride / n_classes};
}

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
} FN(Tally);

INLINE void FN(lanes_max)(const REAL *x, ptrdiff_t n, ptrdiff_t i, int first, FN(Tally) *tally)
{
    vec m = first ? FN(splat)(-INFINITY) : FN(load)(tally->max + i), m2 = FN(splat)(-INFINITY);
    ptrdiff_t c = 0;
    for (; c + 2 <= n; c += 2) {
        m = FN(larger)(FN(load)(x + c * TILE + i), m); /* a NaN is passed over here and met by lanes_sum */
        m2 = FN(larger)(FN(load)(x + (c + 1) * TILE + i), m2);
    }
    if (c < n) m = FN(larger)(FN(load)(x + c * TILE + i), m);
    FN(store)(tally->max + i, FN(larger)(m, m2));
}

/* Adds the exps of all classes but the targets, whose logits are noted; stages the exps in place if asked to. */
INLINE void FN(add_lanes)(const Tile *tile, REAL *x, ptrdiff_t n, ptrdiff_t i, int stage, int first, FN(Exps) exps,
                          FN(Tally) *tally)
{
    const FN(Stream) in = FN(stream)(tile->logits, &tile->logits_layout, i, tile->n_classes);
    const FN(Stream) out = stage ? FN(stream)(tile->grad, &tile->grad_layout, i, tile->n_classes) : in;
    ivec y, here = {0};
    memcpy(&y, tally->target + i, sizeof y);
    sum_vec sum = first ? (sum_vec){{0}, {0}} : FN(load_sums)(tally->sum + i, tally->error + i);
    vec x_y = first ? (vec){0} : FN(load)(tally->at_target + i);
    for (ptrdiff_t c = 0; c < n; c++, here += 1) {
        FN(ask_for)(in.at, c * in.step, 1, 0);
        if (stage) FN(ask_for)(out.at, c * out.step, 1, 1);
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

INLINE void FN(lanes_sum)(const Tile *tile, REAL *x, ptrdiff_t n, ptrdiff_t i, int stage, int first, FN(Tally) *tally)
{
    FN(Exps) exps = FN(exps_against)(FN(load)(tally->max + i));
    if (FN(are_near)(&exps)) {
        exps.base = (vec){0};
        FN(add_lanes)(tile, x, n, i, stage, first, exps, tally);
    } else {
        FN(add_lanes)(tile, x, n, i, stage, first, exps, tally);
    }
}

/* What becomes of the exps of each row of a tile. */
typedef struct {
    REAL max[TILE], a[TILE], b[TILE], beta[TILE];
    INT target[TILE]; /* within the chunk; BEYOND_CHUNK; IGNORED */
} FN(Scaling);

/* The gradient in place of the exps, or of the logits if they are not staged. `simple`: no row is ignored and
 * each b is 1. */
INLINE void FN(lanes_write)(REAL *x, ptrdiff_t n, ptrdiff_t i, int staged, int simple, const FN(Scaling) *scaling)
{
    const vec a = FN(load)(scaling->a + i), b = FN(load)(scaling->b + i), beta = FN(load)(scaling->beta + i);
    FN(Exps) exps;
    if (!staged) exps = FN(exps_against)(FN(load)(scaling->max + i));
    ivec y, here = {0};
    memcpy(&y, scaling->target + i, sizeof y);
    const FN(mask) used = FN(differ)(y, (ivec){0} + IGNORED);
    for (ptrdiff_t c = 0; c < n; c++, here += 1) {
        vec v = FN(load)(x + c * TILE + i);
        v = (staged ? v : FN(exps)(v, &exps)) * a;
        if (!simple) v = v * b * b;
        v = FN(select)(FN(differ)(y, here), v, beta);
        FN(store)(x + c * TILE + i, simple ? v : FN(keep)(used, v));
    }
}

/* ---- A tile ------------------------------------------------------------------------------- */

static void FN(sweep_across)(const Tile *tile, Rows *rows)
{
    const ptrdiff_t n_rows = tile->n_rows, n_classes = tile->n_classes;
    const int stage = tile->grad && n_classes <= CHUNK_ACROSS;
    REAL *x = (REAL *)tile->scratch;
    FN(Tally) tally;

    for (ptrdiff_t start = 0; start < n_classes; start += CHUNK_ACROSS) {
        const ptrdiff_t n = FN(smaller)(n_classes - start, CHUNK_ACROSS);
        FN(fetch_plane)(tile, start, n);
        for (ptrdiff_t i = 0; i < n_rows; i += LANES) FN(lanes_max)(x, n, i, start == 0, &tally);
    }
    for (ptrdiff_t start = 0; start < n_classes; start += CHUNK_ACROSS) {
        const ptrdiff_t n = FN(smaller)(n_classes - start, CHUNK_ACROSS);
        if (n_classes > CHUNK_ACROSS) FN(fetch_plane)(tile, start, n);
        FN(find_targets)(rows->label, n_rows, start, n, tally.target);
        for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
            if (stage) FN(lanes_sum)(tile, x, n, i, 1, 1, &tally);
            else FN(lanes_sum)(tile, x, n, i, 0, start == 0, &tally);
        }
    }
#if REAL_BITS == 64
    for (ptrdiff_t i = 0; i < n_rows; i++) tally.sum[i] += tally.error[i];
#endif
    FN(finish_rows)(tally.max, tally.at_target, tally.sum, n_rows, rows);
}

static void FN(write_across)(const Tile *tile, const Rows *rows)
{
    const ptrdiff_t n_rows = tile->n_rows, n_classes = tile->n_classes;
    const int staged = n_classes <= CHUNK_ACROSS;
    REAL *x = (REAL *)tile->scratch;
    FN(Scaling) scaling;
    int simple = 1;

    for (ptrdiff_t i = 0; i < n_rows; i += LANES_F64) {
        simple &= FN(factors)(load_f64(rows->alpha + i) * load_f64(rows->unit + i), 1, scaling.a + i, scaling.b + i);
        FN(store_narrow)(scaling.beta + i, load_f64(rows->beta + i));
        FN(store_narrow)(scaling.max + i, load_f64(rows->max + i));
    }
    for (ptrdiff_t start = 0; start < n_classes; start += CHUNK_ACROSS) {
        const ptrdiff_t n = FN(smaller)(n_classes - start, CHUNK_ACROSS);
        if (!staged) FN(fetch_plane)(tile, start, n);
        simple &= FN(find_targets)(rows->label, n_rows, start, n, scaling.target);
        for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
            if (staged && simple) FN(lanes_write)(x, n, i, 1, 1, &scaling);
            else FN(lanes_write)(x, n, i, staged, 0, &scaling);
        }
        FN(put_plane)(tile, start, n);
    }
}
