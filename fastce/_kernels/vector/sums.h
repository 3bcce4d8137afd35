/* Sums of float64 that hold twice its precision: the order of 10^8 terms hardly ever shows in the result.
 *
 * Included after the float64 headers: lanes are those of sum_vec_f64. */
#ifndef FASTCE_SUMS_H
#define FASTCE_SUMS_H

/* An unevaluated sum; infinity has no error term. */
typedef struct { double sum, error; } Pair;

INLINE void add_pair(Pair *total, Pair term)
{
    double sum = total->sum + term.sum, part = sum - total->sum;
    double lost = (total->sum - (sum - part)) + (term.sum - part);
    total->error += isfinite(sum) ? lost + term.error : 0;
    total->sum = sum;
}

INLINE Pair add_lanes(sum_vec_f64 lanes)
{
    Pair total = {0, 0};
    for (int i = 0; i < LANES_F64; i++) add_pair(&total, (Pair){lanes.sum[i], lanes.error[i]});
    return total;
}

INLINE double add_pairs(const Pair *pairs, ptrdiff_t n)
{
    Pair total = {0, 0};
    for (ptrdiff_t i = 0; i < n; i++) add_pair(&total, pairs[i]);
    return total.sum + total.error;
}
#endif
