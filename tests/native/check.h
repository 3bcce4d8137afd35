/* What the native tests share: numbers of four formats in memory, random rows, and errors in ULP.
 *
 * Formats are written and read here a bit at a time by arithmetic, so that formats.h is not its own judge. Exact
 * results are long doubles: 64 bits of mantissa on x86-64, 113 on arm64. */
#ifndef FASTCE_CHECK_H
#define FASTCE_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef long double Wide;

/* ---- Formats ------------------------------------------------------------------------------- */

/* In the order of the enum Format in common.h. */
static const struct { const char *name; int bytes, exponent_bits, mantissa_bits; } FORMATS[] = {
    {"float64", 8, 11, 52}, {"float32", 4, 8, 23}, {"float16", 2, 5, 10}, {"bfloat16", 2, 8, 7},
};
enum { N_FORMATS = 4 };

static int least_exponent(int format) { return 2 - (1 << (FORMATS[format].exponent_bits - 1)); } /* of normal numbers */

static double tiny_of(int format) { return ldexp(1, least_exponent(format)); }

static double largest_of(int format)
{
    return ldexp(2 - ldexp(1, -FORMATS[format].mantissa_bits), 1 - least_exponent(format));
}

/* The unit in the last place of the numbers in the binade of `size`. */
static double unit_at(int format, double size)
{
    int exponent = least_exponent(format) + 1;
    if (size > tiny_of(format)) frexp(fmin(size, largest_of(format)), &exponent);
    return ldexp(1, exponent - 1 - FORMATS[format].mantissa_bits);
}

/* The nearest number of a format, ties to even; beyond the largest, infinity. */
static double rounded(int format, double a)
{
    if (format == 0 || a == 0 || !isfinite(a)) return a;
    const double unit = unit_at(format, fabs(a)), near = rint(a / unit) * unit;
    return fabs(near) > largest_of(format) ? copysign(INFINITY, near) : near;
}

/* A byte's place in a number whose bytes are in the other order than this machine's if `swapped`. */
static int shift_of(int byte, int bytes, int swapped)
{
    const uint16_t probe = 1;
    const int little = *(const char *)&probe == 1;
    return 8 * (little != swapped ? byte : bytes - 1 - byte);
}

/* Writes a number of the format. */
static void encode(int format, int swapped, double a, char *p)
{
    const int bytes = FORMATS[format].bytes, mantissa_bits = FORMATS[format].mantissa_bits;
    const uint64_t infinity = ((1ull << FORMATS[format].exponent_bits) - 1) << mantissa_bits;
    uint64_t u = infinity | 1ull << (mantissa_bits - 1);
    if (isinf(a)) u = infinity;
    else if (!isnan(a)) {
        const double size = fabs(a), unit = unit_at(format, size);
        int exponent = least_exponent(format) + 1;
        if (size >= tiny_of(format)) frexp(size, &exponent);
        u = ((uint64_t)(exponent - 1 - least_exponent(format)) << mantissa_bits) + (uint64_t)(size / unit);
    }
    u |= (uint64_t)(signbit(a) != 0) << (8 * bytes - 1);
    for (int i = 0; i < bytes; i++) p[i] = (char)(u >> shift_of(i, bytes, swapped));
}

static double decode(int format, int swapped, const char *p)
{
    const int bytes = FORMATS[format].bytes, mantissa_bits = FORMATS[format].mantissa_bits;
    uint64_t u = 0;
    for (int i = 0; i < bytes; i++) u |= (uint64_t)(uint8_t)p[i] << shift_of(i, bytes, swapped);
    const int negative = u >> (8 * bytes - 1) & 1, top = (1 << FORMATS[format].exponent_bits) - 1;
    const int exponent = (int)(u >> mantissa_bits) & top;
    const uint64_t digits = u & ((1ull << mantissa_bits) - 1);
    if (exponent == top) return digits ? NAN : negative ? -INFINITY : INFINITY;
    const double size = ldexp((double)(digits + (exponent ? 1ull << mantissa_bits : 0)),
                              least_exponent(format) + (exponent ? exponent - 1 : 0) - mantissa_bits);
    return negative ? -size : size;
}

/* ---- Random numbers: SplitMix64 ------------------------------------------------------------ */

static uint64_t seed;

static double uniform(double low, double high)
{
    uint64_t u = seed += 0x9e3779b97f4a7c15;
    u = (u ^ u >> 30) * 0xbf58476d1ce4e5b9;
    u = (u ^ u >> 27) * 0x94d049bb133111eb;
    return low + (high - low) * (double)((u ^ u >> 31) >> 11) * 0x1p-53;
}

static ptrdiff_t below(ptrdiff_t n) { return (ptrdiff_t)uniform(0, (double)n); }

static double normal(double scale)
{
    return scale * sqrt(-2 * log(1 - uniform(0, 1))) * cos(6.283185307179586 * uniform(0, 1));
}

/* ---- Errors -------------------------------------------------------------------------------- */

static int failures;
static char context[256]; /* what is being checked */

/* The share of its bound, in ULP at `scale`, that a number's error takes. The ULP is constant in the subnormal range:
 * there the bound is the relative error it stands for at the smallest normal number, and half a unit to round. */
static double share_of_bound(int format, double got, Wide exact, Wide scale, double bound)
{
    const double size = (double)fabsl(scale), tiny = tiny_of(format);
    if (isnan(exact)) return isnan(got) ? 0 : INFINITY;
    if (isinf(exact)) return got == exact ? 0 : INFINITY;
    if (isinf(got)) return rounded(format, (double)exact) == got ? 0 : INFINITY;
    if (size < tiny) bound = 0.5 + bound * (size / tiny);
    const double share = (double)(fabsl(got - exact) / unit_at(format, size) / bound);
    return share >= 0 ? share : INFINITY; /* NaN is no number */
}

/* Notes the share, and says so where it is more than all. */
static void check(const char *what, ptrdiff_t row, ptrdiff_t j, int format, double got, Wide exact, Wide scale,
                  double bound, double *worst)
{
    const double share = share_of_bound(format, got, exact, scale, bound);
    if (share > *worst) *worst = share;
    if (share <= 1) return;
    if (failures++ < 20)
        printf("FAILED %s: %s of row %td, class %td is %.17g instead of %.21Lg: %.3g of a bound of %g ULP at %.3Lg\n",
               context, what, row, j, got, exact, share, bound, scale);
}

static void expect(int holds, const char *what)
{
    if (!holds && failures++ < 20) printf("FAILED %s: %s\n", context, what);
}

static void *memory(size_t bytes)
{
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p) abort();
    return p;
}

static int report(const char *name)
{
    if (failures) printf("%s: %d failures\n", name, failures);
    else printf("%s: passed\n", name);
    return failures != 0;
}

#endif
