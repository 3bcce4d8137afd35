/* All row code, for both precisions, under one name each. Everything is static: the extension
 * module of one instruction-set level shares no symbol with another's. */
#ifndef FASTCE_ROWS_H
#define FASTCE_ROWS_H

#include "problem.h"

#define REAL_BITS 64
#include "simd.h"
#include "vmath.h"
#include "formats.h"
#include "sweep.h"
#include "epilogue.h"
#undef REAL_BITS

#define REAL_BITS 32
#include "simd.h"
#include "vmath.h"
#include "formats.h"
#include "sweep.h"
#undef REAL_BITS

#include "targets.h"

/* The precision that a tile is computed in. */
#define IN_PRECISION_OF(tile, name, ...) \
    ((tile)->logits_layout.format == FORMAT_F64 ? name##_f64(__VA_ARGS__) : name##_f32(__VA_ARGS__))

static void sweep(const Tile *tile, Rows *rows, int across) { IN_PRECISION_OF(tile, sweep, tile, rows, across); }
static void write_gradient(const Tile *tile, const Rows *rows, int across) { IN_PRECISION_OF(tile, write, tile, rows, across); }

static void read_at_target(const Tile *tile, Rows *rows) { IN_PRECISION_OF(tile, read_at_target, tile, rows); }
static void sweep_piece(const Tile *tile, const Rows *rows, ptrdiff_t start, ptrdiff_t end, double *max, double *rest)
{
    IN_PRECISION_OF(tile, sweep_piece, tile, rows, 0, start, end, max, rest);
}
static void write_piece(const Tile *tile, const Rows *rows, ptrdiff_t start, ptrdiff_t end)
{
    IN_PRECISION_OF(tile, write_piece, tile, rows, 0, start, end);
}
static void write_target(const Tile *tile, const Rows *rows) { IN_PRECISION_OF(tile, write_target, tile, rows, 0); }

#undef IN_PRECISION_OF
#endif
