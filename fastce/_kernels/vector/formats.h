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

/* Numbers side by side, as they are in memory: reals, or halves that are widened where they are read. */
typedef struct { const char *at; Format format; } Run;

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

#undef HALVES_IN_REGISTERS
#if REAL_BITS == 32 && (defined(LEVEL_V3) || defined(LEVEL_V4))
#define HALVES_IN_REGISTERS
/* LANES float16 or bfloat16, widened; and narrowed, by the rounding of store_one. */
#ifdef LEVEL_V4
typedef __m256i Halves;
#else
typedef __m128i Halves;
#endif

INLINE vec widened(Halves h, Format format)
{
#ifdef LEVEL_V4
    return format == FORMAT_F16 ? (vec)_mm512_cvtph_ps(h) : (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#else
    return format == FORMAT_F16 ? (vec)_mm256_cvtph_ps(h) : (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
#endif
}

INLINE vec load_halves(const char *p, Format format)
{
    Halves h;
    memcpy(&h, p, sizeof h);
    return widened(h, format);
}

/* The first n, 0 < n < LANES, and 0. Not by way of memory: a vector that is read right after its parts were stored waits
 * for them. */
INLINE vec load_n_halves(const char *p, ptrdiff_t n, Format format)
{
#ifdef LEVEL_V4
    return widened(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p), format);
#else
    uint64_t low = 0, high = 0;
    for (ptrdiff_t k = 0; k < n && k < 4; k++) low |= (uint64_t)load_16(p + 2 * k, 0) << 16 * k;
    for (ptrdiff_t k = 4; k < n; k++) high |= (uint64_t)load_16(p + 2 * k, 0) << 16 * (k - 4);
    return widened(_mm_set_epi64x((int64_t)high, (int64_t)low), format);
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

INLINE void store_n_halves(char *p, ptrdiff_t n, vec a, Format format)
{
    char halves[2 * LANES_COUNT];
    store_halves(halves, a, format);
    memcpy(p, halves, 2 * (size_t)n);
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

/* ---- Runs ---------------------------------------------------------------------------------- */

INLINE Run FN(reals)(const REAL *x) { return (Run){(const char *)x, REAL_FORMAT}; }

/* Whether elements of this layout are a run. */
INLINE int FN(is_run)(const Layout *layout)
{
#ifdef HALVES_IN_REGISTERS
    const int readable = layout->format == FORMAT_F16 || layout->format == FORMAT_BF16;
#else
    const int readable = 0;
#endif
    return (readable || layout->format == REAL_FORMAT) && !layout->swapped
           && layout->class_stride == (ptrdiff_t)format_size(layout->format);
}

INLINE vec FN(load_run)(Run x, ptrdiff_t j)
{
#ifdef HALVES_IN_REGISTERS
    if (x.format != REAL_FORMAT) return load_halves(x.at + 2 * j, x.format);
#endif
    return FN(load)((const REAL *)x.at + j);
}

INLINE vec FN(load_run_n)(Run x, ptrdiff_t j, ptrdiff_t n, REAL fill)
{
#ifdef HALVES_IN_REGISTERS
    if (x.format != REAL_FORMAT)
        return FN(select)(FN(first_lanes)(n), load_n_halves(x.at + 2 * j, n, x.format), FN(splat)(fill));
#endif
    return FN(load_n)((const REAL *)x.at + j, n, fill);
}

/* All lanes, or the first n, to where numbers of a format lie side by side. */
INLINE void FN(store_as)(char *p, Format format, vec a)
{
#ifdef HALVES_IN_REGISTERS
    if (format != REAL_FORMAT) store_halves(p, a, format);
    else
#endif
    FN(store)((REAL *)p, a);
    (void)format;
}

INLINE void FN(store_n_as)(char *p, Format format, ptrdiff_t n, vec a)
{
#ifdef HALVES_IN_REGISTERS
    if (format != REAL_FORMAT) store_n_halves(p, n, a, format);
    else
#endif
    FN(store_n)((REAL *)p, n, a);
    (void)format;
}

INLINE REAL FN(number_of_run)(Run x, ptrdiff_t j)
{
    return FN(load_one)(x.at + j * (ptrdiff_t)format_size(x.format), x.format, 0);
}

/* A statement in which the format of a run, a variable that this sets, is a constant. */
#undef FOR_FORMAT
#ifdef HALVES_IN_REGISTERS
#define FOR_FORMAT(run, statement) \
    do { \
        if ((run).format == FORMAT_F16) statement; \
        else if ((run).format == FORMAT_BF16) statement; \
        else { \
            (run).format = REAL_FORMAT; \
            statement; \
        } \
    } while (0)
#else
#define FOR_FORMAT(run, statement) \
    do { \
        (run).format = REAL_FORMAT; \
        statement; \
    } while (0)
#endif
