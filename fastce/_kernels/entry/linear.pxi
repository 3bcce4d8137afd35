# A linear layer and the loss of its logits. A part of kernels.pyx; linear_walk.pxi has what runs where.
#
# A batch is `LinearRows`: targets, weights and options of its rows, checked once, for any number of evaluations. Its
# logits are planes in the cache of a thread (`of_dense`), or those of a block of rows that was multiplied elsewhere or
# by `sparse_logits` (`of_block`). Blocks of rows, and with them every sum, depend on the shapes alone.

include "linear_walk.pxi"


def widen(cnp.ndarray a, cnp.ndarray wide, given_n_threads):
    """Rows of numbers of any format to contiguous rows of float32 or float64."""
    cdef Layout layout = layout_of(a)
    cdef int most = checked_n_threads(given_n_threads)
    with nogil:
        run_widen(cnp.PyArray_ITEMSIZE(wide) == 8, <char *>cnp.PyArray_DATA(a), &layout, cnp.PyArray_DIM(a, 0),
                  cnp.PyArray_DIM(a, 1), <char *>cnp.PyArray_DATA(wide), most)


cdef class LinearRows:
    """Targets, weights and options of rows whose logits are products, (N, C) in all; N alone where there is one row."""

    cdef Problem p
    cdef object given_target, target, sample_weight, ignore_index, losses, virtual
    cdef ClassWeight class_weight
    cdef int reduction
    cdef readonly int n_threads            # 0: as many as there are
    cdef bint is_f64, are_labels, has_normalizer
    cdef readonly bint has_ignored         # after `check`
    cdef readonly list named               # what was given, by name, as arrays
    cdef readonly Py_ssize_t row_bytes     # that of_block gathers of a row
    cdef double normalizer
    cdef Pair total
    cdef readonly double denominator       # of the mean; 1 for a sum

    def __init__(self, shape, dtype, given_target, given_weight, given_sample_weight, ignore_index, label_smoothing,
                 z_loss, temperature, softcap, given_reduction, given_normalizer, given_n_threads):
        cdef Problem *p = &self.p
        cdef bint are_labels = True
        cdef int axis = len(shape) - 1
        cdef Py_ssize_t n_rows = prod(shape[:axis]), n_classes = shape[axis]
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
        self.given_target, self.named = target, [("target", target)]
        if given_weight is not None:
            self.class_weight = ClassWeight.of(given_weight)
            self.named.append(("weight", self.class_weight.given))
        if given_sample_weight is not None:
            sample_weight = as_floats(given_sample_weight, "sample_weight")
            self.named.append(("sample_weight", sample_weight))
        # Logits that nobody holds, for what is checked.
        self.virtual = np.ndarray(shape, dtype, bytes(8), 0, (0,) * (axis + 1))
        self.is_f64 = dtype == np.float64
        if n_classes == 0 and n_rows > 0:
            raise ValueError("linear_weight has no rows: there are no classes; expected at least one")
        if are_labels:
            check_batch_shape(target, "target", self.virtual, axis)
            set_labels(&p.labels, target, ignore_index, n_classes)
        else:
            check_distributions(target, self.virtual, ignore_index)
            p.formula.has_terms = True
        self.are_labels = are_labels
        self.target = rows_of(target, axis)
        add_logits(p, self.virtual.reshape(n_rows, n_classes), 1)
        if self.class_weight is not None:
            self.class_weight.add_to(&p.formula, self.virtual, n_classes)
        if given_sample_weight is not None:
            if format_of(sample_weight) > FORMAT_F32:
                with np.errstate(invalid="ignore"):
                    sample_weight = sample_weight.astype(np.float32)
            check_batch_shape(sample_weight, "sample_weight", self.virtual, axis)
            self.sample_weight = rows_of(sample_weight, axis)
        self.row_bytes = row_bytes(self.target, self.sample_weight)
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
        cdef Problem p
        cdef Pair weight = Pair(0, 0)
        cdef Py_ssize_t n_rows = self.p.n_rows, n_used = 0, first
        cdef Py_ssize_t n_block = CHECKED_ROWS if self.row_bytes else max(n_rows, 1)
        cdef int block
        cdef Environment host = enter_environment()
        try:
            for first in range(0, n_rows, n_block):
                p = self.p
                rows = self.set_given(&p, first, min(n_block, n_rows - first))
                self.lay_out_planes(&p)
                p.sums_weights = is_weighted(&p) and self.reduction == MEAN and not self.has_normalizer
                run_releasing_gil(&p, True, self.n_threads, &partials)
                if total_bad(&p, &partials):
                    raise_bad_label(self.given_target, self.ignore_index, p.n_classes)
                for block in range(p.n_blocks):
                    n_used += partials.counts[block].used
                    add_pair(&weight, partials.weight[block])
            self.has_ignored = n_used < n_rows
            if self.reduction == MEAN:
                self.denominator = self.normalizer if self.has_normalizer else weight.sum + weight.error
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
            raise_bad_label(self.given_target, self.ignore_index, p.n_classes)
        for block in range(p.n_blocks):
            add_pair(&self.total, partials.loss[block])
        return 0

    def ignored(self, Py_ssize_t first, Py_ssize_t n_rows):
        """Which of n rows from `first` on are ignored; None if none is."""
        if not self.has_ignored:
            return None
        ignored = self.target[first:first + n_rows] == self.ignore_index
        return ignored if ignored.any() else None

    cdef object set_given(self, Problem *p, Py_ssize_t first, Py_ssize_t n_rows):
        """Targets and weights of n rows from `first` on; returns the arrays, which have to live as long."""
        cdef cnp.ndarray target = self.target[first:first + n_rows], sample_weight = None
        p.n_rows = p.shape[0] = n_rows
        add_operand(p, TARGETS if self.are_labels else Q, target, -1 if self.are_labels else 1)
        if self.sample_weight is not None:
            sample_weight = self.sample_weight[first:first + n_rows]
            add_weights(p, sample_weight)
        if p.data[LOSS]:
            p.data[LOSS] += first * p.stride[LOSS][0]
        return target, sample_weight

    def of_block(self, cnp.ndarray logits, Py_ssize_t first, bint with_grad):
        """Add the losses of rows from `first` on, whose logits these are; leave the gradient in their place."""
        cdef Partials partials
        cdef Problem p = self.p
        cdef Environment host = enter_environment()
        try:
            rows = self.set_rows(&p, logits, first, with_grad)
            lay_out(&p)
            run_releasing_gil(&p, False, self.n_threads, &partials)
            self.add_losses_of(&p, &partials)
        finally:
            leave_environment(host)

    cdef object set_rows(self, Problem *p, cnp.ndarray logits, Py_ssize_t first, bint with_grad):
        """A block of rows from `first` on, whose logits these are; a gradient takes their place. As `set_given`."""
        add_operand(p, LOGITS, logits, 1)
        if with_grad:
            add_operand(p, GRAD, logits, 1)
        return self.set_given(p, first, cnp.PyArray_DIM(logits, 0))

    def begin_parts(self, logits, Py_ssize_t first):
        """For rows from `first` on whose logits come a part of the classes at a time: what is kept of them.

        Each part then goes through `sweep_part`, all rows through `finish_parts`, and each part, computed again,
        through `write_part`, which leaves the gradient in its place. `logits` are any part.
        """
        rows = np.empty((cnp.PyArray_DIM(logits, 0) // TILE + 16) * sizeof(Rows), np.uint8)
        self.run_parts(BEGIN, rows, logits, first, 0, True)
        return rows

    def sweep_part(self, rows, logits, Py_ssize_t first, Py_ssize_t start):
        """Add the logits of classes from `start` on to the sums; they are not left as they were."""
        self.run_parts(SWEEP, rows, logits, first, start, True)

    def finish_parts(self, rows, logits, Py_ssize_t first, bint with_grad):
        """Add the losses."""
        self.run_parts(FINISH, rows, logits, first, 0, with_grad)

    def write_part(self, rows, logits, Py_ssize_t first, Py_ssize_t start):
        """The gradient of a part in the place of its logits."""
        self.run_parts(WRITE, rows, logits, first, start, True)

    cdef int run_parts(self, Stage stage, cnp.ndarray kept, cnp.ndarray logits, Py_ssize_t first, Py_ssize_t start,
                       bint with_grad) except -1:
        cdef Problem p = self.p
        cdef Rows *rows = <Rows *>cnp.PyArray_DATA(kept)
        cdef object given
        cdef Py_ssize_t end = start + cnp.PyArray_DIM(logits, 1), number
        cdef Sums sums
        cdef int taken
        cdef Environment host = enter_environment()
        try:
            given = self.set_rows(&p, logits, first, with_grad)
            lay_out_parts(&p)
            p.data[LOGITS] -= start * p.layout[LOGITS].class_stride     # where class 0 would be
            if with_grad:
                p.data[GRAD] -= start * p.layout[LOGITS].class_stride
            if stage != FINISH:
                with nogil:
                    taken = take(self.n_threads, p.n_tiles, p.n_rows * (end - start), SERIAL_WORK)
                    run_stages(&p, stage, start, end, rows, max(taken, 1))
                    give_back(taken)
                return 0
            for number in range(p.n_tiles):
                clear_sums(&sums)
                run_stage(&p, FINISH, number, 0, 0, rows + number, &sums)
                add_pair(&self.total, total_loss(&sums))
            return 0
        finally:
            leave_environment(host)

    def of_dense(self, cnp.ndarray x, cnp.ndarray w, bias, input_grad, weight_grad, bias_grad, bint accumulate,
                 bint binary, Py_ssize_t memory):
        """Add the losses of features x by weights w, (C, D), or (1, D) if binary; write the gradients not None.

        x and its gradient may have their rows on more axes than one.
        """
        cdef Problem p = self.p
        cdef DenseCall call
        rows = self.set_given(&p, 0, p.n_rows)
        call.with_hessian = False
        call.binary = binary
        call.accumulate = accumulate
        if input_grad is not None or weight_grad is not None or bias_grad is not None:
            p.data[GRAD] = p.data[LOGITS]
        self.run_dense_call(&p, &call, x, w, bias, None, None, input_grad, weight_grad, bias_grad, memory)

    def hessian_product(self, cnp.ndarray x, cnp.ndarray w, bias, cnp.ndarray v, v_bias, weight_product, bias_product,
                        bint binary, Py_ssize_t memory):
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
        self.run_dense_call(&p, &call, x, w, bias, v, v_bias, None, weight_product, bias_product, memory)

    def hessian_rows(self, cnp.ndarray z, cnp.ndarray t, Py_ssize_t first, bint binary):
        """s p (t - sum p t) in place of products t of rows from `first` on, s by `denominator`; p of logits z."""
        cdef cnp.ndarray sample
        cdef const double *weights = NULL
        cdef int most = self.n_threads
        if self.sample_weight is not None:
            sample = np.ascontiguousarray(self.sample_weight[first:first + cnp.PyArray_DIM(t, 0)], np.float64)
            weights = <const double *>cnp.PyArray_DATA(sample)
        softmax(z, 1, z, most or None, False)
        with nogil:
            run_hessian_rows(self.is_f64, <char *>cnp.PyArray_DATA(z), cnp.PyArray_STRIDE(z, 0),
                             <char *>cnp.PyArray_DATA(t), cnp.PyArray_STRIDE(t, 0), cnp.PyArray_DIM(t, 0),
                             cnp.PyArray_DIM(t, 1), binary, weights, 1 / self.denominator, most)

    cdef int run_dense_call(self, Problem *p, DenseCall *call, cnp.ndarray x, cnp.ndarray w, bias, v, v_bias,
                            input_grad, weight_grad, bias_grad, Py_ssize_t memory) except -1:
        cdef Partials partials
        cdef Py_ssize_t item = 8 if self.is_f64 else 4, n_columns = cnp.PyArray_DIM(w, 0), most_blocks, have_room, work
        cdef Linear *layer = &call.l
        cdef Layout layout
        cdef int taken
        cdef cnp.ndarray sums, bias_sums, workspace
        cdef Environment host = enter_environment()
        try:
            call.is_f64 = self.is_f64
            layer.x = <char *>cnp.PyArray_DATA(x)
            layer.format = <Format>format_of(x)
            layer.swapped = is_swapped(x)
            layer.rows = grid_of(x)
            layer.feature_stride = cnp.PyArray_STRIDE(x, layer.rows.n_axes)
            layer.n_features = cnp.PyArray_DIM(x, layer.rows.n_axes)
            layer.n_columns = n_columns
            layer.padded = padded_features(layer.n_features, self.is_f64)
            packed = self.packed(w, bias, layer)
            if v is not None:
                call.direction = layer[0]
                packed_v = self.packed(v, v_bias, &call.direction)
            self.lay_out_planes(p)
            call.sum_size = n_columns * layer.padded
            call.bias_size = n_columns * LANES_F64
            most_blocks = SUM_BYTES // (8 * max(1, call.sum_size))
            p.n_blocks = <int>min(p.n_blocks, max(<Py_ssize_t>LEAST_BLOCKS, most_blocks))
            call.weight_sums = call.bias_sums = NULL
            call.input_grad = NULL
            if weight_grad is not None:
                sums = np.zeros((max(1, p.n_blocks), call.sum_size))     # of no rows at all, too
                call.weight_sums = <double *>cnp.PyArray_DATA(sums)
            if bias_grad is not None:
                bias_sums = np.zeros((p.n_blocks, call.bias_size))
                call.bias_sums = <double *>cnp.PyArray_DATA(bias_sums)
            if input_grad is not None:
                call.input_grad = <char *>cnp.PyArray_DATA(input_grad)
                call.input_layout = layout_of(input_grad)
                call.input_rows = grid_of(input_grad)
            call.plane_bytes = TILE * item
            call.row_bytes = TILE * layer.padded * item
            call.workspace_bytes = call.row_bytes * (2 if input_grad is not None else 1)
            call.workspace_bytes += p.n_classes * call.plane_bytes * (2 if call.with_hessian else 1) + 4096
            have_room = max(<Py_ssize_t>1, memory // 2 // call.workspace_bytes)
            work = p.n_rows * (p.n_classes * (layer.n_features // CLASS_FEATURES + ROW_WORK))
            taken = take(self.n_threads, min(p.n_blocks, have_room), work, SERIAL_WORK)
            try:
                workspace = np.zeros(max(taken, 1) * call.workspace_bytes, np.uint8)
                call.workspace = <char *>cnp.PyArray_DATA(workspace)
                with nogil:
                    run_dense(p, call, max(taken, 1), &partials)
            finally:
                give_back(taken)
            if not call.with_hessian:
                self.add_losses_of(p, &partials)
            if weight_grad is not None:
                layout = layout_of(weight_grad)
                put_sums(self.is_f64, layer, call.weight_sums, p.n_blocks, &layout, call.accumulate,
                         <char *>cnp.PyArray_DATA(weight_grad))
            if bias_grad is not None:
                layout = layout_of(bias_grad)
                put_bias_sums(n_columns, call.bias_sums, call.bias_size, p.n_blocks, &layout, call.accumulate,
                              <char *>cnp.PyArray_DATA(bias_grad))
            return 0
        finally:
            leave_environment(host)

    def sparse_logits(self, cnp.ndarray row_starts, cnp.ndarray indices, cnp.ndarray data, Py_ssize_t first,
                      cnp.ndarray w, cnp.ndarray bias, cnp.ndarray z):
        """Logits z, (n, padded), of CSR rows from `first` on, by weights the other way round, (D, padded).

        `padded` is a number of whole vectors, or 1; the rows of z may be farther apart.
        """
        cdef Sparse x = sparse_of(row_starts, indices, data, z)
        cdef Py_ssize_t n_rows = cnp.PyArray_DIM(z, 0)
        cdef Py_ssize_t work = sparse_work(row_starts, first, n_rows, x.padded)
        cdef int taken = take(self.n_threads, 1 + n_rows // SPARSE_ROWS, work, SERIAL_WORK)
        with nogil:
            run_sparse_logits(self.is_f64, &x, first, n_rows, cnp.PyArray_DATA(w), cnp.PyArray_DATA(bias),
                              <char *>cnp.PyArray_DATA(z), max(taken, 1))
            give_back(taken)

    def add_sparse_grad(self, cnp.ndarray row_starts, cnp.ndarray indices, cnp.ndarray data, Py_ssize_t first,
                        cnp.ndarray g, cnp.ndarray used, cnp.ndarray sums):
        """Add to sums, (D, padded), the products of gradients g, (n, padded), with CSR rows from `first` on."""
        cdef Sparse x = sparse_of(row_starts, indices, data, g)
        cdef Py_ssize_t n_rows = cnp.PyArray_DIM(g, 0)
        cdef Py_ssize_t work = sparse_work(row_starts, first, n_rows, x.padded)
        cdef int taken = take(self.n_threads, min(8, 1 + n_rows // SPARSE_ROWS), work, SERIAL_WORK)
        with nogil:
            run_sparse_grad(self.is_f64, &x, first, n_rows, cnp.PyArray_DATA(g), <char *>cnp.PyArray_DATA(used),
                            cnp.PyArray_DIM(sums, 0), <double *>cnp.PyArray_DATA(sums), max(taken, 1))
            give_back(taken)

    def put_feature_grads(self, cnp.ndarray feature_starts, cnp.ndarray rows, cnp.ndarray data, cnp.ndarray g,
                          cnp.ndarray used, cnp.ndarray sums):
        """What `add_sparse_grad` adds to zeros, of all rows, whose entries lie in the order of features."""
        cdef Sparse x = sparse_of(feature_starts, rows, data, g)
        cdef Py_ssize_t n_features = cnp.PyArray_DIM(sums, 0)
        cdef Py_ssize_t work = sparse_work(feature_starts, 0, n_features, x.padded)
        cdef int taken = take(self.n_threads, 1 + n_features // SPARSE_ROWS, work, SERIAL_WORK)
        with nogil:
            run_feature_grads(self.is_f64, &x, cnp.PyArray_DATA(g), <char *>cnp.PyArray_DATA(used), n_features,
                              <double *>cnp.PyArray_DATA(sums), max(taken, 1))
            give_back(taken)

    cdef object packed(self, cnp.ndarray w, bias, Linear *layer):
        """Weights, and behind them the bias, as the products read them."""
        cdef Layout layout = layout_of(w)
        cdef Py_ssize_t size = layer.n_columns * layer.padded
        cdef cnp.ndarray packed = np.empty(size + layer.n_columns, np.float64 if self.is_f64 else np.float32)
        pack_weights(self.is_f64, layer, <char *>cnp.PyArray_DATA(w), &layout, cnp.PyArray_DATA(packed))
        layer.w = cnp.PyArray_DATA(packed)
        layer.bias = NULL
        if bias is not None:
            with np.errstate(all="ignore"):
                packed[size:] = bias
            layer.bias = <char *>layer.w + size * cnp.PyArray_ITEMSIZE(packed)
        return packed
