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

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, REAL_SUFFIX)
#define vec FN(vec)
#define ivec FN(ivec)
#define sum_vec FN(sum_vec)
#define LANES_COUNT (VECTOR_BYTES / (REAL_BITS / 8))
#define LANES ((ptrdiff_t)LANES_COUNT)
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
#undef SHUFFLE_LOW
#undef SHUFFLE_HIGH
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

/* The intrinsic of this level and type: OP(max) is _mm512_max_ps, _mm256_max_pd, ... */
#if defined(LEVEL_V4) && REAL_BITS == 64
#define OP(name) _mm512_##name##_pd
#elif defined(LEVEL_V4)
#define OP(name) _mm512_##name##_ps
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

/* a where the comparison of x with `bound` is not "less" (NaN is not less), +0 elsewhere. */
INLINE vec FN(unless_less)(vec a, vec x, vec bound)
{
#ifdef LEVEL_V4
    return OP(maskz_mov)(JOIN(OP(cmp), _mask)(x, bound, _CMP_NLT_UQ), a);
#else
    return (vec)((ivec)a & ~(ivec)(x < bound));
#endif
}

/* a where i != j, +0 elsewhere. */
INLINE vec FN(unless_equal)(vec a, ivec i, ivec j)
{
#if defined(LEVEL_V4) && REAL_BITS == 64
    return _mm512_maskz_mov_pd(_mm512_cmpneq_epi64_mask((__m512i)i, (__m512i)j), a);
#elif defined(LEVEL_V4)
    return _mm512_maskz_mov_ps(_mm512_cmpneq_epi32_mask((__m512i)i, (__m512i)j), a);
#else
    return (vec)((ivec)a & ~(ivec)(i == j));
#endif
}

/* b where i = j, a elsewhere. */
INLINE vec FN(if_equal)(ivec i, ivec j, vec b, vec a)
{
#if defined(LEVEL_V4) && REAL_BITS == 64
    return _mm512_mask_mov_pd(a, _mm512_cmpeq_epi64_mask((__m512i)i, (__m512i)j), b);
#elif defined(LEVEL_V4)
    return _mm512_mask_mov_ps(a, _mm512_cmpeq_epi32_mask((__m512i)i, (__m512i)j), b);
#else
    ivec equal = (ivec)(i == j);
    return (vec)(((ivec)b & equal) | ((ivec)a & ~equal));
#endif
}

/* The first n lanes from p, `fill` in the others. 0 <= n <= LANES */
INLINE vec FN(load_n)(const REAL *p, ptrdiff_t n, REAL fill)
{
#ifdef LEVEL_V4
    return OP(mask_loadu)(FN(splat)(fill), (1u << n) - 1u, p);
#else
    vec a = FN(splat)(fill);
    memcpy(&a, p, (size_t)n * sizeof(REAL));
    return a;
#endif
}

INLINE void FN(store_n)(REAL *p, ptrdiff_t n, vec a)
{
#ifdef LEVEL_V4
    OP(mask_storeu)(p, (1u << n) - 1u, a);
#else
    memcpy(p, &a, (size_t)n * sizeof(REAL));
#endif
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

/* A running sum of vectors in more than their precision: float32 is carried in float64,
 * float64 as an unevaluated pair (Knuth's TwoSum). The first term's size never costs the
 * later ones their digits. */
#if REAL_BITS == 64
typedef struct { vec sum, error; } sum_vec;

INLINE void FN(add)(sum_vec *acc, vec a)
{
    vec sum = acc->sum + a;
    vec a_part = sum - acc->sum;
    acc->error += (acc->sum - (sum - a_part)) + (a - a_part);
    acc->sum = sum;
}

/* A running sum per lane that is kept in memory between two uses: sum[i] + error[i]. */
INLINE sum_vec FN(load_sums)(const double *sum, const double *error)
{
    return (sum_vec){FN(load)(sum), FN(load)(error)};
}

INLINE void FN(store_sums)(double *sum, double *error, sum_vec acc)
{
    FN(store)(sum, acc.sum);
    FN(store)(error, acc.error);
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
#else
typedef struct { vec_f64 low, high; } sum_vec;

/* The two halves of a vector of float32 as vectors of float64, and back. */
INLINE vec_f64 FN(widen_low)(vec a)
{
#if defined(LEVEL_V4)
    return _mm512_cvtps_pd(_mm512_castps512_ps256(a));
#elif defined(LEVEL_V3)
    return _mm256_cvtps_pd(_mm256_castps256_ps128(a));
#elif defined(__SSE2__)
    return _mm_cvtps_pd(a);
#else
    return (vec_f64){a[0], a[1]};
#endif
}

INLINE vec_f64 FN(widen_high)(vec a)
{
#if defined(LEVEL_V4)
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
#elif defined(LEVEL_V3)
    return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
#elif defined(__SSE2__)
    return _mm_cvtps_pd(_mm_movehl_ps(a, a));
#else
    return (vec_f64){a[2], a[3]};
#endif
}

INLINE void FN(add)(sum_vec *acc, vec a)
{
    acc->low += FN(widen_low)(a);
    acc->high += FN(widen_high)(a);
}

INLINE sum_vec FN(load_sums)(const double *sum, const double *error)
{
    (void)error; /* float64 is enough */
    return (sum_vec){load_f64(sum), load_f64(sum + LANES / 2)};
}

INLINE void FN(store_sums)(double *sum, double *error, sum_vec acc)
{
    (void)error;
    store_f64(sum, acc.low);
    store_f64(sum + LANES / 2, acc.high);
}

INLINE double FN(total)(sum_vec acc) { return add_up_f64(acc.low + acc.high); }
#endif

/* a0 b0 a1 b1 ... of the first halves, and of the second halves. */
#if LANES_COUNT == 2
#define SHUFFLE_LOW 0, 2
#define SHUFFLE_HIGH 1, 3
#elif LANES_COUNT == 4
#define SHUFFLE_LOW 0, 4, 1, 5
#define SHUFFLE_HIGH 2, 6, 3, 7
#elif LANES_COUNT == 8
#define SHUFFLE_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define SHUFFLE_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define SHUFFLE_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SHUFFLE_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#endif

INLINE vec FN(interleave_low)(vec a, vec b) { return SHUFFLE(a, b, SHUFFLE_LOW); }
INLINE vec FN(interleave_high)(vec a, vec b) { return SHUFFLE(a, b, SHUFFLE_HIGH); }

/* Rows to columns, in place: after log2(LANES) perfect shuffles of rows i and i + LANES/2
 * the vector at c holds element c of every row. */
INLINE void FN(transpose)(vec *row)
{
    for (int step = 1; step < LANES_COUNT; step *= 2) {
        vec next[LANES_COUNT];
        for (int i = 0; i < LANES_COUNT / 2; i++) {
            next[2 * i] = FN(interleave_low)(row[i], row[i + LANES_COUNT / 2]);
            next[2 * i + 1] = FN(interleave_high)(row[i], row[i + LANES_COUNT / 2]);
        }
        for (int i = 0; i < LANES_COUNT; i++) row[i] = next[i];
    }
}
