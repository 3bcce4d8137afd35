/* Halves on their way to float32 and back, by themselves and in vectors: every bit, ties to even. */
#include "elements/elementwise.h"

#include "check.h"

enum { ALL = 1 << 16 };

static void check_format(Format format, int swapped)
{
    static char stored[2 * ALL + 1], again[2 * ALL + 1];
    static float number[ALL];
    snprintf(context, sizeof context, "%s%s", FORMATS[format].name, swapped ? ", swapped" : "");
    for (int step = 0; step < 2; step++) { /* aligned or not; from the second on, so that ends of vectors meet others */
        const int first = step, n = ALL - first;
        for (uint32_t u = 0; u < ALL; u++)
            for (int i = 0; i < 2; i++) stored[step + 2 * u + i] = (char)(u >> shift_of(i, 2, swapped));
        fetch_f32(stored + step + 2 * first, format, swapped, 2, n, number);
        put_f32(number, format, swapped, 2, n, again);
        for (int k = 0; k < n; k++) {
            const char *p = stored + step + 2 * (first + k);
            const double exact = decode(format, swapped, p), back = decode(format, swapped, again + 2 * k);
            expect(isnan(exact) ? isnan(number[k]) : number[k] == exact, "a number is read as another");
            expect(isnan(exact) || !signbit(number[k]) == !signbit(exact), "a number is read with another sign");
            expect(load_number(p, format, swapped) == number[k] || isnan(exact), "load_number reads another");
            expect(isnan(exact) ? isnan(back) : memcmp(p, again + 2 * k, 2) == 0, "a number does not come back");
        }
    }
    for (int offset = -1; offset <= 1; offset++) { /* half way to the next, and the float32 on either side of that */
        for (int k = 0; k < ALL; k++) {
            char p[2];
            for (int i = 0; i < 2; i++) p[i] = (char)((uint32_t)k >> shift_of(i, 2, 0));
            const double a = decode(format, 0, p), half = unit_at(format, fabs(a)) / 2;
            number[k] = (float)(a + (a < 0 ? -half : half));
            if (offset) number[k] = nextafterf(number[k], offset * INFINITY);
        }
        put_f32(number, format, swapped, 2, ALL, again);
        for (int k = 0; k < ALL; k++) {
            const double exact = rounded(format, number[k]), back = decode(format, swapped, again + 2 * k);
            expect(isnan(exact) ? isnan(back) : back == exact, "a number is not rounded to the nearest, ties to even");
        }
    }
}

int main(void)
{
    for (Format format = FORMAT_F16; format <= FORMAT_BF16; format++)
        for (int swapped = 0; swapped < 2; swapped++) check_format(format, swapped);
    return report("test_formats");
}
