/* How elements are stored in memory, and their way to and from the reals that are computed with.
 *
 * Included once per REAL_BITS, after simd.h. Arrays that are neither contiguous nor native
 * float32 / float64 pass through a scratch that stays in cache: fetch and put move one run of
 * equally spaced elements. Nothing here assumes alignment.
 */
#ifndef FASTCE_FORMATS_H
#define FASTCE_FORMATS_H

#include "vector/common.h"

INLINE size_t format_size(Format format)
{
    return format == FORMAT_F64 ? 8 : format == FORMAT_F32 ? 4 : 2;
}

INLINE uint32_t bits_of(float a) { uint32_t u; memcpy(&u, &a, sizeof u); return u; }
INLINE float float_of(uint32_t u) { float a; memcpy(&a, &u, sizeof a); return a; }

INLINE float bfloat16_to_float(uint16_t h) { return float_of((uint32_t)h << 16); }

/* Rounds to nearest, ties to even; NaN stays NaN. */
INLINE uint16_t float_to_bfloat16(float a)
{
    uint32_t u = bits_of(a);
    uint16_t rounded = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    return a == a ? rounded : (uint16_t)((u >> 16) | 0x40);
}

INLINE float float16_to_float(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    float a = float_of(magnitude) * 0x1p112f; /* rebias; subnormals come out normalised */
    uint32_t special = magnitude >= 0x7c00u << 13 ? 0x7f800000u : 0; /* inf and NaN */
    return float_of(bits_of(a) | special | sign);
}

/* Rounds to nearest, ties to even; NaN stays NaN. */
INLINE uint16_t float_to_float16(float a)
{
    uint32_t u = bits_of(a), sign = (u >> 16) & 0x8000;
    u &= 0x7fffffff;
    uint32_t normal = (u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13;
    uint32_t subnormal = bits_of(float_of(u) + 0.5f) - 0x3f000000; /* 0.5 = 2^-24 * 2^23 */
    uint32_t h = u < 0x38800000 ? subnormal : normal;
    h = u >= 0x477ff000 ? 0x7c00 : h; /* 65520 and above round to infinity */
    h = u > 0x7f800000 ? 0x7e00 : h;
    return (uint16_t)(h | sign);
}

INLINE uint16_t load_16(const char *p, int swapped)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return swapped ? __builtin_bswap16(h) : h;
}

INLINE void store_16(char *p, uint16_t h, int swapped)
{
    if (swapped) h = __builtin_bswap16(h);
    memcpy(p, &h, sizeof h);
}

/* One element of any format. */
INLINE double load_number(const char *p, Format format, int swapped)
{
    uint32_t w;
    uint64_t q;
    float single;
    double number;
    switch (format) {
    case FORMAT_F16: return float16_to_float(load_16(p, swapped));
    case FORMAT_BF16: return bfloat16_to_float(load_16(p, swapped));
    case FORMAT_F32:
        memcpy(&w, p, 4);
        if (swapped) w = __builtin_bswap32(w);
        memcpy(&single, &w, 4);
        return single;
    default:
        memcpy(&q, p, 8);
        if (swapped) q = __builtin_bswap64(q);
        memcpy(&number, &q, 8);
        return number;
    }
}

#endif /* FASTCE_FORMATS_H */

#undef SWAP
#undef REAL_FORMAT
#if REAL_BITS == 64
#define SWAP __builtin_bswap64
#define REAL_FORMAT FORMAT_F64
#else
#define SWAP __builtin_bswap32
#define REAL_FORMAT FORMAT_F32
#endif

/* One element, converted. `format` is FORMAT_F64 where REAL is double, another where it is float. */
INLINE REAL FN(load_one)(const char *p, Format format, int swapped)
{
#if REAL_BITS == 32
    if (format == FORMAT_F16) return float16_to_float(load_16(p, swapped));
    if (format == FORMAT_BF16) return bfloat16_to_float(load_16(p, swapped));
#endif
    (void)format;
    UINT u;
    memcpy(&u, p, sizeof u);
    if (swapped) u = SWAP(u);
    REAL a;
    memcpy(&a, &u, sizeof a);
    return a;
}

INLINE void FN(store_one)(char *p, REAL a, Format format, int swapped)
{
#if REAL_BITS == 32
    if (format == FORMAT_F16) { store_16(p, float_to_float16(a), swapped); return; }
    if (format == FORMAT_BF16) { store_16(p, float_to_bfloat16(a), swapped); return; }
#endif
    (void)format;
    UINT u;
    memcpy(&u, &a, sizeof u);
    if (swapped) u = SWAP(u);
    memcpy(p, &u, sizeof u);
}

#if REAL_BITS == 32 && (defined(LEVEL_V3) || defined(LEVEL_V4))
#define HALVES_IN_REGISTERS
/* LANES contiguous float16 or bfloat16, widened; and narrowed, by the rounding of store_one. */
INLINE vec load_halves(const char *p, Format format)
{
#ifdef LEVEL_V4
    const __m256i h = _mm256_loadu_si256((const __m256i *)p);
    return format == FORMAT_F16 ? (vec)_mm512_cvtph_ps(h) : (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#else
    const __m128i h = _mm_loadu_si128((const __m128i *)p);
    return format == FORMAT_F16 ? (vec)_mm256_cvtph_ps(h) : (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
#endif
}

INLINE void store_halves(char *p, vec a, Format format)
{
    const ivec u = (ivec)a, even = u + 0x7fff + ((u >> 16) & 1), quiet = u | 0x400000;
    const ivec is_nan = (ivec)(a != a), rounded = (even & ~is_nan) | (quiet & is_nan); /* in the upper halves */
#ifdef LEVEL_V4
    const __m256i h = format == FORMAT_F16 ? _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)
                                           : _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)rounded, 16));
    _mm256_storeu_si256((__m256i *)p, h);
#else
    const __m256i upper = _mm256_srli_epi32((__m256i)rounded, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x08);
    const __m128i h = format == FORMAT_F16 ? _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)
                                           : _mm256_castsi256_si128(packed);
    _mm_storeu_si128((__m128i *)p, h);
#endif
}
#endif

/* n elements that stand `stride` bytes apart from src on, into dst. One loop per format, so that the compiler
 * sees constants. */
static void FN(fetch)(const char *src, Format format, int swapped, ptrdiff_t stride, ptrdiff_t n, REAL *dst)
{
#define FETCH(step, fmt, swap) \
    for (; i < n; i++) dst[i] = FN(load_one)(src + i * (step), fmt, swap)
    const ptrdiff_t size = (ptrdiff_t)format_size(format);
    ptrdiff_t i = 0;
    if (swapped || stride != size) FETCH(stride, format, swapped);
    else if (format == REAL_FORMAT) memcpy(dst, src, (size_t)(n * size));
    else if (format == FORMAT_F16) {
#ifdef HALVES_IN_REGISTERS
        for (; i + LANES <= n; i += LANES) FN(store)(dst + i, load_halves(src + 2 * i, FORMAT_F16));
#endif
        FETCH(2, FORMAT_F16, 0);
    } else {
#ifdef HALVES_IN_REGISTERS
        for (; i + LANES <= n; i += LANES) FN(store)(dst + i, load_halves(src + 2 * i, FORMAT_BF16));
#endif
        FETCH(2, FORMAT_BF16, 0);
    }
#undef FETCH
}

/* The way back, rounding to the format. */
static void FN(put)(const REAL *src, Format format, int swapped, ptrdiff_t stride, ptrdiff_t n, char *dst)
{
#define PUT(step, fmt, swap) \
    for (; i < n; i++) FN(store_one)(dst + i * (step), src[i], fmt, swap)
    const ptrdiff_t size = (ptrdiff_t)format_size(format);
    ptrdiff_t i = 0;
    if (swapped || stride != size) PUT(stride, format, swapped);
    else if (format == REAL_FORMAT) memcpy(dst, src, (size_t)(n * size));
    else if (format == FORMAT_F16) {
#ifdef HALVES_IN_REGISTERS
        for (; i + LANES <= n; i += LANES) store_halves(dst + 2 * i, FN(load)(src + i), FORMAT_F16);
#endif
        PUT(2, FORMAT_F16, 0);
    } else {
#ifdef HALVES_IN_REGISTERS
        for (; i + LANES <= n; i += LANES) store_halves(dst + 2 * i, FN(load)(src + i), FORMAT_BF16);
#endif
        PUT(2, FORMAT_BF16, 0);
    }
#undef PUT
}
