# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Scores of rows of logits, their best classes, and draws from them: checks arguments, deals rows to threads.

Design
------
A. A call is one `Walk` (tiles.pxi) over a batch, whose steps are those of scores and best classes (scores.pxi) or
   of samples (samples.pxi): plain structs, filled with the GIL held, after which nothing can fail. What threads need
   besides their stack is allocated before, once for all of them.
B. Batch axes are walked in the order of the logits' strides, the innermost in tiles of rows: as many as a panel has
   where a class is far from the next (gather.h), else so many that each thread has its share.
C. No result depends on any other row's; hence tiles may be as the threads want them. Few rows of many classes are
   read piece by piece by all threads; pieces depend on the number of classes alone and are merged in their order.
D. Labels are read once, into memory of the call: what was checked is what is used.
E. Below SERIAL_WORK a call stays on its thread: see G in kernels.pyx.
"""

import numpy as np

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memmove

from fastce._kernels.entry import advice
from fastce._kernels.entry.arrays cimport (
    FORMAT_F32,
    FORMAT_F64,
    Format,
    Layout,
    Temperature,
    as_floats,
    as_labels,
    check_batch_shape,
    format_of,
    is_swapped,
    normalised_axis,
)
from fastce._kernels.machine.environment cimport Environment, enter_environment, leave_environment
from fastce._kernels.entry.options cimport checked_index, checked_number
from fastce._kernels.machine.threads cimport checked_n_threads, give_back, take

cnp.import_array()

cdef extern from "numpy/random/bitgen.h" nogil:  # a cimport from numpy.random would load all of it with this module
    ctypedef struct bitgen_t:
        void *state
        uint64_t (*next_uint64)(void *) noexcept

cdef extern from "rows/scoring.h" nogil:
    enum: TILE, CHUNK, PANEL, BLOCK
    ctypedef enum Transform: AS_GIVEN, SOFTCAP
    ctypedef struct Formula:
        Temperature temperature
        Transform transform
        double softcap
        Temperature half_cap
    ctypedef struct Candidate:
        pass
    ctypedef struct Best:
        double threshold
    ctypedef struct Gathering:
        Py_ssize_t n_classes
        Layout layout
        const Formula *formula
        bint only_best
    ctypedef struct Gathered:
        pass
    ctypedef struct RowResults:
        Format format
        int64_t *rank
        int64_t *top
        char *logprob
        char *entropy
        char *top_logprob
        char *value
    ctypedef struct Sampling:
        Py_ssize_t n_classes
        Layout layout
        Temperature temperature
        bint greedy
        Py_ssize_t top_k
        double top_p, min_p
    ctypedef struct Sampled:
        double *max
        double *anchor
        double *sum
        double *weight
        Candidate *list
        Py_ssize_t n
        Best best
        int is_nan
        double m
    void set_temperature(Temperature *, double factor, double divisor) noexcept
    Py_ssize_t count_pieces(Py_ssize_t n_classes) noexcept
    Py_ssize_t count_gathered(Py_ssize_t n_classes) noexcept
    Py_ssize_t count_blocks(Py_ssize_t n_classes) noexcept
    bint is_panel(const Layout *) noexcept
    Py_ssize_t room_for_best(Py_ssize_t k) noexcept
    void begin_best(Best *, Candidate *, Py_ssize_t k) noexcept
    void merge_best(Best *, const Best *) noexcept
    void gather_piece(const Gathering *, const char *rows, Py_ssize_t n_rows, const int64_t *label, Py_ssize_t piece,
                      Best *, Gathered *, void *memory) noexcept
    size_t piece_memory(const Gathering *) noexcept
    void merge_gathered(Gathered *, Gathered next, const Temperature *) noexcept
    void finish_row(const Gathering *, const char *row, int64_t label, const Gathered *, Best *, bint sorted,
                    const RowResults *) noexcept
    bint is_filtered(const Sampling *) noexcept
    bint is_in_place(const Sampling *) noexcept
    const char *contiguous_rows(const Sampling *, const char *rows, Py_ssize_t n_rows, void *memory) noexcept
    void look_at_blocks(const Sampling *, const char *x, Py_ssize_t first, Py_ssize_t last, Sampled *, Best *,
                        int *is_nan) noexcept
    void conclude_blocks(const Sampling *, const char *x, Sampled *) noexcept
    Py_ssize_t collect(const Sampling *, const char *x, Py_ssize_t first, Py_ssize_t last, const Sampled *,
                       Candidate *) noexcept
    void draw(const Sampling *, const char *x, Sampled *, uint64_t key, Py_ssize_t n_draws, int64_t *token,
              double *logprob) noexcept

# The arrays of a call, as indices.
cdef enum:
    LOGITS, TOKENS, KEYS, LOGPROB, RANK, ENTROPY, TOP, TOP_LOGPROB, VALUE, N_ARRAYS

cdef enum:
    MAX_DIMS = 64
    SERIAL_WORK = 32768
    ROW_WORK = 64                          # what a row costs besides its classes, in classes
    LIST_BYTES = 1 << 22                   # of candidates of the rows of a tile
    ROWS_BYTES = 1 << 23                   # of the rows of a tile that are copied

# Temperatures for which the constants of their exps are normal numbers in float32 too.
cdef double LEAST_SCALE = 1e-18, MOST_SCALE = 1e18

include "labels.pxi"
include "tiles.pxi"
include "scores.pxi"
include "samples.pxi"
