# A part of scoring.pyx: draws from rows.

cdef struct Draws:
    Walk walk
    Sampling call
    Py_ssize_t n_draws
    Format format                          # of the logarithms
    Py_ssize_t item                        # bytes of a real
    Sampled *row                           # for each thread
    char *memory                           # rows that are copied, for each thread
    size_t memory_size
    double *logprob                        # n_draws for each thread


cdef inline const char *sampled_row(const Draws *job, const Visit *visit) noexcept nogil:
    if job.memory_size:
        return job.memory + visit.thread * job.memory_size + visit.row * job.call.n_classes * job.item
    return visit.at[LOGITS] + visit.row * job.call.layout.row_stride


cdef void copy_rows(void *given, const Visit *visit, int share) noexcept nogil:
    """The rows of a tile, one after the other."""
    cdef Draws *job = <Draws *>given
    if visit.row == 0 and job.memory_size:
        contiguous_rows(&job.call, visit.at[LOGITS], visit.n_rows, job.memory + visit.thread * job.memory_size)


cdef void look_at_share(void *given, const Visit *visit, int share) noexcept nogil:
    """A share of the blocks of a row, whose candidates go into a list of its own."""
    cdef Draws *job = <Draws *>given
    cdef Py_ssize_t n = count_blocks(job.call.n_classes)
    cdef Sampled *mine = job.row + visit.thread + share
    begin_best(&mine.best, mine.list, job.call.top_k)
    mine.is_nan = 0
    look_at_blocks(&job.call, sampled_row(job, visit), first_of_share(n, share, visit.n_shares),
                   first_of_share(n, share + 1, visit.n_shares), job.row + visit.thread, &mine.best, &mine.is_nan)


cdef void join_shares(void *given, const Visit *visit, int share) noexcept nogil:
    cdef Draws *job = <Draws *>given
    cdef Sampled *row = job.row + visit.thread
    cdef int other
    for other in range(1, visit.n_shares):
        merge_best(&row.best, &row[other].best)
        row.is_nan |= row[other].is_nan
    conclude_blocks(&job.call, sampled_row(job, visit), row)


cdef void collect_share(void *given, const Visit *visit, int share) noexcept nogil:
    """The candidates of a share of the blocks, into the row's list where nobody else writes."""
    cdef Draws *job = <Draws *>given
    cdef Sampled *row = job.row + visit.thread
    cdef Py_ssize_t n = count_blocks(job.call.n_classes), first = first_of_share(n, share, visit.n_shares)
    row[share].n = 0
    if row.m == row.m:
        row[share].n = collect(&job.call, sampled_row(job, visit), first, first_of_share(n, share + 1, visit.n_shares),
                               row, row.list + first * BLOCK)


cdef void join_lists(void *given, const Visit *visit, int share) noexcept nogil:
    cdef Draws *job = <Draws *>given
    cdef Sampled *row = job.row + visit.thread
    cdef Py_ssize_t n = count_blocks(job.call.n_classes)
    cdef int other
    for other in range(1, visit.n_shares):
        memmove(row.list + row.n, row.list + first_of_share(n, other, visit.n_shares) * BLOCK,
                row[other].n * <Py_ssize_t>sizeof(Candidate))
        row.n += row[other].n


cdef void draw_tokens(void *given, const Visit *visit, int share) noexcept nogil:
    cdef Draws *job = <Draws *>given
    cdef const Batch *b = &job.walk.batch
    cdef double *logprob = job.logprob + visit.thread * job.n_draws
    cdef char *to = of_row(b, visit, LOGPROB, visit.row)
    cdef Py_ssize_t n
    draw(&job.call, sampled_row(job, visit), job.row + visit.thread, (<uint64_t *>of_row(b, visit, KEYS, visit.row))[0],
         job.n_draws, <int64_t *>of_row(b, visit, TOKENS, visit.row), logprob)
    for n in range(job.n_draws):
        if job.format == FORMAT_F64:
            (<double *>to)[n] = logprob[n]
        else:
            (<float *>to)[n] = <float>logprob[n]


cdef int run_draws(Draws *job, int asked_threads) except -1:
    cdef Batch *b = &job.walk.batch
    cdef Py_ssize_t n_classes = job.call.n_classes, n_blocks = count_blocks(n_classes), tile_rows = 1
    cdef Py_ssize_t n_reals = 4 * n_blocks, n_candidates = 0
    cdef int n_taken, n_threads, thread
    cdef double *reals = NULL
    cdef Candidate *lists = NULL
    if b.n_rows == 0:
        return 0
    job.item = 8 if job.format == FORMAT_F64 else 4
    job.call.layout.row_stride = b.stride[LOGITS][b.n_dims - 1]
    with nogil:
        n_taken = threads_for(b, n_classes, count_pieces(n_classes), asked_threads)
    n_threads = max(n_taken, 1)
    if is_panel(&job.call.layout):
        tile_rows = min(PANEL, ROWS_BYTES // (n_classes * job.item))
    set_tiles(b, tile_rows)
    if is_filtered(&job.call) and not job.call.greedy:
        n_candidates = max(n_classes, room_for_best(job.call.top_k))
    job.memory_size = 0
    if not is_in_place(&job.call):
        job.memory_size = (b.tile_rows * n_classes * job.item + 127) & ~<size_t>63
    job.walk.job, job.walk.n_steps, job.walk.by_row = job, 0, True
    add_step(&job.walk, copy_rows, False)
    add_step(&job.walk, look_at_share, True)
    add_step(&job.walk, join_shares, False)
    if n_candidates:
        add_step(&job.walk, collect_share, True)
        add_step(&job.walk, join_lists, False)
    add_step(&job.walk, draw_tokens, False)
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
            job.row[thread].anchor = job.row[thread].max + n_blocks
            job.row[thread].sum = job.row[thread].anchor + n_blocks
            job.row[thread].weight = job.row[thread].sum + n_blocks
            job.row[thread].list = lists + thread * n_candidates
        with nogil:
            take_walk(&job.walk, count_pieces(n_classes), n_threads)
    finally:
        free(job.row)
        free(job.memory)
        free(job.logprob)
        free(reals)
        free(lists)
        give_back(n_taken)
    return 0


cdef object drawn_keys(object rng, tuple shape):
    """64 bits for each row, in C order: rng.integers' own, which takes ten microseconds to begin."""
    cdef cnp.ndarray keys = np.empty(shape, np.uint64)
    cdef uint64_t *key = <uint64_t *>cnp.PyArray_DATA(keys)
    cdef bitgen_t *source = <bitgen_t *>PyCapsule_GetPointer(rng.bit_generator.capsule, "BitGenerator")
    cdef Py_ssize_t i
    with rng.bit_generator.lock:
        for i in range(cnp.PyArray_SIZE(keys)):
            key[i] = source.next_uint64(source.state)
    return keys


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
        raise ValueError(f"temperature is {advice.shown(temperature)}; expected 0 or a number in [1e-18, 1e+18]")
    job.call.top_p = 1 if top_p is None else checked_number(top_p, "top_p", 0, 1)
    job.call.min_p = 0 if min_p is None else checked_number(min_p, "min_p", 0, 1)
    job.call.top_k = 0
    if top_k is not None:
        top_k = checked_index(top_k, "top_k", "an int or None")
        if top_k < 1:
            raise ValueError(f"top_k is {advice.shown(top_k)}; expected an int of at least 1, or None for all classes")
        if top_k < job.call.n_classes:
            job.call.top_k = top_k
    if job.call.greedy:
        job.call.top_k, job.call.top_p, job.call.min_p = 0, 1, 0
    begin_batch(&job.walk.batch, logits, axis)
    if job.call.n_classes == 0 and job.walk.batch.n_rows > 0:
        raise ValueError(f"logits has shape {np.shape(logits)}, no classes along axis {axis}; expected at least one")

    shape = np.shape(logits)
    shape = shape[:axis] + shape[axis + 1:]
    keys = drawn_keys(rng, shape)
    job.format = FORMAT_F64 if format_of(logits) == FORMAT_F64 else FORMAT_F32
    tokens = np.empty(shape + size, np.int64)
    logprobs = np.empty(shape + size, np.float64 if job.format == FORMAT_F64 else np.float32)
    job.n_draws = 1
    for n in size:
        job.n_draws *= n
    add_array(&job.walk.batch, KEYS, keys)
    add_array(&job.walk.batch, TOKENS, tokens)
    add_array(&job.walk.batch, LOGPROB, logprobs)
    sort_dims(&job.walk.batch)
    host = enter_environment()
    try:
        set_temperature(&job.call.temperature, 1, 1 if job.call.greedy else divisor)
        if job.n_draws:
            run_draws(&job, n_threads)
    finally:
        leave_environment(host)
    return tokens, logprobs
