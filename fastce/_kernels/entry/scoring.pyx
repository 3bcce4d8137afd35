# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Scores of rows of logits, their best classes, and draws from them: checks arguments, deals rows to threads.

Design
------
A. A call is one `Batch` and one `Gathering` or `Sampling`: plain structs, filled with the GIL held, after which nothing
   can fail. What threads need besides their stack is allocated before, once for all of them.
B. Batch axes are walked in the order of the logits' strides, the innermost in tiles of rows: as many as a panel has
   where a class is far from the next (gather.h), else so many that each thread has its share.
C. No result depends on any other row's; hence tiles may be as the threads want them. Few rows of many classes are
   read piece by piece by all threads; pieces depend on the number of classes alone and are merged in their order.
D. Labels are read once, into memory of the call: what was checked is what is used.
E. Below SERIAL_WORK a call stays on its thread: see G in kernels.pyx.
"""

import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t
from libc.stdlib cimport free, malloc

from fastce._kernels.entry.arrays cimport (
    FORMAT_F32,
    FORMAT_F64,
    Format,
    as_floats,
    as_labels,
    check_batch_shape,
    format_of,
    is_swapped,
    normalised_axis,
)
from fastce._kernels.machine.environment cimport Environment, enter_environment, leave_environment
from fastce._kernels.entry.options cimport checked_number
from fastce._kernels.machine.threads cimport checked_n_threads, give_back, take

cnp.import_array()

cdef extern from "rows/scoring.h" nogil:
    enum: TILE, CHUNK, PANEL, BUCKETS
    ctypedef enum Transform: AS_GIVEN, SOFTCAP
    ctypedef struct Layout:
        Format format
        bint swapped
        Py_ssize_t class_stride, row_stride
    ctypedef struct Temperature:
        double factor, divisor
    ctypedef struct Formula:
        Temperature temperature
        Transform transform
        double softcap
        Temperature half_cap
    ctypedef struct Labels:
        int size
        bint is_signed, swapped, has_ignore
        int64_t ignore_index, n_classes
    ctypedef struct LabelCounts:
        int64_t used, bad
    ctypedef struct Candidate:
        pass
    ctypedef struct Best:
        double threshold
    ctypedef struct Gathering:
        Py_ssize_t n_classes
        Layout layout
        const Formula *formula
        bint only_best
    ctypedef struct Gathered:
        pass
    ctypedef struct RowResults:
        Format format
        int64_t *rank
        int64_t *top
        char *logprob
        char *entropy
        char *top_logprob
        char *value
    ctypedef struct Sampling:
        Py_ssize_t n_classes
        Layout layout
        Temperature temperature
        bint greedy
        Py_ssize_t top_k
        double top_p, min_p
    ctypedef struct Sampled:
        double *max
        double *rest
        double *weight
        double *mass
        Candidate *list
        Best best
        int is_nan
    void set_temperature(Temperature *, double factor, double divisor) noexcept
    void read_labels(const Labels *, const char *, Py_ssize_t stride, Py_ssize_t n, int64_t *, LabelCounts *) noexcept
    Py_ssize_t count_pieces(Py_ssize_t n_classes) noexcept
    Py_ssize_t count_blocks(Py_ssize_t n_classes) noexcept
    bint is_panel(const Layout *) noexcept
    Py_ssize_t room_for_best(Py_ssize_t k) noexcept
    void begin_best(Best *, Candidate *, Py_ssize_t k) noexcept
    void merge_best(Best *, const Best *) noexcept
    void gather_piece(const Gathering *, const char *rows, Py_ssize_t n_rows, const int64_t *label, Py_ssize_t piece,
                      Best *, Gathered *, void *memory) noexcept
    size_t piece_memory(const Gathering *) noexcept
    void merge_gathered(Gathered *, Gathered next, const Temperature *) noexcept
    void finish_row(const Gathering *, const char *row, int64_t label, const Gathered *, Best *, bint sorted,
                    const RowResults *) noexcept
    bint is_filtered(const Sampling *) noexcept
    bint is_bucketed(const Sampling *) noexcept
    bint is_in_place(const Sampling *) noexcept
    const char *contiguous_rows(const Sampling *, const char *rows, Py_ssize_t n_rows, void *memory) noexcept
    void look_at_blocks(const Sampling *, const char *x, Py_ssize_t first, Py_ssize_t last, Sampled *, Best *,
                        int *is_nan) noexcept
    void find_row_maximum(const Sampling *, Sampled *) noexcept
    void fill_buckets(const Sampling *, const char *x, Py_ssize_t piece, Sampled *) noexcept
    void draw(const Sampling *, const char *x, Sampled *, uint64_t key, Py_ssize_t n_draws, int64_t *token,
              double *logprob) noexcept

# The arrays of a call, as indices.
cdef enum:
    LOGITS, TOKENS, KEYS, LOGPROB, RANK, ENTROPY, TOP, TOP_LOGPROB, VALUE, N_ARRAYS

cdef enum:
    MAX_DIMS = 64
    SERIAL_WORK = 32768
    ROW_WORK = 64                          # what a row costs besides its classes, in classes
    LIST_BYTES = 1 << 22                   # of candidates of the rows of a tile
    ROWS_BYTES = 1 << 23                   # of the rows of a tile that are copied

# Temperatures for which the constants of their exps are normal numbers in float32 too.
cdef double LEAST_SCALE = 1e-18, MOST_SCALE = 1e18

cdef struct Batch:
    Py_ssize_t n_rows
    int n_dims                             # at least 1
    Py_ssize_t shape[MAX_DIMS]             # outermost first
    char *data[N_ARRAYS]                   # NULL: not part of this call
    Py_ssize_t stride[N_ARRAYS][MAX_DIMS]
    Py_ssize_t tile_rows, tiles_in_inner, n_tiles


# ---- Batches -------------------------------------------------------------------------------------

cdef void begin_batch(Batch *b, cnp.ndarray logits, int axis) noexcept:
    cdef int dim
    for dim in range(N_ARRAYS):
        b.data[dim] = NULL
    b.n_rows, b.n_dims = 1, 0
    for dim in range(cnp.PyArray_NDIM(logits)):
        if dim != axis:
            b.shape[b.n_dims] = cnp.PyArray_DIM(logits, dim)
            b.n_rows *= b.shape[b.n_dims]
            b.n_dims += 1
    if b.n_dims == 0:
        b.shape[0] = 1
    add_array(b, LOGITS, logits, axis)
    b.n_dims = max(b.n_dims, 1)


cdef void add_array(Batch *b, int number, cnp.ndarray a, int axis=-1) noexcept:
    """An array of the call whose first axes, but for the class axis if it has one, are those of the batch."""
    cdef int dim, k = 0
    b.data[number] = <char *>cnp.PyArray_DATA(a)
    b.stride[number][0] = 0
    for dim in range(cnp.PyArray_NDIM(a)):
        if dim != axis:
            b.stride[number][k] = cnp.PyArray_STRIDE(a, dim)
            k += 1


cdef void sort_dims(Batch *b) noexcept:
    """The batch axes by the logits' strides, outermost the longest."""
    cdef int i, j, array
    for i in range(1, b.n_dims):
        for j in range(i, 0, -1):
            if abs(b.stride[LOGITS][j - 1]) >= abs(b.stride[LOGITS][j]):
                break
            b.shape[j - 1], b.shape[j] = b.shape[j], b.shape[j - 1]
            for array in range(N_ARRAYS):
                b.stride[array][j - 1], b.stride[array][j] = b.stride[array][j], b.stride[array][j - 1]


cdef void set_tiles(Batch *b, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t inner = b.shape[b.n_dims - 1]
    b.tile_rows = max(1, rows)
    b.tiles_in_inner = (inner + b.tile_rows - 1) // b.tile_rows
    b.n_tiles = b.n_rows // inner * b.tiles_in_inner if b.n_rows else 0


cdef Py_ssize_t locate(const Batch *b, Py_ssize_t number, char **at) noexcept nogil:
    """Where the rows of a tile begin in each array; returns how many there are."""
    cdef Py_ssize_t inner = b.n_dims - 1, outer = number // b.tiles_in_inner, position
    cdef Py_ssize_t first = (number - outer * b.tiles_in_inner) * b.tile_rows
    cdef int array, dim
    for array in range(N_ARRAYS):
        at[array] = b.data[array] + first * b.stride[array][inner] if b.data[array] else NULL
    for dim in range(b.n_dims - 2, -1, -1):
        position = outer % b.shape[dim]
        outer //= b.shape[dim]
        for array in range(N_ARRAYS):
            if at[array]:
                at[array] += position * b.stride[array][dim]
    return min(b.tile_rows, b.shape[inner] - first)


cdef inline Py_ssize_t first_row(const Batch *b, Py_ssize_t number) noexcept nogil:
    """The number of a tile's first row, in the order of the walk."""
    cdef Py_ssize_t outer = number // b.tiles_in_inner
    return outer * b.shape[b.n_dims - 1] + (number - outer * b.tiles_in_inner) * b.tile_rows


cdef inline bint is_split(const Batch *b, Py_ssize_t n_classes, int n_threads) noexcept nogil:
    """Few tiles of many classes: their pieces are shared (C of Design)."""
    return n_threads > 1 and n_classes > CHUNK and b.n_tiles < 4 * n_threads and b.n_tiles % n_threads


cdef void *memory_for(size_t size) except? NULL:
    cdef void *memory = malloc(max(size, 1))
    if memory == NULL:
        raise MemoryError(f"fastce could not allocate {size} bytes to work in")
    return memory


# ---- Scores --------------------------------------------------------------------------------------

cdef struct Job:                           # of scores and the best classes
    Batch batch
    Gathering call
    Formula formula
    Py_ssize_t k
    bint sorted
    Format format, given_format
    int64_t *label                         # of each row, in the order of the walk
    Best *best                             # tile_rows for each thread
    Candidate *candidates
    Gathered *gathered                     # tile_rows for each thread; for each piece where pieces are shared
    char *memory
    size_t memory_size                     # of one thread


cdef void finish_tile(Job *job, Py_ssize_t n_rows, char **at, const int64_t *label, Gathered *gathered,
                      Best *best) noexcept nogil:
    cdef Py_ssize_t i, inner = job.batch.n_dims - 1
    cdef RowResults to
    to.format = job.format
    for i in range(n_rows):
        to.logprob = at[LOGPROB] + i * job.batch.stride[LOGPROB][inner] if at[LOGPROB] else NULL
        to.entropy = at[ENTROPY] + i * job.batch.stride[ENTROPY][inner] if at[ENTROPY] else NULL
        to.rank = <int64_t *>(at[RANK] + i * job.batch.stride[RANK][inner]) if at[RANK] else NULL
        to.top = <int64_t *>(at[TOP] + i * job.batch.stride[TOP][inner])
        to.top_logprob = at[TOP_LOGPROB] + i * job.batch.stride[TOP_LOGPROB][inner] if at[TOP_LOGPROB] else NULL
        to.value = at[VALUE] + i * job.batch.stride[VALUE][inner] if at[VALUE] else NULL
        finish_row(&job.call, at[LOGITS] + i * job.batch.stride[LOGITS][inner], label[i], gathered + i, best + i,
                   job.sorted, &to)


cdef void begin_bests(Job *job, int thread) noexcept nogil:
    cdef Py_ssize_t i, number, room = room_for_best(job.k)
    for i in range(job.batch.tile_rows):
        number = thread * job.batch.tile_rows + i
        begin_best(job.best + number, job.candidates + number * room, job.k)


cdef void score_tiles(Job *job, int thread, int n_threads) noexcept nogil:
    """A thread's share of the tiles."""
    cdef Environment host = enter_environment()
    cdef Py_ssize_t n_tiles = job.batch.n_tiles, number, piece, n_rows, i
    cdef Py_ssize_t n_pieces = count_pieces(job.call.n_classes)
    cdef Best *best = job.best + thread * job.batch.tile_rows
    cdef Gathered *gathered = job.gathered + 2 * thread * job.batch.tile_rows
    cdef Gathered *next_one = gathered + job.batch.tile_rows
    cdef void *memory = job.memory + thread * job.memory_size
    cdef char *at[N_ARRAYS]
    cdef const int64_t *label
    for number in range(n_tiles * thread // n_threads, n_tiles * (thread + 1) // n_threads):
        n_rows = locate(&job.batch, number, at)
        label = job.label + first_row(&job.batch, number)
        begin_bests(job, thread)
        gather_piece(&job.call, at[LOGITS], n_rows, label, 0, best, gathered, memory)
        for piece in range(1, n_pieces):
            gather_piece(&job.call, at[LOGITS], n_rows, label, piece, best, next_one, memory)
            for i in range(n_rows):
                merge_gathered(gathered + i, next_one[i], &job.formula.temperature)
        finish_tile(job, n_rows, at, label, gathered, best)
    leave_environment(host)


cdef void score_pieces(Job *job, const char *rows, Py_ssize_t n_rows, const int64_t *label, int thread,
                       int n_threads) noexcept nogil:
    """A thread's share of the pieces of a tile."""
    cdef Environment host = enter_environment()
    cdef Py_ssize_t n_pieces = count_pieces(job.call.n_classes), piece
    begin_bests(job, thread)
    for piece in range(n_pieces * thread // n_threads, n_pieces * (thread + 1) // n_threads):
        gather_piece(&job.call, rows, n_rows, label, piece, job.best + thread * job.batch.tile_rows,
                     job.gathered + piece * job.batch.tile_rows, job.memory + thread * job.memory_size)
    leave_environment(host)


cdef void score_split(Job *job, int n_threads) noexcept nogil:
    """What score_tiles does, with the pieces of each tile shared between the threads."""
    cdef Environment host
    cdef Py_ssize_t number, piece, n_rows, i, tile_rows = job.batch.tile_rows
    cdef char *at[N_ARRAYS]
    cdef const int64_t *label
    cdef int thread
    for number in range(job.batch.n_tiles):
        n_rows = locate(&job.batch, number, at)
        label = job.label + first_row(&job.batch, number)
        for thread in prange(n_threads, schedule="static", num_threads=n_threads):
            score_pieces(job, at[LOGITS], n_rows, label, thread, n_threads)
        host = enter_environment()
        for i in range(n_rows):
            for piece in range(1, count_pieces(job.call.n_classes)):
                merge_gathered(job.gathered + i, job.gathered[piece * tile_rows + i], &job.formula.temperature)
            for thread in range(1, n_threads):
                merge_best(job.best + i, job.best + thread * tile_rows + i)
        finish_tile(job, n_rows, at, label, job.gathered, job.best)
        leave_environment(host)


cdef void score_all(Job *job, int n_threads, bint split) noexcept nogil:
    cdef int thread
    if split:
        score_split(job, n_threads)
    elif n_threads == 1:
        score_tiles(job, 0, 1)
    else:
        for thread in prange(n_threads, schedule="static", num_threads=n_threads):
            score_tiles(job, thread, n_threads)


cdef int run_job(Job *job, int asked_threads) except -1:
    """Once the arrays, the labels and the formula are there."""
    cdef Py_ssize_t n_classes = job.call.n_classes, tile_rows, n_lists
    cdef Py_ssize_t n_pieces = count_pieces(n_classes) if n_classes > CHUNK else 1
    cdef Py_ssize_t of_list = room_for_best(job.k) * <Py_ssize_t>sizeof(Candidate)
    cdef bint panel = is_panel(&job.call.layout), split
    cdef int n_threads = 1
    if job.batch.n_rows == 0:
        return 0
    job.call.formula = &job.formula
    job.call.layout.row_stride = job.batch.stride[LOGITS][job.batch.n_dims - 1]
    with nogil:
        if job.batch.n_rows * (n_classes + ROW_WORK) >= SERIAL_WORK:
            n_threads = take(asked_threads, <int>min(job.batch.n_rows * n_pieces, 1 << 16))
        else:
            asked_threads = -1             # nothing to give back
    tile_rows = TILE if panel or n_classes <= CHUNK else 1
    if panel and n_classes > CHUNK:
        tile_rows //= 2                    # a line of float32 or two: pieces may be shared
    if not panel:
        tile_rows = min(tile_rows, (job.batch.n_rows + 4 * n_threads - 1) // (4 * n_threads))
    if of_list:
        tile_rows = min(tile_rows, LIST_BYTES // of_list)
    set_tiles(&job.batch, tile_rows)
    split = is_split(&job.batch, n_classes, n_threads)
    n_lists = job.batch.tile_rows * n_threads
    job.memory_size = piece_memory(&job.call)
    job.best = NULL
    job.candidates = NULL
    job.gathered = NULL
    job.memory = NULL
    try:
        job.best = <Best *>memory_for(n_lists * sizeof(Best))
        job.candidates = <Candidate *>memory_for(n_lists * of_list)
        job.gathered = <Gathered *>memory_for(
            max(2 * n_lists, job.batch.tile_rows * n_pieces if split else 0) * <Py_ssize_t>sizeof(Gathered)
        )
        job.memory = <char *>memory_for(n_threads * job.memory_size)
        with nogil:
            score_all(job, n_threads, split)
    finally:
        free(job.best)
        free(job.candidates)
        free(job.gathered)
        free(job.memory)
        if asked_threads >= 0:
            give_back(n_threads)
    return 0


cdef int begin_job(Job *job, cnp.ndarray logits, int axis, Py_ssize_t k) except -1:
    job.call.n_classes = cnp.PyArray_DIM(logits, axis)
    job.call.layout = Layout(<Format>format_of(logits), is_swapped(logits), cnp.PyArray_STRIDE(logits, axis), 0)
    job.format = FORMAT_F64 if format_of(logits) == FORMAT_F64 else FORMAT_F32
    job.k = k
    job.sorted = True
    job.formula.transform = AS_GIVEN
    set_temperature(&job.formula.temperature, 1, 1)
    begin_batch(&job.batch, logits, axis)
    if job.call.n_classes == 0 and job.batch.n_rows > 0:
        raise ValueError(f"logits has shape {np.shape(logits)}, no classes along axis {axis}; expected at least one")
    return 0


cdef Py_ssize_t checked_k(object k, str name, Py_ssize_t least, Py_ssize_t n_classes) except -1:
    cdef Py_ssize_t number
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f"{name} is {k!r}; expected an int")
    number = min(max(k.__index__(), -1), n_classes + 1)
    if not least <= number <= n_classes:
        raise ValueError(f"{name} is {k!r}; expected an int in [{least}, {n_classes}], the number of classes")
    return number


cdef int read_tokens(Job *job, cnp.ndarray tokens, object ignore_index) except -1:
    """The labels of all rows, checked; the caller frees them."""
    cdef Batch rows = job.batch
    cdef Labels labels
    cdef LabelCounts counts = LabelCounts(0, 0)
    cdef Py_ssize_t number, n
    cdef char *at[N_ARRAYS]
    labels.size = <int>cnp.PyArray_ITEMSIZE(tokens)
    labels.is_signed = cnp.PyTypeNum_ISSIGNED(cnp.PyArray_TYPE(tokens))
    labels.swapped = is_swapped(tokens)
    labels.n_classes = job.call.n_classes
    labels.ignore_index = 0
    labels.has_ignore = False
    if ignore_index is not None and (ignore_index >= 0 or labels.is_signed):
        if -2**63 <= ignore_index < 2**63:
            labels.has_ignore, labels.ignore_index = True, ignore_index
        elif not labels.is_signed and ignore_index <= UINT64_MAX:
            labels.has_ignore, labels.ignore_index = True, <int64_t><uint64_t>ignore_index
    if rows.n_rows == 0:
        return 0
    set_tiles(&rows, rows.shape[rows.n_dims - 1])
    with nogil:
        for number in range(rows.n_tiles):
            n = locate(&rows, number, at)
            read_labels(&labels, at[TOKENS], rows.stride[TOKENS][rows.n_dims - 1], n,
                        job.label + first_row(&rows, number), &counts)
    if counts.bad:
        raise_bad_token(tokens, ignore_index, job.call.n_classes)
    return 0


cdef object bad_tokens(cnp.ndarray tokens, object ignore_index, Py_ssize_t n_classes):
    bad = (tokens < 0) | (tokens >= n_classes)
    if ignore_index is not None:
        bad &= tokens != ignore_index
    return np.asarray(bad)


cdef int raise_bad_token(cnp.ndarray tokens, object ignore_index, Py_ssize_t n_classes) except -1:
    bad = bad_tokens(tokens, ignore_index, n_classes)
    if not bad.any():
        raise RuntimeError("tokens was changed by another thread during the call")
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    where = f"tokens[{', '.join(map(str, place))}]" if place else "tokens"
    raise IndexError(
        f"{where} is {tokens[place]}; expected a class index in [0, {n_classes})"
        + ("" if ignore_index is None else f" or ignore_index={ignore_index}")
    )


def checked_tokens(given, Py_ssize_t n_classes, ignore_index):
    """The tokens as an array of integers, each a class or to be ignored."""
    cdef cnp.ndarray tokens = as_labels(given, "tokens")
    if bad_tokens(tokens, ignore_index, n_classes).any():
        raise_bad_token(tokens, ignore_index, n_classes)
    return tokens


def token_logprobs(given_logits, given_tokens, top_k, given_axis, temperature, softcap, ignore_index, given_n_threads):
    """logprob, rank, entropy, top_tokens, top_logprobs of each row."""
    cdef Job job
    cdef cnp.ndarray logits = as_floats(given_logits, "logits"), tokens = as_labels(given_tokens, "tokens")
    cdef int n_threads = checked_n_threads(given_n_threads)
    cdef int axis = normalised_axis(given_axis, cnp.PyArray_NDIM(logits))
    cdef Environment host
    if ignore_index is not None:
        if isinstance(ignore_index, bool) or not hasattr(ignore_index, "__index__"):
            raise TypeError(f"ignore_index is {ignore_index!r}; expected an int or None")
        ignore_index = ignore_index.__index__()
    begin_job(&job, logits, axis, checked_k(top_k, "top_k", 0, cnp.PyArray_DIM(logits, axis)))
    check_batch_shape(tokens, "tokens", logits, axis)
    job.call.only_best = False
    cdef double divisor = checked_number(temperature, "temperature", LEAST_SCALE, MOST_SCALE)
    if softcap is not None:
        job.formula.softcap = checked_number(softcap, "softcap", LEAST_SCALE, MOST_SCALE)
        job.formula.transform = SOFTCAP

    shape = np.shape(tokens)
    dtype = np.float64 if job.format == FORMAT_F64 else np.float32
    logprob, entropy, rank = np.empty(shape, dtype), np.empty(shape, dtype), np.empty(shape, np.int64)
    top, top_logprob = np.empty((*shape, job.k), np.int64), np.empty((*shape, job.k), dtype)
    add_array(&job.batch, TOKENS, tokens)
    add_array(&job.batch, LOGPROB, logprob)
    add_array(&job.batch, RANK, rank)
    add_array(&job.batch, ENTROPY, entropy)
    add_array(&job.batch, TOP, top)
    add_array(&job.batch, TOP_LOGPROB, top_logprob)
    sort_dims(&job.batch)
    job.label = <int64_t *>memory_for(job.batch.n_rows * sizeof(int64_t))
    host = enter_environment()
    try:
        set_temperature(&job.formula.temperature, 1, divisor)
        if softcap is not None:
            set_temperature(&job.formula.half_cap, 1, job.formula.softcap / 2)
        read_tokens(&job, tokens, ignore_index)
        run_job(&job, n_threads)
    finally:
        leave_environment(host)
        free(job.label)
    return logprob, rank, entropy, top, top_logprob


def top_k(given_logits, k, given_axis, sorted, given_n_threads):
    """Values and indices of the k largest of each row, along a last axis."""
    cdef Job job
    cdef cnp.ndarray logits = as_floats(given_logits, "logits")
    cdef int n_threads = checked_n_threads(given_n_threads)
    cdef int axis = normalised_axis(given_axis, cnp.PyArray_NDIM(logits))
    cdef Environment host
    cdef Py_ssize_t row
    begin_job(&job, logits, axis, checked_k(k, "k", 0, cnp.PyArray_DIM(logits, axis)))
    job.call.only_best = True
    job.sorted = bool(sorted)
    shape = np.shape(logits)
    shape = (*shape[:axis], *shape[axis + 1:], job.k)
    values, indices = np.empty(shape, logits.dtype), np.empty(shape, np.int64)
    add_array(&job.batch, TOP, indices)
    add_array(&job.batch, VALUE, values)
    sort_dims(&job.batch)
    job.label = <int64_t *>memory_for(job.batch.n_rows * sizeof(int64_t))
    for row in range(job.batch.n_rows):
        job.label[row] = 0
    host = enter_environment()
    try:
        if job.k:
            run_job(&job, n_threads)
    finally:
        leave_environment(host)
        free(job.label)
    return values, indices


# ---- Samples -------------------------------------------------------------------------------------

cdef struct Draws:
    Batch batch
    Sampling call
    Py_ssize_t n_draws
    Format format                          # of the logarithms
    size_t item                            # bytes of a real
    Sampled *row                           # for each thread
    char *memory                           # rows that are copied, for each thread
    size_t memory_size
    double *logprob                        # n_draws for each thread


cdef inline uint64_t key_at(char **at, const Draws *job, Py_ssize_t i) noexcept nogil:
    return (<uint64_t *>(at[KEYS] + i * job.batch.stride[KEYS][job.batch.n_dims - 1]))[0]


cdef void put_draws(Draws *job, char **at, Py_ssize_t i, const double *logprob) noexcept nogil:
    cdef char *to = at[LOGPROB] + i * job.batch.stride[LOGPROB][job.batch.n_dims - 1]
    cdef Py_ssize_t n
    for n in range(job.n_draws):
        if job.format == FORMAT_F64:
            (<double *>to)[n] = logprob[n]
        else:
            (<float *>to)[n] = <float>logprob[n]


cdef void sample_tiles(Draws *job, int thread, int n_threads) noexcept nogil:
    """A thread's share of the tiles."""
    cdef Environment host = enter_environment()
    cdef Py_ssize_t n_tiles = job.batch.n_tiles, number, n_rows, i, step, n_classes = job.call.n_classes
    cdef Sampled *row = job.row + thread
    cdef double *logprob = job.logprob + thread * job.n_draws
    cdef char *at[N_ARRAYS]
    cdef const char *rows
    cdef const char *x
    for number in range(n_tiles * thread // n_threads, n_tiles * (thread + 1) // n_threads):
        n_rows = locate(&job.batch, number, at)
        rows = contiguous_rows(&job.call, at[LOGITS], n_rows, job.memory + thread * job.memory_size)
        step = job.call.layout.row_stride if rows == at[LOGITS] else n_classes * <Py_ssize_t>job.item
        for i in range(n_rows):
            x = rows + i * step
            begin_best(&row.best, row.list, job.call.top_k)
            row.is_nan = 0
            look_at_blocks(&job.call, x, 0, count_blocks(n_classes), row, &row.best, &row.is_nan)
            finish_sample(job, x, row, at, i, logprob, 1)
    leave_environment(host)


cdef void finish_sample(Draws *job, const char *x, Sampled *row, char **at, Py_ssize_t i, double *logprob,
                        int n_threads) noexcept nogil:
    """The draws of a row whose blocks have been looked at."""
    cdef Py_ssize_t piece
    find_row_maximum(&job.call, row)
    if is_bucketed(&job.call):
        if n_threads == 1:
            for piece in range(count_pieces(job.call.n_classes)):
                fill_buckets(&job.call, x, piece, row)
        else:
            for piece in prange(count_pieces(job.call.n_classes), schedule="static", num_threads=n_threads):
                fill_in_environment(job, x, piece, row)
    draw(&job.call, x, row, key_at(at, job, i), job.n_draws,
         <int64_t *>(at[TOKENS] + i * job.batch.stride[TOKENS][job.batch.n_dims - 1]), logprob)
    put_draws(job, at, i, logprob)


cdef void fill_in_environment(Draws *job, const char *x, Py_ssize_t piece, Sampled *row) noexcept nogil:
    cdef Environment host = enter_environment()
    fill_buckets(&job.call, x, piece, row)
    leave_environment(host)


cdef void look_at_share(Draws *job, const char *x, Sampled *row, int thread, int n_threads) noexcept nogil:
    """A thread's share of the blocks of a row, whose candidates go into a list of its own."""
    cdef Environment host = enter_environment()
    cdef Py_ssize_t n = count_blocks(job.call.n_classes)
    cdef Sampled *mine = job.row + thread
    begin_best(&mine.best, mine.list, job.call.top_k)
    mine.is_nan = 0
    look_at_blocks(&job.call, x, n * thread // n_threads, n * (thread + 1) // n_threads, row, &mine.best, &mine.is_nan)
    leave_environment(host)


cdef void sample_split(Draws *job, int n_threads) noexcept nogil:
    """What sample_tiles does, with each row shared between the threads."""
    cdef Environment host
    cdef Py_ssize_t number, i, n_rows, n_classes = job.call.n_classes, step
    cdef char *at[N_ARRAYS]
    cdef const char *rows
    cdef const char *x
    cdef int thread
    for number in range(job.batch.n_tiles):
        n_rows = locate(&job.batch, number, at)
        rows = contiguous_rows(&job.call, at[LOGITS], n_rows, job.memory)
        step = job.call.layout.row_stride if rows == at[LOGITS] else n_classes * <Py_ssize_t>job.item
        for i in range(n_rows):
            x = rows + i * step
            for thread in prange(n_threads, schedule="static", num_threads=n_threads):
                look_at_share(job, x, job.row, thread, n_threads)
            host = enter_environment()
            for thread in range(1, n_threads):
                merge_best(&job.row.best, &job.row[thread].best)
                job.row.is_nan |= job.row[thread].is_nan
            finish_sample(job, x, job.row, at, i, job.logprob, n_threads)
            leave_environment(host)


cdef void sample_all(Draws *job, int n_threads, bint split) noexcept nogil:
    cdef int thread
    if split:
        sample_split(job, n_threads)
    elif n_threads == 1:
        sample_tiles(job, 0, 1)
    else:
        for thread in prange(n_threads, schedule="static", num_threads=n_threads):
            sample_tiles(job, thread, n_threads)


cdef int run_draws(Draws *job, int asked_threads) except -1:
    cdef Py_ssize_t n_classes = job.call.n_classes, n_blocks = count_blocks(n_classes), tile_rows = 1
    cdef Py_ssize_t n_pieces = count_pieces(n_classes), n_reals = 3 * n_blocks + n_pieces * BUCKETS
    cdef Py_ssize_t n_candidates = 0
    cdef bint split
    cdef int n_threads = 1, thread
    cdef double *reals = NULL
    cdef Candidate *lists = NULL
    if job.batch.n_rows == 0:
        return 0
    job.item = 8 if job.format == FORMAT_F64 else 4
    job.call.layout.row_stride = job.batch.stride[LOGITS][job.batch.n_dims - 1]
    if job.batch.n_rows * (n_classes + ROW_WORK) >= SERIAL_WORK:
        with nogil:
            n_threads = take(asked_threads, <int>min(job.batch.n_rows * n_pieces, 1 << 16))
    else:
        asked_threads = -1
    if is_panel(&job.call.layout):
        tile_rows = min(PANEL, ROWS_BYTES // (n_classes * <Py_ssize_t>job.item))
    set_tiles(&job.batch, tile_rows)
    if is_filtered(&job.call) and not job.call.greedy:
        n_candidates = max(n_classes, room_for_best(job.call.top_k))
    job.memory_size = 0
    if not is_in_place(&job.call):
        job.memory_size = (job.batch.tile_rows * n_classes * job.item + 127) & ~<size_t>63
    split = is_split(&job.batch, n_classes, n_threads)
    job.row = NULL
    job.memory = NULL
    job.logprob = NULL
    try:
        job.row = <Sampled *>memory_for(n_threads * sizeof(Sampled))
        job.memory = <char *>memory_for(n_threads * job.memory_size)
        job.logprob = <double *>memory_for(n_threads * job.n_draws * sizeof(double))
        reals = <double *>memory_for(n_threads * n_reals * sizeof(double))
        lists = <Candidate *>memory_for(n_threads * n_candidates * sizeof(Candidate))
        for thread in range(n_threads):
            job.row[thread].max = reals + thread * n_reals
            job.row[thread].rest = job.row[thread].max + n_blocks
            job.row[thread].weight = job.row[thread].rest + n_blocks
            job.row[thread].mass = job.row[thread].weight + n_blocks
            job.row[thread].list = lists + thread * n_candidates
        with nogil:
            sample_all(job, n_threads, split)
    finally:
        free(job.row)
        free(job.memory)
        free(job.logprob)
        free(reals)
        free(lists)
        if asked_threads >= 0:
            give_back(n_threads)
    return 0


def sample(given_logits, temperature, top_k, top_p, min_p, tuple size, rng, given_axis, given_n_threads):
    """Tokens and the logarithms of their probabilities, `size` of them for each row."""
    cdef Draws job
    cdef cnp.ndarray logits = as_floats(given_logits, "logits"), keys, tokens, logprobs
    cdef int n_threads = checked_n_threads(given_n_threads)
    cdef int axis = normalised_axis(given_axis, cnp.PyArray_NDIM(logits))
    cdef Environment host
    job.call.n_classes = cnp.PyArray_DIM(logits, axis)
    job.call.layout = Layout(<Format>format_of(logits), is_swapped(logits), cnp.PyArray_STRIDE(logits, axis), 0)
    cdef double divisor = checked_number(temperature, "temperature", 0, MOST_SCALE)
    job.call.greedy = divisor == 0
    if 0 < divisor < LEAST_SCALE:
        raise ValueError(f"temperature is {temperature!r}; expected 0 or a number in [1e-18, 1e+18]")
    job.call.top_p = 1 if top_p is None else checked_number(top_p, "top_p", 0, 1)
    job.call.min_p = 0 if min_p is None else checked_number(min_p, "min_p", 0, 1)
    job.call.top_k = 0
    if top_k is not None:
        if isinstance(top_k, bool) or not hasattr(top_k, "__index__"):
            raise TypeError(f"top_k is {top_k!r}; expected an int or None")
        if top_k.__index__() < 1:
            raise ValueError(f"top_k is {top_k!r}; expected an int of at least 1, or None for all classes")
        if top_k.__index__() < job.call.n_classes:
            job.call.top_k = top_k
    if job.call.greedy:
        job.call.top_k, job.call.top_p, job.call.min_p = 0, 1, 0
    begin_batch(&job.batch, logits, axis)
    if job.call.n_classes == 0 and job.batch.n_rows > 0:
        raise ValueError(f"logits has shape {np.shape(logits)}, no classes along axis {axis}; expected at least one")

    shape = np.shape(logits)
    shape = shape[:axis] + shape[axis + 1:]
    keys = np.asarray(rng.integers(0, UINT64_MAX, size=shape, dtype=np.uint64, endpoint=True))
    job.format = FORMAT_F64 if format_of(logits) == FORMAT_F64 else FORMAT_F32
    tokens = np.empty(shape + size, np.int64)
    logprobs = np.empty(shape + size, np.float64 if job.format == FORMAT_F64 else np.float32)
    job.n_draws = 1
    for n in size:
        job.n_draws *= n
    add_array(&job.batch, KEYS, keys)
    add_array(&job.batch, TOKENS, tokens)
    add_array(&job.batch, LOGPROB, logprobs)
    sort_dims(&job.batch)
    host = enter_environment()
    try:
        set_temperature(&job.call.temperature, 1, 1 if job.call.greedy else divisor)
        if job.n_draws:
            run_draws(&job, n_threads)
    finally:
        leave_environment(host)
    return tokens, logprobs
