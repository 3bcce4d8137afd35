# What runs where: a problem, its tiles, and the threads that take each through sweep, epilogue, write. A to E, G of the
# Design in kernels.pyx.

cdef extern from "rows/rows.h" nogil:
    enum: TILE, CHUNK, SCRATCH, FEW_BYTES, BAND
    ctypedef enum Kind: CROSS_ENTROPY, FOCAL, MARGIN, NLL, HINGE, SOFTMAX, LOG_SOFTMAX, LOG_SUM_EXP
    ctypedef enum Hinge: ONE_VS_REST, MULTI_MARGIN, CRAMMER_SINGER
    ctypedef enum Transform: AS_GIVEN, SOFTCAP, COSINES
    ctypedef struct Layout:
        Format format
        bint swapped
        Py_ssize_t class_stride, row_stride
    ctypedef struct Temperature:
        double factor, divisor
    ctypedef struct Formula:
        Kind kind
        Temperature temperature
        Transform transform
        double softcap
        Temperature half_cap
        bint has_terms, by_element
        double smoothing, even, share, label_share
        const double *class_weight
        const void *term_weight
        bint weights_positive
        double total_weight
        Py_ssize_t heaviest
        double z_loss, gamma, scale, margin1, margin2, margin3, normalizer
        Hinge hinge
        int power
        double margin
    ctypedef struct Tile:
        Py_ssize_t n_rows, n_classes
        const Formula *formula
        const char *logits
        const char *q
        char *grad
        char *hess
        Layout logits_layout, q_layout, grad_layout, hess_layout
        double *scratch
        double *second
        double *third
        void *staging
    ctypedef struct Labels:
        int size
        bint is_signed, swapped, has_ignore
        int64_t ignore_index, n_classes
    ctypedef struct LabelCounts:
        int64_t used, bad
    ctypedef struct Pieces:
        pass
    ctypedef struct Rows:
        int64_t label[1]
        bint weighted
        double sample[1]
        double loss[1]
        double sign[1]
        Pieces *pieces
    ctypedef struct Band:
        Tile tile[1]
        Rows rows[1]
    ctypedef struct Sums:
        pass
    ctypedef struct Pair:
        double sum, error
    void derive(Formula *, Py_ssize_t n_classes, bint from_labels) noexcept
    Py_ssize_t count_pieces(Py_ssize_t n_classes) noexcept
    void *own_staging() noexcept
    double *own_scratches() noexcept
    Pieces *own_pieces() noexcept
    Band *own_band() noexcept
    void count_labels(const Labels *, const char *, Py_ssize_t stride, Py_ssize_t n, LabelCounts *) noexcept
    void read_labels(const Labels *, const char *, Py_ssize_t stride, Py_ssize_t n, int64_t *, LabelCounts *) noexcept
    void read_weights(Format, bint swapped, const char *, Py_ssize_t stride, Py_ssize_t n, double *) noexcept
    void fill_weights(Rows *, Py_ssize_t n) noexcept
    void set_mean_weights(Rows *, Py_ssize_t n, const double *class_weight) noexcept
    void replace_weightless(Rows *, Py_ssize_t n, const Formula *) noexcept
    void put_losses(const double *, Py_ssize_t n, Format, Py_ssize_t stride, char *) noexcept
    void run_tile(const Tile *, Rows *, bint across) noexcept
    void run_band(Band *, Py_ssize_t n_tiles) noexcept
    void read_given(const Tile *, Rows *) noexcept
    void begin_long_row(const Tile *, Rows *) noexcept
    void sweep_piece(const Tile *, Rows *, Py_ssize_t piece) noexcept
    bint combine_pieces(const Tile *, Rows *) noexcept
    void epilogue(const Tile *, Rows *) noexcept
    void begin_parts(const Tile *, Rows *) noexcept
    void sweep_part(const Tile *, Rows *, Py_ssize_t start, Py_ssize_t end) noexcept
    void finish_parts(const Tile *, Rows *) noexcept
    void write_part(const Tile *, const Rows *, Py_ssize_t start, Py_ssize_t end) noexcept
    void write_piece(const Tile *, const Rows *, Py_ssize_t piece) noexcept
    void write_target(const Tile *, const Rows *) noexcept
    void clear_sums(Sums *) noexcept
    void sum_losses(Sums *, const Rows *, Py_ssize_t n_rows) noexcept
    void sum_weights(Sums *, const Rows *, Py_ssize_t n_rows) noexcept
    Pair total_loss(const Sums *) noexcept
    Pair total_weight(const Sums *) noexcept
    double add_pairs(const Pair *, Py_ssize_t n) noexcept
    void add_pair(Pair *, Pair) noexcept

cdef enum:
    MAX_DIMS = 64
    BLOCKS = 64
    ROW_WORK = 8                           # what a row costs besides its classes, in classes
    SERIAL_WORK = 32768
    GIL_WORK = 4096
    LINE = 64                              # bytes

# The arrays of a call, as indices. TARGETS: labels; Q: target distributions, or the factors of exps.
cdef enum:
    LOGITS, Q, GRAD, HESS, TARGETS, WEIGHT, LOSS, SIGN, N_ARRAYS

cdef struct Problem:
    Py_ssize_t n_rows, n_classes
    bint across                            # rows lie across the lanes of a vector, else along it
    int n_dims                             # of the merged batch, at least 1
    Py_ssize_t shape[MAX_DIMS]             # outermost first
    char *data[N_ARRAYS]                   # NULL: not part of this call
    Py_ssize_t stride[N_ARRAYS][MAX_DIMS]  # bytes
    Layout layout[TARGETS]                 # of the arrays that have a class axis
    Labels labels
    Format weight_format, loss_format
    bint weight_swapped
    Formula formula
    Py_ssize_t tile_rows, tiles_in_inner, n_tiles
    int band                               # tiles that pass together
    int n_blocks
    bint sums_weights                      # what the mean divides by is more than the number of rows, and not known yet

cdef struct Partials:                      # one entry per block
    Pair loss[BLOCKS]
    Pair weight[BLOCKS]
    LabelCounts counts[BLOCKS]


# ---- Tiles -------------------------------------------------------------------------------------

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


cdef void begin_tiles(const Problem *p, double *scratch, Tile *tile) noexcept nogil:
    """What all tiles have in common."""
    tile.n_classes = p.n_classes
    tile.formula = &p.formula
    tile.logits_layout = p.layout[LOGITS]
    tile.q_layout = p.layout[Q]
    tile.grad_layout = p.layout[GRAD]
    tile.hess_layout = p.layout[HESS]
    tile.scratch = scratch
    tile.staging = NULL
    give_scratches(p, tile)


cdef inline void give_scratches(const Problem *p, Tile *tile) noexcept nogil:
    """The second and third scratch of this thread."""
    tile.second = tile.third = NULL
    if tile.formula.by_element or p.data[Q] or p.across:
        tile.second = own_scratches()
        tile.third = tile.second + SCRATCH


cdef bint is_weighted(const Problem *p) noexcept nogil:
    """Whether the mean divides by more than the number of rows."""
    return p.data[WEIGHT] or (p.data[TARGETS] and p.formula.class_weight)


cdef void begin_rows(const Problem *p, Rows *rows) noexcept nogil:
    """What all rows have in common: a weight where none are given, a label where all classes are targets."""
    cdef Py_ssize_t n_rows = min(p.tile_rows, p.n_rows), i
    fill_weights(rows, n_rows)
    rows.weighted = is_weighted(p)
    rows.pieces = NULL
    if p.n_classes > CHUNK and not p.across:
        rows.pieces = own_pieces()
    if not p.data[TARGETS]:
        for i in range(n_rows):
            rows.label[i] = 0


cdef void begin_tile(const Problem *p, Py_ssize_t number, char **at, Tile *tile, Rows *rows,
                     LabelCounts *counts) noexcept nogil:
    """Fill in where the tile is, its rows' labels and, if there are any, weights."""
    cdef Py_ssize_t inner = p.n_dims - 1
    tile.n_rows = locate(p, number, at)
    tile.logits = at[LOGITS]
    tile.q = at[Q]
    tile.grad = at[GRAD]
    tile.hess = at[HESS]
    if at[TARGETS]:
        read_labels(&p.labels, at[TARGETS], p.stride[TARGETS][inner], tile.n_rows, rows.label, counts)
    else:
        counts.used += tile.n_rows
    if at[WEIGHT]:
        read_weights(p.weight_format, p.weight_swapped, at[WEIGHT], p.stride[WEIGHT][inner], tile.n_rows, rows.sample)
    if is_weighted(p):
        set_mean_weights(rows, tile.n_rows, p.formula.class_weight if at[TARGETS] and p.n_classes else NULL)
    if at[TARGETS] and p.formula.has_terms and p.formula.class_weight:
        replace_weightless(rows, tile.n_rows, &p.formula)


cdef void end_tile(const Problem *p, char **at, const Tile *tile, const Rows *rows, Sums *sums) noexcept nogil:
    cdef Py_ssize_t inner = p.n_dims - 1
    sum_losses(sums, rows, tile.n_rows)
    if p.sums_weights:
        sum_weights(sums, rows, tile.n_rows)
    if at[LOSS]:
        put_losses(rows.loss, tile.n_rows, p.loss_format, p.stride[LOSS][inner], at[LOSS])
    if at[SIGN]:
        put_losses(rows.sign, tile.n_rows, p.loss_format, p.stride[SIGN][inner], at[SIGN])


# ---- Blocks and threads ------------------------------------------------------------------------

cdef void begin_block(Partials *partials, int block, Sums *sums) noexcept nogil:
    clear_sums(sums)
    partials.counts[block].used = partials.counts[block].bad = 0


cdef void end_block(const Problem *p, Partials *partials, int block, const Sums *sums) noexcept nogil:
    partials.loss[block] = total_loss(sums)
    if p.sums_weights:
        partials.weight[block] = total_weight(sums)
    else:
        partials.weight[block] = Pair(partials.counts[block].used, 0)


cdef void run_bands(const Problem *p, int block, const Tile *tile, LabelCounts *counts, Sums *sums) noexcept nogil:
    """The tiles of a block of many classes across, a band at a time."""
    cdef Band *band = own_band()
    cdef char *at[BAND][N_ARRAYS]
    cdef Py_ssize_t number = p.n_tiles * block // p.n_blocks, end = p.n_tiles * (block + 1) // p.n_blocks, k, n
    for k in range(p.band):
        band.tile[k] = tile[0]
        begin_rows(p, &band.rows[k])
    while number < end:
        n = min(p.band, end - number)
        for k in range(n):
            begin_tile(p, number + k, at[k], &band.tile[k], &band.rows[k], counts)
        run_band(band, n)
        for k in range(n):
            end_tile(p, at[k], &band.tile[k], &band.rows[k], sums)
        number += n


cdef void run_block(const Problem *p, int block, bint check, Partials *partials) noexcept nogil:
    """The tiles of a block; with `check` their labels and weights alone."""
    cdef double[SCRATCH] scratch
    cdef char *at[N_ARRAYS]
    cdef Tile tile
    cdef Rows rows
    cdef Sums sums
    cdef Py_ssize_t number, row, first = p.n_tiles * block // p.n_blocks, end = p.n_tiles * (block + 1) // p.n_blocks
    begin_block(partials, block, &sums)
    begin_rows(p, &rows)
    if check and p.data[TARGETS] and p.n_dims == 1 and not p.sums_weights:
        row = first * p.tile_rows
        count_labels(&p.labels, p.data[TARGETS] + row * p.stride[TARGETS][0], p.stride[TARGETS][0],
                     min(end * p.tile_rows, p.n_rows) - row, &partials.counts[block])
    elif check:
        for number in range(first, end):
            begin_tile(p, number, at, &tile, &rows, &partials.counts[block])
            if p.sums_weights:
                sum_weights(&sums, &rows, tile.n_rows)
    else:
        begin_tiles(p, scratch, &tile)
        if p.data[GRAD] and not p.across and p.n_classes > CHUNK:
            tile.staging = own_staging()
        if p.band > 1:
            run_bands(p, block, &tile, &partials.counts[block], &sums)
            first = end
        for number in range(first, end):
            begin_tile(p, number, at, &tile, &rows, &partials.counts[block])
            run_tile(&tile, &rows, p.across)
            end_tile(p, at, &tile, &rows, &sums)
    end_block(p, partials, block, &sums)


cdef void run_block_elsewhere(const Problem *p, int block, bint check, Partials *partials) noexcept nogil:
    """On a thread with an environment of its own."""
    cdef Environment host = enter_environment()
    run_block(p, block, check, partials)
    leave_environment(host)


cdef void run_piece(const Problem *p, const Tile *shared, Rows *rows, Py_ssize_t piece, bint writes) noexcept nogil:
    """Sweep or write one piece of the only row of a tile, in scratches of its own."""
    cdef Environment host = enter_environment()
    cdef double[SCRATCH] scratch
    cdef Tile tile = shared[0]
    tile.scratch = scratch
    give_scratches(p, &tile)
    if writes:
        write_piece(&tile, rows, piece)
    else:
        sweep_piece(&tile, rows, piece)
    leave_environment(host)


cdef void run_split(const Problem *p, int n_threads, Partials *partials) noexcept nogil:
    """What run_block does for every block, with the pieces of each row shared between the threads."""
    cdef char *at[N_ARRAYS]
    cdef Tile tile
    cdef Rows rows
    cdef Sums sums
    cdef Py_ssize_t number, piece, n_pieces = count_pieces(p.n_classes)
    cdef int block
    n_threads = <int>min(n_threads, n_pieces)
    begin_tiles(p, NULL, &tile)                # each piece has a scratch of its own, and its threads share no staging
    begin_rows(p, &rows)
    for block in range(p.n_blocks):
        begin_block(partials, block, &sums)
        for number in range(p.n_tiles * block // p.n_blocks, p.n_tiles * (block + 1) // p.n_blocks):
            begin_tile(p, number, at, &tile, &rows, &partials.counts[block])
            if rows.label[0] >= 0:
                if p.formula.kind == MARGIN:
                    read_given(&tile, &rows)
                begin_long_row(&tile, &rows)
                while True:
                    for piece in prange(n_pieces, schedule="static", num_threads=n_threads):
                        run_piece(p, &tile, &rows, piece, False)
                    if not combine_pieces(&tile, &rows):
                        break
            epilogue(&tile, &rows)
            if tile.grad:
                for piece in prange(n_pieces, schedule="static", num_threads=n_threads):
                    run_piece(p, &tile, &rows, piece, True)
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
            run_block_elsewhere(p, block, check, partials)


cdef inline bint may_split(const Problem *p, bint check) noexcept nogil:
    return not check and not p.across and p.n_classes > CHUNK and p.formula.kind != NLL


cdef void run(const Problem *p, bint check, int n_threads, Partials *partials) noexcept nogil:
    """Fill in the partials: of the labels and weights alone (check), or of the whole job."""
    cdef bint uneven = n_threads > 1 and p.n_rows < 4 * <int64_t>n_threads and p.n_rows % n_threads
    if uneven and may_split(p, check):
        run_split(p, n_threads, partials)
    else:
        run_blocks(p, check, n_threads, partials)


cdef void run_releasing_gil(const Problem *p, bint check, int n_threads, Partials *partials):
    cdef Py_ssize_t work = p.n_rows if check else p.n_rows * (p.n_classes + ROW_WORK)
    cdef int taken
    if work < GIL_WORK:
        run(p, check, 1, partials)
    elif work < SERIAL_WORK:
        with nogil:
            run(p, check, 1, partials)
    else:
        with nogil:
            taken = take(n_threads, <int>max(p.n_blocks, count_pieces(p.n_classes) if may_split(p, check) else 1))
            run(p, check, taken, partials)
            give_back(taken)


# ---- From arrays to a problem ------------------------------------------------------------------

cdef void begin_problem(Problem *p, Kind kind) noexcept:
    """A problem without arrays, of a formula without options."""
    cdef int k
    for k in range(N_ARRAYS):
        p.data[k] = NULL
    p.formula.kind = kind
    p.formula.temperature.factor = p.formula.temperature.divisor = 1
    p.formula.transform = AS_GIVEN
    p.formula.has_terms = p.formula.by_element = False
    p.formula.smoothing = p.formula.z_loss = 0
    p.formula.class_weight = NULL
    p.formula.term_weight = NULL
    p.formula.normalizer = 1
    p.sums_weights = False


cdef int add_operand(Problem *p, int number, cnp.ndarray a, int axis) except -1:
    """An array of the call; `axis`, of the logits, is its class axis if it has one. The logits come first."""
    cdef int n_dims = cnp.PyArray_NDIM(a), dim, k = 0
    p.data[number] = <char *>cnp.PyArray_DATA(a)
    for dim in range(n_dims):
        if dim != axis or number >= TARGETS:
            p.stride[number][k] = cnp.PyArray_STRIDE(a, dim)
            k += 1
    if k == 0:
        p.stride[number][0] = 0
    if number < TARGETS:
        p.layout[number] = Layout(<Format>format_of(a), is_swapped(a), cnp.PyArray_STRIDE(a, axis), 0)
    return 0


cdef int add_logits(Problem *p, cnp.ndarray logits, int axis) except -1:
    """The logits, and with them the shape of the batch and of the classes."""
    cdef int n_dims = cnp.PyArray_NDIM(logits), dim, k = 0
    p.n_rows = 1
    p.n_dims = n_dims - 1
    p.n_classes = cnp.PyArray_DIM(logits, axis)
    for dim in range(n_dims):
        if dim != axis:
            p.shape[k] = cnp.PyArray_DIM(logits, dim)
            p.n_rows *= p.shape[k]
            k += 1
    if p.n_dims == 0:
        p.shape[0] = 1
    return add_operand(p, LOGITS, logits, axis)


cdef int add_weights(Problem *p, cnp.ndarray weight) except -1:
    p.weight_format = <Format>format_of(weight)
    p.weight_swapped = is_swapped(weight)
    return add_operand(p, WEIGHT, weight, -1)


cdef int add_losses(Problem *p, cnp.ndarray loss) except -1:
    p.loss_format = <Format>format_of(loss)
    return add_operand(p, LOSS, loss, -1)


cdef inline Py_ssize_t sort_key(Py_ssize_t stride) noexcept nogil:
    """Outermost first: broadcast axes, then by distance."""
    cdef Py_ssize_t furthest = (<size_t>-1) >> 1
    return furthest if stride == 0 else stride if stride > 0 else -stride


cdef inline void swap_dims(Problem *p, int i, int j) noexcept nogil:
    cdef int array
    p.shape[i], p.shape[j] = p.shape[j], p.shape[i]
    for array in range(N_ARRAYS):
        if p.data[array]:
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
            if p.data[array]:
                p.stride[array][kept - 1] = p.stride[array][i]
    p.n_dims = kept


cdef void lay_out(Problem *p) noexcept nogil:
    """Choose the walk, tiles and blocks, once the problem has all its arrays and its formula."""
    cdef Py_ssize_t item = 8 if p.layout[LOGITS].format == FORMAT_F64 else 4, array
    cdef Py_ssize_t class_stride = p.layout[LOGITS].class_stride
    cdef bint few = p.n_classes * item <= FEW_BYTES
    derive(&p.formula, p.n_classes, p.data[TARGETS] != NULL)
    if p.n_dims > 1 and p.n_rows > 0:
        merge_dims(p)
    p.n_dims = max(p.n_dims, 1)
    for array in range(TARGETS):
        p.layout[array].row_stride = p.stride[array][p.n_dims - 1] if p.data[array] else 0

    # Which walk a row takes decides the last bits of its sums: it may depend on how many classes there are and how far
    # apart, which each part of a batch shares with the whole, but not on the rows. Classes that are a cache line apart
    # are taken together with those of other rows.
    p.across = few or class_stride >= LINE or class_stride <= -LINE
    p.across = p.across and not (p.formula.kind == LOG_SUM_EXP and p.data[Q])
    p.tile_rows = TILE
    if not p.across and p.n_classes > CHUNK:
        p.tile_rows = 1
    elif not p.across and (p.data[GRAD] or p.formula.by_element or p.data[Q]):
        p.tile_rows = max(1, min(TILE, CHUNK // p.n_classes))
    elif not p.across:
        p.tile_rows = max(1, min(TILE, p.n_rows // 8))
    elif not few and p.n_rows < 8 * TILE:
        p.tile_rows = TILE // 4            # narrow tiles, so that there is one for each thread
    p.tiles_in_inner = (p.shape[p.n_dims - 1] + p.tile_rows - 1) // p.tile_rows
    p.n_tiles = 0
    if p.n_rows > 0:
        p.n_tiles = p.n_rows // p.shape[p.n_dims - 1] * p.tiles_in_inner
    p.band = 1
    if p.across and not few and p.formula.kind != HINGE:
        p.band = <int>max(1, min(BAND, p.n_tiles // 8))
    p.n_blocks = <int>min(BLOCKS, (p.n_tiles + p.band - 1) // p.band)
