/* First and second derivatives for boosted trees: what rows of classes and single margins share, and the latter.
 *
 * Included once, after binary.h of float64. A row with target probabilities q_c (hard ones are 0 and 1), each
 * smoothed to (1 - eps) q_c + eps / C and multiplied by its weights, has the loss
 *
 *     sum_c q_c (1 - p_c)^gamma (-log p_c)
 *
 * whose derivative by log p_c is -q_c s(p_c), s(p) = (1 - p)^gamma (1 + gamma p l / (1 - p)) with l = -log p, and 1 where
 * gamma is 0. With u_c = q_c s(p_c), v_c = q_c s'(p_c) p_c and U, V their sums
 *
 *     grad_j = p_j U - u_j = p_j (U - u_j) - u_j (1 - p_j)
 *     hess_j = U p_j (1 - p_j)                                                  Gauss-Newton
 *              - (p_j^2 (V - v_j) + (1 - p_j)^2 v_j)                            and the rest, where gamma > 0
 *
 * The second forms are free of cancellation but for soft targets. Trees are grown with other curvatures as well:
 * a multiple of the first term, or |grad_j|; and with a floor under each.
 */
#ifndef FASTCE_CURVATURE_H
#define FASTCE_CURVATURE_H

typedef enum { MULTIPLE, MAGNITUDE, WHOLE } Curvature;

typedef struct {
    Curvature curvature;
    double factor, floor; /* hess is factor U p (1 - p), and at least the floor; WHOLE has the second term too */
    double gamma, smoothing;
} Boosting;

/* s(p) and s'(p) p of the formulas above; q = 1 - p. */
typedef struct { vec_f64 slope, bend; } Focal;

INLINE Focal focal_of(vec_f64 p, vec_f64 q, double gamma)
{
    const vec_f64 least = splat_f64(0x1p-1000), one = splat_f64(1);
    const vec_f64 l = log1p_f64(q / larger_f64(p, least), 0), u = power(q, gamma), above = larger_f64(q, least);
    const vec_f64 ratio = select_f64(not_less_f64(least, q), one, l / above); /* -log(p) / (1 - p) is 1 at p = 1 */
    return (Focal){u * (1 + gamma * p * ratio), gamma * p * (u / above) * ((l - 2) - (gamma - 1) * p * ratio)};
}

/* Margins that stand alone: the classes are 0 and 1, with margins 0 and x. */
typedef struct {
    ptrdiff_t n;
    Boosting options;
    double pos_weight, scale; /* of class 1; of both derivatives, after the floor */
    Operand margin, target, weight, grad, hess; /* no weights: data is NULL */
} Logistic;

static void deliver_strip(const Operand *to, ptrdiff_t first, ptrdiff_t n, const double *src);

/* The strip from element `first` on. Returns whether some target is not in [0, 1]; then nothing is written. */
static int logistic_strip(const Logistic *s, ptrdiff_t first, ptrdiff_t n)
{
    double x[STRIP] = {0}, y[STRIP] = {0}, w[STRIP] = {0}; /* the last vector of a strip is whole */
    const Boosting *o = &s->options;
    const Exps_f64 exps = exps_against_f64(splat_f64(0), &plain_units_f64);
    const vec_f64 zero = {0};
    read_f64(&s->margin, first, n, x);
    read_f64(&s->target, first, n, y);
    if (outside_f64(y, n)) return 1;
    if (s->weight.data) read_f64(&s->weight, first, n, w);
    for (ptrdiff_t i = 0; i < n; i += LANES_F64) {
        const vec_f64 margin = load_f64(x + i);
        const vec_f64 weight = s->weight.data ? s->scale * load_f64(w + i) : splat_f64(s->scale);
        const vec_f64 label = (1 - o->smoothing) * load_f64(y + i) + o->smoothing / 2;
        const vec_f64 e = tail_f64(exps_f64(-absolute(margin), &exps), 0).t, near = 1 / (1 + e), far = e * near;
        const mask_f64 positive = not_less_f64(margin, zero);
        const vec_f64 p = select_f64(positive, near, far), q = select_f64(positive, far, near);
        vec_f64 of_1 = s->pos_weight * label, of_0 = 1 - label, rest = zero;
        if (o->gamma > 0) {
            const Focal one_of = focal_of(p, q, o->gamma), other = focal_of(q, p, o->gamma);
            if (o->curvature == WHOLE) rest = p * (p * of_0 * other.bend) + q * (q * of_1 * one_of.bend);
            of_1 *= one_of.slope;
            of_0 *= other.slope;
        }
        const vec_f64 grad = p * of_0 - q * of_1, square = p * q;
        vec_f64 hess = o->factor * (of_0 + of_1) * square - rest;
        if (o->curvature == MAGNITUDE) hess = absolute(grad);
        store_f64(x + i, weight * grad);
        store_f64(y + i, weight * larger_f64(splat_f64(o->floor), hess)); /* NaN stays */
    }
    deliver_strip(&s->grad, first, n, x);
    deliver_strip(&s->hess, first, n, y);
    return 0;
}
#endif
