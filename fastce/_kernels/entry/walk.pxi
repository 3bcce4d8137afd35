# What runs where: the tiles of a problem, and the threads that take each through sweep, epilogue, write. C to E, G of
# the Design in kernels.pyx.

cdef extern from "rows/rows.h" nogil:
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
    Py_ssize_t count_pieces(Py_ssize_t n_classes) noexcept
    void *own_staging() noexcept
    double *own_scratches() noexcept
    Pieces *own_pieces() noexcept
    Band *own_band() noexcept
    void count_labels(const Labels *, const char *, Py_ssize_t stride, Py_ssize_t n, LabelCounts *) noexcept
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
    void clear_sums(Sums *) noexcept
    void sum_losses(Sums *, const Tile *, const Rows *) noexcept
    void sum_weights(Sums *, const Rows *, Py_ssize_t n_rows) noexcept
    Pair total_loss(const Sums *) noexcept
    Pair total_weight(const Sums *) noexcept
    double add_pairs(const Pair *, Py_ssize_t n) noexcept
    void add_pair(Pair *, Pair) noexcept

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
    tile.streams = (p.data[GRAD] != NULL and p.data[GRAD] != p.data[LOGITS] and not p.across
                    and may_stream(tile, p.n_rows))
    give_scratches(p, tile)


cdef inline void give_scratches(const Problem *p, Tile *tile) noexcept nogil:
    """The second and third scratch of this thread, or all of a tile across that is too large for the stack."""
    cdef Py_ssize_t row_bytes = p.n_classes * (8 if p.layout[LOGITS].format == FORMAT_F64 else 4)
    tile.second = tile.third = NULL
    if p.across and FEW_BYTES < row_bytes <= APART_BYTES:
        tile.scratch = <double *>own_staging()
        tile.second = tile.scratch + scratch_across(row_bytes)
        tile.third = tile.second + scratch_across(row_bytes)
    elif tile.formula.by_element or p.data[Q] or p.across:
        tile.second = own_scratches()
        tile.third = tile.second + SCRATCH


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
        set_mean_weights(rows, tile.n_rows, p.formula.class_weight if at[TARGETS] else NULL)
    if at[TARGETS] and p.formula.has_terms and p.formula.class_weight:
        replace_weightless(rows, tile.n_rows, &p.formula)


cdef void end_tile(const Problem *p, char **at, const Tile *tile, const Rows *rows, Sums *sums) noexcept nogil:
    cdef Py_ssize_t inner = p.n_dims - 1
    sum_losses(sums, tile, rows)
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
    else:                                  # of use where there are no weights
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
    cdef Py_ssize_t n_pieces = count_pieces(p.n_classes) if may_split(p, check) else 1
    cdef int taken
    if work < GIL_WORK:
        run(p, check, 1, partials)
        return
    with nogil:
        taken = take(n_threads, max(p.n_blocks, n_pieces), work, SERIAL_WORK)
        run(p, check, taken, partials)
        give_back(taken)
