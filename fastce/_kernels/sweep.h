/* Sweep and write: everything that touches the logits and the gradient of a tile.
 *
 * Included once per REAL_BITS, after simd.h, vmath.h and formats.h. For a row x with target y
 *
 *     sweep   m = max_j x_j,  r = sum_{j != y} exp(x_j - m),  x_y,  exp(x_y - m)   -> Rows
 *     write   g_j = alpha exp(x_j - m),  g_y = beta                                <- Rows
 *
 * The target's own term never enters r, so loss and gradient lose no digits where the model is
 * sure. Two walks do the same work:
 *
 *     along    the row lies along the vectors    class axis contiguous, many classes
 *     across   a row in every lane               few classes, or rows adjacent in memory
 *
 * Both go through a row in chunks. The sweep stages its exps, in the gradient itself where that is
 * contiguous native memory, else in the scratch if all of the row fits there, and write only scales
 * them; else write computes them again. Along a long row each piece is swept against its own maximum,
 * while it is in cache, and the pieces are combined in the end.
 *
 * Sums have the same tree at every place in a batch: pairs of vectors are added in REAL, the
 * pairs in more than REAL (sum_vec). That is one REAL rounding, however many classes.
 */
#ifndef FASTCE_SWEEP_H
#define FASTCE_SWEEP_H

/* The memory of a tile. `grad` is NULL where only the loss is wanted. */
typedef struct {
    ptrdiff_t n_rows, n_classes;
    const char *logits;
    char *grad;
    Layout logits_layout, grad_layout;
    double *scratch; /* CHUNK of them */
} Tile;

enum {
    CHUNK_ACROSS = CHUNK / TILE, /* classes of a chunk when rows lie across */
    AHEAD_ROWS = 32768,          /* how far to prefetch, in bytes: along rows */
    AHEAD_PLANE = 1024           /* and where rows are adjacent */
};
_Static_assert(2 * TILE * FEW_CLASSES <= CHUNK, "a tile as rows and as a plane must fit in the scratch");

/* A long row is swept in pieces, which threads may share: chunks, or more where it would be more than
 * MAX_PIECES. They depend on its length alone, so a sum has the same tree whoever computes it. */
INLINE ptrdiff_t piece_length(ptrdiff_t n_classes)
{
    const ptrdiff_t at_most = (ptrdiff_t)CHUNK * MAX_PIECES;
    return CHUNK * ((n_classes + at_most - 1) / at_most);
}

#endif

#undef REAL_FORMAT
#if REAL_BITS == 64
#define REAL_FORMAT FORMAT_F64
#else
#define REAL_FORMAT FORMAT_F32
#endif

INLINE int FN(is_native)(const Layout *layout)
{
    return layout->format == REAL_FORMAT && !layout->swapped;
}

INLINE int FN(is_contiguous)(const Layout *layout)
{
    return FN(is_native)(layout) && layout->class_stride == sizeof(REAL);
}

INLINE ptrdiff_t FN(smaller)(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* ---- What the loops multiply exps by ------------------------------------------------------ */

/* alpha / EXP_SCALE as a product, b a power of two and nearly always 1: as one factor it could
 * be subnormal in REAL and cost a normal gradient its digits. */
typedef struct { REAL a, b; } FN(Factor);

INLINE FN(Factor) FN(factor)(double alpha)
{
    double scaled = alpha / EXP_SCALE;
    int normal = fabs(scaled) >= (REAL_BITS == 64 ? 0x1p-1022 : 0x1p-126);
    return (FN(Factor)){(REAL)(normal ? scaled : alpha), normal ? 1 : 1 / EXP_SCALE};
}

/* ---- Fetching ahead ------------------------------------------------------------------------
 *
 * A tile is read and written in bursts, with arithmetic between them in which the memory would idle, and
 * the hardware's prefetchers see only the bursts. So while a tile's exps are computed the lines of the
 * tiles to come are asked for, as many as are being used: a third off the time of a batch in memory.
 * A prefetch of an address that is not ours is harmless. */
INLINE void FN(ask_for)(const void *p, ptrdiff_t ahead, ptrdiff_t bytes, int to_write)
{
    for (ptrdiff_t line = 0; line < bytes; line += 64) {
        const char *address = (const char *)p + ahead + line;
        if (to_write) __builtin_prefetch(address, 1, 2);
        else __builtin_prefetch(address, 0, 2);
    }
}

/* ---- Along the row ------------------------------------------------------------------------ */

static REAL FN(chunk_max)(const REAL *x, ptrdiff_t n)
{
    const vec lowest = FN(splat)(-INFINITY);
    vec m0 = lowest, m1 = lowest, m2 = lowest, m3 = lowest;
    ptrdiff_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES) {
        m0 = FN(larger)(FN(load)(x + j), m0); /* a NaN is passed over here and met by chunk_sum */
        m1 = FN(larger)(FN(load)(x + j + LANES), m1);
        m2 = FN(larger)(FN(load)(x + j + 2 * LANES), m2);
        m3 = FN(larger)(FN(load)(x + j + 3 * LANES), m3);
    }
    for (; j + LANES <= n; j += LANES) m0 = FN(larger)(FN(load)(x + j), m0);
    if (j < n) m1 = FN(larger)(FN(load_n)(x + j, n - j, -INFINITY), m1);
    return FN(largest_lane)(FN(larger)(FN(larger)(m0, m1), FN(larger)(m2, m3)));
}

/* A group of four vectors from x, with -inf in the place of the target if that is one of them. */
INLINE void FN(load_without_target)(const REAL *x, ptrdiff_t n, ptrdiff_t y, vec *group)
{
    const vec none = FN(splat)(-INFINITY);
    const INT at = (INT)(y >= 0 && y < 4 * LANES ? y : -1);
    for (ptrdiff_t k = 0; k < 4; k++) {
        ptrdiff_t count = n - k * LANES;
        vec v = count >= LANES ? FN(load)(x + k * LANES)
              : count > 0 ? FN(load_n)(x + k * LANES, count, -INFINITY) : none;
        group[k] = FN(if_equal)(FN(iota)(), (ivec){0} + (at - (INT)(k * LANES)), none, v);
    }
}

/* Sum of exp(x_j - m) * REST_SCALE over j != y. Stages the exps in e unless that is NULL; what it stages for
 * the target is of no use.
 *
 * The target's group is read from a copy that has -inf in its place, so the loop below it has neither
 * a branch that depends on the label nor a mask. */
INLINE double FN(chunk_sum)(const REAL *x, REAL *e, ptrdiff_t n, REAL maximum, ptrdiff_t y)
{
    const ptrdiff_t group = 4 * LANES, full = n - n % group;
    const vec m = FN(splat)(maximum);
    sum_vec sum = {{0}, {0}};
    if (full) {
        ptrdiff_t target_group = y < 0 ? 0 : y >= full ? full - group : y - y % group;
        vec copy[4];
        FN(load_without_target)(x + target_group, group, y - target_group, copy);
        for (ptrdiff_t j = 0; j < full; j += group) {
            const REAL *p = j == target_group ? (const REAL *)copy : x + j;
            FN(ask_for)(x + j, AHEAD_ROWS, 4 * VECTOR_BYTES, 0);
            if (e) FN(ask_for)(e + j, AHEAD_ROWS, 4 * VECTOR_BYTES, 1);
            vec e0 = FN(exp_from)(FN(load)(p), m);
            vec e1 = FN(exp_from)(FN(load)(p + LANES), m);
            vec e2 = FN(exp_from)(FN(load)(p + 2 * LANES), m);
            vec e3 = FN(exp_from)(FN(load)(p + 3 * LANES), m);
            if (e) {
                FN(store)(e + j, e0);
                FN(store)(e + j + LANES, e1);
                FN(store)(e + j + 2 * LANES, e2);
                FN(store)(e + j + 3 * LANES, e3);
            }
            FN(add)(&sum, e0 + e1);
            FN(add)(&sum, e2 + e3);
        }
    }
    if (full < n) {
        vec last[4];
        FN(load_without_target)(x + full, n - full, y - full, last);
        for (ptrdiff_t k = 0; k < 4; k++) {
            ptrdiff_t at = full + k * LANES;
            if (at >= n) {
                last[k] = (vec){0};
                continue;
            }
            last[k] = FN(exp_from)(last[k], m);
            if (!e) continue;
            if (n - at >= LANES) FN(store)(e + at, last[k]);
            else FN(store_n)(e + at, n - at, last[k]);
        }
        FN(add)(&sum, last[0] + last[1]);
        FN(add)(&sum, last[2] + last[3]);
    }
    return FN(total)(sum) * (REST_SCALE / EXP_SCALE);
}

static double FN(chunk_sum_only)(const REAL *x, ptrdiff_t n, REAL maximum, ptrdiff_t y)
{
    return FN(chunk_sum)(x, NULL, n, maximum, y);
}

static double FN(chunk_sum_staging)(const REAL *x, REAL *e, ptrdiff_t n, REAL maximum, ptrdiff_t y)
{
    return FN(chunk_sum)(x, e, n, maximum, y);
}

/* g = alpha * exps, from the staged exps, or from the logits where `staged` is 0. */
INLINE void FN(chunk_write)(const REAL *x, REAL *g, ptrdiff_t n, int staged, REAL maximum, FN(Factor) f)
{
    const vec m = FN(splat)(maximum);
    const int two_factors = f.b != 1;
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const ptrdiff_t count = n - j;
        vec v = count >= LANES ? FN(load)(x + j) : FN(load_n)(x + j, count, 0);
        v = (staged ? v : FN(exp_from)(v, m)) * f.a;
        if (two_factors) v *= f.b;
        if (count >= LANES) FN(store)(g + j, v);
        else FN(store_n)(g + j, count, v);
    }
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

/* A chunk whose maximum is -inf sums to 0 against any finite shift, and NaN stays NaN. */
INLINE REAL FN(shift)(REAL maximum) { return maximum == -INFINITY ? 0 : maximum; }

/* Where a row that is not used in place is kept: a tile of rows of one chunk fits beside each other. */
INLINE REAL *FN(scratch_row)(const Tile *tile, ptrdiff_t i)
{
    return (REAL *)tile->scratch + (tile->n_classes <= CHUNK ? i * tile->n_classes : 0);
}

/* Rows of one chunk, all maxima first: the sums of a row then need not wait for its maximum. */
static void FN(sweep_short_rows)(const Tile *tile, Rows *rows)
{
    const Layout *from = &tile->logits_layout, *to = &tile->grad_layout;
    const ptrdiff_t n = tile->n_classes;
    const int direct = FN(is_contiguous)(from), stage_in_grad = tile->grad && FN(is_contiguous)(to);

    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        rows->max[i] = rows->rest[i] = 0;
        if (rows->label[i] < 0) continue;
        const char *row = tile->logits + i * from->row_stride;
        rows->max[i] = FN(chunk_max)(FN(contiguous_run)(row, from, 0, n, FN(scratch_row)(tile, i)), n);
    }
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        if (rows->label[i] < 0) continue;
        REAL *scratch = FN(scratch_row)(tile, i);
        const REAL *x = direct ? (const REAL *)(tile->logits + i * from->row_stride) : scratch;
        REAL *exps = stage_in_grad ? (REAL *)(tile->grad + i * to->row_stride) : tile->grad ? scratch : NULL;
        const REAL m = FN(shift)((REAL)rows->max[i]);
        rows->rest[i] = exps ? FN(chunk_sum_staging)(x, exps, n, m, rows->label[i])
                             : FN(chunk_sum_only)(x, n, m, rows->label[i]);
    }
}

/* Where the exps of a row longer than CHUNK are staged, or NULL: beyond the cache they would be moved
 * twice more, which costs more than computing them again. */
INLINE REAL *FN(staged_long_row)(const Tile *tile, ptrdiff_t i)
{
    const int staged = tile->grad && FN(is_contiguous)(&tile->grad_layout)
                    && tile->n_classes <= (ptrdiff_t)(STAGED_BYTES / sizeof(REAL));
    return staged ? (REAL *)(tile->grad + i * tile->grad_layout.row_stride) : NULL;
}

/* m and r of the classes start .. end of row i alone. */
static void FN(sweep_piece)(const Tile *tile, const Rows *rows, ptrdiff_t i, ptrdiff_t start, ptrdiff_t end,
                            double *max, double *rest)
{
    const Layout *from = &tile->logits_layout;
    const char *row = tile->logits + i * from->row_stride;
    REAL *scratch = FN(scratch_row)(tile, i), *exps = FN(staged_long_row)(tile, i);
    const REAL *x = NULL;
    REAL m = -INFINITY;

    for (ptrdiff_t at = start; at < end; at += CHUNK) {
        const ptrdiff_t n = FN(smaller)(end - at, CHUNK);
        x = FN(contiguous_run)(row, from, at, n, scratch);
        const REAL chunk_max = FN(chunk_max)(x, n);
        m = chunk_max > m ? chunk_max : m;
    }
    *max = m;
    *rest = 0;
    for (ptrdiff_t at = start; at < end; at += CHUNK) {
        const ptrdiff_t n = FN(smaller)(end - at, CHUNK);
        if (end - start > CHUNK) x = FN(contiguous_run)(row, from, at, n, scratch);
        const ptrdiff_t y = rows->label[i] - at;
        *rest += exps ? FN(chunk_sum_staging)(x, exps + at, n, FN(shift)(m), y)
                      : FN(chunk_sum_only)(x, n, FN(shift)(m), y);
    }
}

static void FN(sweep_long_rows)(const Tile *tile, Rows *rows)
{
    const ptrdiff_t n_classes = tile->n_classes, length = piece_length(n_classes);
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        double rest[MAX_PIECES];
        ptrdiff_t n = 0;
        rows->max[i] = rows->rest[i] = 0;
        if (rows->label[i] < 0) continue;
        for (ptrdiff_t start = 0; start < n_classes; start += length, n++)
            FN(sweep_piece)(tile, rows, i, start, FN(smaller)(start + length, n_classes),
                            &rows->piece_max[n], &rest[n]);
        combine_parts(rows->piece_max, rest, n, &rows->max[i], &rows->rest[i]);
    }
}

/* Writes the gradient of the classes start .. end of row i, one piece or all of it, but for the target. */
static void FN(write_piece)(const Tile *tile, const Rows *rows, ptrdiff_t i, ptrdiff_t start, ptrdiff_t end)
{
    const Layout *from = &tile->logits_layout, *to = &tile->grad_layout;
    const char *row = tile->logits + i * from->row_stride;
    const int is_long = tile->n_classes > CHUNK, direct = FN(is_contiguous)(to);
    const int staged = !is_long || FN(staged_long_row)(tile, i);
    const REAL m = (REAL)rows->max[i];
    double alpha = rows->alpha[i];
    if (is_long && staged) /* against the maximum of the piece */
        alpha *= exp_one(rows->piece_max[start / piece_length(tile->n_classes)], rows->max[i]);
    const FN(Factor) factor = FN(factor)(alpha);
    REAL *scratch = FN(scratch_row)(tile, i);

    for (; start < end; start += CHUNK) {
        const ptrdiff_t n = FN(smaller)(end - start, CHUNK);
        char *grad = tile->grad + i * to->row_stride + start * to->class_stride;
        REAL *g = direct ? (REAL *)grad : scratch;
        if (rows->label[i] < 0) memset(g, 0, (size_t)n * sizeof(REAL));
        else if (staged) FN(chunk_write)(g, g, n, 1, m, factor);
        else FN(chunk_write)(FN(contiguous_run)(row, from, start, n, scratch), g, n, 0, m, factor);
        if (!direct) FN(put)(g, to->format, to->swapped, to->class_stride, n, grad);
    }
}

INLINE void FN(write_target)(const Tile *tile, const Rows *rows, ptrdiff_t i)
{
    const Layout *to = &tile->grad_layout;
    if (rows->label[i] < 0) return;
    if (FN(is_native)(to))
        FN(store_one)(tile->grad + i * to->row_stride + rows->label[i] * to->class_stride,
                      (REAL)rows->beta[i], REAL_FORMAT, 0);
    else
        FN(store_one)(tile->grad + i * to->row_stride + rows->label[i] * to->class_stride,
                      (REAL)rows->beta[i], to->format, to->swapped);
}

static void FN(write_along)(const Tile *tile, const Rows *rows)
{
    const ptrdiff_t n_classes = tile->n_classes, length = piece_length(n_classes);
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        for (ptrdiff_t start = 0; start < n_classes; start += length)
            FN(write_piece)(tile, rows, i, start, FN(smaller)(start + length, n_classes));
        FN(write_target)(tile, rows, i);
    }
}

/* ---- Across rows -------------------------------------------------------------------------- */

/* Rows that are adjacent in memory. */
INLINE int FN(is_plane)(const Layout *layout)
{
    return FN(is_native)(layout) && layout->row_stride == sizeof(REAL);
}

/* A plane holds classes x rows: element (c, i) at data + c * stride + i * sizeof(REAL). */
typedef struct { char *data; ptrdiff_t stride; } FN(Plane);

INLINE vec FN(load_lanes)(FN(Plane) plane, ptrdiff_t c, ptrdiff_t i, ptrdiff_t count)
{
    const REAL *p = (const REAL *)(plane.data + c * plane.stride) + i;
    return count == LANES ? FN(load)(p) : FN(load_n)(p, count, 0);
}

INLINE void FN(store_lanes)(FN(Plane) plane, ptrdiff_t c, ptrdiff_t i, ptrdiff_t count, vec a)
{
    REAL *p = (REAL *)(plane.data + c * plane.stride) + i;
    if (count == LANES) FN(store)(p, a);
    else FN(store_n)(p, count, a);
}

/* What to ask for while a vector of rows goes through its classes: `step` bytes for each of them. */
typedef struct { const char *at; ptrdiff_t step; } FN(Stream);

INLINE FN(Stream) FN(stream)(const char *array, const Layout *layout, ptrdiff_t i, ptrdiff_t n_classes)
{
    const char *first = array + i * layout->row_stride;
    if (FN(is_plane)(layout)) return (FN(Stream)){first + AHEAD_PLANE, layout->class_stride};
    return (FN(Stream)){first + AHEAD_ROWS, LANES * layout->row_stride / n_classes};
}

/* max_c of the rows i .. i + count, joined with what max holds. */
INLINE void FN(lanes_max)(FN(Plane) x, ptrdiff_t n, ptrdiff_t i, ptrdiff_t count, REAL *max)
{
    vec m = FN(load)(max + i);
    for (ptrdiff_t c = 0; c < n; c++) m = FN(larger)(FN(load_lanes)(x, c, i, count), m);
    FN(store)(max + i, m);
}

/* Adds exp(x - max) over the classes but the target, whose term goes to target_exp; stages the exps in e
 * unless that is empty. */
INLINE void FN(lanes_sum)(FN(Plane) x, FN(Plane) e, FN(Stream) in, FN(Stream) out, ptrdiff_t n,
                          ptrdiff_t i, ptrdiff_t count, const INT *target, const REAL *max, double *rest, double *error, REAL *target_exp)
{
    vec m = FN(load)(max + i);
    m = (vec)((ivec)m & ~(ivec)(m == -INFINITY)); /* as shift() above */
    ivec y;
    memcpy(&y, target + i, sizeof y);
    sum_vec sum = FN(load_sums)(rest + i, error + i);
    vec e_y = FN(load)(target_exp + i);
    for (ptrdiff_t c = 0; c < n; c += 2) {
        vec pair[2] = {{0}};
        for (ptrdiff_t k = 0; k < 2 && c + k < n; k++) {
            const ivec here = (ivec){0} + (INT)(c + k);
            FN(ask_for)(in.at, (c + k) * in.step, 1, 0);
            if (e.data) FN(ask_for)(out.at, (c + k) * out.step, 1, 1);
            vec v = FN(exp_from)(FN(load_lanes)(x, c + k, i, count), m);
            if (e.data) FN(store_lanes)(e, c + k, i, count, v);
            e_y = FN(if_equal)(y, here, v, e_y);
            pair[k] = FN(unless_equal)(v, y, here);
        }
        FN(add)(&sum, pair[0] + pair[1]);
    }
    FN(store_sums)(rest + i, error + i, sum);
    FN(store)(target_exp + i, e_y);
}

/* Gradient of the rows i .. i + count off their targets; 0 in ignored rows. */
INLINE void FN(lanes_write)(FN(Plane) x, FN(Plane) g, ptrdiff_t n, ptrdiff_t i, ptrdiff_t count, int staged,
                            const REAL *max, const REAL *a, const REAL *b, const INT *ignored)
{
    const vec m = FN(load)(max + i), fa = FN(load)(a + i), fb = FN(load)(b + i);
    ivec ignore;
    memcpy(&ignore, ignored + i, sizeof ignore);
    for (ptrdiff_t c = 0; c < n; c++) {
        vec v = FN(load_lanes)(x, c, i, count);
        v = (staged ? v : FN(exp_from)(v, m)) * fa * fb;
        FN(store_lanes)(g, c, i, count, (vec)((ivec)v & ~ignore));
    }
}

typedef struct __attribute__((packed, may_alias)) { REAL value; } FN(Loose); /* perhaps unaligned */

/* Adjacent rows of so few classes that moving elements one by one beats a transpose; the compiler
 * knows n and makes shuffles of it. */
#define FOR_VERY_FEW_CLASSES(n, action) \
    switch (n) { \
    case 1: action(1); return; \
    case 2: action(2); return; \
    case 3: action(3); return; \
    case 4: action(4); return; \
    }

/* Rows of at most FEW_CLASSES contiguous REALs to a plane, through registers. Reading a whole vector
 * where the row is shorter stays inside the tile: it ends in the next row. */
static void FN(rows_to_plane)(const char *rows, ptrdiff_t row_stride, ptrdiff_t n_rows, ptrdiff_t n,
                              FN(Plane) plane)
{
    const ptrdiff_t size = sizeof(REAL), end = (n_rows - 1) * row_stride + n * size;
#define SCATTER(n) \
    for (ptrdiff_t i = 0; i < n_rows; i++) \
        for (ptrdiff_t c = 0; c < n; c++) \
            ((REAL *)(plane.data + c * TILE * sizeof(REAL)))[i] = ((const FN(Loose) *)rows)[i * n + c].value;
    if (row_stride == n * size) FOR_VERY_FEW_CLASSES(n, SCATTER)
#undef SCATTER
    for (ptrdiff_t i = 0; i < n_rows; i += LANES)
        for (ptrdiff_t c = 0; c < n; c += LANES) {
            vec block[LANES_COUNT] = {{0}};
            for (ptrdiff_t k = 0; k < LANES; k++) {
                if (i + k >= n_rows) break;
                ptrdiff_t offset = (i + k) * row_stride + c * size;
                const REAL *p = (const REAL *)(rows + offset);
                block[k] = row_stride > 0 && offset + VECTOR_BYTES <= end ? FN(load)(p)
                         : FN(load_n)(p, FN(smaller)(n - c, LANES), 0);
            }
            FN(transpose)(block);
            for (ptrdiff_t k = 0; k < LANES && c + k < n; k++)
                FN(store)((REAL *)(plane.data + (c + k) * plane.stride) + i, block[k]);
        }
}

/* The way back. Where rows are adjacent a whole vector may be stored: what it spills into the
 * next row is overwritten by that row. */
static void FN(plane_to_rows)(FN(Plane) plane, char *rows, ptrdiff_t row_stride, ptrdiff_t n_rows, ptrdiff_t n)
{
    const ptrdiff_t size = sizeof(REAL), end = n_rows * n * size;
    const int adjacent = row_stride == n * size && n <= LANES;
#define GATHER(n) \
    for (ptrdiff_t i = 0; i < n_rows; i++) \
        for (ptrdiff_t c = 0; c < n; c++) \
            ((FN(Loose) *)rows)[i * n + c].value = ((const REAL *)(plane.data + c * TILE * sizeof(REAL)))[i];
    if (row_stride == n * size) FOR_VERY_FEW_CLASSES(n, GATHER)
#undef GATHER
    for (ptrdiff_t i = 0; i < n_rows; i += LANES)
        for (ptrdiff_t c = 0; c < n; c += LANES) {
            vec block[LANES_COUNT] = {{0}};
            for (ptrdiff_t k = 0; k < LANES && c + k < n; k++)
                block[k] = FN(load)((const REAL *)(plane.data + (c + k) * plane.stride) + i);
            FN(transpose)(block);
            for (ptrdiff_t k = 0; k < LANES; k++) {
                if (i + k >= n_rows) break;
                ptrdiff_t offset = (i + k) * row_stride + c * size;
                REAL *p = (REAL *)(rows + offset);
                if (n - c >= LANES || (adjacent && offset + VECTOR_BYTES <= end)) FN(store)(p, block[k]);
                else FN(store_n)(p, n - c, block[k]);
            }
        }
}
#undef FOR_VERY_FEW_CLASSES

INLINE FN(Plane) FN(scratch_plane)(const Tile *tile)
{
    return (FN(Plane)){(char *)tile->scratch, TILE * sizeof(REAL)};
}

static FN(Plane) FN(fetch_plane)(const Tile *tile, ptrdiff_t start, ptrdiff_t n)
{
    const Layout *from = &tile->logits_layout;
    const ptrdiff_t element = (ptrdiff_t)format_size(from->format);
    const char *logits = tile->logits + start * from->class_stride;
    FN(Plane) plane = FN(scratch_plane)(tile);
    if (FN(is_plane)(from)) return (FN(Plane)){(char *)logits, from->class_stride};
    if (FN(is_contiguous)(from)) {
        FN(rows_to_plane)(logits, from->row_stride, tile->n_rows, n, plane);
    } else if (from->class_stride == element && n <= FEW_CLASSES) {
        REAL *rows = (REAL *)tile->scratch + TILE * FEW_CLASSES;
        ptrdiff_t at_once = from->row_stride == n * element ? tile->n_rows : 1; /* adjacent rows: one run */
        for (ptrdiff_t i = 0; i < tile->n_rows; i += at_once)
            FN(fetch)(logits + i * from->row_stride, from->format, from->swapped, element,
                      at_once * n, rows + i * n);
        FN(rows_to_plane)((char *)rows, n * sizeof(REAL), tile->n_rows, n, plane);
    } else {
        for (ptrdiff_t c = 0; c < n; c++)
            FN(fetch)(logits + c * from->class_stride, from->format, from->swapped, from->row_stride,
                      tile->n_rows, (REAL *)(plane.data + c * plane.stride));
    }
    return plane;
}

static void FN(put_plane)(const Tile *tile, ptrdiff_t start, ptrdiff_t n, FN(Plane) plane)
{
    const Layout *to = &tile->grad_layout;
    const ptrdiff_t element = (ptrdiff_t)format_size(to->format);
    char *grad = tile->grad + start * to->class_stride;
    if (FN(is_contiguous)(to)) {
        FN(plane_to_rows)(plane, grad, to->row_stride, tile->n_rows, n);
    } else if (to->class_stride == element && n <= FEW_CLASSES) {
        REAL *rows = (REAL *)tile->scratch + TILE * FEW_CLASSES;
        ptrdiff_t at_once = to->row_stride == n * element ? tile->n_rows : 1;
        FN(plane_to_rows)(plane, (char *)rows, n * sizeof(REAL), tile->n_rows, n);
        for (ptrdiff_t i = 0; i < tile->n_rows; i += at_once)
            FN(put)(rows + i * n, to->format, to->swapped, element, at_once * n, grad + i * to->row_stride);
    } else {
        for (ptrdiff_t c = 0; c < n; c++)
            FN(put)((const REAL *)(plane.data + c * plane.stride), to->format, to->swapped,
                    to->row_stride, tile->n_rows, grad + c * to->class_stride);
    }
}

static void FN(sweep_across)(const Tile *tile, Rows *rows)
{
    const ptrdiff_t n_rows = tile->n_rows, n_classes = tile->n_classes;
    const int stage = tile->grad && n_classes <= CHUNK_ACROSS;
    INT target[TILE];
    REAL max[TILE], target_exp[TILE];
    double rest[TILE], error[TILE];
    FN(Plane) x = {NULL, 0}, e = {NULL, 0};
    if (stage) e = FN(is_plane)(&tile->grad_layout)
                 ? (FN(Plane)){tile->grad, tile->grad_layout.class_stride} : FN(scratch_plane)(tile);

    for (ptrdiff_t i = 0; i < TILE; i++) {
        max[i] = -INFINITY;
        target_exp[i] = 0;
        rest[i] = error[i] = 0;
    }
    for (ptrdiff_t start = 0; start < n_classes; start += CHUNK_ACROSS) {
        const ptrdiff_t n = FN(smaller)(n_classes - start, CHUNK_ACROSS);
        x = FN(fetch_plane)(tile, start, n);
        for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
            ptrdiff_t count = FN(smaller)(n_rows - i, LANES);
            if (count == LANES) FN(lanes_max)(x, n, i, LANES, max);
            else FN(lanes_max)(x, n, i, count, max);
        }
    }
    for (ptrdiff_t start = 0; start < n_classes; start += CHUNK_ACROSS) {
        const ptrdiff_t n = FN(smaller)(n_classes - start, CHUNK_ACROSS);
        if (n_classes > CHUNK_ACROSS) x = FN(fetch_plane)(tile, start, n);
        for (ptrdiff_t i = 0; i < n_rows; i++) {
            int64_t y = rows->label[i] - start;
            target[i] = (INT)(y < n ? y : -1);
        }
        for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
            ptrdiff_t count = FN(smaller)(n_rows - i, LANES);
            FN(Stream) in = FN(stream)(tile->logits, &tile->logits_layout, i, n_classes);
            FN(Stream) out = FN(stream)(tile->grad, &tile->grad_layout, i, n_classes);
            if (count == LANES) FN(lanes_sum)(x, e, in, out, n, i, LANES, target, max, rest, error, target_exp);
            else FN(lanes_sum)(x, e, in, out, n, i, count, target, max, rest, error, target_exp);
        }
    }
    for (ptrdiff_t i = 0; i < TILE; i++) {
        rows->max[i] = max[i];
        rows->rest[i] = (rest[i] + error[i]) * (REST_SCALE / EXP_SCALE);
        rows->target_exp[i] = target_exp[i] / EXP_SCALE;
    }
}

static void FN(write_across)(const Tile *tile, const Rows *rows)
{
    const ptrdiff_t n_rows = tile->n_rows, n_classes = tile->n_classes;
    const Layout *to = &tile->grad_layout;
    const int staged = n_classes <= CHUNK_ACROSS, direct = FN(is_plane)(to);
    INT ignored[TILE];
    REAL max[TILE], a[TILE], b[TILE];

    for (ptrdiff_t i = 0; i < n_rows; i++) {
        FN(Factor) factor = FN(factor)(rows->alpha[i]);
        a[i] = factor.a;
        b[i] = factor.b;
        max[i] = (REAL)rows->max[i];
        ignored[i] = rows->label[i] < 0 ? -1 : 0;
    }
    for (ptrdiff_t start = 0; start < n_classes; start += CHUNK_ACROSS) {
        ptrdiff_t n = FN(smaller)(n_classes - start, CHUNK_ACROSS);
        FN(Plane) g = direct ? (FN(Plane)){tile->grad + start * to->class_stride, to->class_stride}
                             : FN(scratch_plane)(tile);
        FN(Plane) x = staged ? g : FN(fetch_plane)(tile, start, n);
        for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
            ptrdiff_t count = FN(smaller)(n_rows - i, LANES);
            if (count == LANES && staged) FN(lanes_write)(x, g, n, i, LANES, 1, max, a, b, ignored);
            else FN(lanes_write)(x, g, n, i, count, staged, max, a, b, ignored);
        }
        if (!direct) FN(put_plane)(tile, start, n, g);
    }
    for (ptrdiff_t i = 0; i < n_rows; i++) FN(write_target)(tile, rows, i);
}

/* ---- Entry points ------------------------------------------------------------------------- */

static void FN(read_at_target)(const Tile *tile, Rows *rows)
{
    const Layout *from = &tile->logits_layout;
#define READ(format, swapped) \
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) \
        rows->at_target[i] = FN(load_one)(tile->logits + i * from->row_stride \
            + (rows->label[i] < 0 ? 0 : rows->label[i]) * from->class_stride, format, swapped)
    if (FN(is_native)(from)) READ(REAL_FORMAT, 0);
    else READ(from->format, from->swapped);
#undef READ
}

static void FN(sweep)(const Tile *tile, Rows *rows, int across)
{
    FN(read_at_target)(tile, rows);
    if (across) {
        FN(sweep_across)(tile, rows);
        return;
    }
    if (tile->n_classes <= CHUNK) FN(sweep_short_rows)(tile, rows);
    else FN(sweep_long_rows)(tile, rows);
    find_target_exps(rows->at_target, rows->max, tile->n_rows, rows->target_exp);
}

static void FN(write)(const Tile *tile, const Rows *rows, int across)
{
    if (across) FN(write_across)(tile, rows);
    else FN(write_along)(tile, rows);
}
