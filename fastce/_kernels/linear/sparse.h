/* Products of sparse rows: the same three as in products.h, of the entries that there are.
 *
 * Included once per REAL_BITS, after products.h. Weights are the other way round, (D, padded): the classes of a feature
 * lie together, and an entry of a row touches one run of them. A thread has rows of its own for the logits; for the
 * gradient of the weights it has features of its own and goes through all rows, in their order: what it adds up does not
 * depend on how many threads there are, and nobody's sums have to be added to another's.
 */

INLINE int64_t FN(position)(const Sparse *x, const void *array, ptrdiff_t i)
{
    return x->long_indices ? ((const int64_t *)array)[i] : ((const int32_t *)array)[i];
}

#undef SPARSE_VECTORS
#define SPARSE_VECTORS 4

/* A row of logits, in vectors of classes that stay in registers. */
INLINE void FN(sparse_logits_part)(const Sparse *x, ptrdiff_t start, ptrdiff_t end, const REAL *w, const REAL *bias,
                                   REAL *z, ptrdiff_t vectors)
{
    vec sum[SPARSE_VECTORS];
    for (ptrdiff_t v = 0; v < vectors; v++) sum[v] = bias ? FN(load)(bias + v * LANES) : (vec){0};
    for (ptrdiff_t k = start; k < end; k++) {
        const REAL *of_feature = w + FN(position)(x, x->indices, k) * x->padded;
        const REAL value = ((const REAL *)x->data)[k];
        for (ptrdiff_t v = 0; v < vectors; v++)
            sum[v] = FN(times_add)(value, FN(load)(of_feature + v * LANES), sum[v]);
    }
    for (ptrdiff_t v = 0; v < vectors; v++) FN(store)(z + v * LANES, sum[v]);
}

/* Logits of rows from `first` on, padded reals each. */
static void FN(sparse_logits)(const Sparse *x, ptrdiff_t first, ptrdiff_t n_rows, const REAL *w, const REAL *bias,
                              REAL *z)
{
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const ptrdiff_t start = FN(position)(x, x->row_starts, first + i);
        const ptrdiff_t end = FN(position)(x, x->row_starts, first + i + 1);
        REAL *row = z + i * x->padded;
        ptrdiff_t c = 0;
#define PART_OF(vectors) \
    FN(sparse_logits_part)(x, start, end, w + c, bias ? bias + c : NULL, row + c, vectors)
        for (; c + SPARSE_VECTORS * LANES <= x->padded; c += SPARSE_VECTORS * LANES) PART_OF(SPARSE_VECTORS);
        switch ((x->padded - c) / LANES) {
        case 1: PART_OF(1); break;
        case 2: PART_OF(2); break;
        case 3: PART_OF(3); break;
        }
#undef PART_OF
    }
}

/* sums: (D, padded). Adds what rows have of the features in [from, to). Rows that are not used are left out, whatever
 * they hold. */
static void FN(add_sparse_grad)(const Sparse *x, ptrdiff_t first, ptrdiff_t n_rows, const REAL *g, const char *used,
                                int64_t from, int64_t to, double *sums)
{
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const ptrdiff_t start = FN(position)(x, x->row_starts, first + i);
        const ptrdiff_t end = FN(position)(x, x->row_starts, first + i + 1);
        const REAL *row = g + i * x->padded;
        if (!used[i]) continue;
        for (ptrdiff_t k = start; k < end; k++) {
            const int64_t d = FN(position)(x, x->indices, k);
            if (d < from || d >= to) continue;
            double *at = sums + d * x->padded;
            const vec_f64 value = splat_f64((double)((const REAL *)x->data)[k]);
            for (ptrdiff_t c = 0; c < x->padded; c += LANES_F64)
                store_f64(at + c, fma_f64(value, FN(load_wide)(row + c), load_f64(at + c)));
        }
    }
}
