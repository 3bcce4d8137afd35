/* The arrays of an elementwise call, and the way of a run of their elements to and from a scratch.
 *
 * Included once per REAL_BITS, after formats.h. The elements of a call are numbered in the memory order of its
 * logits. Each array knows its own way through that order: axes of stride 0 where it is broadcast, axes merged
 * where it, and not necessarily another, is evenly spaced.
 */
#ifndef FASTCE_OPERANDS_H
#define FASTCE_OPERANDS_H

enum { MAX_DIMS = 64, STRIP = 1024 /* elements that are computed together */ };

/* Formats beside those of formats.h. Integers are read without their sign: of a target none but 0 and 1 will do. */
enum { INTEGER_8 = FORMAT_NONE + 1, INTEGER_16, INTEGER_32, INTEGER_64 };

typedef struct {
    char *data;                                  /* NULL: not part of this call */
    int format, swapped;
    int flat;                                    /* all elements adjacent, in the order of their numbers */
    int n_dims;                                  /* merged, at least 1 */
    ptrdiff_t shape[MAX_DIMS], stride[MAX_DIMS]; /* outermost first; bytes */
} Operand;

/* Where an element stands, and how many from it on are evenly spaced. */
INLINE char *locate(const Operand *a, ptrdiff_t number, ptrdiff_t *run)
{
    char *at = a->data;
    *run = a->shape[a->n_dims - 1] - number % a->shape[a->n_dims - 1];
    for (int dim = a->n_dims - 1; dim > 0; dim--) {
        at += number % a->shape[dim] * a->stride[dim];
        number /= a->shape[dim];
    }
    return at + number * a->stride[0];
}

static void fetch_f32(const char *, Format, int swapped, ptrdiff_t stride, ptrdiff_t n, float *);
#endif

/* n elements `stride` bytes apart, of any format, except that no float64 is read as float32. */
static void FN(read_run)(const char *src, int format, int swapped, ptrdiff_t stride, ptrdiff_t n, REAL *dst)
{
#define READ(type, step, swap)                                   \
    for (ptrdiff_t i = 0; i < n; i++) {                          \
        type a;                                                  \
        memcpy(&a, src + i * (step), sizeof a);                  \
        dst[i] = (REAL)(type)(swapped ? swap(a) : a);            \
    }                                                            \
    return
    switch (format) {
    case INTEGER_8:
        if (stride == 1) { READ(uint8_t, 1, ); }
        READ(uint8_t, stride, );
    case INTEGER_16: READ(uint16_t, stride, __builtin_bswap16);
    case INTEGER_32: READ(uint32_t, stride, __builtin_bswap32);
    case INTEGER_64: READ(uint64_t, stride, __builtin_bswap64);
    }
#undef READ
#if REAL_BITS == 64
    if (format != FORMAT_F64) {
        float narrow[STRIP];
        fetch_f32(src, (Format)format, swapped, stride, n, narrow);
        for (ptrdiff_t i = 0; i < n; i++) dst[i] = narrow[i];
        return;
    }
#endif
    FN(fetch)(src, (Format)format, swapped, stride, n, dst);
}

/* Elements first, ..., first + n - 1; n <= STRIP */
static void FN(read)(const Operand *a, ptrdiff_t first, ptrdiff_t n, REAL *dst)
{
    for (ptrdiff_t i = 0, run; i < n; i += run) {
        const char *src = locate(a, first + i, &run);
        run = run < n - i ? run : n - i;
        FN(read_run)(src, a->format, a->swapped, a->stride[a->n_dims - 1], run, dst + i);
    }
}

static void FN(write)(const Operand *a, ptrdiff_t first, ptrdiff_t n, const REAL *src)
{
    for (ptrdiff_t i = 0, run; i < n; i += run) {
        char *dst = locate(a, first + i, &run);
        run = run < n - i ? run : n - i;
        FN(put)(src + i, (Format)a->format, a->swapped, a->stride[a->n_dims - 1], run, dst);
    }
}

/* Usable where it is. C may not read a number in place at an address that its type is not aligned to. */
INLINE int FN(is_plain)(const Operand *a)
{
    return a->flat && a->format == REAL_FORMAT && !a->swapped && (uintptr_t)a->data % sizeof(REAL) == 0;
}

/* The same elements where they are, or in the scratch if they can't be used there. */
INLINE const REAL *FN(input)(const Operand *a, ptrdiff_t first, ptrdiff_t n, REAL *scratch)
{
    if (FN(is_plain)(a)) return (const REAL *)a->data + first;
    FN(read)(a, first, n, scratch);
    return scratch;
}

/* Where to write elements from the first one on: in place or in the scratch, for `deliver` to take along. */
INLINE REAL *FN(output)(const Operand *a, ptrdiff_t first, REAL *scratch)
{
    return !a->data ? NULL : FN(is_plain)(a) ? (REAL *)a->data + first : scratch;
}

INLINE void FN(deliver)(const Operand *a, ptrdiff_t first, ptrdiff_t n, const REAL *scratch)
{
    if (a->data && !FN(is_plain)(a)) FN(write)(a, first, n, scratch);
}

#if REAL_BITS == 32
/* Results in float64, a strip of them, to an array of float32 or float64. */
static inline void deliver_strip(const Operand *to, ptrdiff_t first, ptrdiff_t n, const double *src)
{
    if (to->format == FORMAT_F64) {
        write_f64(to, first, n, src);
        return;
    }
    float narrow[STRIP];
    for (ptrdiff_t i = 0; i < n; i += LANES_F64) store_narrow_f32(narrow + i, load_f64(src + i));
    write_f32(to, first, n, narrow);
}
#endif
