/* Products of a tile of rows with weights, and of their gradients with either.
 *
 * Included once per REAL_BITS. A tile of logits, and its gradient in the same place, is planes: column c of row i at
 * c * TILE + i, as across.h has them. X is read from memory once, for the logits; for the gradients it is in cache.
 *
 *     logits        z_ic   = b_c + sum_d w_cd x_id      a feature in every lane, and their sum in the end
 *     weights'      dw_cd += sum_i g_ic x_id            a feature in every lane
 *     features'     dx_id  = sum_c g_ic w_cd            a feature in every lane
 *
 * Each keeps a block of accumulators in registers, with as many operands as the block has rows and columns for all of
 * its products. A logit depends on its row and its class alone, not on their place. Sums over rows leave REAL at the end
 * of a tile. The last vector of a row overlaps the one before where the features are no multiple of LANES: packed weights
 * are 0 there, and sums of gradients are not used. So nothing is touched outside of a row, and there is no other path for
 * its end.
 */

/* Columns whose accumulators for two vectors each fit in the registers beside their operands. */
#undef COLUMNS
#define COLUMNS 6

INLINE vec FN(times_add)(REAL a, vec b, vec c) { return FN(fma)(FN(splat)(a), b, c); }

/* Calls action(columns) for `n` columns from `first` on, in groups that are as even as can be. */
#define IN_GROUPS(n, first, action) \
    for (ptrdiff_t groups = ((n) + COLUMNS - 1) / COLUMNS, first = 0, group = 0; group < groups; group++) { \
        const ptrdiff_t end = (n) * (group + 1) / groups; \
        switch (end - first) { \
        case 1: action(1); break; \
        case 2: action(2); break; \
        case 3: action(3); break; \
        case 4: action(4); break; \
        case 5: action(5); break; \
        default: action(COLUMNS); \
        } \
        first = end; \
    }

/* ---- Rows of features --------------------------------------------------------------------- */

/* Whether rows of X can be used where they are: vectors, the last of which may overlap the one before. */
INLINE int FN(is_direct)(const Linear *l, const char *x, ptrdiff_t row_stride)
{
    return l->format == REAL_FORMAT && !l->swapped && l->feature_stride == sizeof(REAL)
           && row_stride % (ptrdiff_t)sizeof(REAL) == 0 && (uintptr_t)x % sizeof(REAL) == 0;
}

static Features FN(features)(const Linear *l, ptrdiff_t first, ptrdiff_t n_rows, const int64_t *label, REAL *packed)
{
    const char *x = l->x + offset_of(&l->rows, first);
    const ptrdiff_t row_stride = l->rows.stride[l->rows.n_axes - 1];
    int any_ignored = 0;
    for (ptrdiff_t i = 0; i < n_rows; i++) any_ignored |= label[i] < 0;
    if (!any_ignored && evenly_apart(&l->rows, first, n_rows) == n_rows && FN(is_direct)(l, x, row_stride))
        return (Features){x, row_stride / (ptrdiff_t)sizeof(REAL)};
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        REAL *row = packed + i * l->padded;
        if (label[i] < 0) memset(row, 0, (size_t)l->padded * sizeof(REAL));
        else {
            FN(fetch)(l->x + offset_of(&l->rows, first + i), l->format, l->swapped, l->feature_stride, l->n_features,
                      row);
            memset(row + l->n_features, 0, (size_t)(l->padded - l->n_features) * sizeof(REAL));
        }
    }
    return (Features){packed, l->padded};
}

/* A row of n numbers of any format, as contiguous REALs. */
static void FN(widen_row)(const char *row, const Layout *from, ptrdiff_t n, REAL *to)
{
    const REAL *at = FN(numbers)(row, from, 0, n, to);
    if (at != to) memcpy(to, at, (size_t)n * sizeof(REAL));
}

/* Where vector number v of a row of features begins. */
INLINE ptrdiff_t FN(feature_of)(const Linear *l, ptrdiff_t v)
{
    const ptrdiff_t last = l->n_features - LANES;
    return v * LANES <= last || last < 0 ? v * LANES : last;
}

/* A vector of a row of n features, which may be fewer than a vector has. */
INLINE vec FN(load_features)(const REAL *row, ptrdiff_t n)
{
#ifdef LEVEL_V4
    return FN(load_n)(row, n < LANES ? n : LANES, 0); /* a mask costs nothing */
#else
    return n >= LANES ? FN(load)(row) : FN(load_n)(row, n, 0);
#endif
}

/* ---- Logits ------------------------------------------------------------------------------- */

#define ROWS 4 /* whose products with so many columns are accumulated together: */
#ifdef LEVEL_V4
#define DOT_COLUMNS 5 /* 32 registers have room for that */
#else
#define DOT_COLUMNS 3 /* 16 registers */
#endif
#ifndef AHEAD_FEATURES
#define AHEAD_FEATURES 16384 /* bytes: see ask_for */
#endif
#define ASKED_AT_ONCE 512 /* bytes of a row */

/* The sum of the lanes of each of PART vectors. */
INLINE void FN(put_lane_sums)(vec *sums, REAL *to)
{
    FN(transpose)(sums);
    vec sum = sums[0];
    for (int k = 1; k < PART; k++) sum += sums[k];
#if VECTOR_BYTES == 64 && REAL_BITS == 64
    const __m256d half = _mm512_castpd512_pd256(sum) + _mm512_extractf64x4_pd(sum, 1);
    _mm_storeu_pd(to, _mm256_castpd256_pd128(half) + _mm256_extractf128_pd(half, 1));
#elif VECTOR_BYTES == 64
    const __m256 half = _mm512_castps512_ps256(sum) + _mm512_extractf32x8_ps(sum, 1);
    _mm_storeu_ps(to, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
#elif VECTOR_BYTES == 32 && REAL_BITS == 64
    _mm_storeu_pd(to, _mm256_castpd256_pd128(sum) + _mm256_extractf128_pd(sum, 1));
#elif VECTOR_BYTES == 32
    _mm_storeu_ps(to, _mm256_castps256_ps128(sum) + _mm256_extractf128_ps(sum, 1));
#else
    FN(store)(to, sum);
#endif
}

/* A vector of n features, those from d on. */
INLINE void FN(add_vector)(const REAL *const *row, ptrdiff_t d, ptrdiff_t n, const REAL *w, ptrdiff_t padded,
                           vec (*sum)[ROWS], ptrdiff_t columns)
{
    vec weights[DOT_COLUMNS];
    for (ptrdiff_t c = 0; c < columns; c++) weights[c] = FN(load)(w + c * padded);
    for (ptrdiff_t r = 0; r < ROWS; r++) {
        vec x = FN(load_features)(row[r] + d, n);
#if defined(LEVEL_V4) && !defined(EMULATED_AVX512)
        __asm__("" : "+v"(x)); /* GCC 12 would load it again for each column: a tenth of the time */
#endif
        for (ptrdiff_t c = 0; c < columns; c++) sum[c][r] = FN(fma)(x, weights[c], sum[c][r]);
    }
}

/* Logits of ROWS rows, from plane to plane. share: rows that a column asks for, in 2^-32. */
INLINE void FN(add_products)(const Linear *l, const REAL *const *row, int64_t share, ptrdiff_t column, REAL *z,
                             ptrdiff_t columns)
{
    const REAL *w = (const REAL *)l->w + column * l->padded;
    const REAL *bias = l->bias ? (const REAL *)l->bias + column : NULL;
    const ptrdiff_t last = l->padded - LANES, first = share * column >> 32;
    const ptrdiff_t asked = (share * (column + columns) >> 32) - first;
    vec sum[DOT_COLUMNS][ROWS];
    for (ptrdiff_t c = 0; c < columns; c++)
        for (ptrdiff_t r = 0; r < ROWS; r++) sum[c][r] = (vec){bias ? bias[c] : 0};
    ptrdiff_t v = 0;
    for (; asked && v < last; v += LANES) {
        for (ptrdiff_t r = 0; r < asked; r++) FN(ask_for)(row[first + r] + v, AHEAD_FEATURES, 1, 0);
        FN(add_vector)(row, v, LANES, w + v, l->padded, sum, columns);
    }
    for (; v < last; v += LANES) FN(add_vector)(row, v, LANES, w + v, l->padded, sum, columns);
    FN(add_vector)(row, FN(feature_of)(l, last / LANES), l->n_features, w + last, l->padded, sum, columns);
    for (ptrdiff_t c = 0; c < columns; c++)
        for (ptrdiff_t r = 0; r < ROWS; r += PART) FN(put_lane_sums)(sum[c] + r, z + (column + c) * TILE + r);
}

INLINE void FN(logits_of)(const Linear *l, const Features *x, ptrdiff_t n_rows, int64_t share, REAL *z)
{
    for (ptrdiff_t i = 0; i < n_rows; i += ROWS) {
        const REAL *row[ROWS];
        for (ptrdiff_t r = 0; r < ROWS; r++) /* the last one again behind the end */
            row[r] = (const REAL *)x->rows + (i + r < n_rows ? i + r : n_rows - 1) * x->stride;
        for (ptrdiff_t r = 0; r < ROWS && !share; r++)
            FN(ask_for)(row[r], AHEAD_FEATURES, l->n_features * sizeof(REAL), 0);
#define ADD(columns) \
    FN(add_products)(l, row, share, c, z + i, columns); \
    c += columns
        const ptrdiff_t groups = (l->n_columns + DOT_COLUMNS - 1) / DOT_COLUMNS;
        for (ptrdiff_t c = 0, g = 1; g <= groups; g++) {
            switch (l->n_columns * g / groups - c) {
            case 1: ADD(1); break;
            case 2: ADD(2); break;
#if DOT_COLUMNS > 3
            case 3: ADD(3); break;
            case 4: ADD(4); break;
#endif
            default: ADD(DOT_COLUMNS);
            }
        }
#undef ADD
    }
}

/* Logits of a tile, or other products of its features with weights like l's. Rows that come later are asked for as
 * these pass: short ones at once, long ones evenly, since so many lines are more than a core can wait for. */
static void FN(tile_logits)(const Linear *l, const Features *x, ptrdiff_t n_rows, REAL *z)
{
    if (l->n_features * sizeof(REAL) <= ASKED_AT_ONCE) FN(logits_of)(l, x, n_rows, 0, z);
    else FN(logits_of)(l, x, n_rows, ((int64_t)ROWS << 32) / l->n_columns + 1, z);
}
#undef ROWS

/* ---- Gradient of the weights ---------------------------------------------------------------- */

/* sums: n_columns x padded, vector v of a row that of features from feature_of on. */
INLINE void FN(add_outer)(const REAL *x, ptrdiff_t x_stride, ptrdiff_t n_features, const REAL *g, ptrdiff_t n_rows,
                          double *sums, ptrdiff_t padded, ptrdiff_t columns, const ptrdiff_t *feature,
                          ptrdiff_t vectors)
{
    vec sum[COLUMNS][2];
    for (ptrdiff_t c = 0; c < columns; c++)
        for (ptrdiff_t v = 0; v < vectors; v++) sum[c][v] = (vec){0};
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        vec row[2];
        for (ptrdiff_t v = 0; v < vectors; v++) row[v] = FN(load_features)(x + i * x_stride + feature[v], n_features);
        for (ptrdiff_t c = 0; c < columns; c++)
            for (ptrdiff_t v = 0; v < vectors; v++) sum[c][v] = FN(times_add)(g[c * TILE + i], row[v], sum[c][v]);
    }
    for (ptrdiff_t c = 0; c < columns; c++)
        for (ptrdiff_t v = 0; v < vectors; v++) {
            REAL part[LANES_COUNT];
            FN(store)(part, sum[c][v]);
            for (ptrdiff_t k = 0; k < LANES; k += LANES_F64) {
                double *at = sums + c * padded + v * LANES + k;
                store_f64(at, load_f64(at) + FN(load_wide)(part + k));
            }
        }
}

static void FN(add_weight_grad)(const Linear *l, const Features *x, ptrdiff_t n_rows, const REAL *g, double *sums)
{
    const ptrdiff_t n_vectors = l->padded / LANES;
    for (ptrdiff_t v = 0; v < n_vectors; v += 2) {
        const ptrdiff_t feature[2] = {FN(feature_of)(l, v), FN(feature_of)(l, v + 1)};
        double *to = sums + v * LANES;
#define ADD_OF(columns, vectors) \
    FN(add_outer)((const REAL *)x->rows, x->stride, vectors == 2 ? LANES : l->n_features, g + first * TILE, n_rows, \
                  to + first * l->padded, l->padded, columns, feature, vectors)
#define ADD(columns) \
    if (v + 1 < n_vectors) ADD_OF(columns, 2); \
    else ADD_OF(columns, 1)
        IN_GROUPS(l->n_columns, first, ADD)
#undef ADD
#undef ADD_OF
    }
}

/* sums: n_columns x LANES_F64. The planes hold 0 behind the last row. */
static void FN(add_bias_grad)(ptrdiff_t n_columns, ptrdiff_t n_rows, const REAL *g, double *sums)
{
    for (ptrdiff_t c = 0; c < n_columns; c++) {
        vec sum = {0};
        for (ptrdiff_t i = 0; i < n_rows; i += LANES)
            sum += n_rows - i >= LANES ? FN(load)(g + c * TILE + i) : FN(load_n)(g + c * TILE + i, n_rows - i, 0);
        REAL part[LANES_COUNT];
        FN(store)(part, sum);
        for (ptrdiff_t k = 0; k < LANES; k += LANES_F64)
            store_f64(sums + c * LANES_F64, load_f64(sums + c * LANES_F64) + FN(load_wide)(part + k));
    }
}

/* ---- Gradient of the features --------------------------------------------------------------- */

INLINE void FN(add_weighted)(const REAL *w, ptrdiff_t padded, const REAL *g, ptrdiff_t n_columns, REAL *dx,
                             ptrdiff_t rows, ptrdiff_t vectors)
{
    vec sum[COLUMNS][2];
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t v = 0; v < vectors; v++) sum[i][v] = (vec){0};
    for (ptrdiff_t c = 0; c < n_columns; c++) {
        vec row[2];
        for (ptrdiff_t v = 0; v < vectors; v++) row[v] = FN(load)(w + c * padded + v * LANES);
        for (ptrdiff_t i = 0; i < rows; i++)
            for (ptrdiff_t v = 0; v < vectors; v++) sum[i][v] = FN(times_add)(g[c * TILE + i], row[v], sum[i][v]);
    }
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t v = 0; v < vectors; v++) FN(store)(dx + i * padded + v * LANES, sum[i][v]);
}

/* The gradient of a tile's features, TILE x padded. */
static void FN(tile_input_grad)(const Linear *l, ptrdiff_t n_rows, const REAL *g, REAL *dx)
{
    const REAL *w = (const REAL *)l->w;
    const ptrdiff_t n_vectors = l->padded / LANES;
    for (ptrdiff_t v = 0; v < n_vectors; v += 2) {
        REAL *to = dx + v * LANES;
#define ADD(rows) \
    if (v + 1 < n_vectors) \
        FN(add_weighted)(w + v * LANES, l->padded, g + first, l->n_columns, to + first * l->padded, rows, 2); \
    else FN(add_weighted)(w + v * LANES, l->padded, g + first, l->n_columns, to + first * l->padded, rows, 1)
        IN_GROUPS(n_rows, first, ADD)
#undef ADD
    }
}

/* Rows of n reals in vectors to an array, added to what it holds if so asked. */
static void FN(put_rows)(REAL *rows, ptrdiff_t stride, ptrdiff_t n_rows, ptrdiff_t n, const Layout *to, int accumulate,
                         char *array)
{
    const ptrdiff_t overlap = n > LANES ? stride - n : 0;
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        REAL *row = rows + i * stride, *last = row + stride - LANES;
        char *dst = array + i * to->row_stride;
        if (overlap) memmove(last, last + overlap, (size_t)(LANES - overlap) * sizeof(REAL));
        if (accumulate)
            for (ptrdiff_t d = 0; d < n; d++)
                row[d] += FN(load_one)(dst + d * to->class_stride, to->format, to->swapped);
        FN(put)(row, to->format, to->swapped, to->class_stride, n, dst);
    }
}

/* Sums of all blocks, added in their order to those of the first, to an array of n_columns x n_features. */
static void FN(put_sums)(const Linear *l, double *sums, ptrdiff_t n_blocks, const Layout *to, int accumulate,
                         char *array)
{
    const ptrdiff_t size = l->n_columns * l->padded;
    for (ptrdiff_t b = 1; b < n_blocks; b++)
        for (ptrdiff_t k = 0; k < size; k++) sums[k] += sums[b * size + k];
    for (ptrdiff_t c = 0; c < l->n_columns; c++)
        for (ptrdiff_t v = 0; v < l->padded / LANES; v++)
            for (ptrdiff_t k = 0; k < LANES; k++) {
                const ptrdiff_t d = FN(feature_of)(l, v) + k;
                if (d < v * LANES || d >= l->n_features) continue; /* the vector before has it, or nothing */
                put_sum(sums[c * l->padded + v * LANES + k], to, accumulate,
                        array + c * to->row_stride + d * to->class_stride);
            }
}

/* Weights as the products read them: in vectors, what one has that the one before has too is 0. */
static void FN(pack_weights)(const Linear *l, const char *w, const Layout *from, REAL *dst)
{
    for (ptrdiff_t c = 0; c < l->n_columns; c++)
        for (ptrdiff_t v = 0; v < l->padded; v += LANES)
            for (ptrdiff_t k = 0; k < LANES; k++) {
                const ptrdiff_t d = FN(feature_of)(l, v / LANES) + k;
                const char *at = w + c * from->row_stride + d * from->class_stride;
                const int has = d >= v && d < l->n_features;
                dst[c * l->padded + v + k] = has ? (REAL)load_number(at, from->format, from->swapped) : 0;
            }
}

/* ---- The Hessian times a vector -------------------------------------------------------------- */

/* s p (t - sum_k p_k t_k) in place of the products t, from planes of probabilities p. */
static void FN(hessian_rows)(const REAL *p, ptrdiff_t n_columns, ptrdiff_t n_rows, const double *sample, double scale,
                             REAL *t)
{
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        REAL s[LANES_COUNT];
        vec mean = {0};
        for (ptrdiff_t k = 0; k < LANES; k++) s[k] = i + k < n_rows ? (REAL)(sample[i + k] * scale) : 0;
        for (ptrdiff_t c = 0; c < n_columns; c++)
            mean = FN(fma)(FN(load)(p + c * TILE + i), FN(load)(t + c * TILE + i), mean);
        for (ptrdiff_t c = 0; c < n_columns; c++) {
            REAL *at = t + c * TILE + i;
            FN(store)(at, FN(load)(s) * FN(load)(p + c * TILE + i) * (FN(load)(at) - mean));
        }
    }
}

/* The same of one column against a logit of 0: s p (1 - p) t, from planes of both probabilities. */
static void FN(hessian_binary)(const REAL *p, ptrdiff_t n_rows, const double *sample, double scale, REAL *t)
{
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        REAL s[LANES_COUNT];
        for (ptrdiff_t k = 0; k < LANES; k++) s[k] = i + k < n_rows ? (REAL)(sample[i + k] * scale) : 0;
        FN(store)(t + i, FN(load)(s) * FN(load)(p + i) * FN(load)(p + TILE + i) * FN(load)(t + i));
    }
}

/* The same of a row of n classes whose probabilities and products lie along it; of two classes, if binary. */
static void FN(hessian_row)(const REAL *p, ptrdiff_t n, int binary, double s, REAL *t)
{
    const vec weight = FN(splat)((REAL)s);
    sum_vec sum = {{0}, {0}};
    if (binary) {
        t[0] = 0;
        t[1] *= (REAL)s * p[0] * p[1];
        return;
    }
    for (ptrdiff_t j = 0; j < n; j += LANES)
        FN(add)(&sum, FN(load_n)(p + j, FN(smaller)(n - j, LANES), 0) * FN(load_n)(t + j, FN(smaller)(n - j, LANES), 0));
    const vec mean = FN(splat)((REAL)FN(total)(sum));
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const ptrdiff_t count = FN(smaller)(n - j, LANES);
        FN(store_n)(t + j, count, weight * FN(load_n)(p + j, count, 0) * (FN(load_n)(t + j, count, 0) - mean));
    }
}
