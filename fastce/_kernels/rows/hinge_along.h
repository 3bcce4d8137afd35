/* Hinges along the row: a vector holds consecutive classes of one row; more than CHUNK of them go in pieces (pieces.h).
 *
 * Included once per REAL_BITS, after hinge.h.
 */

/* Of a run of classes: as in Rows, the largest x_j and where it stands first, -1 if nowhere. */
typedef struct { double rest, rest_low, mass; REAL most; ptrdiff_t place; } FN(HingeRun);

INLINE vec FN(but_at)(vec x, ptrdiff_t y)
{
    return FN(select)(FN(differ)(FN(iota)(), (ivec){0} + (INT)y), x, FN(splat)(-INFINITY));
}

/* A sum of terms that are not negative: where it is infinite it has lost nothing, though its pairs say NaN. */
INLINE double FN(total_of_hinges)(sum_vec acc, double *low)
{
#if REAL_BITS == 64
    const double total = FN(add_up)(acc.sum);
    *low = 0;
    if (!isfinite(total)) return total;
#endif
    return FN(total_and_error)(acc, low);
}

INLINE FN(HingeSums) FN(sum_run)(const REAL *x, ptrdiff_t n, ptrdiff_t y, const FN(Edge) *edge, FN(Source) source,
                                 Hinge kind, int power, int with_mass)
{
    const ptrdiff_t line = 64 / sizeof(REAL), full = n - n % line;
    FN(HingeSums) sums = FN(no_hinges)();
    for (ptrdiff_t j = 0; j < full; j += line) {
        FN(ask_for)(source.logits + j * source.logits_step, AHEAD_ROWS, line * source.logits_step, 0);
        if (source.grad) FN(ask_for)(source.grad + j * source.grad_step, AHEAD_ROWS, line * source.grad_step, 1);
        if (y >= j && y < j + line)
            for (ptrdiff_t k = j; k < j + line; k += LANES)
                FN(add_hinges)(&sums, FN(but_at)(FN(load)(x + k), y - k), edge, kind, power, with_mass);
        else
            for (ptrdiff_t k = j; k < j + line; k += LANES)
                FN(add_hinges)(&sums, FN(load)(x + k), edge, kind, power, with_mass);
    }
    for (ptrdiff_t k = full; k < n; k += LANES) {
        const vec v = n - k < LANES ? FN(load_n)(x + k, n - k, -INFINITY) : FN(load)(x + k);
        FN(add_hinges)(&sums, FN(but_at)(v, y - k), edge, kind, power, with_mass);
    }
    return sums;
}

/* Where the first of the classes from `from` on that is not below m stands, -1 if nowhere. */
static ptrdiff_t FN(first_at)(const REAL *x, ptrdiff_t from, ptrdiff_t to, REAL m)
{
    const vec most = FN(splat)(m);
    ptrdiff_t j = from;
    while (j + LANES <= to && FN(every_lane)(~FN(not_less)(FN(load)(x + j), most))) j += LANES;
    while (j < to && !(FN(load_one)((const char *)(x + j), REAL_FORMAT, 0) >= m)) j++;
    return j < to ? j : -1;
}

/* n classes of a row, at most CHUNK, from `start` on. */
static FN(HingeRun) FN(sweep_hinges_of_run)(const Tile *tile, const Rows *rows, ptrdiff_t i, ptrdiff_t start,
                                            ptrdiff_t n)
{
    const Layout *from = &tile->logits_layout;
    const REAL *x = FN(contiguous_run)(tile->logits + i * from->row_stride, from, start, n, (REAL *)tile->scratch);
    const FN(Edge) edge = FN(edge_of_row)(rows, i);
    const FN(Source) source = FN(source)(tile, i, start);
    const ptrdiff_t y = rows->label[i] - start;
    FN(HingeSums) sums;
    FN(HingeRun) run;
#define SUM_RUN(kind, power, with_mass) sums = FN(sum_run)(x, n, y, &edge, source, kind, power, with_mass)
    FOR_EACH_HINGE(tile->formula, tile->grad, SUM_RUN);
#undef SUM_RUN
    double lost;
    run.rest = FN(total_of_hinges)(sums.rest, &run.rest_low);
    run.mass = FN(total_of_hinges)(sums.mass, &lost);
    for (int k = 0; k < LANES; k++) run.mass += sums.count[k];
    run.most = FN(largest_lane)(sums.most);
    run.place = -1;
    if (tile->formula->hinge != CRAMMER_SINGER) return run;
    if (tile->grad && run.most > -INFINITY) {
        run.place = FN(first_at)(x, 0, y < 0 || y > n ? n : y, run.most);
        if (run.place < 0) run.place = FN(first_at)(x, y + 1, n, run.most);
    }
    for (int k = 0; k < LANES; k++) run.most = sums.nan[k] ? NAN : run.most;
    return run;
}

static void FN(sweep_hinges_along)(const Tile *tile, Rows *rows)
{
    REAL most[TILE];
    read_given(tile, rows);
    FN(set_edges)(tile->formula, rows, tile->n_rows);
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        if (rows->label[i] < 0) continue;
        const FN(HingeRun) run = FN(sweep_hinges_of_run)(tile, rows, i, 0, tile->n_classes);
        rows->rest[i] = run.rest;
        rows->rest_low[i] = run.rest_low;
        rows->mass[i] = run.mass;
        rows->rival[i] = run.place;
        most[i] = run.most;
    }
    if (tile->formula->hinge == CRAMMER_SINGER) FN(finish_largest)(tile->formula, most, rows, tile->n_rows);
}

/* A row of more than CHUNK classes, in pieces (pieces.h). */
static void FN(begin_hinges)(const Tile *tile, Rows *rows)
{
    read_given(tile, rows);
    FN(set_edges)(tile->formula, rows, 1);
}

static void FN(sweep_hinges_of_piece)(const Tile *tile, const Rows *rows, ptrdiff_t piece)
{
    const ptrdiff_t length = piece_length(tile->n_classes), start = piece * length;
    const ptrdiff_t end = FN(smaller)(start + length, tile->n_classes);
    Pieces *p = rows->pieces;
    p->sum[piece] = p->error[piece] = p->mass[piece] = 0;
    p->max[piece] = -INFINITY;
    p->place[piece] = -1;
    for (ptrdiff_t at = start; at < end; at += CHUNK) {
        const FN(HingeRun) run = FN(sweep_hinges_of_run)(tile, rows, 0, at, FN(smaller)(end - at, CHUNK));
        FN(add_number)(&p->sum[piece], &p->error[piece], run.rest, run.rest_low);
        p->mass[piece] += run.mass;
        if (run.most > p->max[piece]) p->place[piece] = at + run.place;
        if (run.most > p->max[piece] || run.most != run.most) p->max[piece] = run.most; /* NaN stays */
    }
}

static void FN(combine_hinges)(const Tile *tile, Rows *rows)
{
    const Pieces *p = rows->pieces;
    REAL most[LANES_COUNT] = {-INFINITY};
    rows->rest[0] = rows->rest_low[0] = rows->mass[0] = 0;
    rows->rival[0] = -1;
    for (ptrdiff_t k = 0; k < count_pieces(tile->n_classes); k++) {
        FN(add_number)(&rows->rest[0], &rows->rest_low[0], p->sum[k], p->error[k]);
        rows->mass[0] += p->mass[k];
        if (p->max[k] > most[0]) rows->rival[0] = p->place[k];
        if (p->max[k] > most[0] || p->max[k] != p->max[k]) most[0] = (REAL)p->max[k];
    }
    if (tile->formula->hinge == CRAMMER_SINGER) FN(finish_largest)(tile->formula, most, rows, 1);
}

INLINE void FN(write_run_of)(const REAL *x, REAL *g, ptrdiff_t n, const FN(Edge) *edge, const FN(Slope) *slope,
                             int ramp)
{
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const ptrdiff_t count = n - j;
        const vec v = count >= LANES ? FN(load)(x + j) : FN(load_n)(x + j, count, 0);
        const vec of = ramp ? FN(ramp)(v, edge, slope) : FN(step)(v, edge, slope);
        if (count >= LANES) FN(store)(g + j, of);
        else FN(store_n)(g + j, count, of);
    }
}

/* n classes of row i, at most CHUNK, from `start` on. */
static void FN(write_hinges)(const Tile *tile, const Rows *rows, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n,
                             const FN(Slopes) *slopes)
{
    const Layout *from = &tile->logits_layout, *to = &tile->grad_layout;
    const int direct = FN(is_contiguous)(to), is_used = rows->label[i] >= 0;
    char *grad = tile->grad + i * to->row_stride + start * to->class_stride;
    REAL *scratch = (REAL *)tile->scratch, *g = direct ? (REAL *)grad : scratch;
    const ptrdiff_t y = rows->label[i] - start, rival = rows->rival[i] - start;
    const FN(Edge) edge = FN(edge_of_row)(rows, i);
    const FN(Slope) slope = FN(slope_of_row)(slopes, i);

    if (!is_used || tile->formula->hinge == CRAMMER_SINGER)
        for (ptrdiff_t j = 0; j < n; j++) g[j] = slopes->below[i];
    else {
        const REAL *x = FN(contiguous_run)(tile->logits + i * from->row_stride, from, start, n, scratch);
        if (slopes->ramp[i] != 0) FN(write_run_of)(x, g, n, &edge, &slope, 1);
        else FN(write_run_of)(x, g, n, &edge, &slope, 0);
    }
    if (is_used && y >= 0 && y < n) g[y] = slopes->beta[i];
    if (is_used && tile->formula->hinge == CRAMMER_SINGER && rival >= 0 && rival < n) g[rival] = 0 - slopes->beta[i];
    if (!direct) FN(put)(g, to->format, to->swapped, to->class_stride, n, grad);
}

static void FN(write_hinges_along)(const Tile *tile, const Rows *rows)
{
    FN(Slopes) slopes;
    FN(set_slopes)(tile->formula, rows, tile->n_rows, &slopes);
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) FN(write_hinges)(tile, rows, i, 0, tile->n_classes, &slopes);
}

static void FN(write_hinges_of_piece)(const Tile *tile, const Rows *rows, ptrdiff_t piece)
{
    const ptrdiff_t length = piece_length(tile->n_classes);
    const ptrdiff_t end = FN(smaller)((piece + 1) * length, tile->n_classes);
    FN(Slopes) slopes;
    FN(set_slopes)(tile->formula, rows, 1, &slopes);
    for (ptrdiff_t at = piece * length; at < end; at += CHUNK)
        FN(write_hinges)(tile, rows, 0, at, FN(smaller)(end - at, CHUNK), &slopes);
}
