/* Binary losses and logarithms: run_strips as elementwise.pyx calls it, over formats, byte orders, layouts and kinds of
 * targets, against long double. See test_rows.c. */
#include "elements/elementwise.h"

#include "check.h"

enum { N = 2 * STRIP + 77, INNER = 25 };

typedef enum { FLAT, SWAPPED_STRIDED, BACKWARD, ROWS, N_PLACES } Place;

/* Of one axis, but for ROWS: N / INNER rows of INNER with a gap after each, or of one number for all rows. */
static Operand place(Place where, int format, const double *numbers, ptrdiff_t n, int broadcast)
{
    static const int SIZES[] = {8, 4, 2, 2, 0, 1, 2, 4, 8};
    const ptrdiff_t item = SIZES[format], step = where == SWAPPED_STRIDED ? 3 * item : item;
    const ptrdiff_t row = where == ROWS ? INNER : n;
    Operand a = {memory((size_t)(4 * item * n)), format, where == SWAPPED_STRIDED, where == FLAT, 1, {n}, {step}};
    if (where == BACKWARD) {
        a.data += (n - 1) * item;
        a.stride[0] = -item;
    }
    if (where == ROWS) {
        a.n_dims = 2;
        a.shape[0] = n / INNER, a.shape[1] = INNER;
        a.stride[0] = broadcast ? 0 : 2 * INNER * item, a.stride[1] = item;
    }
    for (ptrdiff_t i = 0; i < n; i++) {
        char *p = a.data + (where == ROWS ? i / row * a.stride[0] + i % row * item : i * a.stride[0]);
        if (format < FORMAT_NONE) encode(format, a.swapped, numbers[i], p);
        else
            for (int k = 0; k < item; k++)
                p[k] = (char)((uint64_t)numbers[i] >> shift_of(k, (int)item, a.swapped));
    }
    return a;
}

static double number(const Operand *a, ptrdiff_t i)
{
    ptrdiff_t run;
    return decode(a->format, a->swapped, locate(a, i, &run));
}

/* a softplus(-x) + b softplus(x), its derivatives, and the largest term of the first. */
typedef struct { Wide loss, grad, grad_scale, hess; } Exact;

static Exact with_logits_exact(Wide x, Wide a, Wide b)
{
    const Wide t = expl(-fabsl(x)), near = x > 0 ? a : b, far = x > 0 ? b : a, s = 1 / (1 + t), sign = x > 0 ? 1 : -1;
    Exact e = {near * log1pl(t) + (far == 0 ? 0 : far * (fabsl(x) + log1pl(t))), sign * (far * s - near * t * s),
               fmaxl(far, near * t) * s, (a + b) * s * t * s};
    return e;
}

/* c u^gamma BCE, u = 1 - p_t, for a hard target, and its derivative. */
static Exact focal_exact(Wide x, int y, Wide c, Wide gamma)
{
    const Wide toward = y ? -x : x, t = expl(-fabsl(x)), sigma = toward > 0 ? 1 / (1 + t) : t / (1 + t);
    const Wide p = toward > 0 ? t / (1 + t) : 1 / (1 + t), bce = (toward > 0 ? toward : 0) + log1pl(t);
    const Wide power = powl(sigma, gamma), more = sigma == 0 ? gamma : gamma * p * bce / sigma;
    const Wide slope = c * power * sigma * (1 + more);
    Exact e = {c * power * bce, y ? -slope : slope, slope, 0};
    return e;
}

typedef struct { const char *name; Options options; int weighted, soft; } Case;

static const Case CASES[] = {
    {"logits", {WITH_LOGITS, 2, 1, 0, NAN}, 0, 0},
    {"logits, soft targets", {WITH_LOGITS, 1, 1, 0, NAN}, 0, 1},
    {"weighted logits", {WITH_LOGITS, 2, 0.5, 0, NAN}, 1, 0},
    {"focal", {FOCAL, 1, 1, 2, 0.25}, 1, 0},
    {"focal 1.5", {FOCAL, 1, 1, 1.5, NAN}, 0, 0},
    {"probabilities", {OF_PROBABILITIES, 0, 1, 0, NAN}, 0, 0},
};
enum { N_CASES = sizeof CASES / sizeof *CASES };

static const double LOSS_ULP[] = {4, 2, 2, 2}, GRAD_ULP[] = {8, 4, 0.5 + 0x1p-11, 0.5 + 0x1p-14};

static double some_number(const Case *c, int format, int i)
{
    const double end = format == FORMAT_F64 ? 750 : 106;
    if (c->options.formula == OF_PROBABILITIES)
        return i % 2 ? uniform(0, 1) : i % 4 ? exp(uniform(-90, 0)) : i % 8 != 0;
    if (i % 50 == 0) return i % 100 ? end : -end;
    return i % 3 == 0 ? normal(3) : i % 3 == 1 ? uniform(-end, end) : normal(1) * exp(uniform(-40, 0));
}

static void check_case(const Case *c, int format, int target_format, Place where, double worst[3])
{
    static double x[N], y[N], w[N], pos[N], none[N];
    const int computed = format == FORMAT_F64 ? FORMAT_F64 : FORMAT_F32, order = c->options.order;
    const int is_focal = c->options.formula == FOCAL, broadcast = where == ROWS && c->weighted;
    const ptrdiff_t n = where == ROWS ? N / INNER * INNER : N;
    const double rounding = format > FORMAT_F32 ? 0.5 : 0;
    for (int i = 0; i < n; i++) {
        x[i] = rounded(format, some_number(c, format, i));
        y[i] = c->soft ? rounded(target_format, uniform(0, 1)) : i % 3 == 0;
        w[i] = c->weighted ? uniform(0.1, 3) : 1;
        pos[i] = c->weighted && !is_focal ? rounded(FORMAT_F32, uniform(0.1, 3)) : 1;
        if (broadcast && i >= INNER) w[i] = w[i % INNER];
    }
    Elements e = {n, c->options, c->options.formula == WITH_LOGITS && !c->weighted
                                     && (format == FORMAT_F64 || target_format != FORMAT_F64), {{0}}};
    snprintf(context, sizeof context, "%s, %s, target of format %d, layout %d", c->name, FORMATS[format].name,
             target_format, where);
    e.operand[GIVEN] = place(where, format, x, n, 0);
    e.operand[TARGET] = place(where, target_format, y, n, 0);
    if (c->weighted) e.operand[WEIGHT] = place(where, FORMAT_F64, w, n, broadcast);
    if (c->weighted && !is_focal) e.operand[POS_WEIGHT] = place(FLAT, FORMAT_F32, pos, n, 0);
    e.operand[LOSS] = place(where, computed, none, n, 0);
    if (order >= 1) e.operand[GRAD] = place(where, format, none, n, 0);
    if (order >= 2) e.operand[HESS] = place(where, format, none, n, 0);

    Pair blocks[3] = {{0, 0}};
    const ptrdiff_t n_strips = (n + STRIP - 1) / STRIP;
    ptrdiff_t run;
    expect(!run_strips(&e, 0, n_strips, 1, blocks), "a target is said to be outside [0, 1]");
    for (ptrdiff_t k = 0; k < n_strips; k++)
        expect(!run_strips(&e, k, k + 1, 0, &blocks[k]), "an element is said to be outside its range");
    Wide sum = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const Wide alpha = isnan(c->options.alpha) ? 1 : y[i] ? c->options.alpha : 1 - c->options.alpha;
        const Wide a = (Wide)w[i] * pos[i] * y[i], b = (Wide)w[i] * (1 - (Wide)y[i]);
        Exact exact = {0};
        if (is_focal) exact = focal_exact(x[i], y[i] == 1, alpha * w[i], c->options.gamma);
        else if (c->options.formula == WITH_LOGITS) exact = with_logits_exact(x[i], a, b);
        else exact.loss = y[i] ? fminl(-logl(x[i]), 100) : fminl(-log1pl(-(Wide)x[i]), 100);
        const double powers = computed == FORMAT_F64 ? 3 : 1; /* of an error */
        const double more = is_focal ? powers * c->options.gamma : 0;
        const double bound = rounding + (GRAD_ULP[format] - rounding) + more * (rounding ? 0x1p-11 : 1);
        sum += exact.loss;
        check("loss", 0, i, computed, number(&e.operand[LOSS], i), exact.loss, exact.loss, LOSS_ULP[format] + more,
              &worst[0]);
        const Wide scale = c->options.scale, size = scale * (c->soft ? exact.grad_scale : fabsl(exact.grad));
        const int is_tiny = is_focal && size < tiny_of(computed); /* of two roundings to a subnormal */
        if (order >= 1 && !is_tiny)
            check("gradient", 0, i, format, number(&e.operand[GRAD], i), scale * exact.grad, size, bound, &worst[1]);
        if (order >= 2)
            check("Hessian", 0, i, format, number(&e.operand[HESS], i), scale * exact.hess, scale * exact.hess, bound,
                  &worst[2]);
    }
    const double got = add_pairs(blocks, n_strips);
    const Wide allowed = LOSS_ULP[format] * ldexp(1, -FORMATS[computed].mantissa_bits) * fabsl(sum);
    expect(got == sum || (isnan(got) && isnan(sum)) || fabsl(got - sum) <= allowed, "the sum of the losses");

    Operand *last = &e.operand[TARGET];
    if (last->format < FORMAT_NONE) encode(last->format, last->swapped, -0.25, locate(last, n - 1, &run));
    else memset(locate(last, n - 1, &run), 2, last->format == INTEGER_8 ? 1 : 2); /* not 1, in whichever byte order */
    expect(run_strips(&e, n_strips - 1, n_strips, 0, &blocks[0]), "an element outside its range is not noticed");
    for (int k = 0; k < N_OPERANDS; k++) {
        Operand *a = &e.operand[k];
        if (a->data) free(a->stride[0] < 0 ? a->data + (n - 1) * a->stride[0] : a->data);
    }
}

int main(void)
{
    static const int TARGETS[] = {FORMAT_F64, FORMAT_F32, FORMAT_F16, FORMAT_BF16,
                                  INTEGER_8, INTEGER_16, INTEGER_32, INTEGER_64};
    for (int k = 0; k < N_CASES; k++)
        for (int format = 0; format < N_FORMATS; format++) {
            double worst[3] = {0, 0, 0};
            seed = (uint64_t)(1000 + 10 * k + format);
            for (Place where = FLAT; where < N_PLACES; where++)
                for (int i = (where + k) % 4; i < (CASES[k].soft ? 4 : 8); i += 4)
                    check_case(&CASES[k], format, TARGETS[i], where, worst);
            printf("%-23s %-9s largest share of the bound: loss %.2f, gradient %.2f, Hessian %.2f\n", CASES[k].name,
                   FORMATS[format].name, worst[0], worst[1], worst[2]);
        }
    return report("test_elementwise");
}
