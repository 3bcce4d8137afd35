/* A linear layer in front of the row code, for both precisions: logits of a tile of rows in planes, and what its
 * gradient means for the weights and for the features. Above rows/, whose tiles and planes it uses. */
#ifndef FASTCE_LINEAR_H
#define FASTCE_LINEAR_H

#include "rows/rows.h"

enum { MAX_AXES = 64 };

/* Where the rows of an array lie, whose axes before the last are any number, at least one: outermost first. */
typedef struct {
    int n_axes;
    ptrdiff_t length[MAX_AXES], stride[MAX_AXES]; /* bytes */
} Grid;

/* Bytes from the first row to this one. */
static ptrdiff_t offset_of(const Grid *g, ptrdiff_t row)
{
    ptrdiff_t offset = 0;
    for (int k = g->n_axes - 1; k > 0; row /= g->length[k--]) offset += row % g->length[k] * g->stride[k];
    return offset + row * g->stride[0];
}

/* How many of n rows, from this one on, are as far apart as neighbours of the innermost axis. */
static ptrdiff_t evenly_apart(const Grid *g, ptrdiff_t row, ptrdiff_t n)
{
    const ptrdiff_t inner = g->length[g->n_axes - 1], left = inner - row % inner;
    return g->n_axes == 1 || n < left ? n : left;
}

/* Features X and weights W of a call; `columns` of logits, which are the classes, or one of a binary loss. */
typedef struct {
    const char *x;
    Format format;
    int swapped;
    Grid rows;
    ptrdiff_t feature_stride; /* bytes */
    ptrdiff_t n_features, padded;         /* padded: whole vectors of them */
    ptrdiff_t n_columns;
    const void *w;    /* n_columns x padded reals, 0 behind the features */
    const void *bias; /* n_columns reals, or NULL */
} Linear;

/* A tile's rows of features as reals, `stride` reals apart. Those of ignored rows are 0. */
typedef struct { const void *rows; ptrdiff_t stride; } Features;

/* Rows of a CSR matrix, and how many reals of weights a feature takes: whole vectors, or one. Rows of logits and of
 * their gradients have as many, `row` reals apart. */
typedef struct {
    const void *row_starts, *indices, *data;
    int long_indices; /* int64, else int32 */
    ptrdiff_t padded, row;
} Sparse;

/* A float64 to an element of an array. */
static void put_sum(double sum, const Layout *to, int accumulate, char *at)
{
    if (accumulate) sum += load_number(at, to->format, to->swapped);
    if (to->format == FORMAT_F64) store_one_f64(at, sum, to->format, to->swapped);
    else store_one_f32(at, (float)sum, to->format, to->swapped);
}

/* simd.h without its definitions: those of rows.h serve. */
#undef REAL
#undef INT
#undef UINT
#undef REAL_SUFFIX
#undef REAL_FORMAT
#define REAL_BITS 64
#define REAL double
#define INT int64_t
#define UINT uint64_t
#define REAL_SUFFIX _f64
#define REAL_FORMAT FORMAT_F64
#include "linear/products.h"
#include "linear/sparse.h"
#undef REAL_BITS
#undef REAL
#undef INT
#undef UINT
#undef REAL_SUFFIX
#undef REAL_FORMAT

#define REAL_BITS 32
#define REAL float
#define INT int32_t
#define UINT uint32_t
#define REAL_SUFFIX _f32
#define REAL_FORMAT FORMAT_F32
#include "linear/products.h"
#include "linear/sparse.h"
#undef REAL_BITS

/* Calls the function of the precision that is computed in. */
#define IN_PRECISION(is_f64, name, ...) ((is_f64) ? name##_f64(__VA_ARGS__) : name##_f32(__VA_ARGS__))

static Features features(int is_f64, const Linear *l, ptrdiff_t first, ptrdiff_t n_rows, const int64_t *label,
                         void *packed)
{
    return IN_PRECISION(is_f64, features, l, first, n_rows, label, packed);
}

static void tile_logits(int is_f64, const Linear *l, const Features *x, ptrdiff_t n_rows, void *z)
{
    IN_PRECISION(is_f64, tile_logits, l, x, n_rows, z);
}

static void add_weight_grad(int is_f64, const Linear *l, const Features *x, ptrdiff_t n_rows, const void *g,
                            double *sums)
{
    IN_PRECISION(is_f64, add_weight_grad, l, x, n_rows, g, sums);
}

static void add_bias_grad(int is_f64, ptrdiff_t n_columns, ptrdiff_t n_rows, const void *g, double *sums)
{
    IN_PRECISION(is_f64, add_bias_grad, n_columns, n_rows, g, sums);
}

/* The gradient of a tile's features, to the array that it belongs in. */
static void put_input_grad(int is_f64, const Linear *l, ptrdiff_t first, ptrdiff_t n_rows, const void *g, void *rows,
                           const Layout *to, const Grid *of_array, int accumulate, char *array)
{
    const ptrdiff_t row_bytes = l->padded * (is_f64 ? 8 : 4);
    IN_PRECISION(is_f64, tile_input_grad, l, n_rows, g, rows);
    for (ptrdiff_t i = 0, n; i < n_rows; i += n) {
        n = evenly_apart(of_array, first + i, n_rows - i);
        IN_PRECISION(is_f64, put_rows, (void *)((char *)rows + i * row_bytes), l->padded, n, l->n_features, to,
                     accumulate, array + offset_of(of_array, first + i));
    }
}

static void put_sums(int is_f64, const Linear *l, double *sums, ptrdiff_t n_blocks, const Layout *to, int accumulate,
                     char *array)
{
    IN_PRECISION(is_f64, put_sums, l, sums, n_blocks, to, accumulate, array);
}

static void pack_weights(int is_f64, const Linear *l, const char *w, const Layout *from, void *dst)
{
    IN_PRECISION(is_f64, pack_weights, l, w, from, dst);
}

static void widen_row(int is_f64, const char *row, const Layout *from, ptrdiff_t n, void *to)
{
    IN_PRECISION(is_f64, widen_row, row, from, n, to);
}

static void sparse_logits(int is_f64, const Sparse *x, ptrdiff_t first, ptrdiff_t n_rows, const void *w,
                          const void *bias, void *z)
{
    IN_PRECISION(is_f64, sparse_logits, x, first, n_rows, w, bias, z);
}

static void add_sparse_grad(int is_f64, const Sparse *x, ptrdiff_t first, ptrdiff_t n_rows, const void *g,
                            const char *used, int64_t from, int64_t to, double *sums)
{
    IN_PRECISION(is_f64, add_sparse_grad, x, first, n_rows, g, used, from, to, sums);
}

static void put_feature_grads(int is_f64, const Sparse *x, ptrdiff_t from, ptrdiff_t to, const void *g, const char *used,
                              double *sums)
{
    IN_PRECISION(is_f64, put_feature_grads, x, from, to, g, used, sums);
}

static void hessian_tile(int is_f64, const void *p, ptrdiff_t n_columns, int binary, ptrdiff_t n_rows,
                         const double *sample, double scale, void *t)
{
    if (binary) IN_PRECISION(is_f64, hessian_binary, p, n_rows, sample, scale, t);
    else IN_PRECISION(is_f64, hessian_rows, p, n_columns, n_rows, sample, scale, t);
}

static void hessian_row(int is_f64, const void *p, ptrdiff_t n, int binary, double s, void *t)
{
    IN_PRECISION(is_f64, hessian_row, p, n, binary, s, t);
}

/* Sums of all blocks, in their order, of columns of LANES_F64 numbers. */
static void put_bias_sums(ptrdiff_t n_columns, const double *sums, ptrdiff_t block_stride, ptrdiff_t n_blocks,
                          const Layout *to, int accumulate, char *array)
{
    for (ptrdiff_t c = 0; c < n_columns; c++) {
        double sum = 0;
        for (ptrdiff_t b = 0; b < n_blocks; b++) sum += add_up_f64(load_f64(sums + b * block_stride + c * LANES_F64));
        put_sum(sum, to, accumulate, array + c * to->class_stride);
    }
}
#undef IN_PRECISION

static ptrdiff_t padded_features(ptrdiff_t n, int is_f64)
{
    const ptrdiff_t lanes = VECTOR_BYTES / (is_f64 ? 8 : 4);
    return n ? (n + lanes - 1) / lanes * lanes : lanes; /* products begin with a vector, of zeros if there is nothing */
}

#endif
