/* One vector of reals and the few operations on it that C's operators do not give.
 *
 * Included once with REAL_BITS 64 and once with 32. Vectors are the compiler's own
 * (GCC and Clang: `vector_size`), so `+ - * /`, comparisons and casts are plain C on every
 * architecture; an intrinsic stands only where the plain form compiles badly. Level by level:
 *
 *   v4        64 bytes, AVX-512 F, BW, DQ, VL
 *   v3        32 bytes, AVX2, FMA, F16C
 *   baseline  16 bytes: SSE2 on x86-64, NEON on arm64, whatever the compiler makes of it elsewhere
 *
 * Partial vectors go through load_n / store_n, hence through the same arithmetic as full ones:
 * a value never depends on its position in a row.
 */
#ifndef FASTCE_SIMD_H
#define FASTCE_SIMD_H

#if !defined(__GNUC__)
#error "fastce's kernels use the vector extensions of GCC and Clang (on Windows: clang-cl)"
#endif

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>
#define LEVEL_V4 1
#define VECTOR_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define LEVEL_V3 1
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif
#endif

#if defined(LEVEL_V4) || defined(LEVEL_V3) || (defined(__ARM_NEON) && defined(__aarch64__))
#define HAS_FMA /* fma rounds once */
#endif

#if defined(__x86_64__) && defined(__SSE2__)
#define STREAMS /* stores past the caches */
#endif

#define INLINE static inline __attribute__((always_inline))

/* Before another thread may read what went past the caches. */
INLINE void end_streams(void)
{
#ifdef STREAMS
    _mm_sfence();
#endif
}
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, REAL_SUFFIX)
#define vec FN(vec)
#define ivec FN(ivec)
#define uvec FN(uvec)
#define sum_vec FN(sum_vec)
#define LANES_COUNT (VECTOR_BYTES / (REAL_BITS / 8))
#define LANES ((ptrdiff_t)LANES_COUNT)
#define LANES_F64 (VECTOR_BYTES / 8)
#define PART (16 / (REAL_BITS / 8))
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

#endif /* FASTCE_SIMD_H */

#undef REAL
#undef INT
#undef UINT
#undef REAL_SUFFIX
#undef OP
#undef IOP
#undef EVERY_LANE
#if REAL_BITS == 64
#define REAL double
#define INT int64_t
#define UINT uint64_t
#define REAL_SUFFIX _f64
#else
#define REAL float
#define INT int32_t
#define UINT uint32_t
#define REAL_SUFFIX _f32
#endif

typedef REAL vec __attribute__((vector_size(VECTOR_BYTES)));
typedef INT ivec __attribute__((vector_size(VECTOR_BYTES)));
typedef UINT uvec __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL FN(unaligned) __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));

INLINE vec FN(splat)(REAL a) { return a - (vec){0}; } /* a - 0 keeps every a, -0.0 too */
INLINE vec FN(load)(const REAL *p) { return (vec)*(const FN(unaligned) *)p; }
INLINE void FN(store)(REAL *p, vec a) { *(FN(unaligned) *)p = (FN(unaligned))a; }

INLINE ivec FN(iota)(void)
{
    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane;
}

/* The intrinsic of this level and type: OP(max) is _mm512_max_ps, _mm256_max_pd, ...; IOP that of its integers. */
#if defined(LEVEL_V4) && REAL_BITS == 64
#define OP(name) _mm512_##name##_pd
#define IOP(name, end) _mm512_##name##_epi64##end
typedef __mmask8 FN(mask_bits);
#elif defined(LEVEL_V4)
#define OP(name) _mm512_##name##_ps
#define IOP(name, end) _mm512_##name##_epi32##end
typedef __mmask16 FN(mask_bits);
#elif defined(LEVEL_V3) && REAL_BITS == 64
#define OP(name) _mm256_##name##_pd
#elif defined(LEVEL_V3)
#define OP(name) _mm256_##name##_ps
#elif defined(__SSE2__) && REAL_BITS == 64
#define OP(name) _mm_##name##_pd
#elif defined(__SSE2__)
#define OP(name) _mm_##name##_ps
#endif

/* The larger of a and b lane by lane; where one is NaN, either may come back. */
INLINE vec FN(larger)(vec a, vec b)
{
#ifdef OP
    return OP(max)(a, b);
#else
    ivec take_a = a > b;
    return (vec)(((ivec)a & take_a) | ((ivec)b & ~take_a));
#endif
}

INLINE vec FN(lesser)(vec a, vec b)
{
#ifdef OP
    return OP(min)(a, b);
#else
    ivec take_a = a < b;
    return (vec)(((ivec)a & take_a) | ((ivec)b & ~take_a));
#endif
}

INLINE vec FN(absolute)(vec a) { return FN(larger)(a, -a); }

/* a * b + c, rounded once where the level has the instruction. */
INLINE vec FN(fma)(vec a, vec b, vec c)
{
#if defined(LEVEL_V4) || defined(LEVEL_V3)
    return OP(fmadd)(a, b, c);
#elif defined(__ARM_NEON) && defined(__aarch64__) && REAL_BITS == 64
    return (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* What a * b rounded to p has lost. */
INLINE vec FN(product_error)(vec a, vec b, vec p)
{
#ifdef HAS_FMA
    return FN(fma)(a, b, -p);
#else /* T. J. Dekker: products of halves are exact */
    const UINT half = ~(((UINT)1 << (REAL_BITS == 64 ? 27 : 12)) - 1);
    const vec a_high = (vec)((uvec)a & half), b_high = (vec)((uvec)b & half), a_low = a - a_high, b_low = b - b_high;
    return ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
}

/* a - b * c, rounded about once. */
INLINE vec FN(residual)(vec a, vec b, vec c)
{
#ifdef HAS_FMA
    return FN(fma)(-b, c, a);
#else
    const vec p = b * c;
    return (a - p) - FN(product_error)(b, c, p);
#endif
}

/* Which lanes an operation concerns: a bit each where the level has mask registers, else all bits of the lane. */
#ifdef LEVEL_V4
typedef FN(mask_bits) FN(mask);
INLINE FN(mask) FN(not_less)(vec a, vec b) { return JOIN(OP(cmp), _mask)(a, b, _CMP_NLT_UQ); } /* NaN is not less */
INLINE FN(mask) FN(differ)(ivec i, ivec j) { return IOP(cmpneq, _mask)((__m512i)i, (__m512i)j); }
INLINE vec FN(select)(FN(mask) where, vec a, vec b) { return OP(mask_mov)(b, where, a); }
INLINE vec FN(keep)(FN(mask) where, vec a) { return OP(maskz_mov)(where, a); }
INLINE vec FN(keep_fma)(FN(mask) where, vec a, vec b, vec c) { return OP(maskz_fmadd)(where, a, b, c); }
INLINE int FN(every_lane)(FN(mask) where) { return where == (FN(mask))-1; }
#define EVERY_LANE ((FN(mask))-1)
#else
typedef ivec FN(mask);
INLINE FN(mask) FN(not_less)(vec a, vec b) { return ~(ivec)(a < b); } /* NaN is not less */
INLINE FN(mask) FN(differ)(ivec i, ivec j) { return (ivec)(i != j); }
INLINE vec FN(select)(FN(mask) where, vec a, vec b) { return (vec)(((ivec)a & where) | ((ivec)b & ~where)); }
INLINE vec FN(keep)(FN(mask) where, vec a) { return (vec)((ivec)a & where); } /* +0 elsewhere */
INLINE vec FN(keep_fma)(FN(mask) where, vec a, vec b, vec c) { return FN(keep)(where, FN(fma)(a, b, c)); }
INLINE int FN(every_lane)(FN(mask) where)
{
#ifdef OP
    return OP(movemask)((vec)where) == (1 << LANES_COUNT) - 1;
#else
    INT all = -1;
    for (int i = 0; i < LANES; i++) all &= where[i];
    return all != 0;
#endif
}
#define EVERY_LANE (~(ivec){0})
#endif

/* 0 <= n <= LANES */
INLINE FN(mask) FN(first_lanes)(ptrdiff_t n)
{
#ifdef LEVEL_V4
    return (FN(mask))((1u << n) - 1u);
#else
    return (ivec)(FN(iota)() < (ivec){0} + (INT)n);
#endif
}

/* The first n lanes from p, `fill` in the others. */
INLINE vec FN(load_n)(const REAL *p, ptrdiff_t n, REAL fill)
{
#ifdef LEVEL_V4
    return OP(mask_loadu)(FN(splat)(fill), FN(first_lanes)(n), p);
#elif defined(LEVEL_V3)
    const FN(mask) where = FN(first_lanes)(n);
    return FN(select)(where, OP(maskload)(p, (__m256i)where), FN(splat)(fill));
#else
    vec a = FN(splat)(fill);
    memcpy(&a, p, (size_t)n * sizeof(REAL));
    return a;
#endif
}

INLINE void FN(store_n)(REAL *p, ptrdiff_t n, vec a)
{
#ifdef LEVEL_V4
    OP(mask_storeu)(p, FN(first_lanes)(n), a);
#else
    memcpy(p, &a, (size_t)n * sizeof(REAL));
#endif
}

/* Past the caches, if that is possible: p is a multiple of a vector's bytes, or of a lane's. */
#ifdef STREAMS
INLINE void FN(store_past)(REAL *p, vec a) { OP(stream)(p, a); }

INLINE void FN(store_past_n)(REAL *p, ptrdiff_t n, vec a)
{
    for (ptrdiff_t i = 0; i < n; i++)
#if REAL_BITS == 64
        _mm_stream_si64((long long *)p + i, ((ivec)a)[i]);
#else
        _mm_stream_si32((int *)p + i, ((ivec)a)[i]);
#endif
}
#else
INLINE void FN(store_past)(REAL *p, vec a) { FN(store)(p, a); }
INLINE void FN(store_past_n)(REAL *p, ptrdiff_t n, vec a) { FN(store_n)(p, n, a); }
#endif

/* How many reals are before the first whole vector. */
INLINE ptrdiff_t FN(before_vectors)(const REAL *p)
{
    return (ptrdiff_t)(-(uintptr_t)p % VECTOR_BYTES / sizeof(REAL));
}

INLINE void FN(copy)(const REAL *src, ptrdiff_t n, REAL *dst)
{
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        if (n - i >= LANES) FN(store)(dst + i, FN(load)(src + i));
        else FN(store_n)(dst + i, n - i, FN(load_n)(src + i, n - i, 0));
    }
}

INLINE REAL FN(largest_lane)(vec a)
{
#ifdef LEVEL_V4
    return OP(reduce_max)(a);
#else
    REAL m = a[0];
    for (int i = 1; i < LANES; i++) m = a[i] > m ? a[i] : m;
    return m;
#endif
}

/* A running sum of vectors in more than their precision: float32 is carried in float64, float64 as an
 * unevaluated pair (Knuth's TwoSum). The first term's size never costs the later ones their digits. */
#if REAL_BITS == 64
typedef struct { vec sum, error; } sum_vec;

INLINE void FN(add)(sum_vec *acc, vec a)
{
    vec sum = acc->sum + a;
    vec a_part = sum - acc->sum;
    acc->error += (acc->sum - (sum - a_part)) + (a - a_part);
    acc->sum = sum;
}

INLINE double FN(add_up)(vec a)
{
#ifdef LEVEL_V4
    return OP(reduce_add)(a);
#else
    double sum = a[0];
    for (int i = 1; i < LANES; i++) sum += a[i];
    return sum;
#endif
}

INLINE double FN(total)(sum_vec acc) { return FN(add_up)(acc.sum) + FN(add_up)(acc.error); }

/* The other half, quarter, ... of the lanes: `distance` lanes further, in a circle. */
INLINE vec FN(rotated)(vec a, int distance)
{
    ivec from = (FN(iota)() + distance) & (INT)(LANES - 1);
#if defined(__clang__)
    vec b;
    for (int i = 0; i < LANES; i++) b[i] = a[from[i]];
    return b;
#else
    return __builtin_shuffle(a, from);
#endif
}

/* The total and what it has lost. */
INLINE double FN(total_and_error)(sum_vec acc, double *error)
{
    for (int distance = LANES_COUNT / 2; distance > 0; distance /= 2) {
        const vec a = acc.sum, b = FN(rotated)(a, distance), sum = a + b, part = sum - a;
        acc.error += FN(rotated)(acc.error, distance) + ((a - (sum - part)) + (b - part));
        acc.sum = sum;
    }
    const double total = acc.sum[0] + acc.error[0];
    *error = acc.error[0] - (total - acc.sum[0]);
    return total;
}

/* A sum per lane that rests in memory: sum[i] + error[i]. */
INLINE sum_vec FN(load_sums)(const double *sum, const double *error)
{
    return (sum_vec){FN(load)(sum), FN(load)(error)};
}

INLINE void FN(store_sums)(double *sum, double *error, sum_vec acc)
{
    FN(store)(sum, acc.sum);
    FN(store)(error, acc.error);
}

INLINE void FN(store_as_f64)(double *p, vec a) { FN(store)(p, a); }

/* LANES_F64 reals as float64, and back. */
INLINE vec_f64 FN(load_wide)(const REAL *p) { return FN(load)(p); }
INLINE void FN(store_narrow)(REAL *p, vec_f64 a) { FN(store)(p, a); }
#else
typedef struct { vec_f64 low, high; } sum_vec;

/* LANES_F64 reals as float64, and back. */
INLINE vec_f64 FN(load_wide)(const REAL *p)
{
#if defined(LEVEL_V4)
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(LEVEL_V3)
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
#elif defined(__SSE2__) /* of numbers one by one GCC 12 takes a conversion there and back for none */
    return _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)p)));
#else
    return (vec_f64){p[0], p[1]};
#endif
}

INLINE void FN(store_narrow)(REAL *p, vec_f64 a)
{
#if defined(LEVEL_V4)
    _mm256_storeu_ps(p, _mm512_cvtpd_ps(a));
#elif defined(LEVEL_V3)
    _mm_storeu_ps(p, _mm256_cvtpd_ps(a));
#elif defined(__SSE2__)
    _mm_storel_pi((__m64 *)p, _mm_cvtpd_ps(a));
#else
    p[0] = (REAL)a[0];
    p[1] = (REAL)a[1];
#endif
}

INLINE sum_vec FN(widened)(vec a)
{
#if defined(LEVEL_V4)
    return (sum_vec){_mm512_cvtps_pd(_mm512_castps512_ps256(a)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1))};
#elif defined(LEVEL_V3)
    return (sum_vec){_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1))};
#elif defined(__SSE2__)
    return (sum_vec){_mm_cvtps_pd(a), _mm_cvtps_pd(_mm_movehl_ps(a, a))};
#else
    return (sum_vec){(vec_f64){a[0], a[1]}, (vec_f64){a[2], a[3]}};
#endif
}

/* The way back. */
INLINE vec FN(narrowed)(vec_f64 low, vec_f64 high)
{
#if defined(LEVEL_V4)
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
#elif defined(LEVEL_V3)
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(low)), _mm256_cvtpd_ps(high), 1);
#elif defined(__SSE2__)
    return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
#else
    return (vec){(REAL)low[0], (REAL)low[1], (REAL)high[0], (REAL)high[1]};
#endif
}

INLINE void FN(add)(sum_vec *acc, vec a)
{
    const sum_vec wide = FN(widened)(a);
    acc->low += wide.low;
    acc->high += wide.high;
}

INLINE void FN(store_as_f64)(double *p, vec a)
{
    const sum_vec wide = FN(widened)(a);
    store_f64(p, wide.low);
    store_f64(p + LANES_F64, wide.high);
}

INLINE double FN(total)(sum_vec acc) { return add_up_f64(acc.low + acc.high); }

INLINE double FN(total_and_error)(sum_vec acc, double *error)
{
    *error = 0; /* float64 is enough */
    return FN(total)(acc);
}

INLINE sum_vec FN(load_sums)(const double *sum, const double *error)
{
    (void)error; /* float64 is enough */
    return (sum_vec){load_f64(sum), load_f64(sum + LANES_F64)};
}

INLINE void FN(store_sums)(double *sum, double *error, sum_vec acc)
{
    (void)error;
    store_f64(sum, acc.low);
    store_f64(sum + LANES_F64, acc.high);
}
#endif

/* Vectors are made of parts of 16 bytes; each holds PART reals of one row when a block of
 * rows is transposed (transpose.h). */
INLINE vec FN(load_parts)(const char *p, ptrdiff_t stride, ptrdiff_t n_parts)
{
#if defined(LEVEL_V4)
    __m512 a = _mm512_setzero_ps();
    if (n_parts > 0) a = _mm512_zextps128_ps512(_mm_loadu_ps((const float *)p));
    if (n_parts > 1) a = _mm512_insertf32x4(a, _mm_loadu_ps((const float *)(p + stride)), 1);
    if (n_parts > 2) a = _mm512_insertf32x4(a, _mm_loadu_ps((const float *)(p + 2 * stride)), 2);
    if (n_parts > 3) a = _mm512_insertf32x4(a, _mm_loadu_ps((const float *)(p + 3 * stride)), 3);
    return (vec)a;
#elif defined(LEVEL_V3)
    __m256 a = _mm256_setzero_ps();
    if (n_parts > 0) a = _mm256_zextps128_ps256(_mm_loadu_ps((const float *)p));
    if (n_parts > 1) a = _mm256_insertf128_ps(a, _mm_loadu_ps((const float *)(p + stride)), 1);
    return (vec)a;
#else
    (void)stride;
    return n_parts > 0 ? FN(load)((const REAL *)p) : (vec){0};
#endif
}

/* The way back. */
INLINE void FN(store_parts)(char *p, ptrdiff_t stride, ptrdiff_t n_parts, vec a)
{
#if defined(LEVEL_V4)
    __m512 b = (__m512)a;
    if (n_parts > 0) _mm_storeu_ps((float *)p, _mm512_castps512_ps128(b));
    if (n_parts > 1) _mm_storeu_ps((float *)(p + stride), _mm512_extractf32x4_ps(b, 1));
    if (n_parts > 2) _mm_storeu_ps((float *)(p + 2 * stride), _mm512_extractf32x4_ps(b, 2));
    if (n_parts > 3) _mm_storeu_ps((float *)(p + 3 * stride), _mm512_extractf32x4_ps(b, 3));
#elif defined(LEVEL_V3)
    __m256 b = (__m256)a;
    if (n_parts > 0) _mm_storeu_ps((float *)p, _mm256_castps256_ps128(b));
    if (n_parts > 1) _mm_storeu_ps((float *)(p + stride), _mm256_extractf128_ps(b, 1));
#else
    (void)stride;
    if (n_parts > 0) FN(store)((REAL *)p, a);
#endif
}

/* The first halves of the parts of a and b, interleaved: a0 b0 (a1 b1) of each; and their second halves. */
INLINE vec FN(interleave_low)(vec a, vec b)
{
#ifdef OP
    return OP(unpacklo)(a, b);
#elif REAL_BITS == 64
    return SHUFFLE(a, b, 0, 2);
#else
    return SHUFFLE(a, b, 0, 4, 1, 5);
#endif
}

INLINE vec FN(interleave_high)(vec a, vec b)
{
#ifdef OP
    return OP(unpackhi)(a, b);
#elif REAL_BITS == 64
    return SHUFFLE(a, b, 1, 3);
#else
    return SHUFFLE(a, b, 2, 6, 3, 7);
#endif
}
