/* Losses of rows, their gradients and Hessians, softmaxes: sweep, epilogue and write as walk.pxi calls them, over
 * formats, byte orders, layouts and both walks, against long double. No Python takes part, so this also runs
 * where there is nothing but a cross compiler and an emulator (tools/check_headers). */
#include "rows/rows.h"

#include "check.h"
#include "exact_rows.h"

static const Case CASES[] = {
    {.name = "plain", .kind = CROSS_ENTROPY, .factor = 1},
    {.name = "weights", .kind = CROSS_ENTROPY, .has_weight = 1, .factor = 1},
    {.name = "temperature", .kind = CROSS_ENTROPY, .temperature = 1.3, .has_weight = 1, .factor = 1},
    {.name = "Hessian", .kind = CROSS_ENTROPY, .has_hess = 1, .factor = 1},
    {.name = "smoothing", .kind = CROSS_ENTROPY, .smoothing = 0.1, .has_weight = 1, .factor = 1.5},
    {.name = "smoothing alone", .kind = CROSS_ENTROPY, .smoothing = 0.1, .factor = 1.5},
    {.name = "z-loss", .kind = CROSS_ENTROPY, .z_loss = 0.3, .has_hess = 1, .factor = 1.5},
    {.name = "distributions", .kind = CROSS_ENTROPY, .has_q = 1, .factor = 1.5},
    {.name = "weighted distributions", .kind = CROSS_ENTROPY, .smoothing = 0.2, .has_q = 1, .has_weight = 1,
     .factor = 1.5},
    {.name = "softcap", .kind = CROSS_ENTROPY, .softcap = 5, .temperature = 0.7, .has_hess = 1, .factor = 2},
    {.name = "focal", .kind = FOCAL, .gamma = 2, .has_weight = 1, .factor = 2},
    {.name = "focal 1/2", .kind = FOCAL, .gamma = 0.5, .factor = 1.25},
    {.name = "margin", .kind = MARGIN, .scale = 64, .margin2 = 0.5, .has_weight = 1, .factor = 1},
    {.name = "margin of more than pi", .kind = MARGIN, .scale = 16, .margin2 = 4, .factor = 1},
    {.name = "hinge", .kind = HINGE, .power = 1, .margin = 1, .has_weight = 1, .factor = 1},
    {.name = "hinge, squared", .kind = HINGE, .power = 2, .margin = 1, .has_weight = 1, .factor = 1},
    {.name = "multi-margin", .kind = HINGE, .hinge = MULTI_MARGIN, .power = 1, .margin = 0.3, .factor = 1},
    {.name = "multi-margin, squared", .kind = HINGE, .hinge = MULTI_MARGIN, .power = 2, .margin = 1, .factor = 1},
    {.name = "Crammer, Singer", .kind = HINGE, .hinge = CRAMMER_SINGER, .power = 1, .margin = 1, .factor = 1},
    {.name = "Crammer, Singer, squared", .kind = HINGE, .hinge = CRAMMER_SINGER, .power = 2, .margin = 1,
     .has_weight = 1, .factor = 1},
    {.name = "nll", .kind = NLL, .has_weight = 1, .factor = 1},
    {.name = "softmax", .kind = SOFTMAX, .factor = 1},
    {.name = "log_softmax", .kind = LOG_SOFTMAX, .factor = 1},
    {.name = "logsumexp", .kind = LOG_SUM_EXP, .factor = 1},
    {.name = "logsumexp with b", .kind = LOG_SUM_EXP, .has_q = 1, .factor = 1},
};
enum { N_CASES = sizeof CASES / sizeof *CASES };

/* ULP as docs/accuracy.md promises them; a half is computed in float32 and rounded once more. */
static const double LOSS_ULP[] = {4, 2, 2, 2}, GRAD_ULP[] = {8, 4, 0.5 + 0x1p-11, 0.5 + 0x1p-14};
static const double SOFTMAX_ULP[] = {4, 4, 0.5 + 0x1p-11, 0.5 + 0x1p-14};
static int format_of_loss(int format) { return format == FORMAT_F64 ? FORMAT_F64 : FORMAT_F32; }

/* ---- Rows ---------------------------------------------------------------------------------- */

/* Those after OF_TERMS are for losses of one term: sums of terms of the largest numbers overflow. */
enum { NORMAL, WIDE_RANGE, CONFIDENT, SURE, WRONG, OFFSET, EQUAL, TIES, MASKED, SWAMPED, SUBNORMAL, SURELY_SUBNORMAL,
       STEP, TINY, SKIPPED, OF_TERMS, TARGET_MASKED = OF_TERMS, EXTREME, WITH_NAN, WITH_INFINITY, ALL_MASKED, N_KINDS };

static ptrdiff_t make_row(int kind, int format, ptrdiff_t n, double *x)
{
    const ptrdiff_t y = below(n), other = (y + 1) % n;
    const int wide = format == FORMAT_F64;
    const double largest = largest_of(format), scale = kind == WIDE_RANGE ? 20 : kind < MASKED ? 1 : 3;
    for (ptrdiff_t j = 0; j < n; j++) x[j] = normal(scale);
    if (kind == CONFIDENT) x[y] = 28;
    if (kind == SURE) x[y] = 64;
    if (kind == WRONG) x[other] = 44;
    for (ptrdiff_t j = 0; j < n; j++) {
        const int here = j == y;
        if (kind == OFFSET) x[j] -= 1e4;
        if (kind == EQUAL) x[j] = 7.3;
        if (kind == TIES) x[j] = (double)below(5) - 2;
        if (kind == MASKED && !here && uniform(0, 1) < 0.5) x[j] = -INFINITY;
        if (kind == SWAMPED) x[j] = j == other ? 0 : here ? -0.5 : wide ? -39 : -18.4;
        if (kind == SUBNORMAL) x[j] = j == other ? 0 : wide ? uniform(-746, -706) : uniform(-104, -85);
        if (kind == SURELY_SUBNORMAL) x[j] = here ? 0 : wide ? uniform(-746, -706) : uniform(-104, -85);
        if (kind == STEP) x[j] = here ? 0 : wide ? -712 : -101;
        if (kind == TINY) x[j] = (double)(below(19) - 9) * unit_at(format, 0);
        if (kind == EXTREME) x[j] = ((double)below(5) - 2) / 2 * largest;
        if (kind == ALL_MASKED) x[j] = -INFINITY;
    }
    if (kind == TARGET_MASKED) x[y] = -INFINITY;
    if (kind == WITH_NAN || kind == SKIPPED) x[below(n)] = NAN;
    if (kind == WITH_INFINITY) x[below(n)] = INFINITY;
    for (ptrdiff_t j = 0; j < n; j++) x[j] = rounded(format, x[j]);
    return kind == SKIPPED ? -1 : y;
}

typedef struct {
    int format;
    ptrdiff_t n_rows, n;
    double *x, *q, *w, *sample;
    int64_t *label;
} Batch;

static Batch make_batch(const Case *c, int format, ptrdiff_t n_rows, ptrdiff_t n)
{
    const ptrdiff_t first_kind = n_rows < N_KINDS ? below(N_KINDS) : 0;
    Batch b = {format, n_rows, n, memory(n_rows * n * 8), memory(n_rows * n * 8), memory(n * 8), memory(n_rows * 8),
               memory(n_rows * 8)};
    const int of_one_term = c->kind == CROSS_ENTROPY && !c->has_q && !c->smoothing && !c->z_loss && !c->softcap
                            && !c->has_hess;
    const int without_nan = c->kind == SOFTMAX || c->kind == LOG_SOFTMAX || c->kind == LOG_SUM_EXP || c->has_q;
    for (ptrdiff_t j = 0; j < n; j++) b.w[j] = c->has_weight ? (float)uniform(0.5, 2) : 1;
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        double *x = b.x + i * n, *q = b.q + i * n;
        int kind = (int)((first_kind + i) % (of_one_term ? N_KINDS : OF_TERMS));
        if (kind == SKIPPED && without_nan) kind = NORMAL;
        b.label[i] = make_row(kind, format, n, x);
        b.sample[i] = c->has_weight ? (float)uniform(0.5, 2) : 1;
        if (c->kind == MARGIN)
            for (ptrdiff_t j = 0; j < n; j++) x[j] = rounded(format, uniform(-1.02, 1.02));
        for (ptrdiff_t j = 0; j < n; j++) {
            q[j] = c->kind == LOG_SUM_EXP ? normal(1) : isinf(x[j]) || below(3) == 0 ? 0 : uniform(0, 1);
            q[j] = rounded(format, q[j]);
        }
        if (c->has_q && c->kind == CROSS_ENTROPY) { /* the class whose term stays out of the sums */
            b.label[i] = 0;
            for (ptrdiff_t j = 0; j < n; j++)
                if (q[j] * b.w[j] > q[b.label[i]] * b.w[b.label[i]]) b.label[i] = j;
        }
    }
    return b;
}

static void release(Batch *b)
{
    free(b->x), free(b->q), free(b->w), free(b->sample), free(b->label);
}

/* ---- The walk: what run_block and run_split do in walk.pxi --------------------------------- */

typedef enum { CONTIGUOUS, MISALIGNED, STRIDED, SWAPPED_BACKWARD, COLUMNS, SWAPPED_COLUMNS, N_PLACES } Place;

typedef struct { char *memory, *first; Layout layout; } Array;

static Array place(Place where, int format, ptrdiff_t n_rows, ptrdiff_t n)
{
    const ptrdiff_t item = FORMATS[format].bytes;
    const int columns = where == COLUMNS || where == SWAPPED_COLUMNS;
    Array a = {memory((size_t)(3 * item * (n_rows + 3) * (n + 3))), NULL, {format, 0, item, item * n}};
    a.first = a.memory;
    a.layout.swapped = where == SWAPPED_BACKWARD || where == SWAPPED_COLUMNS;
    if (where == MISALIGNED) a.first++;
    if (where == STRIDED) a.layout.class_stride = 3 * item;
    if (where == STRIDED) a.layout.row_stride = 3 * item * n;
    if (where == SWAPPED_BACKWARD) {
        a.layout.row_stride = -item * (n + 2);
        a.first += item * (n + 2) * (n_rows - 1);
    }
    if (columns) a.layout.class_stride = item * (n_rows > 16 ? n_rows : 64); /* a cache line, or lanes lie along rows */
    if (columns) a.layout.row_stride = item;
    if (columns) a.memory = realloc(a.memory, (size_t)(a.layout.class_stride * (n + 1)));
    if (columns) a.first = memset(a.memory, 0, (size_t)(a.layout.class_stride * (n + 1)));
    return a;
}

static char *element(const Array *a, ptrdiff_t i, ptrdiff_t j)
{
    return a->first + i * a->layout.row_stride + j * a->layout.class_stride;
}

static void fill(const Array *a, const double *numbers, ptrdiff_t n_rows, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n_rows; i++)
        for (ptrdiff_t j = 0; j < n; j++)
            encode((int)a->layout.format, a->layout.swapped, numbers[i * n + j], element(a, i, j));
}

static double at(const Array *a, ptrdiff_t i, ptrdiff_t j)
{
    return decode((int)a->layout.format, a->layout.swapped, element(a, i, j));
}

typedef struct { double *loss, *sign; Array grad, hess; int across; double sum; } Got;

static int walks_across(const Case *c, const Batch *b, const Layout *layout)
{
    const int few = b->n * (b->format == FORMAT_F64 ? 8 : 4) <= FEW_BYTES;
    return (few || layout->class_stride >= 64 || layout->class_stride <= -64) && !(c->kind == LOG_SUM_EXP && c->has_q);
}

static Formula formula_of(const Case *c, const Batch *b, float *narrow)
{
    Formula f = {.kind = c->kind, .normalizer = 1, .hinge = c->hinge, .power = c->power, .margin = c->margin,
                 .smoothing = c->smoothing, .z_loss = c->z_loss, .gamma = c->gamma,
                 .temperature = {.factor = 1, .divisor = c->temperature}};
    f.has_terms = c->kind == CROSS_ENTROPY && (c->smoothing != 0 || c->has_q);
    if (c->has_weight) f.class_weight = b->w;
    for (ptrdiff_t j = 0; j < b->n; j++) narrow[j] = (float)b->w[j], f.total_weight += b->w[j];
    f.weights_positive = 1;
    if (c->has_weight && f.has_terms) f.term_weight = b->format == FORMAT_F64 ? (void *)b->w : narrow;
    if (c->softcap != 0) {
        f.transform = SOFTCAP;
        f.softcap = c->softcap;
    }
    if (c->kind == MARGIN) {
        f.transform = COSINES;
        f.scale = c->scale, f.margin1 = 1, f.margin2 = c->margin2, f.margin3 = c->margin3;
        f.temperature.factor = f.scale;
    }
    f.by_element = f.transform != AS_GIVEN || c->has_hess || (c->kind == LOG_SUM_EXP && c->has_q);
    derive(&f, b->n, !(c->kind == CROSS_ENTROPY && c->has_q));
    return f;
}

/* Long rows whole or in pieces, from the last to the first; gradients perhaps past the caches, if they may be. */
typedef enum { WHOLE, SPLIT, STREAMED } How;

static void run(const Case *c, const Batch *b, const Array *x, const Array *q, How how, Got *got)
{
    const int split = how == SPLIT;
    static double scratch[3 * APART_SCRATCH];
    static float narrow[MOST_CLASSES];
    static Rows rows;
    const Formula f = formula_of(c, b, narrow);
    const int across = walks_across(c, b, &x->layout), is_long = !across && b->n > CHUNK && c->kind != NLL;
    const int has_grad = c->kind != NLL && c->kind != LOG_SUM_EXP;
    const int has_labels = !c->has_q && c->kind != SOFTMAX && c->kind != LOG_SOFTMAX && c->kind != LOG_SUM_EXP;
    const Labels labels = {8, 1, 0, 1, -1, b->n};
    ptrdiff_t tile_rows = across ? TILE : CHUNK / b->n;
    tile_rows = tile_rows < 1 ? 1 : tile_rows < TILE ? tile_rows : TILE;
    const ptrdiff_t each = across ? scratch_across(b->n * (b->format == FORMAT_F64 ? 8 : 4)) : SCRATCH;
    Tile tile = {0, b->n, &f, NULL, NULL, NULL, NULL, x->layout, q->layout, got->grad.layout, got->hess.layout, scratch,
                 scratch + each, scratch + 2 * each, is_long && has_grad && !split ? own_staging() : NULL};
    const int native = b->format == FORMAT_F64 || b->format == FORMAT_F32;
    tile.streams = how == STREAMED && native && !across && !f.by_element && c->kind != HINGE
                   && !got->grad.layout.swapped && got->grad.layout.class_stride == FORMATS[b->format].bytes;
    LabelCounts counts = {0, 0};
    Sums sums;
    memset(&rows, 0, sizeof rows);
    clear_sums(&sums);
    fill_weights(&rows, tile_rows);
    rows.weighted = c->has_weight;
    if (is_long) rows.pieces = own_pieces();
    got->across = across;
    for (ptrdiff_t i = 0; i < b->n_rows; i += tile_rows) {
        tile.n_rows = b->n_rows - i < tile_rows ? b->n_rows - i : tile_rows;
        tile.logits = element(x, i, 0);
        tile.q = c->has_q ? element(q, i, 0) : NULL;
        tile.grad = has_grad ? element(&got->grad, i, 0) : NULL;
        tile.hess = c->has_hess ? element(&got->hess, i, 0) : NULL;
        if (has_labels) read_labels(&labels, (const char *)(b->label + i), 8, tile.n_rows, rows.label, &counts);
        if (c->has_weight) {
            read_weights(FORMAT_F64, 0, (const char *)(b->sample + i), 8, tile.n_rows, rows.sample);
            set_mean_weights(&rows, tile.n_rows, has_labels ? b->w : NULL);
        }
        if (!split || !is_long) run_tile(&tile, &rows, across);
        else {
            if (c->kind == MARGIN) read_given(&tile, &rows);
            if (rows.label[0] >= 0) {
                begin_long_row(&tile, &rows);
                do
                    for (ptrdiff_t piece = count_pieces(b->n) - 1; piece >= 0; piece--)
                        sweep_piece(&tile, &rows, piece);
                while (combine_pieces(&tile, &rows));
            }
            epilogue(&tile, &rows);
            for (ptrdiff_t piece = count_pieces(b->n) - 1; tile.grad && piece >= 0; piece--)
                write_piece(&tile, &rows, piece);
        }
        sum_losses(&sums, &tile, &rows);
        put_losses(rows.loss, tile.n_rows, format_of_loss(b->format), 8, (char *)(got->loss + i));
        put_losses(rows.sign, tile.n_rows, FORMAT_F64, 8, (char *)(got->sign + i));
    }
    for (ptrdiff_t i = 0; i < b->n_rows; i++) /* written with a spacing of 8 bytes */
        got->loss[i] = decode(format_of_loss(b->format), 0, (const char *)(got->loss + i));
    const Pair total = total_loss(&sums);
    got->sum = total.sum + total.error;
}

/* ---- Checks -------------------------------------------------------------------------------- */

static Got new_results(const Batch *b, Place where)
{
    return (Got){memory(b->n_rows * 8), memory(b->n_rows * 8), place(where, b->format, b->n_rows, b->n),
                 place(where, b->format, b->n_rows, b->n), 0, 0};
}

static void release_results(Got *got)
{
    free(got->loss), free(got->sign), free(got->grad.memory), free(got->hess.memory);
}

static int same_bits(double a, double b) { return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b)); }

/* The same rows, swept by the same walk: the same bits, wherever they stand. */
static void check_same(const Case *c, const Batch *b, const Got *got, const Got *first)
{
    for (ptrdiff_t i = 0; i < b->n_rows; i++) {
        expect(same_bits(got->loss[i], first->loss[i]), "a loss has other bits here");
        for (ptrdiff_t j = 0; j < b->n; j++) {
            expect(same_bits(at(&got->grad, i, j), at(&first->grad, i, j)), "a gradient has other bits here");
            if (c->has_hess)
                expect(same_bits(at(&got->hess, i, j), at(&first->hess, i, j)), "a Hessian has other bits here");
        }
    }
    expect(same_bits(got->sum, first->sum), "the sum of the losses has other bits here");
}

static void check_exact(const Case *c, const Batch *b, const Got *got, double worst[3])
{
    static Exact exact;
    const int format = b->format, computed = format_of_loss(format);
    const int is_softmax = c->kind == SOFTMAX || c->kind == LOG_SOFTMAX;
    const double rounding = format > FORMAT_F32 ? 0.5 : 0, *ulp = is_softmax ? SOFTMAX_ULP : GRAD_ULP;
    const double bound = rounding + c->factor * (ulp[format] - rounding);
    const double tiny = tiny_of(computed), vague = 0x1p20 * tiny; /* an element of a Hessian is a product of two */
    const double least = c->kind != CROSS_ENTROPY || c->factor != 1 ? tiny : 0; /* products that may be subnormal */
    for (ptrdiff_t i = 0; i < b->n_rows; i++) {
        const Given row = {b->n, b->x + i * b->n, b->q + i * b->n, b->w, b->label[i], b->sample[i], format};
        exact_row(c, &row, &exact);
        if (!is_softmax)
            check("loss", i, -1, computed, got->loss[i], exact.loss, exact.loss_scale,
                  (c->kind == LOG_SUM_EXP ? 4 : LOSS_ULP[format] * c->factor), &worst[0]);
        if (c->kind == LOG_SUM_EXP) expect(got->sign[i] == exact.sign, "the sign of a sum");
        if (c->kind == NLL || c->kind == LOG_SUM_EXP) continue;
        for (ptrdiff_t j = 0; j < b->n; j++) {
            const double g = at(&got->grad, i, j), h = c->has_hess ? at(&got->hess, i, j) : 0;
            if (fabsl(exact.grad_scale[j]) < least && exact.grad[j] != 0) expect(fabs(g) <= tiny, "subnormal gradient");
            else check("gradient", i, j, format, g, exact.grad[j], exact.grad_scale[j], bound, &worst[1]);
            if (!c->has_hess) continue;
            if (exact.hess_scale[j] < vague && !isnan(exact.hess[j])) expect(fabs(h) <= 2 * vague, "subnormal Hessian");
            else check("Hessian", i, j, format, h, exact.hess[j], exact.hess_scale[j],
                       rounding + 2 * (bound - rounding), &worst[2]);
        }
    }
}

static void check_case(const Case *given, int format, ptrdiff_t n_rows, ptrdiff_t n, double worst[3])
{
    Case c = *given;
    if (c.temperature == 0) c.temperature = 1;
    Batch b = make_batch(&c, format, n_rows, n);
    Got first[2] = {{0}};
    for (Place where = CONTIGUOUS; where < N_PLACES; where++) {
        Array x = place(where, format, n_rows, n), q = place(where, format, n_rows, n);
        Got got = new_results(&b, where);
        snprintf(context, sizeof context, "%s, %s, %td classes, layout %d", c.name, FORMATS[format].name, n, where);
        fill(&x, b.x, n_rows, n);
        fill(&q, b.q, n_rows, n);
        run(&c, &b, &x, &q, WHOLE, &got);
        Got *same = &first[got.across];
        if (!same->loss) check_exact(&c, &b, &got, worst);
        else check_same(&c, &b, &got, same);
        for (How how = SPLIT; how <= STREAMED; how++) {
            Got again = new_results(&b, where);
            run(&c, &b, &x, &q, how, &again);
            check_same(&c, &b, &again, &got);
            release_results(&again);
        }
        if (c.kind != NLL && c.kind != LOG_SUM_EXP) {
            Got in_place = new_results(&b, where);
            char *memory = in_place.grad.memory;
            in_place.grad = x;
            run(&c, &b, &x, &q, WHOLE, &in_place);
            check_same(&c, &b, &in_place, &got);
            in_place.grad.memory = memory;
            release_results(&in_place);
        }
        free(x.memory), free(q.memory);
        if (!same->loss) *same = got;
        else release_results(&got);
    }
    for (int k = 0; k < 2; k++) release_results(&first[k]);
    release(&b);
}

/* Softcapped logits, of any size from far below the cap to far above it. */
static void check_softcap(int format)
{
    static const double CAPS[] = {1.5, 30, 65.383}; /* the last one is no float */
    const double bound = format == FORMAT_F64 ? 1.5 : 1.75;
    double worst = 0, x[1000];
    snprintf(context, sizeof context, "softcap, %s", FORMATS[format].name);
    for (int k = 0; k < 300; k++) {
        const double cap = CAPS[k % 3], scale = cap * exp(uniform(-12, 2));
        Formula formula = {.transform = SOFTCAP, .softcap = cap};
        double capped[1000];
        float x_f32[1000];
        set_temperature(&formula.half_cap, 1, cap / 2);
        for (int j = 0; j < 1000; j++) {
            x[j] = x_f32[j] = (float)normal(scale);
            if (format == FORMAT_F64) x[j] = normal(scale);
            capped[j] = x[j];
        }
        if (format == FORMAT_F64) transform_f64(capped, 1000, &formula);
        else transform_f32(x_f32, 1000, &formula);
        for (int j = 0; j < 1000; j++) {
            const Wide exact = cap * tanhl((Wide)x[j] / cap);
            check("logit", k, j, format, format == FORMAT_F64 ? capped[j] : x_f32[j], exact, exact, bound, &worst);
        }
    }
    printf("%-23s %-9s largest share of the bound: %.2f\n", "softcap", FORMATS[format].name, worst);
}

int main(void)
{
    static const ptrdiff_t FEW[] = {1, 2, 3, 4, 5, 8, 9, 17, 33, 57, 64, 65, 128, 129};
    for (int k = 0; k < N_CASES; k++)
        for (int format = 0; format < N_FORMATS; format++) {
            double worst[3] = {0, 0, 0};
            seed = (uint64_t)(100 * k + format);
            for (size_t i = k % 2; i < sizeof FEW / sizeof *FEW; i += k ? 2 : 1)
                check_case(&CASES[k], format, i % 3 ? N_KINDS : 65, FEW[i], worst);
            check_case(&CASES[k], format, k == 0 ? N_KINDS : 5, 1003, worst);
            if ((k + format) % 2 == 0) check_case(&CASES[k], format, 1, k % 4 < 2 ? MOST_CLASSES : 8193, worst);
            printf("%-23s %-9s largest share of the bound: loss %.2f, gradient %.2f, Hessian %.2f\n", CASES[k].name,
                   FORMATS[format].name, worst[0], worst[1], worst[2]);
        }
    check_softcap(FORMAT_F64);
    check_softcap(FORMAT_F32);
    return report("test_rows");
}
