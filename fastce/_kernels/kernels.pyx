# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Checks arguments, lays a batch out as tiles of rows, takes each tile through sweep, epilogue, write.

Design
------
A. A call is one `Problem`: a plain struct without Python objects, filled with the GIL held, after
   which nothing can fail. The loops below it are `noexcept nogil` functions on raw pointers.
B. Batch axes are ordered by the stride of the logits and merged where all arrays allow it: any memory
   layout is walked in memory order and nothing is copied. The innermost axis is cut into tiles.
C. A tile is at most TILE rows whose logits, exps and gradient fit in cache together. What a row
   needs between its three stages lives in `Rows`, on the stack.
D. Tiles are dealt to at most BLOCKS blocks, blocks to threads. The blocks, and with them every sum, depend
   on the batch and never on the number of threads. A thread writes what it has read.
E. Few rows of many classes would leave threads idle: then the pieces of each row are shared
   (`run_split`). Their boundaries depend on the number of classes alone.
F. All labels are checked before anything the caller can see is written; a call that writes nothing
   of the kind saves that pass. Either way the walk uses no label unchecked: another thread may have
   changed it meanwhile.
G. Below SERIAL_ELEMENTS a call stays on its thread: waking others costs more. Below
   GIL_ELEMENTS it keeps the GIL as well.

Refused: a thread pool of our own; dynamic schedules (they lose D); copying to a better layout.
"""

from operator import index

import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport NAN, isfinite
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t

from fastce._kernels.threads cimport n_threads_for

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, cnp.PyArray_Descr *, int subok)

cdef extern from "rows.h" nogil:
    enum: TILE, CHUNK, MAX_PIECES, FEW_CLASSES
    ctypedef enum Format: FORMAT_F64, FORMAT_F32, FORMAT_F16, FORMAT_BF16
    ctypedef struct Layout:
        Format format
        bint swapped
        Py_ssize_t class_stride, row_stride
    ctypedef struct Tile:
        Py_ssize_t n_rows, n_classes
        const char *logits
        char *grad
        Layout logits_layout, grad_layout
        double *scratch
    ctypedef struct Labels:
        int size
        bint is_signed, swapped, has_ignore
        int64_t ignore_index, n_classes
    ctypedef struct Rows:
        int64_t label[1]
        double weight[1]
        double max[1]
        double rest[1]
        double at_target[1]
        double target_exp[1]
        double piece_max[1]
        double loss[1]
    ctypedef struct Sums:
        pass
    Py_ssize_t format_size(Format) noexcept
    Py_ssize_t piece_length(Py_ssize_t n_classes) noexcept
    void combine_parts(const double *part_max, const double *part_rest, Py_ssize_t n, double *max,
                       double *rest) noexcept
    void find_target_exps(const double *at_target, const double *max, Py_ssize_t n, double *target_exp) noexcept
    Py_ssize_t read_labels(const Labels *, const char *, Py_ssize_t stride, Py_ssize_t n, int64_t *) noexcept
    void read_weights(Format, bint swapped, const char *, Py_ssize_t stride, Py_ssize_t n, double *) noexcept
    void fill_weights(Rows *, Py_ssize_t n) noexcept
    void put_losses(const double *, Py_ssize_t n, Format, Py_ssize_t stride, char *) noexcept
    void read_at_target(const Tile *, Rows *) noexcept
    void sweep(const Tile *, Rows *, bint across) noexcept
    void sweep_piece(const Tile *, const Rows *, Py_ssize_t start, Py_ssize_t end, double *max, double *rest) noexcept
    void epilogue_cross_entropy(Rows *, Py_ssize_t n_rows, double normalizer) noexcept
    void write_gradient(const Tile *, const Rows *, bint across) noexcept
    void write_piece(const Tile *, const Rows *, Py_ssize_t start, Py_ssize_t end) noexcept
    void write_target(const Tile *, const Rows *) noexcept
    void clear_sums(Sums *) noexcept
    void sum_losses(Sums *, const Rows *, Py_ssize_t n_rows) noexcept
    void sum_weights(Sums *, const Rows *, Py_ssize_t n_rows) noexcept
    ctypedef struct Pair:
        pass
    Pair total_loss(const Sums *) noexcept
    Pair total_weight(const Sums *) noexcept
    void exp_array_f32(const float *, Py_ssize_t n, float m, float *) noexcept
    void exp_array_f64(const double *, Py_ssize_t n, double m, double *) noexcept
    void log1p_array_f64(const double *, Py_ssize_t n, double *) noexcept
    double add_pairs(const Pair *, Py_ssize_t n) noexcept

cdef enum:
    MAX_DIMS = 64
    BLOCKS = 64
    SERIAL_ELEMENTS = 16384
    GIL_ELEMENTS = 2048

# The arrays of a call, as indices.
cdef enum:
    LOGITS, GRAD, TARGET, WEIGHT, LOSS, N_ARRAYS

cdef struct Problem:
    Py_ssize_t n_rows, n_classes
    bint across                            # rows lie across the lanes of a vector, else along it
    int n_dims                             # of the merged batch, at least 1
    Py_ssize_t shape[MAX_DIMS]             # outermost first
    char *data[N_ARRAYS]                   # NULL: not part of this call
    Py_ssize_t stride[N_ARRAYS][MAX_DIMS]  # bytes
    Layout logits_layout, grad_layout
    Labels labels
    Format weight_format, loss_format
    bint weight_swapped
    double normalizer                      # divides the gradient
    Py_ssize_t tile_rows, tiles_in_inner, n_tiles
    int n_blocks

cdef struct Partials:                      # one entry per block
    Pair loss[BLOCKS]
    Pair weight[BLOCKS]
    Py_ssize_t bad[BLOCKS]                 # labels that are neither a class nor ignore_index


# ---- The walk ----------------------------------------------------------------------------------

cdef Py_ssize_t locate(const Problem *p, Py_ssize_t number, char **at) noexcept nogil:
    """Where the rows of a tile begin in each array; returns how many there are."""
    cdef Py_ssize_t inner = p.n_dims - 1, outer = number // p.tiles_in_inner, position
    cdef Py_ssize_t first = number % p.tiles_in_inner * p.tile_rows
    cdef Py_ssize_t array, dim
    for array in range(N_ARRAYS):
        at[array] = p.data[array] + first * p.stride[array][inner] if p.data[array] else NULL
    for dim in range(inner - 1, -1, -1):
        position = outer % p.shape[dim]
        outer //= p.shape[dim]
        for array in range(N_ARRAYS):
            if at[array]:
                at[array] += position * p.stride[array][dim]
    return min(p.tile_rows, p.shape[inner] - first)


cdef Py_ssize_t begin_tile(const Problem *p, Py_ssize_t number, char **at, Tile *tile, Rows *rows) noexcept nogil:
    """Fill in the tile and its rows' labels and, if there are any, weights; returns how many labels are bad."""
    cdef Py_ssize_t inner = p.n_dims - 1
    tile.n_rows = locate(p, number, at)
    tile.n_classes = p.n_classes
    tile.logits = at[LOGITS]
    tile.grad = at[GRAD]
    tile.logits_layout = p.logits_layout
    tile.grad_layout = p.grad_layout
    if at[WEIGHT]:
        read_weights(p.weight_format, p.weight_swapped, at[WEIGHT], p.stride[WEIGHT][inner], tile.n_rows, rows.weight)
    return read_labels(&p.labels, at[TARGET], p.stride[TARGET][inner], tile.n_rows, rows.label)


cdef void end_tile(const Problem *p, char **at, const Tile *tile, const Rows *rows, Sums *sums) noexcept nogil:
    sum_losses(sums, rows, tile.n_rows)
    sum_weights(sums, rows, tile.n_rows)
    if at[LOSS]:
        put_losses(rows.loss, tile.n_rows, p.loss_format, p.stride[LOSS][p.n_dims - 1], at[LOSS])


cdef void run_block(const Problem *p, int block, bint check, Partials *partials) noexcept nogil:
    """The tiles of a block; with `check` their labels and weights alone."""
    cdef double[CHUNK] scratch
    cdef char *at[N_ARRAYS]
    cdef Tile tile
    cdef Rows rows
    cdef Sums sums
    cdef Py_ssize_t number, bad = 0
    tile.scratch = scratch
    clear_sums(&sums)
    fill_weights(&rows, min(p.tile_rows, p.n_rows))
    for number in range(p.n_tiles * block // p.n_blocks, p.n_tiles * (block + 1) // p.n_blocks):
        bad += begin_tile(p, number, at, &tile, &rows)
        if check:
            sum_weights(&sums, &rows, tile.n_rows)
            continue
        sweep(&tile, &rows, p.across)
        epilogue_cross_entropy(&rows, tile.n_rows, p.normalizer)
        if tile.grad:
            write_gradient(&tile, &rows, p.across)
        end_tile(p, at, &tile, &rows, &sums)
    partials.loss[block] = total_loss(&sums)
    partials.weight[block] = total_weight(&sums)
    partials.bad[block] = bad


cdef void run_piece(const Tile *shared, Rows *rows, Py_ssize_t piece, bint writes, double *rest) noexcept nogil:
    """Sweep or write one piece of the only row of a tile, in a scratch of its own."""
    cdef double[CHUNK] scratch
    cdef Tile tile = shared[0]
    cdef Py_ssize_t length = piece_length(tile.n_classes)
    cdef Py_ssize_t start = piece * length, end = min(start + length, tile.n_classes)
    tile.scratch = scratch
    if writes:
        write_piece(&tile, rows, start, end)
    else:
        sweep_piece(&tile, rows, start, end, &rows.piece_max[piece], &rest[piece])


cdef void run_split(const Problem *p, int n_threads, Partials *partials) noexcept nogil:
    """What run_block does for every block, with the pieces of each row shared between the threads."""
    cdef char *at[N_ARRAYS]
    cdef Tile tile
    cdef Rows rows
    cdef Sums sums
    cdef double[MAX_PIECES] rest
    cdef Py_ssize_t length = piece_length(p.n_classes), number
    cdef Py_ssize_t piece, n_pieces = (p.n_classes + length - 1) // length
    cdef int block
    fill_weights(&rows, 1)
    for block in range(p.n_blocks):
        clear_sums(&sums)
        partials.bad[block] = 0
        for number in range(p.n_tiles * block // p.n_blocks, p.n_tiles * (block + 1) // p.n_blocks):
            partials.bad[block] += begin_tile(p, number, at, &tile, &rows)
            read_at_target(&tile, &rows)
            rows.max[0] = rows.rest[0] = 0
            if rows.label[0] >= 0:
                for piece in prange(n_pieces, schedule="static", num_threads=n_threads):
                    run_piece(&tile, &rows, piece, False, rest)
                combine_parts(rows.piece_max, rest, n_pieces, rows.max, rows.rest)
            find_target_exps(rows.at_target, rows.max, 1, rows.target_exp)
            epilogue_cross_entropy(&rows, 1, p.normalizer)
            if tile.grad:
                for piece in prange(n_pieces, schedule="static", num_threads=n_threads):
                    run_piece(&tile, &rows, piece, True, rest)
                write_target(&tile, &rows)
            end_tile(p, at, &tile, &rows, &sums)
        partials.loss[block] = total_loss(&sums)
        partials.weight[block] = total_weight(&sums)


cdef void run_blocks(const Problem *p, bint check, int n_threads, Partials *partials) noexcept nogil:
    cdef int block
    if n_threads == 1:
        for block in range(p.n_blocks):
            run_block(p, block, check, partials)
    else:
        for block in prange(p.n_blocks, schedule="static", num_threads=n_threads):
            run_block(p, block, check, partials)


cdef void run(const Problem *p, bint check, int n_threads, Partials *partials) noexcept nogil:
    """Fill in the partials: of the labels and weights alone (check), or of the whole job."""
    cdef bint uneven = p.n_rows < 4 * n_threads and p.n_rows % n_threads
    if uneven and not check and not p.across and p.n_classes > CHUNK:
        run_split(p, n_threads, partials)
    else:
        run_blocks(p, check, n_threads, partials)


cdef void run_releasing_gil(const Problem *p, bint check, int n_threads, Partials *partials):
    cdef Py_ssize_t elements = p.n_rows if check else p.n_rows * p.n_classes
    if elements < SERIAL_ELEMENTS:
        n_threads = 1
    if elements < GIL_ELEMENTS:
        run(p, check, 1, partials)
    else:
        with nogil:
            run(p, check, n_threads, partials)


# ---- From arguments to a problem ---------------------------------------------------------------

cdef cnp.ndarray as_array(object a, str name):
    if type(a) is cnp.ndarray:
        return a
    if isinstance(a, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost: fill it, or mark rows with ignore_index")
    if hasattr(a, "__dlpack__") and not hasattr(a, "__array__"):
        return np.from_dlpack(a)
    return np.asarray(a)


cdef int format_of(cnp.ndarray a) except -1:
    """The Format of an array's dtype; N_ARRAYS (no Format) if the kernels don't read it."""
    cdef int number = cnp.PyArray_TYPE(a)
    if number == cnp.NPY_FLOAT:
        return FORMAT_F32
    if number == cnp.NPY_DOUBLE:
        return FORMAT_F64
    if number == cnp.NPY_FLOAT16:
        return FORMAT_F16
    if a.dtype.name == "bfloat16":
        return FORMAT_BF16
    return N_ARRAYS


cdef bint is_swapped(cnp.ndarray a):
    return not cnp.PyArray_ISNOTSWAPPED(a)


cdef cnp.ndarray as_floats(object given, str name):
    """An array of a dtype the kernels read; integers and bools become float64."""
    cdef cnp.ndarray a = as_array(given, name)
    if format_of(a) != N_ARRAYS:
        return a
    if a.dtype.kind in "iub":
        return a.astype(np.float64)
    raise TypeError(
        f"{name} has dtype {a.dtype}; expected float32, float64, float16, bfloat16 (of ml_dtypes), "
        "an integer dtype or bool: convert it with .astype"
    )


cdef cnp.ndarray as_labels(object given):
    cdef cnp.ndarray a = as_array(given, "target")
    if not cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(a)):
        raise TypeError(
            f"target has dtype {a.dtype}; expected class indices of an integer dtype"
            + (": use .astype(int) if the classes are 0 and 1" if a.dtype.kind == "b" else "")
        )
    return a


cdef str shape_without(tuple shape, int axis):
    return str(shape[:axis] + shape[axis + 1:])


cdef int check_batch_shape(cnp.ndarray a, str name, cnp.ndarray logits, int axis) except -1:
    """The array must have the logits' shape without the class axis."""
    cdef int n_dims = cnp.PyArray_NDIM(logits), dim
    cdef bint same = cnp.PyArray_NDIM(a) == n_dims - 1
    for dim in range(n_dims - 1):
        same = same and cnp.PyArray_DIM(a, dim) == cnp.PyArray_DIM(logits, dim + (dim >= axis))
    if not same:
        raise ValueError(
            f"{name} has shape {np.shape(a)}; expected {shape_without(np.shape(logits), axis)}, "
            f"the shape {np.shape(logits)} of the logits without the class axis {axis}"
        )
    return 0


cdef int normalised_axis(object axis, int n_dims) except -1:
    cdef Py_ssize_t number = index(axis)
    if n_dims == 0:
        raise ValueError("logits is a scalar; expected at least one axis, the classes")
    if not -n_dims <= number < n_dims:
        raise np.exceptions.AxisError(axis, n_dims)
    return <int>(number + n_dims if number < 0 else number)


cdef int check_out(object given, cnp.ndarray logits, cnp.ndarray target, cnp.ndarray weight) except -1:
    """Refuse an `out` that the gradient can't be written into without harm."""
    if type(given) is not cnp.ndarray:
        if not isinstance(given, np.ndarray):
            raise TypeError(f"out is a {type(given).__name__}; expected an ndarray to write the gradient into")
        if isinstance(given, np.ma.MaskedArray):
            raise TypeError("out is a masked array; expected a plain ndarray")
    cdef cnp.ndarray out = given
    cdef int n_dims = cnp.PyArray_NDIM(logits), dim
    cdef bint same = cnp.PyArray_NDIM(out) == n_dims and cnp.PyArray_EquivArrTypes(out, logits)
    for dim in range(n_dims):
        same = same and cnp.PyArray_DIM(out, dim) == cnp.PyArray_DIM(logits, dim)
    if not same:
        raise ValueError(
            f"out has shape {np.shape(out)} and dtype {out.dtype}; expected those of the logits, "
            f"{np.shape(logits)} and {logits.dtype}"
        )
    if not cnp.PyArray_ISWRITEABLE(out):
        raise ValueError("out is read-only; expected a writable array")
    for dim in range(n_dims):
        if cnp.PyArray_STRIDE(out, dim) == 0 and cnp.PyArray_DIM(out, dim) > 1:
            raise ValueError("out has elements that share memory (a stride of 0); expected one place per element")
    if not same_memory(out, logits):
        check_apart(out, logits, "logits", ", or out=logits to overwrite all of it")
    check_apart(out, target, "target", "")
    if weight is not None:
        check_apart(out, weight, "sample_weight", "")
    return 0


cdef bint same_memory(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Every element of two arrays of one shape has the same address."""
    cdef bint same = cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b)
    cdef int dim
    for dim in range(cnp.PyArray_NDIM(a)):
        same = same and cnp.PyArray_STRIDE(a, dim) == cnp.PyArray_STRIDE(b, dim)
    return same


cdef int check_apart(cnp.ndarray out, cnp.ndarray a, str name, str otherwise) except -1:
    if first_byte(out) >= end_byte(a) or first_byte(a) >= end_byte(out):
        return 0
    try:
        overlap = np.shares_memory(out, a, max_work=100_000)
    except np.exceptions.TooHardError:
        overlap = True
    if overlap:
        raise ValueError(f"out overlaps {name} in memory; expected separate arrays{otherwise}")
    return 0


cdef char *first_byte(cnp.ndarray a) noexcept:
    cdef char *first = <char *>cnp.PyArray_DATA(a)
    cdef int dim
    for dim in range(cnp.PyArray_NDIM(a)):
        first += min(cnp.PyArray_STRIDE(a, dim) * (cnp.PyArray_DIM(a, dim) - 1), 0)
    return first


cdef char *end_byte(cnp.ndarray a) noexcept:
    cdef char *end = <char *>cnp.PyArray_DATA(a) + cnp.PyArray_ITEMSIZE(a)
    cdef int dim
    for dim in range(cnp.PyArray_NDIM(a)):
        end += max(cnp.PyArray_STRIDE(a, dim) * (cnp.PyArray_DIM(a, dim) - 1), 0)
    return end


cdef void add_operand(Problem *p, int number, cnp.ndarray a, int axis, int n_dims):
    """Strides of an operand over the batch axes of the logits, in their order. axis < 0: `a` has no class axis."""
    cdef int dim, k = 0
    p.data[number] = <char *>cnp.PyArray_DATA(a)
    for dim in range(n_dims):
        if dim != axis:
            p.stride[number][k] = cnp.PyArray_STRIDE(a, dim)
            k += 1


cdef inline Py_ssize_t sort_key(Py_ssize_t stride) noexcept nogil:
    """Outermost first: broadcast axes, then by distance."""
    cdef Py_ssize_t furthest = (<size_t>-1) >> 1
    return furthest if stride == 0 else stride if stride > 0 else -stride


cdef inline void swap_dims(Problem *p, int i, int j) noexcept nogil:
    cdef int array
    p.shape[i], p.shape[j] = p.shape[j], p.shape[i]
    for array in range(N_ARRAYS):
        p.stride[array][i], p.stride[array][j] = p.stride[array][j], p.stride[array][i]


cdef void merge_dims(Problem *p) noexcept nogil:
    """Order the batch axes by the logits' stride, drop those of length 1, join neighbours (B of Design)."""
    cdef int i, j, array, kept = 0
    cdef Py_ssize_t length
    cdef bint joins
    for i in range(1, p.n_dims):
        j = i
        while j > 0 and sort_key(p.stride[LOGITS][j - 1]) < sort_key(p.stride[LOGITS][j]):
            swap_dims(p, j - 1, j)
            j -= 1
    for i in range(p.n_dims):
        length = p.shape[i]
        if length == 1 and (kept > 0 or i < p.n_dims - 1):
            continue
        joins = kept > 0
        for array in range(N_ARRAYS):
            if p.data[array] and joins:
                joins = p.stride[array][kept - 1] == p.stride[array][i] * length
        if not joins:
            kept += 1
            p.shape[kept - 1] = 1
        p.shape[kept - 1] *= length
        for array in range(N_ARRAYS):
            p.stride[array][kept - 1] = p.stride[array][i]
    p.n_dims = kept


cdef int lay_out(Problem *p, cnp.ndarray logits, int axis, cnp.ndarray target, cnp.ndarray grad,
                 cnp.ndarray weight, cnp.ndarray loss) except -1:
    """Fill in everything that concerns shapes, strides and dtypes. Only logits and target may not be None."""
    cdef int n_dims = cnp.PyArray_NDIM(logits), dim, k = 0
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(logits)
    cdef bint rows_adjacent = False
    p.n_rows = 1
    p.n_dims = n_dims - 1
    p.n_classes = cnp.PyArray_DIM(logits, axis)
    for dim in range(n_dims):
        if dim != axis:
            p.shape[k] = cnp.PyArray_DIM(logits, dim)
            p.n_rows *= p.shape[k]
            rows_adjacent |= cnp.PyArray_STRIDE(logits, dim) == item
            k += 1
    if p.n_rows > 0 and p.n_classes == 0:
        raise ValueError(f"logits has shape {np.shape(logits)}, no classes along axis {axis}; expected at least one")

    for k in range(N_ARRAYS):
        p.data[k] = NULL
        p.stride[k][0] = 0
    add_operand(p, LOGITS, logits, axis, n_dims)
    add_operand(p, TARGET, target, -1, n_dims - 1)
    p.logits_layout = Layout(<Format>format_of(logits), is_swapped(logits), cnp.PyArray_STRIDE(logits, axis), 0)
    p.grad_layout = p.logits_layout
    if grad is not None:
        add_operand(p, GRAD, grad, axis, n_dims)
        p.grad_layout = Layout(<Format>format_of(grad), is_swapped(grad), cnp.PyArray_STRIDE(grad, axis), 0)
    p.weight_format = FORMAT_F64
    p.weight_swapped = False
    if weight is not None:
        add_operand(p, WEIGHT, weight, -1, n_dims - 1)
        p.weight_format = <Format>format_of(weight)
        p.weight_swapped = is_swapped(weight)
    p.loss_format = FORMAT_F64
    if loss is not None:
        add_operand(p, LOSS, loss, -1, n_dims - 1)
        p.loss_format = <Format>format_of(loss)

    if p.n_dims == 0:
        p.n_dims = 1
        p.shape[0] = 1
    elif p.n_dims > 1 and p.n_rows > 0:
        merge_dims(p)
    p.logits_layout.row_stride = p.stride[LOGITS][p.n_dims - 1]
    p.grad_layout.row_stride = p.stride[GRAD][p.n_dims - 1]

    # Which walk a row takes decides the last bits of its sums: it may depend on the number of classes and
    # on strides, which a part of a batch shares with the whole, but not on the number of rows.
    p.across = p.n_classes <= FEW_CLASSES or (rows_adjacent and p.logits_layout.class_stride != item)
    if not p.across:
        p.tile_rows = max(1, min(TILE, CHUNK // p.n_classes))
    elif p.n_classes > FEW_CLASSES and p.n_rows < 16 * TILE:
        p.tile_rows = TILE // 4            # narrow tiles, so that there is one for each thread
    else:
        p.tile_rows = TILE
    p.tiles_in_inner = (p.shape[p.n_dims - 1] + p.tile_rows - 1) // p.tile_rows
    p.n_tiles = 0
    if p.n_rows > 0:
        p.n_tiles = p.n_rows // p.shape[p.n_dims - 1] * p.tiles_in_inner
    p.n_blocks = <int>min(BLOCKS, p.n_tiles)
    return 0


cdef int set_labels(Labels *labels, cnp.ndarray target, object ignore_index, Py_ssize_t n_classes) except -1:
    cdef int number = cnp.PyArray_TYPE(target)
    labels.size = <int>cnp.PyArray_ITEMSIZE(target)
    labels.is_signed = cnp.PyTypeNum_ISSIGNED(number)
    labels.swapped = is_swapped(target)
    labels.n_classes = n_classes
    labels.ignore_index = 0
    labels.has_ignore = ignore_index is not None
    if labels.has_ignore:
        value = index(ignore_index)
        try:
            labels.ignore_index = value
            labels.has_ignore = labels.is_signed or labels.ignore_index >= 0
        except OverflowError:
            labels.has_ignore = not labels.is_signed and 0 < value <= UINT64_MAX
            if labels.has_ignore:
                labels.ignore_index = <int64_t><uint64_t>value
    return 0


cdef int raise_bad_label(cnp.ndarray target, object ignore_index, Py_ssize_t n_classes) except -1:
    bad = (target < 0) | (target >= n_classes)
    if ignore_index is not None:
        bad &= target != ignore_index
    bad = np.asarray(bad)
    if not bad.any():
        raise RuntimeError("target was changed by another thread during the call")
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    where = f"target[{', '.join(map(str, place))}]" if place else "target"
    raise IndexError(
        f"{where} is {target[place]}; expected a class index in [0, {n_classes})"
        + ("" if ignore_index is None else f" or ignore_index={ignore_index}")
    )


cdef Py_ssize_t total_bad(const Problem *p, const Partials *partials) noexcept nogil:
    cdef Py_ssize_t bad = 0
    cdef int block
    for block in range(p.n_blocks):
        bad += partials.bad[block]
    return bad


cdef enum Reduction:
    MEAN, SUM, NONE


cdef int reduction_of(object reduction) except -1:
    if reduction == "mean":
        return MEAN
    if reduction == "sum":
        return SUM
    if reduction == "none":
        return NONE
    raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")


cdef double checked_normalizer(object normalizer, int reduction) except? -1:
    """The given normalizer, or NaN for None."""
    if normalizer is None:
        return NAN
    cdef double value = normalizer
    if reduction != MEAN:
        raise ValueError(
            f"normalizer is {normalizer!r} with reduction={('mean', 'sum', 'none')[reduction]!r}; "
            "expected reduction='mean', whose denominator it replaces"
        )
    if not (value > 0 and isfinite(value)):
        raise ValueError(f"normalizer is {normalizer!r}; expected a positive finite number")
    return value


cdef object softmax_cross_entropy(object given_logits, object given_target, object given_axis, object given_weight,
                                  object ignore_index, object given_reduction, object given_normalizer,
                                  object given_n_threads, bint with_grad, object out):
    cdef cnp.ndarray logits = as_floats(given_logits, "logits")
    cdef cnp.ndarray target = as_labels(given_target), weight = None, grad = None, loss = None
    cdef int axis = normalised_axis(given_axis, cnp.PyArray_NDIM(logits))
    cdef int reduction = reduction_of(given_reduction), n_threads = n_threads_for(given_n_threads)
    cdef double normalizer = checked_normalizer(given_normalizer, reduction), denominator
    cdef Problem problem
    cdef Partials partials

    check_batch_shape(target, "target", logits, axis)
    if given_weight is not None:
        weight = as_floats(given_weight, "sample_weight")
        if format_of(weight) > FORMAT_F32:
            weight = weight.astype(np.float32)
        check_batch_shape(weight, "sample_weight", logits, axis)
    if out is not None:
        check_out(out, logits, target, weight)
        grad = out
    set_labels(&problem.labels, target, ignore_index, cnp.PyArray_DIM(logits, axis))
    if with_grad and grad is None:
        grad = PyArray_NewLikeArray(logits, cnp.NPY_KEEPORDER, NULL, 0)
    if reduction == NONE:
        loss = np.empty(np.shape(target), np.float64 if format_of(logits) == FORMAT_F64 else np.float32)
    lay_out(&problem, logits, axis, target, grad, weight, loss)

    problem.normalizer = 1
    if with_grad and (out is not None or reduction == MEAN):
        run_releasing_gil(&problem, True, n_threads, &partials)
        if total_bad(&problem, &partials):
            raise_bad_label(target, ignore_index, problem.n_classes)
        if reduction == MEAN:
            denominator = add_pairs(partials.weight, problem.n_blocks)
            problem.normalizer = denominator if given_normalizer is None else normalizer
    run_releasing_gil(&problem, False, n_threads, &partials)
    if total_bad(&problem, &partials):
        raise_bad_label(target, ignore_index, problem.n_classes)

    if reduction == NONE:
        result = loss
    else:
        total = add_pairs(partials.loss, problem.n_blocks)
        if reduction == MEAN:
            total = divided(total, add_pairs(partials.weight, problem.n_blocks)
                            if given_normalizer is None else normalizer)
        result = total
    return (result, grad) if with_grad else result


cdef double divided(double a, double b) noexcept nogil:
    return a / b


def cross_entropy(logits, target, axis, sample_weight, ignore_index, reduction, normalizer, n_threads):
    return softmax_cross_entropy(logits, target, axis, sample_weight, ignore_index, reduction, normalizer,
                                 n_threads, False, None)


def cross_entropy_and_grad(logits, target, axis, sample_weight, ignore_index, reduction, normalizer, n_threads, out):
    return softmax_cross_entropy(logits, target, axis, sample_weight, ignore_index, reduction, normalizer,
                                 n_threads, True, out)


# ---- For the tests that measure vmath.h ----------------------------------------------------------

EXP_SCALE = {"float32": 2.0 ** 96, "float64": 2.0 ** 64}


def scaled_exp(x, m):
    """exp(x - m) * EXP_SCALE of a contiguous float32 or float64 vector, x <= m."""
    out = np.empty_like(x)
    cdef cnp.ndarray a = x, b = out
    if x.dtype == np.float32:
        exp_array_f32(<float *>cnp.PyArray_DATA(a), cnp.PyArray_SIZE(a), m, <float *>cnp.PyArray_DATA(b))
    else:
        exp_array_f64(<double *>cnp.PyArray_DATA(a), cnp.PyArray_SIZE(a), m, <double *>cnp.PyArray_DATA(b))
    return out


def log1p(t):
    """log1p of a contiguous float64 vector, t >= 0."""
    out = np.empty_like(t)
    cdef cnp.ndarray a = t, b = out
    log1p_array_f64(<double *>cnp.PyArray_DATA(a), cnp.PyArray_SIZE(a), <double *>cnp.PyArray_DATA(b))
    return out
