/* Draws from a row, of blocks without filters, else of the list that filters leave: the inverse of the cumulative
 * distribution at one uniform number, which depends on the row's key and the draw's number alone. Of a block that
 * draws fall into the exps are computed again, once for all of them.
 *
 * Included once per REAL_BITS, after filters.h.
 */
#ifndef FASTCE_DRAW_H
#define FASTCE_DRAW_H

/* Draw number i of a row, in [0, 1): G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators",
 * OOPSLA 2014. */
INLINE double uniform_of(uint64_t key, uint64_t i)
{
    uint64_t z = key + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}
#endif

/* The exps of a block, computed again, and the sums of its groups. */
enum { FN(GROUP) = 4 * LANES_COUNT };
typedef struct { ptrdiff_t start, n; REAL e[BLOCK + FN(GROUP)]; double sum[BLOCK / FN(GROUP) + 1], unit; } FN(Held);

static void FN(hold)(const Sampling *call, const REAL *x, const Sampled *row, ptrdiff_t block, FN(Held) *held)
{
    const ptrdiff_t start = block * BLOCK, n = FN(block_size)(call, block);
    const FN(Exps) exps = FN(exps_of)(call, row->anchor[block]);
    for (ptrdiff_t at = 0; at < n; at += LANES) {
        const vec v = n - at >= LANES ? FN(load)(x + start + at) : FN(load_n)(x + start + at, n - at, -INFINITY);
        FN(store)(held->e + at, FN(exps)(v, &exps));
    }
    for (ptrdiff_t at = 0; at < n; at += FN(GROUP)) {
        double sums[4] = {0};
        for (ptrdiff_t i = at; i < FN(smaller)(at + FN(GROUP), n); i++) sums[i & 3] += held->e[i];
        held->sum[at / FN(GROUP)] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
    held->start = start;
    held->n = n;
    held->unit = FN(unit_of)(&exps) * SUM_SCALE;
}

/* One of the elements of a block, where `before` of the block's sum is before it. */
static int64_t FN(draw_in_block)(const FN(Held) *held, double before)
{
    const ptrdiff_t n = held->n;
    before /= held->unit;
    ptrdiff_t last = 0, at = 0;
    for (; at < n; at += FN(GROUP)) { /* whole groups are passed over */
        const double sum = held->sum[at / FN(GROUP)];
        if (sum > before) break;
        if (sum > 0) last = at;
        before -= sum;
    }
    if (at >= n) { /* rounding: what was passed over last */
        at = last;
        before = INFINITY;
    }
    for (ptrdiff_t i = at; i < FN(smaller)(at + FN(GROUP), n); i++) {
        if (!(held->e[i] > 0)) continue;
        last = i;
        if (held->e[i] > before) break;
        before -= held->e[i];
    }
    return held->start + last;
}

/* First the block of each draw, -1 - b as its token, and what is before it there; then block by block. */
static void FN(draw_from_blocks)(const Sampling *call, const REAL *x, const Sampled *row, uint64_t key,
                                 ptrdiff_t n_draws, int64_t *token, double *logprob)
{
    const ptrdiff_t n_blocks = count_blocks(call->n_classes);
    const double log_s = log_of_one_and(row->others, 0);
    FN(Held) held;
    for (ptrdiff_t i = 0; i < n_draws; i++) {
        double before = uniform_of(key, (uint64_t)i) * (SUM_SCALE + row->others);
        ptrdiff_t b = 0, last = 0;
        for (; b < n_blocks && !(row->weight[b] > before); b++) {
            before -= row->weight[b];
            if (row->weight[b] > 0) last = b;
        }
        if (b == n_blocks) { /* rounding */
            b = last;
            before = row->weight[b];
        }
        const double whole = row->sum[b] + (b == row->top ? SUM_SCALE : 0);
        token[i] = -1 - b;
        logprob[i] = before / row->weight[b] * whole;
    }
    for (ptrdiff_t first = 0; first < n_draws; first++) {
        const int64_t mark = token[first];
        if (mark >= 0) continue;
        FN(hold)(call, x, row, -1 - mark, &held);
        for (ptrdiff_t i = first; i < n_draws; i++) {
            if (token[i] != mark) continue;
            token[i] = FN(draw_in_block)(&held, logprob[i]);
            logprob[i] = log_probability(row->m, x[token[i]], log_s, &call->temperature);
        }
    }
}

static void FN(draw_from_list)(const Sampling *call, Sampled *row, ptrdiff_t n, uint64_t key, ptrdiff_t n_draws,
                               int64_t *token, double *logprob)
{
    Candidate *list = row->list;
    double others = 0, sum = 0;
    int top_met = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const int is_top = !top_met && list[i].x == row->m;
        top_met |= is_top;
        if (!is_top) others += list[i].mass;
        sum += list[i].mass;
        list[i].mass = sum;
    }
    const double log_s = log1p(others);
    for (ptrdiff_t i = 0; i < n_draws; i++) {
        const double before = uniform_of(key, (uint64_t)i) * sum;
        ptrdiff_t low = 0, high = n - 1; /* the first whose sum is more */
        while (low < high) {
            const ptrdiff_t middle = low + (high - low) / 2;
            if (list[middle].mass > before) high = middle;
            else low = middle + 1;
        }
        token[i] = list[low].index;
        logprob[i] = log_probability(row->m, list[low].x, log_s, &call->temperature);
    }
}

/* The draws of a row whose maximum, and whose candidates, if there are any, are known. */
static void FN(draw)(const Sampling *call, const REAL *x, Sampled *row, uint64_t key, ptrdiff_t n_draws, int64_t *token,
                     double *logprob)
{
    const double m = row->m;
    if (m != m || call->greedy) {
        int64_t best = -1;
        const REAL *block = x + row->top * BLOCK;
        if (m == m) best = row->top * BLOCK + FN(place_of)((REAL)m, FN(reals)(block), FN(block_size)(call, row->top));
        for (ptrdiff_t i = 0; i < n_draws; i++) {
            token[i] = best;
            logprob[i] = m == m ? 0 : NAN;
        }
    } else if (is_filtered(call)) FN(draw_from_list)(call, row, FN(filter)(call, x, row), key, n_draws, token, logprob);
    else FN(draw_from_blocks)(call, x, row, key, n_draws, token, logprob);
}
