/* A row of more than CHUNK classes: alone in its tile, swept in pieces, each against its own maximum while it is in
 * cache. Threads may share the pieces (`run_split` in walk.pxi).
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
 * row are staged that the gradient can't hold (of half precision, strided, swapped); its pieces; and the second and
 * third scratch. What short rows need is on the stack, which may be as small as 128 KiB. */
static void *own_staging(void)
{
    static _Thread_local double memory[STAGED_BYTES / sizeof(double)];
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

/* Of exp(max - m) of a piece: it may have the digits of a subnormal probability that a weight brings back. */
#define UNIT_SCALE 0x1p64

/* Fills in the row's m, r, exp(x_y - m) and terms from its n pieces and x_y; and what the pieces' staged
 * exps are to be multiplied by. */
static void combine(const Tile *tile, Rows *rows, double rest_scale, double exp_power)
{
    const ptrdiff_t n = count_pieces(tile->n_classes);
    Pieces *p = rows->pieces;
    ptrdiff_t top = 0;
    for (ptrdiff_t k = 1; k < n; k++) top = p->max[k] > p->max[top] ? k : top;
    const double m = p->max[top];
    if (takes_maximum(tile)) rows->at_target[0] = m;
    const double x_y = rows->at_target[0];
    const int target_is_max = x_y >= m;
    if (!target_is_max || takes_maximum(tile)) {
        p->rest[top] = p->others[top];
        p->rest_low[top] = p->others_low[top];
    }
    const Exps_f64 exps = exps_against_f64(splat_f64(m), &tile->formula->temperature.f64);
    const Wide_f64 to_exp = to_rest_f64(correction_f64(&exps, 0)); /* times UNIT_SCALE */
    const vec_f64 wide_m = splat_f64(m);
    sum_vec_f64 sum = {{0}, {0}};
    for (ptrdiff_t k = 0; k < n; k += LANES_F64) {
        const ptrdiff_t count = n - k < LANES_F64 ? n - k : LANES_F64;
        const vec_f64 max = load_n_f64(p->max + k, count, -INFINITY);
        const mask_f64 is_top = not_less_f64(max, wide_m);
        Wide_f64 e = wide_product_f64((Wide_f64){exps_f64(max, &exps), {0}}, to_exp);
        e = (Wide_f64){select_f64(is_top, splat_f64(UNIT_SCALE) + 0 * max, e.high), keep_f64(~is_top, e.low)};
        const Wide_f64 rest = {load_n_f64(p->rest + k, count, 0), load_n_f64(p->rest_low + k, count, 0)};
        const Wide_f64 unit = {load_n_f64(p->unit + k, count, 0), load_n_f64(p->unit_low + k, count, 0)};
        const Wide_f64 product = wide_product_f64(rest, e), of_row = wide_product_f64(unit, e);
        add_f64(&sum, product.high);
        sum.error += product.low;
        store_n_f64(p->unit + k, count, of_row.high);
        store_n_f64(p->unit_low + k, count, of_row.low);
    }
    double low;
    const double rest = total_and_error_f64(sum, &low) / UNIT_SCALE, whole = rest + (target_is_max ? 0 : rest_scale);
    rows->max[0] = m;
    rows->rest[0] = whole;
    rows->rest_low[0] = target_is_max ? low / UNIT_SCALE : (rest - (whole - rest_scale)) + low / UNIT_SCALE;
    const Wide_f64 of_y = wide_product_f64((Wide_f64){exps_f64(splat_f64(x_y), &exps), {0}}, to_exp);
    const double e_y = x_y == m ? UNIT_SCALE : of_y.high[0];
    rows->target_exp[0] = e_y * (rest_scale / UNIT_SCALE);

    const double r = whole / rest_scale, e_of_y = e_y / UNIT_SCALE, s = r + e_of_y;
    const double s_low = (r > e_of_y ? e_of_y - (s - r) : r - (s - e_of_y)) + rows->rest_low[0] / rest_scale;
    const double inverse = 1 / s, lost = s_low * inverse;
    double below = 0, at_top = 0;
    rows->mass[0] = rows->spread[0] = 0;
    for (ptrdiff_t k = 0; k < n; k++) {
        const double unit = p->unit[k] / s;
        p->unit[k] = unit + (p->unit_low[k] * inverse - unit * lost);
        const double lower = p->max[k] == -INFINITY ? 0 : p->max[k]; /* what the spread is against */
        if (p->mass[k] != 0) rows->spread[0] += p->mass[k] * (SPREAD_SCALE * m - SPREAD_SCALE * lower);
        rows->mass[0] += p->mass[k];
        rows->spread[0] += p->spread[k];
        if (p->max[k] == m) at_top += p->at_top[k];
        below += (p->below[k] + (p->max[k] == m ? 0 : p->at_top[k] * p->exp_top[k])) * p->unit[k];
    }
    rows->below[0] = below / (exp_power * UNIT_SCALE) + (at_top - 1) / s;
}
#endif

/* Where its exps are staged, or NULL: beyond the cache they would be moved twice more, which costs more than
 * computing them again. */
INLINE REAL *FN(staged_long_row)(const Tile *tile)
{
    if (!FN(stages)(tile) || tile->n_classes > (ptrdiff_t)(STAGED_BYTES / sizeof(REAL))) return NULL;
    return (REAL *)(FN(is_contiguous)(&tile->grad_layout) && !tile->formula->by_element ? tile->grad : tile->staging);
}

/* The exps of a piece. One that holds nothing but -inf has exps 0, unlike a row. */
INLINE FN(Exps) FN(exps_of_piece)(const Tile *tile, const Pieces *pieces, ptrdiff_t piece)
{
    const double m = pieces->max[piece];
    return FN(exps_against)(FN(splat)(m == -INFINITY ? 0 : (REAL)m), FN(units)(&tile->formula->temperature));
}

/* The logits of a run of the only row of a tile, as the exps are taken of them. */
INLINE const REAL *FN(swept_run)(const Tile *tile, const Rows *rows, ptrdiff_t start, ptrdiff_t n)
{
    REAL *scratch = (REAL *)tile->scratch;
    if (!tile->formula->by_element) return FN(contiguous_run)(tile->logits, &tile->logits_layout, start, n, scratch);
    FN(prepare_run)(tile, rows, 0, start, n, scratch);
    return scratch;
}

static void FN(sweep_piece)(const Tile *tile, Rows *rows, ptrdiff_t piece)
{
    const Formula *formula = tile->formula;
    const ptrdiff_t length = piece_length(tile->n_classes), start = piece * length;
    const ptrdiff_t end = FN(smaller)(start + length, tile->n_classes);
    Pieces *pieces = rows->pieces;
    REAL *staged = FN(staged_long_row)(tile);
    const REAL *x = NULL;
    ptrdiff_t target = rows->label[0]; /* or the piece's own maximum, where that stays out of the sum */
    REAL m = -INFINITY;
    double sum = 0, error = 0;

    for (ptrdiff_t at = start; at < end; at += CHUNK) {
        const ptrdiff_t n = FN(smaller)(end - at, CHUNK);
        x = FN(swept_run)(tile, rows, at, n);
        const REAL chunk_max = FN(chunk_max)(x, n);
        if (takes_maximum(tile) && chunk_max > m) target = at + FN(place_of)(chunk_max, x, n);
        m = chunk_max > m ? chunk_max : m;
    }
    pieces->max[piece] = m;
    pieces->mass[piece] = pieces->spread[piece] = pieces->below[piece] = pieces->at_top[piece] = 0;
    const FN(Exps) exps = FN(exps_of_piece)(tile, pieces, piece);
    const REAL top = FN(exps)(FN(splat)(m), &exps)[0];
    for (ptrdiff_t at = start; at < end; at += CHUNK) {
        const ptrdiff_t n = FN(smaller)(end - at, CHUNK);
        if (end - start > CHUNK) x = FN(swept_run)(tile, rows, at, n);
        if (formula->has_terms)
            FN(add_terms)(formula, x, FN(q_run)(tile, 0, at, n), 0, at, n, m == -INFINITY ? 0 : m, rows->label[0],
                          &pieces->mass[piece], &pieces->spread[piece]);
        REAL *e = staged ? staged + at : is_weighted(tile) || tile->hess ? (REAL *)tile->scratch : NULL;
        const ptrdiff_t y = is_weighted(tile) ? -1 : target - at;
        double chunk_error, chunk = FN(total_and_error)(
            FN(chunk_sum_of)(x, e, n, &exps, y, FN(source)(tile, 0, at)), &chunk_error);
        if (is_weighted(tile)) {
            chunk = FN(weighted_sum)(e, FN(q_run)(tile, 0, at, n), n);
            chunk_error = 0; /* it was that of the sum without factors */
        }
        const double next = sum + chunk, part = next - sum;
        error += chunk_error + ((sum - (next - part)) + (chunk - part));
        sum = next;
        if (!tile->hess) continue;
        const FN(TopSums) sums = FN(sum_below)(e, n, top);
        pieces->below[piece] += sums.below;
        pieces->at_top[piece] += sums.at_top;
    }
    const FN(Wide) to_rest = FN(to_rest)(FN(correction)(&exps, 0));
    const FN(Wide) all = FN(normalised)(splat_f64(sum), splat_f64(error));
    const vec_f64 one = splat_f64(top);
    const FN(Wide) rest = FN(wide_product)(takes_maximum(tile) ? FN(wide_sum)(all, one) : all, to_rest);
    const FN(Wide) others = FN(wide_product)(takes_maximum(tile) ? all : FN(wide_sum)(all, -one), to_rest);
    pieces->unit[piece] = to_rest.high[0] * (EXP_POWER / REST_SCALE);
    pieces->unit_low[piece] = to_rest.low[0] * (EXP_POWER / REST_SCALE);
    pieces->rest[piece] = rest.high[0];
    pieces->rest_low[piece] = rest.low[0];
    pieces->others[piece] = others.high[0];
    pieces->others_low[piece] = others.low[0];
    pieces->exp_top[piece] = top;
}

/* Before the pieces are swept: their sums leave the target out, and their exps may be staged in place of the logits. */
static void FN(read_target)(const Tile *tile, Rows *rows)
{
    const Layout *from = &tile->logits_layout;
    if (tile->formula->has_terms && tile->q) FN(find_label)(tile, rows, 0);
    if (tile->formula->has_terms) FN(find_own_term)(tile, rows, 0);
    const char *at = tile->logits + rows->label[0] * from->class_stride;
    REAL x_y = FN(is_native)(from) ? FN(load_one)(at, REAL_FORMAT, 0) : FN(load_one)(at, from->format, from->swapped);
    if (tile->formula->transform != AS_GIVEN) FN(transform)(&x_y, 1, tile->formula);
    rows->at_target[0] = tile->formula->kind == MARGIN ? -INFINITY : is_weighted(tile) ? INFINITY : x_y;
}

static void FN(combine_pieces)(const Tile *tile, Rows *rows)
{
    combine(tile, rows, REST_SCALE, EXP_POWER);
}

/* The exps of a run of the only row of a tile, in the scratch. */
static void FN(take_exps)(const Tile *tile, const Rows *rows, ptrdiff_t at, ptrdiff_t n, const REAL *staged,
                          const FN(Exps) *exps)
{
    REAL *scratch = (REAL *)tile->scratch;
    if (staged) FN(copy)(staged + at, n, scratch);
    else FN(chunk_write)(FN(swept_run)(tile, rows, at, n), scratch, n, exps, (FN(Factor)){1, 1}, NULL);
}

static void FN(write_piece)(const Tile *tile, const Rows *rows, ptrdiff_t piece)
{
    const Layout *from = &tile->logits_layout, *to = &tile->grad_layout;
    const ptrdiff_t length = piece_length(tile->n_classes);
    const ptrdiff_t end = FN(smaller)((piece + 1) * length, tile->n_classes);
    const int direct = FN(is_contiguous)(to);
    const REAL *staged = FN(staged_long_row)(tile);
    const FN(Exps) exps = FN(exps_of_piece)(tile, rows->pieces, piece);
    const FN(Factor) factor = FN(factor)(rows->alpha[0] * rows->pieces->unit[piece], 1 / UNIT_SCALE);
    REAL *scratch = (REAL *)tile->scratch;

    for (ptrdiff_t at = piece * length; at < end; at += CHUNK) {
        const ptrdiff_t n = FN(smaller)(end - at, CHUNK);
        if (tile->formula->kind == LOG_SOFTMAX) {
            FN(write_log_run)(tile, rows, 0, at, n);
            continue;
        }
        if (tile->formula->by_element) {
            if (rows->label[0] >= 0) FN(take_exps)(tile, rows, at, n, staged, &exps);
            FN(finish_run)(tile, rows, 0, at, n, scratch, rows->pieces->max[piece], rows->pieces->unit[piece],
                           1 / UNIT_SCALE);
            continue;
        }
        char *grad = tile->grad + at * to->class_stride;
        REAL *g = direct ? (REAL *)grad : scratch;
        if (rows->label[0] < 0) memset(g, 0, (size_t)n * sizeof(REAL));
        else if (staged) FN(write_run)(tile, rows, 0, at, n, staged + at, g, NULL, factor);
        else FN(write_run)(tile, rows, 0, at, n, FN(contiguous_run)(tile->logits, from, at, n, scratch), g, &exps,
                           factor);
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
