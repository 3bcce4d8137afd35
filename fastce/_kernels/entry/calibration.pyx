# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What calibration asks of rows of logits or probabilities: scores, and the loss's derivatives by the temperature.

Design
------
A. Arguments come checked, from fastce/calibration.py: labels are intp with -1 where a row is not used, weights float64.
   Logits are read as they are, whatever their dtype and layout.
B. Rows are dealt to at most BLOCKS blocks, blocks to threads. Blocks and sums depend on the number of rows alone.
C. Where a row is not contiguous it passes through a scratch of its thread.
"""

import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange, threadid
from libc.stdint cimport int8_t

from fastce._kernels.entry.arrays cimport FORMAT_F64, Format, Temperature, format_of, is_swapped
from fastce._kernels.machine.threads cimport checked_n_threads, give_back, take

cnp.import_array()

cdef extern from "rows/calibrate.h" nogil:
    ctypedef struct Batch:
        const char *data
        Format format
        int swapped, from_logits, binary
        Py_ssize_t n_rows, n_classes, class_stride
        int n_dims
        Py_ssize_t *shape
        Py_ssize_t *stride
        const Py_ssize_t *label
        const double *weight
    ctypedef struct Moments:
        double slope, curvature
        Py_ssize_t bad
    Temperature temperature_of(double inverse) noexcept
    void add_rows(const Batch *, Py_ssize_t begin, Py_ssize_t end, const Temperature *, void *, Moments *) noexcept
    void score_rows(const Batch *, Py_ssize_t begin, Py_ssize_t end, void *, void *, int8_t *, double *) noexcept

cdef enum:
    BLOCKS = 64
    SERIAL_WORK = 8192


cdef class Rows:
    """Rows of numbers, the label of each and maybe its weight."""

    cdef Batch batch
    cdef cnp.ndarray data, label, weight
    cdef int n_threads

    def __init__(self, cnp.ndarray data, cnp.ndarray label, cnp.ndarray weight, bint from_logits, bint binary,
                 n_threads):
        """`data` with the classes last, or none if binary; labels, -1 for rows to leave out, and weights in C order."""
        cdef int dim, n_dims = cnp.PyArray_NDIM(data) - (not binary)
        cdef Batch *batch = &self.batch
        self.data, self.label, self.weight = data, label, weight
        self.n_threads = checked_n_threads(n_threads)
        batch.data = <const char *>cnp.PyArray_DATA(data)
        batch.format, batch.swapped = <Format>format_of(data), is_swapped(data)
        batch.from_logits, batch.binary = from_logits, binary
        batch.n_rows = cnp.PyArray_SIZE(label)
        batch.n_classes = 2 if binary else cnp.PyArray_DIM(data, n_dims)
        batch.class_stride = 0 if binary else cnp.PyArray_STRIDE(data, n_dims)
        batch.n_dims = n_dims
        for dim in range(n_dims):
            batch.shape[dim], batch.stride[dim] = cnp.PyArray_DIM(data, dim), cnp.PyArray_STRIDE(data, dim)
        batch.label = <const Py_ssize_t *>cnp.PyArray_DATA(label)
        batch.weight = <const double *>cnp.PyArray_DATA(weight) if weight is not None else NULL

    cdef int run(self, const Temperature *t, Moments *moments, void *confidence, int8_t *hit, double *brier) except -1:
        """The moments of each block if there is a temperature, else each row's scores."""
        cdef const Batch *batch = &self.batch
        cdef int n_blocks = <int>min(BLOCKS, batch.n_rows), taken
        cdef cnp.ndarray scratch
        cdef double *begin
        cdef Py_ssize_t work = batch.n_rows * (batch.n_classes + 8)
        cdef Py_ssize_t n = batch.n_classes + 8
        taken = take(self.n_threads, n_blocks, work, SERIAL_WORK)
        try:
            scratch = np.empty((max(taken, 1), n))
            begin = <double *>cnp.PyArray_DATA(scratch)
            with nogil:
                self.deal(t, n_blocks, taken, begin, n, moments, confidence, hit, brier)
        finally:
            give_back(taken)
        return n_blocks

    cdef void deal(self, const Temperature *t, int n_blocks, int n_threads, double *scratch, Py_ssize_t n,
                   Moments *moments, void *confidence, int8_t *hit, double *brier) noexcept nogil:
        cdef int block
        if n_threads <= 1:
            for block in range(n_blocks):
                self.run_block(t, block, n_blocks, scratch, moments, confidence, hit, brier)
        else:
            for block in prange(n_blocks, schedule="static", num_threads=n_threads):
                self.run_block(t, block, n_blocks, scratch + threadid() * n, moments, confidence, hit, brier)

    cdef void run_block(self, const Temperature *t, int block, int n_blocks, void *scratch, Moments *moments,
                        void *confidence, int8_t *hit, double *brier) noexcept nogil:
        cdef Py_ssize_t begin = self.batch.n_rows * block // n_blocks
        cdef Py_ssize_t end = self.batch.n_rows * (block + 1) // n_blocks
        if t == NULL:
            score_rows(&self.batch, begin, end, scratch, confidence, hit, brier)
            return
        moments[block] = Moments(0, 0, -1)
        add_rows(&self.batch, begin, end, t, scratch, &moments[block])

    def moments(self, double inverse):
        """The weighted sums of E[x] - x_y and of Var[x] at temperature 1/inverse; a row that has none, or -1."""
        cdef Moments[BLOCKS] moments
        cdef Temperature t = temperature_of(inverse)
        cdef double slope = 0, curvature = 0
        cdef Py_ssize_t bad = -1
        cdef int block, n_blocks = self.run(&t, moments, NULL, NULL, NULL)
        for block in range(n_blocks):
            slope += moments[block].slope
            curvature += moments[block].curvature
            if bad < 0:
                bad = moments[block].bad
        return slope, curvature, bad

    def scores(self):
        """Of each row its confidence, in the dtype that is computed in, whether it is right (-1: left out), and its
        squared distance from the target; NaN where the probabilities are not defined."""
        shape = np.shape(self.label)
        confidence = np.empty(shape, np.float64 if self.batch.format == FORMAT_F64 else np.float32)
        hit, brier = np.empty(shape, np.int8), np.empty(shape)
        self.run(NULL, NULL, cnp.PyArray_DATA(confidence), <int8_t *>cnp.PyArray_DATA(hit),
                 <double *>cnp.PyArray_DATA(brier))
        return confidence, hit, brier
