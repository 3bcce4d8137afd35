/* Rows of a few contiguous reals to a plane, one row in every lane, and back.
 *
 * Included once per REAL_BITS, after simd.h. A plane holds classes x rows: element (c, i) stands at c * TILE + i.
 * All of its lanes may be written and read, also behind the last row.
 *
 * A block of PART classes of a vector's worth of rows is read in parts of 16 bytes and transposed within these.
 * The last block of a row overlaps the one before it where the classes are no multiple of PART, so nothing
 * is touched outside of the row, and there is no other path for its end.
 */

/* PART x PART transposes, one in every 16 bytes of the block: log2(PART) perfect shuffles. */
INLINE void FN(transpose)(vec *block)
{
    for (int step = 1; step < PART; step *= 2) {
        vec next[PART];
        for (int k = 0; k < PART / 2; k++) {
            next[2 * k] = FN(interleave_low)(block[k], block[k + PART / 2]);
            next[2 * k + 1] = FN(interleave_high)(block[k], block[k + PART / 2]);
        }
        for (int k = 0; k < PART; k++) block[k] = next[k];
    }
}

/* How many parts of vector r of a block lie in the first `count` rows. */
INLINE ptrdiff_t FN(parts_within)(ptrdiff_t count, ptrdiff_t r)
{
    return count >= LANES ? LANES / PART : count > r ? (count - r + PART - 1) / PART : 0;
}

typedef struct __attribute__((packed, may_alias)) { REAL value; } FN(Loose); /* perhaps unaligned */

/* Calls `action` with the number of classes as a constant where that is less than PART: elements are
 * moved one by one, and where rows adjoin the compiler makes shuffles of it. */
#define IF_LESS_THAN_A_PART(n, action) \
    switch (n) { \
    case 1: action(1); return; \
    case 2: if (PART > 2) { action(2); return; } break; \
    case 3: if (PART > 2) { action(3); return; } break; \
    }

INLINE void FN(block_to_plane)(const char *rows, ptrdiff_t row_stride, ptrdiff_t count, ptrdiff_t n, REAL *plane)
{
    for (ptrdiff_t c = 0; c < n; c += PART) {
        const ptrdiff_t from = c + PART <= n ? c : n - PART;
        vec block[PART];
        for (ptrdiff_t r = 0; r < PART; r++)
            block[r] = FN(load_parts)(rows + r * row_stride + from * sizeof(REAL), PART * row_stride,
                                      FN(parts_within)(count, r));
        FN(transpose)(block);
        for (ptrdiff_t r = 0; r < PART; r++) FN(store)(plane + (from + r) * TILE, block[r]);
    }
}

static void FN(rows_to_plane)(const char *rows, ptrdiff_t row_stride, ptrdiff_t n_rows, ptrdiff_t n, REAL *plane)
{
#define SCATTER(n) \
    if (row_stride == n * sizeof(REAL)) \
        for (ptrdiff_t i = 0; i < n_rows; i++) \
            for (ptrdiff_t c = 0; c < n; c++) plane[c * TILE + i] = ((const FN(Loose) *)rows)[i * n + c].value; \
    else \
        for (ptrdiff_t i = 0; i < n_rows; i++) \
            for (ptrdiff_t c = 0; c < n; c++) \
                plane[c * TILE + i] = ((const FN(Loose) *)(rows + i * row_stride))[c].value
    IF_LESS_THAN_A_PART(n, SCATTER)
#undef SCATTER
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        if (n_rows - i >= LANES) FN(block_to_plane)(rows + i * row_stride, row_stride, LANES, n, plane + i);
        else FN(block_to_plane)(rows + i * row_stride, row_stride, n_rows - i, n, plane + i);
    }
}

INLINE void FN(block_to_rows)(const REAL *plane, ptrdiff_t count, ptrdiff_t n, char *rows, ptrdiff_t row_stride)
{
    for (ptrdiff_t c = 0; c < n; c += PART) {
        const ptrdiff_t from = c + PART <= n ? c : n - PART;
        vec block[PART];
        for (ptrdiff_t r = 0; r < PART; r++) block[r] = FN(load)(plane + (from + r) * TILE);
        FN(transpose)(block);
        for (ptrdiff_t r = 0; r < PART; r++)
            FN(store_parts)(rows + r * row_stride + from * sizeof(REAL), PART * row_stride,
                            FN(parts_within)(count, r), block[r]);
    }
}

static void FN(plane_to_rows)(const REAL *plane, char *rows, ptrdiff_t row_stride, ptrdiff_t n_rows, ptrdiff_t n)
{
#define GATHER(n) \
    if (row_stride == n * sizeof(REAL)) \
        for (ptrdiff_t i = 0; i < n_rows; i++) \
            for (ptrdiff_t c = 0; c < n; c++) ((FN(Loose) *)rows)[i * n + c].value = plane[c * TILE + i]; \
    else \
        for (ptrdiff_t i = 0; i < n_rows; i++) \
            for (ptrdiff_t c = 0; c < n; c++) \
                ((FN(Loose) *)(rows + i * row_stride))[c].value = plane[c * TILE + i]
    IF_LESS_THAN_A_PART(n, GATHER)
#undef GATHER
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        if (n_rows - i >= LANES) FN(block_to_rows)(plane + i, LANES, n, rows + i * row_stride, row_stride);
        else FN(block_to_rows)(plane + i, n_rows - i, n, rows + i * row_stride, row_stride);
    }
}
#undef IF_LESS_THAN_A_PART
