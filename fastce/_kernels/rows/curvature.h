/* Gradient and Hessian of a softmax for boosted trees: a tile of rows.
 *
 * Included once, after margins.h of both precisions; formulas: elements/curvature.h.
 */
#ifndef FASTCE_SOFTMAX_CURVATURE_H
#define FASTCE_SOFTMAX_CURVATURE_H

enum {
    FEW_CLASSES = 128, FEW_ROWS = 16,   /* with more classes fewer rows pass together, to stay in cache */
    PLANES = 6,                         /* in floats: margins (2), exps, Hessians, u, v */
    WELL, WRONG_LABEL = 1, NO_MEMORY = 2
};

typedef struct {
    ptrdiff_t n, n_classes;
    Boosting options;
    Matrix margins, target, grad, hess; /* target: probabilities, */
    Operand label, weight;              /* or labels; data is NULL where there are none */
    const double *class_weight;         /* may be NULL */
} Softmax;

typedef struct {
    double *margins;
    float *staged, *hess, *u, *v;
    RowSums sums;
    INT label[TILE];
    double weight[TILE];
    float factor[TILE], bend[TILE];    /* of a hard target: weight s(p), weight s'(p) p */
    float u_top[TILE], u_rest[TILE], v_top[TILE], v_rest[TILE]; /* else sums, those of the maximum by themselves */
} Tile;

static void store_floats(float *p, vec_f64 a) { store_narrow_f32(p, a); }

INLINE ptrdiff_t rows_at_once(const Softmax *s) { return s->n_classes <= FEW_CLASSES ? TILE : FEW_ROWS; }

/* p and 1 - p of LANES rows and one class. */
typedef struct {
    vec_f32 p, q;
    mask_f32 is_top; /* or NaN */
} Share;

INLINE Share share_of(const RowSums *sums, const float *staged, ptrdiff_t i)
{
    const vec_f32 e = load_f32(staged + i), p = e * load_f32(sums->inverse + i);
    const mask_f32 is_top = not_less_f32(e, load_f32(sums->top + i));
    return (Share){p, select_f32(is_top, load_f32(sums->rest + i), 1 - p), is_top};
}

/* Labels and weights of the rows; false if a label is no class. */
static int read_rows(const Softmax *s, ptrdiff_t first, ptrdiff_t n_rows, Tile *tile)
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

static void factors_of_labels(const Softmax *s, ptrdiff_t n_rows, Tile *tile)
{
    const Boosting *o = &s->options;
    double p[TILE], q[TILE];
    if (s->class_weight)
        for (ptrdiff_t i = 0; i < TILE; i++) tile->weight[i] *= s->class_weight[tile->label[i]];
    for (ptrdiff_t i = 0; i < TILE; i++) tile->factor[i] = (float)tile->weight[i];
    if (o->gamma == 0) return;
    for (ptrdiff_t i = 0; i < TILE; i++) {
        const float e = i < n_rows ? tile->staged[tile->label[i] * TILE + i] : 0;
        p[i] = (double)e * tile->sums.inverse[i];
        q[i] = e >= tile->sums.top[i] ? tile->sums.rest[i] : 1 - p[i];
    }
    for (ptrdiff_t i = 0; i < n_rows; i += LANES_F64) {
        const vec_f64 weight = load_f64(tile->weight + i);
        const Focal focal = focal_of(load_f64(p + i), load_f64(q + i), o->gamma);
        store_floats(tile->factor + i, weight * focal.slope);
        store_floats(tile->bend + i, weight * focal.bend);
    }
}

/* LANES rows of a class, of which the first n are there; the last argument is a constant. */
INLINE void write_label_lanes(const Tile *tile, const Boosting *o, INT c, ptrdiff_t i, ptrdiff_t n, float *grad,
                              float *hess, Curvature curvature)
{
    const Share share = share_of(&tile->sums, tile->staged + c * TILE, i);
    ivec_f32 label;
    memcpy(&label, tile->label + i, sizeof label);
    const vec_f32 d = select_f32(differ_f32(label, (ivec_f32){0} + c), share.p, -share.q);
    const vec_f32 factor = load_f32(tile->factor + i), g = factor * d;
    vec_f32 h = curvature == MAGNITUDE ? larger_f32(g, -g) : (float)o->factor * factor * (share.p * share.q);
    if (curvature == WHOLE && o->gamma > 0) h -= load_f32(tile->bend + i) * d * d;
    give_f32(grad + i, n, g);
    give_f32(hess + i, n, larger_f32(splat_f32((float)o->floor), h)); /* NaN stays */
}

/* ---- Soft or smoothed targets: two numbers an element ---------------------------------------------- */

/* q of the tile, smoothed and weighted, into u. */
static void read_targets(const Softmax *s, ptrdiff_t first, ptrdiff_t n_rows, Tile *tile)
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
            tile->u[c * TILE + i] = (float)(tile->weight[i] * class_weight * ((1 - smoothing) * row[i] + even));
    }
}

typedef struct { sum_vec_f32 top, rest; } Sums;

/* Where the maximum has all but a little, v of it may be large: what the others have is not to be lost beside it. */
INLINE void add_share(Sums *sums, mask_f32 is_top, vec_f32 a)
{
    const vec_f32 top = keep_f32(is_top, a);
    add_f32(&sums->top, top);
    add_f32(&sums->rest, a - top);
}

INLINE void store_sums_of(const Sums *sums, float *top, float *rest)
{
    store_floats(top, sums->top.low);
    store_floats(top + LANES_F64, sums->top.high);
    store_floats(rest, sums->rest.low);
    store_floats(rest + LANES_F64, sums->rest.high);
}

/* The sum less one of its terms. */
INLINE vec_f32 sum_of_others(const Share *share, vec_f32 top, vec_f32 rest, vec_f32 a)
{
    return select_f32(share->is_top, (top - a) + rest, (rest - a) + top);
}

/* u and v from q, and their sums. */
static void sum_targets(const Softmax *s, ptrdiff_t n_rows, Tile *tile)
{
    const Boosting *o = &s->options;
    for (ptrdiff_t i = 0; i < n_rows; i += LANES) {
        Sums sum_u = {{{0}, {0}}, {{0}, {0}}}, sum_v = sum_u;
        for (ptrdiff_t c = 0; c < s->n_classes; c++) {
            float *u = tile->u + c * TILE + i, *v = tile->v + c * TILE + i;
            const Share share = share_of(&tile->sums, tile->staged + c * TILE, i);
            if (o->gamma > 0) {
                for (int part = 0; part < N_PARTS; part++) {
                    const vec_f64 q = load_wide_f32(u + part * LANES_F64);
                    const Focal focal = focal_of(widen_f32(share.p, part), widen_f32(share.q, part), o->gamma);
                    store_floats(u + part * LANES_F64, q * focal.slope);
                    store_floats(v + part * LANES_F64, q * focal.bend);
                }
                add_share(&sum_v, share.is_top, load_f32(v));
            }
            add_share(&sum_u, share.is_top, load_f32(u));
        }
        store_sums_of(&sum_u, tile->u_top + i, tile->u_rest + i);
        store_sums_of(&sum_v, tile->v_top + i, tile->v_rest + i);
    }
}

INLINE void write_lanes(const Tile *tile, const Boosting *o, INT c, ptrdiff_t i, ptrdiff_t n, float *grad,
                        float *hess, Curvature curvature)
{
    const Share share = share_of(&tile->sums, tile->staged + c * TILE, i);
    const vec_f32 p = share.p, q = share.q, u = load_f32(tile->u + c * TILE + i);
    const vec_f32 others = sum_of_others(&share, load_f32(tile->u_top + i), load_f32(tile->u_rest + i), u);
    const vec_f32 g = p * others - u * q;
    vec_f32 h = curvature == MAGNITUDE ? larger_f32(g, -g) : (float)o->factor * (u + others) * (p * q);
    if (curvature == WHOLE && o->gamma > 0) {
        const vec_f32 v = load_f32(tile->v + c * TILE + i);
        h -= p * p * sum_of_others(&share, load_f32(tile->v_top + i), load_f32(tile->v_rest + i), v) + q * q * v;
    }
    give_f32(grad + i, n, g);
    give_f32(hess + i, n, larger_f32(splat_f32((float)o->floor), h)); /* NaN stays */
}

INLINE void write_some(const Tile *tile, const Boosting *o, INT c, ptrdiff_t i, ptrdiff_t n, float *grad, float *hess,
                       int hard, Curvature curvature)
{
    if (hard) write_label_lanes(tile, o, c, i, n, grad, hess, curvature);
    else write_lanes(tile, o, c, i, n, grad, hess, curvature);
}

INLINE void write_class(const Tile *tile, const Boosting *o, INT c, ptrdiff_t n_rows, float *grad, float *hess, int hard,
                        Curvature curvature)
{
    ptrdiff_t i = 0;
    for (; i + LANES <= n_rows; i += LANES) write_some(tile, o, c, i, LANES, grad, hess, hard, curvature);
    if (i < n_rows) write_some(tile, o, c, i, n_rows - i, grad, hess, hard, curvature);
}

/* ---- All of a tile --------------------------------------------------------------------------------- */

/* Whether a class of a tile can be written where it belongs: its rows are adjacent there. */
INLINE int is_column(const Layout *layout) { return is_whole_f32(layout) && layout->row_stride == sizeof(float); }

static void deliver_plane(const float *plane, const Matrix *to, ptrdiff_t first, ptrdiff_t n_rows, ptrdiff_t n_classes)
{
    const Layout *layout = &to->layout;
    char *at = to->data + first * layout->row_stride;
    if (is_column(layout)) return;
    if (is_whole_f32(layout) && layout->class_stride == sizeof(float))
        plane_to_rows_f32(plane, at, layout->row_stride, n_rows, n_classes);
    else
        for (ptrdiff_t c = 0; c < n_classes; c++)
            put_f32(plane + c * TILE, layout->format, layout->swapped, layout->row_stride, n_rows,
                    at + c * layout->class_stride);
}

/* Gradients of exps that are in the same plane are written over them. */
static void write_tile(const Softmax *s, ptrdiff_t first, ptrdiff_t n_rows, Tile *tile, int hard)
{
    const Boosting *o = &s->options;
    const int in_place = is_column(&s->grad.layout), hess_in_place = is_column(&s->hess.layout);
    for (ptrdiff_t c = 0; c < s->n_classes; c++) {
        char *at = s->grad.data + first * s->grad.layout.row_stride + c * s->grad.layout.class_stride;
        char *hess_at = s->hess.data + first * s->hess.layout.row_stride + c * s->hess.layout.class_stride;
        float *grad = in_place ? (float *)at : tile->staged + c * TILE;
        float *hess = hess_in_place ? (float *)hess_at : tile->hess + c * TILE;
        const INT k = (INT)c;
        if (hard && o->curvature == MULTIPLE) write_class(tile, o, k, n_rows, grad, hess, 1, MULTIPLE);
        else if (hard && o->curvature == MAGNITUDE) write_class(tile, o, k, n_rows, grad, hess, 1, MAGNITUDE);
        else if (hard) write_class(tile, o, k, n_rows, grad, hess, 1, WHOLE);
        else if (o->curvature == MULTIPLE) write_class(tile, o, k, n_rows, grad, hess, 0, MULTIPLE);
        else if (o->curvature == MAGNITUDE) write_class(tile, o, k, n_rows, grad, hess, 0, MAGNITUDE);
        else write_class(tile, o, k, n_rows, grad, hess, 0, WHOLE);
    }
    deliver_plane(tile->staged, &s->grad, first, n_rows, s->n_classes);
    deliver_plane(tile->hess, &s->hess, first, n_rows, s->n_classes);
}

static int softmax_tile(const Softmax *s, ptrdiff_t first, ptrdiff_t n_rows, Tile *tile)
{
    const int hard = s->label.data && s->options.smoothing == 0;
    ptrdiff_t step;
    if (!read_rows(s, first, n_rows, tile)) return WRONG_LABEL;
    ask_for_next(&s->margins, first, n_rows, s->n_classes, 0);
    if (s->margins.layout.format == FORMAT_F64) {
        const char *at = margins_of_f64(&s->margins, first, n_rows, s->n_classes, tile->margins, &step);
        sweep_margins_f64(at, step, n_rows, s->n_classes, tile->staged, &tile->sums);
    } else {
        const char *at = margins_of_f32(&s->margins, first, n_rows, s->n_classes, tile->staged, &step);
        sweep_margins_f32(at, step, n_rows, s->n_classes, tile->staged, &tile->sums);
    }
    if (hard) {
        factors_of_labels(s, n_rows, tile);
    } else {
        read_targets(s, first, n_rows, tile);
        sum_targets(s, n_rows, tile);
    }
    ask_for_next(&s->grad, first, n_rows, s->n_classes, 1);
    ask_for_next(&s->hess, first, n_rows, s->n_classes, 1);
    write_tile(s, first, n_rows, tile, hard);
    return WELL;
}
#endif
