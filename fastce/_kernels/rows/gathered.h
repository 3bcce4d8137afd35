/* What is known of a part of a row of logits, how parts are merged, and what a whole row comes to.
 *
 * With the transformed logits z, their maximum m and the target y
 *
 *     others = sum of exp((z_j - m) / T) over all j but one maximum             log s = log1p(others)
 *     log p_y = -((m - z_y) / T + log s)          H = log s + (sum of exp((z_j - m) / T) (m - z_j) / T) / (1 + others)
 *     rank = 1 + how many x_j > x_y
 *
 * No sum has a negative term, so none cancels, however sure the row is. Exps are taken against an anchor, at first the
 * target's logit and from then on the largest so far; the anchor's own element is the one that is not in the sums.
 * Where the target is the maximum the anchor never moves, and no digit is lost; where it moves, the sums up to there
 * are multiplied by one exp.
 *
 * Errors: log p_y has those of the losses (docs/accuracy.md). H is within 4 ULP in float32 and 8 in float64: a term has
 * those of its exp, its difference and its product, four are added in REAL, the rest in more.
 */
#ifndef FASTCE_GATHERED_H
#define FASTCE_GATHERED_H

/* Of all sums here: they keep the digits of what would be subnormal. */
#define SUM_SCALE 0x1p64

typedef struct {
    double anchor;
    int passed;              /* the anchor's own element has been read: it belongs to this piece */
    double rest, rest_low;   /* sum of exp((z_j - anchor) / T) but the anchor's own, times SUM_SCALE */
    double spread;           /* the same, each times (anchor - z_j) / T */
    int64_t above;           /* logits above the target's */
} Gathered;

/* What becomes of a row. */
typedef struct {
    double logprob, entropy, log_s, max;
    int64_t rank;
} Scored;

INLINE double in_units_of_t(double a, double b, const Temperature *t) /* (a - b) / T without overflow on the way */
{
    return 2 * ((0.5 * a - 0.5 * b) / t->divisor * t->factor);
}

/* exp((a - b) / T) SUM_SCALE, a <= b. */
static double exp_between(double a, double b, const Units_f64 *units)
{
    const Exps_f64 exps = exps_against_f64(splat_f64(b), units);
    const double e = exps_f64(splat_f64(a), &exps)[0] * (1 / exp_scale_f64 * SUM_SCALE);
    return fma(e, correction_f64(&exps, 0)[0], e);
}

/* hi + lo as one sum with less than half an ULP in lo. */
INLINE void add_to_rest(Gathered *g, double high, double low)
{
    const double sum = g->rest + high, part = sum - g->rest;
    const double lost = ((g->rest - (sum - part)) + (high - part)) + (g->rest_low + low);
    g->rest = sum + lost;
    g->rest_low = lost - (g->rest - sum);
}

/* Makes b, if it is larger, the anchor. */
static void raise_anchor(Gathered *g, double b, const Temperature *temperature)
{
    const double a = g->anchor;
    if (!(b > a)) return;
    const int is_empty = !g->passed && g->rest == 0; /* of spread too */
    const double f = a == -INFINITY || is_empty ? 0 : exp_between(a, b, &temperature->f64);
    if (g->passed) add_to_rest(g, SUM_SCALE, 0);
    if (f == 0) { /* also where b - a is infinite; NaN in the sums stays */
        g->rest *= 0;
        g->rest_low = 0;
        g->spread *= 0;
    } else {
        g->spread = fma(in_units_of_t(b, a, temperature), g->rest, g->spread) * f / SUM_SCALE;
        g->rest_low = g->rest_low * f / SUM_SCALE;
        g->rest = g->rest * f / SUM_SCALE;
    }
    g->anchor = b;
    g->passed = 1;
}

/* The next piece of the row joins those before it. */
static void merge_gathered(Gathered *g, Gathered next, const Temperature *temperature)
{
    g->above += next.above;
    if (next.anchor > g->anchor) raise_anchor(g, next.anchor, temperature);
    else if (next.anchor < g->anchor) raise_anchor(&next, g->anchor, temperature);
    else {
        if (next.passed && g->passed) add_to_rest(g, SUM_SCALE, 0);
        g->passed |= next.passed;
    }
    add_to_rest(g, next.rest, next.rest_low);
    g->spread += next.spread;
}

/* log(1 + others). A sum so small is its own logarithm, also where it is subnormal. */
static double log_of_one_and(double others, double others_low)
{
    if (others < 0x1p-60 * SUM_SCALE) return others / SUM_SCALE;
    return log1p_of_sum_f64(splat_f64(others / SUM_SCALE), splat_f64(others_low / SUM_SCALE), 0)[0];
}

/* -((m - z) / T + log s): the logarithm of the probability of any class. */
INLINE double log_probability(double m, double z, double log_s, const Temperature *t)
{
    const double half = (0.5 * m - 0.5 * z) / t->divisor * t->factor + 0.5 * log_s;
    return 0 - 2 * half; /* 0 - : never -0.0 */
}

/* NaN or +inf in the row, or nothing but -inf, make all of it NaN. */
static Scored conclude(const Gathered *g, double z_y, const Temperature *temperature)
{
    const double m = g->anchor, log_s = log_of_one_and(g->rest, g->rest_low);
    if (!(m > -INFINITY && m < INFINITY) || log_s != log_s) return (Scored){NAN, NAN, NAN, NAN, 0};
    const double logprob = m == z_y ? 0 - log_s : log_probability(m, z_y, log_s, temperature);
    const int tiny = g->rest < 0x1p-60 * SUM_SCALE; /* perhaps subnormal: to be rounded once */
    const double entropy = tiny ? (g->rest + g->spread) / SUM_SCALE : log_s + g->spread / (SUM_SCALE + g->rest);
    return (Scored){logprob, entropy, log_s, m, 1 + g->above};
}
#endif
