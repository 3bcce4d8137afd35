# A part of scoring.pyx: the rows of a batch as tiles, and how threads share them.

cdef struct Batch:
    Py_ssize_t n_rows
    int n_dims                             # at least 1
    Py_ssize_t shape[MAX_DIMS]             # outermost first
    char *data[N_ARRAYS]                   # NULL: not part of this call
    Py_ssize_t stride[N_ARRAYS][MAX_DIMS]
    Py_ssize_t tile_rows, tiles_in_inner, n_tiles


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


cdef void *memory_for(size_t size) except? NULL:
    cdef void *memory = malloc(max(size, 1))
    if memory == NULL:
        raise MemoryError(f"fastce could not allocate {size} bytes to work in")
    return memory


# ---- The walk ------------------------------------------------------------------------------------

cdef struct Visit:                         # of one tile, or of one of its rows
    Py_ssize_t number, n_rows, row
    char *at[N_ARRAYS]                     # of the tile's first row
    int thread, n_shares                   # whose memory; how many threads share it, from that one on


ctypedef void (*Step)(void *job, const Visit *, int share) noexcept nogil

cdef enum: MAX_STEPS = 6

cdef struct Walk:
    Batch batch
    void *job
    bint by_row                            # the steps of one row after the other, or of the tile's rows together
    int n_steps
    Step step[MAX_STEPS]
    bint is_shared[MAX_STEPS]              # each thread does a share; the others are done by one


cdef void add_step(Walk *walk, Step step, bint is_shared) noexcept:
    walk.step[walk.n_steps] = step
    walk.is_shared[walk.n_steps] = is_shared
    walk.n_steps += 1


cdef void take_step(const Walk *walk, int number, const Visit *visit, int share) noexcept nogil:
    cdef Environment host = enter_environment()
    walk.step[number](walk.job, visit, share)
    leave_environment(host)


cdef void visit_tile(const Walk *walk, Py_ssize_t number, int thread, int n_shares) noexcept nogil:
    cdef Visit visit
    cdef int step, share
    visit.number, visit.thread, visit.n_shares = number, thread, n_shares
    visit.n_rows = locate(&walk.batch, number, visit.at)
    for visit.row in range(visit.n_rows if walk.by_row else 1):
        for step in range(walk.n_steps):
            if n_shares == 1 or not walk.is_shared[step]:
                take_step(walk, step, &visit, 0)
            else:
                for share in prange(n_shares, schedule="static", num_threads=n_shares):
                    take_step(walk, step, &visit, share)


cdef void visit_tiles(const Walk *walk, int thread, int n_threads) noexcept nogil:
    """A thread's share of the tiles."""
    cdef Py_ssize_t n = walk.batch.n_tiles, number
    for number in range(n * thread // n_threads, n * (thread + 1) // n_threads):
        visit_tile(walk, number, thread, 1)


cdef void take_walk(const Walk *walk, Py_ssize_t n_parts, int n_threads) noexcept nogil:
    """All tiles: each by one thread, or, few tiles of rows in parts, each by all of them (C of Design)."""
    cdef Py_ssize_t number, n = walk.batch.n_tiles
    cdef int thread
    if n_threads > 1 and n_parts > 1 and n < 4 * n_threads and n % n_threads:
        for number in range(n):
            visit_tile(walk, number, 0, n_threads)
    elif n_threads == 1:
        visit_tiles(walk, 0, 1)
    else:
        for thread in prange(n_threads, schedule="static", num_threads=n_threads):
            visit_tiles(walk, thread, n_threads)


cdef int threads_for(Batch *b, Py_ssize_t n_classes, Py_ssize_t n_parts, int asked_threads) noexcept nogil:
    """How many are taken, to be given back; 0: none, the call stays on its thread."""
    return take(asked_threads, b.n_rows * n_parts, b.n_rows * (n_classes + ROW_WORK), SERIAL_WORK)


cdef inline Py_ssize_t first_of_share(Py_ssize_t n, int share, int n_shares) noexcept nogil:
    return n * share // n_shares
