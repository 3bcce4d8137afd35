/* All code of the derivatives for boosted trees, under one name each. Everything is static, as in elementwise.h. */
#ifndef FASTCE_BOOSTING_H
#define FASTCE_BOOSTING_H

#include <stdlib.h>

#include "vector/common.h"
#include "machine/environment.h"

#define REAL_BITS 64
#include "vector/simd.h"
#include "vector/vmath.h"
#include "vector/formats.h"
#include "elements/operands.h"
#include "elements/binary.h"
#include "elements/curvature.h"
#include "rows/margins.h"
#include "rows/softmax_derivatives.h"
#undef REAL_BITS

#define REAL_BITS 32
#include "vector/simd.h"
#include "vector/vmath.h"
#include "vector/formats.h"
#include "elements/operands.h"
#include "elements/binary.h"
#include "rows/margins.h"
#include "rows/softmax_derivatives.h"
#undef REAL_BITS

/* ---- What float64 has in float32 ------------------------------------------------------------------- */

static void store_floats(float *p, vec_f64 a) { store_narrow_f32(p, a); }

static void deliver_plane(const float *plane, const Matrix *to, ptrdiff_t first, ptrdiff_t n_rows, ptrdiff_t n_classes)
{
    const Layout *layout = &to->layout;
    char *at = to->data + first * layout->row_stride;
    if (is_column(layout)) return;
    if (is_whole_f32(layout) && layout->class_stride == sizeof(float))
        plane_to_rows_f32(plane, at, layout->row_stride, n_rows, n_classes);
    else
        for (ptrdiff_t c = 0; c < n_classes; c++)
            put_f32(plane + c * TILE, layout->format, layout->swapped, layout->row_stride, n_rows,
                    at + c * layout->class_stride);
}

/* ---- Blocks of tiles and of strips ------------------------------------------------------------------ */

static int run_softmax(const Softmax *s, ptrdiff_t begin, ptrdiff_t end)
{
    const Environment host = enter_environment();
    const int wide = s->margins.layout.format == FORMAT_F64;
    const int state = wide ? run_tiles_f64(s, begin, end) : run_tiles_f32(s, begin, end);
    leave_environment(host);
    return state;
}

static int run_logistic(const Logistic *s, ptrdiff_t begin, ptrdiff_t end)
{
    const Environment host = enter_environment();
    int state = WELL;
    for (ptrdiff_t k = begin; k < end && state == WELL; k++) {
        const ptrdiff_t first = k * STRIP, n = s->n - first < STRIP ? s->n - first : STRIP;
        state = logistic_strip(s, first, n) ? WRONG_LABEL : WELL;
    }
    leave_environment(host);
    return state;
}
#endif
