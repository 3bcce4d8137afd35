# What a call is about: its arrays, their batch axes merged and cut into tiles, and its formula. A to D of the Design in
# kernels.pyx.

cdef extern from "rows/rows.h" nogil:
    enum: TILE, CHUNK, SCRATCH, FEW_BYTES, APART_BYTES, BAND
    ctypedef enum Kind: CROSS_ENTROPY, FOCAL, MARGIN, NLL, HINGE, SOFTMAX, LOG_SOFTMAX, LOG_SUM_EXP
    ctypedef enum Hinge: ONE_VS_REST, MULTI_MARGIN, CRAMMER_SINGER
    ctypedef enum Transform: AS_GIVEN, SOFTCAP, COSINES
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
        bint streams
    Py_ssize_t scratch_across(Py_ssize_t row_bytes) noexcept
    bint may_stream(const Tile *, Py_ssize_t n_rows) noexcept
    void derive(Formula *, Py_ssize_t n_classes, bint from_labels) noexcept

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

cdef enum:
    # Fewer rows side by side than pay for the lines they share; twice as many, if that are few elements.
    SHORT_AXIS = 8
    SHORT_ELEMENTS = 128

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


cdef void take_longest_inside(Problem *p) noexcept nogil:
    """Rows of a tile are along the innermost batch axis: the nearest may have too few for the lanes of a vector."""
    cdef int dim, longest = p.n_dims - 1
    cdef Py_ssize_t n = p.shape[longest]
    if n >= (2 * SHORT_AXIS if n * p.n_classes < SHORT_ELEMENTS else SHORT_AXIS):
        return
    for dim in range(p.n_dims - 1):
        if p.shape[dim] > p.shape[longest]:
            longest = dim
    swap_dims(p, longest, p.n_dims - 1)


cdef void lay_out(Problem *p) noexcept nogil:
    """Choose the walk, tiles and blocks, once the problem has all its arrays and its formula."""
    cdef Py_ssize_t item = 8 if p.layout[LOGITS].format == FORMAT_F64 else 4, array
    cdef Py_ssize_t class_stride = p.layout[LOGITS].class_stride
    cdef bint few = p.n_classes * item <= FEW_BYTES
    derive(&p.formula, p.n_classes, p.data[TARGETS] != NULL)
    if p.n_dims > 1 and p.n_rows > 0:
        merge_dims(p)
        if few and p.n_dims > 1:
            take_longest_inside(p)
    p.n_dims = max(p.n_dims, 1)
    for array in range(TARGETS):
        p.layout[array].row_stride = p.stride[array][p.n_dims - 1] if p.data[array] else 0

    # Which walk a row takes decides the last bits of its sums: it may depend on how many classes there are and how far
    # apart, which each part of a batch shares with the whole, but not on the rows. Classes that are a cache line apart
    # are taken together with those of other rows.
    p.across = few or class_stride >= LINE or class_stride <= -LINE
    p.across = p.across and (few or not (p.formula.kind == LOG_SUM_EXP and p.data[Q]))
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
    if p.across and p.n_classes * item > APART_BYTES and p.formula.kind != HINGE:
        p.band = <int>max(1, min(BAND, p.n_tiles // 8))
    p.n_blocks = <int>min(BLOCKS, (p.n_tiles + p.band - 1) // p.band)


cdef bint is_weighted(const Problem *p) noexcept nogil:
    """Whether the mean divides by more than the number of rows."""
    return p.data[WEIGHT] or (p.data[TARGETS] and p.formula.class_weight)
