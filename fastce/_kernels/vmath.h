/* exp and log1p of a vector, for the arguments that cross-entropy has.
 *
 * Included once per REAL_BITS, after simd.h. Coefficients and their error: the output of
 * tools/fit_polynomials.py, minimax fits whose coefficients are rounded one by one.
 * Worst errors are measured again by tests/test_vmath.py, at every level.
 */

#undef LOG2E
#undef LN2_HI
#undef LN2_LO
#undef EXP_SHIFT
#undef EXP_SCALE
#undef EXP_LOWEST
#undef EXPONENT_BIAS
#undef MANTISSA_BITS
#undef EXP_TABLE_BITS
#if defined(LEVEL_V4) /* where a table in registers costs one permutation */
#define EXP_TABLE_BITS 4
#elif defined(LEVEL_V3) && REAL_BITS == 32
#define EXP_TABLE_BITS 3
#else
#define EXP_TABLE_BITS 0
#endif
#if REAL_BITS == 64
#define LOG2E 0x1.71547652b82fep+0
#define LN2_HI 0x1.62e42fefa4p-1 /* n * LN2_HI is exact for |n| <= 4096 */
#define LN2_LO -0x1.8432a1b0e2634p-43
#define EXP_SHIFT 64 /* see exp_from */
#define EXP_SCALE 0x1p64
#define EXP_LOWEST -752.0
#define EXPONENT_BIAS 1023
#define MANTISSA_BITS 52
#else
#define LOG2E 0x1.715476p+0f
#define LN2_HI 0x1.62e4p-1f /* n * LN2_HI is exact for |n| <= 512 */
#define LN2_LO 0x1.7f7d1cp-20f
#define EXP_SHIFT 96
#define EXP_SCALE 0x1p96f
#define EXP_LOWEST -153.0f
#define EXPONENT_BIAS 127
#define MANTISSA_BITS 23
#endif

/* 2^(i / 2^EXP_TABLE_BITS + k) for `bits` that hold, from the lowest up, i and the biased exponent k.
 * A table's entry is a power of two less what i adds when it is shifted into the exponent with k. */
INLINE vec FN(power_of_two)(ivec bits)
{
#if EXP_TABLE_BITS == 4 && REAL_BITS == 64
    const __m512i low = _mm512_setr_epi64(
        0x0, 0xffffb5586cf9890f, 0xffff72b83c7d517b, 0xffff387a6e756238,
        0xffff06fe0a31b715, 0xfffedea64c123422, 0xfffebfdad5362a27, 0xfffeab07dd485429);
    const __m512i high = _mm512_setr_epi64(
        0xfffea09e667f3bcd, 0xfffea11473eb0187, 0xfffeace5422aa0db, 0xfffec49182a3f090,
        0xfffee89f995ad3ad, 0xffff199bdd85529c, 0xffff5818dcfba487, 0xffffa4afa2a490da);
    ivec entry = (ivec)_mm512_permutex2var_epi64(low, (__m512i)bits, high);
#elif EXP_TABLE_BITS == 4
    const __m512i table = _mm512_setr_epi32(
        0x0, 0xfffdaac3, 0xfffb95c2, 0xfff9c3d3, 0xfff837f0, 0xfff6f532, 0xfff5fed7, 0xfff5583f,
        0xfff504f3, 0xfff508a4, 0xfff5672a, 0xfff6248c, 0xfff744fd, 0xfff8ccdf, 0xfffac0c7, 0xfffd257d);
    ivec entry = (ivec)_mm512_permutexvar_epi32((__m512i)bits, table);
#elif EXP_TABLE_BITS == 3
    const __m256i table = _mm256_setr_epi32(
        0x0, 0xfffb95c2, 0xfff837f0, 0xfff5fed7, 0xfff504f3, 0xfff5672a, 0xfff744fd, 0xfffac0c7);
    ivec entry = (ivec)_mm256_permutevar8x32_epi32(table, (__m256i)bits);
#else
    const ivec entry = {0};
#endif
    return (vec)(entry + (bits << (MANTISSA_BITS - EXP_TABLE_BITS)));
}

/* exp(x - m) * 2^EXP_SHIFT for x <= m.
 *
 * The power of two keeps the digits of terms that would be subnormal or zero, so that a large
 * weight can still bring them back; terms below exp(EXP_LOWEST) are +0. NaN stays NaN,
 * x = m = +-inf is NaN.
 *
 * 1. d + err = x - m exactly (Dekker's FastTwoSum, larger term first). Without err the result is off
 *    by |d| / 2 ULP.
 * 2. n = d / ln 2 * 2^EXP_TABLE_BITS rounded: adding 1.5 * 2^MANTISSA_BITS leaves the integer in the low
 *    bits. The exponent's bias and EXP_SHIFT ride along.
 * 3. t = (d - n ln2_hi) + (err - n ln2_lo), |t| <= 0.3467 / 2^EXP_TABLE_BITS; the first
 *    parenthesis is exact, or as good as.
 * 4. exp(t) = 1 + (t + t^2 q(t)), a table and a power of two times that.
 *
 * Worst error for all float32 x below m = 0: 0.989 ULP at -5.853371 (baseline), 0.890 ULP at -11.4862175
 * (v3), 0.990 ULP at -22.029484 (v4); for float64, sampled: 0.99 ULP, with the table 1.11 ULP. It does
 * not depend on m.
 */
INLINE vec FN(exp_from)(vec x, vec m)
{
    const REAL steps = 1 << EXP_TABLE_BITS;
    const REAL to_integer = (REAL)3 * ((INT)1 << (MANTISSA_BITS - 1)) + steps * (EXPONENT_BIAS + EXP_SHIFT);
    vec d = x - m;
    vec err = FN(larger)(x, -m) - (d - FN(lesser)(x, -m));
    vec shifted = FN(fma)(d, FN(splat)(LOG2E * steps), FN(splat)(to_integer));
    vec n = shifted - to_integer;
    vec t = FN(fma)(n, FN(splat)(-LN2_HI / steps), d) + FN(fma)(n, FN(splat)(-LN2_LO / steps), err);
    vec q;
#if REAL_BITS == 64 && EXP_TABLE_BITS == 4 /* relative error of the polynomial: 0.105 * 2^-53 */
    q = FN(splat)(0x1.6c14c8e50ea66p-10);
    q = FN(fma)(q, t, FN(splat)(0x1.11123ae506e77p-7));
    q = FN(fma)(q, t, FN(splat)(0x1.55555558f9facp-5));
    q = FN(fma)(q, t, FN(splat)(0x1.555555548f40dp-3));
    q = FN(fma)(q, t, FN(splat)(0x1.fffffffffffb9p-2));
#elif REAL_BITS == 64 /* 0.034 * 2^-53 */
    q = FN(splat)(0x1.ad9bf721fa0d1p-26);
    q = FN(fma)(q, t, FN(splat)(0x1.28ad74f67b769p-22));
    q = FN(fma)(q, t, FN(splat)(0x1.71df0f456cd4ap-19));
    q = FN(fma)(q, t, FN(splat)(0x1.a01999f901be3p-16));
    q = FN(fma)(q, t, FN(splat)(0x1.a01a0136d45ecp-13));
    q = FN(fma)(q, t, FN(splat)(0x1.6c16c1843e9bap-10));
    q = FN(fma)(q, t, FN(splat)(0x1.1111111124b12p-7));
    q = FN(fma)(q, t, FN(splat)(0x1.555555555079p-5));
    q = FN(fma)(q, t, FN(splat)(0x1.555555555550bp-3));
    q = FN(fma)(q, t, FN(splat)(0x1.000000000000ap-1));
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
    vec power = FN(power_of_two)((ivec)shifted);
    vec e = FN(fma)(power, FN(fma)(q, t * t, t), power);
    return FN(unless_less)(e, d, FN(splat)(EXP_LOWEST));
}

/* The functions over arrays, for the tests that measure them. */
INLINE void FN(exp_array)(const REAL *x, ptrdiff_t n, REAL m, REAL *out)
{
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        ptrdiff_t count = n - i < LANES ? n - i : LANES;
        FN(store_n)(out + i, count, FN(exp_from)(FN(load_n)(x + i, count, 0), FN(splat)(m)));
    }
}

#if REAL_BITS == 64
/* log(1 + t) for t >= 0 or NaN; t finite; given 1 / (1 + t), which the caller has anyway.
 *
 * 1. u = 1 + t; c = what that rounding lost.
 * 2. u = 2^k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2). With k = 0 take f = t itself, c = 0.
 * 3. s = f / (2 + f), z = s^2: log(1 + f) = 2s + s z q(z) = f - s (f - z q(z)), q of degree 6.
 * 4. Add k ln 2 (two parts) and c / u, small terms first.
 *
 * Worst error: 0.88 ULP (sampled).
 */
INLINE vec FN(log1p)(vec t, vec reciprocal)
{
    typedef uint64_t bits_vec __attribute__((vector_size(VECTOR_BYTES)));
    const uint64_t one = 0x3ff0000000000000, sqrt_half = 0x3fe6a09e667f3bcd;
    const REAL to_integer = 0x1.8p52;
    vec u = t + 1;
    bits_vec bits = (bits_vec)u + (one - sqrt_half);
    ivec exponent = (ivec)(bits >> MANTISSA_BITS) - EXPONENT_BIAS;
    vec k = (vec)(exponent + (ivec)FN(splat)(to_integer)) - to_integer;
    vec f = (vec)((bits & ((1ull << MANTISSA_BITS) - 1)) + sqrt_half) - 1;
    vec c = (t - (u - 1)) * reciprocal;
    ivec near_one = exponent == 0;
    f = (vec)(((ivec)t & near_one) | ((ivec)f & ~near_one));
    c = (vec)((ivec)c & ~near_one);
    vec s = f / (f + 2), z = s * s, q; /* relative error of the polynomial: 0.011 * 2^-53 */
    q = FN(splat)(0x1.2f0440420a9f8p-3);
    q = FN(fma)(q, z, FN(splat)(0x1.39a1df2e91e3fp-3));
    q = FN(fma)(q, z, FN(splat)(0x1.74663d28a2d6ep-3));
    q = FN(fma)(q, z, FN(splat)(0x1.c71c5213d5964p-3));
    q = FN(fma)(q, z, FN(splat)(0x1.24924941e1426p-2));
    q = FN(fma)(q, z, FN(splat)(0x1.999999997ff21p-2));
    q = FN(fma)(q, z, FN(splat)(0x1.5555555555592p-1));
    vec small = FN(fma)(k, FN(splat)(LN2_LO), c) - s * (f - z * q);
    return FN(fma)(k, FN(splat)(LN2_HI), f + small) + 0 * t; /* 0 * t: NaN stays NaN */
}

INLINE void log1p_array_f64(const double *t, ptrdiff_t n, double *out)
{
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        ptrdiff_t count = n - i < LANES ? n - i : LANES;
        vec v = FN(load_n)(t + i, count, 0);
        FN(store_n)(out + i, count, FN(log1p)(v, 1 / (1 + v)));
    }
}

/* (m, r) of a row from those of its n parts: r is the sum of r_k exp(m_k - m). */
INLINE void combine_parts(const double *part_max, const double *part_rest, ptrdiff_t n, double *max, double *rest)
{
    *max = part_max[0];
    for (ptrdiff_t k = 1; k < n; k++) *max = part_max[k] > *max ? part_max[k] : *max;
    const vec m = FN(splat)(*max == -INFINITY ? 0 : *max); /* nothing but -inf: NaN must come from r alone */
    sum_vec sum = {{0}, {0}};
    for (ptrdiff_t k = 0; k < n; k += LANES) {
        ptrdiff_t count = n - k < LANES ? n - k : LANES;
        vec factor = FN(exp_from)(FN(load_n)(part_max + k, count, -INFINITY), m) * (1 / EXP_SCALE);
        FN(add)(&sum, FN(load_n)(part_rest + k, count, 0) * factor);
    }
    *rest = FN(total)(sum);
}

INLINE double exp_one(double x, double m) { return FN(exp_from)(FN(splat)(x), FN(splat)(m))[0] / EXP_SCALE; }

/* exp(x_y - m) of n rows, from x_y and m. */
INLINE void find_target_exps(const double *at_target, const double *max, ptrdiff_t n, double *target_exp)
{
    for (ptrdiff_t i = 0; i < n; i += LANES)
        FN(store)(target_exp + i, FN(exp_from)(FN(load)(at_target + i), FN(load)(max + i)) * (1 / EXP_SCALE));
}
#endif
