/* AVX-512 for processors without it: included before all else, with EMULATED_AVX512 defined, it makes level v4 of the
 * kernels plain C on vectors of 64 bytes, which the compiler splits for AVX2. Slow, and bit for bit what the
 * instructions do, as far as the kernels use them and in the default floating-point environment.
 *
 *     gcc -mavx2 -mfma -mf16c -mbmi2 -DEMULATED_AVX512 -include avx512.h -Wno-psabi ...
 *
 * What each does: Intel's Intrinsics Guide. An instruction that is missing here is an error of the compiler's, which
 * refuses to inline what its target lacks.
 */
#ifndef FASTCE_EMULATED_AVX512_H
#define FASTCE_EMULATED_AVX512_H

/* The processor has it, as far as cpu.pyx can see. */
#define __builtin_cpu_supports(name) (__builtin_strncmp(name, "avx512", 6) == 0 || __builtin_cpu_supports(name))

#ifdef EMULATED_AVX512
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1

typedef int32_t SignedInts __attribute__((vector_size(64)));
typedef uint32_t Ints __attribute__((vector_size(64)));
typedef uint64_t Longs __attribute__((vector_size(64)));
#define PLAYED static inline __attribute__((always_inline))

/* Of n lanes, each what `lane` says of its number i. */
#define LANES_OF(type, n, lane) ({ type result_; for (int i = 0; i < (n); i++) result_[i] = (lane); result_; })
#define MASK_OF(type, n, lane) \
    ({ type mask_ = 0; for (int i = 0; i < (n); i++) mask_ |= (type)((lane) ? 1u << i : 0); mask_; })
/* Half by half, in AVX2. */
#define IN_HALVES(type, half, operation) \
    ({ union { type whole; half part[2]; } to_; for (int h = 0; h < 2; h++) to_.part[h] = (operation); to_.whole; })
#define HALF(type, half, a, h) (((union { type whole; half part[2]; }){a}).part[h])
#define HALF_PS(a, h) HALF(__m512, __m256, a, h)

PLAYED int played_holds(double a, double b, int predicate)
{
    switch (predicate) {
    case _CMP_EQ_OQ: return a == b;
    case _CMP_LT_OS: case _CMP_LT_OQ: return a < b;
    case _CMP_LE_OS: case _CMP_LE_OQ: return a <= b;
    case _CMP_NEQ_UQ: return !(a == b);
    case _CMP_NLT_US: case _CMP_NLT_UQ: return !(a < b);
    case _CMP_NLE_US: case _CMP_NLE_UQ: return !(a <= b);
    case _CMP_GE_OS: case _CMP_GE_OQ: return a >= b;
    case _CMP_GT_OS: case _CMP_GT_OQ: return a > b;
    case _CMP_UNORD_Q: return isnan(a) || isnan(b);
    case _CMP_ORD_Q: return !isnan(a) && !isnan(b);
    default: __builtin_trap();
    }
}

/* What both precisions have: real vectors of n lanes, masks, integers of their width. */
#define BOTH(ps, real, vec, half, n, mask, epi, ints) \
    PLAYED vec played_max_##ps(vec a, vec b) { return LANES_OF(vec, n, a[i] > b[i] ? a[i] : b[i]); } \
    PLAYED vec played_min_##ps(vec a, vec b) { return LANES_OF(vec, n, a[i] < b[i] ? a[i] : b[i]); } \
    PLAYED vec played_fmadd_##ps(vec a, vec b, vec c) \
    { \
        return IN_HALVES(vec, half, \
                         _mm256_fmadd_##ps(HALF(vec, half, a, h), HALF(vec, half, b, h), HALF(vec, half, c, h))); \
    } \
    PLAYED vec played_fmsub_##ps(vec a, vec b, vec c) { return played_fmadd_##ps(a, b, -c); } \
    PLAYED vec played_fnmadd_##ps(vec a, vec b, vec c) { return played_fmadd_##ps(-a, b, c); } \
    PLAYED vec played_sqrt_##ps(vec a) { return IN_HALVES(vec, half, _mm256_sqrt_##ps(HALF(vec, half, a, h))); } \
    PLAYED vec played_getexp_##ps(vec a) { return LANES_OF(vec, n, (real)logb(a[i])); } \
    PLAYED vec played_scalef_##ps(vec a, vec b) \
    { \
        return LANES_OF(vec, n, isfinite(b[i]) ? (real)scalbln##ps(a[i], played_exponent(b[i])) \
                                               : a[i] * (b[i] < 0 ? 0 : b[i])); \
    } \
    PLAYED mask played_cmp_##ps##_mask(vec a, vec b, int predicate) \
    { return MASK_OF(mask, n, played_holds(a[i], b[i], predicate)); } \
    PLAYED vec played_mask_mov_##ps(vec a, mask m, vec b) { return LANES_OF(vec, n, m >> i & 1 ? b[i] : a[i]); } \
    PLAYED vec played_mask_blend_##ps(mask m, vec a, vec b) { return played_mask_mov_##ps(a, m, b); } \
    PLAYED vec played_maskz_mov_##ps(mask m, vec a) { return LANES_OF(vec, n, m >> i & 1 ? a[i] : 0); } \
    PLAYED vec played_maskz_fmadd_##ps(mask m, vec a, vec b, vec c) \
    { return played_maskz_mov_##ps(m, played_fmadd_##ps(a, b, c)); } \
    PLAYED vec played_loadu_##ps(const void *p) { vec a; memcpy(&a, p, sizeof a); return a; } \
    PLAYED void played_storeu_##ps(void *p, vec a) { memcpy(p, &a, sizeof a); } \
    PLAYED void played_stream_##ps(void *p, vec a) \
    { if ((uintptr_t)p % sizeof a) abort(); played_storeu_##ps(p, a); } \
    PLAYED vec played_mask_loadu_##ps(vec a, mask m, const void *p) \
    { return LANES_OF(vec, n, m >> i & 1 ? ((const played_##real *)p)[i] : a[i]); } \
    PLAYED vec played_maskz_loadu_##ps(mask m, const void *p) { return played_mask_loadu_##ps((vec){0}, m, p); } \
    PLAYED void played_mask_storeu_##ps(void *p, mask m, vec a) \
    { for (int i = 0; i < n; i++) if (m >> i & 1) ((played_##real *)p)[i] = a[i]; } \
    PLAYED vec played_permutexvar_##ps(__m512i at, vec a) { return LANES_OF(vec, n, a[((ints)at)[i] & (n - 1)]); } \
    PLAYED vec played_permutex2var_##ps(vec a, __m512i at, vec b) \
    { return LANES_OF(vec, n, (((ints)at)[i] & n ? b : a)[((ints)at)[i] & (n - 1)]); } \
    PLAYED vec played_unpacklo_##ps(vec a, vec b) \
    { \
        const int part = 16 / sizeof(real); \
        return LANES_OF(vec, n, (i & 1 ? b : a)[i / part * part + i % part / 2]); \
    } \
    PLAYED vec played_unpackhi_##ps(vec a, vec b) \
    { \
        const int part = 16 / sizeof(real); \
        return LANES_OF(vec, n, (i & 1 ? b : a)[i / part * part + part / 2 + i % part / 2]); \
    } \
    /* as GCC's: the upper half joins the lower one, and so on */ \
    PLAYED real played_reduce_add_##ps(vec a) \
    { \
        for (int k = n / 2; k > 0; k /= 2) for (int i = 0; i < k; i++) a[i] += a[i + k]; \
        return a[0]; \
    } \
    PLAYED real played_reduce_max_##ps(vec a) \
    { \
        for (int k = n / 2; k > 0; k /= 2) for (int i = 0; i < k; i++) a[i] = a[i] > a[i + k] ? a[i] : a[i + k]; \
        return a[0]; \
    } \
    PLAYED mask played_cmpneq_##epi##_mask(__m512i a, __m512i b) \
    { return MASK_OF(mask, n, ((ints)a)[i] != ((ints)b)[i]); } \
    PLAYED mask played_cmpeq_##epi##_mask(__m512i a, __m512i b) \
    { return MASK_OF(mask, n, ((ints)a)[i] == ((ints)b)[i]); } \
    PLAYED mask played_test_##epi##_mask(__m512i a, __m512i b) \
    { return MASK_OF(mask, n, ((ints)a)[i] & ((ints)b)[i]); } \
    PLAYED __m512i played_add_##epi(__m512i a, __m512i b) { return (__m512i)((ints)a + (ints)b); } \
    PLAYED __m512i played_sub_##epi(__m512i a, __m512i b) { return (__m512i)((ints)a - (ints)b); } \
    PLAYED __m512i played_slli_##epi(__m512i a, unsigned k) { return (__m512i)((ints)a << k); } \
    PLAYED __m512i played_srli_##epi(__m512i a, unsigned k) { return (__m512i)((ints)a >> k); } \
    PLAYED __m512i played_permutex2var_##epi(__m512i a, __m512i at, __m512i b) \
    { return (__m512i)LANES_OF(ints, n, ((ints)(((ints)at)[i] & n ? b : a))[((ints)at)[i] & (n - 1)]); } \
    PLAYED __m512i played_permutexvar_##epi(__m512i at, __m512i a) \
    { return (__m512i)LANES_OF(ints, n, ((ints)a)[((ints)at)[i] & (n - 1)]); }

#define scalblnps scalblnf
#define scalblnpd scalbln
PLAYED long played_exponent(double b) { return (long)floor(b < -5000 ? -5000 : b > 5000 ? 5000 : b); }
typedef float played_float __attribute__((aligned(1), may_alias));
typedef double played_double __attribute__((aligned(1), may_alias));
BOTH(ps, float, __m512, __m256, 16, __mmask16, epi32, Ints)
BOTH(pd, double, __m512d, __m256d, 8, __mmask8, epi64, Longs)
#undef BOTH

PLAYED __m512i played_srai_epi32(__m512i a, unsigned k) { return (__m512i)((SignedInts)a >> k); }
PLAYED __m512i played_loadu_si512(const void *p) { __m512i a; memcpy(&a, p, sizeof a); return a; }
PLAYED void played_storeu_si512(void *p, __m512i a) { memcpy(p, &a, sizeof a); }
PLAYED __m512d played_cvtps_pd(__m256 a) { return LANES_OF(__m512d, 8, a[i]); }
PLAYED __m256 played_cvtpd_ps(__m512d a) { return LANES_OF(__m256, 8, (float)a[i]); }
PLAYED __m512 played_cvtph_ps(__m256i a)
{
    const __m128i parts[2] = {_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)};
    return IN_HALVES(__m512, __m256, _mm256_cvtph_ps(parts[h]));
}
#define played_cvtps_ph(a, rounding) \
    IN_HALVES(__m256i, __m128i, _mm256_cvtps_ph(HALF_PS(a, h), rounding))
PLAYED __m512i played_cvtepu16_epi32(__m256i a)
{
    uint16_t lane[16];
    memcpy(lane, &a, sizeof lane);
    return (__m512i)LANES_OF(Ints, 16, lane[i]);
}
PLAYED __m256i played_maskz_loadu_epi16(__mmask16 m, const void *p)
{
    uint16_t lane[16] = {0};
    __m256i a;
    for (int i = 0; i < 16; i++) if (m >> i & 1) lane[i] = ((const uint16_t *)p)[i];
    memcpy(&a, lane, sizeof a);
    return a;
}
PLAYED __m256i played_cvtepi32_epi16(__m512i a)
{
    uint16_t lane[16];
    __m256i narrow;
    for (int i = 0; i < 16; i++) lane[i] = (uint16_t)((Ints)a)[i];
    memcpy(&narrow, lane, sizeof narrow);
    return narrow;
}
PLAYED __m256i played_cvtepi64_epi32(__m512i a)
{
    uint32_t lane[8];
    __m256i narrow;
    for (int i = 0; i < 8; i++) lane[i] = (uint32_t)((Longs)a)[i];
    memcpy(&narrow, lane, sizeof narrow);
    return narrow;
}
/* Parts of vectors, by their number. */
#define PARTS(vec, part, insert, extract) \
    PLAYED vec played_##insert(vec a, part b, int at) { memcpy((char *)&a + at * sizeof b, &b, sizeof b); return a; } \
    PLAYED part played_##extract(vec a, int at) { part b; memcpy(&b, (char *)&a + at * sizeof b, sizeof b); return b; }
PARTS(__m512, __m128, insertf32x4, extractf32x4_ps)
PARTS(__m512, __m256, insertf32x8, extractf32x8_ps)
PARTS(__m512i, __m256i, inserti64x4, extracti64x4_epi64)
#undef PARTS
PLAYED __m512 played_zext128(__m128 a) { return played_insertf32x4((__m512){0}, a, 0); }

#define _mm512_castps512_ps128(a) played_extractf32x4_ps(a, 0)
#define _mm512_castps512_ps256(a) played_extractf32x8_ps(a, 0)
#define _mm512_castps256_ps512(a) played_insertf32x8((__m512){0}, a, 0)
#define _mm512_castsi256_si512(a) played_inserti64x4((__m512i){0}, a, 0)
#define _mm512_castsi512_si256(a) played_extracti64x4_epi64(a, 0)
#define _mm512_zextps128_ps512(a) played_zext128(a)
#define _mm512_setzero_ps() ((__m512){0})
#define _mm512_setzero_pd() ((__m512d){0})
#define _mm512_setzero_si512() ((__m512i){0})
#define _mm512_set1_ps(a) ((a) - (__m512){0})
#define _mm512_set1_pd(a) ((a) - (__m512d){0})
#define _mm512_set1_epi32(a) ((__m512i)((uint32_t)(a) - (Ints){0}))
#define _mm512_set1_epi64(a) ((__m512i)((uint64_t)(a) - (Longs){0}))
#undef _mm512_setr_ps /* macros of the compiler's too */
#undef _mm512_setr_pd
#undef _mm512_setr_epi32
#undef _mm512_setr_epi64
#define _mm512_setr_ps(...) ((__m512){__VA_ARGS__})
PLAYED __m512i played_mul_epu32(__m512i a, __m512i b)
{ return (__m512i)LANES_OF(Longs, 8, (uint32_t)((Longs)a)[i] * (long long)(uint32_t)((Longs)b)[i]); }
#define _mm512_mul_epu32 played_mul_epu32
#define _mm512_set1_epi64(a) ((__m512i)((Longs){0} + (a)))
#define _mm512_setr_pd(...) ((__m512d){__VA_ARGS__})
#define _mm512_setr_epi32(...) ((__m512i)(Ints){__VA_ARGS__})
#define _mm512_setr_epi64(...) ((__m512i)(Longs){__VA_ARGS__})
#define _mm512_max_ps played_max_ps
#define _mm512_max_pd played_max_pd
#define _mm512_min_ps played_min_ps
#define _mm512_min_pd played_min_pd
#define _mm512_fmadd_ps played_fmadd_ps
#define _mm512_fmadd_pd played_fmadd_pd
#define _mm512_fmsub_ps played_fmsub_ps
#define _mm512_fmsub_pd played_fmsub_pd
#define _mm512_fnmadd_ps played_fnmadd_ps
#define _mm512_fnmadd_pd played_fnmadd_pd
#define _mm512_sqrt_ps played_sqrt_ps
#define _mm512_sqrt_pd played_sqrt_pd
#define _mm512_getexp_ps played_getexp_ps
#define _mm512_getexp_pd played_getexp_pd
#define _mm512_scalef_ps played_scalef_ps
#define _mm512_scalef_pd played_scalef_pd
#define _mm512_mask_mov_ps played_mask_mov_ps
#define _mm512_mask_mov_pd played_mask_mov_pd
#define _mm512_mask_blend_ps played_mask_blend_ps
#define _mm512_mask_blend_pd played_mask_blend_pd
#define _mm512_maskz_mov_ps played_maskz_mov_ps
#define _mm512_maskz_mov_pd played_maskz_mov_pd
#define _mm512_maskz_fmadd_ps played_maskz_fmadd_ps
#define _mm512_maskz_fmadd_pd played_maskz_fmadd_pd
#define _mm512_loadu_ps played_loadu_ps
#define _mm512_loadu_pd played_loadu_pd
#define _mm512_storeu_ps played_storeu_ps
#define _mm512_storeu_pd played_storeu_pd
#define _mm512_stream_ps played_stream_ps
#define _mm512_stream_pd played_stream_pd
#define _mm512_mask_loadu_ps played_mask_loadu_ps
#define _mm512_mask_loadu_pd played_mask_loadu_pd
#define _mm512_maskz_loadu_ps played_maskz_loadu_ps
#define _mm512_maskz_loadu_pd played_maskz_loadu_pd
#define _mm512_mask_storeu_ps played_mask_storeu_ps
#define _mm512_mask_storeu_pd played_mask_storeu_pd
#define _mm512_permutexvar_ps played_permutexvar_ps
#define _mm512_permutexvar_pd played_permutexvar_pd
#define _mm512_permutex2var_ps played_permutex2var_ps
#define _mm512_permutex2var_pd played_permutex2var_pd
#define _mm512_unpacklo_ps played_unpacklo_ps
#define _mm512_unpacklo_pd played_unpacklo_pd
#define _mm512_unpackhi_ps played_unpackhi_ps
#define _mm512_unpackhi_pd played_unpackhi_pd
#define _mm512_reduce_add_ps played_reduce_add_ps
#define _mm512_reduce_add_pd played_reduce_add_pd
#define _mm512_reduce_max_ps played_reduce_max_ps
#define _mm512_reduce_max_pd played_reduce_max_pd
#define _mm512_cmp_ps_mask played_cmp_ps_mask
#define _mm512_cmp_pd_mask played_cmp_pd_mask
#define _mm512_cmpneq_epi32_mask played_cmpneq_epi32_mask
#define _mm512_cmpeq_epi32_mask played_cmpeq_epi32_mask
#define _mm512_test_epi32_mask played_test_epi32_mask
#define _mm512_add_epi32 played_add_epi32
#define _mm512_sub_epi32 played_sub_epi32
#define _mm512_slli_epi32 played_slli_epi32
#define _mm512_srli_epi32 played_srli_epi32
#define _mm512_permutex2var_epi32 played_permutex2var_epi32
#define _mm512_permutexvar_epi32 played_permutexvar_epi32
#define _mm512_cmpneq_epi64_mask played_cmpneq_epi64_mask
#define _mm512_cmpeq_epi64_mask played_cmpeq_epi64_mask
#define _mm512_test_epi64_mask played_test_epi64_mask
#define _mm512_add_epi64 played_add_epi64
#define _mm512_sub_epi64 played_sub_epi64
#define _mm512_slli_epi64 played_slli_epi64
#define _mm512_srli_epi64 played_srli_epi64
#define _mm512_permutex2var_epi64 played_permutex2var_epi64
#define _mm512_permutexvar_epi64 played_permutexvar_epi64
#define _mm512_srai_epi32 played_srai_epi32
#define _mm512_loadu_si512 played_loadu_si512
#define _mm512_storeu_si512 played_storeu_si512
#define _mm512_cvtps_pd played_cvtps_pd
#define _mm512_cvtpd_ps played_cvtpd_ps
#define _mm512_cvtph_ps played_cvtph_ps
#define _mm512_cvtps_ph played_cvtps_ph
#define _mm512_cvtepu16_epi32 played_cvtepu16_epi32
#define _mm512_cvtepi32_epi16 played_cvtepi32_epi16
#define _mm256_maskz_loadu_epi16 played_maskz_loadu_epi16
#define _mm512_cvtepi64_epi32 played_cvtepi64_epi32
#define _mm512_insertf32x4 played_insertf32x4
#define _mm512_extractf32x4_ps played_extractf32x4_ps
#define _mm512_insertf32x8 played_insertf32x8
#define _mm512_extractf32x8_ps played_extractf32x8_ps
#define _mm512_inserti64x4 played_inserti64x4
#define _mm512_extracti64x4_epi64 played_extracti64x4_epi64
#endif
#endif
