# Labels, class weights and options of a call, checked and put into its problem. A part of kernels.pyx.

# Factors of logits for which the constants of their exps are normal numbers in float32 too.
cdef double LEAST_SCALE = 1e-18, MOST_SCALE = 1e18


cdef enum:
    SUMMED_WEIGHTS = 16                    # that are added up before their sum is added to a pair

cdef extern from "rows/rows.h" nogil:
    double load_number(const char *, Format, int swapped) noexcept


# ---- Labels --------------------------------------------------------------------------------------

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
        + ("" if ignore_index is None else f" or ignore_index={advice.shown(ignore_index)}")
        + advice.to_be_class(target[place], n_classes)
    )


cdef Py_ssize_t total_bad(const Problem *p, const Partials *partials) noexcept nogil:
    cdef Py_ssize_t bad = 0
    cdef int block
    for block in range(p.n_blocks):
        bad += partials.counts[block].bad
    return bad


# ---- Options -----------------------------------------------------------------------------------

cdef int set_options(Formula *f, object label_smoothing, object z_loss, object temperature, object softcap) except -1:
    f.smoothing = checked_number(label_smoothing, "label_smoothing", 0, 1)
    f.z_loss = checked_number(z_loss, "z_loss", 0, INFINITY)
    f.has_terms = f.smoothing != 0
    f.temperature.divisor = checked_number(temperature, "temperature", LEAST_SCALE, MOST_SCALE)
    if softcap is not None:
        f.softcap = checked_number(softcap, "softcap", LEAST_SCALE, MOST_SCALE)
        f.transform = SOFTCAP
    return 0


cdef class ClassWeight:
    """Weights of the classes, as the kernels read them: float64, and where there are terms the logits' precision."""

    cdef cnp.ndarray given, wide, terms

    @staticmethod
    cdef ClassWeight of(object given):
        cdef ClassWeight self = ClassWeight()
        self.given = as_floats(given, "weight")
        return self

    cdef cnp.ndarray read_as(self, int number):
        """Contiguous float64 or float32. NumPy would warn of a signalling NaN, maybe of a class that no row has."""
        if cnp.PyArray_TYPE(self.given) == number and cnp.PyArray_ISCARRAY_RO(self.given):
            return self.given
        cdef cnp.npy_intp n_classes = cnp.PyArray_DIM(self.given, 0), j
        cdef cnp.ndarray numbers = cnp.PyArray_EMPTY(1, &n_classes, number, 0)
        cdef const char *given = <const char *>cnp.PyArray_DATA(self.given)
        cdef void *data = cnp.PyArray_DATA(numbers)
        cdef Format format = <Format>format_of(self.given)
        cdef bint swapped = is_swapped(self.given)
        cdef double weight
        cdef Environment host = enter_environment()
        for j in range(n_classes):
            weight = load_number(given + j * cnp.PyArray_STRIDE(self.given, 0), format, swapped)
            if number == cnp.NPY_DOUBLE:
                (<double *>data)[j] = weight
            else:
                (<float *>data)[j] = <float>weight
        leave_environment(host)
        return numbers

    cdef int add_to(self, Formula *f, cnp.ndarray logits, Py_ssize_t n_classes) except -1:
        if cnp.PyArray_NDIM(self.given) != 1 or cnp.PyArray_DIM(self.given, 0) != n_classes:
            raise ValueError(f"weight has shape {np.shape(self.given)}; expected ({n_classes},), one for each class"
                             + advice.to_fit_classes(np.shape(self.given), np.shape(logits), n_classes))
        self.wide = self.read_as(cnp.NPY_DOUBLE)
        f.class_weight = <const double *>cnp.PyArray_DATA(self.wide)
        if f.has_terms:
            self.terms = self.wide if format_of(logits) == FORMAT_F64 else self.read_as(cnp.NPY_FLOAT)
            f.term_weight = cnp.PyArray_DATA(self.terms)
            summarise_weights(f, n_classes, cnp.PyArray_TYPE(self.terms) == cnp.NPY_DOUBLE)
        return 0


cdef void summarise_weights(Formula *f, Py_ssize_t n_classes, bint is_f64) noexcept:
    cdef Pair total = Pair(0, 0), run
    cdef Py_ssize_t start, j
    cdef double weight, most = -INFINITY
    cdef Environment host = enter_environment()
    f.heaviest, f.weights_positive = 0, True
    for start in range(0, n_classes, SUMMED_WEIGHTS):
        run = Pair(0, 0)
        for j in range(start, min(start + SUMMED_WEIGHTS, n_classes)):
            weight = (<const double *>f.term_weight)[j] if is_f64 else (<const float *>f.term_weight)[j]
            run.sum += weight
            f.weights_positive &= weight > 0
            if most == most and not weight <= most:          # the first NaN, if there is one
                f.heaviest, most = j, weight
        add_pair(&total, run)
    f.total_weight = total.sum + total.error
    leave_environment(host)


cdef cnp.ndarray as_targets(object given, bint *are_labels):
    """Class indices, or floating-point numbers: a distribution for each row."""
    cdef cnp.ndarray a
    if type(given) is cnp.ndarray:
        a = given
        if cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(a)):
            are_labels[0] = True
            return a
    a = as_array(given, "target")
    cdef bint has_dtype = hasattr(given, "dtype")
    are_labels[0] = format_of(a) == FORMAT_NONE or (a.size == 0 and not has_dtype)
    return labels_of(a, has_dtype) if are_labels[0] else a
