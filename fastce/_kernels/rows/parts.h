/* Rows whose logits exist a part of the classes at a time: sums of all parts against a running anchor, then the gradient
 * of each part, whose logits somebody has computed again.
 *
 * Included once per REAL_BITS, after pieces.h, whose pieces share one anchor from the start. Here it is the largest logit
 * so far, the target's included, which ends as it does for whole rows: at the target where that leads, else at the
 * maximum. Where it rises, what was summed is multiplied by a power of two, exactly: anchors move the exponents of exps
 * and not their digits (vmath.h). Only beyond FAR is it the exp of a difference.
 *
 * The logits of a part are contiguous REALs and the row code's own; `logits` of a tile, and `grad` in the same place, point
 * to where class 0 of its first row would be. Rows keep sums in `rest` and `rest_low` until `finish_parts`.
 */

/* What takes staged exps from one anchor to a larger one. */
static double FN(lowering)(REAL from, REAL to, const Temperature *temperature)
{
    if (from == -INFINITY) return 0; /* nothing yet, or NaN */
    const FN(Exps) a = FN(exps_against)(FN(splat)(from), FN(units)(temperature));
    const FN(Exps) b = FN(exps_against)(FN(splat)(to), FN(units)(temperature));
    if (a.base[0] == 0 && b.base[0] == 0) return ldexp(1, (int)((b.bias[0] - a.bias[0]) / STEPS));
    const double offsets = ((double)b.offset.high[0] - a.offset.high[0]) + ((double)b.offset.low[0] - a.offset.low[0]);
    return exp(((double)from - to) / temperature->divisor * temperature->factor + offsets);
}

static void FN(raise_anchor)(const Tile *tile, Rows *rows, ptrdiff_t i, REAL m)
{
    const REAL before = (REAL)rows->anchor[i];
    if (!(m > before)) return;
    const double factor = FN(lowering)(before, m, &tile->formula->temperature);
    rows->rest[i] *= factor;
    rows->rest_low[i] *= factor;
    if (rows->mass[i] != 0) rows->spread[i] += rows->mass[i] * (SPREAD_SCALE * m - SPREAD_SCALE * rows->anchor[i]);
    rows->anchor[i] = m;
}

static void FN(begin_parts)(const Tile *tile, Rows *rows)
{
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        rows->anchor[i] = rows->at_target[i] = -INFINITY;
        rows->rest[i] = rows->rest_low[i] = rows->mass[i] = rows->spread[i] = 0;
        if (!tile->formula->has_terms || rows->label[i] < 0) continue;
        if (tile->q) FN(find_label)(tile, rows, i);
        FN(find_own_term)(tile, rows, i);
    }
}

/* Adds a run of classes to the sums of row i. Its target becomes -inf on the way: it has no part in them. */
static void FN(sweep_run)(const Tile *tile, Rows *rows, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n)
{
    const Formula *formula = tile->formula;
    REAL *z = (REAL *)(tile->logits + i * tile->logits_layout.row_stride) + start;
    const ptrdiff_t y = rows->label[i] - start;
    if (formula->transform != AS_GIVEN) FN(transform)(z, n, formula);
    if (y >= 0 && y < n) {
        rows->at_target[i] = z[y];
        FN(raise_anchor)(tile, rows, i, z[y]);
        z[y] = -INFINITY;
    }
    FN(raise_anchor)(tile, rows, i, FN(chunk_max)(FN(reals)(z), n));
    const REAL m = (REAL)rows->anchor[i], anchor = m == -INFINITY ? 0 : m; /* against 0 only NaN counts */
    const FN(Exps) exps = FN(exps_against)(FN(splat)(anchor), FN(units)(&formula->temperature));
    const FN(Source) source = FN(source)(tile, i, start);
    double error, sum = FN(chunk_sum_of)(FN(reals)(z), NULL, n, &exps, -1, NULL, &source, &error);
    FN(add_number)(&rows->rest[i], &rows->rest_low[i], sum, error);
    if (!formula->has_terms) return;
    double mass = 0, spread = 0;
    FN(add_terms)(formula, z, FN(q_run)(tile, i, start, n), 0, start, n, m, rows->label[i], &mass, &spread);
    rows->mass[i] += mass;
    if (m != -INFINITY) rows->spread[i] += spread;
}

static void FN(sweep_part)(const Tile *tile, Rows *rows, ptrdiff_t start, ptrdiff_t end)
{
    for (ptrdiff_t i = 0; i < tile->n_rows; i++)
        for (ptrdiff_t at = start; rows->label[i] >= 0 && at < end; at += CHUNK)
            FN(sweep_run)(tile, rows, i, at, FN(smaller)(end - at, CHUNK));
}

/* Before the epilogue. */
static void FN(finish_parts)(const Tile *tile, Rows *rows)
{
    REAL anchor[TILE], at_target[TILE];
    double sum[TILE], error[TILE];
    for (ptrdiff_t i = 0; i < TILE; i++) {
        const int used = i < tile->n_rows && rows->label[i] >= 0;
        anchor[i] = used ? (REAL)rows->anchor[i] : 0;
        at_target[i] = used ? (REAL)rows->at_target[i] : 0;
        sum[i] = used ? rows->rest[i] : 0;
        error[i] = used ? rows->rest_low[i] : 0;
    }
    FN(finish_rows)(tile, anchor, at_target, sum, error, rows);
}

/* The gradient of a part in the place of its logits. */
static void FN(write_part)(const Tile *tile, const Rows *rows, ptrdiff_t start, ptrdiff_t end)
{
    const Formula *formula = tile->formula;
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        const FN(Exps) exps = FN(exps_against)(FN(splat)((REAL)rows->anchor[i]), FN(units)(&formula->temperature));
        const FN(Factor) factor = FN(factor)(rows->alpha[i], rows->all[i], rows->all_low[i]);
        REAL *z = (REAL *)(tile->grad + i * tile->grad_layout.row_stride);
        for (ptrdiff_t at = start; at < end; at += CHUNK) {
            const ptrdiff_t n = FN(smaller)(end - at, CHUNK);
            REAL *g = (REAL *)tile->scratch;
            if (rows->label[i] < 0) memset(z + at, 0, (size_t)n * sizeof(REAL));
            else if (formula->by_element) {
                FN(prepare_run)(tile, rows, i, at, n, g);
                FN(chunk_write)(g, FN(output)(g), n, &exps, NULL, NULL, -1, 0);
                FN(finish_run)(tile, rows, i, at, n, g);
            } else FN(write_run)(tile, rows, i, at, n, z + at, FN(output)(z + at), &exps, &factor);
        }
    }
}
