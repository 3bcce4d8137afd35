/* All elementwise code, for both precisions, under one name each. Everything is static: the extension
 * module of one instruction-set level shares no symbol with another's. */
#ifndef FASTCE_ELEMENTWISE_H
#define FASTCE_ELEMENTWISE_H

#include "vector/common.h"
#include "machine/environment.h"

#define REAL_BITS 64
#include "vector/simd.h"
#include "vector/vmath.h"
#include "vector/formats.h"
#include "elements/operands.h"
#include "elements/binary.h"
#include "elements/strips.h"
#undef REAL_BITS

#define REAL_BITS 32
#include "vector/simd.h"
#include "vector/vmath.h"
#include "vector/formats.h"
#include "elements/operands.h"
#include "elements/binary.h"
#include "elements/strips.h"
#undef REAL_BITS

#include "vector/sums.h"

/* The strips of a block; with `check` their targets alone. Returns whether an element is outside its range. */
static int run_strips(const Elements *e, ptrdiff_t begin, ptrdiff_t end, int check, Pair *loss)
{
    const int is_f64 = e->operand[GIVEN].format == FORMAT_F64;
    const int wide_target = is_f64 || e->operand[TARGET].format == FORMAT_F64;
    const Environment host = enter_environment();
    sum_vec_f64 sum = {{0}, {0}};
    int outside = 0;
    for (ptrdiff_t strip = begin; strip < end && !outside; strip++) {
        const ptrdiff_t first = strip * STRIP, n = e->n - first < STRIP ? e->n - first : STRIP;
        if (check) outside = wide_target ? check_strip_f64(e, first, n) : check_strip_f32(e, first, n);
        else outside = is_f64 ? run_strip_f64(e, first, n, &sum) : run_strip_f32(e, first, n, &sum);
    }
    *loss = add_lanes(sum);
    leave_environment(host);
    return outside;
}
#endif
