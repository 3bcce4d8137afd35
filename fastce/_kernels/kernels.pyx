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
G. Below SERIAL_WORK a call stays on its thread: waking others costs 2 to 5 microseconds while they still spin from the
   call before, and 20 to 50 when they sleep. The threshold is 6 to 10 microseconds of work; `python -m fastce bench
   --suite goals` measures both sides of it. Below GIL_WORK, about 1 microsecond, the call keeps the GIL as well.

Refused: a thread pool of our own; dynamic schedules (they lose D); copying to a better layout.
"""

from operator import index

import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport NAN, isfinite
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t

from fastce._kernels.arrays cimport (
    FORMAT_F32,
    FORMAT_F64,
    Format,
    as_floats,
    as_labels,
    check_apart,
    check_batch_shape,
    check_out,
    format_of,
    is_swapped,
    normalised_axis,
    same_memory,
)
from fastce._kernels.threads cimport n_threads_for

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, cnp.PyArray_Descr *, int subok)

cdef extern from "rows.h" nogil:
    enum: TILE, CHUNK, SCRATCH, FEW_BYTES
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
        void *staging
    ctypedef struct Labels:
        int size
        bint is_signed, swapped, has_ignore
        int64_t ignore_index, n_classes
    ctypedef struct Rows:
        int64_t label[1]
        double weight[1]
        double loss[1]
    ctypedef struct Sums:
        pass
    ctypedef struct LabelCounts:
        int64_t used, bad
    Py_ssize_t count_pieces(Py_ssize_t n_classes) noexcept
    void *own_staging() noexcept
    void read_labels(const Labels *, const char *, Py_ssize_t stride, Py_ssize_t n, int64_t *, LabelCounts *) noexcept
    void read_weights(Format, bint swapped, const char *, Py_ssize_t stride, Py_ssize_t n, double *) noexcept
    void fill_weights(Rows *, Py_ssize_t n) noexcept
    void put_losses(const double *, Py_ssize_t n, Format, Py_ssize_t stride, char *) noexcept
    void sweep(const Tile *, Rows *, bint across) noexcept
    void read_target(const Tile *, Rows *) noexcept
    void sweep_piece(const Tile *, Rows *, Py_ssize_t piece) noexcept
    void combine_pieces(const Tile *, Rows *) noexcept
    void epilogue(const Tile *, Rows *, double normalizer) noexcept
    void write_gradient(const Tile *, const Rows *, bint across) noexcept
    void write_piece(const Tile *, const Rows *, Py_ssize_t piece) noexcept
    void write_target(const Tile *, const Rows *) noexcept
    void clear_sums(Sums *) noexcept
    void sum_losses(Sums *, const Rows *, Py_ssize_t n_rows) noexcept
    void sum_weights(Sums *, const Rows *, Py_ssize_t n_rows) noexcept
    ctypedef struct Pair:
        double sum, error
    Pair total_loss(const Sums *) noexcept
    Pair total_weight(const Sums *) noexcept
    double add_pairs(const Pair *, Py_ssize_t n) noexcept
    void exp_array_f32(const float *, Py_ssize_t, float m, float *, double *base, double *n) noexcept
    void exp_array_f64(const double *, Py_ssize_t, double m, double *, double *base, double *n) noexcept
    const double exp_scale_f32, exp_scale_f64
    const int exp_steps_f32, exp_steps_f64
    void log1p_array_f64(const double *, Py_ssize_t n, double *) noexcept

cdef enum:
    MAX_DIMS = 64
    BLOCKS = 64
    ROW_WORK = 8                           # what a row costs besides its classes, in classes
    SERIAL_WORK = 32768
    GIL_WORK = 4096

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
    LabelCounts counts[BLOCKS]


# ---- The walk ----------------------------------------------------------------------------------

cdef Py_ssize_t locate(const Problem *p, Py_ssize_t number, char **at) noexcept nogil:
    """Where the rows of a tile begin in each array; returns how many there are."""
    cdef Py_ssize_t inner = p.n_dims - 1, outer = number // p.tiles_in_inner if inner else 0, position
    cdef Py_ssize_t first = (number - outer * p.tiles_in_inner) * p.tile_rows
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


cdef Tile tile_of(const Problem *p, double *scratch) noexcept nogil:
    """What all tiles have in common."""
    cdef Tile tile
    tile.n_classes = p.n_classes
    tile.logits_layout = p.logits_layout
    tile.grad_layout = p.grad_layout
    tile.scratch = scratch
    tile.staging = NULL
    return tile


cdef void begin_tile(const Problem *p, Py_ssize_t number, char **at, Tile *tile, Rows *rows,
                     LabelCounts *counts) noexcept nogil:
    """Fill in where the tile is, its rows' labels and, if there are any, weights."""
    cdef Py_ssize_t inner = p.n_dims - 1
    tile.n_rows = locate(p, number, at)
    tile.logits = at[LOGITS]
    tile.grad = at[GRAD]
    if at[WEIGHT]:
        read_weights(p.weight_format, p.weight_swapped, at[WEIGHT], p.stride[WEIGHT][inner], tile.n_rows, rows.weight)
    read_labels(&p.labels, at[TARGET], p.stride[TARGET][inner], tile.n_rows, rows.label, counts)


cdef void end_tile(const Problem *p, char **at, const Tile *tile, const Rows *rows, Sums *sums) noexcept nogil:
    sum_losses(sums, rows, tile.n_rows)
    if at[WEIGHT]:
        sum_weights(sums, rows, tile.n_rows)
    if at[LOSS]:
        put_losses(rows.loss, tile.n_rows, p.loss_format, p.stride[LOSS][p.n_dims - 1], at[LOSS])


cdef void begin_block(Partials *partials, int block, Sums *sums) noexcept nogil:
    clear_sums(sums)
    partials.counts[block].used = partials.counts[block].bad = 0


cdef void end_block(const Problem *p, Partials *partials, int block, const Sums *sums) noexcept nogil:
    partials.loss[block] = total_loss(sums)
    if p.data[WEIGHT]:
        partials.weight[block] = total_weight(sums)
    else:
        partials.weight[block] = Pair(partials.counts[block].used, 0)


cdef void run_block(const Problem *p, int block, bint check, Partials *partials) noexcept nogil:
    """The tiles of a block; with `check` their labels and weights alone."""
    cdef double[SCRATCH] scratch
    cdef char *at[N_ARRAYS]
    cdef Tile tile = tile_of(p, scratch)
    cdef Rows rows
    cdef Sums sums
    cdef Py_ssize_t number
    if p.data[GRAD] and not p.across and p.n_classes > CHUNK:
        tile.staging = own_staging()
    begin_block(partials, block, &sums)
    fill_weights(&rows, min(p.tile_rows, p.n_rows))
    for number in range(p.n_tiles * block // p.n_blocks, p.n_tiles * (block + 1) // p.n_blocks):
        begin_tile(p, number, at, &tile, &rows, &partials.counts[block])
        if check:
            if at[WEIGHT]:
                sum_weights(&sums, &rows, tile.n_rows)
            continue
        sweep(&tile, &rows, p.across)
        epilogue(&tile, &rows, p.normalizer)
        if tile.grad:
            write_gradient(&tile, &rows, p.across)
        end_tile(p, at, &tile, &rows, &sums)
    end_block(p, partials, block, &sums)


cdef void run_piece(const Tile *shared, Rows *rows, Py_ssize_t piece, bint writes) noexcept nogil:
    """Sweep or write one piece of the only row of a tile, in a scratch of its own."""
    cdef double[SCRATCH] scratch
    cdef Tile tile = shared[0]
    tile.scratch = scratch
    if writes:
        write_piece(&tile, rows, piece)
    else:
        sweep_piece(&tile, rows, piece)


cdef void run_split(const Problem *p, int n_threads, Partials *partials) noexcept nogil:
    """What run_block does for every block, with the pieces of each row shared between the threads."""
    cdef char *at[N_ARRAYS]
    cdef Tile tile = tile_of(p, NULL)          # each piece has a scratch of its own, and its threads share no staging
    cdef Rows rows
    cdef Sums sums
    cdef Py_ssize_t number, piece, n_pieces = count_pieces(p.n_classes)
    cdef int block
    n_threads = <int>min(n_threads, n_pieces)
    fill_weights(&rows, 1)
    for block in range(p.n_blocks):
        begin_block(partials, block, &sums)
        for number in range(p.n_tiles * block // p.n_blocks, p.n_tiles * (block + 1) // p.n_blocks):
            begin_tile(p, number, at, &tile, &rows, &partials.counts[block])
            if rows.label[0] >= 0:
                read_target(&tile, &rows)
                for piece in prange(n_pieces, schedule="static", num_threads=n_threads):
                    run_piece(&tile, &rows, piece, False)
                combine_pieces(&tile, &rows)
            epilogue(&tile, &rows, p.normalizer)
            if tile.grad:
                for piece in prange(n_pieces, schedule="static", num_threads=n_threads):
                    run_piece(&tile, &rows, piece, True)
                write_target(&tile, &rows)
            end_tile(p, at, &tile, &rows, &sums)
        end_block(p, partials, block, &sums)


cdef void run_blocks(const Problem *p, bint check, int n_threads, Partials *partials) noexcept nogil:
    cdef int block
    n_threads = min(n_threads, p.n_blocks)
    if n_threads <= 1:
        for block in range(p.n_blocks):
            run_block(p, block, check, partials)
    else:
        for block in prange(p.n_blocks, schedule="static", num_threads=n_threads):
            run_block(p, block, check, partials)


cdef void run(const Problem *p, bint check, int n_threads, Partials *partials) noexcept nogil:
    """Fill in the partials: of the labels and weights alone (check), or of the whole job."""
    cdef bint uneven = n_threads > 1 and p.n_rows < 4 * <int64_t>n_threads and p.n_rows % n_threads
    if uneven and not check and not p.across and p.n_classes > CHUNK:
        run_split(p, n_threads, partials)
    else:
        run_blocks(p, check, n_threads, partials)


cdef void run_releasing_gil(const Problem *p, bint check, int n_threads, Partials *partials):
    cdef Py_ssize_t work = p.n_rows if check else p.n_rows * (p.n_classes + ROW_WORK)
    if work < SERIAL_WORK:
        n_threads = 1
    if work < GIL_WORK:
        run(p, check, 1, partials)
    else:
        with nogil:
            run(p, check, n_threads, partials)


# ---- From arguments to a problem ---------------------------------------------------------------

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
    cdef bint rows_adjacent = False, few
    p.n_rows = 1
    p.n_dims = n_dims - 1
    p.n_classes = cnp.PyArray_DIM(logits, axis)
    for dim in range(n_dims):
        if dim != axis:
            p.shape[k] = cnp.PyArray_DIM(logits, dim)
            p.n_rows *= p.shape[k]
            rows_adjacent |= cnp.PyArray_STRIDE(logits, dim) == item
            k += 1
    for k in range(N_ARRAYS):
        p.data[k] = NULL
        for dim in range(p.n_dims or 1):
            p.stride[k][dim] = 0
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
    few = p.n_classes * (8 if format_of(logits) == FORMAT_F64 else 4) <= FEW_BYTES
    p.across = few or (rows_adjacent and p.logits_layout.class_stride != item)
    p.tile_rows = TILE
    if not p.across and p.n_classes > CHUNK:
        p.tile_rows = 1
    elif not p.across:
        p.tile_rows = max(1, min(TILE, CHUNK // p.n_classes if grad is not None else p.n_rows // 8))
    elif not few and p.n_rows < 16 * TILE:
        p.tile_rows = TILE // 4            # narrow tiles, so that there is one for each thread
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
        try:
            value = index(ignore_index)
        except TypeError:
            raise TypeError(f"ignore_index is {ignore_index!r}; expected an int or None") from None
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
        bad += partials.counts[block].bad
    return bad


cdef enum Reduction:
    MEAN, SUM, NONE


cdef int reduction_of(object reduction) except -1:
    if isinstance(reduction, str):
        if reduction == "mean":
            return MEAN
        if reduction == "sum":
            return SUM
        if reduction == "none":
            return NONE
    raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")


cdef double checked_normalizer(object normalizer, int reduction) except? -1:
    """The given normalizer, or NaN for None."""
    cdef double value = NAN
    if normalizer is None:
        return value
    try:
        value = normalizer
    except TypeError:
        raise TypeError(f"normalizer is {normalizer!r}; expected a number or None") from None
    if reduction != MEAN:
        raise ValueError(
            f"normalizer is {normalizer!r} with reduction={('mean', 'sum', 'none')[reduction]!r}; "
            "expected reduction='mean', whose denominator it replaces"
        )
    if not (value >= 0 and isfinite(value)):
        raise ValueError(f"normalizer is {normalizer!r}; expected a finite number that is not negative")
    return value


cdef object softmax_cross_entropy(object given_logits, object given_target, object given_axis, object given_weight,
                                  object ignore_index, object given_reduction, object given_normalizer,
                                  object given_n_threads, bint with_grad, object out):
    cdef cnp.ndarray logits = as_floats(given_logits, "logits")
    cdef cnp.ndarray target = as_labels(given_target), weight = None, grad = None, loss = None
    cdef int axis = normalised_axis(given_axis, cnp.PyArray_NDIM(logits))
    cdef int reduction = reduction_of(given_reduction), n_threads = n_threads_for(given_n_threads)
    cdef double normalizer = checked_normalizer(given_normalizer, reduction), denominator, total
    cdef Problem problem
    cdef Partials partials

    if cnp.PyArray_DIM(logits, axis) == 0 and cnp.PyArray_SIZE(target) > 0:
        raise ValueError(f"logits has shape {np.shape(logits)}, no classes along axis {axis}; expected at least one")
    check_batch_shape(target, "target", logits, axis)
    if given_weight is not None:
        weight = as_floats(given_weight, "sample_weight")
        if format_of(weight) > FORMAT_F32:
            weight = weight.astype(np.float32)
        check_batch_shape(weight, "sample_weight", logits, axis)
    if out is not None:
        check_out(out, logits)
        grad = out
        if not same_memory(grad, logits):
            check_apart(grad, logits, "logits")
        check_apart(grad, target, "target")
        if weight is not None:
            check_apart(grad, weight, "sample_weight")
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
        return (loss, grad) if with_grad else loss
    total = add_pairs(partials.loss, problem.n_blocks)
    if reduction == MEAN:
        denominator = normalizer
        if given_normalizer is None:
            denominator = add_pairs(partials.weight, problem.n_blocks)
        total = mean(total, denominator, given_normalizer is not None)
    return (total, grad) if with_grad else total


cdef double mean(double total, double denominator, bint given) noexcept:
    """The quotient; a denominator of 0 that was given, the number of rows of an empty batch, makes it 0."""
    return 0 if given and total == 0 and denominator == 0 else total / denominator


def cross_entropy(logits, target, axis, sample_weight, ignore_index, reduction, normalizer, n_threads):
    return softmax_cross_entropy(logits, target, axis, sample_weight, ignore_index, reduction, normalizer,
                                 n_threads, False, None)


def cross_entropy_and_grad(logits, target, axis, sample_weight, ignore_index, reduction, normalizer, n_threads, out):
    return softmax_cross_entropy(logits, target, axis, sample_weight, ignore_index, reduction, normalizer,
                                 n_threads, True, out)


# ---- For the tests that measure vmath.h ----------------------------------------------------------

EXP_SCALE = {"float32": exp_scale_f32, "float64": exp_scale_f64}
EXP_STEPS = {"float32": exp_steps_f32, "float64": exp_steps_f64}


def scaled_exp(x, m):
    """exp((x - base) - n * ln2 / EXP_STEPS) * EXP_SCALE of a contiguous float32 or float64 vector x <= m.

    Returns base and n too: what the exps of a row with maximum m are against.
    """
    out = np.empty_like(x)
    cdef cnp.ndarray a = x, b = out
    cdef double base, n
    if x.dtype == np.float32:
        exp_array_f32(<float *>cnp.PyArray_DATA(a), cnp.PyArray_SIZE(a), m, <float *>cnp.PyArray_DATA(b), &base, &n)
    else:
        exp_array_f64(<double *>cnp.PyArray_DATA(a), cnp.PyArray_SIZE(a), m, <double *>cnp.PyArray_DATA(b), &base, &n)
    return out, base, n


def log1p(t):
    """log1p of a contiguous float64 vector, t >= 0."""
    out = np.empty_like(t)
    cdef cnp.ndarray a = t, b = out
    log1p_array_f64(<double *>cnp.PyArray_DATA(a), cnp.PyArray_SIZE(a), <double *>cnp.PyArray_DATA(b))
    return out
