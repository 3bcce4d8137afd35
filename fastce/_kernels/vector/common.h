/* What all kernels share: how numbers are stored, and the units that exps are taken in. */
#ifndef FASTCE_COMMON_H
#define FASTCE_COMMON_H

#include <stddef.h>
#include <stdint.h>

/* Each prange asks whether the GIL is held, to let go of it. Here it never is; but Python before 3.12 says that it
 * is as soon as the process has had a second interpreter, and aborts when it is let go of once more. */
#if defined(PY_VERSION_HEX) && PY_VERSION_HEX < 0x030C0000
#define PyGILState_Check() 0
#endif

/* How an element is stored. float16 and bfloat16 are computed in float32. */
typedef enum { FORMAT_F64, FORMAT_F32, FORMAT_F16, FORMAT_BF16, FORMAT_NONE } Format;

/* One array of logits or gradients seen from inside a tile. Strides are in bytes. */
typedef struct {
    Format format;
    int swapped;             /* the bytes of an element are in the other order */
    ptrdiff_t class_stride;
    ptrdiff_t row_stride;
} Layout;

/* What the reduction of an exp's argument x / T needs (vmath.h), in units of x. */
#define UNITS(real) \
    struct { \
        real per_step, step_high, step_low; /* a step of the table of powers of two, in two parts */ \
        real inverse;                       /* 1 / T */ \
        real lowest, far; \
    }
typedef UNITS(double) Units_f64;
typedef UNITS(float) Units_f32;
#undef UNITS

/* Logits count as x factor / divisor. One of them is 1. */
typedef struct {
    double factor, divisor;
    Units_f64 f64;
    Units_f32 f32;
} Temperature;

#endif
