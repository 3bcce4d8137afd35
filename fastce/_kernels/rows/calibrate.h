/* Calibration's code for both precisions, under one name each. Static, as in rows.h. */
#ifndef FASTCE_CALIBRATE_H
#define FASTCE_CALIBRATE_H

#include "vector/common.h"
#include "machine/environment.h"

enum { TILE = 64 }; /* rows of few classes that pass together */

#define REAL_BITS 64
#include "vector/simd.h"
#include "vector/vmath.h"
#include "vector/formats.h"
#include "vector/transpose.h"
#include "rows/calibration.h"
#undef REAL_BITS

#define REAL_BITS 32
#include "vector/simd.h"
#include "vector/vmath.h"
#include "vector/formats.h"
#include "vector/transpose.h"
#include "rows/calibration.h"
#undef REAL_BITS

/* Units in which exps(x) is a multiple of exp(x * inverse). */
static Temperature temperature_of(double inverse)
{
    const double high = LN2 / inverse, low = (fma(-high, inverse, LN2) + LN2_TAIL) / inverse;
    Temperature t = {inverse, 1, plain_units_f64, plain_units_f32};
    if (inverse == 1) return t;
    t.f64 = scaled_units_f64(high, low, inverse);
    t.f32 = scaled_units_f32(high, low, inverse);
    return t;
}

static void add_rows(const Batch *batch, ptrdiff_t begin, ptrdiff_t end, const Temperature *t, void *scratch,
                     Moments *to)
{
    const Environment host = enter_environment();
    if (batch->format == FORMAT_F64) add_rows_f64(batch, begin, end, t, scratch, to);
    else add_rows_f32(batch, begin, end, t, scratch, to);
    leave_environment(host);
}

static void score_rows(const Batch *batch, ptrdiff_t begin, ptrdiff_t end, void *scratch, void *confidence,
                       int8_t *hit, double *brier)
{
    const Environment host = enter_environment();
    if (batch->format == FORMAT_F64) score_rows_f64(batch, begin, end, scratch, confidence, hit, brier);
    else score_rows_f32(batch, begin, end, scratch, confidence, hit, brier);
    leave_environment(host);
}
#endif
