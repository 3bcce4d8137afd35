/* Tiles across: what passes through the scratch, and when.
 *
 * Included once per REAL_BITS, after across.h. Most tiles are in the scratch as a whole. Larger ones pass in
 * chunks, each of all tiles of a band of adjacent ones before the next: so memory is walked in runs of several lines,
 * and a page is looked up once for many rows. Where nothing but the sum of the exps is wanted, the logits are read once
 * for it: against the largest so far, and a sum moves with that by an exact power of two. The exps are computed again
 * to be written.
 */

/* The maxima of a chunk and before, and where they stand if that is asked for. */
INLINE void FN(chunk_maxima)(const Tile *tile, Rows *rows, ptrdiff_t start, ptrdiff_t n, ptrdiff_t i, FN(Tally) *tally)
{
    const REAL *x = (const REAL *)tile->scratch, *w = (const REAL *)tile->formula->term_weight;
    const vec from = FN(load)(tally->max + i);
    FN(lanes_max)(x, n, i, 0, tally);
    if (!FN(knows_maxima)(tile)) {
        if (FN(every_lane)(FN(not_less)(from, FN(load)(tally->max + i)))) return;
        FN(move_sums)(tile, i, from, tally);
    }
    if (takes_maximum(tile)) FN(lanes_largest)(tile->formula, x, NULL, start, n, i, tally, rows->label);
    if (tile->q)
        FN(lanes_largest)(tile->formula, (const REAL *)tile->second, w ? w + start : NULL, start, n, i, tally,
                          rows->label);
}

/* The sums of a chunk that is in the scratch. */
INLINE void FN(chunk_sums)(const Tile *tile, Rows *rows, ptrdiff_t start, ptrdiff_t n, FN(Tally) *tally)
{
    const int stage = FN(stages)(tile) && FN(is_single)(tile);
    const FN(Ahead) first = FN(ahead)(tile, start + n);
    REAL *x = (REAL *)tile->scratch;
    FN(find_targets)(rows->label, tile->n_rows, start, n, tally->target);
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES) {
        if (tile->formula->has_terms) FN(lanes_terms)(tile, start, n, i, tally, rows);
        if (stage) FN(lanes_sum)(tile, x, 0, n, i, 1, &first, tally);
        else FN(lanes_sum)(tile, x, start, n, i, tile->hess != NULL, &first, tally);
        if (tile->hess) FN(lanes_below)(tile, n, i, start == 0, tally, rows);
    }
}

/* The sums of rows with anchors beyond MOVABLE, once more, against the maxima that are known by now. */
static void FN(sum_fixed)(const Tile *tile, Rows *rows, FN(Tally) *tally)
{
    const ptrdiff_t chunk = BAND_CHUNK;
    double sum[TILE], error[TILE];
    int any = 0;
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) any |= tally->fixed[i] != 0;
    if (!any) return;
    memcpy(sum, tally->sum, sizeof sum);
    memcpy(error, tally->error, sizeof error);
    for (ptrdiff_t start = 0; start < tile->n_classes; start += chunk) {
        const ptrdiff_t n = FN(smaller)(tile->n_classes - start, chunk);
        FN(prepare_planes)(tile, rows, start, n);
        FN(chunk_sums)(tile, rows, start, n, tally);
    }
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) {
        if (tally->fixed[i] != 0) continue;
        tally->sum[i] = sum[i];
        tally->error[i] = error[i];
    }
}

static void FN(sweep_band)(const Tile *tile, Rows *rows, FN(Tally) *tally, ptrdiff_t n_tiles)
{
    const ptrdiff_t n_classes = tile->n_classes;
    const int single = FN(is_single)(tile), knows_maxima = FN(knows_maxima)(tile);
    const ptrdiff_t chunk = single ? n_classes : BAND_CHUNK;

    for (ptrdiff_t t = 0; t < n_tiles; t++)
        for (ptrdiff_t i = 0; i < FN(in_vectors)(tile[t].n_rows); i++) {
            tally[t].max[i] = tally[t].most[i] = -INFINITY;
            tally[t].sum[i] = tally[t].error[i] = 0;
            tally[t].fixed[i] = 0;
        }
    for (ptrdiff_t start = 0; knows_maxima && start < n_classes; start += chunk) {
        const ptrdiff_t n = FN(smaller)(n_classes - start, chunk);
        for (ptrdiff_t t = 0; t < n_tiles; t++) {
            FN(prepare_planes)(&tile[t], &rows[t], start, n);
            for (ptrdiff_t i = 0; i < tile[t].n_rows; i += LANES)
                FN(chunk_maxima)(&tile[t], &rows[t], start, n, i, &tally[t]);
        }
    }
    for (ptrdiff_t t = 0; (tile->formula->has_terms || tile->hess) && t < n_tiles; t++)
        for (ptrdiff_t i = 0; i < tile[t].n_rows; i++) {
            if (tile->formula->has_terms && rows[t].label[i] >= 0) FN(find_own_term)(&tile[t], &rows[t], i);
            rows[t].mass[i] = rows[t].spread[i] = rows[t].below[i] = 0;
        }
    for (ptrdiff_t start = 0; start < n_classes; start += chunk) {
        const ptrdiff_t n = FN(smaller)(n_classes - start, chunk);
        for (ptrdiff_t t = 0; t < n_tiles; t++) {
            if (!single) FN(prepare_planes)(&tile[t], &rows[t], start, n);
            for (ptrdiff_t i = 0; !knows_maxima && i < tile[t].n_rows; i += LANES)
                FN(chunk_maxima)(&tile[t], &rows[t], start, n, i, &tally[t]);
            FN(chunk_sums)(&tile[t], &rows[t], start, n, &tally[t]);
        }
    }
    for (ptrdiff_t t = 0; t < n_tiles; t++) {
        if (!knows_maxima) FN(sum_fixed)(&tile[t], &rows[t], &tally[t]);
        FN(finish_rows)(&tile[t], tally[t].max, tally[t].at_target, tally[t].sum, tally[t].error, &rows[t]);
        for (ptrdiff_t i = 0; tile->hess && i < tile[t].n_rows; i++)
            rows[t].below[i] = (rows[t].below[i] + (tally[t].at_top[i] - 1) * tally[t].top[i]) / rows[t].all[i];
    }
}

static void FN(sweep_own_band)(const Tile *tile, Rows *rows, ptrdiff_t n_tiles)
{
    static _Thread_local FN(Tally) tally[BAND];
    FN(sweep_band)(tile, rows, tally, n_tiles);
}

/* Not inlined, nor is write_across: what one of them has on the stack is not to be there while another runs. */
static __attribute__((noinline)) void FN(sweep_across)(const Tile *tile, Rows *rows)
{
    FN(Tally) tally;
    FN(sweep_band)(tile, rows, &tally, 1);
}

/* What becomes of the rows of a tile. Returns whether none is ignored. */
static int FN(begin_scaling)(const Tile *tile, const Rows *rows, FN(Scaling) *s)
{
    if (tile->formula->kind != LOG_SOFTMAX) FN(set_factors)(rows, rows->alpha, tile->n_rows, &s->p);
    if (tile->hess) FN(set_factors)(rows, rows->curve, tile->n_rows, &s->curve);
    for (ptrdiff_t i = 0; i < tile->n_rows; i += LANES_F64) {
        FN(store_narrow)(s->anchor + i, load_f64(rows->anchor + i));
        if (tile->formula->kind == LOG_SOFTMAX) {
            FN(store_narrow)(s->log_sum + i, load_f64(rows->log_sum + i));
            continue;
        }
        FN(store_narrow)(s->beta + i, load_f64(rows->beta + i));
        if (tile->formula->has_terms) {
            FN(store_narrow)(s->even + i, load_f64(rows->even + i));
            FN(store_narrow)(s->share + i, load_f64(rows->share + i));
        }
        if (!tile->hess) continue;
        FN(store_narrow)(s->p_scale + i, 1 / load_f64(rows->all + i));
        FN(store_narrow)(s->lead + i, load_f64(rows->lead + i));
        FN(store_narrow)(s->excess + i, load_f64(rows->excess + i));
        FN(store_narrow)(s->hess_target + i, load_f64(rows->hess_target + i));
        FN(store_narrow)(s->hess_top + i, load_f64(rows->hess_top + i));
    }
    int simple = 1;
    for (ptrdiff_t i = 0; i < tile->n_rows; i++) simple &= rows->label[i] >= 0;
    return simple;
}

/* A chunk that is in the scratch: exps, or logits if those are not staged. */
static void FN(write_chunk)(const Tile *tile, const Rows *rows, ptrdiff_t start, ptrdiff_t n, int simple,
                            FN(Scaling) *s)
{
    const ptrdiff_t n_rows = tile->n_rows;
    const int staged = FN(is_single)(tile);
    const FN(Ahead) first = FN(ahead)(tile, start + n);
    REAL *x = (REAL *)tile->scratch;
    if (tile->formula->kind == LOG_SOFTMAX) {
        for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
            const vec m = FN(load)(s->anchor + i), log_sum = FN(load)(s->log_sum + i);
            const FN(Ahead) ahead = FN(ahead_of)(&first, tile, i);
            for (ptrdiff_t c = 0; c < n; c++) {
                if (!FN(is_single)(tile)) FN(ask_for_class)(&ahead, c, 1);
                FN(store)(x + c * TILE + i, (FN(load)(x + c * TILE + i) - m) - log_sum);
            }
        }
        FN(put_plane)(tile, tile->grad, &tile->grad_layout, start, n, x);
        return;
    }
    FN(find_targets)(rows->label, n_rows, start, n, s->target);
    if (tile->formula->by_element || tile->formula->has_terms) {
        for (ptrdiff_t i = 0; i < n_rows; i += LANES) FN(lanes_write_elements)(tile, start, n, i, staged, s);
        FN(put_elements)(tile, rows, start, n);
        return;
    }
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        if (staged && simple) FN(lanes_write)(tile, x, n, i, 1, 1, &first, s);
        else FN(lanes_write)(tile, x, n, i, staged, 0, &first, s);
    }
    FN(put_plane)(tile, tile->grad, &tile->grad_layout, start, n, x);
}

static void FN(write_band)(const Tile *tile, const Rows *rows, FN(Scaling) *scaling, ptrdiff_t n_tiles)
{
    const int single = FN(is_single)(tile);
    const ptrdiff_t chunk = single ? tile->n_classes : BAND_CHUNK;
    int simple[BAND];
    for (ptrdiff_t t = 0; t < n_tiles; t++) simple[t] = FN(begin_scaling)(&tile[t], &rows[t], &scaling[t]);
    for (ptrdiff_t start = 0; start < tile->n_classes; start += chunk)
        for (ptrdiff_t t = 0; t < n_tiles; t++) {
            const ptrdiff_t n = FN(smaller)(tile->n_classes - start, chunk);
            if (!single) FN(prepare_planes)(&tile[t], &rows[t], start, n);
            FN(write_chunk)(&tile[t], &rows[t], start, n, simple[t], &scaling[t]);
        }
}

static void FN(write_own_band)(const Tile *tile, const Rows *rows, ptrdiff_t n_tiles)
{
    static _Thread_local FN(Scaling) scaling[BAND];
    FN(write_band)(tile, rows, scaling, n_tiles);
}

static __attribute__((noinline)) void FN(write_across)(const Tile *tile, const Rows *rows)
{
    FN(Scaling) scaling;
    FN(write_band)(tile, rows, &scaling, 1);
}
