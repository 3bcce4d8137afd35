/* What the walk (kernels.pyx) and the row code (sweep.h, epilogue.h) hand to each other. */
#ifndef FASTCE_PROBLEM_H
#define FASTCE_PROBLEM_H

#include <stddef.h>
#include <stdint.h>

enum {
    TILE = 64,              /* rows that pass through sweep, epilogue and write together */
    CHUNK = 8192,           /* longest piece of a row that is swept at once: 32 KiB of float32 */
    MAX_PIECES = 1024,      /* parts of a long row that are swept on their own */
    STAGED_BYTES = 1 << 21, /* of exps of a row in pieces: more would leave the cache */
    FEW_BYTES = 448,        /* rows of up to 112 float32 or 56 float64 lie across the lanes of a vector, longer ones along it */
    SCRATCH = 8192          /* doubles: a chunk, or a tile of rows of FEW_BYTES and again transposed */
};
_Static_assert(CHUNK <= SCRATCH && 2 * TILE * FEW_BYTES <= SCRATCH * 8, "what the scratch is for must fit");

/* Of r in Rows when it is computed in float64: keeps its digits where r is subnormal, for a weight that brings
 * them back. */
#define REST_SCALE_F64 0x1p64

/* How an element is stored. float16 and bfloat16 are computed in float32. */
typedef enum { FORMAT_F64, FORMAT_F32, FORMAT_F16, FORMAT_BF16, FORMAT_NONE } Format;

/* One array of logits or gradients seen from inside a tile. Strides are in bytes. */
typedef struct {
    Format format;
    int swapped;             /* the bytes of an element are in the other order */
    ptrdiff_t class_stride;
    ptrdiff_t row_stride;
} Layout;

/* A tile: rows of one batch axis. `grad` is NULL where only the loss is wanted. */
typedef struct {
    ptrdiff_t n_rows, n_classes;
    const char *logits;
    char *grad;
    Layout logits_layout, grad_layout;
    double *scratch; /* SCRATCH of them */
    void *staging;   /* STAGED_BYTES, or NULL: for the exps of a long row that the gradient can't hold */
} Tile;

/* The pieces of a row longer than CHUNK, each swept against its own maximum. */
typedef struct {
    double max[MAX_PIECES];
    double rest[MAX_PIECES];   /* sum of exp(x_j - max) over j != y, times rest_scale */
    double others[MAX_PIECES]; /* the same without the maximum's own term */
    double unit[MAX_PIECES];   /* as in Rows; combine_pieces multiplies it by exp(max - m) UNIT_SCALE */
} Pieces;

/* The rows of a tile, one array per quantity: sweep fills the second group,
 * the epilogue turns it into the third, write consumes that. */
typedef struct {
    int64_t label[TILE];     /* target class y; -1: the row is ignored */
    double weight[TILE];     /* sample weight */

    double max[TILE];        /* m = max_j x_j */
    double at_target[TILE];  /* x_y */
    double rest[TILE];       /* r = sum of exp(x_j - m) over j != y, times rest_scale (vmath.h) */
    double target_exp[TILE]; /* exp(x_y - m) */
    double unit[TILE];       /* exp(x_j - m) = unit times what was staged for it / EXP_POWER */
    Pieces pieces;           /* of a row alone in its tile, instead of its unit */

    double loss[TILE];
    double alpha[TILE];      /* gradient off the target: alpha * exp(x_j - m) */
    double beta[TILE];       /* gradient at the target */
} Rows;

#endif
