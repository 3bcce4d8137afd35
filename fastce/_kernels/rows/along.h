/* Along the row: a vector holds consecutive classes of one row.
 *
 * Included once per REAL_BITS, after chunk.h. Rows of up to CHUNK classes are swept a tile at a time; longer ones go in
 * pieces (pieces.h).
 */
#ifndef FASTCE_ALONG_H
#define FASTCE_ALONG_H
/* How many rows of up to CHUNK classes stay in cache together. */
INLINE ptrdiff_t rows_at_once(ptrdiff_t n_classes) { return CHUNK / n_classes; }
#endif

/* ---- Runs of rows that go by element (elements.h) ----------------------------------------- */

/* n numbers of any format, rounded where REAL is the narrower. */
static void FN(fetch_any)(const char *src, Format format, int swapped, ptrdiff_t stride, ptrdiff_t n, REAL *dst)
{
#define FETCH(step, fmt, swap) \
    for (ptrdiff_t i = 0; i < n; i++) dst[i] = (REAL)load_number(src + i * (step), fmt, swap)
    const ptrdiff_t size = (ptrdiff_t)format_size(format);
    if ((format == FORMAT_F64) == (REAL_BITS == 64)) FN(fetch)(src, format, swapped, stride, n, dst);
    else if (swapped || stride != size) FETCH(stride, format, swapped);
    else if (format == FORMAT_F64) FETCH(8, FORMAT_F64, 0); /* a loop for each */
    else if (format == FORMAT_F32) FETCH(4, FORMAT_F32, 0);
    else if (format == FORMAT_F16) FETCH(2, FORMAT_F16, 0);
    else FETCH(2, FORMAT_BF16, 0);
#undef FETCH
}

/* Classes of a row of numbers of any format, from `start` on: in place where contiguous reals, else in scratch. */
static const REAL *FN(numbers)(const char *row, const Layout *layout, ptrdiff_t start, ptrdiff_t n, REAL *scratch)
{
    const char *src = row + start * layout->class_stride;
    if (layout->format == REAL_FORMAT && !layout->swapped && layout->class_stride == sizeof(REAL))
        return (const REAL *)src;
    FN(fetch_any)(src, layout->format, layout->swapped, layout->class_stride, n, scratch);
    return scratch;
}

/* The transformed logits of n classes of row i, in z; what the exps may not contain is -inf. */
static void FN(prepare_run)(const Tile *tile, const Rows *rows, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n, REAL *z)
{
    const Layout *from = &tile->logits_layout, *of_q = &tile->q_layout;
    const Formula *formula = tile->formula;
    const char *row = tile->logits + i * from->row_stride;
    const ptrdiff_t y = rows->label[i] - start;
    FN(fetch)(row + start * from->class_stride, from->format, from->swapped, from->class_stride, n, z);
    if (formula->transform != AS_GIVEN) FN(transform)(z, n, formula);
    if (formula->kind == MARGIN && y >= 0 && y < n) z[y] = -INFINITY;
    if (is_weighted(tile))
        FN(mask_zeros)(z, FN(numbers)(tile->q + i * of_q->row_stride, of_q, start, n, (REAL *)tile->second), n);
}

/* n classes of row i of q, or NULL where there is no q. */
INLINE const REAL *FN(q_run)(const Tile *tile, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n)
{
    if (!tile->q) return NULL;
    return FN(numbers)(tile->q + i * tile->q_layout.row_stride, &tile->q_layout, start, n, (REAL *)tile->second);
}

INLINE ptrdiff_t FN(place_in_run)(REAL most, Run q, ptrdiff_t n)
{
    ptrdiff_t j = 0;
    while (j + LANES <= n && FN(every_lane)(~FN(not_less)(FN(load_run)(q, j), FN(splat)(most)))) j += LANES;
    while (j < n && !(FN(number_of_run)(q, j) >= most)) j++;
    return j < n ? j : 0; /* nothing but NaN */
}

/* Where the largest of n numbers, which is `most`, stands first. */
static ptrdiff_t FN(place_of)(REAL most, Run q, ptrdiff_t n) { FOR_FORMAT(q, return FN(place_in_run)(most, q, n)); }

static const REAL *FN(all_terms)(const Formula *formula, const REAL *q, const REAL *w, ptrdiff_t n, REAL *d)
{
    const REAL even = (REAL)formula->even, share = (REAL)formula->share;
    for (ptrdiff_t j = 0; j < n; j++) d[j] = (even + share * q[j]) * (w ? w[j] : 1);
    return d;
}

/* The label of row i, where its target is a distribution: the class of the largest d_j, found by the q_j where these rise
 * together. Its term stays out of the sums; one-hot rows are then as exact as labels. */
static void FN(find_label)(const Tile *tile, Rows *rows, ptrdiff_t i)
{
    const REAL *w = (const REAL *)tile->formula->term_weight;
    REAL most = -INFINITY;
    rows->label[i] = 0;
    for (ptrdiff_t start = 0; start < tile->n_classes; start += CHUNK) {
        const ptrdiff_t n = FN(smaller)(tile->n_classes - start, CHUNK);
        const REAL *q = FN(q_run)(tile, i, start, n);
        if (!rises_with_q(tile->formula))
            q = FN(all_terms)(tile->formula, q, w ? w + start : NULL, n, (REAL *)tile->third);
        const ptrdiff_t largest = FN(place_of)(FN(chunk_max)(FN(reals)(q), n), FN(reals)(q), n);
        if (q[largest] > most) {
            most = q[largest];
            rows->label[i] = start + largest;
        }
    }
}

/* d_y, in float64: it is all there is where the target is one-hot. */
INLINE void FN(find_own_term)(const Tile *tile, Rows *rows, ptrdiff_t i)
{
    const Formula *formula = tile->formula;
    const double w = formula->class_weight ? formula->class_weight[rows->label[i]] : 1;
    const char *q = tile->q ? tile->q + i * tile->q_layout.row_stride + rows->label[i] * tile->q_layout.class_stride
                            : NULL;
    const double q_y = q ? load_number(q, tile->q_layout.format, tile->q_layout.swapped) : 0;
    const double label_share = rows->weight[i] == 0 ? 0 : formula->label_share; /* see replace_weightless */
    rows->own[i] = (label_share + (formula->even + formula->share * q_y)) * w;
}

/* Whether write_run writes to the gradient itself: to halves no terms. */
INLINE int FN(takes_runs)(const Tile *tile)
{
    const Layout *to = &tile->grad_layout;
    return !tile->formula->by_element && (FN(is_contiguous)(to) || (FN(is_run)(to) && !tile->formula->has_terms));
}

/* chunk_write of a run of row i, its loop once for each kind of terms and each format. */
static void FN(write_run)(const Tile *tile, const Rows *rows, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n,
                          const REAL *x, FN(Output) g, const FN(Exps) *exps, const FN(Factor) *f)
{
    const Formula *formula = tile->formula;
    const ptrdiff_t y = rows->label[i] - start;
    const REAL g_y = has_target(tile) ? (REAL)rows->beta[i] : 0;
#define WRITE_OF(exps, terms) FN(chunk_write)(x, g, n, exps, f, terms, y, g_y)
    if (!formula->has_terms) {
        if (exps) FOR_FORMAT(g, WRITE_OF(exps, NULL));
        else FOR_FORMAT(g, WRITE_OF(NULL, NULL));
        return;
    }
    g.format = REAL_FORMAT;
    FN(Terms) terms = {NULL, NULL, (REAL)rows->even[i], (REAL)rows->share[i]};
    if (exps) { /* in two steps: rows that leave the cache wait for memory anyway */
        REAL *e = (REAL *)tile->scratch;
        FN(chunk_write)(x, FN(output)(e), n, exps, NULL, NULL, -1, 0);
        x = e;
    }
    terms.q = FN(q_run)(tile, i, start, n);
    if (formula->term_weight) terms.w = (const REAL *)formula->term_weight + start;
    if (terms.q && terms.w) WRITE_OF(NULL, &terms);
    else if (terms.q) WRITE_OF(NULL, &((FN(Terms)){terms.q, NULL, terms.even, terms.share}));
    else if (terms.w) WRITE_OF(NULL, &((FN(Terms)){NULL, terms.w, terms.even, terms.share}));
    else WRITE_OF(NULL, &((FN(Terms)){NULL, NULL, terms.even, terms.share}));
#undef WRITE_OF
}

/* A run of row i of the gradient, to its array. */
static void FN(put_run)(const Tile *tile, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n, const REAL *g)
{
    const Layout *to = &tile->grad_layout;
    char *grad = tile->grad + i * to->row_stride + start * to->class_stride;
    FN(put)(g, to->format, to->swapped, to->class_stride, n, grad);
}

/* The gradient of a run of row i from its exps in g; its Hessian, if any, in the third scratch; both to their
 * arrays. */
static void FN(finish_run)(const Tile *tile, const Rows *rows, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n, REAL *g)
{
    const Layout *from = &tile->logits_layout, *to_hess = &tile->hess_layout;
    const Formula *formula = tile->formula;
    const ptrdiff_t y = rows->label[i] - start;
    REAL *h = tile->hess ? (REAL *)tile->third : NULL;

    if (rows->label[i] < 0) {
        memset(g, 0, (size_t)n * sizeof(REAL));
        if (h) memset(h, 0, (size_t)n * sizeof(REAL));
    } else {
        if (h) {
            const vec top = FN(splat)((REAL)rows->anchor[i]);
            const FN(Exps) exps = FN(exps_against)(top, FN(units)(&formula->temperature));
            const FN(Curve) row = {FN(factor)(rows->curve[i], rows->all[i], rows->all_low[i]),
                                   (REAL)(1 / rows->all[i]), (REAL)rows->lead[i], (REAL)rows->excess[i],
                                   FN(exps)(top, &exps)[0], (REAL)rows->hess_top[i]};
            FN(curves)(g, h, n, &row);
        }
        const FN(Factor) factor = FN(factor)(rows->alpha[i], rows->all[i], rows->all_low[i]);
        FN(write_run)(tile, rows, i, start, n, g, FN(output)(g), NULL, &factor);
        if (h && y >= 0 && y < n) h[y] = (REAL)rows->hess_target[i];
        if (formula->transform != AS_GIVEN) {
            const char *row = tile->logits + i * from->row_stride;
            FN(apply_slopes)(FN(contiguous_run)(row, from, start, n, (REAL *)tile->second), g, h, n, formula);
        }
    }
    FN(put_run)(tile, i, start, n, g);
    if (h) {
        char *hess = tile->hess + i * to_hess->row_stride + start * to_hess->class_stride;
        FN(put)(h, to_hess->format, to_hess->swapped, to_hess->class_stride, n, hess);
    }
}

INLINE void FN(write_logs)(Run x, FN(Output) out, ptrdiff_t n, vec m, vec log_sum)
{
    ptrdiff_t j = FN(before_streams)(out, n);
    if (j > 0) FN(put_lanes)(out, 0, j, (FN(load_run_n)(x, 0, j, 0) - m) - log_sum);
    for (; j + LANES <= n; j += LANES) FN(put_lanes)(out, j, LANES, (FN(load_run)(x, j) - m) - log_sum);
    if (j < n) FN(put_lanes)(out, j, n - j, (FN(load_run_n)(x, j, n - j, 0) - m) - log_sum);
}

/* Logarithms of softmaxes of a run of row i. The logits are still in place, also where they are to be overwritten. */
static void FN(write_log_run)(const Tile *tile, const Rows *rows, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n)
{
    const Layout *from = &tile->logits_layout, *to = &tile->grad_layout;
    REAL *scratch = (REAL *)tile->scratch;
    const int alike = FN(is_run)(from) && FN(is_run)(to) && from->format == to->format;
    const int takes = alike || FN(is_contiguous)(to);
    const char *row = tile->logits + i * from->row_stride;
    const vec m = FN(splat)((REAL)rows->anchor[i]), log_sum = FN(splat)((REAL)rows->log_sum[i]);
    Run x = {row + start * from->class_stride, from->format};
    FN(Output) out = FN(output_of_row)(tile, i, start, takes, scratch);
    if (!alike) x = FN(reals)(FN(contiguous_run)(row, from, start, n, scratch));
    FOR_FORMAT(out, FN(write_logs)(((Run){x.at, out.format}), out, n, m, log_sum));
    if (!takes) FN(put_run)(tile, i, start, n, scratch);
}

/* ---- Rows of one chunk -------------------------------------------------------------------- */

/* Where a row that is not used in place is kept. A tile of more than rows_at_once has no gradient to be written. */
INLINE REAL *FN(scratch_row)(const Tile *tile, ptrdiff_t i)
{
    return (REAL *)tile->scratch + i % rows_at_once(tile->n_classes) * tile->n_classes;
}

/* What row i of transformed logits z has of terms. */
static void FN(sweep_terms)(const Tile *tile, Rows *rows, ptrdiff_t i, const REAL *z, REAL m)
{
    if (tile->q) FN(find_label)(tile, rows, i);
    FN(find_own_term)(tile, rows, i);
    rows->mass[i] = rows->spread[i] = 0;
    FN(add_terms)(tile->formula, z, FN(q_run)(tile, i, 0, tile->n_classes), 1, 0, tile->n_classes, m, rows->label[i],
                  &rows->mass[i], &rows->spread[i]);
}

/* Where row i is staged: in the gradient, or where that takes the place of logits that may be wanted once more, is
 * streamed, or is no contiguous memory of reals, in the scratch. */
INLINE REAL *FN(staged_row)(const Tile *tile, ptrdiff_t i)
{
    const int overwrites = tile->grad == tile->logits && anchors_early(tile);
    if (overwrites || tile->streams || tile->formula->by_element || !FN(is_contiguous)(&tile->grad_layout))
        return FN(scratch_row)(tile, i);
    return (REAL *)(tile->grad + i * tile->grad_layout.row_stride);
}

/* n logits of row i, as the exps are taken of them: where they are, or in the scratch if they are transformed, no run, or
 * read by terms, which take reals. */
INLINE Run FN(logits_run)(const Tile *tile, const Rows *rows, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n, REAL *scratch)
{
    const Layout *from = &tile->logits_layout;
    const char *row = tile->logits + i * from->row_stride;
    if (tile->formula->by_element) {
        FN(prepare_run)(tile, rows, i, start, n, scratch);
        return FN(reals)(scratch);
    }
    if (tile->formula->has_terms || !FN(is_run)(from))
        return FN(reals)(FN(contiguous_run)(row, from, start, n, scratch));
    return (Run){row + start * from->class_stride, from->format};
}

INLINE Run FN(swept_row)(const Tile *tile, const Rows *rows, ptrdiff_t i)
{
    return FN(logits_run)(tile, rows, i, 0, tile->n_classes, FN(scratch_row)(tile, i));
}

/* The maximum of row i, and what is counted from there. */
static REAL FN(find_maximum)(const Tile *tile, Rows *rows, ptrdiff_t i, Run x)
{
    const REAL m = FN(chunk_max)(x, tile->n_classes);
    if (tile->formula->has_terms) FN(sweep_terms)(tile, rows, i, (const REAL *)x.at, m);
    if (takes_maximum(tile)) rows->label[i] = FN(place_of)(m, x, tile->n_classes);
    return m;
}

/* The anchor of a softmax whose largest logit is not known yet lies above its first logits x, as far as no exp loses
 * digits that its probability could show: then logits far above them are near it too. */
INLINE REAL FN(early_anchor)(const Tile *tile, Run x)
{
    const REAL above = (LEAST_LOG - EXP_LOWEST) / FN(units)(&tile->formula->temperature)->inverse;
    return FN(chunk_max)(x, FIRST_LOGITS) + above;
}

/* The sum of the exps of row i against an anchor; in `largest`, unless that is NULL, the largest logit. */
INLINE void FN(sum_row)(const Tile *tile, Rows *rows, ptrdiff_t i, Run x, REAL anchor, REAL *largest,
                        double *sum, double *error)
{
    const ptrdiff_t n = tile->n_classes;
    const FN(Exps) exps = FN(exps_against)(FN(splat)(anchor), FN(units)(&tile->formula->temperature));
    REAL *staged = FN(stages)(tile) ? FN(staged_row)(tile, i) : is_weighted(tile) ? FN(scratch_row)(tile, i) : NULL;
    const FN(Source) source = FN(source)(tile, i, 0);
    *sum = FN(chunk_sum_of)(x, staged, n, &exps, rows->label[i], largest, &source, error);
    if (tile->hess) {
        const REAL top = FN(exps)(FN(splat)(anchor), &exps)[0];
        const FN(TopSums) sums = FN(sum_below)(staged, n, top);
        rows->below[i] = sums.below + (sums.at_top - 1) * top;
    }
    if (!is_weighted(tile)) return;
    *sum = FN(weighted_sum)(staged, FN(q_run)(tile, i, 0, n), n);
    *error = 0;
}

/* Against the maxima: all of them first, the sums of a row then need not wait for its own. Or against early anchors,
 * where the sum itself shows whether that is near enough, or is NaN. After a row that was not, the next is looked at
 * before it is summed: less work if it is not either, and the same bits. */
static void FN(sweep_short_rows)(const Tile *tile, Rows *rows)
{
    const int early = anchors_early(tile);
    const ptrdiff_t n = tile->n_classes, at_once = early ? 1 : rows_at_once(n);
    const int has_label = has_target(tile) || takes_maximum(tile);
    const FN(Units) *units = FN(units)(&tile->formula->temperature);
    int looks_first = 0;
    REAL anchor[TILE], at_target[TILE];
    double sum[TILE], error[TILE];
    Run x[TILE];

    for (ptrdiff_t first = 0; first < tile->n_rows; first += at_once) {
        const ptrdiff_t end = FN(smaller)(first + at_once, tile->n_rows);
        for (ptrdiff_t i = first; i < end; i++) {
            anchor[i] = at_target[i] = 0;
            if (rows->label[i] < 0) continue;
            x[i] = FN(swept_row)(tile, rows, i);
            if (!early) anchor[i] = FN(find_maximum)(tile, rows, i, x[i]);
            at_target[i] = has_label ? FN(number_of_run)(x[i], rows->label[i]) : -INFINITY;
            if (early) anchor[i] = has_target(tile) ? at_target[i] : FN(early_anchor)(tile, x[i]);
        }
        for (ptrdiff_t i = first; i < end; i++) {
            sum[i] = error[i] = 0;
            if (rows->label[i] < 0) continue;
            if (early) {
                REAL m;
                if (looks_first) m = FN(chunk_max)(x[i], n);
                if (!looks_first || FN(is_near)(m, anchor[i], units)) {
                    FN(sum_row)(tile, rows, i, x[i], anchor[i], &m, &sum[i], &error[i]);
                    looks_first = !FN(is_near)(m, anchor[i], units) || sum[i] != sum[i];
                    if (!looks_first) continue;
                    x[i] = FN(swept_row)(tile, rows, i); /* its exps may be in its place */
                }
                anchor[i] = m;
            }
            FN(sum_row)(tile, rows, i, x[i], anchor[i], NULL, &sum[i], &error[i]);
        }
    }
    FN(finish_rows)(tile, anchor, at_target, sum, error, rows);
    if (!tile->hess) return;
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) rows->below[i] /= rows->all[i]; /* a share of them all */
}

static void FN(write_short_rows)(const Tile *tile, const Rows *rows)
{
    const ptrdiff_t n = tile->n_classes;
    const int takes = FN(takes_runs)(tile);
    FN(Factors) factors;
    if (tile->formula->kind == LOG_SOFTMAX) {
        for (ptrdiff_t i = 0; i < tile->n_rows; i++) FN(write_log_run)(tile, rows, i, 0, n);
        return;
    }
    if (tile->formula->by_element) {
        for (ptrdiff_t i = 0; i < tile->n_rows; i++)
            FN(finish_run)(tile, rows, i, 0, n, FN(scratch_row)(tile, i));
        return;
    }
    FN(set_factors)(rows, rows->alpha, tile->n_rows, &factors);
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        REAL *scratch = FN(scratch_row)(tile, i);
        const FN(Output) g = FN(output_of_row)(tile, i, 0, takes, scratch);
        const FN(Factor) factor = FN(factor_of_row)(&factors, i);
        if (rows->label[i] < 0) memset(g.at, 0, (size_t)n * format_size(g.format));
        else FN(write_run)(tile, rows, i, 0, n, FN(staged_row)(tile, i), g, NULL, &factor);
        if (!takes) FN(put_run)(tile, i, 0, n, scratch);
    }
}
