/* Planes: the classes of a tile's rows in the scratch, row beside row, for those that lie across vectors.
 *
 * Included once per REAL_BITS, after transpose.h and sweep.h. Contiguous rows of a few classes are transposed through
 * registers, adjacent rows copied as they are, the rest gathered. So each line of the arrays is read once and written
 * once, and it does not matter that the classes of an image lie a power of two apart and share one set of every cache.
 */
#undef CHUNK_ACROSS
#define CHUNK_ACROSS ((ptrdiff_t)(FEW_BYTES / sizeof(REAL))) /* classes that are adjacent */

/* All classes are in the scratch at once. */
INLINE int FN(is_single)(const Tile *tile) { return tile->n_classes <= (ptrdiff_t)(APART_BYTES / sizeof(REAL)); }

INLINE int FN(is_plane)(const Layout *layout) /* rows are adjacent in memory */
{
    return FN(is_native)(layout) && layout->row_stride == sizeof(REAL);
}

/* Contiguous rows that are not native reals pass through the second half of the scratch. */
INLINE REAL *FN(scratch_rows)(const Tile *tile) { return (REAL *)tile->scratch + TILE * CHUNK_ACROSS; }

/* n classes of an array of logits from `start` on. */
static void FN(fetch_plane)(const Tile *tile, const char *array, const Layout *from, ptrdiff_t start, ptrdiff_t n,
                            REAL *plane)
{
    const ptrdiff_t element = (ptrdiff_t)format_size(from->format), n_rows = tile->n_rows;
    array += start * from->class_stride;
    if (FN(is_plane)(from)) {
        for (ptrdiff_t c = 0; c < n; c++, array += from->class_stride) {
            if (FN(is_single)(tile)) FN(ask_for)(array, AHEAD_PLANE, n_rows * sizeof(REAL), 0);
            FN(copy)((const REAL *)array, n_rows, plane + c * TILE);
        }
    } else if (FN(is_contiguous)(from)) {
        FN(rows_to_plane)(array, from->row_stride, n_rows, n, plane);
    } else if (from->class_stride == element && n <= CHUNK_ACROSS) {
        REAL *rows = FN(scratch_rows)(tile);
        const ptrdiff_t at_once = from->row_stride == n * element ? n_rows : 1; /* adjoining rows: one run */
        for (ptrdiff_t i = 0; i < n_rows; i += at_once)
            FN(fetch)(array + i * from->row_stride, from->format, from->swapped, element, at_once * n, rows + i * n);
        FN(rows_to_plane)((char *)rows, n * sizeof(REAL), n_rows, n, plane);
    } else {
        for (ptrdiff_t c = 0; c < n; c++, array += from->class_stride)
            FN(fetch)(array, from->format, from->swapped, from->row_stride, n_rows, plane + c * TILE);
    }
}

/* The way back, to a gradient or a Hessian. */
static void FN(put_plane)(const Tile *tile, char *array, const Layout *to, ptrdiff_t start, ptrdiff_t n,
                          const REAL *plane)
{
    const ptrdiff_t element = (ptrdiff_t)format_size(to->format), n_rows = tile->n_rows;
    array += start * to->class_stride;
    if (FN(is_plane)(to)) {
        for (ptrdiff_t c = 0; c < n; c++, array += to->class_stride) {
            if (FN(is_single)(tile)) FN(ask_for)(array, AHEAD_PLANE, n_rows * sizeof(REAL), 1);
            FN(copy)(plane + c * TILE, n_rows, (REAL *)array);
        }
    } else if (FN(is_contiguous)(to)) {
        FN(plane_to_rows)(plane, array, to->row_stride, n_rows, n);
    } else if (to->class_stride == element && n <= CHUNK_ACROSS) {
        REAL *rows = FN(scratch_rows)(tile);
        const ptrdiff_t at_once = to->row_stride == n * element ? n_rows : 1;
        FN(plane_to_rows)(plane, (char *)rows, n * sizeof(REAL), n_rows, n);
        for (ptrdiff_t i = 0; i < n_rows; i += at_once)
            FN(put)(rows + i * n, to->format, to->swapped, element, at_once * n, array + i * to->row_stride);
    } else {
        for (ptrdiff_t c = 0; c < n; c++, array += to->class_stride)
            FN(put)(plane + c * TILE, to->format, to->swapped, to->row_stride, n_rows, array);
    }
}

/* The logits of a chunk in the scratch, as the exps are taken of them, and target distributions in the second. */
static void FN(prepare_planes)(const Tile *tile, const Rows *rows, ptrdiff_t start, ptrdiff_t n)
{
    const Layout *of_q = &tile->q_layout;
    REAL *x = (REAL *)tile->scratch, *q = (REAL *)tile->second;
    FN(fetch_plane)(tile, tile->logits, &tile->logits_layout, start, n, x);
    for (ptrdiff_t c = 0; tile->formula->transform != AS_GIVEN && c < n; c++)
        FN(transform)(x + c * TILE, tile->n_rows, tile->formula);
    if (tile->formula->kind == MARGIN) {
        for (ptrdiff_t i = 0; i < tile->n_rows; i++)
            if (rows->label[i] >= start && rows->label[i] < start + n)
                x[(rows->label[i] - start) * TILE + i] = -INFINITY;
    }
    if (!tile->q) return;
    if ((of_q->format == FORMAT_F64) == (REAL_BITS == 64)) {
        FN(fetch_plane)(tile, tile->q, of_q, start, n, q);
        return;
    }
    for (ptrdiff_t c = 0; c < n; c++)
        FN(fetch_any)(tile->q + (start + c) * of_q->class_stride, of_q->format, of_q->swapped, of_q->row_stride,
                      tile->n_rows, q + c * TILE);
}

/* What to ask for while a vector of rows goes through the classes of a chunk, `step` bytes for each of them: all at
 * once is more than a core can wait for. In a band it is the same rows of the next chunk, which begins with class
 * `next`. */
typedef struct { const char *at; ptrdiff_t step; } FN(Stream);
typedef struct { FN(Stream) in, out, q; } FN(Ahead);

INLINE FN(Stream) FN(stream)(const Tile *tile, const char *array, const Layout *layout, ptrdiff_t next)
{
    if (!FN(is_single)(tile))
        return (FN(Stream)){array + next * layout->class_stride, layout->class_stride};
    if (FN(is_plane)(layout)) return (FN(Stream)){array, 0};
    return (FN(Stream)){array + AHEAD_ROWS, LANES * layout->row_stride / tile->n_classes};
}

/* Of the first rows of a tile. */
INLINE FN(Ahead) FN(ahead)(const Tile *tile, ptrdiff_t next)
{
    const FN(Stream) in = FN(stream)(tile, tile->logits, &tile->logits_layout, next);
    return (FN(Ahead)){in, tile->grad ? FN(stream)(tile, tile->grad, &tile->grad_layout, next) : in,
                       tile->q ? FN(stream)(tile, tile->q, &tile->q_layout, next) : in};
}

/* Of those from i on, without a division. */
INLINE FN(Ahead) FN(ahead_of)(const FN(Ahead) *first, const Tile *tile, ptrdiff_t i)
{
    FN(Ahead) ahead = *first;
    ahead.in.at += i * tile->logits_layout.row_stride;
    if (tile->grad) ahead.out.at += i * tile->grad_layout.row_stride;
    if (tile->q) ahead.q.at += i * tile->q_layout.row_stride;
    return ahead;
}

INLINE void FN(ask_for_class)(const FN(Ahead) *ahead, ptrdiff_t c, int with_grad)
{
    FN(ask_for)(ahead->in.at, c * ahead->in.step, 1, 0);
    if (with_grad) FN(ask_for)(ahead->out.at, c * ahead->out.step, 1, 1);
}
