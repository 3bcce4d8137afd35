/* What entry/scoring.pyx calls: rows scored, their best classes, draws from them, in the precision of the logits. */
#ifndef FASTCE_SCORING_H
#define FASTCE_SCORING_H

#define WITH_SCORING
#include "rows/rows.h"

#define IN_PRECISION_OF(layout, name, ...) \
    ((layout)->format == FORMAT_F64 ? name##_f64(__VA_ARGS__) : name##_f32(__VA_ARGS__))

/* Where the results of a row go; NULL: nowhere. */
typedef struct {
    Format format;         /* of the logarithms and the entropy */
    int64_t *rank, *top;
    char *logprob, *entropy, *top_logprob;
    char *value;           /* of the top, in the logits' own format */
} RowResults;

static void gather_piece(const Gathering *call, const char *rows, ptrdiff_t n_rows, const int64_t *label,
                         ptrdiff_t number, Best *best, Gathered *result, void *memory)
{
    IN_PRECISION_OF(&call->layout, gather_piece, call, rows, n_rows, label, number, best, result, memory);
}

static size_t piece_memory(const Gathering *call)
{
    return call->layout.format == FORMAT_F64 ? piece_memory_f64 : piece_memory_f32;
}

static void put_number(char *at, ptrdiff_t i, double value, Format format, int swapped)
{
    if (format == FORMAT_F64) store_one_f64(at + 8 * i, value, format, swapped);
    else store_one_f32(at + (ptrdiff_t)format_size(format) * i, (float)value, format, swapped);
}

/* -0.0 is what a float makes of a logarithm just below 0. */
static void put_logprob(char *at, ptrdiff_t i, double value, Format format)
{
    put_number(at, i, format == FORMAT_F64 ? value : (float)value + 0.0f, format, 0);
}

/* A row of fewer than k classes above -inf: those at -inf follow, in their order. */
static void fill_up_best(const Gathering *call, const char *row, Best *best)
{
    const Layout *from = &call->layout;
    for (int64_t j = 0; best->n < best->k; j++)
        if (load_number(row + j * from->class_stride, from->format, from->swapped) == -INFINITY)
            best->list[best->n++] = (Candidate){-INFINITY, 0, j};
}

/* The results of a row from its pieces, merged. A label below 0: an ignored row, all 0 but for tokens of -1. */
static void finish_row(const Gathering *call, const char *row, int64_t label, const Gathered *gathered, Best *best,
                       int sorted, const RowResults *to)
{
    const Temperature *temperature = &call->formula->temperature;
    Scored row_of = {0, 0, 0, 0, 0};
    double z = 0;
    int none = label < 0;
    if (!none && call->only_best) none = gathered->rest != gathered->rest;
    else if (!none) {
        IN_PRECISION_OF(&call->layout, logit_of, call, row, label, &z);
        row_of = conclude(gathered, z, temperature);
        none = row_of.rank == 0;
    }
    if (to->logprob) {
        put_logprob(to->logprob, 0, row_of.logprob, to->format);
        put_number(to->entropy, 0, row_of.entropy, to->format, 0);
        *to->rank = row_of.rank;
    }
    if (best->k == 0) return;
    if (!none) {
        settle_best(best);
        fill_up_best(call, row, best);
        if (sorted) sort_candidates(best->list, best->k);
    }
    for (ptrdiff_t i = 0; i < best->k; i++) {
        const int64_t j = none ? -1 : best->list[i].index;
        double logprob = label < 0 ? 0 : NAN, value = NAN;
        to->top[i] = j;
        if (!none && to->top_logprob) {
            IN_PRECISION_OF(&call->layout, logit_of, call, row, j, &z);
            logprob = z == row_of.max ? 0 - row_of.log_s : log_probability(row_of.max, z, row_of.log_s, temperature);
        }
        if (!none) value = load_number(row + j * call->layout.class_stride, call->layout.format, call->layout.swapped);
        if (to->top_logprob) put_logprob(to->top_logprob, i, logprob, to->format);
        if (to->value) put_number(to->value, i, value, call->layout.format, call->layout.swapped);
    }
}

static void look_at_blocks(const Sampling *call, const char *x, ptrdiff_t first, ptrdiff_t last, Sampled *row,
                           Best *best, int *is_nan)
{
    IN_PRECISION_OF(&call->layout, look_at_blocks, call, (const void *)x, first, last, row, best, is_nan);
}

static void conclude_blocks(const Sampling *call, const char *x, Sampled *row)
{
    IN_PRECISION_OF(&call->layout, conclude_blocks, call, (const void *)x, row);
}

static ptrdiff_t collect(const Sampling *call, const char *x, ptrdiff_t first, ptrdiff_t last, const Sampled *row,
                         Candidate *list)
{
    return IN_PRECISION_OF(&call->layout, collect, call, (const void *)x, first, last, row->least, row, list);
}

static void draw(const Sampling *call, const char *x, Sampled *row, uint64_t key, ptrdiff_t n_draws, int64_t *token,
                 double *logprob)
{
    IN_PRECISION_OF(&call->layout, draw, call, (const void *)x, row, key, n_draws, token, logprob);
}

static int is_in_place(const Sampling *call)
{
    return call->layout.format == FORMAT_F64 ? is_contiguous_f64(&call->layout) : is_contiguous_f32(&call->layout);
}

/* Rows as they are looked at: where they are, or copied one after the other. */
static const char *contiguous_rows(const Sampling *call, const char *rows, ptrdiff_t n_rows, void *memory)
{
    if (call->layout.format == FORMAT_F64) return (const char *)contiguous_rows_f64(call, rows, n_rows, memory);
    return (const char *)contiguous_rows_f32(call, rows, n_rows, memory);
}
#undef IN_PRECISION_OF
#endif
