/* A row of more than CHUNK classes: alone in its tile, swept in pieces that threads may share (`run_split` in walk.pxi),
 * all against the row's one anchor: an early one in the only pass, or its maximum in a second one.
 *
 * Included once per REAL_BITS, after along.h.
 */

#ifndef FASTCE_PIECES_H
#define FASTCE_PIECES_H
/* Chunks, or more where it would be more than MAX_PIECES. They depend on the length of a row alone, so a sum has the
 * same tree whoever computes it. */
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

/* Memory of a thread, which the system makes when it first asks for it and frees with it: where the exps of a long
 * row are staged that the gradient can't hold (of half precision, strided, swapped, streamed); its pieces; and the
 * second and third scratch; or all scratches of a tile across that is too large for the stack. What short rows need is
 * on the stack, which may be as small as 128 KiB. */
static void *own_staging(void)
{
    static _Thread_local _Alignas(64) double memory[STAGED_BYTES / sizeof(double)];
    return memory;
}

static Pieces *own_pieces(void)
{
    static _Thread_local Pieces memory;
    return &memory;
}

static double *own_scratches(void)
{
    static _Thread_local double memory[2 * SCRATCH];
    return memory;
}
#endif

/* Where its exps are staged, or NULL: in the gradient, or apart up to what a cache has room for beside it; beyond that
 * they would be moved twice more, which costs more than computing them again. Not in the place of logits that may be
 * wanted once more. */
INLINE REAL *FN(staged_long_row)(const Tile *tile)
{
    const int overwrites = tile->grad == tile->logits && anchors_early(tile);
    if (!FN(stages)(tile)) return NULL;
    if (!(overwrites || tile->streams || tile->formula->by_element || !FN(is_contiguous)(&tile->grad_layout)))
        return (REAL *)tile->grad;
    return tile->n_classes > (ptrdiff_t)(STAGED_BYTES / sizeof(REAL)) ? NULL : (REAL *)tile->staging;
}

/* Logits of the only row of a tile; as given: where nothing is asked of them but the largest. */
INLINE Run FN(swept_run)(const Tile *tile, const Rows *rows, ptrdiff_t start, ptrdiff_t n, int as_given)
{
    const Layout *from = &tile->logits_layout;
    REAL *scratch = (REAL *)tile->scratch;
    if (!as_given) return FN(logits_run)(tile, rows, 0, start, n, scratch);
    if (FN(is_run)(from)) return (Run){tile->logits + start * from->class_stride, from->format};
    return FN(reals)(FN(contiguous_run)(tile->logits, from, start, n, scratch));
}

INLINE FN(Exps) FN(exps_of_row)(const Tile *tile, const Rows *rows)
{
    return FN(exps_against)(FN(splat)((REAL)rows->anchor[0]), FN(units)(&tile->formula->temperature));
}

/* A number as an unevaluated sum, to which others are added. */
INLINE void FN(add_number)(double *sum, double *error, double number, double number_error)
{
    const double next = *sum + number, part = next - *sum;
    *error += number_error + ((*sum - (next - part)) + (number - part));
    *sum = next;
}

static void FN(sweep_piece)(const Tile *tile, Rows *rows, ptrdiff_t piece)
{
    const Formula *formula = tile->formula;
    Pieces *pieces = rows->pieces;
    const ptrdiff_t length = piece_length(tile->n_classes), start = piece * length;
    const ptrdiff_t end = FN(smaller)(start + length, tile->n_classes);
    const FN(Exps) exps = FN(exps_of_row)(tile, rows);
    const REAL anchor = (REAL)rows->anchor[0], top = FN(exps)(FN(splat)(anchor), &exps)[0];
    const FN(Units) *units = FN(units)(&formula->temperature);
    const int caps_later = pieces->pass == FIND_MAXIMUM && formula->transform == SOFTCAP; /* the largest alone */
    REAL *staged = FN(staged_long_row)(tile), m = -INFINITY;
    double sum = 0, error = 0;

    if (pieces->pass == FIND_MAXIMUM) pieces->place[piece] = start;
    pieces->mass[piece] = pieces->spread[piece] = pieces->below[piece] = pieces->at_top[piece] = 0;
    for (ptrdiff_t at = start; at < end; at += CHUNK) {
        const ptrdiff_t n = FN(smaller)(end - at, CHUNK);
        const Run x = FN(swept_run)(tile, rows, at, n, caps_later);
        REAL largest = -INFINITY;
        const int looks = pieces->pass == FIND_MAXIMUM || (pieces->pass == SUM_EARLY && !FN(is_near)(m, anchor, units));
        if (looks) largest = FN(chunk_max)(x, n);
        if (takes_maximum(tile) && largest > m) pieces->place[piece] = at + FN(place_of)(largest, x, n);
        m = largest > m ? largest : m;
        if (looks) continue; /* or the sum is not to be of use */
        if (formula->has_terms)
            FN(add_terms)(formula, (const REAL *)x.at, FN(q_run)(tile, 0, at, n), 0, at, n, anchor, rows->label[0],
                          &pieces->mass[piece], &pieces->spread[piece]);
        REAL *e = staged ? staged + at : is_weighted(tile) || tile->hess ? (REAL *)tile->scratch : NULL;
        const FN(Source) source = FN(source)(tile, 0, at);
        double chunk_error, chunk = FN(chunk_sum_of)(x, e, n, &exps, rows->label[0] - at,
                                                     pieces->pass == SUM_EARLY ? &largest : NULL, &source, &chunk_error);
        m = largest > m ? largest : m;
        if (is_weighted(tile)) {
            chunk = FN(weighted_sum)(e, FN(q_run)(tile, 0, at, n), n);
            chunk_error = 0; /* it was that of the sum without factors */
        }
        FN(add_number)(&sum, &error, chunk, chunk_error);
        if (!tile->hess) continue;
        const FN(TopSums) sums = FN(sum_below)(e, n, top);
        pieces->below[piece] += sums.below;
        pieces->at_top[piece] += sums.at_top;
    }
    if (caps_later) FN(transform)(&m, 1, formula);
    pieces->max[piece] = m;
    pieces->sum[piece] = sum;
    pieces->error[piece] = error;
}

/* Before the pieces are swept: what the row's target is, and with it what the first pass is for. */
static void FN(begin_long_row)(const Tile *tile, Rows *rows)
{
    const Layout *from = &tile->logits_layout;
    if (tile->formula->has_terms && tile->q) FN(find_label)(tile, rows, 0);
    if (tile->formula->has_terms) FN(find_own_term)(tile, rows, 0);
    rows->pieces->pass = anchors_early(tile) ? SUM_EARLY : FIND_MAXIMUM;
    rows->at_target[0] = -INFINITY;
    if (has_target(tile) && tile->formula->kind != MARGIN) {
        const char *at = tile->logits + rows->label[0] * from->class_stride;
        REAL x_y = FN(load_one)(at, FN(is_native)(from) ? REAL_FORMAT : from->format, from->swapped);
        if (tile->formula->transform != AS_GIVEN) FN(transform)(&x_y, 1, tile->formula);
        rows->at_target[0] = x_y;
    }
    rows->anchor[0] = anchors_at_target(tile) ? rows->at_target[0] : 0;
    if (!anchors_early(tile) || has_target(tile)) return;
    REAL first[FIRST_LOGITS];
    const Run run = FN(reals)(FN(contiguous_run)(tile->logits, from, 0, FIRST_LOGITS, first));
    rows->anchor[0] = FN(early_anchor)(tile, run);
}

/* After a pass: what the pieces say of the row. Returns whether another pass is needed. */
static int FN(combine_pieces)(const Tile *tile, Rows *rows)
{
    const ptrdiff_t n = count_pieces(tile->n_classes);
    Pieces *p = rows->pieces;
    ptrdiff_t top = 0;
    double all = 0;
    for (ptrdiff_t k = 0; k < n; k++) {
        top = p->max[k] > p->max[top] ? k : top;
        all += p->sum[k];
    }
    const REAL m = (REAL)p->max[top], x_y = (REAL)rows->at_target[0];
    const int is_near = FN(is_near)(m, (REAL)rows->anchor[0], FN(units)(&tile->formula->temperature)) && all == all;
    if (p->pass == FIND_MAXIMUM || (p->pass == SUM_EARLY && !is_near)) {
        rows->anchor[0] = m;
        p->pass = SUM_AT_MAXIMUM;
        if (takes_maximum(tile)) rows->label[0] = p->place[top];
        if (takes_maximum(tile)) rows->at_target[0] = m;
        return 1;
    }
    REAL anchor[LANES_COUNT] = {(REAL)rows->anchor[0]}, at_target[LANES_COUNT] = {x_y};
    double sum[LANES_COUNT] = {0}, error[LANES_COUNT] = {0}, below = 0, at_top = 0;
    rows->mass[0] = rows->spread[0] = 0;
    for (ptrdiff_t k = 0; k < n; k++) {
        FN(add_number)(sum, error, p->sum[k], p->error[k]);
        rows->mass[0] += p->mass[k];
        rows->spread[0] += p->spread[k];
        below += p->below[k];
        at_top += p->at_top[k];
    }
    FN(finish_rows)(tile, anchor, at_target, sum, error, rows);
    if (!tile->hess) return 0;
    const FN(Exps) exps = FN(exps_of_row)(tile, rows);
    rows->below[0] = (below + (at_top - 1) * FN(exps)(FN(splat)(anchor[0]), &exps)[0]) / rows->all[0];
    return 0;
}

static void FN(write_piece)(const Tile *tile, const Rows *rows, ptrdiff_t piece)
{
    const ptrdiff_t length = piece_length(tile->n_classes);
    const ptrdiff_t end = FN(smaller)((piece + 1) * length, tile->n_classes);
    const int by_element = tile->formula->by_element, takes = FN(takes_runs)(tile);
    const REAL *staged = FN(staged_long_row)(tile);
    const FN(Exps) exps = FN(exps_of_row)(tile, rows);
    const FN(Factor) factor = FN(factor)(rows->alpha[0], rows->all[0], rows->all_low[0]);
    REAL *scratch = (REAL *)tile->scratch;

    for (ptrdiff_t at = piece * length; at < end; at += CHUNK) {
        const ptrdiff_t n = FN(smaller)(end - at, CHUNK);
        if (tile->formula->kind == LOG_SOFTMAX) {
            FN(write_log_run)(tile, rows, 0, at, n);
            continue;
        }
        const FN(Output) g = FN(output_of_row)(tile, 0, at, takes, scratch);
        if (rows->label[0] < 0) memset(g.at, 0, (size_t)n * format_size(g.format));
        else if (by_element && staged) FN(copy)(staged + at, n, scratch);
        else if (by_element) {
            FN(prepare_run)(tile, rows, 0, at, n, scratch);
            FN(chunk_write)(scratch, g, n, &exps, NULL, NULL, -1, 0);
        } else if (staged) FN(write_run)(tile, rows, 0, at, n, staged + at, g, NULL, &factor);
        else {
            const REAL *x = FN(contiguous_run)(tile->logits, &tile->logits_layout, at, n, scratch);
            FN(write_run)(tile, rows, 0, at, n, x, g, &exps, &factor);
        }
        if (by_element) FN(finish_run)(tile, rows, 0, at, n, scratch);
        else if (!takes) FN(put_run)(tile, 0, at, n, scratch);
    }
}

static void FN(sweep_long_row)(const Tile *tile, Rows *rows)
{
    if (rows->label[0] < 0) return;
    FN(begin_long_row)(tile, rows);
    do
        for (ptrdiff_t piece = 0; piece < count_pieces(tile->n_classes); piece++) FN(sweep_piece)(tile, rows, piece);
    while (FN(combine_pieces)(tile, rows));
}

static void FN(write_long_row)(const Tile *tile, const Rows *rows)
{
    for (ptrdiff_t piece = 0; piece < count_pieces(tile->n_classes); piece++) FN(write_piece)(tile, rows, piece);
}
