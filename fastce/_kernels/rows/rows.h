/* All row code, for both precisions, under one name each. Everything is static: the extension
 * module of one instruction-set level shares no symbol with another's. */
#ifndef FASTCE_ROWS_H
#define FASTCE_ROWS_H

#include "rows/problem.h"

#define REAL_BITS 64
#include "vector/simd.h"
#include "vector/positive.h"
#include "vector/vmath.h"
#include "vector/formats.h"
#include "vector/transpose.h"
#include "rows/sweep.h"
#include "rows/elements.h"
#include "rows/chunk.h"
#include "rows/along.h"
#include "rows/pieces.h"
#include "rows/parts.h"
#include "rows/planes.h"
#include "rows/across.h"
#include "rows/bands.h"
#include "rows/plain.h"
#include "rows/two_classes.h"
#include "rows/anchored.h"
#include "rows/terms.h"
#include "rows/without_target.h"
#include "vector/sums.h"
#include "rows/epilogue.h"
#include "rows/hinge.h"
#include "rows/hinge_along.h"
#include "rows/hinge_across.h"
#ifdef WITH_SCORING
#include "vector/bits.h"
#include "rows/gather.h"
#include "rows/sample.h"
#include "rows/filters.h"
#include "rows/draw.h"
#endif
#undef REAL_BITS

#define REAL_BITS 32
#include "vector/simd.h"
#include "vector/positive.h"
#include "vector/vmath.h"
#include "vector/formats.h"
#include "vector/transpose.h"
#include "rows/sweep.h"
#include "rows/elements.h"
#include "rows/chunk.h"
#include "rows/along.h"
#include "rows/pieces.h"
#include "rows/parts.h"
#include "rows/planes.h"
#include "rows/across.h"
#include "rows/bands.h"
#include "rows/plain.h"
#include "rows/two_classes.h"
#include "rows/anchored.h"
#include "rows/terms.h"
#include "rows/without_target.h"
#include "rows/hinge.h"
#include "rows/hinge_along.h"
#include "rows/hinge_across.h"
#ifdef WITH_SCORING
#include "vector/bits.h"
#include "rows/gather.h"
#include "rows/sample.h"
#include "rows/filters.h"
#include "rows/draw.h"
#endif
#undef REAL_BITS

#include "rows/targets.h"

/* Calls the function of the precision that a tile is computed in. */
#define IN_PRECISION_OF(tile, name, ...) \
    ((tile)->logits_layout.format == FORMAT_F64 ? name##_f64(__VA_ARGS__) : name##_f32(__VA_ARGS__))

/* Whether the gradient of rows that lie along vectors is streamed, where it does not take the place of the logits. A line
 * that is stored to in a cache is read from memory first: a third of the traffic of a batch that is there. But rows whose
 * exps nothing else could hold stage them in it, rather than compute them twice. */
static int may_stream(const Tile *tile, ptrdiff_t n_rows)
{
#ifdef STREAMS
    const Formula *f = tile->formula;
    const ptrdiff_t bytes = tile->n_classes * (ptrdiff_t)format_size(tile->grad_layout.format);
    const int is_staged = bytes > STAGED_BYTES && f->kind != LOG_SOFTMAX;
    return n_rows * bytes >= STREAMED_BYTES && !is_staged && f->kind != HINGE && !f->by_element
           && IN_PRECISION_OF(tile, is_contiguous, &tile->grad_layout);
#else
    (void)tile, (void)n_rows;
    return 0;
#endif
}

/* The targets' logits for the kinds that want them as they are. */
static void read_given(const Tile *tile, Rows *rows)
{
    const Layout *from = &tile->logits_layout;
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        const char *row = tile->logits + i * from->row_stride;
        if (rows->label[i] >= 0)
            rows->given[i] = load_number(row + rows->label[i] * from->class_stride, from->format, from->swapped);
    }
}

/* Where no class is the target none stays out of the sums. */
static void set_no_targets(const Tile *tile, Rows *rows)
{
    for (ptrdiff_t i = 0; !has_target(tile) && i < tile->n_rows; i++) rows->label[i] = tile->n_classes;
}

static void sweep_hinges(const Tile *tile, Rows *rows, int across)
{
    if (across) IN_PRECISION_OF(tile, sweep_hinges_across, tile, rows);
    else if (tile->n_classes <= CHUNK) IN_PRECISION_OF(tile, sweep_hinges_along, tile, rows);
    else if (rows->label[0] >= 0) {
        IN_PRECISION_OF(tile, begin_hinges, tile, rows);
        for (ptrdiff_t piece = 0; piece < count_pieces(tile->n_classes); piece++)
            IN_PRECISION_OF(tile, sweep_hinges_of_piece, tile, rows, piece);
        IN_PRECISION_OF(tile, combine_hinges, tile, rows);
    }
}

static void sweep(const Tile *tile, Rows *rows, int across)
{
    const Kind kind = tile->formula->kind;
    set_no_targets(tile, rows);
    if (kind == MARGIN || kind == NLL) read_given(tile, rows);
    if (kind == NLL) return;
    if (kind == HINGE) sweep_hinges(tile, rows, across);
    else if (across) IN_PRECISION_OF(tile, sweep_across, tile, rows);
    else if (tile->n_classes <= CHUNK) IN_PRECISION_OF(tile, sweep_short_rows, tile, rows);
    else IN_PRECISION_OF(tile, sweep_long_row, tile, rows);
}

static void write_hinges(const Tile *tile, const Rows *rows, int across)
{
    if (across) IN_PRECISION_OF(tile, write_hinges_across, tile, rows);
    else if (tile->n_classes <= CHUNK) IN_PRECISION_OF(tile, write_hinges_along, tile, rows);
    else
        for (ptrdiff_t piece = 0; piece < count_pieces(tile->n_classes); piece++)
            IN_PRECISION_OF(tile, write_hinges_of_piece, tile, rows, piece);
}

static void write_gradient(const Tile *tile, const Rows *rows, int across)
{
    if (tile->formula->kind == HINGE) write_hinges(tile, rows, across);
    else if (across) IN_PRECISION_OF(tile, write_across, tile, rows);
    else if (tile->n_classes <= CHUNK) IN_PRECISION_OF(tile, write_short_rows, tile, rows);
    else IN_PRECISION_OF(tile, write_long_row, tile, rows);
    if (tile->streams) end_streams();
}

/* sweep and write_gradient of a long row, piece by piece. */
static void begin_long_row(const Tile *tile, Rows *rows)
{
    set_no_targets(tile, rows);
    if (tile->formula->kind == HINGE) IN_PRECISION_OF(tile, begin_hinges, tile, rows);
    else IN_PRECISION_OF(tile, begin_long_row, tile, rows);
}

static void sweep_piece(const Tile *tile, Rows *rows, ptrdiff_t piece)
{
    if (tile->formula->kind == HINGE) IN_PRECISION_OF(tile, sweep_hinges_of_piece, tile, rows, piece);
    else IN_PRECISION_OF(tile, sweep_piece, tile, rows, piece);
}

static int combine_pieces(const Tile *tile, Rows *rows)
{
    if (tile->formula->kind != HINGE) return IN_PRECISION_OF(tile, combine_pieces, tile, rows);
    IN_PRECISION_OF(tile, combine_hinges, tile, rows);
    return 0;
}

static void write_piece(const Tile *tile, const Rows *rows, ptrdiff_t piece)
{
    if (tile->formula->kind == HINGE) IN_PRECISION_OF(tile, write_hinges_of_piece, tile, rows, piece);
    else IN_PRECISION_OF(tile, write_piece, tile, rows, piece);
    if (tile->streams) end_streams();
}

static void begin_parts(const Tile *tile, Rows *rows) { IN_PRECISION_OF(tile, begin_parts, tile, rows); }

static void sweep_part(const Tile *tile, Rows *rows, ptrdiff_t start, ptrdiff_t end)
{
    IN_PRECISION_OF(tile, sweep_part, tile, rows, start, end);
}

static void finish_parts(const Tile *tile, Rows *rows) { IN_PRECISION_OF(tile, finish_parts, tile, rows); }

static void write_part(const Tile *tile, const Rows *rows, ptrdiff_t start, ptrdiff_t end)
{
    IN_PRECISION_OF(tile, write_part, tile, rows, start, end);
}

static void epilogue(const Tile *tile, Rows *rows)
{
    const Formula *f = tile->formula;
    const int is_f64 = tile->logits_layout.format == FORMAT_F64;
    const double rest_scale = is_f64 ? REST_SCALE_F64 : 1;
    switch (f->kind) {
    case FOCAL: epilogue_focal(f, rows, tile->n_rows, rest_scale); return;
    case NLL: epilogue_nll(rows, tile->n_rows); return;
    case HINGE: epilogue_hinge(f, rows, tile->n_rows, tile->n_classes); return;
    case MARGIN: epilogue_margin(tile, rows, rest_scale); return;
    case SOFTMAX: epilogue_softmax(rows, tile->n_rows); return;
    case LOG_SOFTMAX:
    case LOG_SUM_EXP: epilogue_log_sum(tile, rows, rest_scale); return;
    case CROSS_ENTROPY: break;
    }
    if (f->has_terms || f->z_loss != 0 || f->temperature.divisor != 1 || tile->hess)
        epilogue_terms(f, rows, tile->n_rows, rest_scale, tile->grad != NULL);
    else if (tile->grad && is_f64) epilogue_cross_entropy(rows, tile->n_rows, f->normalizer, REST_SCALE_F64, 1);
    else if (tile->grad) epilogue_cross_entropy(rows, tile->n_rows, f->normalizer, 1, 1);
    else if (is_f64) epilogue_cross_entropy(rows, tile->n_rows, f->normalizer, REST_SCALE_F64, 0);
    else epilogue_cross_entropy(rows, tile->n_rows, f->normalizer, 1, 0);
}

/* Whether losses of rows across the lanes of a vector, of few classes, are computed in their own precision; unless by a
 * share of smoothing that is subnormal. */
static int has_own_precision(const Formula *f, ptrdiff_t n_classes, ptrdiff_t item)
{
    return f->kind == CROSS_ENTROPY && !f->by_element && (f->even == 0 || f->even >= 0x1p-126)
           && n_classes * item <= APART_BYTES;
}

/* Rows of extreme weights, in a tile of their own, in memory of a thread as in pieces.h. Planes take half a scratch. */
static void run_extreme(const Tile *tile, Rows *rows, const ptrdiff_t *extreme, ptrdiff_t n)
{
    const int is_f64 = tile->logits_layout.format == FORMAT_F64;
    const ptrdiff_t item = is_f64 ? sizeof(double) : sizeof(float);
    const Layout layout = {is_f64 ? FORMAT_F64 : FORMAT_F32, 0, TILE * item, item};
    const ptrdiff_t half = scratch_across(tile->n_classes * item) / 2;
    void *plane = tile->third + half, *q = tile->second + half;
    static _Thread_local Rows memory;
    Rows *some = &memory;
    Tile few = *tile;
    few.n_rows = n;
    few.logits = (char *)plane;
    few.q = tile->q ? (char *)q : NULL;
    few.grad = tile->grad ? (char *)plane : NULL;
    few.logits_layout = few.q_layout = few.grad_layout = layout;
    few.scratch = tile->third;
    for (ptrdiff_t k = 0; k < n; k++) {
        some->label[k] = rows->label[extreme[k]];
        some->weight[k] = rows->weight[extreme[k]];
        some->sample[k] = rows->sample[extreme[k]];
    }
    IN_PRECISION_OF(tile, gather_extreme, tile->n_classes, tile->logits, &tile->logits_layout, extreme, n, plane);
    if (tile->q) IN_PRECISION_OF(tile, gather_extreme, tile->n_classes, tile->q, &tile->q_layout, extreme, n, q);
    IN_PRECISION_OF(tile, sweep_across, &few, some);
    epilogue(&few, some);
    if (few.grad) IN_PRECISION_OF(tile, write_across, &few, some);
    if (few.grad) IN_PRECISION_OF(tile, scatter_extreme, tile, extreme, n, plane);
    for (ptrdiff_t k = 0; k < n; k++) rows->loss[extreme[k]] = some->loss[k];
}

static void run_in_own_precision(const Tile *tile, Rows *rows)
{
    ptrdiff_t extreme[TILE + 1], n;
    if (tile->formula->has_terms || tile->formula->z_loss != 0)
        n = IN_PRECISION_OF(tile, tile_of_mixtures, tile, rows, extreme);
    else n = IN_PRECISION_OF(tile, anchored_tile, tile, rows, extreme);
    if (n > 0) run_extreme(tile, rows, extreme, n);
    if (tile->grad) IN_PRECISION_OF(tile, put_anchored, tile);
}

/* Where an extreme normalizer leaves gradients to the walk by the maximum losses have the bits that they have alone. */
static void run_apart(const Tile *tile, Rows *rows)
{
    Tile without = *tile;
    double loss[TILE];
    without.grad = NULL;
    run_in_own_precision(&without, rows);
    memcpy(loss, rows->loss, sizeof loss);
    sweep(tile, rows, 1);
    epilogue(tile, rows);
    write_gradient(tile, rows, 1);
    memcpy(rows->loss, loss, sizeof loss);
}

/* The losses of a tile, and its gradient if there is one: sweep, epilogue, write. */
static void run_tile(const Tile *tile, Rows *rows, int across)
{
    const ptrdiff_t item = tile->logits_layout.format == FORMAT_F64 ? sizeof(double) : sizeof(float);
    if (across && has_own_precision(tile->formula, tile->n_classes, item)) {
        const double divisor = divisor_of_gradient(tile->formula);
        if (tile->grad && !(divisor >= LEAST_NORMALIZER && divisor <= MOST_NORMALIZER)) run_apart(tile, rows);
        else run_in_own_precision(tile, rows);
        return;
    }
    const int single = across && tile->n_classes * item <= APART_BYTES;
    if (single && tile->formula->kind == SOFTMAX) {
        IN_PRECISION_OF(tile, softmax_of_few, tile);
        return;
    }
    if (single && tile->formula->kind == LOG_SUM_EXP && tile->q) {
        IN_PRECISION_OF(tile, sweep_factors, tile, rows);
        finish_log_sums(tile, rows, REST_SCALE_F64);
    } else if (single && takes_maximum(tile)) {
        IN_PRECISION_OF(tile, sweep_log_sums, tile, rows);
        finish_log_sums(tile, rows, 1);
    } else {
        sweep(tile, rows, across);
        epilogue(tile, rows);
    }
    if (tile->grad) write_gradient(tile, rows, across);
}

/* Adjacent tiles of many classes across, in memory of a thread as in pieces.h. */
typedef struct { Tile tile[BAND]; Rows rows[BAND]; } Band;

static Band *own_band(void)
{
    static _Thread_local Band memory;
    return &memory;
}

/* run_tile for the first tiles of a band, a chunk of classes of all of them at a time. */
static void run_band(Band *band, ptrdiff_t n_tiles)
{
    const Tile *tile = band->tile;
    Rows *rows = band->rows;
    const Kind kind = tile->formula->kind;
    for (ptrdiff_t t = 0; t < n_tiles; t++) {
        set_no_targets(&tile[t], &rows[t]);
        if (kind == MARGIN || kind == NLL) read_given(&tile[t], &rows[t]);
    }
    if (kind != NLL) IN_PRECISION_OF(tile, sweep_own_band, tile, rows, n_tiles);
    for (ptrdiff_t t = 0; t < n_tiles; t++) epilogue(&tile[t], &rows[t]);
    if (tile->grad) IN_PRECISION_OF(tile, write_own_band, tile, rows, n_tiles);
}

/* Logits that count as x factor / divisor, one of which is 1. */
static void set_temperature(Temperature *t, double factor, double divisor)
{
    t->factor = factor;
    t->divisor = divisor;
    t->f64 = plain_units_f64;
    t->f32 = plain_units_f32;
    if (factor == divisor) return;
    double high = LN2 * divisor, low = fma(LN2, divisor, -high) + LN2_TAIL * divisor;
    if (divisor == 1) {
        high = LN2 / factor;
        low = (fma(-high, factor, LN2) + LN2_TAIL) / factor;
    }
    t->f64 = scaled_units_f64(high, low, factor / divisor);
    t->f32 = scaled_units_f32(high, low, factor / divisor);
}

/* What a formula's parameters amount to. */
static void derive(Formula *f, ptrdiff_t n_classes, int from_labels)
{
    set_temperature(&f->temperature, f->temperature.factor, f->temperature.divisor);
    if (f->transform == SOFTCAP) set_temperature(&f->half_cap, 1, f->softcap / 2);
    f->even = n_classes ? f->smoothing / n_classes : 0;
    f->share = from_labels ? 0 : 1 - f->smoothing;
    f->label_share = from_labels ? 1 - f->smoothing : 0;
}

#undef IN_PRECISION_OF
#endif
