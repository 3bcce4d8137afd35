/* Losses of one logit or one probability: LANES elements at a time, all but a float32's exp in float64.
 *
 * Included once per REAL_BITS, 64 first, after operands.h. For a logit x with target y in [0, 1], weight w and
 * pos_weight
 *
 *     a = w pos_weight y        t = exp(-|x|)           loss  a softplus(-x) + b softplus(x)
 *     b = w (1 - y)             L = log1p(t)            grad  b sigma(x) - a sigma(-x)
 *                                                       hess  (a + b) sigma(x) sigma(-x)
 *
 * where softplus and sigma of |x| and of -|x| are |x| + L and L, 1 / (1 + t) and t / (1 + t). Nothing cancels but
 * the two terms of a gradient with a soft target.
 */

INLINE vec FN(take)(const REAL *p, ptrdiff_t n, REAL fill) { return n < LANES ? FN(load_n)(p, n, fill) : FN(load)(p); }

INLINE void FN(give)(REAL *p, ptrdiff_t n, vec a)
{
    if (n < LANES) FN(store_n)(p, n, a);
    else FN(store)(p, a);
}

#define N_PARTS (LANES / LANES_F64) /* vectors of float64 that a vector of reals becomes */

#if REAL_BITS == 64
INLINE vec absolute(vec a) { return (vec)((ivec)a & INT64_MAX); }
INLINE vec widen_f64(vec a, int part) { (void)part; return a; }
INLINE vec narrow_f64(const vec *parts) { return parts[0]; }
#else
INLINE vec_f64 widen_f32(vec a, int part)
{
#if defined(LEVEL_V4)
    return _mm512_cvtps_pd(part ? _mm512_extractf32x8_ps(a, 1) : _mm512_castps512_ps256(a));
#elif defined(LEVEL_V3)
    return _mm256_cvtps_pd(part ? _mm256_extractf128_ps(a, 1) : _mm256_castps256_ps128(a));
#elif defined(__SSE2__)
    return _mm_cvtps_pd(part ? _mm_movehl_ps(a, a) : (__m128)a);
#else
    return part ? (vec_f64){a[2], a[3]} : (vec_f64){a[0], a[1]};
#endif
}

INLINE vec narrow_f32(const vec_f64 *parts)
{
#if defined(LEVEL_V4)
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(parts[0])), _mm512_cvtpd_ps(parts[1]), 1);
#elif defined(LEVEL_V3)
    return _mm256_set_m128(_mm256_cvtpd_ps(parts[1]), _mm256_cvtpd_ps(parts[0]));
#elif defined(__SSE2__)
    return _mm_movelh_ps(_mm_cvtpd_ps(parts[0]), _mm_cvtpd_ps(parts[1]));
#else
    return (vec){(float)parts[0][0], (float)parts[0][1], (float)parts[1][0], (float)parts[1][1]};
#endif
}
#endif

/* Some element is NaN or not in [0, 1]. */
INLINE int FN(outside)(const REAL *a, ptrdiff_t n)
{
    int outside = 0;
    for (ptrdiff_t i = 0; i < n; i++) outside |= !(a[i] >= 0 && a[i] <= 1);
    return outside;
}

#if REAL_BITS == 64
typedef enum { WITH_LOGITS, FOCAL, OF_PROBABILITIES } Formula;

/* What the elements of a call have in common. */
typedef struct {
    Formula formula;
    int order;                 /* of the derivatives that are wanted: 0, 1 or 2 */
    double scale;              /* of the derivatives */
    double gamma, alpha;       /* of FOCAL; alpha NaN: none */
} Options;

typedef struct { vec loss, grad, hess; } Derivatives;

/* 2^64 t, and t. A float64 t may be subnormal, 2^64 t is not. */
typedef struct { vec scaled, t; int may_be_subnormal; } Tail;

/* a * f, where f is t, or a number that equals t where t is tiny. Keeps the digits that a large `a` brings back. */
INLINE vec times(vec a, vec f, Tail tail)
{
    const vec product = a * f;
    if (!tail.may_be_subnormal) return product;
    return select_f64(not_less_f64(tail.scaled, splat_f64(0x1p-836)), product, a * tail.scaled * 0x1p-64);
}

/* a * f, which is 0 where a is, even if f is infinite. */
INLINE vec times_infinite(vec a, vec f) { return keep_f64(not_less_f64(absolute(a), splat_f64(0x1p-1074)), a * f); }

/* L = log1p(t) and r = 1 / (1 + t) for 0 <= t <= 1. For a result in float32 (`rough`) of one division:
 * s = t / (2 + t), log1p(t) = 2 s + s^3 q(s^2), with an error of the polynomial of 0.002 * 2^-24. */
typedef struct { vec L, r; } LogOfSum;

INLINE LogOfSum log_of_sum(vec t, int rough)
{
    if (!rough) return (LogOfSum){log1p_f64(t, 0), 1 / (1 + t)};
    const vec reciprocal = 1 / ((1 + t) * (2 + t)), s = t * (1 + t) * reciprocal, z = s * s;
    vec q = splat_f64(0x1.f1921894772b3p-3);
    q = fma_f64(q, z, splat_f64(0x1.b6df462f9ea72p-3));
    q = fma_f64(q, z, splat_f64(0x1.250901077f2a4p-2));
    q = fma_f64(q, z, splat_f64(0x1.9996ad0200dc3p-2));
    q = fma_f64(q, z, splat_f64(0x1.5555584f62268p-1));
    return (LogOfSum){t - s * (t - z * q), (2 + t) * reciprocal};
}

/* The terms are named after their size: the coefficient `near` goes with sigma(-|x|), `far` with sigma(|x|). */
INLINE Derivatives with_logits(vec x, Tail tail, vec a, vec b, double scale, int rough, int order)
{
    const LogOfSum sum = log_of_sum(tail.t, rough);
    const vec L = sum.L;
    const mask_f64 positive = not_less_f64(x, splat_f64(0));
    const vec near = select_f64(positive, a, b), far = select_f64(positive, b, a);
    Derivatives d = {times(near, L, tail) + times_infinite(far, absolute(x) + L), {0}, {0}};
    if (order >= 1) {
        const vec sigma = scale * sum.r, slope = select_f64(positive, sigma, -sigma);
        d.grad = far * slope - times(near * slope, tail.t, tail);
        if (order == 2) d.hess = times((a + b) * sigma * sum.r, tail.t, tail);
    }
    return d;
}

INLINE vec power(vec u, double gamma)
{
    if (gamma == 0) return splat_f64(1);
    if (gamma == 1) return u;
    if (gamma == 2) return u * u;
    if (gamma == 3) return u * u * u;
    if (gamma == 4) return (u * u) * (u * u);
    for (int i = 0; i < LANES; i++) u[i] = pow(u[i], gamma);
    return u;
}

/* c u^gamma BCE with u = 1 - p_t = sigma(x) (1 - y) + sigma(-x) y, whose terms are positive, and
 *
 *     grad = c u^gamma (BCE' + gamma u' / u BCE)        u' = sigma(x) sigma(-x) (1 - 2 y)
 *
 * With a hard target both terms have one sign. */
INLINE Derivatives focal(vec x, Tail tail, vec y, vec c, const Options *o, int rough, int order)
{
    const LogOfSum sum = log_of_sum(tail.t, rough);
    const vec t = tail.t, L = sum.L, sigma = sum.r;
    const mask_f64 positive = not_less_f64(x, splat_f64(0));
    const vec near = select_f64(positive, y, 1 - y), far = select_f64(positive, 1 - y, y);
    const vec rest = far + near * t, factor = c * power(sigma * rest, o->gamma); /* u = sigma rest */
    Derivatives d = {times(factor * near, L, tail) + times_infinite(factor * far, absolute(x) + L), {0}, {0}};
    if (order >= 1) {
        const vec slope = o->scale * factor * select_f64(positive, sigma, -sigma);
        const mask_f64 mixed = not_less_f64(far, splat_f64(0x1p-1074));
        const vec ratio = select_f64(mixed, t / rest, splat_f64(1)); /* sigma(-|x|) / u, also where both are 0 */
        const vec bce = near * L + times_infinite(far, absolute(x) + L);
        d.grad = (far * slope - times(near * slope, t, tail))
                 + o->gamma * (far - near) * slope * times_infinite(ratio, bce);
    }
    return d;
}

/* -a max(log p, -100) - b max(log(1 - p), -100), both logarithms as log1p of an argument that is small where they
 * are: log p = -log1p((1 - p) / p). Denominators below exp(-100) are raised a little way to it. */
INLINE vec of_probabilities(vec p, vec a, vec b, int rough)
{
    const vec q = 1 - p, least = splat_f64(0x1p-146), most = splat_f64(100);
    return a * lesser_f64(log1p_f64(q / larger_f64(p, least), rough), most)
           + b * lesser_f64(log1p_f64(p / larger_f64(q, least), rough), most);
}
#endif

INLINE Tail FN(tail)(vec e, int part)
{
#if REAL_BITS == 64
    const vec scaled = e * (1 / EXP_TABLE_SCALE);
    (void)part;
    return (Tail){scaled, scaled * 0x1p-64, 1};
#else
    return (Tail){{0}, widen_f32(e, part) * (1 / EXP_SCALE), 0};
#endif
}

/* A strip: where its elements are, all adjacent. The lanes beyond the last element are filled to a loss of 0. */
typedef struct {
    ptrdiff_t n;
    const REAL *given;          /* logits or probabilities */
    const REAL *target;         /* where the call is plain, */
    const double *a, *b;        /* else the coefficients above; of FOCAL y and c */
    REAL *loss, *grad, *hess;   /* each may be NULL */
} FN(Strip);

/* The last three arguments are constants. */
INLINE void FN(sweep_strip)(const FN(Strip) *s, const Options *o, sum_vec_f64 *sum, Formula formula, int order,
                            int plain)
{
    const REAL fill = formula == OF_PROBABILITIES ? 0 : -INFINITY;
    const int rough = REAL_BITS == 32;
    const FN(Exps) exps = FN(exps_against)(FN(splat)(0), &FN(plain_units));
    const Exps_f64 wide_exps = exps_against_f64(splat_f64(0), &plain_units_f64);
    vec_f64 strip_sum = {0}; /* for losses of 24 bits a plain sum is enough here */
    for (ptrdiff_t i = 0; i < s->n; i += LANES) {
        const ptrdiff_t n = s->n - i;
        const vec x = FN(take)(s->given + i, n, fill), y = plain ? FN(take)(s->target + i, n, 0) : x;
        const vec size = FN(absolute)(x), e = formula == WITH_LOGITS ? FN(exps)(-size, &exps) : x;
        vec_f64 loss[N_PARTS], grad[N_PARTS], hess[N_PARTS];
        for (int part = 0; part < N_PARTS; part++) {
            const vec_f64 wide = FN(widen)(x, part);
            vec_f64 a = FN(widen)(y, part), b = 1 - a;
            if (!plain) {
                a = load_f64(s->a + i + part * LANES_F64);
                b = load_f64(s->b + i + part * LANES_F64);
            }
            Derivatives d = {0};
            if (formula == WITH_LOGITS) d = with_logits(wide, FN(tail)(e, part), a, b, o->scale, rough, order);
            if (formula == FOCAL) {
                const Tail tail = tail_f64(exps_f64(-absolute(wide), &wide_exps), 0);
                d = focal(wide, tail, a, b, o, rough, order);
            }
            if (formula == OF_PROBABILITIES) d.loss = of_probabilities(wide, a, b, rough);
            loss[part] = d.loss;
            grad[part] = d.grad;
            hess[part] = d.hess;
            if (rough) strip_sum += d.loss;
            else add_f64(sum, d.loss);
        }
        if (s->loss) FN(give)(s->loss + i, n, FN(narrow)(loss));
        if (order >= 1) FN(give)(s->grad + i, n, FN(narrow)(grad));
        if (order == 2) FN(give)(s->hess + i, n, FN(narrow)(hess));
    }
    if (rough) add_f64(sum, strip_sum);
}
