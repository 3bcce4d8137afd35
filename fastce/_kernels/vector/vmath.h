/* exp and log1p of a vector, for the arguments that cross-entropy has.
 *
 * Included once per REAL_BITS, after simd.h. Coefficients and their error: the output of
 * tools/fit_polynomials.py, minimax fits whose coefficients are rounded one by one.
 * Worst errors are measured again by tests/vector/test_vmath.py, at every level.
 */

#ifndef FASTCE_VMATH_H
#define FASTCE_VMATH_H
#define LN2 0x1.62e42fefa39efp-1
#define LN2_TAIL 0x1.abc9e3b39803fp-56 /* ln 2 - LN2 */
#if defined(LEVEL_V4) /* where a table in registers costs one permutation */
#define EXP_TABLE_BITS_F64 4
#define EXP_TABLE_BITS_F32 4
#elif defined(LEVEL_V3)
#define EXP_TABLE_BITS_F64 0
#define EXP_TABLE_BITS_F32 3
#else
#define EXP_TABLE_BITS_F64 0
#define EXP_TABLE_BITS_F32 0
#endif
#endif

#undef LOG2E
#undef LN2_HI
#undef LN2_LO
#undef EXP_SHIFT
#undef EXP_POWER
#undef EXP_SCALE
#undef EXP_LOWEST
#undef LEAST_LOG
#undef NEAR
#undef FAR
#undef TO_INTEGER
#undef STEPS
#undef REST_SCALE
#undef EXPONENT_BIAS
#undef MANTISSA_BITS
#undef EXP_TABLE_BITS
#undef EXP_TABLE_SCALE
#undef EXP_TABLE_RECIPROCAL_LOW
#undef EXP_TABLE_STEPS
#undef EXP_TABLE_LEFT
#if REAL_BITS == 64
#define EXP_TABLE_BITS EXP_TABLE_BITS_F64
#else
#define EXP_TABLE_BITS EXP_TABLE_BITS_F32
#endif
#if EXP_TABLE_BITS == 0
#define EXP_TABLE_SCALE 1.0 /* = 2^(EXP_TABLE_STEPS / 2^EXP_TABLE_BITS) exp(-EXP_TABLE_LEFT) */
#define EXP_TABLE_STEPS 0
#define EXP_TABLE_LEFT 0.0
#define EXP_TABLE_RECIPROCAL_LOW 0.0
#elif REAL_BITS == 64
#define EXP_TABLE_SCALE 0x1.5245d0c3dd31p+0
#define EXP_TABLE_STEPS 6
#define EXP_TABLE_LEFT -0x1.331d560fdaa20p-6
#define EXP_TABLE_RECIPROCAL_LOW -0x1.73b93fcc48b35p-55 /* what 1 / EXP_TABLE_SCALE loses as a double */
#elif EXP_TABLE_BITS == 4
#define EXP_TABLE_SCALE 0x1.13fc91b861865p+0
#define EXP_TABLE_STEPS 2
#define EXP_TABLE_LEFT 0x1.77cd08699c33bp-7
#define EXP_TABLE_RECIPROCAL_LOW 0.0
#else
#define EXP_TABLE_SCALE 0x1.691c89ef4b576p+0
#define EXP_TABLE_STEPS 4
#define EXP_TABLE_LEFT 0x1.501c2adc9f8c1p-9
#define EXP_TABLE_RECIPROCAL_LOW 0.0
#endif
#undef STEP_HIGH_BITS
#undef UNITS_FIELD
#if REAL_BITS == 64
#define UNITS_FIELD f64
#define STEP_HIGH_BITS 39
#define LOG2E 0x1.71547652b82fep+0
#define LN2_HI 0x1.62e42fefa4p-1 /* n * LN2_HI is exact for |n| <= 4096 */
#define LN2_LO -0x1.8432a1b0e2634p-43
#define EXP_SHIFT 64 /* see Exps */
#define EXP_POWER 0x1p64
#define EXP_LOWEST -752.0
#define LEAST_LOG -745.2 /* of what does not round to 0 */
#define NEAR 300.0 /* exps this far above m do not overflow */
#define FAR 1504.0 /* -2 EXP_LOWEST */
#define REST_SCALE REST_SCALE_F64
#define EXPONENT_BIAS 1023
#define MANTISSA_BITS 52
#else
#define UNITS_FIELD f32
#define STEP_HIGH_BITS 14
#define LOG2E 0x1.715476p+0f
#define LN2_HI 0x1.62e8p-1f /* n * LN2_HI is exact for |n| <= 1024 */
#define LN2_LO -0x1.e8082ep-16f
#define EXP_SHIFT 96
#define EXP_POWER 0x1p96
#define EXP_LOWEST -153.0f
#define LEAST_LOG -104.0f
#define NEAR 19.0f
#define FAR 306.0f
#define REST_SCALE 1.0 /* of r in Rows: no float32 r is subnormal as a float64 */
#define EXPONENT_BIAS 127
#define MANTISSA_BITS 23
#endif
#define EXP_SCALE (EXP_TABLE_SCALE * EXP_POWER) /* of exps, see Exps */
#define STEPS ((REAL)(1 << EXP_TABLE_BITS)) /* steps of the table in a factor of 2 */
#define TO_INTEGER ((REAL)((INT)3 << (MANTISSA_BITS - 1))) /* added to n it leaves n in the low bits */

/* EXP_TABLE_SCALE 2^(i / 2^EXP_TABLE_BITS + k) for `bits` that hold, from the lowest up, i and the biased exponent
 * k. A table's entry is a number's bits less those of 1 and what i adds when it is shifted into the exponent with
 * k. The scale is one for which all entries are almost floats: their errors, in 2^-MANTISSA_BITS / 2, are 0.05
 * (float32, 8 entries), 0.26 (float32, 16) and 0.15 (float64, 16) instead of up to 1. */
INLINE vec FN(power_of_two)(uvec bits)
{
#if EXP_TABLE_BITS == 4 && REAL_BITS == 64
    const __m512i low = _mm512_setr_epi64(
        0x5245d0c3dd310, 0x513fd40d740de, 0x50e396614ea37, 0x51389baaafe92,
        0x5246bd02b8f98, 0x54162c75d6b3b, 0x56af78f3ed9c6, 0x5a1b926d28731);
    const __m512i high = _mm512_setr_epi64(
        0x5e63ce1d6362c, 0x6391eb08441b3, 0x64d80b541341f, 0x606478e90f135,
        0x5c73cae8b2f8d, 0x590bccde5949a, 0x56328c03fbc1b, 0x53ee5a2aa5ec9);
    const uvec entry = (uvec)_mm512_permutex2var_epi64(low, (__m512i)bits, high);
#elif EXP_TABLE_BITS == 4
    const __m512i table = _mm512_setr_epi32(
        0x9fe49, 0x81a50, 0x67b96, 0x5252c, 0x41a45, 0x35e39, 0x2f486, 0x2e0d1,
        0x326e9, 0x3cac8, 0x4d094, 0x63ca4, 0x8137e, 0xa59dd, 0xd14b1, 0xc2491);
    const uvec entry = (uvec)_mm512_permutexvar_epi32((__m512i)bits, table);
#elif EXP_TABLE_BITS == 3
    const __m256i table = _mm256_setr_epi32(
        0x348e45, 0x34e5be, 0x36b7da, 0x3a26de, 0x3f5829, 0x3b3a3e, 0x37d424, 0x359202);
    const uvec entry = (uvec)_mm256_permutevar8x32_epi32(table, (__m256i)bits);
#else
    const uvec entry = {0};
#endif
    return (vec)(entry + (bits << (MANTISSA_BITS - EXP_TABLE_BITS)));
}

/* The exps of a row, against a number m near its logits: its target's or its largest.
 *
 * exp(x - m) needs the rounding error of x - m, or it is off by |x - m| / 2 ULP. Instead each x is reduced as
 * it is, x = n step + t with step = ln 2 / 2^EXP_TABLE_BITS, and m as well, m = k ln 2 + offset:
 *
 *     exp(x - m) = 2^(n / 2^EXP_TABLE_BITS - k) exp(t) * exp(-offset).
 *
 * The last factor is the same for all of the row and is left out here. So the digits of an exp depend on x alone,
 * and m moves its exponent: equal logits have equal exps, and a larger logit never the smaller one
 * (tests/vector/test_vmath.py tries neighbours). Where |m| >= FAR both are reduced from m on: x - m is exact then
 * for each x whose exp is not 0 (Sterbenz' lemma). So `base` is 0 or m.
 *
 *     exps(x) = exp(x - m) exp(offset) EXP_SCALE
 *
 * EXP_SCALE is EXP_POWER times the scale of the table. The power of two keeps the digits of terms that would be
 * subnormal or zero, so that a large weight can still bring them back; terms below exp(EXP_LOWEST) are +0, those
 * above exp(NEAR) are not numbers of use. NaN stays NaN, and so does all of a row whose m is infinite. */
typedef struct { vec high, low; } FN(Sum); /* unevaluated */
typedef FN(Sum) FN(Reduced); /* low is 0 where a table makes it small enough for one REAL */

typedef struct { vec base, bias, lowest; FN(Reduced) offset; FN(Units) units; } FN(Exps);

INLINE const FN(Units) *FN(units)(const Temperature *temperature) { return &temperature->UNITS_FIELD; }

/* Logits as they are, and those that a temperature divides: exp(x / T) is exp(x) in units of T. */
static const FN(Units) FN(plain_units) = {
    (REAL)LOG2E * STEPS, LN2_HI / STEPS, LN2_LO / STEPS, 1, EXP_LOWEST, FAR
};

/* `step_high` has as many bits as LN2_HI. high + low = T ln 2 and inverse = 1 / T. */
INLINE FN(Units) FN(scaled_units)(double high, double low, double inverse)
{
    int exponent;
    const double mantissa = frexp(high, &exponent);
    const double part = ldexp(rint(ldexp(mantissa, STEP_HIGH_BITS)), exponent - STEP_HIGH_BITS);
    return (FN(Units)){(REAL)(STEPS * inverse / LN2), (REAL)part / STEPS, (REAL)((high - part) + low) / STEPS,
                       (REAL)inverse, (REAL)(EXP_LOWEST / inverse), (REAL)(FAR / inverse)};
}

/* (d - n step) / T for an integer n: the first product and difference are exact. */
INLINE FN(Reduced) FN(reduce)(vec d, vec n, const FN(Units) *units)
{
    const vec high = FN(fma)(n, FN(splat)(-units->step_high), d), low = FN(splat)(-units->step_low);
    const vec inverse = FN(splat)(units->inverse);
#if EXP_TABLE_BITS > 0
    return (FN(Reduced)){FN(fma)(n, low, high) * inverse, {0}};
#else
    return (FN(Reduced)){high * inverse, n * low * inverse};
#endif
}

INLINE FN(Exps) FN(exps_against)(vec m, const FN(Units) *units)
{
    const vec base = FN(keep)(FN(not_less)(FN(absolute)(m), FN(splat)(units->far)), m), d = m - base;
    const vec doublings = FN(fma)(d, FN(splat)(units->per_step / STEPS), FN(splat)(TO_INTEGER)) - TO_INTEGER;
    const vec n = STEPS * doublings, inverse = FN(splat)(units->inverse);
    const FN(Reduced) offset = {FN(fma)(n, FN(splat)(-units->step_high), d) * inverse,
                                n * FN(splat)(-units->step_low) * inverse};
    return (FN(Exps)){base, TO_INTEGER + STEPS * (EXPONENT_BIAS + EXP_SHIFT) - n, d + units->lowest, offset, *units};
}

#if REAL_BITS == 64
/* exp(t) - 1 for |t| <= 0.3467. */
INLINE vec FN(expm1_wide)(FN(Reduced) given)
{
    const vec t = given.high + given.low, square = t * t;
    /* Two chains: one would fill the queues of what waits. Relative error of the polynomial: 0.034 * 2^-53 */
    vec odd = FN(splat)(0x1.ad9bf721fa0d1p-26), even = FN(splat)(0x1.28ad74f67b769p-22);
    odd = FN(fma)(odd, square, FN(splat)(0x1.71df0f456cd4ap-19));
    even = FN(fma)(even, square, FN(splat)(0x1.a01999f901be3p-16));
    odd = FN(fma)(odd, square, FN(splat)(0x1.a01a0136d45ecp-13));
    even = FN(fma)(even, square, FN(splat)(0x1.6c16c1843e9bap-10));
    odd = FN(fma)(odd, square, FN(splat)(0x1.1111111124b12p-7));
    even = FN(fma)(even, square, FN(splat)(0x1.555555555079p-5));
    odd = FN(fma)(odd, square, FN(splat)(0x1.555555555550bp-3));
    const vec q = FN(fma)(FN(fma)(even, t, odd), t, FN(splat)(0x1.000000000000ap-1));
    return given.high + FN(fma)(q, square, given.low);
}
#endif

/* exp(t) - 1 for |t| <= 0.3467 / 2^EXP_TABLE_BITS */
INLINE vec FN(expm1_reduced)(FN(Reduced) given)
{
#if REAL_BITS == 64 && EXP_TABLE_BITS == 0
    return FN(expm1_wide)(given);
#else
#if EXP_TABLE_BITS > 0
    const vec t = given.high;
#else
    const vec t = given.high + given.low;
#endif
    vec q;
#if REAL_BITS == 64 /* relative error of the polynomial: 0.105 * 2^-53 */
    q = FN(splat)(0x1.6c14c8e50ea66p-10);
    q = FN(fma)(q, t, FN(splat)(0x1.11123ae506e77p-7));
    q = FN(fma)(q, t, FN(splat)(0x1.55555558f9facp-5));
    q = FN(fma)(q, t, FN(splat)(0x1.555555548f40dp-3));
    q = FN(fma)(q, t, FN(splat)(0x1.fffffffffffb9p-2));
#elif EXP_TABLE_BITS == 4 /* 0.027 * 2^-24 */
    q = FN(splat)(0x1.5556c6p-3f);
    q = FN(fma)(q, t, FN(splat)(0x1.00022p-1f));
#elif EXP_TABLE_BITS == 3 /* 0.003 * 2^-24 */
    q = FN(splat)(0x1.55568ep-5f);
    q = FN(fma)(q, t, FN(splat)(0x1.555c7p-3f));
    q = FN(fma)(q, t, FN(splat)(0x1.0p-1f));
#else /* 0.053 * 2^-24 */
    q = FN(splat)(0x1.6a4f88p-10f);
    q = FN(fma)(q, t, FN(splat)(0x1.123988p-7f));
    q = FN(fma)(q, t, FN(splat)(0x1.5558aep-5f));
    q = FN(fma)(q, t, FN(splat)(0x1.555492p-3f));
    q = FN(fma)(q, t, FN(splat)(0x1.fffffcp-2f));
#endif
#if EXP_TABLE_BITS > 0
    return FN(fma)(q, t * t, t);
#else
    return given.high + FN(fma)(q, t * t, given.low);
#endif
#endif
}

/* exp(x - m) exp(offset) EXP_SCALE in some lanes, +0 in the others.
 *
 * 1. d = x - base.
 * 2. n = d / step rounded: adding 1.5 * 2^MANTISSA_BITS leaves the integer in the low bits. `bias` has n_m,
 *    the exponent's bias and EXP_SHIFT as well, so the bits are those of the power of two.
 * 3. t = d - n step, |t| <= 0.3467 / 2^EXP_TABLE_BITS.
 * 4. exp(t) = 1 + (t + t^2 q(t)), a table and a power of two times that.
 *
 * Worst error over all float32 and all m: 0.891 ULP at 4.506326 (baseline), 0.591 ULP at 114.50809 (v3),
 * 0.753 ULP at -4.3594866 (v4); for float64, sampled: 0.87, 0.86 and 0.80 ULP. Without a table t is large
 * enough for its own rounding to show. */
typedef struct { FN(mask) where; vec power, expm1; } FN(Exp); /* power (1 + expm1), or 0 */

INLINE vec FN(shifted)(vec d, const FN(Exps) *exps) { return FN(fma)(d, FN(splat)(exps->units.per_step), exps->bias); }

INLINE FN(Exp) FN(exp_of_reduced)(FN(mask) where, vec shifted, FN(Reduced) t)
{
    return (FN(Exp)){where, FN(power_of_two)((uvec)shifted), FN(expm1_reduced)(t)};
}

INLINE FN(Exp) FN(exp_of_distance)(FN(mask) where, vec d, const FN(Exps) *exps)
{
    const vec shifted = FN(shifted)(d, exps);
    return FN(exp_of_reduced)(where, shifted, FN(reduce)(d, shifted - exps->bias, &exps->units));
}

INLINE FN(Exp) FN(exp_where)(FN(mask) where, vec x, const FN(Exps) *exps)
{
    const vec d = x - exps->base;
    return FN(exp_of_distance)(where & FN(not_less)(d, exps->lowest), d, exps);
}

INLINE vec FN(value)(FN(Exp) e) { return FN(keep_fma)(e.where, e.power, e.expm1, e.power); }

/* What that has lost by its rounding. */
INLINE vec FN(lost)(FN(Exp) e, vec value)
{
    return FN(keep_fma)(e.where, e.power, e.expm1, e.power - value);
}

INLINE vec FN(exps_where)(FN(mask) where, vec x, const FN(Exps) *exps)
{
    return FN(value)(FN(exp_where)(where, x, exps));
}

/* All rows are plain logits and reduced from 0, as most are. A loop over `near_exps` of them needs no subtraction
 * and no registers for constants; no bit changes. */
INLINE int FN(are_near)(const FN(Exps) *exps)
{
    return exps->units.inverse == 1 && FN(every_lane)(FN(not_less)(FN(splat)(0), FN(larger)(exps->base, -exps->base)));
}

INLINE FN(Exps) FN(near_exps)(FN(Exps) exps)
{
    exps.base = (vec){0};
    exps.units = FN(plain_units);
    return exps;
}

INLINE vec FN(exps)(vec x, const FN(Exps) *exps) { return FN(exps_where)(EVERY_LANE, x, exps); }

/* exp(-offset) - 1 of LANES_F64 rows, the first of which is in lane k. */
INLINE vec_f64 FN(correction)(const FN(Exps) *exps, ptrdiff_t k)
{
    REAL high[LANES_COUNT], low[LANES_COUNT];
    FN(store)(high, exps->offset.high);
    FN(store)(low, exps->offset.low);
    return expm1_wide_f64((Reduced_f64){-FN(load_wide)(high + k), -FN(load_wide)(low + k)});
}

/* 1 / u to a twentieth, for positive normal numbers. */
INLINE vec FN(nearly_reciprocal)(vec u)
{
    return (vec)((UINT)(REAL_BITS == 64 ? 0x7fde623822fc16e6 : 0x7ef311c2) - (uvec)u);
}

#if REAL_BITS == 64
/* log(1 + t + low) for finite t >= 0, or NaN; `low` is what t lacks: an ULP of t may be two of the result, just
 * above a power of two. `rough`: with a relative error of up to 2^-30, for a result in float32.
 *
 * 1. u = 1 + t; c = what that rounding lost.
 * 2. u = 2^k z, 1 - 1/64 <= z < 2 - 1/32 with AVX-512 and sqrt(1/2) <= z < sqrt(2) without.
 * 3. AVX-512: 1/f and -log(1/f) from a table of f about 1, 1 + 1/16, ..., such that both are close to
 *    floats (S. Gal); r = z / f - 1, |r| <= 1/32, and c joins it; log(1 + r) = r + r^2 q(r). Near t = 0 the
 *    entries are 1 and 0, and r = t exactly.
 *    Without: f = z - 1, or t itself if k = 0; s = f / (2 + f), log z = 2s + s^3 q(s^2).
 * 4. Add k ln 2 in two parts.
 *
 * Worst error, sampled: 1.60 ULP with AVX-512, just above t = 1/32, 0.91 ULP without, near t = 0.284. */
INLINE vec FN(log1p_of_sum)(vec t, vec low, int rough)
{
    vec u = t + 1, c = t - (u - 1);
#ifdef LEVEL_V4
    const __m512d reciprocal_low = _mm512_setr_pd(
        0x1.0p+0, 0x1.e1e2c401e1e1ep-1, 0x1.c71cc9671c71cp-1, 0x1.af28d72a1af28p-1,
        0x1.9998ea999999ap-1, 0x1.8618dbc618618p-1, 0x1.745d5845d1746p-1, 0x1.642d13b0b2164p-1);
    const __m512d reciprocal_high = _mm512_setr_pd(
        0x1.5555275555555p-1, 0x1.47aee31ae147bp-1, 0x1.3b13653b13b14p-1, 0x1.2f68f1ba12f68p-1,
        0x1.2493372492492p-1, 0x1.1a7aba31a7b96p-1, 0x1.1110b95111111p-1, 0x1.0842214421084p-1);
    const __m512d log_low = _mm512_setr_pd(
        0x0.0p+0, 0x1.f09407e49c18bp-5, 0x1.e26d6242fb19ep-4, 0x1.5ff10902b8bf9p-3,
        0x1.c902e77a648dcp-3, 0x1.167489d2eca98p-2, 0x1.46180961d5861p-2, 0x1.739be6d00e869p-2);
    const __m512d log_high = _mm512_setr_pd(
        0x1.9f32c8cc02d15p-2, 0x1.c8fcf6c675365p-2, 0x1.f129ecfb0e38ep-2, 0x1.0be616589f2c1p-1,
        0x1.1e845567ad74cp-1, 0x1.307f01bb8c257p-1, 0x1.41d9a30c819a9p-1, 0x1.52a2b1f1bd62p-1);
    const __m512i half_interval = _mm512_set1_epi64((int64_t)1 << (MANTISSA_BITS - 5));
    __m512i bits = _mm512_add_epi64((__m512i)u, half_interval), entry = _mm512_srli_epi64(bits, MANTISSA_BITS - 4);
    vec k = _mm512_getexp_pd((vec)bits);
    vec reciprocal = _mm512_permutex2var_pd(reciprocal_low, entry, reciprocal_high);
    vec log_f = _mm512_permutex2var_pd(log_low, entry, log_high);
    reciprocal = _mm512_scalef_pd(reciprocal, -k);
    vec r = FN(fma)(c, reciprocal, FN(fma)(u, reciprocal, FN(splat)(-1))), q;
    if (rough) {
        q = FN(splat)(0x1.9a01b3e25cdffp-3); /* relative error of the polynomial: 0.006 * 2^-24 */
        q = FN(fma)(q, r, FN(splat)(-0x1.00357c7189347p-2));
        q = FN(fma)(q, r, FN(splat)(0x1.5555512672364p-2));
        q = FN(fma)(q, r, FN(splat)(-0x1.fffffca787093p-2));
        return FN(fma)(k, FN(splat)(LN2_HI), log_f) + FN(fma)(q, r * r, r);
    }
    q = FN(splat)(0x1.c802938859ef1p-4); /* relative error of the polynomial: 0.102 * 2^-53 */
    q = FN(fma)(q, r, FN(splat)(-0x1.0073a456389bbp-3));
    q = FN(fma)(q, r, FN(splat)(0x1.249230825cfbfp-3));
    q = FN(fma)(q, r, FN(splat)(-0x1.55553f97eb97dp-3));
    q = FN(fma)(q, r, FN(splat)(0x1.9999999bb3b82p-3));
    q = FN(fma)(q, r, FN(splat)(-0x1.00000000c18cap-2));
    q = FN(fma)(q, r, FN(splat)(0x1.55555555554ep-2));
    q = FN(fma)(q, r, FN(splat)(-0x1.fffffffffffc6p-2));
    const vec small = r + FN(fma)(q, r * r, FN(fma)(k, FN(splat)(LN2_LO), low * reciprocal));
    return FN(fma)(k, FN(splat)(LN2_HI), log_f) + small;
#else
    typedef uint64_t bits_vec __attribute__((vector_size(VECTOR_BYTES)));
    const uint64_t one = 0x3ff0000000000000, sqrt_half = 0x3fe6a09e667f3bcd;
    bits_vec bits = (bits_vec)u + (one - sqrt_half);
    ivec exponent = (ivec)(bits >> MANTISSA_BITS) - EXPONENT_BIAS, near_one = exponent == 0;
    vec k = (vec)(exponent + (ivec)FN(splat)(TO_INTEGER)) - TO_INTEGER;
    vec f = (vec)((bits & ((1ull << MANTISSA_BITS) - 1)) + sqrt_half) - 1;
    f = FN(select)(near_one, t, f);
    const vec s = f / (f + 2), z = s * s;
    vec q;
    if (rough) {
        q = FN(splat)(0x1.31e1fbe9cb29p-2); /* relative error of the polynomial: 0.014 * 2^-24 */
        q = FN(fma)(q, z, FN(splat)(0x1.995ec609ce259p-2));
        q = FN(fma)(q, z, FN(splat)(0x1.55557a1569363p-1));
        return FN(fma)(k, FN(splat)(LN2_HI), f - s * (f - z * q)) + 0 * t;
    }
    c = (FN(keep)(~near_one, c) + low) * FN(nearly_reciprocal)(u);
    q = FN(splat)(0x1.2f0440420a9f8p-3); /* relative error of the polynomial: 0.011 * 2^-53 */
    q = FN(fma)(q, z, FN(splat)(0x1.39a1df2e91e3fp-3));
    q = FN(fma)(q, z, FN(splat)(0x1.74663d28a2d6ep-3));
    q = FN(fma)(q, z, FN(splat)(0x1.c71c5213d5964p-3));
    q = FN(fma)(q, z, FN(splat)(0x1.24924941e1426p-2));
    q = FN(fma)(q, z, FN(splat)(0x1.999999997ff21p-2));
    q = FN(fma)(q, z, FN(splat)(0x1.5555555555592p-1));
    const vec small = FN(fma)(k, FN(splat)(LN2_LO), c) - s * (f - z * q);
    return FN(fma)(k, FN(splat)(LN2_HI), f + small) + 0 * t; /* 0 * t: NaN stays NaN */
#endif
}

INLINE vec FN(log1p)(vec t, int rough) { return FN(log1p_of_sum)(t, (vec){0}, rough); }
INLINE FN(Sum) FN(log1p_of_pair)(vec t, vec low) { return (FN(Sum)){FN(log1p_of_sum)(t, low, 0), {0}}; }
INLINE FN(Sum) FN(log1p_of_fraction)(vec t, vec low) { return FN(log1p_of_pair)(t, low); }
#else
/* k ln 2 + log(1 + f) + low = k ln 2 + f + f^2 q(f) + low for sqrt(1/2) - 1 <= f <= 1/2. What the last sums lose is the
 * result's low part. Two chains: relative error of the polynomial: 0.029 * 2^-24. */
INLINE FN(Sum) FN(log_of_parts)(vec k, vec f, vec low)
{
    const vec square = f * f;
    vec odd = FN(splat)(0x1.848b4ep-5f), even = FN(splat)(-0x1.ac3bep-4f);
    odd = FN(fma)(odd, square, FN(splat)(0x1.f366c4p-4f));
    even = FN(fma)(even, square, FN(splat)(-0x1.033be4p-3f));
    odd = FN(fma)(odd, square, FN(splat)(0x1.22f6f6p-3f));
    even = FN(fma)(even, square, FN(splat)(-0x1.54ffe6p-3f));
    odd = FN(fma)(odd, square, FN(splat)(0x1.99a516p-3f));
    even = FN(fma)(even, square, FN(splat)(-0x1.000138p-2f));
    odd = FN(fma)(odd, square, FN(splat)(0x1.555548p-2f));
    even = FN(fma)(even, square, FN(splat)(-0x1.fffffep-2f));
    const vec rest = FN(fma)(FN(fma)(odd, f, even), square, FN(fma)(k, FN(splat)(LN2_LO), low));
    const vec sum = f + rest, high = FN(fma)(k, FN(splat)(LN2_HI), sum);
    return (FN(Sum)){high, (sum - FN(fma)(k, FN(splat)(-LN2_HI), high)) + (rest - (sum - f))};
}

/* log(1 + t + low) for 0 <= t < 2^126 and a `low` below an ULP of t, or NaN: u = 1 + t, c what that rounding lost;
 * u = 2^k z, sqrt(1/2) <= z < sqrt(2); f = z - 1 + c / 2^k, which is t itself where k = 0.
 *
 * Worst error, of every 61st float32: 0.969 ULP at 0.456944495 with FMA, 1.043 ULP at 0.428606421 without. */
INLINE FN(Sum) FN(log1p_of_pair)(vec t, vec low)
{
    const UINT one = 0x3f800000, sqrt_half = 0x3f3504f3, mantissa = 0x7fffff;
    const vec u = t + 1, c = t - (u - 1);
    const uvec bits = (uvec)u + (one - sqrt_half), exponent = bits & ~mantissa;
    const vec k = (vec)((exponent >> MANTISSA_BITS) + ((uvec)FN(splat)(TO_INTEGER) - EXPONENT_BIAS)) - TO_INTEGER;
    const vec unit = (vec)(2 * one - exponent), near_f = (vec)((bits & mantissa) + sqrt_half) - 1; /* unit: 2^-k */
    const vec lost = c * unit, f = near_f + lost;
    return FN(log_of_parts)(k, f, FN(fma)(low, FN(nearly_reciprocal)(u), lost - (f - near_f)));
}

/* The same for t <= 1: there f is exact. */
INLINE FN(Sum) FN(log1p_of_fraction)(vec t, vec low)
{
    const FN(mask) upper = FN(not_less)(t, FN(splat)(0.5f));
    const vec f = FN(select)(upper, FN(fma)(t, FN(splat)(0.5f), FN(splat)(-0.5f)), t);
    return FN(log_of_parts)(FN(keep)(upper, FN(splat)(1)), f, low * FN(nearly_reciprocal)(t + 1));
}
#endif

/* The functions over arrays, for the tests that measure them. `base` and `n` say what the exps are against:
 * exps(x) = exp((x - base) - n step) * EXP_SCALE. */
INLINE void FN(exp_array)(const REAL *x, ptrdiff_t count, REAL m, REAL *out, double *base, double *n)
{
    const FN(Exps) exps = FN(exps_against)(FN(splat)(m), &FN(plain_units));
    *base = exps.base[0];
    *n = TO_INTEGER + STEPS * (EXPONENT_BIAS + EXP_SHIFT) - exps.bias[0];
    for (ptrdiff_t i = 0; i < count; i += LANES) {
        const ptrdiff_t k = count - i < LANES ? count - i : LANES;
        FN(store_n)(out + i, k, FN(exps)(FN(load_n)(x + i, k, 0), &exps));
    }
}

static const double FN(exp_scale) = EXP_SCALE;
static const int FN(exp_steps) = 1 << EXP_TABLE_BITS;

INLINE void FN(log1p_array)(const REAL *t, ptrdiff_t n, REAL *out)
{
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t k = n - i < LANES ? n - i : LANES;
        FN(store_n)(out + i, k, FN(log1p_of_pair)(FN(load_n)(t + i, k, 0), (vec){0}).high);
    }
}
