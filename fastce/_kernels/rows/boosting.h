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
#include "rows/margins.h"
#undef REAL_BITS

#define REAL_BITS 32
#include "vector/simd.h"
#include "vector/vmath.h"
#include "vector/formats.h"
#include "elements/operands.h"
#include "elements/binary.h"
#include "rows/margins.h"
#include "elements/curvature.h"
#include "rows/curvature.h"
#undef REAL_BITS

/* Rows of some tiles. Scratches of many classes are of the heap. */
static int run_softmax(const Softmax *s, ptrdiff_t begin, ptrdiff_t end)
{
    enum { ON_STACK = 16 }; /* classes */
    double scratch[PLANES * ON_STACK * TILE / 2];
    const ptrdiff_t plane = s->n_classes * TILE, at_once = rows_at_once(s);
    double *planes = s->n_classes <= ON_STACK ? scratch : malloc(PLANES * plane * sizeof(float));
    if (!planes) return NO_MEMORY;
    float *floats = (float *)(planes + plane);
    Tile tile;
    tile.margins = planes;
    tile.staged = floats;
    tile.hess = floats + plane;
    tile.u = floats + 2 * plane;
    tile.v = floats + 3 * plane;
    const Environment host = enter_environment();
    int state = WELL;
    for (ptrdiff_t k = begin; k < end && state == WELL; k++) {
        const ptrdiff_t first = k * at_once, n = s->n - first < at_once ? s->n - first : at_once;
        state = softmax_tile(s, first, n, &tile);
    }
    leave_environment(host);
    if (planes != scratch) free(planes);
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
