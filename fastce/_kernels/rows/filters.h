/* What top-k, top-p and min-p leave of a row, as a list:
 *
 *     top-k    x_j >= the k-th largest; ties of that stay
 *     top-p    in descending order, while the probability of those before is below p
 *     min-p    p_j >= min_p p_max
 *
 * in that order, each of the distribution that the one before has left. Included once per REAL_BITS, after sample.h.
 *
 * Of each there is a logit below which nothing is left, and the candidates, those that are not below it, are collected
 * from the blocks whose maximum is not either. For top-p it is the one below which all classes together, were they as
 * large as it, had less than 1 - p; as that may leave a tenth of the row, a nearer one is guessed from some of it, and
 * taken back where the candidates' mass is less than p.
 */
#ifndef FASTCE_FILTERS_H
#define FASTCE_FILTERS_H

enum {
    BUCKETS = 256,       /* of masses up to 1, BUCKETS_IN_OCTAVE for a factor of 2; the last has all that are smaller */
    BUCKETS_IN_OCTAVE_BITS = 3,
    AT_ONCE = 4,         /* candidates */
    FEW_CANDIDATES = 32, /* for buckets, and classes for a guess */
    GUESSED_FROM = 1024  /* classes */
};

/* The least number that is above those of bucket number b, counted from 0, and of all after it. */
INLINE double top_of_bucket(int b)
{
    const double one = 1;
    double mass;
    uint64_t bits;
    if (b == 0) return INFINITY;
    memcpy(&bits, &one, sizeof bits);
    bits -= (uint64_t)b << (52 - BUCKETS_IN_OCTAVE_BITS);
    memcpy(&mass, &bits, sizeof mass);
    return mass;
}

INLINE int bucket_of(double mass)
{
    const double one = 1;
    int64_t of_one, bits;
    memcpy(&of_one, &one, sizeof one);
    memcpy(&bits, &mass, sizeof bits);
    const int64_t below = (of_one - 1 - bits) >> (52 - BUCKETS_IN_OCTAVE_BITS);
    return (int)(below < 0 ? 0 : below < BUCKETS - 1 ? below : BUCKETS - 1);
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

static double mass_of(const Candidate *list, ptrdiff_t n)
{
    double mass = 0;
    for (ptrdiff_t i = 0; i < n; i++) mass += list[i].mass;
    return mass;
}

/* The same, of many first whole buckets, and only those whose own mass is `least` or more. */
static ptrdiff_t select_nucleus(Candidate *list, ptrdiff_t n, double limit, double least)
{
    double sure = 0, top = INFINITY, end = 0;
    if (n > FEW_CANDIDATES) {
        double in_bucket[BUCKETS] = {0};
        int bucket = 0;
        for (ptrdiff_t i = 0; i < n; i++) in_bucket[bucket_of(list[i].mass)] += list[i].mass;
        for (; bucket < BUCKETS - 1 && sure + in_bucket[bucket] < limit; bucket++) sure += in_bucket[bucket];
        top = top_of_bucket(bucket);
        end = bucket < BUCKETS - 1 ? top_of_bucket(bucket + 1) : 0;
    }
    ptrdiff_t n_near = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        if ((list[i].mass >= end) & (list[i].mass < top)) swap_candidates(list, i, n_near++);
    const ptrdiff_t n_taken = select_mass(list, n_near, sure, limit);
    ptrdiff_t kept = 0;
    for (ptrdiff_t i = 0; i < n; i++) { /* without a branch */
        const Candidate a = list[i];
        list[kept] = a;
        kept += ((i < n_taken) | (a.mass >= top)) & (a.mass >= least);
    }
    return kept;
}
#endif

/* Bit i: x[i] >= least, of the first 64 of n numbers, none NaN. */
INLINE uint64_t FN(not_below)(const REAL *x, ptrdiff_t n, vec least)
{
    uint64_t below = 0;
    if (n >= 64) {
        for (ptrdiff_t k = 0; k < 64; k += LANES) below |= (uint64_t)FN(bits_above)(least, FN(load)(x + k)) << k;
        return ~below;
    }
    for (ptrdiff_t k = 0; k < n; k++) below |= (uint64_t)(x[k] < least[0]) << k;
    return ~below & ~(~(uint64_t)0 << n);
}

/* The candidates of blocks first to last. */
static ptrdiff_t FN(collect)(const Sampling *call, const REAL *x, ptrdiff_t first, ptrdiff_t last, double least,
                             const Sampled *row, Candidate *list)
{
    const vec at_least = FN(splat)((REAL)least);
    const FN(Exps) exps = FN(exps_of)(call, row->m);
    const double unit = FN(unit_of)(&exps);
    ptrdiff_t n = 0;
    for (ptrdiff_t b = first; b < last; b++) {
        if (row->max[b] < least) continue;
        const REAL *block = x + b * BLOCK;
        const ptrdiff_t end = FN(block_size)(call, b);
        REAL found[BLOCK + LANES_COUNT], e[BLOCK + LANES_COUNT];
        short place[BLOCK + AT_ONCE];
        ptrdiff_t n_found = 0;
        for (ptrdiff_t at = 0; at < end; at += 64) {
            uint64_t bits = FN(not_below)(block + at, end - at, at_least);
            const int n_bits = __builtin_popcountll(bits);
            for (int k = 0; k < n_bits; k += AT_ONCE) { /* more than there are, for fewer branches that go wrong */
                for (int i = 0; i < AT_ONCE; i++, bits &= bits - 1)
                    place[n_found + k + i] = (short)(at + __builtin_ctzll(bits | (uint64_t)1 << 63));
            }
            n_found += n_bits;
        }
        for (ptrdiff_t k = 0; k < n_found; k++) found[k] = block[place[k]];
        for (ptrdiff_t k = 0; k < n_found; k += LANES) FN(store)(e + k, FN(exps)(FN(load)(found + k), &exps));
        for (ptrdiff_t k = 0; k < n_found; k++)
            list[n++] = (Candidate){found[k], found[k] == row->m ? 1 : e[k] * unit, b * BLOCK + place[k]};
    }
    return n;
}

/* A logit that nothing whose probability is at least `share` of the largest one's is below. */
INLINE double FN(edge)(const Sampling *call, double m, double share)
{
    const double by = (share < 1 ? -log(share) : 0) * call->temperature.divisor / call->temperature.factor;
    return (REAL)(m - by - (REAL_BITS == 32 ? 0x1p-20 : 0x1p-48) * (fabs(m) + by)); /* for rounding */
}

/* One below which some classes, as far apart as it takes, let expect no more than `mass`. */
static double FN(guess_least)(const Sampling *call, const REAL *x, const Sampled *row, double mass)
{
    const ptrdiff_t apart = LANES * ((call->n_classes - 1) / GUESSED_FROM + 1);
    const FN(Exps) exps = FN(exps_of)(call, row->m);
    const double unit = FN(unit_of)(&exps);
    double table[BUCKETS] = {0};
    for (ptrdiff_t at = 0; at + LANES <= call->n_classes; at += apart) {
        REAL e[LANES_COUNT];
        FN(store)(e, FN(exps)(FN(load)(x + at), &exps));
        for (int i = 0; i < LANES; i++) table[bucket_of(e[i] * unit)] += e[i] * unit;
    }
    int bucket = BUCKETS - 1;
    double below = 0;
    for (; bucket > 0 && (below += table[bucket] * apart / LANES) <= mass; bucket--);
    return bucket == BUCKETS - 1 ? -INFINITY : FN(edge)(call, row->m, top_of_bucket(bucket + 1));
}

static void FN(find_least)(const Sampling *call, const REAL *x, Sampled *row)
{
    if (call->top_k > 0) {
        settle_best(&row->best);
        row->least = row->best.threshold;
    } else if (call->top_p < 1) {
        const double outside = (1 - call->top_p) * (1 + row->others / SUM_SCALE);
        row->surely_least = FN(edge)(call, row->m, outside / call->n_classes);
        row->least = row->surely_least;
        if (call->n_classes > FEW_CANDIDATES) {
            const double guessed = FN(guess_least)(call, x, row, 0.75 * outside);
            row->least = guessed > row->least ? guessed : row->least;
        }
    } else row->least = FN(edge)(call, row->m, call->min_p);
}

/* The largest logit of the row and what may be left of it, once its blocks have been looked at. */
static void FN(conclude_blocks)(const Sampling *call, const REAL *x, Sampled *row)
{
    const ptrdiff_t n_blocks = count_blocks(call->n_classes);
    row->top = row->n = 0;
    for (ptrdiff_t b = 1; b < n_blocks; b++) row->top = row->max[b] > row->max[row->top] ? b : row->top;
    row->m = row->max[row->top];
    if (row->is_nan || !(row->m > -INFINITY && row->m < INFINITY)) row->m = NAN;
    if (row->m != row->m || call->greedy) return;
    if (has_sums(call)) FN(weigh_blocks)(call, x, row);
    if (is_filtered(call)) FN(find_least)(call, x, row);
}

/* Those of the candidates that the filters leave, at the front of the list; returns how many. */
static ptrdiff_t FN(filter)(const Sampling *call, const REAL *x, Sampled *row)
{
    Candidate *list = row->list;
    ptrdiff_t n = row->n, kept = 0;
    if (call->top_p < 1) {
        const double mass = mass_of(list, n), of = call->top_k > 0 ? mass : 1 + row->others / SUM_SCALE;
        const double limit = call->top_p * of * (1 - (REAL_BITS == 32 ? 0x1p-20 : 0x1p-48)); /* reached but for rounding */
        if (mass < limit && row->least > row->surely_least)
            n = FN(collect)(call, x, 0, count_blocks(call->n_classes), row->surely_least, row, list);
        return select_nucleus(list, n, limit > 0x1p-1000 ? limit : 0x1p-1000, call->min_p);
    }
    for (ptrdiff_t i = 0; i < n; i++)
        if (list[i].mass >= call->min_p) list[kept++] = list[i];
    return kept;
}
