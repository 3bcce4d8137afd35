/* All row code, for both precisions, under one name each. Everything is static: the extension
 * module of one instruction-set level shares no symbol with another's. */
#ifndef FASTCE_ROWS_H
#define FASTCE_ROWS_H

#include "problem.h"

#define REAL_BITS 64
#include "simd.h"
#include "vmath.h"
#include "formats.h"
#include "transpose.h"
#include "sweep.h"
#include "along.h"
#include "across.h"
#include "epilogue.h"
#undef REAL_BITS

#define REAL_BITS 32
#include "simd.h"
#include "vmath.h"
#include "formats.h"
#include "transpose.h"
#include "sweep.h"
#include "along.h"
#include "across.h"
#undef REAL_BITS

#include "targets.h"

/* Calls the function of the precision that a tile is computed in. */
#define IN_PRECISION_OF(tile, name, ...) \
    ((tile)->logits_layout.format == FORMAT_F64 ? name##_f64(__VA_ARGS__) : name##_f32(__VA_ARGS__))

static void sweep(const Tile *tile, Rows *rows, int across)
{
    if (across) IN_PRECISION_OF(tile, sweep_across, tile, rows);
    else if (tile->n_classes <= CHUNK) IN_PRECISION_OF(tile, sweep_short_rows, tile, rows);
    else IN_PRECISION_OF(tile, sweep_long_row, tile, rows);
}

static void write_gradient(const Tile *tile, const Rows *rows, int across)
{
    if (across) IN_PRECISION_OF(tile, write_across, tile, rows);
    else if (tile->n_classes <= CHUNK) IN_PRECISION_OF(tile, write_short_rows, tile, rows);
    else IN_PRECISION_OF(tile, write_long_row, tile, rows);
}

/* sweep and write_gradient of a long row, piece by piece. */
static void read_target(const Tile *tile, Rows *rows) { IN_PRECISION_OF(tile, read_target, tile, rows); }
static void sweep_piece(const Tile *tile, Rows *rows, ptrdiff_t piece) { IN_PRECISION_OF(tile, sweep_piece, tile, rows, piece); }
static void combine_pieces(const Tile *tile, Rows *rows) { IN_PRECISION_OF(tile, combine_pieces, tile, rows); }
static void write_piece(const Tile *tile, const Rows *rows, ptrdiff_t piece) { IN_PRECISION_OF(tile, write_piece, tile, rows, piece); }
static void write_target(const Tile *tile, const Rows *rows) { IN_PRECISION_OF(tile, write_target, tile, rows, 0); }

static void epilogue(const Tile *tile, Rows *rows, double normalizer)
{
    const int is_f64 = tile->logits_layout.format == FORMAT_F64;
    if (tile->grad && is_f64) epilogue_cross_entropy(rows, tile->n_rows, normalizer, REST_SCALE_F64, 1);
    else if (tile->grad) epilogue_cross_entropy(rows, tile->n_rows, normalizer, 1, 1);
    else if (is_f64) epilogue_cross_entropy(rows, tile->n_rows, normalizer, REST_SCALE_F64, 0);
    else epilogue_cross_entropy(rows, tile->n_rows, normalizer, 1, 0);
}

#undef IN_PRECISION_OF
#endif
