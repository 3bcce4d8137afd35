/* Entropy, cross-entropy and divergence of distributions p and q along an axis, self-information of elements.
 *
 * Included once per REAL_BITS, after operands.h: all formats are computed in float64, but for logarithms of a result in
 * float32, whose products and sums need not be. A row is the events of one
 * distribution. With x = 2^e m, sqrt(1/2) <= m < sqrt(2), f = m - 1 and s = f / (2 + f)
 *
 *     log x = e ln 2 + f - s (f - s^2 Q(s^2))        Q(z) = 2/3 + 2/5 z + 2/7 z^2 + ...
 *
 * in units of any base: those of 2 and 10 have whole logarithms of their powers. A term of the divergence is
 *
 *     p log(p/q) - d >= 0,  d = p - q:  with s = (p - q) / (p + q), log(p/q) = 2 s + s^3 Q(s^2), and so
 *     d s (1 + s (1 + s) Q / 2)                       where p and q are within a factor of 2 and d is exact,
 *     p ((e_p - e_q) ln 2 + 2 s + s^3 Q) - d          elsewhere, s being that of m_p and m_q: two thirds may cancel.
 *
 * The d are summed beside the terms. Whatever their subtraction has rounded is in both sums and cancels.
 *
 * The order of a row's sum depends on its length alone: one by one, or lane by lane in pieces of PIECE events.
 */
#if REAL_BITS == 64

/* OF_LOGS: of p and logarithms that are there. */
typedef enum { SELF_INFORMATION, ENTROPY, CROSS_ENTROPY, DIVERGENCE, OF_LOGS } Measure;
enum {
    FEW = 128,         /* events of rows that lie across vectors */
    PIECE = 1 << 14,
    FAR_ROWS = 16     /* that are read together, where events are farther apart than rows */
};

/* high + low = ln 2 and inverse + inverse_low = 1, both / log(base); e high is exact. Results / divisor. */
typedef struct { double high, low, inverse, inverse_low, divisor; } Base;

static const Base nats = {LN2_HI, LN2_LO, 1, 0, 1}, shannons = {1, 0, LOG2E, 0x1.777d0ffda0d24p-56, 1};
static const Base hartleys = {0x1.34413509f8p-2, -0x1.80433b83b532ap-44, 0x1.bcb7b1526e50ep-2, 0x1.95355baaafad3p-57,
                              1};

typedef struct { Operand rows; ptrdiff_t event_stride; } Given;
typedef struct { Pair terms, excess; } Sums; /* excess: of the d */

typedef struct {
    Measure measure;
    int narrow; /* logarithms in float32 are enough: nats, or divided at the end; not of DIVERGENCE */
    Base base;
    ptrdiff_t n_rows, n_events, n_together, n_pieces; /* rows that are read together; pieces of each */
    Given p, q;
    Operand result;
    Sums *sums; /* of all pieces of all rows, where there are several */
} Measures;

typedef struct { sum_vec terms, excess; uvec outside; } Lanes;

static void deliver_strip(const Operand *to, ptrdiff_t first, ptrdiff_t n, const double *src);
static int narrow_logs(const double *x, ptrdiff_t n, double *logs);
static int narrow_elements(const Measures *m, ptrdiff_t first, ptrdiff_t n);

/* ---- One vector ------------------------------------------------------------------------------------ */

typedef struct { vec m; ivec e; } Split; /* e is biased */

/* Of numbers that are not negative. Of 0: something finite. */
INLINE Split split(vec x)
{
    const UINT one = 0x3ff0000000000000, sqrt_half = 0x3fe6a09e667f3bcd;
    const mask_f64 normal = not_less_f64(x, splat_f64(0x1p-1022));
    const uvec bits = (uvec)select_f64(normal, x, x * 0x1p54) + (one - sqrt_half);
    const ivec moved = (ivec)select_f64(normal, (vec){0}, (vec)((ivec){0} + 54));
    return (Split){(vec)((bits & (((UINT)1 << MANTISSA_BITS) - 1)) + sqrt_half), (ivec)(bits >> MANTISSA_BITS) - moved};
}

INLINE vec whole(ivec e) { return (vec)(e + (ivec)splat_f64(TO_INTEGER)) - TO_INTEGER; }

/* Relative error of the polynomial for s^2 <= 0.0295: 0.011 * 2^-53 (vmath.h). */
INLINE vec log_in(vec x, const Base *base)
{
    const Split of = split(x);
    const vec e = whole(of.e - EXPONENT_BIAS), f = of.m - 1, s = f / (f + 2), z = s * s;
    const vec square = z * z;
    vec odd = splat_f64(0x1.39a1df2e91e3fp-3), even = splat_f64(0x1.2f0440420a9f8p-3);
    even = fma_f64(even, square, splat_f64(0x1.74663d28a2d6ep-3));
    odd = fma_f64(odd, square, splat_f64(0x1.c71c5213d5964p-3));
    even = fma_f64(even, square, splat_f64(0x1.24924941e1426p-2));
    odd = fma_f64(odd, square, splat_f64(0x1.999999997ff21p-2));
    even = fma_f64(even, square, splat_f64(0x1.5555555555592p-1));
    const vec q = fma_f64(odd, z, even);
    const vec low = fma_f64(f, splat_f64(base->inverse_low), e * splat_f64(base->low));
    const vec inverse = splat_f64(base->inverse), rest = fma_f64(s * fma_f64(z, q, -f), inverse, low);
    return fma_f64(e, splat_f64(base->high), fma_f64(f, inverse, rest));
}

/* Infinity where x is 0. */
INLINE vec beyond(vec x) { return keep_f64(not_less_f64(splat_f64(0), x), splat_f64(INFINITY)); }

INLINE vec divergence(vec p, vec q, vec d)
{
    const mask_f64 near = not_less_f64(2 * q, p) & not_less_f64(2 * p, q);
    const Split of_p = split(p), of_q = split(q);
    const ivec e = of_p.e - of_q.e, near_e = (ivec)keep_f64(near, (vec)e);
    const vec b = (vec)((uvec)of_q.m - ((uvec)near_e << MANTISSA_BITS)), s = (of_p.m - b) / (of_p.m + b), z = s * s;
    const vec k = whole(e - near_e);
    /* Relative error of the logarithm by the polynomial for |s| <= 1/3: 0.012 * 2^-53 */
    const vec square = z * z;
    vec odd = splat_f64(0x1.5c84bbf9362eep-3), even = splat_f64(0x1.55a5031f1b95ap-4);
    even = fma_f64(even, square, splat_f64(0x1.10679e5068162p-3));
    odd = fma_f64(odd, square, splat_f64(0x1.efdae0bb71251p-4));
    even = fma_f64(even, square, splat_f64(0x1.745cb3e3152f9p-3));
    odd = fma_f64(odd, square, splat_f64(0x1.3b1dde25cd141p-3));
    even = fma_f64(even, square, splat_f64(0x1.249249208b36p-2));
    odd = fma_f64(odd, square, splat_f64(0x1.c71c741d27b27p-3));
    even = fma_f64(even, square, splat_f64(0x1.5555555555535p-1));
    odd = fma_f64(odd, square, splat_f64(0x1.99999999a0767p-2));
    const vec r = fma_f64(odd, z, even);
    const vec close = d * s * fma_f64(s * (1 + s), 0.5 * r, splat_f64(1));
    const vec log = fma_f64(k, splat_f64(LN2_HI), fma_f64(s * z, r, k * splat_f64(LN2_LO)) + 2 * s);
    return select_f64(near, close, fma_f64(p, log + beyond(q), -d));
}

/* The sign bits say where a number is negative, infinite or NaN. */
INLINE uvec improper(vec p) { return (uvec)p | ((uvec)p + ((UINT)1 << MANTISSA_BITS)); }

/* The term of p and q; *d is set in a divergence. */
INLINE vec term(vec p, vec q, vec *d, uvec *outside, const Base *base, Measure measure)
{
    p += 0.0; /* no -0 */
    *outside |= improper(p);
    if (measure == SELF_INFORMATION) return beyond(p) - log_in(p, base);
    if (measure == ENTROPY) return p * log_in(p, base);
    if (measure == OF_LOGS) return keep_f64(not_less_f64(p, splat_f64(0x1p-1074)), p * q);
    q += 0.0;
    *outside |= improper(q);
    if (measure == CROSS_ENTROPY)
        return keep_f64(not_less_f64(p, splat_f64(0x1p-1074)), p * (log_in(q, base) - beyond(q)));
    *d = p - q;
    return divergence(p, q, *d);
}

INLINE int any_outside(uvec outside)
{
    UINT all = 0;
    for (int i = 0; i < LANES; i++) all |= outside[i];
    return (INT)all < 0;
}

/* ---- Rows of many events: along vectors ------------------------------------------------------------- */

INLINE void add_events(Lanes *lanes, vec p, vec q, const Base *base, Measure measure)
{
    vec d;
    const vec a = term(p, q, &d, &lanes->outside, base, measure);
    if (measure == OF_LOGS) lanes->terms.sum += a;
    else add_f64(&lanes->terms, a);
    if (measure == DIVERGENCE) add_f64(&lanes->excess, d);
}

INLINE void add_run(Lanes *to, const double *p, const double *q, ptrdiff_t n, const Base *base, Measure measure)
{
    Lanes lanes = *to;
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) add_events(&lanes, load_f64(p + i), load_f64(q + i), base, measure);
    if (i < n) add_events(&lanes, load_n_f64(p + i, n - i, 0), load_n_f64(q + i, n - i, 1), base, measure);
    *to = lanes;
}

static void add_row(Lanes *lanes, const char *p, const char *q, ptrdiff_t n, const Base *base, Measure measure)
{
    const double *a = (const double *)p, *b = (const double *)q;
    if (measure == ENTROPY) add_run(lanes, a, a, n, base, ENTROPY);
    else if (measure == CROSS_ENTROPY) add_run(lanes, a, b, n, base, CROSS_ENTROPY);
    else if (measure == OF_LOGS) add_run(lanes, a, b, n, base, OF_LOGS);
    else add_run(lanes, a, b, n, base, DIVERGENCE);
}

static Pair pair_of(sum_vec lanes)
{
    double error, sum = total_and_error_f64(lanes, &error);
    if (isfinite(sum)) return (Pair){sum, error};
    return (Pair){add_up_f64(lanes.sum), 0}; /* infinity has no error */
}

static double result_of(Sums s, const Measures *m)
{
    if (m->measure != DIVERGENCE) s.terms = (Pair){-s.terms.sum, -s.terms.error};
    else if (isfinite(s.terms.sum)) add_pair(&s.terms, s.excess);
    return (s.terms.sum + s.terms.error) / m->base.divisor + 0.0; /* no -0 */
}

/* ---- Rows of few events: across vectors ------------------------------------------------------------- */

INLINE uvec list_terms(const double *p, const double *q, ptrdiff_t n, const Base *base, Measure measure,
                       double *terms, double *excess)
{
    uvec outside = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t k = n - i;
        vec a = k < LANES ? load_n_f64(p + i, k, 0) : load_f64(p + i), b = a, d;
        if (measure >= CROSS_ENTROPY) b = k < LANES ? load_n_f64(q + i, k, 1) : load_f64(q + i);
        store_f64(terms + i, term(a, b, &d, &outside, base, measure));
        if (measure == DIVERGENCE) store_f64(excess + i, d);
    }
    return outside;
}

/* The sums of LANES rows of n numbers, side by side; of the last rows again if there are fewer. */
INLINE sum_vec sums_of_rows(const double *terms, ptrdiff_t n_rows, ptrdiff_t n, int narrow)
{
    const double *row[LANES_COUNT];
    sum_vec sums = {{0}, {0}};
    for (int i = 0; i < LANES; i++) row[i] = terms + (i < n_rows ? i : n_rows - 1) * n;
    for (ptrdiff_t j = 0; j < n; j++) {
        vec a;
        for (int i = 0; i < LANES; i++) a[i] = row[i][j];
        if (narrow) sums.sum += a;
        else add_f64(&sums, a);
    }
    return sums;
}

INLINE mask_f64 is_finite(vec a) { return (mask_f64)~not_less_f64(absolute_f64(a), splat_f64(INFINITY)); }

/* As result_of has it. */
INLINE vec results_of(sum_vec terms, sum_vec excess, const Measures *m)
{
    const vec zero = {0};
    vec sum = terms.sum, error = terms.error;
    if (m->measure == DIVERGENCE) {
        sum_vec both = terms;
        add_f64(&both, keep_f64(is_finite(sum), excess.sum));
        sum = both.sum;
        error = both.error + excess.error;
    } else {
        sum = -sum;
        error = -error;
    }
    return (sum + keep_f64(is_finite(sum), error)) / m->base.divisor + zero;
}

/* ---- From arrays to results ------------------------------------------------------------------------- */

/* Events begin, ..., begin + n - 1 of rows that follow each other, as float64 side by side: where they are or in the
 * scratch. Bytes from a row to the next are what *distance says, or as many as the row has. The n_rows n events are
 * at most STRIP. */
static const char *gather(const Given *g, ptrdiff_t first, ptrdiff_t n_rows, ptrdiff_t begin, ptrdiff_t n,
                          double *scratch, ptrdiff_t *distance)
{
    const Operand *rows = &g->rows;
    const ptrdiff_t step = g->event_stride, apart = rows->stride[rows->n_dims - 1];
    const int adjacent = rows->format == FORMAT_F64 && !rows->swapped && (step == sizeof(double) || n == 1);
    if (distance) *distance = n * (ptrdiff_t)sizeof(double);
    for (ptrdiff_t row = 0, run; row < n_rows; row += run) {
        const char *src = locate(rows, first + row, &run) + begin * step;
        double *dst = scratch + row * n, column[STRIP];
        run = run < n_rows - row ? run : n_rows - row;
        if (run == n_rows && adjacent && !distance && (apart == n * (ptrdiff_t)sizeof(double) || run == 1)) return src;
        if (run == n_rows && distance && (adjacent || apart == 0)) {
            *distance = apart;
            if (adjacent) return src;
            run = 1;
            n_rows = 1;
        }
        if (n == 1) read_run_f64(src, rows->format, rows->swapped, apart, run, dst);
        else if (apart == n * step) read_run_f64(src, rows->format, rows->swapped, step, run * n, dst);
        else if (run == 1 || apart == 0 || llabs(step) <= llabs(apart))
            for (ptrdiff_t r = 0; r < run; r++)
                read_run_f64(src + r * apart, rows->format, rows->swapped, step, n, dst + r * n);
        else
            for (ptrdiff_t j = 0; j < n; j++) {
                const char *event = src + j * step;
                if (rows->format == FORMAT_F64 && !rows->swapped)
                    for (ptrdiff_t r = 0; r < run; r++) memcpy(&dst[r * n + j], event + r * apart, sizeof *dst);
                else {
                    read_run_f64(event, rows->format, rows->swapped, apart, run, column);
                    for (ptrdiff_t r = 0; r < run; r++) dst[r * n + j] = column[r];
                }
            }
    }
    return (const char *)scratch;
}

/* One piece of some rows. Returns whether a number is improper. */
static int run_piece(const Measures *m, ptrdiff_t first, ptrdiff_t n_rows, ptrdiff_t piece)
{
    const ptrdiff_t begin = piece * PIECE, rest = m->n_events - begin, size = rest < PIECE ? rest : PIECE;
    const int at_once = m->n_together * size <= STRIP;
    const ptrdiff_t step = at_once ? size : STRIP / m->n_together;
    double p[STRIP], q[STRIP], result[STRIP], logs[STRIP];
    Lanes lanes[FAR_ROWS];
    uvec outside = {0};
    int wrong = 0;
    ptrdiff_t j = 0;
    do {
        const ptrdiff_t n = size - j < step ? size - j : step;
        ptrdiff_t p_distance, q_distance;
        const char *a = gather(&m->p, first, n_rows, begin + j, n, p, &p_distance), *b = a;
        if (m->measure == ENTROPY) q_distance = p_distance;
        else b = gather(&m->q, first, n_rows, begin + j, n, q, &q_distance);
        for (ptrdiff_t row = 0; row < n_rows; row++) {
            Lanes *of_row = &lanes[at_once ? 0 : row];
            if (j == 0) *of_row = (Lanes){0};
            const char *x = a + row * p_distance, *y = b + row * q_distance;
            if (m->narrow) {
                wrong |= narrow_logs((const double *)y, n, logs);
                add_row(of_row, x, (const char *)logs, n, &m->base, OF_LOGS);
            } else add_row(of_row, x, y, n, &m->base, m->measure);
            if (j + n < size) continue;
            Sums sums = {pair_of(of_row->terms), {0, 0}};
            if (m->measure == DIVERGENCE) sums.excess = pair_of(of_row->excess);
            if (m->sums) m->sums[(first + row) * m->n_pieces + piece] = sums;
            else result[row] = result_of(sums, m);
            outside |= of_row->outside;
        }
        j += n;
    } while (j < size);
    if (!m->sums) deliver_strip(&m->result, first, n_rows, result);
    return wrong | any_outside(outside);
}

/* Some rows of few events, or elements. */
static int run_few(const Measures *m, ptrdiff_t first, ptrdiff_t n_rows)
{
    const ptrdiff_t n = m->n_events, count = n_rows * n;
    double p[STRIP], q[STRIP], terms[STRIP], excess[STRIP], result[STRIP];
    const double *a = (const double *)gather(&m->p, first, n_rows, 0, n, p, NULL), *b = a;
    uvec outside = {0};
    int wrong = 0;
    if (m->measure >= CROSS_ENTROPY) b = (const double *)gather(&m->q, first, n_rows, 0, n, q, NULL);
    if (m->narrow) wrong = narrow_logs(b, count, excess);
    if (m->measure == SELF_INFORMATION) {
        outside = list_terms(a, a, count, &m->base, SELF_INFORMATION, terms, NULL);
        if (m->base.divisor != 1)
            for (ptrdiff_t i = 0; i < count; i++) terms[i] = terms[i] / m->base.divisor + 0.0;
        deliver_strip(&m->result, first, n_rows, terms);
        return any_outside(outside);
    }
    if (m->narrow) outside = list_terms(a, excess, count, &m->base, OF_LOGS, terms, NULL);
    else if (m->measure == ENTROPY) outside = list_terms(a, a, count, &m->base, ENTROPY, terms, NULL);
    else if (m->measure == CROSS_ENTROPY) outside = list_terms(a, b, count, &m->base, CROSS_ENTROPY, terms, NULL);
    else outside = list_terms(a, b, count, &m->base, DIVERGENCE, terms, excess);
    for (ptrdiff_t row = 0; row < n_rows; row += LANES) {
        sum_vec sums, differences = {{0}, {0}};
        if (m->narrow) sums = sums_of_rows(terms + row * n, n_rows - row, n, 1);
        else sums = sums_of_rows(terms + row * n, n_rows - row, n, 0);
        if (m->measure == DIVERGENCE) differences = sums_of_rows(excess + row * n, n_rows - row, n, 0);
        store_f64(result + row, results_of(sums, differences, m));
    }
    deliver_strip(&m->result, first, n_rows, result);
    return wrong | any_outside(outside);
}

/* The order of rows is that of their units: pieces of rows that are read together. */
static int run_units(const Measures *m, ptrdiff_t begin, ptrdiff_t end)
{
    const Environment host = enter_environment();
    int outside = 0;
    for (ptrdiff_t unit = begin; unit < end && !outside; unit++) {
        const ptrdiff_t first = unit / m->n_pieces * m->n_together, rest = m->n_rows - first;
        const ptrdiff_t n_rows = rest < m->n_together ? rest : m->n_together;
        if (m->narrow && m->measure == SELF_INFORMATION) outside = narrow_elements(m, first, n_rows);
        else outside = m->n_events <= FEW ? run_few(m, first, n_rows) : run_piece(m, first, n_rows, unit % m->n_pieces);
    }
    leave_environment(host);
    return outside;
}

/* Rows of several pieces, after all of these. */
static void join_pieces(const Measures *m)
{
    const Environment host = enter_environment();
    for (ptrdiff_t row = 0; row < m->n_rows; row++) {
        Sums sums = m->sums[row * m->n_pieces];
        for (ptrdiff_t piece = 1; piece < m->n_pieces; piece++) {
            add_pair(&sums.terms, m->sums[row * m->n_pieces + piece].terms);
            add_pair(&sums.excess, m->sums[row * m->n_pieces + piece].excess);
        }
        double result[LANES_COUNT] = {result_of(sums, m)};
        deliver_strip(&m->result, row, 1, result);
    }
    leave_environment(host);
}
#else
INLINE vec narrow_log(vec x, uvec *outside)
{
    const UINT one = 0x3f800000, sqrt_half = 0x3f3504f3;
    x += 0.0f; /* no -0 */
    const mask_f32 normal = not_less_f32(x, splat_f32(0x1p-126f));
    const uvec bits = (uvec)select_f32(normal, x, x * 0x1p24f) + (one - sqrt_half);
    const ivec moved = (ivec)select_f32(normal, (vec){0}, (vec)((ivec){0} + 24));
    const ivec e = (ivec)(bits >> MANTISSA_BITS) - moved - EXPONENT_BIAS;
    const vec k = (vec)(e + (ivec)splat_f32(TO_INTEGER)) - TO_INTEGER;
    const vec f = (vec)((bits & (((UINT)1 << MANTISSA_BITS) - 1)) + sqrt_half) - 1;
    *outside |= (uvec)x | ((uvec)x + ((UINT)1 << MANTISSA_BITS));
    return log_of_parts_f32(k, f, (vec){0}).high - keep_f32(not_less_f32(splat_f32(0), x), splat_f32(INFINITY));
}

INLINE int any_outside_f32(uvec outside)
{
    UINT all = 0;
    for (int i = 0; i < LANES; i++) all |= outside[i];
    return (INT)all < 0;
}

/* Of numbers of float32. Returns whether one is improper. */
static int narrow_logs(const double *x, ptrdiff_t n, double *logs)
{
    uvec outside = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t left = n - i, upper = left - LANES_F64;
        vec_f64 low = splat_f64(1), high = low;
        if (left < LANES) {
            low = load_n_f64(x + i, upper < 0 ? left : LANES_F64, 1);
            if (upper > 0) high = load_n_f64(x + i + LANES_F64, upper, 1);
        } else {
            low = load_f64(x + i);
            high = load_f64(x + i + LANES_F64);
        }
        store_as_f64_f32(logs + i, narrow_log(narrowed_f32(low, high), &outside));
    }
    return any_outside_f32(outside);
}

static int narrow_elements(const Measures *m, ptrdiff_t first, ptrdiff_t n)
{
    float scratch[STRIP], narrow[STRIP];
    const float *x = input_f32(&m->p.rows, first, n, scratch);
    float *result = output_f32(&m->result, first, narrow);
    uvec outside = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t k = n - i < LANES ? n - i : LANES;
        const vec log = narrow_log(k < LANES ? load_n_f32(x + i, k, 1) : load_f32(x + i), &outside);
        vec size = 0 - log;
        if (m->base.divisor != 1) {
            const sum_vec wide = widened_f32(size);
            size = narrowed_f32(wide.low / m->base.divisor + 0.0, wide.high / m->base.divisor + 0.0);
        }
        if (k < LANES) store_n_f32(result + i, k, size);
        else store_f32(result + i, size);
    }
    deliver_f32(&m->result, first, n, narrow);
    return any_outside_f32(outside);
}
#endif
