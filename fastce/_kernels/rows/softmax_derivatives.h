/* Gradient and Hessian of a softmax for boosted trees: a tile of rows.
 *
 * Included once per REAL_BITS, that of the margins, after margins.h and elements/curvature.h, which has the formulas.
 * All is computed in that precision and rounded to float32 at the end, as the libraries do.
 */
#ifndef FASTCE_SOFTMAX_DERIVATIVES_H
#define FASTCE_SOFTMAX_DERIVATIVES_H

enum {
    FEW_CLASSES = 128, FEW_ROWS = 16,   /* with more classes fewer rows pass together, to stay in cache */
    PLANE_BYTES = 3 * sizeof(double) + 2 * sizeof(float) /* exps, u, v; gradients, Hessians */
};
enum { WELL, WRONG_LABEL, NO_MEMORY };

typedef struct {
    ptrdiff_t n, n_classes;
    Boosting options;
    Matrix margins, target, grad, hess; /* target: probabilities, */
    Operand label, weight;              /* or labels; data is NULL where there are none */
    const double *class_weight;         /* may be NULL */
} Softmax;

INLINE ptrdiff_t rows_at_once(const Softmax *s) { return s->n_classes <= FEW_CLASSES ? TILE : FEW_ROWS; }

/* Whether a class of a tile can be written where it belongs: its rows are adjacent there. */
INLINE int is_column(const Layout *layout)
{
    return layout->format == FORMAT_F32 && !layout->swapped && layout->row_stride == sizeof(float);
}

static void deliver_plane(const float *plane, const Matrix *to, ptrdiff_t first, ptrdiff_t n_rows, ptrdiff_t n_classes);
#endif

typedef struct {
    REAL *staged, *u, *v;
    float *grad, *hess;
    FN(RowSums) sums;
    INT label[TILE];
    double weight[TILE];
    REAL factor[TILE], bend[TILE];                             /* of a hard target: weight s(p), weight s'(p) p */
    REAL u_top[TILE], u_rest[TILE], v_top[TILE], v_rest[TILE]; /* else sums, those of the maximum by themselves */
} FN(Tile);

INLINE void FN(give_floats)(float *p, ptrdiff_t n, vec a)
{
#if REAL_BITS == 64
    float some[LANES_COUNT];
    if (n < LANES) {
        store_floats(some, a);
        memcpy(p, some, (size_t)n * sizeof(float));
    } else store_floats(p, a);
#else
    FN(give)(p, n, a);
#endif
}

/* p and 1 - p of LANES rows and one class; a float32 p is the quotient rounded once, or nearly. */
typedef struct {
    vec p, q;
    FN(mask) is_top; /* or NaN */
} FN(Share);

INLINE FN(Share) FN(share_of)(const FN(RowSums) *sums, const REAL *staged, ptrdiff_t i)
{
    const vec e = FN(load)(staged + i), low = FN(load)(sums->inverse_low + i);
    const vec p = FN(fma)(e, FN(load)(sums->inverse + i), e * low);
    const FN(mask) is_top = FN(not_less)(e, FN(load)(sums->top + i));
    return (FN(Share)){p, FN(select)(is_top, FN(load)(sums->rest + i), 1 - p), is_top};
}

/* Labels and weights of the rows; false if a label is no class. */
static int FN(read_rows)(const Softmax *s, ptrdiff_t first, ptrdiff_t n_rows, FN(Tile) *tile)
{
    double label[TILE] = {0};
    const double n_classes = (double)s->n_classes;
    int wrong = 0;
    for (ptrdiff_t i = 0; i < TILE; i++) tile->weight[i] = 1;
    if (s->weight.data) read_f64(&s->weight, first, n_rows, tile->weight);
    if (s->label.data) read_f64(&s->label, first, n_rows, label);
    for (ptrdiff_t i = 0; i < TILE; i++) {
        const int inside = (label[i] >= 0) & (label[i] < n_classes);
        tile->label[i] = (INT)(inside ? label[i] : 0);
        wrong |= tile->label[i] != label[i];
    }
    return !wrong;
}

/* ---- Hard targets, not smoothed: two numbers a row ------------------------------------------------ */

static void FN(factors_of_labels)(const Softmax *s, ptrdiff_t n_rows, FN(Tile) *tile)
{
    const Boosting *o = &s->options;
    double p[TILE], q[TILE];
    if (s->class_weight)
        for (ptrdiff_t i = 0; i < TILE; i++) tile->weight[i] *= s->class_weight[tile->label[i]];
    for (ptrdiff_t i = 0; i < TILE; i++) tile->factor[i] = (REAL)tile->weight[i];
    if (o->gamma == 0) return;
    for (ptrdiff_t i = 0; i < TILE; i++) {
        const REAL e = i < n_rows ? tile->staged[tile->label[i] * TILE + i] : 0;
        p[i] = e * ((double)tile->sums.inverse[i] + tile->sums.inverse_low[i]);
        q[i] = e >= tile->sums.top[i] ? tile->sums.rest[i] : 1 - p[i];
    }
    for (ptrdiff_t i = 0; i < n_rows; i += LANES_F64) {
        const vec_f64 weight = load_f64(tile->weight + i);
        const Focal focal = focal_of(load_f64(p + i), load_f64(q + i), o->gamma);
        FN(store_narrow)(tile->factor + i, weight * focal.slope);
        FN(store_narrow)(tile->bend + i, weight * focal.bend);
    }
}

/* LANES rows of a class, of which the first n are there; the last argument is a constant. */
INLINE void FN(write_label_lanes)(const FN(Tile) *tile, const Boosting *o, INT c, ptrdiff_t i, ptrdiff_t n,
                                  float *grad, float *hess, Curvature curvature)
{
    const FN(Share) share = FN(share_of)(&tile->sums, tile->staged + c * TILE, i);
    ivec label;
    memcpy(&label, tile->label + i, sizeof label);
    const vec d = FN(select)(FN(differ)(label, (ivec){0} + c), share.p, -share.q);
    const vec factor = FN(load)(tile->factor + i), g = factor * d;
    vec h = curvature == MAGNITUDE ? FN(absolute)(g) : (REAL)o->factor * factor * (share.p * share.q);
    if (curvature == WHOLE && o->gamma > 0) h -= FN(load)(tile->bend + i) * d * d;
    FN(give_floats)(grad + i, n, g);
    FN(give_floats)(hess + i, n, FN(larger)(FN(splat)((REAL)o->floor), h)); /* NaN stays */
}

/* ---- Soft or smoothed targets: two numbers an element ---------------------------------------------- */

/* q of the tile, smoothed and weighted, into u. */
static void FN(read_targets)(const Softmax *s, ptrdiff_t first, ptrdiff_t n_rows, FN(Tile) *tile)
{
    const Layout *layout = &s->target.layout;
    const double smoothing = s->options.smoothing, even = smoothing / s->n_classes;
    const char *at = s->target.data + first * layout->row_stride;
    double row[TILE] = {0};
    for (ptrdiff_t c = 0; c < s->n_classes; c++, at += layout->class_stride) {
        const double class_weight = s->class_weight ? s->class_weight[c] : 1;
        for (ptrdiff_t i = 0; i < n_rows; i++) {
            if (s->target.data) row[i] = load_number(at + i * layout->row_stride, layout->format, layout->swapped);
            else row[i] = tile->label[i] == c;
        }
        for (ptrdiff_t i = 0; i < TILE; i++)
            tile->u[c * TILE + i] = (REAL)(tile->weight[i] * class_weight * ((1 - smoothing) * row[i] + even));
    }
}

typedef struct { sum_vec top, rest; } FN(Sums);

/* Where the maximum has all but a little, v of it may be large: what the others have is not to be lost beside it. */
INLINE void FN(add_share)(FN(Sums) *sums, FN(mask) is_top, vec a)
{
    const vec top = FN(keep)(is_top, a);
    FN(add)(&sums->top, top);
    FN(add)(&sums->rest, a - top);
}

INLINE void FN(store_sum)(REAL *to, sum_vec acc)
{
    for (int part = 0; part < N_PARTS; part++)
        FN(store_narrow)(to + part * LANES_F64, FN(part_of_sum)(acc, part));
}

/* The sum less one of its terms. */
INLINE vec FN(sum_of_others)(const FN(Share) *share, vec top, vec rest, vec a)
{
    return FN(select)(share->is_top, (top - a) + rest, (rest - a) + top);
}

/* u and v from q, and their sums. */
static void FN(sum_targets)(const Softmax *s, ptrdiff_t n_rows, FN(Tile) *tile)
{
    const Boosting *o = &s->options;
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        FN(Sums) sum_u = {{{0}, {0}}, {{0}, {0}}}, sum_v = sum_u;
        for (ptrdiff_t c = 0; c < s->n_classes; c++) {
            REAL *u = tile->u + c * TILE + i, *v = tile->v + c * TILE + i;
            const FN(Share) share = FN(share_of)(&tile->sums, tile->staged + c * TILE, i);
            if (o->gamma > 0) {
                for (int part = 0; part < N_PARTS; part++) {
                    const vec_f64 q = FN(load_wide)(u + part * LANES_F64);
                    const Focal focal = focal_of(FN(widen)(share.p, part), FN(widen)(share.q, part), o->gamma);
                    FN(store_narrow)(u + part * LANES_F64, q * focal.slope);
                    FN(store_narrow)(v + part * LANES_F64, q * focal.bend);
                }
                FN(add_share)(&sum_v, share.is_top, FN(load)(v));
            }
            FN(add_share)(&sum_u, share.is_top, FN(load)(u));
        }
        FN(store_sum)(tile->u_top + i, sum_u.top);
        FN(store_sum)(tile->u_rest + i, sum_u.rest);
        FN(store_sum)(tile->v_top + i, sum_v.top);
        FN(store_sum)(tile->v_rest + i, sum_v.rest);
    }
}

INLINE void FN(write_lanes)(const FN(Tile) *tile, const Boosting *o, INT c, ptrdiff_t i, ptrdiff_t n, float *grad,
                            float *hess, Curvature curvature)
{
    const FN(Share) share = FN(share_of)(&tile->sums, tile->staged + c * TILE, i);
    const vec p = share.p, q = share.q, u = FN(load)(tile->u + c * TILE + i);
    const vec others = FN(sum_of_others)(&share, FN(load)(tile->u_top + i), FN(load)(tile->u_rest + i), u);
    const vec g = p * others - u * q;
    vec h = curvature == MAGNITUDE ? FN(absolute)(g) : (REAL)o->factor * (u + others) * (p * q);
    if (curvature == WHOLE && o->gamma > 0) {
        const vec v = FN(load)(tile->v + c * TILE + i);
        const vec others_v = FN(sum_of_others)(&share, FN(load)(tile->v_top + i), FN(load)(tile->v_rest + i), v);
        h -= p * (p * others_v) + q * (q * v); /* squares could be too small for a float32 */
    }
    FN(give_floats)(grad + i, n, g);
    FN(give_floats)(hess + i, n, FN(larger)(FN(splat)((REAL)o->floor), h)); /* NaN stays */
}

INLINE void FN(write_some)(const FN(Tile) *tile, const Boosting *o, INT c, ptrdiff_t i, ptrdiff_t n, float *grad,
                           float *hess, int hard, Curvature curvature)
{
    if (hard) FN(write_label_lanes)(tile, o, c, i, n, grad, hess, curvature);
    else FN(write_lanes)(tile, o, c, i, n, grad, hess, curvature);
}

INLINE void FN(write_class)(const FN(Tile) *tile, const Boosting *o, INT c, ptrdiff_t n_rows, float *grad,
                            float *hess, int hard, Curvature curvature)
{
    ptrdiff_t i = 0;
    for (; i + LANES <= n_rows; i += LANES) FN(write_some)(tile, o, c, i, LANES, grad, hess, hard, curvature);
    if (i < n_rows) FN(write_some)(tile, o, c, i, n_rows - i, grad, hess, hard, curvature);
}

/* ---- All of a tile --------------------------------------------------------------------------------- */

static void FN(write_tile)(const Softmax *s, ptrdiff_t first, ptrdiff_t n_rows, FN(Tile) *tile, int hard)
{
    const Boosting *o = &s->options;
    const int in_place = is_column(&s->grad.layout), hess_in_place = is_column(&s->hess.layout);
    for (ptrdiff_t c = 0; c < s->n_classes; c++) {
        char *at = s->grad.data + first * s->grad.layout.row_stride + c * s->grad.layout.class_stride;
        char *hess_at = s->hess.data + first * s->hess.layout.row_stride + c * s->hess.layout.class_stride;
        float *grad = in_place ? (float *)at : tile->grad + c * TILE;
        float *hess = hess_in_place ? (float *)hess_at : tile->hess + c * TILE;
        const INT k = (INT)c;
        if (hard && o->curvature == MULTIPLE) FN(write_class)(tile, o, k, n_rows, grad, hess, 1, MULTIPLE);
        else if (hard && o->curvature == MAGNITUDE) FN(write_class)(tile, o, k, n_rows, grad, hess, 1, MAGNITUDE);
        else if (hard) FN(write_class)(tile, o, k, n_rows, grad, hess, 1, WHOLE);
        else if (o->curvature == MULTIPLE) FN(write_class)(tile, o, k, n_rows, grad, hess, 0, MULTIPLE);
        else if (o->curvature == MAGNITUDE) FN(write_class)(tile, o, k, n_rows, grad, hess, 0, MAGNITUDE);
        else FN(write_class)(tile, o, k, n_rows, grad, hess, 0, WHOLE);
    }
    deliver_plane(tile->grad, &s->grad, first, n_rows, s->n_classes);
    deliver_plane(tile->hess, &s->hess, first, n_rows, s->n_classes);
}

static int FN(softmax_tile)(const Softmax *s, ptrdiff_t first, ptrdiff_t n_rows, FN(Tile) *tile)
{
    const int hard = s->label.data && s->options.smoothing == 0;
    ptrdiff_t step;
    if (!FN(read_rows)(s, first, n_rows, tile)) return WRONG_LABEL;
    ask_for_next(&s->margins, first, n_rows, s->n_classes, 0);
    const char *margins = FN(margins_of)(&s->margins, first, n_rows, s->n_classes, tile->staged, &step);
    FN(sweep_margins)(margins, step, n_rows, s->n_classes, tile->staged, &tile->sums);
    if (hard) {
        FN(factors_of_labels)(s, n_rows, tile);
    } else {
        FN(read_targets)(s, first, n_rows, tile);
        FN(sum_targets)(s, n_rows, tile);
    }
    ask_for_next(&s->grad, first, n_rows, s->n_classes, 1);
    ask_for_next(&s->hess, first, n_rows, s->n_classes, 1);
    FN(write_tile)(s, first, n_rows, tile, hard);
    return WELL;
}

/* Rows of some tiles. Scratches of many classes are of the heap. */
static int FN(run_tiles)(const Softmax *s, ptrdiff_t begin, ptrdiff_t end)
{
    enum { ON_STACK = 10 }; /* classes */
    double scratch[PLANE_BYTES * ON_STACK * TILE / sizeof(double)];
    const ptrdiff_t plane = s->n_classes * TILE, at_once = rows_at_once(s);
    REAL *planes = s->n_classes <= ON_STACK ? (REAL *)scratch : malloc((size_t)(PLANE_BYTES * plane));
    if (!planes) return NO_MEMORY;
    FN(Tile) tile;
    tile.staged = planes;
    tile.u = planes + plane;
    tile.v = planes + 2 * plane;
    tile.grad = (float *)(planes + 3 * plane);
    tile.hess = tile.grad + plane;
    int state = WELL;
    for (ptrdiff_t k = begin; k < end && state == WELL; k++) {
        const ptrdiff_t first = k * at_once, n = s->n - first < at_once ? s->n - first : at_once;
        state = FN(softmax_tile)(s, first, n, &tile);
    }
    if ((char *)planes != (char *)scratch) free(planes);
    return state;
}
