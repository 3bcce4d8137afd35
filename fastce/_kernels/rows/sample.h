/* Draws from what temperature, top-k, top-p and min-p leave of the softmax of a row: what is known of a row before.
 *
 * Included once per REAL_BITS, after gather.h. A row is contiguous here. It is read in blocks once: for their maxima,
 * and for sums of exps where the mass of all of it is asked for, without filters and for top-p. Exps are taken
 * against an anchor of which only the exponent of an exp depends (vmath.h): the maximum of the row's first block, which
 * each thread looks up for itself, or a block's own where that is too far above. Only the block that holds the
 * row's maximum is summed again, without that: a sure row keeps its digits.
 *
 * filters.h makes a list of what filters leave, draw.h draws from that or from the blocks.
 */
#ifndef FASTCE_SAMPLE_H
#define FASTCE_SAMPLE_H

typedef struct {
    ptrdiff_t n_classes;
    Layout layout;
    Temperature temperature;
    int greedy;             /* temperature 0: the maximum */
    ptrdiff_t top_k;        /* 0: all */
    double top_p, min_p;    /* 1 and 0: all */
} Sampling;

/* What is known of a row, and where: arrays of one entry per block of BLOCK classes, and the candidates. */
typedef struct {
    double *max;
    double *anchor;
    double *sum;            /* of exp((x_j - anchor) / T), times SUM_SCALE; of the top block without m's own */
    double *weight;         /* the same against m, m's own included */
    Candidate *list;
    ptrdiff_t n;            /* candidates */
    Best best;
    int is_nan;
    double m;               /* the largest logit */
    ptrdiff_t top;          /* the first block that holds it */
    double others;          /* sum of exp((x_j - m) / T) but m's own, times SUM_SCALE */
    double least;           /* no candidate is below it, */
    double surely_least;    /* and nothing below this is left by top-p */
} Sampled;

INLINE int is_filtered(const Sampling *call)
{
    return call->top_k > 0 || call->top_p < 1 || call->min_p > 0;
}

/* Whether the mass of the whole row is asked for. */
INLINE int has_sums(const Sampling *call)
{
    return !call->greedy && call->top_k == 0 && (call->top_p < 1 || call->min_p == 0);
}
#endif

INLINE ptrdiff_t FN(block_size)(const Sampling *call, ptrdiff_t b)
{
    return FN(smaller)(call->n_classes - b * BLOCK, BLOCK);
}

/* What converts staged exps to exp((x - m) / T) in float64. */
INLINE double FN(unit_of)(const FN(Exps) *exps)
{
    const double unit = 1 / EXP_SCALE;
    return fma(unit, FN(correction)(exps, 0)[0], unit);
}

INLINE FN(Exps) FN(exps_of)(const Sampling *call, double anchor)
{
    return FN(exps_against)(FN(splat)((REAL)anchor), FN(units)(&call->temperature));
}

static REAL FN(largest_or_nan)(const REAL *x, ptrdiff_t n, int *is_nan)
{
    vec most = FN(splat)(-INFINITY);
    ivec nan = {0};
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const vec v = n - j >= LANES ? FN(load)(x + j) : FN(load_n)(x + j, n - j, -INFINITY);
        most = FN(larger)(v, most);
        nan |= (ivec)(v != v);
    }
    *is_nan |= !FN(every_lane)(FN(differ)(nan, (ivec){0} - 1));
    return FN(largest_lane)(most);
}

INLINE double FN(sum_and_largest)(const REAL *x, ptrdiff_t n, const FN(Exps) *exps, REAL *largest)
{
    const ptrdiff_t group = 4 * LANES;
    vec most = FN(splat)(-INFINITY);
    sum_vec sum = {{0}, {0}};
    double error;
    ptrdiff_t j = 0;
    for (; j + group <= n; j += group) {
        FN(ask_for)(x + j, AHEAD_ROWS, group * sizeof(REAL), 0);
        FN(add_group)(&sum, &most, FN(reals)(x), j, NULL, group, exps, 0, 0);
    }
    if (j < n) FN(add_group)(&sum, &most, FN(reals)(x), j, NULL, n - j, exps, 0, 0);
    *largest = FN(largest_lane)(most);
    return FN(total_of_positive)(sum, &error);
}

static double FN(sum_of_block)(const REAL *x, ptrdiff_t n, const FN(Exps) *given, REAL *largest)
{
    FN(Exps) exps = *given;
    if (exps.base[0] != 0) return FN(sum_and_largest)(x, n, &exps, largest);
    exps.base = (vec){0}; /* as in `near_exps`, whatever the temperature: a constant costs nothing */
    return FN(sum_and_largest)(x, n, &exps, largest);
}

/* Blocks first to last of a row: their maxima, with sums where they are asked for, and candidates for the top k. */
static void FN(look_at_blocks)(const Sampling *call, const REAL *x, ptrdiff_t first, ptrdiff_t last, Sampled *row,
                               Best *best, int *is_nan)
{
    for (ptrdiff_t b = first; b < last && !has_sums(call); b++) {
        const ptrdiff_t n = FN(block_size)(call, b);
        row->max[b] = FN(largest_or_nan)(x + b * BLOCK, n, is_nan);
        if (row->max[b] <= best->threshold) continue;
        FN(begin_threshold)(x + b * BLOCK, n, best);
        FN(note_best)(x + b * BLOCK, n, b * BLOCK, best);
    }
    if (!has_sums(call)) return;
    const REAL of_row = FN(chunk_max)(FN(reals)(x), FN(block_size)(call, 0));
    const FN(Exps) against_row = FN(exps_of)(call, of_row == -INFINITY ? 0 : of_row);
    const double unit_of_row = FN(unit_of)(&against_row) * SUM_SCALE;
    for (ptrdiff_t b = first; b < last; b++) {
        const ptrdiff_t n = FN(block_size)(call, b);
        REAL largest, anchor = of_row;
        double sum = FN(sum_of_block)(x + b * BLOCK, n, &against_row, &largest) * unit_of_row;
        if (sum != sum || !FN(is_near)(largest, anchor, FN(units)(&call->temperature))) {
            anchor = largest == -INFINITY ? 0 : largest;
            const FN(Exps) exps = FN(exps_of)(call, anchor);
            sum = FN(sum_of_block)(x + b * BLOCK, n, &exps, &largest) * (FN(unit_of)(&exps) * SUM_SCALE);
        }
        row->max[b] = largest;
        row->anchor[b] = anchor;
        row->sum[b] = sum;
        *is_nan |= sum != sum;
    }
}

/* Sums the top block again, and weighs all of them. */
static void FN(weigh_blocks)(const Sampling *call, const REAL *x, Sampled *row)
{
    const ptrdiff_t n_blocks = count_blocks(call->n_classes), top = row->top, n = FN(block_size)(call, top);
    const REAL m = (REAL)row->m, *block = x + top * BLOCK;
    const FN(Exps) exps = FN(exps_of)(call, m);
    const FN(Source) source = {FN(in_cache)(block), NULL, NULL, sizeof(REAL), 0, 0};
    const Run run = FN(reals)(block);
    double error, sum = FN(chunk_sum_of)(run, NULL, n, &exps, FN(place_of)(m, run, n), NULL, &source, &error);
    row->anchor[top] = m;
    row->sum[top] = sum * (FN(unit_of)(&exps) * SUM_SCALE);

    const Exps_f64 wide = exps_against_f64(splat_f64(row->m), &call->temperature.f64);
    const double unit = unit_of_f64(&wide);
    row->others = 0;
    for (ptrdiff_t b = 0; b < n_blocks; b += LANES_F64) {
        const ptrdiff_t count = n_blocks - b < LANES_F64 ? n_blocks - b : LANES_F64;
        double scale[LANES_F64];
        store_f64(scale, exps_f64(load_n_f64(row->anchor + b, count, -INFINITY), &wide) * unit);
        for (ptrdiff_t k = b; k < b + count; k++) {
            const double of_block = row->anchor[k] == row->m ? row->sum[k] : row->sum[k] * scale[k - b];
            row->weight[k] = row->sum[k] > 0 ? of_block : 0; /* where all are -inf the anchor is any number */
            row->others += row->weight[k];
        }
    }
    row->weight[top] += SUM_SCALE;
}

/* Rows as contiguous reals: where they are, or in `memory`. */
static const REAL *FN(contiguous_rows)(const Sampling *call, const char *rows, ptrdiff_t n_rows, REAL *memory)
{
    const Layout *from = &call->layout;
    const ptrdiff_t n = call->n_classes;
    if (FN(is_contiguous)(from)) return (const REAL *)rows;
    for (ptrdiff_t at = 0; is_panel(from) && at < n; at += BLOCK)
        FN(fetch_panel)(from, rows, n_rows, at, FN(smaller)(n - at, BLOCK), memory + at, n);
    for (ptrdiff_t i = 0; !is_panel(from) && i < n_rows; i++)
        FN(fetch)(rows + i * from->row_stride, from->format, from->swapped, from->class_stride, n, memory + i * n);
    return memory;
}
