/* Hinges across rows: every lane of a vector holds a row, and the classes pass one by one (across.h).
 *
 * Included once per REAL_BITS, after hinge.h.
 */

/* What is known of the rows of a tile between two chunks. */
typedef struct {
    INT target[TILE]; /* within the chunk (across.h) */
    double rest[TILE], rest_low[TILE], mass[TILE], mass_low[TILE];
    REAL most[TILE];
} FN(HingeTally);

INLINE void FN(sum_lanes_of)(const Tile *tile, ptrdiff_t start, ptrdiff_t n, ptrdiff_t i, const FN(Ahead) *first,
                             FN(HingeTally) *tally, Rows *rows, Hinge kind, int power, int with_mass)
{
    const FN(Ahead) ahead = FN(ahead_of)(first, tile, i);
    const FN(Edge) edge = FN(edge_of_lanes)(rows, i);
    const REAL *x = (const REAL *)tile->scratch;
    const vec lowest = FN(splat)(-INFINITY);
    ivec y, here = {0}, place = (ivec){0} - 1;
    memcpy(&y, tally->target + i, sizeof y);
    FN(HingeSums) sums = FN(no_hinges)();
    if (start > 0) {
        sums.rest = FN(load_sums)(tally->rest + i, tally->rest_low + i);
        if (power == 2) sums.mass = FN(load_sums)(tally->mass + i, tally->mass_low + i);
        sums.most = FN(load)(tally->most + i);
    }
    for (ptrdiff_t c = 0; c < n; c++, here += 1) {
        FN(ask_for_class)(&ahead, c, tile->grad != NULL);
        const vec v = FN(select)(FN(differ)(y, here), FN(load)(x + c * TILE + i), lowest);
        if (kind == CRAMMER_SINGER)
            place = (ivec)FN(select)(FN(not_less)(sums.most, v), (vec)place, (vec)here);
        FN(add_hinges)(&sums, v, &edge, kind, power, with_mass);
    }
    FN(store_sums)(tally->rest + i, tally->rest_low + i, sums.rest);
    if (power == 2) FN(store_sums)(tally->mass + i, tally->mass_low + i, sums.mass);
    for (ptrdiff_t k = 0; with_mass && power == 1 && k < LANES; k++) /* there may be more than a float32 counts */
        tally->mass[i + k] = (start > 0 ? tally->mass[i + k] : 0) + sums.count[k];
    FN(store)(tally->most + i, (vec)((ivec)sums.most | sums.nan));
    for (ptrdiff_t k = 0; kind == CRAMMER_SINGER && k < LANES; k++)
        if (place[k] >= 0 || start == 0) rows->rival[i + k] = place[k] < 0 ? -1 : start + place[k];
}

/* read_given where all classes are in the scratch. */
INLINE void FN(read_given_of_plane)(const Tile *tile, Rows *rows)
{
    const REAL *x = (const REAL *)tile->scratch;
    for (ptrdiff_t i = 0; i < tile->n_rows; i++)
        if (rows->label[i] >= 0) rows->given[i] = x[rows->label[i] * TILE + i];
}

static void FN(sweep_hinges_across)(const Tile *tile, Rows *rows)
{
    const ptrdiff_t n_rows = tile->n_rows, n_classes = tile->n_classes;
    const ptrdiff_t chunk = FN(is_single)(tile) ? n_classes : CHUNK_ACROSS;
    const Formula *f = tile->formula;
    FN(HingeTally) tally;
    if (n_rows < 1 || n_classes < 1) return; /* never: see sweep_across */
    for (ptrdiff_t start = 0; start < n_classes; start += chunk) {
        const ptrdiff_t n = FN(smaller)(n_classes - start, chunk);
        FN(fetch_plane)(tile, tile->logits, &tile->logits_layout, start, n, (REAL *)tile->scratch);
        FN(find_targets)(rows->label, n_rows, start, n, tally.target);
        if (start == 0) {
            if (n < n_classes) read_given(tile, rows);
            else FN(read_given_of_plane)(tile, rows);
            FN(set_edges)(f, rows, n_rows);
        }
        const FN(Ahead) first = FN(ahead)(tile, start + n);
        for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
#define SUM_LANES(kind, power, with_mass) \
    FN(sum_lanes_of)(tile, start, n, i, &first, &tally, rows, kind, power, with_mass)
            FOR_EACH_HINGE(f, tile->grad, SUM_LANES);
#undef SUM_LANES
        }
    }
    if (f->hinge == CRAMMER_SINGER) {
        FN(finish_largest)(f, tally.most, rows, n_rows);
        return;
    }
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        rows->rest[i] = tally.rest[i];
        rows->rest_low[i] = REAL_BITS == 64 ? tally.rest_low[i] : 0;
        rows->mass[i] = tally.mass[i];
        if (REAL_BITS == 64 && f->power == 2 && isfinite(tally.mass[i])) rows->mass[i] += tally.mass_low[i];
    }
}

/* The gradient in place of the logits. */
INLINE void FN(write_lanes_of)(const Tile *tile, const Rows *rows, ptrdiff_t start, ptrdiff_t n, ptrdiff_t i,
                               const INT *target, const FN(Slopes) *slopes, int ramp, int simple)
{
    REAL *x = (REAL *)tile->scratch;
    const FN(Edge) edge = FN(edge_of_lanes)(rows, i);
    const FN(Slope) slope = FN(slope_of_lanes)(slopes, i);
    const vec beta = FN(load)(slopes->beta + i), none = {0};
    ivec y, here = {0};
    memcpy(&y, target + i, sizeof y);
    for (ptrdiff_t c = 0; c < n; c++, here += 1) {
        const vec v = FN(load)(x + c * TILE + i);
        vec of = ramp ? FN(ramp)(v, &edge, &slope) : FN(step)(v, &edge, &slope);
        if (ramp && !simple) of = FN(select)(FN(not_less)(none, slope.ramp), FN(step)(v, &edge, &slope), of);
        FN(store)(x + c * TILE + i, FN(select)(FN(differ)(y, here), of, beta));
    }
    if (tile->formula->hinge != CRAMMER_SINGER) return;
    for (ptrdiff_t k = i; k < i + LANES && k < tile->n_rows; k++)
        if (rows->label[k] >= 0 && rows->rival[k] >= start && rows->rival[k] < start + n)
            x[(rows->rival[k] - start) * TILE + k] = 0 - slopes->beta[k];
}

static void FN(write_hinges_across)(const Tile *tile, const Rows *rows)
{
    const ptrdiff_t n_rows = tile->n_rows, n_classes = tile->n_classes;
    const ptrdiff_t chunk = FN(is_single)(tile) ? n_classes : CHUNK_ACROSS;
    const int has_ramps = tile->formula->power == 2 && tile->formula->hinge != CRAMMER_SINGER;
    FN(Slopes) slopes;
    INT target[TILE];
    const int simple = FN(set_slopes)(tile->formula, rows, n_rows, &slopes);
    for (ptrdiff_t start = 0; start < n_classes; start += chunk) {
        const ptrdiff_t n = FN(smaller)(n_classes - start, chunk);
        if (n < n_classes)
            FN(fetch_plane)(tile, tile->logits, &tile->logits_layout, start, n, (REAL *)tile->scratch);
        FN(find_targets)(rows->label, n_rows, start, n, target);
        for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
            if (!has_ramps) FN(write_lanes_of)(tile, rows, start, n, i, target, &slopes, 0, 0);
            else FN(write_lanes_of)(tile, rows, start, n, i, target, &slopes, 1, simple);
        }
        FN(put_plane)(tile, tile->grad, &tile->grad_layout, start, n, (REAL *)tile->scratch);
    }
}
