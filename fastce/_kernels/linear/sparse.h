/* Products of sparse rows: the same three as in products.h, of the entries that there are.
 *
 * Included once per REAL_BITS, after products.h. Weights are the other way round, (D, padded): the classes of a feature
 * lie together, and an entry of a row touches one run of them. A thread has rows of its own for the logits; for the
 * gradient of the weights it has features of its own and goes through all rows, in their order: what it adds up does not
 * depend on how many threads there are, and nobody's sums have to be added to another's. Where the entries of a feature lie
 * together as well, each feature takes the gradients of its rows, in the same order: the same bits without sums in memory.
 */

INLINE int64_t FN(position)(const Sparse *x, const void *array, ptrdiff_t i)
{
    return x->long_indices ? ((const int64_t *)array)[i] : ((const int32_t *)array)[i];
}

#undef AHEAD_ENTRIES
#define AHEAD_ENTRIES 16 /* entries ahead, whose runs are asked for: random places of an array larger than caches */

/* A row of logits, in vectors of classes that stay in registers. `last`: of the entries that may be looked at. */
INLINE void FN(sparse_logits_part)(const Sparse *x, ptrdiff_t start, ptrdiff_t end, ptrdiff_t last, const REAL *w,
                                   const REAL *bias, REAL *z, ptrdiff_t vectors)
{
    vec sum[COLUMNS];
    for (ptrdiff_t v = 0; v < vectors; v++) sum[v] = bias ? FN(load)(bias + v * LANES) : (vec){0};
    for (ptrdiff_t k = start; k < end; k++) {
        const REAL *of_feature = w + FN(position)(x, x->indices, k) * x->padded;
        const ptrdiff_t ahead = FN(position)(x, x->indices, FN(smaller)(k + AHEAD_ENTRIES, last));
        const REAL value = ((const REAL *)x->data)[k];
        FN(ask_for)(w + ahead * x->padded, 0, vectors * VECTOR_BYTES, 0);
        for (ptrdiff_t v = 0; v < vectors; v++)
            sum[v] = FN(times_add)(value, FN(load)(of_feature + v * LANES), sum[v]);
    }
    for (ptrdiff_t v = 0; v < vectors; v++) FN(store)(z + v * LANES, sum[v]);
}

/* The same of one class: four sums, so that none waits for the one before. */
INLINE REAL FN(sparse_logit)(const Sparse *x, ptrdiff_t start, ptrdiff_t end, const REAL *w, REAL bias)
{
    const REAL *data = (const REAL *)x->data;
    REAL sum[4] = {bias, 0, 0, 0};
    ptrdiff_t k = start;
    for (; k + 4 <= end; k += 4)
        for (ptrdiff_t j = 0; j < 4; j++) sum[j] += data[k + j] * w[FN(position)(x, x->indices, k + j)];
    for (; k < end; k++) sum[0] += data[k] * w[FN(position)(x, x->indices, k)];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Logits of rows from `first` on. */
static void FN(sparse_logits)(const Sparse *x, ptrdiff_t first, ptrdiff_t n_rows, const REAL *w, const REAL *bias,
                              REAL *z)
{
    const ptrdiff_t last = FN(position)(x, x->row_starts, first + n_rows) - 1;
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const ptrdiff_t start = FN(position)(x, x->row_starts, first + i);
        const ptrdiff_t stop = FN(position)(x, x->row_starts, first + i + 1);
        if (x->padded == 1) z[i * x->row] = FN(sparse_logit)(x, start, stop, w, bias ? bias[0] : 0);
#define PART_OF(vectors) \
    FN(sparse_logits_part)(x, start, stop, last, w + v * LANES, bias ? bias + v * LANES : NULL, \
                           z + i * x->row + v * LANES, vectors)
        IN_GROUPS(x->padded / LANES, v, PART_OF)
#undef PART_OF
    }
}

/* Adds a row's gradient, in vectors that stay in registers, times each entry of the features in [from, to). */
INLINE void FN(sparse_grad_part)(const Sparse *x, ptrdiff_t start, ptrdiff_t end, ptrdiff_t last, int64_t from,
                                 int64_t to, const REAL *g, double *sums, ptrdiff_t vectors)
{
    vec_f64 grad[COLUMNS];
    for (ptrdiff_t v = 0; v < vectors; v++) grad[v] = FN(load_wide)(g + v * LANES_F64);
    for (ptrdiff_t k = start; k < end; k++) {
        const int64_t d = FN(position)(x, x->indices, k);
        const int64_t ahead = FN(position)(x, x->indices, FN(smaller)(k + AHEAD_ENTRIES, last));
        if (ahead >= from && ahead < to) FN(ask_for)(sums + ahead * x->padded, 0, vectors * VECTOR_BYTES, 1);
        if (d < from || d >= to) continue;
        double *at = sums + d * x->padded;
        const double value = ((const REAL *)x->data)[k];
        for (ptrdiff_t v = 0; v < vectors; v++)
            store_f64(at + v * LANES_F64, times_add_f64(value, grad[v], load_f64(at + v * LANES_F64)));
    }
}

INLINE void FN(sparse_grad_of_one)(const Sparse *x, ptrdiff_t start, ptrdiff_t end, int64_t from, int64_t to, double g,
                                   double *sums)
{
    for (ptrdiff_t k = start; k < end; k++) {
        const int64_t d = FN(position)(x, x->indices, k);
        if (d >= from && d < to) sums[d] += ((const REAL *)x->data)[k] * g;
    }
}

/* sums: (D, padded). Adds what rows have of the features in [from, to). Rows that are not used are left out, whatever
 * they hold. */
static void FN(add_sparse_grad)(const Sparse *x, ptrdiff_t first, ptrdiff_t n_rows, const REAL *g, const char *used,
                                int64_t from, int64_t to, double *sums)
{
    const ptrdiff_t last = FN(position)(x, x->row_starts, first + n_rows) - 1;
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const ptrdiff_t start = FN(position)(x, x->row_starts, first + i);
        const ptrdiff_t stop = FN(position)(x, x->row_starts, first + i + 1);
        if (!used[i]) continue;
        if (x->padded == 1) FN(sparse_grad_of_one)(x, start, stop, from, to, g[i * x->row], sums);
#define PART_OF(vectors) \
    FN(sparse_grad_part)(x, start, stop, last, from, to, g + i * x->row + v * LANES_F64, sums + v * LANES_F64, vectors)
        IN_GROUPS(x->padded / LANES_F64, v, PART_OF)
#undef PART_OF
    }
}

/* A feature's gradient, in vectors that stay in registers: the sum over its entries, in [start, end), of their rows'. */
INLINE void FN(feature_grad_part)(const Sparse *x, ptrdiff_t start, ptrdiff_t end, ptrdiff_t last, const REAL *g,
                                  const char *used, double *to, ptrdiff_t vectors)
{
    vec_f64 sum[COLUMNS];
    for (ptrdiff_t v = 0; v < vectors; v++) sum[v] = (vec_f64){0};
    for (ptrdiff_t k = start; k < end; k++) {
        const ptrdiff_t row = FN(position)(x, x->indices, k);
        const ptrdiff_t ahead = FN(position)(x, x->indices, FN(smaller)(k + AHEAD_ENTRIES, last));
        const double value = ((const REAL *)x->data)[k];
        FN(ask_for)(g + ahead * x->row, 0, vectors * LANES_F64 * (ptrdiff_t)sizeof(REAL), 0);
        if (!used[row]) continue;
        for (ptrdiff_t v = 0; v < vectors; v++)
            sum[v] = times_add_f64(value, FN(load_wide)(g + row * x->row + v * LANES_F64), sum[v]);
    }
    for (ptrdiff_t v = 0; v < vectors; v++) store_f64(to + v * LANES_F64, sum[v]);
}

INLINE double FN(feature_grad_of_one)(const Sparse *x, ptrdiff_t start, ptrdiff_t end, const REAL *g, const char *used)
{
    double sum = 0;
    for (ptrdiff_t k = start; k < end; k++) {
        const ptrdiff_t row = FN(position)(x, x->indices, k);
        if (used[row]) sum += ((const REAL *)x->data)[k] * (double)g[row * x->row];
    }
    return sum;
}

/* add_sparse_grad of a matrix whose rows are features, those in [from, to), and whose columns are rows. */
static void FN(put_feature_grads)(const Sparse *x, ptrdiff_t from, ptrdiff_t to, const REAL *g, const char *used,
                                  double *sums)
{
    const ptrdiff_t last = FN(position)(x, x->row_starts, to) - 1;
    for (ptrdiff_t d = from; d < to; d++) {
        const ptrdiff_t start = FN(position)(x, x->row_starts, d), end_of = FN(position)(x, x->row_starts, d + 1);
        if (x->padded == 1) sums[d] = FN(feature_grad_of_one)(x, start, end_of, g, used);
#define PART_OF(vectors) \
    FN(feature_grad_part)(x, start, end_of, last, g + v * LANES_F64, used, sums + d * x->padded + v * LANES_F64, vectors)
        IN_GROUPS(x->padded / LANES_F64, v, PART_OF)
#undef PART_OF
    }
}
#undef IN_GROUPS
