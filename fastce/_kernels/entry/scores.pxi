# A part of scoring.pyx: log-probabilities, ranks and entropies of tokens, and the best classes.

cdef struct Job:
    Walk walk
    Gathering call
    Formula formula
    Py_ssize_t k, n_pieces
    bint sorted
    Format format
    int64_t *label                         # of each row, in the order of the walk
    Best *best                             # tile_rows for each thread
    Candidate *candidates
    Gathered *gathered                     # tile_rows of each piece, for each thread
    char *memory
    size_t memory_size                     # of one thread


cdef inline char *of_row(const Batch *b, const Visit *visit, int array, Py_ssize_t i) noexcept nogil:
    return visit.at[array] + i * b.stride[array][b.n_dims - 1] if visit.at[array] else NULL


cdef void gather_share(void *given, const Visit *visit, int share) noexcept nogil:
    """A share of the pieces of a tile."""
    cdef Job *job = <Job *>given
    cdef const Batch *b = &job.walk.batch
    cdef Py_ssize_t i, piece, room = room_for_best(job.k), number = (visit.thread + share) * b.tile_rows
    cdef Gathered *gathered = job.gathered + visit.thread * b.tile_rows * job.n_pieces
    for i in range(visit.n_rows):
        begin_best(job.best + number + i, job.candidates + (number + i) * room, job.k)
    for piece in range(first_of_share(job.n_pieces, share, visit.n_shares),
                       first_of_share(job.n_pieces, share + 1, visit.n_shares)):
        gather_piece(&job.call, visit.at[LOGITS], visit.n_rows, job.label + first_row(b, visit.number), piece,
                     job.best + number, gathered + piece * b.tile_rows,
                     job.memory + (visit.thread + share) * job.memory_size)


cdef void finish_tile(void *given, const Visit *visit, int share) noexcept nogil:
    """What the pieces say of each row of a tile."""
    cdef Job *job = <Job *>given
    cdef const Batch *b = &job.walk.batch
    cdef Py_ssize_t i, piece
    cdef Gathered *gathered = job.gathered + visit.thread * b.tile_rows * job.n_pieces
    cdef Best *best = job.best + visit.thread * b.tile_rows
    cdef const int64_t *label = job.label + first_row(b, visit.number)
    cdef int other
    cdef RowResults to
    to.format = job.format
    for i in range(visit.n_rows):
        for piece in range(1, job.n_pieces if label[i] >= 0 else 1):
            merge_gathered(gathered + i, gathered[piece * b.tile_rows + i], &job.formula.temperature)
        for other in range(1, visit.n_shares):
            merge_best(best + i, best + other * b.tile_rows + i)
        to.logprob = of_row(b, visit, LOGPROB, i)
        to.entropy = of_row(b, visit, ENTROPY, i)
        to.rank = <int64_t *>of_row(b, visit, RANK, i)
        to.top = <int64_t *>of_row(b, visit, TOP, i)
        to.top_logprob = of_row(b, visit, TOP_LOGPROB, i)
        to.value = of_row(b, visit, VALUE, i)
        finish_row(&job.call, of_row(b, visit, LOGITS, i), label[i], gathered + i, best + i, job.sorted, &to)


cdef int run_job(Job *job, int asked_threads) except -1:
    """Once the arrays, the labels and the formula are there."""
    cdef Batch *b = &job.walk.batch
    cdef Py_ssize_t n_classes = job.call.n_classes, tile_rows, n_lists
    cdef Py_ssize_t of_list = room_for_best(job.k) * <Py_ssize_t>sizeof(Candidate)
    cdef bint panel = is_panel(&job.call.layout)
    cdef int n_taken, n_threads
    if b.n_rows == 0:
        return 0
    job.call.formula = &job.formula
    job.call.layout.row_stride = b.stride[LOGITS][b.n_dims - 1]
    job.n_pieces = count_gathered(n_classes)
    with nogil:
        n_taken = threads_for(b, n_classes, job.n_pieces, asked_threads)
    n_threads = max(n_taken, 1)
    tile_rows = TILE if panel or n_classes <= CHUNK else 1
    if panel and job.n_pieces > 1:
        tile_rows //= 2                    # a line of float32 or two: pieces may be shared
    if not panel:
        tile_rows = min(tile_rows, (b.n_rows + 4 * n_threads - 1) // (4 * n_threads))
    if of_list:
        tile_rows = min(tile_rows, LIST_BYTES // of_list)
    set_tiles(b, tile_rows)
    n_lists = b.tile_rows * n_threads
    job.memory_size = piece_memory(&job.call)
    job.walk.job, job.walk.n_steps, job.walk.by_row = job, 0, False
    add_step(&job.walk, gather_share, True)
    add_step(&job.walk, finish_tile, False)
    job.best = NULL
    job.candidates = NULL
    job.gathered = NULL
    job.memory = NULL
    try:
        job.best = <Best *>memory_for(n_lists * sizeof(Best))
        job.candidates = <Candidate *>memory_for(n_lists * of_list)
        job.gathered = <Gathered *>memory_for(n_lists * job.n_pieces * sizeof(Gathered))
        job.memory = <char *>memory_for(n_threads * job.memory_size)
        with nogil:
            take_walk(&job.walk, job.n_pieces, n_threads)
    finally:
        free(job.best)
        free(job.candidates)
        free(job.gathered)
        free(job.memory)
        give_back(n_taken)
    return 0


cdef int begin_job(Job *job, cnp.ndarray logits, int axis, Py_ssize_t k) except -1:
    job.call.n_classes = cnp.PyArray_DIM(logits, axis)
    job.call.layout = Layout(<Format>format_of(logits), is_swapped(logits), cnp.PyArray_STRIDE(logits, axis), 0)
    job.format = FORMAT_F64 if format_of(logits) == FORMAT_F64 else FORMAT_F32
    job.k = k
    job.sorted = True
    job.formula.transform = AS_GIVEN
    set_temperature(&job.formula.temperature, 1, 1)
    begin_batch(&job.walk.batch, logits, axis)
    if job.call.n_classes == 0 and job.walk.batch.n_rows > 0:
        raise ValueError(f"logits has shape {np.shape(logits)}, no classes along axis {axis}; expected at least one")
    return 0


cdef Py_ssize_t checked_k(object k, str name, Py_ssize_t least, Py_ssize_t n_classes) except -1:
    cdef Py_ssize_t number
    number = min(max(checked_index(k, name, "an int"), -1), n_classes + 1)
    if not least <= number <= n_classes:
        raise ValueError(f"{name} is {advice.shown(k)}; "
                         f"expected an int in [{least}, {n_classes}], the number of classes")
    return number


cdef int read_tokens(Job *job, cnp.ndarray tokens, object ignore_index) except -1:
    """The labels of all rows, checked; the caller frees them."""
    cdef Batch rows = job.walk.batch
    cdef Labels labels
    cdef LabelCounts counts = LabelCounts(0, 0)
    cdef Py_ssize_t number, n
    cdef char *at[N_ARRAYS]
    set_labels(&labels, tokens, ignore_index, job.call.n_classes)
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
        ignore_index = checked_index(ignore_index, "ignore_index", "an int or None")
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
    add_array(&job.walk.batch, TOKENS, tokens)
    add_array(&job.walk.batch, LOGPROB, logprob)
    add_array(&job.walk.batch, RANK, rank)
    add_array(&job.walk.batch, ENTROPY, entropy)
    add_array(&job.walk.batch, TOP, top)
    add_array(&job.walk.batch, TOP_LOGPROB, top_logprob)
    sort_dims(&job.walk.batch)
    job.label = <int64_t *>memory_for(job.walk.batch.n_rows * sizeof(int64_t))
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
    add_array(&job.walk.batch, TOP, indices)
    add_array(&job.walk.batch, VALUE, values)
    sort_dims(&job.walk.batch)
    job.label = <int64_t *>memory_for(job.walk.batch.n_rows * sizeof(int64_t))
    for row in range(job.walk.batch.n_rows):
        job.label[row] = 0
    host = enter_environment()
    try:
        if job.k:
            run_job(&job, n_threads)
    finally:
        leave_environment(host)
        free(job.label)
    return values, indices
