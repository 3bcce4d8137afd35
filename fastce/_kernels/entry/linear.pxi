# A linear layer and the loss of its logits: what runs where. A part of kernels.pyx; linear/ has the products.
#
# A batch is `LinearRows`: targets, weights and options of its rows, checked once, for any number of evaluations. Its
# logits are planes in the cache of a thread (`of_dense`), one block of rows at a time that others have multiplied
# (`of_block`), or those of sparse rows (`of_sparse`). Blocks of rows, and with them every sum, depend on the shapes alone.

cdef extern from "linear/linear.h" nogil:
    enum: LANES_F64
    ctypedef struct Linear:
        const char *x
        Format format
        bint swapped
        Py_ssize_t row_stride, feature_stride, n_features, padded, n_columns
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
    void put_input_grad(bint is_f64, const Linear *, Py_ssize_t n_rows, const void *g, void *rows, const Layout *to,
                        bint accumulate, char *array) noexcept
    void put_sums(bint is_f64, const Linear *, const double *sums, Py_ssize_t block_stride, Py_ssize_t n_blocks,
                  const Layout *to, bint accumulate, char *array) noexcept
    void put_bias_sums(Py_ssize_t n_columns, const double *sums, Py_ssize_t block_stride, Py_ssize_t n_blocks,
                       const Layout *to, bint accumulate, char *array) noexcept
    void pack_weights(bint is_f64, const Linear *, const char *w, const Layout *source, void *dst) noexcept
    void hessian_tile(bint is_f64, const void *p, Py_ssize_t n_columns, bint binary, Py_ssize_t n_rows,
                      const double *sample, double scale, void *t) noexcept

cdef enum:
    SUM_BYTES = 1 << 22                    # of all blocks' gradients of the weights, if there are more than LEAST_BLOCKS
    LEAST_BLOCKS = 16

# What a walk over dense rows is to give.
cdef struct DenseCall:
    Linear l, direction                    # direction: of a Hessian's product, in place of the weights
    bint is_f64, binary, with_hessian, accumulate
    double scale                           # of the Hessian
    double *weight_sums                    # NULL: not wanted
    double *bias_sums
    char *input_grad
    Layout input_layout
    Py_ssize_t sum_size, bias_size         # doubles of a block
    char *workspace
    Py_ssize_t plane_bytes, row_bytes, workspace_bytes


cdef void run_dense_block(const Problem *p, const DenseCall *call, int block, char *workspace,
                          Partials *partials) noexcept nogil:
    cdef Environment host = enter_environment()
    cdef double[SCRATCH] scratch
    cdef char *at[N_ARRAYS]
    cdef Tile tile = tile_of(p, scratch)
    cdef Rows rows
    cdef Sums sums
    cdef Features x
    cdef Py_ssize_t number, first, offset = call.plane_bytes if call.binary else 0
    cdef char *packed = workspace
    cdef char *input_grad = packed + call.row_bytes
    cdef char *planes = input_grad + (call.row_bytes if call.input_grad else 0)
    cdef char *other = planes + p.n_classes * call.plane_bytes
    cdef char *g = other if call.with_hessian else planes + offset
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
            hessian_tile(call.is_f64, planes, call.l.n_columns, call.binary, tile.n_rows, rows.sample, call.scale, other)
        if call.weight_sums:
            add_weight_grad(call.is_f64, &call.l, &x, tile.n_rows, g, call.weight_sums + block * call.sum_size)
        if call.bias_sums:
            add_bias_grad(call.is_f64, call.l.n_columns, tile.n_rows, g, call.bias_sums + block * call.bias_size)
        if call.input_grad:
            put_input_grad(call.is_f64, &call.l, tile.n_rows, g, input_grad, &call.input_layout, call.accumulate,
                           call.input_grad + first * call.input_layout.row_stride)
        if not call.with_hessian:
            end_tile(p, at, &tile, &rows, &sums)
    end_block(p, partials, block, &sums)
    leave_environment(host)


cdef void run_dense(const Problem *p, const DenseCall *call, int n_threads, Partials *partials) noexcept nogil:
    cdef int block
    for block in prange(p.n_blocks, schedule="static", num_threads=n_threads):
        run_dense_block(p, call, block, call.workspace + threadid() * call.workspace_bytes, partials)


cdef Layout layout_of(cnp.ndarray a) except *:
    """Of an array of rows of classes or features, or of one number for each class."""
    cdef int last = cnp.PyArray_NDIM(a) - 1
    return Layout(<Format>format_of(a), is_swapped(a), cnp.PyArray_STRIDE(a, last),
                  cnp.PyArray_STRIDE(a, 0) if last else 0)


cdef class LinearRows:
    """Targets, weights and options of rows whose logits are products, (N, C) in all; N alone where there is one row."""

    cdef Problem p
    cdef object target, weight, sample_weight, ignore_index, losses, virtual
    cdef ClassWeight class_weight
    cdef int reduction, n_threads
    cdef bint is_f64, has_normalizer
    cdef double normalizer
    cdef Pair total
    cdef readonly double denominator       # of the mean; 1 for a sum

    def __init__(self, shape, dtype, given_target, given_weight, given_sample_weight, ignore_index, label_smoothing,
                 z_loss, temperature, softcap, given_reduction, given_normalizer, given_n_threads):
        cdef Problem *p = &self.p
        cdef bint are_labels = True
        cdef int axis = len(shape) - 1
        begin_problem(p, CROSS_ENTROPY)
        set_options(&p.formula, label_smoothing, z_loss, temperature, softcap)
        self.reduction = reduction_of(given_reduction)
        self.normalizer = checked_normalizer(given_normalizer, self.reduction)
        self.has_normalizer = given_normalizer is not None
        self.n_threads = checked_n_threads(given_n_threads)
        if ignore_index is not None:
            ignore_index = checked_index(ignore_index, "ignore_index", "an int or None")
        self.ignore_index = ignore_index
        target = as_targets(given_target, &are_labels)
        if given_weight is not None:
            self.class_weight = ClassWeight.of(given_weight)
        if given_sample_weight is not None:
            self.sample_weight = as_floats(given_sample_weight, "sample_weight")
        self.virtual = np.broadcast_to(np.zeros((), dtype), shape)    # logits that nobody holds, for what is checked
        self.is_f64 = dtype == np.float64
        if shape[axis] == 0 and self.virtual.size == 0 and np.prod(shape[:axis]) > 0:
            raise ValueError(f"linear_weight has no rows: there are no classes; expected at least one")
        if are_labels:
            check_batch_shape(target, "target", self.virtual, axis)
            target = target.reshape(-1)
        else:
            check_distributions(target, self.virtual, ignore_index)
            target = target.reshape(-1, shape[axis])
            p.formula.has_terms = True
        self.target = target
        add_logits(p, self.virtual.reshape(-1, shape[axis]), 1)
        if are_labels:
            set_labels(&p.labels, target, ignore_index, p.n_classes)
            add_operand(p, TARGETS, target, -1)
        else:
            add_operand(p, Q, target, 1)
        if self.class_weight is not None:
            self.class_weight.add_to(&p.formula, self.virtual, p.n_classes)
        if self.sample_weight is not None:
            if format_of(self.sample_weight) > FORMAT_F32:
                with np.errstate(invalid="ignore"):
                    self.sample_weight = self.sample_weight.astype(np.float32)
            check_batch_shape(self.sample_weight, "sample_weight", self.virtual, axis)
            self.sample_weight = self.sample_weight.reshape(-1)
            add_weights(p, self.sample_weight)
        if self.reduction == NONE:
            self.losses = np.empty(shape[:axis], np.float64 if self.is_f64 else np.float32)
            add_losses(p, self.losses.reshape(-1))
        p.formula.by_element = p.formula.transform != AS_GIVEN
        self.denominator = 1

    cdef int lay_out_planes(self, Problem *p) except -1:
        """Logits, and what is written in their place, in planes of a tile."""
        cdef Py_ssize_t item = 8 if self.is_f64 else 4
        p.layout[LOGITS] = Layout(FORMAT_F64 if self.is_f64 else FORMAT_F32, False, TILE * item, item)
        p.stride[LOGITS][0] = item
        if p.data[GRAD]:
            p.layout[GRAD] = p.layout[LOGITS]
            p.stride[GRAD][0] = item
        lay_out(p)
        return 0

    def check(self):
        """All labels, and the denominator of the mean, before anything is written."""
        cdef Partials partials
        cdef Problem p = self.p
        cdef Environment host = enter_environment()
        try:
            self.lay_out_planes(&p)
            run_releasing_gil(&p, True, self.n_threads, &partials)
            if total_bad(&p, &partials):
                raise_bad_label(self.target, self.ignore_index, p.n_classes)
            if self.reduction == MEAN:
                self.denominator = self.normalizer if self.has_normalizer else add_pairs(partials.weight, p.n_blocks)
                self.p.formula.normalizer = self.denominator
            self.total = Pair(0, 0)
        finally:
            leave_environment(host)

    def divide_by(self, double denominator):
        """Begin again, with another denominator of the mean."""
        self.denominator = self.p.formula.normalizer = denominator
        self.total = Pair(0, 0)

    def result(self):
        """The loss of what went before, since `check` or `divide_by`."""
        if self.reduction == NONE:
            return self.losses
        total = self.total.sum + self.total.error
        return mean(total, self.denominator, self.has_normalizer) if self.reduction == MEAN else total

    cdef int add_losses_of(self, const Problem *p, const Partials *partials) except -1:
        cdef int block
        if total_bad(p, partials):
            raise_bad_label(self.target, self.ignore_index, p.n_classes)
        for block in range(p.n_blocks):
            add_pair(&self.total, partials.loss[block])
        return 0

    def of_block(self, cnp.ndarray logits, Py_ssize_t first, bint with_grad):
        """Add the losses of rows from `first` on, whose logits these are; leave the gradient in their place."""
        cdef Partials partials
        cdef Problem p = self.p
        cdef int array
        cdef Environment host = enter_environment()
        try:
            p.n_rows = p.shape[0] = cnp.PyArray_DIM(logits, 0)
            add_operand(&p, LOGITS, logits, 1)
            if with_grad:
                add_operand(&p, GRAD, logits, 1)
            for array in range(N_ARRAYS):
                if p.data[array] and array != LOGITS and array != GRAD:
                    p.data[array] += first * p.stride[array][0]
            lay_out(&p)
            run_releasing_gil(&p, False, self.n_threads, &partials)
            self.add_losses_of(&p, &partials)
        finally:
            leave_environment(host)

    def of_dense(self, cnp.ndarray x, cnp.ndarray w, bias, input_grad, weight_grad, bias_grad, bint accumulate, bint binary):
        """Add the losses of all rows of features x by weights w, (C, D), or (1, D) if binary; write what is not None."""
        cdef Problem p = self.p
        cdef DenseCall call
        call.with_hessian = False
        call.binary = binary
        call.accumulate = accumulate
        if input_grad is not None or weight_grad is not None or bias_grad is not None:
            p.data[GRAD] = p.data[LOGITS]
        self.run_dense_call(&p, &call, x, w, bias, None, None, input_grad, weight_grad, bias_grad)

    def hessian_product(self, cnp.ndarray x, cnp.ndarray w, bias, cnp.ndarray v, v_bias, weight_product, bias_product,
                        bint binary):
        """The Hessian of the mean of all rows times weights v and their bias."""
        cdef Problem p
        cdef DenseCall call
        begin_problem(&p, SOFTMAX)
        add_logits(&p, self.virtual.reshape(-1, self.p.n_classes), 1)
        p.data[GRAD] = p.data[LOGITS]
        if self.sample_weight is not None:
            add_weights(&p, self.sample_weight)
        call.with_hessian = True
        call.binary = binary
        call.accumulate = False
        call.scale = 1 / self.denominator
        self.run_dense_call(&p, &call, x, w, bias, v, v_bias, None, weight_product, bias_product)

    cdef int run_dense_call(self, Problem *p, DenseCall *call, cnp.ndarray x, cnp.ndarray w, bias, v, v_bias, input_grad,
                            weight_grad, bias_grad) except -1:
        cdef Partials partials
        cdef Py_ssize_t item = 8 if self.is_f64 else 4, n_columns = cnp.PyArray_DIM(w, 0)
        cdef Linear *l = &call.l
        cdef Layout layout
        cdef int taken
        cdef cnp.ndarray sums, bias_sums, workspace
        cdef Environment host = enter_environment()
        try:
            call.is_f64 = self.is_f64
            l.x = <char *>cnp.PyArray_DATA(x)
            l.format = <Format>format_of(x)
            l.swapped = is_swapped(x)
            l.row_stride = cnp.PyArray_STRIDE(x, 0)
            l.feature_stride = cnp.PyArray_STRIDE(x, 1)
            l.n_features = cnp.PyArray_DIM(x, 1)
            l.n_columns = n_columns
            l.padded = padded_features(l.n_features, self.is_f64)
            packed = self.packed(w, bias, l)
            if v is not None:
                call.direction = l[0]
                packed_v = self.packed(v, v_bias, &call.direction)
            self.lay_out_planes(p)
            call.sum_size = n_columns * l.padded
            call.bias_size = n_columns * LANES_F64
            p.n_blocks = <int>min(p.n_blocks, max(<Py_ssize_t>LEAST_BLOCKS, SUM_BYTES // (8 * max(1, call.sum_size))))
            call.weight_sums = call.bias_sums = NULL
            call.input_grad = NULL
            if weight_grad is not None:
                sums = np.zeros((p.n_blocks, call.sum_size))
                call.weight_sums = <double *>cnp.PyArray_DATA(sums)
            if bias_grad is not None:
                bias_sums = np.zeros((p.n_blocks, call.bias_size))
                call.bias_sums = <double *>cnp.PyArray_DATA(bias_sums)
            if input_grad is not None:
                call.input_grad = <char *>cnp.PyArray_DATA(input_grad)
                call.input_layout = layout_of(input_grad)
            call.plane_bytes = TILE * item
            call.row_bytes = TILE * l.padded * item
            call.workspace_bytes = call.row_bytes * (2 if input_grad is not None else 1)
            call.workspace_bytes += p.n_classes * call.plane_bytes * (2 if call.with_hessian else 1) + 4096
            taken = 1
            if p.n_rows * (p.n_classes * (l.n_features + ROW_WORK)) >= SERIAL_WORK:
                taken = take(self.n_threads, p.n_blocks)
            try:
                workspace = np.zeros(taken * call.workspace_bytes, np.uint8)
                call.workspace = <char *>cnp.PyArray_DATA(workspace)
                with nogil:
                    run_dense(p, call, taken, &partials)
            finally:
                if taken > 1:
                    give_back(taken)
            if not call.with_hessian:
                self.add_losses_of(p, &partials)
            if weight_grad is not None:
                layout = layout_of(weight_grad)
                put_sums(self.is_f64, l, call.weight_sums, call.sum_size, p.n_blocks, &layout, call.accumulate,
                         <char *>cnp.PyArray_DATA(weight_grad))
            if bias_grad is not None:
                layout = layout_of(bias_grad)
                put_bias_sums(n_columns, call.bias_sums, call.bias_size, p.n_blocks, &layout, call.accumulate,
                              <char *>cnp.PyArray_DATA(bias_grad))
            return 0
        finally:
            leave_environment(host)

    cdef object packed(self, cnp.ndarray w, bias, Linear *l):
        """Weights, and behind them the bias, as the products read them."""
        cdef Layout layout = layout_of(w)
        cdef Py_ssize_t size = l.n_columns * l.padded
        cdef cnp.ndarray packed = np.empty(size + l.n_columns, np.float64 if self.is_f64 else np.float32)
        pack_weights(self.is_f64, l, <char *>cnp.PyArray_DATA(w), &layout, cnp.PyArray_DATA(packed))
        l.w = cnp.PyArray_DATA(packed)
        l.bias = NULL
        if bias is not None:
            with np.errstate(all="ignore"):
                packed[size:] = bias
            l.bias = <char *>l.w + size * cnp.PyArray_ITEMSIZE(packed)
        return packed
