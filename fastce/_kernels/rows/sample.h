/* Draws from what temperature, top-k, top-p and min-p leave of the softmax of a row.
 *
 * Included once per REAL_BITS, after gather.h. A row is contiguous here. Without filters it is read once: each block of
 * it has a maximum and a sum of exps against that, a draw chooses a block and then an element of it, and only
 * that block's exps are computed again. With filters the classes that are left make a list:
 *
 *     top-k    x_j >= the k-th largest; ties of that stay
 *     top-p    in descending order, while the probability of those before is below p: masses are added up
 *              in BUCKETS of x, and only the bucket in which they reach p is put in order, as far as needed
 *     min-p    p_j >= min_p p_max
 *
 * in that order, each of the distribution that the one before has left. A draw is the inverse of the cumulative
 * distribution at one uniform number, which depends on the row's key and the draw's number alone.
 */
#ifndef FASTCE_SAMPLE_H
#define FASTCE_SAMPLE_H

enum {
    BUCKETS = 256,          /* each 1/8 wide in units of x / T: 32 in all, and exp(-32) of a row in the last */
    BUCKETS_IN_UNIT = 8,
    TABLES = 8              /* of masses: the sums of neighbours do not wait for each other */
};

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
    double *rest;           /* sum of exp((x_j - max) / T) but the maximum's, times SUM_SCALE */
    double *weight;         /* the whole sum against the row's maximum, times SUM_SCALE */
    double *mass;           /* a table of BUCKETS for each piece */
    Candidate *list;
    Best best;
    int is_nan;
    double m;
} Sampled;

INLINE int is_filtered(const Sampling *call)
{
    return call->top_k > 0 || call->top_p < 1 || call->min_p > 0;
}

/* Whether masses go into buckets: after top-k there are few enough to look at each. */
INLINE int is_bucketed(const Sampling *call) { return call->top_p < 1 && call->top_k == 0 && !call->greedy; }

/* Draw number i of a row, in [0, 1): G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators",
 * OOPSLA 2014. */
INLINE double uniform_of(uint64_t key, uint64_t i)
{
    uint64_t z = key + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* In descending order, as many of n candidates as it takes for their mass and what is above to reach the limit; they
 * come to the front. */
static ptrdiff_t select_mass(Candidate *list, ptrdiff_t n, double above, double limit)
{
    ptrdiff_t low = 0, high = n;
    while (low < high) {
        const ptrdiff_t place = low + split_candidates(list + low, high - low);
        double mass = above;
        for (ptrdiff_t i = low; i < place; i++) mass += list[i].mass;
        if (mass >= limit) high = place;
        else if (mass + list[place].mass >= limit) return place + 1;
        else {
            above = mass + list[place].mass;
            low = place + 1;
        }
    }
    return low;
}
#endif

/* What converts staged exps to exp((x - m) / T) in float64. */
INLINE double FN(unit_of)(const FN(Exps) *exps)
{
    const double unit = 1 / EXP_SCALE;
    return fma(unit, FN(correction)(exps, 0)[0], unit);
}

/* Blocks first to last of a row: their maxima, with sums where they are drawn from, and candidates for the top k. */
static void FN(look_at_blocks)(const Sampling *call, const REAL *x, ptrdiff_t first, ptrdiff_t last, Sampled *row,
                               Best *best, int *is_nan)
{
    const int sums = !call->greedy && !is_filtered(call);
    for (ptrdiff_t b = first; b < last; b++) {
        const ptrdiff_t n = FN(smaller)(call->n_classes - b * BLOCK, BLOCK);
        const REAL *block = x + b * BLOCK, m = FN(chunk_max)(block, n);
        row->max[b] = m;
        row->rest[b] = 0;
        if (m > best->threshold) FN(note_best)(block, n, b * BLOCK, best);
        if (!sums || m == -INFINITY) {
            Best none;
            begin_best(&none, NULL, 0); /* nothing is above its threshold */
            *is_nan |= FN(note_best)(block, n, 0, &none);
            continue;
        }
        FN(Open) piece = {0};
        piece.so_far.anchor = m;
        FN(set_exps)(&piece, m, &call->temperature);
        FN(add_exps)(&piece, block, NULL, n, FN(place_of)(m, block, n), (const char *)block);
        FN(close_sums)(&piece);
        row->rest[b] = piece.so_far.rest;
        *is_nan |= piece.so_far.rest != piece.so_far.rest;
    }
}

/* Adds the masses of a piece of the row to the table of that piece. */
static void FN(fill_buckets)(const Sampling *call, const REAL *x, ptrdiff_t piece, Sampled *row)
{
    const ptrdiff_t length = piece_length(call->n_classes), first = piece * length;
    const ptrdiff_t end = FN(smaller)(first + length, call->n_classes);
    const vec m = FN(splat)((REAL)row->m), last = FN(splat)(BUCKETS - 1);
    const FN(Exps) exps = FN(exps_against)(m, FN(units)(&call->temperature));
    const vec scale = FN(splat)(BUCKETS_IN_UNIT * exps.units.inverse);
    double table[TABLES][BUCKETS] = {{0}};
    for (ptrdiff_t at = first; at < end; at += 4 * LANES) {
        REAL mass[4 * LANES_COUNT];
        INT bucket[4 * LANES_COUNT];
        for (ptrdiff_t k = 0; k < 4 * LANES; k += LANES) {
            const ptrdiff_t count = end - at - k;
            const vec v = count >= LANES ? FN(load)(x + at + k)
                                         : FN(load_n)(x + at + k, count > 0 ? count : 0, -INFINITY);
            const uvec n = (uvec)(FN(lesser)((m - v) * scale, last) + TO_INTEGER) & (BUCKETS - 1);
            FN(store)(mass + k, FN(exps)(v, &exps));
            memcpy(bucket + k, &n, sizeof n);
        }
        for (int i = 0; i < 4 * LANES; i++) table[i % TABLES][bucket[i]] += mass[i];
    }
    const double unit = FN(unit_of)(&exps);
    for (int i = 0; i < BUCKETS; i++) {
        double mass = 0;
        for (int k = 0; k < TABLES; k++) mass += table[k][i];
        row->mass[piece * BUCKETS + i] = mass * unit;
    }
}

/* The candidates: all that are not below `least`. */
static ptrdiff_t FN(collect)(const Sampling *call, const REAL *x, REAL least, Sampled *row)
{
    const vec at_least = FN(splat)(least);
    const FN(Exps) exps = FN(exps_against)(FN(splat)((REAL)row->m), FN(units)(&call->temperature));
    const double unit = FN(unit_of)(&exps);
    const unsigned all = (1u << LANES) - 1;
    ptrdiff_t n = 0;
    for (ptrdiff_t at = 0; at < call->n_classes; at += LANES) {
        const ptrdiff_t count = call->n_classes - at;
        const vec v = count >= LANES ? FN(load)(x + at) : FN(load_n)(x + at, count, -INFINITY);
        unsigned bits = ~FN(bits_above)(at_least, v) & (count >= LANES ? all : (1u << count) - 1);
        if (!bits) continue;
        REAL e[LANES_COUNT];
        FN(store)(e, FN(exps)(v, &exps));
        for (; bits; bits &= bits - 1) {
            const int i = __builtin_ctz(bits);
            row->list[n++] = (Candidate){x[at + i], x[at + i] == row->m ? 1 : e[i] * unit, at + i};
        }
    }
    return n;
}

/* A logit that nothing whose probability is at least exp(-distance) times the largest one's is below, and, `above`, one
 * below which is nothing more probable than that. */
INLINE REAL FN(edge)(const Sampling *call, double m, double distance, int above)
{
    const double by = distance * call->temperature.divisor / call->temperature.factor, sign = above ? 1 : -1;
    return (REAL)(m - by + sign * (REAL_BITS == 32 ? 0x1p-20 : 0x1p-48) * (fabs(m) + by)); /* for rounding */
}

/* The list of those that the filters leave; returns how many. */
static ptrdiff_t FN(filter)(const Sampling *call, const REAL *x, Sampled *row)
{
    Candidate *list = row->list;
    ptrdiff_t n, n_sure = 0;
    double total = 0, sure = 0;
    if (call->top_k > 0) {
        settle_best(&row->best);
        n = FN(collect)(call, x, (REAL)row->best.threshold, row);
        for (ptrdiff_t i = 0; i < n; i++) total += list[i].mass;
    } else if (call->top_p < 1) {
        const ptrdiff_t n_pieces = count_pieces(call->n_classes);
        double mass[BUCKETS] = {0};
        for (ptrdiff_t piece = 0; piece < n_pieces; piece++)
            for (int i = 0; i < BUCKETS; i++) mass[i] += row->mass[piece * BUCKETS + i];
        for (int i = 0; i < BUCKETS; i++) total += mass[i];
        int bucket = 0;
        for (double above = mass[0]; bucket < BUCKETS - 1 && above < call->top_p * total; above += mass[bucket])
            bucket++;
        const int is_last = bucket == BUCKETS - 1;
        n = FN(collect)(call, x, is_last ? -INFINITY : FN(edge)(call, row->m, (bucket + 0.5) / BUCKETS_IN_UNIT, 0), row);
        const double edge = bucket ? FN(edge)(call, row->m, (bucket - 0.5) / BUCKETS_IN_UNIT, 1) : INFINITY;
        for (ptrdiff_t i = 0; i < n; i++) {
            if (!(list[i].x > edge)) continue;
            sure += list[i].mass;
            swap_candidates(list, i, n_sure++);
        }
    } else n = FN(collect)(call, x, FN(edge)(call, row->m, -log(call->min_p), 0), row);
    if (call->top_p < 1) {
        const double limit = call->top_p * total;
        n = n_sure + select_mass(list + n_sure, n - n_sure, sure, limit > 0x1p-1000 ? limit : 0x1p-1000);
    }
    ptrdiff_t kept = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        if (list[i].mass >= call->min_p) list[kept++] = list[i];
    return kept;
}

/* One of the elements of a block, where `share` of the block's mass is before it; its logit in z. */
static int64_t FN(draw_in_block)(const Sampling *call, const REAL *x, ptrdiff_t block, double before, double m,
                                 double *z)
{
    const ptrdiff_t start = block * BLOCK, n = FN(smaller)(call->n_classes - start, BLOCK), group = 4 * LANES;
    const FN(Exps) exps = FN(exps_against)(FN(splat)((REAL)m), FN(units)(&call->temperature));
    REAL e[BLOCK + 4 * LANES_COUNT];
    for (ptrdiff_t at = 0; at < n; at += LANES) {
        const vec v = n - at >= LANES ? FN(load)(x + start + at) : FN(load_n)(x + start + at, n - at, -INFINITY);
        FN(store)(e + at, FN(exps)(v, &exps));
    }
    before /= FN(unit_of)(&exps);
    ptrdiff_t last = 0, at = 0;
    for (; at < n; at += group) { /* whole groups are passed over */
        double sums[4] = {0};
        for (ptrdiff_t i = at; i < FN(smaller)(at + group, n); i++) sums[i & 3] += e[i];
        const double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        if (sum > before) break;
        if (sum > 0) last = at;
        before -= sum;
    }
    if (at >= n) { /* rounding: what was passed over last */
        at = last;
        before = INFINITY;
    }
    for (ptrdiff_t i = at; i < FN(smaller)(at + group, n); i++) {
        if (!(e[i] > 0)) continue;
        last = i;
        if (e[i] > before) break;
        before -= e[i];
    }
    *z = x[start + last];
    return start + last;
}

static void FN(draw_from_blocks)(const Sampling *call, const REAL *x, Sampled *row, uint64_t key, ptrdiff_t n_draws,
                                 int64_t *token, double *logprob)
{
    const ptrdiff_t n_blocks = count_blocks(call->n_classes);
    const Exps_f64 exps = exps_against_f64(splat_f64(row->m), &call->temperature.f64);
    const double unit = unit_of_f64(&exps);
    double others = 0, scale[LANES_F64];
    int top_met = 0;
    for (ptrdiff_t b = 0; b < n_blocks; b += LANES_F64) {
        const ptrdiff_t count = n_blocks - b < LANES_F64 ? n_blocks - b : LANES_F64;
        store_f64(scale, exps_f64(load_n_f64(row->max + b, count, -INFINITY), &exps) * unit);
        for (ptrdiff_t k = 0; k < count; k++) {
            const int is_top = row->max[b + k] == row->m;
            if (is_top) scale[k] = 1;
            row->weight[b + k] = (row->max[b + k] == -INFINITY ? 0 : SUM_SCALE + row->rest[b + k]) * scale[k];
            others += is_top && !top_met ? row->rest[b + k] : row->weight[b + k];
            top_met |= is_top;
        }
    }
    const double log_s = log_of_one_and(others, 0);
    for (ptrdiff_t i = 0; i < n_draws; i++) {
        double before = uniform_of(key, (uint64_t)i) * (SUM_SCALE + others), z;
        ptrdiff_t b = 0, last = 0;
        for (; b < n_blocks && !(row->weight[b] > before); b++) {
            before -= row->weight[b];
            if (row->weight[b] > 0) last = b;
        }
        if (b == n_blocks) { /* rounding */
            b = last;
            before = row->weight[b];
        }
        const double share = before / row->weight[b] * (1 + row->rest[b] / SUM_SCALE);
        token[i] = FN(draw_in_block)(call, x, b, share, row->max[b], &z);
        logprob[i] = log_probability(row->m, z, log_s, &call->temperature);
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

/* The largest logit of the row, once its blocks have been looked at. */
static void FN(find_row_maximum)(const Sampling *call, Sampled *row)
{
    const ptrdiff_t n_blocks = count_blocks(call->n_classes);
    row->m = -INFINITY;
    for (ptrdiff_t b = 0; b < n_blocks; b++) row->m = row->max[b] > row->m ? row->max[b] : row->m;
    if (row->is_nan || !(row->m > -INFINITY && row->m < INFINITY)) row->m = NAN;
}

/* The draws of a row whose maximum, and whose buckets if there are any, are known. */
static void FN(draw)(const Sampling *call, const REAL *x, Sampled *row, uint64_t key, ptrdiff_t n_draws, int64_t *token,
                     double *logprob)
{
    const double m = row->m;
    if (m != m || call->greedy) {
        int64_t best = -1;
        if (m == m) {
            ptrdiff_t b = 0;
            while (row->max[b] != m) b++;
            best = b * BLOCK + FN(place_of)((REAL)m, x + b * BLOCK, FN(smaller)(call->n_classes - b * BLOCK, BLOCK));
        }
        for (ptrdiff_t i = 0; i < n_draws; i++) {
            token[i] = best;
            logprob[i] = m == m ? 0 : NAN;
        }
    } else if (is_filtered(call)) FN(draw_from_list)(call, row, FN(filter)(call, x, row), key, n_draws, token, logprob);
    else FN(draw_from_blocks)(call, x, row, key, n_draws, token, logprob);
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
