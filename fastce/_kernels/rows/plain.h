/* Cross-entropy of few classes where every lane of a vector holds a row: what two classes (two_classes.h), more
 * (anchored.h), and terms of all classes (terms.h) share. `plain`: no row has a weight, and none is ignored.
 *
 * Included once per REAL_BITS, after across.h. All is in REAL but weights and losses. Sums are pairs, high + low, where
 * an ULP of them may be two of what they are for.
 *
 * Each row decides by its own numbers. Rows of an extreme weight or loss take the walk by the maximum (across.h), in a
 * tile of their own.
 */
#ifndef FASTCE_PLAIN_H
#define FASTCE_PLAIN_H
#define LEAST_NORMALIZER 0x1p-20 /* times T */
#define MOST_NORMALIZER 0x1p37
#define LESS_THAN_HALF (1 - 0x1p-20) /* an ULP: alpha as a sum is not rounded up to more than alpha is as a REAL */

/* What divides a gradient with respect to the logits as given. */
INLINE double divisor_of_gradient(const Formula *f)
{
    return f->normalizer * (f->temperature.divisor / f->temperature.factor);
}
#endif

/* Exps that are staged have a factor of ANCHOR_UNIT = 2^ANCHOR_SHIFT, for weights that bring their digits back. Those
 * of less than ANCHOR_LOWEST are subnormal for all that; what MOST_WEIGHT / LEAST_NORMALIZER times them is 0 as a REAL.
 * With LEAST_WEIGHT / MOST_NORMALIZER each factor of an exp is still a normal number. */
#undef ANCHOR_SHIFT
#undef ANCHOR_UNIT
#undef ANCHOR_LOWEST
#undef MOST_WEIGHT
#undef LEAST_WEIGHT
#undef LEAST_LOSS
#if REAL_BITS == 64
#define ANCHOR_SHIFT 256
#define ANCHOR_UNIT 0x1p256
#define ANCHOR_LOWEST -885.0
#define MOST_WEIGHT 0x1p100
#define LEAST_WEIGHT 0x1p-300
#else
#define ANCHOR_SHIFT 64
#define ANCHOR_UNIT 0x1p64f
#define ANCHOR_LOWEST -131.5f
#define MOST_WEIGHT 0x1p18
#define LEAST_WEIGHT 0x1p-15
#endif

#define LEAST_LOSS (REAL_TINY * MOST_WEIGHT) /* that a weight may bring digits of */

INLINE FN(Sum) FN(exp_and_rest)(FN(Exp) e)
{
    const vec v = FN(value)(e);
    return (FN(Sum)){v, FN(lost)(e, v)};
}

/* term >= 0, and so are all before it */
INLINE void FN(add_term)(FN(Sum) *acc, vec term)
{
    const vec sum = acc->high + term;
    acc->low += FN(lesser)(acc->high, term) - (sum - FN(larger)(acc->high, term));
    acc->high = sum;
}

INLINE FN(Sum) FN(add_sums)(FN(Sum) a, FN(Sum) b)
{
    FN(add_term)(&a, b.high);
    a.low += b.low;
    return a;
}

/* by_b: 1 / b.high, nearly. The low part may be a few ULP of the high one. */
INLINE FN(Sum) FN(quotient)(FN(Sum) a, FN(Sum) b, vec by_b)
{
    const vec nearly = a.high * by_b;
    return (FN(Sum)){nearly, (FN(residual)(a.high, nearly, b.high) + (a.low - nearly * b.low)) * by_b};
}

INLINE FN(Sum) FN(joined)(FN(Sum) a)
{
    const vec high = a.high + a.low;
    return (FN(Sum)){high, a.low - (high - a.high)};
}

/* 1 / T, by which differences of logits are multiplied. */
INLINE FN(Sum) FN(inverse)(const Temperature *t)
{
    const double nearly = t->factor / t->divisor;
    const vec_f64 lost = residual_f64(splat_f64(t->factor), splat_f64(nearly), splat_f64(t->divisor)) / t->divisor;
    const REAL high = (REAL)nearly;
    return (FN(Sum)){FN(splat)(high), FN(splat)((REAL)((nearly - high) + lost[0]))};
}

INLINE FN(Sum) FN(product)(FN(Sum) a, FN(Sum) b)
{
    const vec high = a.high * b.high;
    return (FN(Sum)){high, FN(product_error)(a.high, b.high, high) + (a.high * b.low + a.low * b.high)};
}

/* alpha = weight / (normalizer T) of each row. */
typedef struct { REAL high[TILE], low[TILE]; } FN(Alphas);

/* All of a tile at once: what is written here in parts of a vector is read as a whole. */
INLINE void FN(find_alphas)(const Formula *f, const Rows *rows, ptrdiff_t n_rows, FN(Alphas) *alphas)
{
    const double divisor = divisor_of_gradient(f);
    for (ptrdiff_t i = 0; i < FN(in_vectors)(n_rows); i += LANES_F64) {
        const vec_f64 alpha = load_f64(rows->weight + i) / divisor;
        FN(store_narrow)(alphas->high + i, alpha);
        FN(store_narrow)(alphas->low + i, (alpha - FN(load_wide)(alphas->high + i)) * LESS_THAN_HALF);
    }
}

INLINE FN(Sum) FN(alpha)(const FN(Alphas) *alphas, ptrdiff_t i)
{
    return (FN(Sum)){FN(load)(alphas->high + i), FN(load)(alphas->low + i)};
}

/* Rows that are left to the walk by the maximum, from their losses without weights and the size of those: of a loss that
 * overflows before it is weighted; of a weight that leaves no room for factors, or that wants digits of a loss that is
 * subnormal. */
INLINE int FN(is_extreme)(int64_t label, double loss, double size)
{
    const int moderate = (size >= LEAST_WEIGHT) & (size <= MOST_WEIGHT) & (fabs(loss) >= LEAST_LOSS);
    return (label >= 0) & (!(fabs(loss) <= REAL_MAX) | !((size == 0) | (size == 1) | moderate));
}

/* What shows, as losses are made, that no row of a tile is extreme: 0, or NaN in lanes that had a loss that is not
 * finite; and the lanes that had none but moderate weights and losses. */
typedef struct { vec finite; mask_f64 moderate; } FN(Usual);

INLINE FN(Usual) FN(usual)(void) { return (FN(Usual)){{0}, not_less_f64((vec_f64){0}, (vec_f64){0})}; }

INLINE mask_f64 FN(are_moderate)(vec_f64 loss, vec_f64 size)
{
    return not_less_f64(size, splat_f64(LEAST_WEIGHT)) & ~not_less_f64(size, splat_f64(MOST_WEIGHT)) /* nor a NaN */
           & not_less_f64(absolute_f64(loss), splat_f64(LEAST_LOSS));
}

INLINE int FN(is_usual)(FN(Usual) tile)
{
    return FN(every_lane)(~FN(not_less)(tile.finite, FN(splat)(1))) && every_lane_f64(tile.moderate);
}

/* Losses of a vector of rows, gap + log_s, times their weights; without weights as rows->given. A weight of 1 is as good
 * as none, and in float64 a power of two scales a loss exactly: there a weighted loss is the plain one times its weight.
 * In float32 that would be a rounding too many, and the sum is made in float64. */
INLINE void FN(finish_losses)(FN(Sum) gap, FN(Sum) log_s, int plain, ptrdiff_t i, Rows *rows, FN(Usual) *usual)
{
    const vec loss = gap.high + (log_s.high + gap.low);
    FN(store_as_f64)((plain ? rows->loss : rows->given) + i, loss);
    usual->finite += 0 * loss;
    if (plain) return;
    REAL term[4][LANES_COUNT];
    FN(store)(term[0], gap.high);
    FN(store)(term[1], gap.low);
    FN(store)(term[2], log_s.high);
    FN(store)(term[3], log_s.low);
    for (ptrdiff_t k = 0; k < LANES; k += LANES_F64) {
        const vec_f64 w = load_f64(rows->weight + i + k), one = splat_f64(1), as_plain = load_f64(rows->given + i + k);
        vec_f64 whole = as_plain;
        if (REAL_BITS == 32) {
            whole = FN(load_wide)(term[0] + k) + FN(load_wide)(term[2] + k);
            whole += FN(load_wide)(term[1] + k) + FN(load_wide)(term[3] + k);
        }
        vec_f64 weighted = w * whole;
        if (REAL_BITS == 32)
            weighted = select_f64(not_less_f64(w, one) & not_less_f64(one, w), as_plain, weighted);
        store_f64(rows->loss + i + k, keep_f64(are_used(rows, i + k), weighted));
        usual->moderate &= FN(are_moderate)(as_plain, absolute_f64(w));
    }
}

/* loss: without weights. size: of those, NULL: ones. */
static ptrdiff_t FN(find_extreme)(const Rows *rows, ptrdiff_t n_rows, const double *loss, const double *size,
                                  ptrdiff_t *extreme)
{
    int any = 0;
    for (ptrdiff_t i = 0; i < n_rows; i++) /* in vectors */
        any |= FN(is_extreme)(rows->label[i], loss[i], size ? fabs(size[i]) : 1);
    ptrdiff_t n = 0;
    for (ptrdiff_t i = 0; any && i < n_rows; i++) {
        extreme[n] = i;
        n += FN(is_extreme)(rows->label[i], loss[i], size ? fabs(size[i]) : 1);
    }
    return n;
}

/* Extreme rows of an array, as they were before the scratch had them, to a plane; and gradients from there. */
static void FN(gather_extreme)(ptrdiff_t n_classes, const char *array, const Layout *from, const ptrdiff_t *extreme,
                               ptrdiff_t n, REAL *plane)
{
    for (ptrdiff_t k = 0; k < n; k++) {
        const char *row = array + extreme[k] * from->row_stride;
        for (ptrdiff_t c = 0; c < n_classes; c++)
            plane[c * TILE + k] = (REAL)load_number(row + c * from->class_stride, from->format, from->swapped);
    }
}

static void FN(scatter_extreme)(const Tile *tile, const ptrdiff_t *extreme, ptrdiff_t n, const REAL *plane)
{
    REAL *x = (REAL *)tile->scratch;
    for (ptrdiff_t c = 0; c < tile->n_classes; c++)
        for (ptrdiff_t k = 0; k < n; k++) x[c * TILE + extreme[k]] = plane[c * TILE + k];
}

/* Target classes, -1 behind the last row. Returns whether no row is ignored. */
INLINE int FN(find_labels)(Rows *rows, ptrdiff_t n_rows, INT *target)
{
    int64_t labels = 0;
    const ptrdiff_t end = FN(in_vectors)(n_rows);
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        target[i] = (INT)rows->label[i];
        labels |= rows->label[i];
    }
    for (ptrdiff_t i = n_rows; i < end; i++) rows->label[i] = target[i] = -1;
    return labels >= 0;
}
