/* Along the row: a vector holds consecutive classes of one row.
 *
 * Included once per REAL_BITS, after sweep.h. Rows of up to CHUNK classes are swept a tile at a time. A longer one is
 * alone in its tile and swept in pieces, each against its own maximum while it is in cache; threads may share
 * them (`run_split` in kernels.pyx).
 */

/* Chunks, or more where it would be more than MAX_PIECES. They depend on the length of a row alone, so a sum
 * has the same tree whoever computes it. */
#ifndef FASTCE_ALONG_H
#define FASTCE_ALONG_H
INLINE ptrdiff_t piece_length(ptrdiff_t n_classes)
{
    const ptrdiff_t at_most = (ptrdiff_t)CHUNK * MAX_PIECES;
    return CHUNK * ((n_classes + at_most - 1) / at_most);
}

INLINE ptrdiff_t count_pieces(ptrdiff_t n_classes)
{
    const ptrdiff_t length = piece_length(n_classes);
    return (n_classes + length - 1) / length;
}

/* How many rows of up to CHUNK classes stay in cache together. */
INLINE ptrdiff_t rows_at_once(ptrdiff_t n_classes) { return CHUNK / n_classes; }

/* Where a thread stages the exps of a long row that the gradient can't hold: of half precision, strided, swapped. The
 * system makes it when a thread first asks for it, and frees it with the thread. */
static void *own_staging(void)
{
    static _Thread_local double memory[STAGED_BYTES / sizeof(double)];
    return memory;
}

/* Of exp(max - m) of a piece: it may have the digits of a subnormal probability that a weight brings back. */
#define UNIT_SCALE 0x1p64

/* Fills in the row's m, r and exp(x_y - m) from its n pieces and x_y. */
static void combine(Rows *rows, ptrdiff_t n, double rest_scale)
{
    Pieces *p = &rows->pieces;
    ptrdiff_t top = 0;
    for (ptrdiff_t k = 1; k < n; k++) top = p->max[k] > p->max[top] ? k : top;
    const double m = p->max[top], x_y = rows->at_target[0];
    const int target_is_max = x_y >= m;
    if (!target_is_max) p->rest[top] = p->others[top];
    const Exps_f64 exps = exps_against_f64(splat_f64(m));
    const vec_f64 unit = to_unit_f64(correction_f64(&exps, 0)); /* UNIT_SCALE is the EXP_POWER of float64 */
    sum_vec_f64 sum = {{0}, {0}};
    for (ptrdiff_t k = 0; k < n; k += LANES_F64) {
        const ptrdiff_t count = n - k < LANES_F64 ? n - k : LANES_F64;
        const vec_f64 e = exps_f64(load_n_f64(p->max + k, count, -INFINITY), &exps) * unit;
        add_f64(&sum, load_n_f64(p->rest + k, count, 0) * e);
        store_n_f64(p->unit + k, count, load_n_f64(p->unit + k, count, 0) * e);
    }
    rows->max[0] = m;
    rows->rest[0] = total_f64(sum) / UNIT_SCALE + (target_is_max ? 0 : rest_scale);
    rows->target_exp[0] = (exps_f64(splat_f64(x_y), &exps) * unit)[0] / UNIT_SCALE;
}
#endif

/* ---- Contiguous reals --------------------------------------------------------------------- */

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

/* Where the arrays are while their elements may be elsewhere: what add_group asks for lies ahead of it. */
typedef struct { const char *logits, *grad; ptrdiff_t logits_step, grad_step; } FN(Source);

INLINE FN(Source) FN(source)(const Tile *tile, ptrdiff_t i, ptrdiff_t start)
{
    const Layout *from = &tile->logits_layout, *to = &tile->grad_layout;
    return (FN(Source)){tile->logits + i * from->row_stride + start * from->class_stride,
                        tile->grad ? tile->grad + i * to->row_stride + start * to->class_stride : NULL,
                        from->class_stride, to->class_stride};
}

/* Adds the exps of four vectors, or of the n elements that are left of a row, to the sum; stages them in e
 * unless that is NULL. Where the target may be among them, y is its place, and its term is 0. */
INLINE void FN(add_group)(sum_vec *sum, const REAL *x, REAL *e, ptrdiff_t n, const FN(Exps) *exps, int has_target,
                          ptrdiff_t y)
{
    vec v[4];
    for (ptrdiff_t k = 0; k < 4; k++) {
        const ptrdiff_t at = k * LANES, count = n - at;
        if (count <= 0) {
            v[k] = (vec){0};
            continue;
        }
        const vec a = count >= LANES ? FN(load)(x + at) : FN(load_n)(x + at, count, -INFINITY);
        v[k] = has_target ? FN(exps_where)(FN(differ)(FN(iota)(), (ivec){0} + (INT)(y - at)), a, exps)
                          : FN(exps)(a, exps);
        if (!e) continue;
        if (count >= LANES) FN(store)(e + at, v[k]);
        else FN(store_n)(e + at, count, v[k]);
    }
    for (ptrdiff_t k = 0; k < 4; k++) FN(add)(sum, v[k]);
}

/* Sum of the exps over j != y. */
INLINE double FN(chunk_sum)(const REAL *x, REAL *e, ptrdiff_t n, FN(Exps) exps, ptrdiff_t y, FN(Source) source)
{
    const ptrdiff_t group = 4 * LANES, full = n - n % group;
    const int few = n <= 4 * group; /* asking for the target each time costs less than a branch mispredicted */
    y = y >= 0 && y < n ? y : -1;
    sum_vec sum = {{0}, {0}};
    for (ptrdiff_t j = 0; j < full; j += group) {
        FN(ask_for)(source.logits + j * source.logits_step, AHEAD_ROWS, group * source.logits_step, 0);
        if (source.grad) FN(ask_for)(source.grad + j * source.grad_step, AHEAD_ROWS, group * source.grad_step, 1);
        if (few || (y >= j && y < j + group)) FN(add_group)(&sum, x + j, e ? e + j : e, group, &exps, 1, y - j);
        else FN(add_group)(&sum, x + j, e ? e + j : e, group, &exps, 0, 0);
    }
    if (full < n) FN(add_group)(&sum, x + full, e ? e + full : e, n - full, &exps, 1, y - full);
    return FN(total)(sum);
}

/* The loop once for each case that saves it something: rows that are near, contiguous reals, no gradient. */
static double FN(chunk_sum_of)(const REAL *x, REAL *e, ptrdiff_t n, const FN(Exps) *given, ptrdiff_t y, FN(Source) source)
{
    FN(Exps) exps = *given;
    const int native = source.logits_step == sizeof(REAL) && (!source.grad || source.grad_step == sizeof(REAL));
    if (native) source.logits_step = source.grad_step = sizeof(REAL);
    if (!FN(are_near)(given) || !native) return FN(chunk_sum)(x, e, n, exps, y, source);
    exps.base = (vec){0};
    if (e) return FN(chunk_sum)(x, e, n, exps, y, source);
    source.grad = NULL;
    return FN(chunk_sum)(x, NULL, n, exps, y, source);
}

/* g = f * exps, which are those of x, or x itself where `exps` is NULL. */
INLINE void FN(chunk_write)(const REAL *x, REAL *g, ptrdiff_t n, const FN(Exps) *exps, FN(Factor) f)
{
    const int lifted = f.b != 1;
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const ptrdiff_t count = n - j;
        vec v = count >= LANES ? FN(load)(x + j) : FN(load_n)(x + j, count, 0);
        v = (exps ? FN(exps)(v, exps) : v) * f.a;
        if (lifted) v = v * f.b * f.b;
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

/* ---- Rows of one chunk -------------------------------------------------------------------- */

/* Where a row that is not used in place is kept. A tile of more than rows_at_once has no gradient to be written. */
INLINE REAL *FN(scratch_row)(const Tile *tile, ptrdiff_t i)
{
    return (REAL *)tile->scratch + i % rows_at_once(tile->n_classes) * tile->n_classes;
}

/* All maxima first: the sums of a row then need not wait for its maximum. */
static void FN(sweep_short_rows)(const Tile *tile, Rows *rows)
{
    const Layout *from = &tile->logits_layout, *to = &tile->grad_layout;
    const ptrdiff_t n = tile->n_classes, at_once = rows_at_once(n);
    const int direct = FN(is_contiguous)(from), stage_in_grad = tile->grad && FN(is_contiguous)(to);
    REAL max[TILE], at_target[TILE];
    double sum[TILE];

    for (ptrdiff_t first = 0; first < tile->n_rows; first += at_once) {
        const ptrdiff_t end = FN(smaller)(first + at_once, tile->n_rows);
        for (ptrdiff_t i = first; i < end; i++) {
            max[i] = at_target[i] = 0;
            if (rows->label[i] < 0) continue;
            const char *row = tile->logits + i * from->row_stride;
            const REAL *x = FN(contiguous_run)(row, from, 0, n, FN(scratch_row)(tile, i));
            max[i] = FN(chunk_max)(x, n);
            at_target[i] = x[rows->label[i]];
        }
        for (ptrdiff_t i = first; i < end; i++) {
            sum[i] = 0;
            if (rows->label[i] < 0) continue;
            REAL *scratch = FN(scratch_row)(tile, i);
            const REAL *x = direct ? (const REAL *)(tile->logits + i * from->row_stride) : scratch;
            REAL *staged = stage_in_grad ? (REAL *)(tile->grad + i * to->row_stride) : tile->grad ? scratch : NULL;
            const FN(Exps) exps = FN(exps_against)(FN(splat)(max[i]));
            sum[i] = FN(chunk_sum_of)(x, staged, n, &exps, rows->label[i], FN(source)(tile, i, 0));
        }
    }
    FN(finish_rows)(max, at_target, sum, tile->n_rows, rows);
}

static void FN(write_short_rows)(const Tile *tile, const Rows *rows)
{
    const Layout *to = &tile->grad_layout;
    const ptrdiff_t n = tile->n_classes;
    const int direct = FN(is_contiguous)(to);
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        char *grad = tile->grad + i * to->row_stride;
        REAL *g = direct ? (REAL *)grad : FN(scratch_row)(tile, i);
        if (rows->label[i] < 0) memset(g, 0, (size_t)n * sizeof(REAL));
        else FN(chunk_write)(g, g, n, NULL, FN(factor)(rows->alpha[i] * rows->unit[i], 1));
        if (!direct) FN(put)(g, to->format, to->swapped, to->class_stride, n, grad);
        FN(write_target)(tile, rows, i);
    }
}

/* ---- Rows in pieces: the only row of a tile ----------------------------------------------- */

/* Where its exps are staged, or NULL: beyond the cache they would be moved twice more, which costs more than
 * computing them again. */
INLINE REAL *FN(staged_long_row)(const Tile *tile)
{
    if (!tile->grad || tile->n_classes > (ptrdiff_t)(STAGED_BYTES / sizeof(REAL))) return NULL;
    return (REAL *)(FN(is_contiguous)(&tile->grad_layout) ? tile->grad : tile->staging);
}

/* The exps of a piece. One that holds nothing but -inf has exps 0, unlike a row. */
INLINE FN(Exps) FN(exps_of_piece)(const Pieces *pieces, ptrdiff_t piece)
{
    const double m = pieces->max[piece];
    return FN(exps_against)(FN(splat)(m == -INFINITY ? 0 : (REAL)m));
}

static void FN(sweep_piece)(const Tile *tile, Rows *rows, ptrdiff_t piece)
{
    const Layout *from = &tile->logits_layout;
    const ptrdiff_t length = piece_length(tile->n_classes), start = piece * length;
    const ptrdiff_t end = FN(smaller)(start + length, tile->n_classes);
    Pieces *pieces = &rows->pieces;
    REAL *scratch = (REAL *)tile->scratch, *staged = FN(staged_long_row)(tile);
    const REAL *x = NULL;
    REAL m = -INFINITY;
    double sum = 0;

    for (ptrdiff_t at = start; at < end; at += CHUNK) {
        const ptrdiff_t n = FN(smaller)(end - at, CHUNK);
        x = FN(contiguous_run)(tile->logits, from, at, n, scratch);
        const REAL chunk_max = FN(chunk_max)(x, n);
        m = chunk_max > m ? chunk_max : m;
    }
    pieces->max[piece] = m;
    const FN(Exps) exps = FN(exps_of_piece)(pieces, piece);
    for (ptrdiff_t at = start; at < end; at += CHUNK) {
        const ptrdiff_t n = FN(smaller)(end - at, CHUNK);
        if (end - start > CHUNK) x = FN(contiguous_run)(tile->logits, from, at, n, scratch);
        sum += FN(chunk_sum_of)(x, staged ? staged + at : NULL, n, &exps, rows->label[0] - at, FN(source)(tile, 0, at));
    }
    const double top = FN(exps)(FN(splat)(m), &exps)[0];
    const vec_f64 correction = FN(correction)(&exps, 0);
    pieces->unit[piece] = FN(to_unit)(correction)[0];
    pieces->rest[piece] = FN(to_rest)(splat_f64(sum), correction)[0];
    pieces->others[piece] = FN(to_rest)(splat_f64(sum - top), correction)[0];
}

/* Before the pieces are swept: their exps may be staged in place of the logits. */
static void FN(read_target)(const Tile *tile, Rows *rows)
{
    const Layout *from = &tile->logits_layout;
    const char *at = tile->logits + rows->label[0] * from->class_stride;
    rows->at_target[0] = FN(is_native)(from) ? FN(load_one)(at, REAL_FORMAT, 0)
                                             : FN(load_one)(at, from->format, from->swapped);
}

static void FN(combine_pieces)(const Tile *tile, Rows *rows)
{
    combine(rows, count_pieces(tile->n_classes), REST_SCALE);
}

static void FN(write_piece)(const Tile *tile, const Rows *rows, ptrdiff_t piece)
{
    const Layout *from = &tile->logits_layout, *to = &tile->grad_layout;
    const ptrdiff_t length = piece_length(tile->n_classes);
    const ptrdiff_t end = FN(smaller)((piece + 1) * length, tile->n_classes);
    const int direct = FN(is_contiguous)(to);
    const REAL *staged = FN(staged_long_row)(tile);
    const FN(Exps) exps = FN(exps_of_piece)(&rows->pieces, piece);
    const FN(Factor) factor = FN(factor)(rows->alpha[0] * rows->pieces.unit[piece], 1 / UNIT_SCALE);
    REAL *scratch = (REAL *)tile->scratch;

    for (ptrdiff_t at = piece * length; at < end; at += CHUNK) {
        const ptrdiff_t n = FN(smaller)(end - at, CHUNK);
        char *grad = tile->grad + at * to->class_stride;
        REAL *g = direct ? (REAL *)grad : scratch;
        if (rows->label[0] < 0) memset(g, 0, (size_t)n * sizeof(REAL));
        else if (staged) FN(chunk_write)(staged + at, g, n, NULL, factor);
        else FN(chunk_write)(FN(contiguous_run)(tile->logits, from, at, n, scratch), g, n, &exps, factor);
        if (!direct) FN(put)(g, to->format, to->swapped, to->class_stride, n, grad);
    }
}

static void FN(sweep_long_row)(const Tile *tile, Rows *rows)
{
    if (rows->label[0] < 0) return;
    FN(read_target)(tile, rows);
    for (ptrdiff_t piece = 0; piece < count_pieces(tile->n_classes); piece++) FN(sweep_piece)(tile, rows, piece);
    FN(combine_pieces)(tile, rows);
}

static void FN(write_long_row)(const Tile *tile, const Rows *rows)
{
    for (ptrdiff_t piece = 0; piece < count_pieces(tile->n_classes); piece++) FN(write_piece)(tile, rows, piece);
    FN(write_target)(tile, rows, 0);
}
