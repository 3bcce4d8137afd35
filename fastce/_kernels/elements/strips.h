/* One strip of an elementwise call: arrays in, coefficients, formula, arrays out.
 *
 * Included once per REAL_BITS, after binary.h.
 */
#ifndef FASTCE_STRIPS_H
#define FASTCE_STRIPS_H

/* The arrays of a call. GIVEN: logits or probabilities. */
enum { GIVEN, TARGET, WEIGHT, POS_WEIGHT, LOSS, GRAD, HESS, N_OPERANDS };

typedef struct {
    ptrdiff_t n;                 /* elements */
    Options options;
    int plain;                   /* a target without weights that REAL holds exactly: read as it is */
    Operand operand[N_OPERANDS];
} Elements;

/* The coefficients of binary.h. Returns whether some target is not in [0, 1]; then there are none. */
static int read_coefficients(const Elements *e, ptrdiff_t first, ptrdiff_t n, double *a, double *b)
{
    double weight[STRIP], pos_weight[STRIP];
    const Operand *given = e->operand;
    const double *y = input_f64(&given[TARGET], first, n, a);
    if (outside_f64(y, n)) return 1;
    const double *w = NULL;
    if (given[WEIGHT].data) w = input_f64(&given[WEIGHT], first, n, weight);
    if (e->options.formula == FOCAL) {
        const double alpha = e->options.alpha;
        for (ptrdiff_t i = 0; i < n; i++) {
            b[i] = alpha == alpha ? alpha * y[i] + (1 - alpha) * (1 - y[i]) : 1;
            if (w) b[i] *= w[i];
            a[i] = y[i];
        }
    } else {
        for (ptrdiff_t i = 0; i < n; i++) {
            b[i] = w ? w[i] * (1 - y[i]) : 1 - y[i];
            a[i] = w ? w[i] * y[i] : y[i];
        }
        if (given[POS_WEIGHT].data) {
            const double *p = input_f64(&given[POS_WEIGHT], first, n, pos_weight);
            for (ptrdiff_t i = 0; i < n; i++) a[i] *= p[i];
        }
    }
    for (; n % (2 * LANES); n++) a[n] = b[n] = 0; /* the lanes of float32 beyond the last element */
    return 0;
}
#endif

/* Some target is not in [0, 1]; nothing else is looked at. */
static int FN(check_strip)(const Elements *e, ptrdiff_t first, ptrdiff_t n)
{
    REAL target[STRIP];
    return FN(outside)(FN(input)(&e->operand[TARGET], first, n, target), n);
}

/* The strip from element `first` on. Returns whether some element is outside its range; then nothing is written. */
static int FN(run_strip)(const Elements *e, ptrdiff_t first, ptrdiff_t n, sum_vec_f64 *sum)
{
    REAL given[STRIP], target[STRIP], loss[STRIP], grad[STRIP], hess[STRIP];
    double a[STRIP], b[STRIP];
    const Operand *operand = e->operand;
    const Options *o = &e->options;
    FN(Strip) s = {n, FN(input)(&operand[GIVEN], first, n, given), NULL, a, b,
                   FN(output)(&operand[LOSS], first, loss), FN(output)(&operand[GRAD], first, grad),
                   FN(output)(&operand[HESS], first, hess)};
    if (e->plain) {
        s.target = FN(input)(&operand[TARGET], first, n, target);
        if (FN(outside)(s.target, n)) return 1;
        if (o->order == 0) FN(sweep_strip)(&s, o, sum, WITH_LOGITS, 0, 1);
        else if (o->order == 1) FN(sweep_strip)(&s, o, sum, WITH_LOGITS, 1, 1);
        else FN(sweep_strip)(&s, o, sum, WITH_LOGITS, 2, 1);
    } else {
        if (read_coefficients(e, first, n, a, b)) return 1;
        if (o->formula == OF_PROBABILITIES) {
            if (FN(outside)(s.given, n)) return 1;
            FN(sweep_strip)(&s, o, sum, OF_PROBABILITIES, 0, 0);
        } else if (o->formula == FOCAL) {
            if (o->order == 0) FN(sweep_strip)(&s, o, sum, FOCAL, 0, 0);
            else FN(sweep_strip)(&s, o, sum, FOCAL, 1, 0);
        } else if (o->order == 0) FN(sweep_strip)(&s, o, sum, WITH_LOGITS, 0, 0);
        else if (o->order == 1) FN(sweep_strip)(&s, o, sum, WITH_LOGITS, 1, 0);
        else FN(sweep_strip)(&s, o, sum, WITH_LOGITS, 2, 0);
    }
    FN(deliver)(&operand[LOSS], first, n, loss);
    FN(deliver)(&operand[GRAD], first, n, grad);
    FN(deliver)(&operand[HESS], first, n, hess);
    return 0;
}
