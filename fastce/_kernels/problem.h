/* What the walk (kernels.pyx) and the row code (sweep.h, epilogue.h) hand to each other. */
#ifndef FASTCE_PROBLEM_H
#define FASTCE_PROBLEM_H

#include <stddef.h>
#include <stdint.h>

enum {
    TILE = 64,          /* rows that pass through sweep, epilogue and write together */
    CHUNK = 8192,       /* longest piece of a row that is swept at once: 32 KiB of float32 */
    MAX_PIECES = 1024,  /* parts of a long row that are swept on their own */
    STAGED_BYTES = 1 << 21, /* longest row whose exps are staged in the gradient */
    FEW_CLASSES = 64,   /* up to here rows lie across the lanes of a vector, above along it */
};

/* Keeps the digits of an r that is subnormal in float64, for a weight that brings it back. */
#define REST_SCALE 0x1p64

/* How an element is stored. float16 and bfloat16 are computed in float32. */
typedef enum { FORMAT_F64, FORMAT_F32, FORMAT_F16, FORMAT_BF16 } Format;

/* One array of logits or gradients seen from inside a tile. Strides are in bytes. */
typedef struct {
    Format format;
    int swapped;             /* the bytes of an element are in the other order */
    ptrdiff_t class_stride;
    ptrdiff_t row_stride;
} Layout;

/* The rows of a tile, one array per quantity: sweep fills the second group,
 * the epilogue turns it into the third, write consumes that. */
typedef struct {
    int64_t label[TILE];     /* target class y; -1: the row is ignored */
    double weight[TILE];     /* sample weight */

    double max[TILE];        /* m = max_j x_j */
    double rest[TILE];       /* r = sum of exp(x_j - m) over j != y, times REST_SCALE */
    double at_target[TILE];  /* x_y */
    double target_exp[TILE]; /* exp(x_y - m) */

    double piece_max[MAX_PIECES]; /* of the pieces of a row longer than CHUNK, alone in its tile */

    double loss[TILE];
    double alpha[TILE];      /* gradient off the target: alpha * exp(x_j - m) */
    double beta[TILE];       /* gradient at the target */
} Rows;

#endif
