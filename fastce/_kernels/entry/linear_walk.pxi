# What runs where in front of a linear layer's loss: tiles of dense rows, and parts of sparse ones. A part of
# kernels.pyx; linear/ has the products.

from cython.parallel cimport threadid
from libc.string cimport memset

cdef extern from "linear/linear.h" nogil:
    enum: LANES_F64
    ctypedef struct Grid:
        int n_axes
        Py_ssize_t *length
        Py_ssize_t *stride
    ctypedef struct Linear:
        const char *x
        Format format
        bint swapped
        Grid rows
        Py_ssize_t feature_stride, n_features, padded, n_columns
        const void *w
        const void *bias
    ctypedef struct Features:
        const void *rows
        Py_ssize_t stride
    Py_ssize_t padded_features(Py_ssize_t n, bint is_f64) noexcept
    Features features(bint is_f64, const Linear *, Py_ssize_t first, Py_ssize_t n_rows, const int64_t *label,
                      void *packed) noexcept
    void tile_logits(bint is_f64, const Linear *, const Features *, Py_ssize_t n_rows, void *z) noexcept
    void add_weight_grad(bint is_f64, const Linear *, const Features *, Py_ssize_t n_rows, const void *g,
                         double *sums) noexcept
    void add_bias_grad(bint is_f64, Py_ssize_t n_columns, Py_ssize_t n_rows, const void *g, double *sums) noexcept
    void put_input_grad(bint is_f64, const Linear *, Py_ssize_t first, Py_ssize_t n_rows, const void *g, void *rows,
                        const Layout *to, const Grid *of_array, bint accumulate, char *array) noexcept
    void put_sums(bint is_f64, const Linear *, double *sums, Py_ssize_t n_blocks, const Layout *to, bint accumulate,
                  char *array) noexcept
    void put_bias_sums(Py_ssize_t n_columns, const double *sums, Py_ssize_t block_stride, Py_ssize_t n_blocks,
                       const Layout *to, bint accumulate, char *array) noexcept
    void pack_weights(bint is_f64, const Linear *, const char *w, const Layout *source, void *dst) noexcept
    void widen_row(bint is_f64, const char *row, const Layout *source, Py_ssize_t n, void *to) noexcept
    void hessian_tile(bint is_f64, const void *p, Py_ssize_t n_columns, bint binary, Py_ssize_t n_rows,
                      const double *sample, double scale, void *t) noexcept

    void hessian_row(bint is_f64, const void *p, Py_ssize_t n, bint binary, double s, void *t) noexcept

    ctypedef struct Sparse:
        const void *row_starts
        const void *indices
        const void *data
        bint long_indices
        Py_ssize_t padded, row
    void sparse_logits(bint is_f64, const Sparse *, Py_ssize_t first, Py_ssize_t n_rows, const void *w,
                       const void *bias, void *z) noexcept
    void add_sparse_grad(bint is_f64, const Sparse *, Py_ssize_t first, Py_ssize_t n_rows, const void *g,
                         const char *used, int64_t begin, int64_t end, double *sums) noexcept
    void put_feature_grads(bint is_f64, const Sparse *, Py_ssize_t begin, Py_ssize_t end, const void *g,
                           const char *used, double *sums) noexcept

cdef enum:
    SPARSE_ROWS = 64                       # or features that a thread takes at a time
    SUM_BYTES = 1 << 22                    # of the weights' gradients of all blocks, if more than LEAST_BLOCKS
    LEAST_BLOCKS = 16
    CHECKED_ROWS = 8192                    # at a time, where their targets or weights are gathered
    CLASS_FEATURES = 8                     # whose products take as long as the loss of a class

# Numbers in a vector of this level.
LANES = {"float32": 2 * LANES_F64, "float64": LANES_F64}

# What a walk over dense rows is to give.
cdef struct DenseCall:
    Linear l, direction                    # direction: of a Hessian's product, in place of the weights
    bint is_f64, binary, with_hessian, accumulate
    double scale                           # of the Hessian
    double *weight_sums                    # NULL: not wanted
    double *bias_sums
    char *input_grad
    Layout input_layout
    Grid input_rows
    Py_ssize_t sum_size, bias_size         # doubles of a block
    char *workspace
    Py_ssize_t plane_bytes, row_bytes, workspace_bytes


cdef void run_dense_block(const Problem *p, const DenseCall *call, int block, char *workspace,
                          Partials *partials) noexcept nogil:
    cdef Environment host = enter_environment()
    cdef double[SCRATCH] scratch
    cdef char *at[N_ARRAYS]
    cdef Tile tile
    cdef Rows rows
    cdef Sums sums
    cdef Features x
    cdef Py_ssize_t number, first, offset = call.plane_bytes if call.binary else 0
    cdef char *packed = workspace
    cdef char *input_grad = packed + call.row_bytes
    cdef char *planes = input_grad + (call.row_bytes if call.input_grad else 0)
    cdef char *other = planes + p.n_classes * call.plane_bytes
    cdef char *g = other if call.with_hessian else planes + offset
    begin_tiles(p, scratch, &tile)
    begin_block(partials, block, &sums)
    begin_rows(p, &rows)
    for number in range(p.n_tiles * block // p.n_blocks, p.n_tiles * (block + 1) // p.n_blocks):
        begin_tile(p, number, at, &tile, &rows, &partials.counts[block])
        first = number * p.tile_rows
        x = features(call.is_f64, &call.l, first, tile.n_rows, rows.label, packed)
        tile_logits(call.is_f64, &call.l, &x, tile.n_rows, planes + offset)
        if call.binary:
            memset(planes, 0, call.plane_bytes)
        tile.logits = planes
        tile.grad = planes if p.data[GRAD] else NULL
        run_tile(&tile, &rows, p.across)
        if call.with_hessian:
            tile_logits(call.is_f64, &call.direction, &x, tile.n_rows, other)
            hessian_tile(call.is_f64, planes, call.l.n_columns, call.binary, tile.n_rows, rows.sample, call.scale,
                         other)
        if call.weight_sums:
            add_weight_grad(call.is_f64, &call.l, &x, tile.n_rows, g, call.weight_sums + block * call.sum_size)
        if call.bias_sums:
            add_bias_grad(call.is_f64, call.l.n_columns, tile.n_rows, g, call.bias_sums + block * call.bias_size)
        if call.input_grad:
            put_input_grad(call.is_f64, &call.l, first, tile.n_rows, g, input_grad, &call.input_layout,
                           &call.input_rows, call.accumulate, call.input_grad)
        if not call.with_hessian:
            end_tile(p, at, &tile, &rows, &sums)
    end_block(p, partials, block, &sums)
    leave_environment(host)


cdef void run_dense(const Problem *p, const DenseCall *call, int n_threads, Partials *partials) noexcept nogil:
    cdef int block
    for block in prange(p.n_blocks, schedule="static", num_threads=n_threads):
        run_dense_block(p, call, block, call.workspace + threadid() * call.workspace_bytes, partials)


# ---- Classes in parts --------------------------------------------------------------------------

cdef enum Stage:
    BEGIN, SWEEP, FINISH, WRITE


cdef void lay_out_parts(Problem *p) noexcept nogil:
    """Tiles whose rows stay between stages: at least eight, if there are so many rows."""
    lay_out(p)
    p.across = False
    p.tile_rows = max(1, min(TILE, p.n_rows // 8))
    p.n_tiles = p.tiles_in_inner = (p.n_rows + p.tile_rows - 1) // p.tile_rows


cdef void run_stage(const Problem *p, Stage stage, Py_ssize_t number, Py_ssize_t start, Py_ssize_t end, Rows *rows,
                    Sums *sums) noexcept nogil:
    """A tile through a stage, of the classes from `start` to `end`."""
    cdef Environment host = enter_environment()
    cdef double[SCRATCH] scratch
    cdef char *at[N_ARRAYS]
    cdef LabelCounts counts
    cdef Tile tile
    begin_tiles(p, scratch, &tile)
    if stage == BEGIN:
        begin_rows(p, rows)
        begin_tile(p, number, at, &tile, rows, &counts)
        begin_parts(&tile, rows)
    else:
        tile.n_rows = locate(p, number, at)
        tile.logits = at[LOGITS]
        tile.grad = at[GRAD]
        tile.q = at[Q]
        tile.hess = NULL
    if stage == SWEEP:
        sweep_part(&tile, rows, start, end)
    elif stage == FINISH:
        finish_parts(&tile, rows)
        epilogue(&tile, rows)
        end_tile(p, at, &tile, rows, sums)
    elif stage == WRITE:
        write_part(&tile, rows, start, end)
    leave_environment(host)


cdef void run_stages(const Problem *p, Stage stage, Py_ssize_t start, Py_ssize_t end, Rows *rows,
                     int n_threads) noexcept nogil:
    cdef Py_ssize_t number
    for number in prange(p.n_tiles, schedule="static", num_threads=n_threads):
        run_stage(p, stage, number, start, end, rows + number, NULL)


cdef void run_widen(bint is_f64, const char *rows, const Layout *source, Py_ssize_t n_rows, Py_ssize_t n, char *to,
                    int n_threads) noexcept nogil:
    cdef Py_ssize_t row, row_bytes = n * (8 if is_f64 else 4)
    cdef int taken = take(n_threads, n_rows, n_rows * n, SERIAL_WORK)
    for row in prange(n_rows, schedule="static", num_threads=max(taken, 1)):
        widen_row(is_f64, rows + row * source.row_stride, source, n, to + row * row_bytes)
    give_back(taken)


cdef void run_hessian_rows(bint is_f64, const char *p, Py_ssize_t p_row, char *t, Py_ssize_t t_row, Py_ssize_t n_rows,
                           Py_ssize_t n, bint binary, const double *sample, double scale, int n_threads) noexcept nogil:
    cdef Py_ssize_t row
    cdef int taken = take(n_threads, n_rows, n_rows * n, SERIAL_WORK)
    for row in prange(n_rows, schedule="static", num_threads=max(taken, 1)):
        hessian_row(is_f64, p + row * p_row, n, binary, scale * (sample[row] if sample else 1), t + row * t_row)
    give_back(taken)


# ---- Sparse rows -------------------------------------------------------------------------------

cdef Sparse sparse_of(cnp.ndarray row_starts, cnp.ndarray indices, cnp.ndarray data, cnp.ndarray z) except *:
    """Of contiguous arrays of a CSR matrix that were checked, and logits, or gradients, of its rows."""
    return Sparse(cnp.PyArray_DATA(row_starts), cnp.PyArray_DATA(indices), cnp.PyArray_DATA(data),
                  cnp.PyArray_ITEMSIZE(indices) == 8, cnp.PyArray_DIM(z, 1),
                  cnp.PyArray_STRIDE(z, 0) // cnp.PyArray_ITEMSIZE(z))


cdef Py_ssize_t sparse_work(cnp.ndarray row_starts, Py_ssize_t first, Py_ssize_t n_rows, Py_ssize_t padded) except -1:
    """An entry costs about as much as a row of its classes, and each row is one besides."""
    cdef Py_ssize_t n_entries = row_starts[first + n_rows] - row_starts[first]
    return (n_entries + n_rows) * (padded + ROW_WORK)


cdef void run_sparse_logits(bint is_f64, const Sparse *x, Py_ssize_t first, Py_ssize_t n_rows, const void *w,
                            const void *bias, char *z, int n_threads) noexcept nogil:
    cdef Py_ssize_t row_bytes = x.row * (8 if is_f64 else 4)
    cdef Py_ssize_t part, n_parts = (n_rows + SPARSE_ROWS - 1) // SPARSE_ROWS
    for part in prange(n_parts, schedule="dynamic", num_threads=n_threads):
        run_sparse_part(is_f64, x, first + part * SPARSE_ROWS,
                        min(<Py_ssize_t>SPARSE_ROWS, n_rows - part * SPARSE_ROWS), w, bias,
                        z + part * SPARSE_ROWS * row_bytes)


cdef void run_sparse_part(bint is_f64, const Sparse *x, Py_ssize_t first, Py_ssize_t n_rows, const void *w,
                          const void *bias, char *z) noexcept nogil:
    cdef Environment host = enter_environment()
    sparse_logits(is_f64, x, first, n_rows, w, bias, z)
    leave_environment(host)


cdef void run_sparse_grad(bint is_f64, const Sparse *x, Py_ssize_t first, Py_ssize_t n_rows, const void *g,
                          const char *used, int64_t n_features, double *sums, int n_threads) noexcept nogil:
    cdef int part
    for part in prange(n_threads, schedule="static", num_threads=n_threads):
        run_sparse_features(is_f64, x, first, n_rows, g, used, n_features * part // n_threads,
                            n_features * (part + 1) // n_threads, sums)


cdef void run_sparse_features(bint is_f64, const Sparse *x, Py_ssize_t first, Py_ssize_t n_rows, const void *g,
                              const char *used, int64_t begin, int64_t end, double *sums) noexcept nogil:
    cdef Environment host = enter_environment()
    add_sparse_grad(is_f64, x, first, n_rows, g, used, begin, end, sums)
    leave_environment(host)


cdef void run_feature_grads(bint is_f64, const Sparse *x, const void *g, const char *used, Py_ssize_t n_features,
                            double *sums, int n_threads) noexcept nogil:
    cdef Py_ssize_t part, n_parts = (n_features + SPARSE_ROWS - 1) // SPARSE_ROWS
    for part in prange(n_parts, schedule="dynamic", num_threads=n_threads):
        run_feature_part(is_f64, x, part * SPARSE_ROWS, min(n_features, (part + 1) * SPARSE_ROWS), g, used, sums)


cdef void run_feature_part(bint is_f64, const Sparse *x, Py_ssize_t begin, Py_ssize_t end, const void *g,
                           const char *used, double *sums) noexcept nogil:
    cdef Environment host = enter_environment()
    put_feature_grads(is_f64, x, begin, end, g, used, sums)
    leave_environment(host)


cdef Layout layout_of(cnp.ndarray a) except *:
    """Of an array of rows of classes or features, or of one number for each class."""
    cdef int last = cnp.PyArray_NDIM(a) - 1
    return Layout(<Format>format_of(a), is_swapped(a), cnp.PyArray_STRIDE(a, last),
                  cnp.PyArray_STRIDE(a, last - 1) if last else 0)


cdef Grid grid_of(cnp.ndarray a) except *:
    """Of an array of rows, on at least one axis."""
    cdef Grid grid
    cdef int axis
    grid.n_axes = cnp.PyArray_NDIM(a) - 1
    for axis in range(grid.n_axes):
        grid.length[axis] = cnp.PyArray_DIM(a, axis)
        grid.stride[axis] = cnp.PyArray_STRIDE(a, axis)
    return grid
