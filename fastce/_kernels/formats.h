/* How elements are stored in memory, and their way to and from the reals that are computed with.
 *
 * Included once per REAL_BITS, after simd.h. Arrays that are neither contiguous nor native
 * float32 / float64 pass through a scratch that stays in cache: fetch and put move one run of
 * equally spaced elements. Nothing here assumes alignment.
 */
#ifndef FASTCE_FORMATS_H
#define FASTCE_FORMATS_H

#include "problem.h"

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

#endif /* FASTCE_FORMATS_H */

#undef SWAP
#if REAL_BITS == 64
#define SWAP __builtin_bswap64
#else
#define SWAP __builtin_bswap32
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

/* n elements that stand `stride` bytes apart from src on, into dst. One loop per format, so that
 * the compiler sees constants; for contiguous elements they vectorise. */
static void FN(fetch)(const char *src, Format format, int swapped, ptrdiff_t stride, ptrdiff_t n, REAL *dst)
{
#define FETCH(step, fmt, swap) \
    for (ptrdiff_t i = 0; i < n; i++) dst[i] = FN(load_one)(src + i * (step), fmt, swap)
    ptrdiff_t size = (ptrdiff_t)format_size(format);
    if (swapped || stride != size) FETCH(stride, format, swapped);
#if REAL_BITS == 32
#if defined(LEVEL_V3) || defined(LEVEL_V4)
    else if (format == FORMAT_F16) {
        ptrdiff_t i = 0;
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(src + 2 * i))));
        for (; i < n; i++) dst[i] = float16_to_float(load_16(src + 2 * i, 0));
    }
#else
    else if (format == FORMAT_F16) FETCH(2, FORMAT_F16, 0);
#endif
    else if (format == FORMAT_BF16) FETCH(2, FORMAT_BF16, 0);
#endif
    else memcpy(dst, src, (size_t)(n * size));
#undef FETCH
}

/* The way back, rounding to the format. */
static void FN(put)(const REAL *src, Format format, int swapped, ptrdiff_t stride, ptrdiff_t n, char *dst)
{
#define PUT(step, fmt, swap) \
    for (ptrdiff_t i = 0; i < n; i++) FN(store_one)(dst + i * (step), src[i], fmt, swap)
    ptrdiff_t size = (ptrdiff_t)format_size(format);
    if (swapped || stride != size) PUT(stride, format, swapped);
#if REAL_BITS == 32
#if defined(LEVEL_V3) || defined(LEVEL_V4)
    else if (format == FORMAT_F16) {
        ptrdiff_t i = 0;
        for (; i + 8 <= n; i += 8)
            _mm_storeu_si128((__m128i *)(dst + 2 * i),
                             _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
        for (; i < n; i++) store_16(dst + 2 * i, float_to_float16(src[i]), 0);
    }
#else
    else if (format == FORMAT_F16) PUT(2, FORMAT_F16, 0);
#endif
    else if (format == FORMAT_BF16) PUT(2, FORMAT_BF16, 0);
#endif
    else memcpy(dst, src, (size_t)(n * size));
#undef PUT
}
