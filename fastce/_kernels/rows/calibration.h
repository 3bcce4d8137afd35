/* What calibration asks of a row of logits or probabilities: how sure it is, whether it is right, and how the loss
 * changes with the temperature.
 *
 * Included once per REAL_BITS, after formats.h. A row is read from memory once and looked at again in cache.
 */
#ifndef FASTCE_CALIBRATION_H
#define FASTCE_CALIBRATION_H

enum { MOST_DIMS = 64, RUN = 32 }; /* vectors that are added up before they are widened */

/* A batch of rows, numbered in C order. */
typedef struct {
    const char *data;
    Format format;
    int swapped;
    int from_logits;
    int binary;                   /* one number a row, that of class 1 of two; as a logit, class 0 has 0 */
    ptrdiff_t n_rows, n_classes, class_stride;
    int n_dims;
    ptrdiff_t shape[MOST_DIMS], stride[MOST_DIMS];
    const ptrdiff_t *label;       /* -1: not used */
    const double *weight;         /* or NULL */
} Batch;

/* The derivatives of the loss by the inverse temperature: E[x] - x_y and Var[x], weighted and added up. */
typedef struct {
    double slope, curvature;
    ptrdiff_t bad;                /* a row whose probabilities are not defined; -1: none */
} Moments;

static const char *row_of(const Batch *batch, ptrdiff_t i)
{
    const char *p = batch->data;
    for (int dim = batch->n_dims - 1; dim > 0; dim--) {
        p += i % batch->shape[dim] * batch->stride[dim];
        i /= batch->shape[dim];
    }
    return batch->n_dims ? p + i * batch->stride[0] : p;
}

/* Of one number for class 1 of two: its probability, whether it is the target, and (p_1 - y)^2. */
static void score_binary(double x, int is_logit, ptrdiff_t y, int8_t *hit, double *brier, double *p)
{
    *p = is_logit ? 1 / (1 + exp(-x)) : x >= 0 && x <= 1 ? x : NAN;
    const double other = is_logit ? 1 / (1 + exp(x)) : 1 - x, wrong = y ? other : *p;
    *hit = y == 1;
    *brier = wrong * wrong;
}

#endif

#undef MOMENT_SCALE
#if REAL_BITS == 64
#define MOMENT_SCALE 1
#else
#define MOMENT_SCALE 0x1p-64f /* of exps: with it their products with squares of logits stay finite */
#endif

INLINE int FN(in_place)(const Batch *batch)
{
    return !batch->binary && batch->format == REAL_FORMAT && !batch->swapped && batch->class_stride == sizeof(REAL);
}

/* The classes of row i, in place where they are contiguous reals, else in scratch. */
INLINE const REAL *FN(row)(const Batch *batch, ptrdiff_t i, REAL *scratch)
{
    const char *src = row_of(batch, i);
    if (batch->binary) {
        scratch[1] = FN(load_one)(src, batch->format, batch->swapped);
        scratch[0] = batch->from_logits ? 0 : 1 - scratch[1];
        return scratch;
    }
    if (FN(in_place)(batch)) return (const REAL *)src;
    FN(fetch)(src, batch->format, batch->swapped, batch->class_stride, batch->n_classes, scratch);
    return scratch;
}

INLINE REAL FN(largest)(const REAL *x, ptrdiff_t n)
{
    vec most = FN(splat)(-INFINITY);
    for (ptrdiff_t j = 0; j < n; j += LANES)
        most = FN(larger)(most, n - j < LANES ? FN(load_n)(x + j, n - j, -INFINITY) : FN(load)(x + j));
    return FN(largest_lane)(most);
}

/* Sums of e, e d and e d^2 with d = x - max. Where a term's exp is 0 so is the product, also of a d that is -inf. */
typedef struct { vec sum, first, second; } FN(MomentSums);

INLINE void FN(add_terms)(vec x, vec max, const FN(Exps) *exps, FN(MomentSums) *a)
{
    const vec e = FN(exps)(x, exps) * (REAL)MOMENT_SCALE;
    const vec d = FN(larger)(x - max, FN(splat)(exps->units.lowest)), ed = e * d;
    a->sum += e;
    a->first += ed;
    a->second = FN(fma)(ed, d, a->second);
}

/* E[x] - x_y and Var[x] of a row; `distance` is that of x_y from the maximum. */
INLINE void FN(put_moments)(double sum, double first, double second, double distance, double weight, Moments *to)
{
    const double one = 1 / sum, mean = first * one;
    to->slope += weight * (mean - distance);
    to->curvature += weight * (second * one - mean * mean);
}

/* Sums are over RUN vectors in REAL, over runs in more. */
static void FN(add_row)(const REAL *x, ptrdiff_t n, ptrdiff_t y, double weight, const Temperature *t, Moments *to)
{
    const REAL m = FN(largest)(x, n);
    const vec max = FN(splat)(m);
    const FN(Exps) exps = FN(exps_against)(max, FN(units)(t));
    sum_vec sum = {{0}, {0}}, first = {{0}, {0}}, second = {{0}, {0}};
    for (ptrdiff_t start = 0; start < n; start += RUN * LANES) {
        const ptrdiff_t end = n - start < RUN * LANES ? n : start + RUN * LANES;
        FN(MomentSums) run = {{0}, {0}, {0}};
        for (ptrdiff_t j = start; j < end; j += LANES)
            FN(add_terms)(n - j < LANES ? FN(load_n)(x + j, n - j, -INFINITY) : FN(load)(x + j), max, &exps, &run);
        FN(add)(&sum, run.sum);
        FN(add)(&first, run.first);
        FN(add)(&second, run.second);
    }
    FN(put_moments)(FN(total)(sum), FN(total)(first), FN(total)(second), (double)x[y] - m, weight, to);
}

/* Sums of e and of e^2 over n classes. */
INLINE void FN(add_powers)(const REAL *x, ptrdiff_t n, const FN(Exps) *exps, sum_vec *sum, sum_vec *squares)
{
    for (ptrdiff_t start = 0; start < n; start += RUN * LANES) {
        const ptrdiff_t end = n - start < RUN * LANES ? n : start + RUN * LANES;
        vec s = {0}, s2 = {0};
        for (ptrdiff_t j = start; j < end; j += LANES) {
            const vec z = n - j < LANES ? FN(load_n)(x + j, n - j, -INFINITY) : FN(load)(x + j);
            const vec e = FN(exps)(z, exps) * (REAL)(1 / EXP_POWER);
            s += e;
            s2 = FN(fma)(e, e, s2);
        }
        FN(add)(sum, s);
        FN(add)(squares, s2);
    }
}

/* The first largest probability, whether it is the target's, and sum_j (p_j - y_j)^2. The target stays out of the sums:
 * 1 - p_y does not cancel. NaN where the probabilities are not defined. */
static void FN(score_logits)(const REAL *x, ptrdiff_t n, ptrdiff_t y, double *confidence, int8_t *hit, double *brier)
{
    const REAL before = FN(largest)(x, y), after = FN(largest)(x + y + 1, n - y - 1);
    const REAL m = before > after ? (before > x[y] ? before : x[y]) : (after > x[y] ? after : x[y]);
    const FN(Exps) exps = FN(exps_against)(FN(splat)(m), &FN(plain_units));
    const double scale = 1 / EXP_POWER, top = scale * FN(exps)(FN(splat)(m), &exps)[0];
    const double e_y = scale * FN(exps)(FN(splat)(x[y]), &exps)[0];
    sum_vec sum = {{0}, {0}}, squares = {{0}, {0}};
    FN(add_powers)(x, y, &exps, &sum, &squares);
    FN(add_powers)(x + y + 1, n - y - 1, &exps, &sum, &squares);
    const double rest = FN(total)(sum), total = rest + e_y;
    *hit = x[y] > before && x[y] >= after;
    *confidence = top / total;
    *brier = (FN(total)(squares) + rest * rest) / (total * total);
}

/* The same of probabilities, as they are. NaN where one is not in [0, 1]. No branch depends on which is the largest. */
static void FN(score_probabilities)(const REAL *p, ptrdiff_t n, ptrdiff_t y, double *confidence, int8_t *hit,
                                    double *brier)
{
    REAL most = 0;
    double squares = (1 - (double)p[y]) * (1 - (double)p[y]);
    int outside = 0;
    for (ptrdiff_t j = 0; j < n; j++) {
        outside |= !(p[j] >= 0) | !(p[j] <= 1);
        most = p[j] > most ? p[j] : most;
        squares += j == y ? 0 : (double)p[j] * p[j];
    }
    *hit = p[y] == most;
    for (ptrdiff_t j = 0; *hit && j < y; j++) *hit = p[j] < most;
    *confidence = outside ? NAN : most;
    *brier = outside ? NAN : squares;
}

INLINE double FN(weight_of)(const Batch *batch, ptrdiff_t i)
{
    return batch->label[i] < 0 ? 0 : batch->weight ? batch->weight[i] : 1;
}

/* Up to TILE rows of at most RUN classes, one in every lane. */
static void FN(add_tile)(const Batch *batch, ptrdiff_t begin, ptrdiff_t n_rows, const Temperature *t, REAL *scratch,
                         Moments *to)
{
    REAL x[RUN * TILE], max[TILE], sum[TILE], first[TILE], second[TILE];
    const ptrdiff_t n = batch->n_classes;
    if (FN(in_place)(batch) && batch->n_dims == 1)
        FN(rows_to_plane)(row_of(batch, begin), batch->stride[0], n_rows, n, x);
    else
        for (ptrdiff_t i = 0; i < n_rows; i++) {
            const REAL *row = FN(row)(batch, begin + i, scratch);
            for (ptrdiff_t c = 0; c < n; c++) x[c * TILE + i] = row[c];
        }
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        vec m = FN(load)(x + i);
        for (ptrdiff_t c = 1; c < n; c++) m = FN(larger)(m, FN(load)(x + c * TILE + i));
        const FN(Exps) exps = FN(exps_against)(m, FN(units)(t));
        FN(MomentSums) a = {{0}, {0}, {0}};
        for (ptrdiff_t c = 0; c < n; c++) FN(add_terms)(FN(load)(x + c * TILE + i), m, &exps, &a);
        FN(store)(max + i, m);
        FN(store)(sum + i, a.sum);
        FN(store)(first + i, a.first);
        FN(store)(second + i, a.second);
    }
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const double weight = FN(weight_of)(batch, begin + i);
        if (weight == 0) continue;
        const double distance = (double)x[batch->label[begin + i] * TILE + i] - max[i];
        FN(put_moments)(sum[i], first[i], second[i], distance, weight, to);
    }
}

static void FN(add_rows)(const Batch *batch, ptrdiff_t begin, ptrdiff_t end, const Temperature *t, REAL *scratch,
                         Moments *to)
{
    for (ptrdiff_t i = begin, next; i < end; i = next) {
        next = end - i < TILE ? end : i + TILE;
        if (batch->n_classes <= RUN) {
            Moments tile = {0, 0, -1};
            FN(add_tile)(batch, i, next - i, t, scratch, &tile);
            if (isfinite(tile.slope + tile.curvature)) {
                to->slope += tile.slope;
                to->curvature += tile.curvature;
                continue;
            }
        }
        for (; i < next; i++) {
            const double weight = FN(weight_of)(batch, i);
            if (weight == 0) continue;
            FN(add_row)(FN(row)(batch, i, scratch), batch->n_classes, batch->label[i], weight, t, to);
            if (to->bad < 0 && !isfinite(to->slope + to->curvature)) to->bad = i;
        }
    }
}

static void FN(score_rows)(const Batch *batch, ptrdiff_t begin, ptrdiff_t end, REAL *scratch, REAL *confidence,
                           int8_t *hit, double *brier)
{
    for (ptrdiff_t i = begin; i < end; i++) {
        const ptrdiff_t y = batch->label[i];
        double p;
        confidence[i] = 0;
        hit[i] = -1;
        brier[i] = 0;
        if (y < 0) continue;
        const REAL *x = FN(row)(batch, i, scratch);
        if (batch->binary) score_binary(x[1], batch->from_logits, y, &hit[i], &brier[i], &p);
        else if (batch->from_logits) FN(score_logits)(x, batch->n_classes, y, &p, &hit[i], &brier[i]);
        else FN(score_probabilities)(x, batch->n_classes, y, &p, &hit[i], &brier[i]);
        confidence[i] = (REAL)p;
    }
}
