/* What comes with each row: its label and its weight, in any dtype and spacing. */
#ifndef FASTCE_TARGETS_H
#define FASTCE_TARGETS_H

typedef struct {
    int size, is_signed, swapped; /* of the integer dtype */
    int has_ignore;
    int64_t ignore_index;         /* its bits; only where a label of this dtype can equal it */
    int64_t n_classes;
} Labels;

enum { AHEAD_LABELS = 4096 }; /* bytes */

typedef struct {
    int64_t used; /* a class */
    int64_t bad;  /* neither a class nor ignore_index */
} LabelCounts;

INLINE int64_t load_label(const char *p, int size, int is_signed, int swapped)
{
    uint8_t b; uint16_t h; uint32_t w; uint64_t q;
    switch (size) {
    case 1: memcpy(&b, p, 1); return is_signed ? (int8_t)b : b;
    case 2: memcpy(&h, p, 2); h = swapped ? __builtin_bswap16(h) : h; return is_signed ? (int16_t)h : h;
    case 4: memcpy(&w, p, 4); w = swapped ? __builtin_bswap32(w) : w; return is_signed ? (int32_t)w : (int64_t)w;
    default: memcpy(&q, p, 8); return (int64_t)(swapped ? __builtin_bswap64(q) : q);
    }
}

/* Labels of n rows that stand `stride` bytes apart: the class, or -1 for a row to ignore. One that is neither a
 * class nor ignore_index becomes -1 too. A uint64 beyond int64 is negative here and hence no class. */
static void read_labels(const Labels *labels, const char *src, ptrdiff_t stride, ptrdiff_t n, int64_t *label,
                        LabelCounts *counts)
{
    /* Of a class neither y nor n_classes - 1 - y has its sign bit set. */
    const uint64_t last = (uint64_t)labels->n_classes - 1;
    uint64_t signs = 0;
#define READ(stride, size, is_signed, swapped) \
    for (ptrdiff_t i = 0; i < n; i++) { \
        label[i] = load_label(src + i * (stride), size, is_signed, swapped); \
        signs |= (uint64_t)label[i] | (last - (uint64_t)label[i]); \
    }
    const int plain = !labels->swapped && stride == labels->size; /* the common ones, vectorised */
    for (ptrdiff_t at = 0; plain && at < n * stride; at += 64)
        __builtin_prefetch((const char *)((uintptr_t)src + AHEAD_LABELS + (uintptr_t)at), 0, 3);
    if (plain && labels->size == 8) READ(8, 8, 1, 0)
    else if (plain && labels->size == 4 && labels->is_signed) READ(4, 4, 1, 0)
    else READ(stride, labels->size, labels->is_signed, labels->swapped)
#undef READ
    const int64_t has_ignore = -(int64_t)labels->has_ignore, ignore_index = labels->ignore_index;
    const int64_t n_classes = labels->n_classes;
    if ((int64_t)signs >= 0 && !(has_ignore && ignore_index >= 0 && ignore_index < n_classes)) {
        counts->used += n;
        return;
    }
    /* All bits or none, and sums of those: vectors of 64 bits. */
    int64_t skipped = 0, bad = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const int64_t y = label[i], ignored = has_ignore & -(int64_t)(y == ignore_index);
        const int64_t outside = -(int64_t)(y < 0) | -(int64_t)(y >= n_classes);
        skipped += ignored | outside;
        bad += outside & ~ignored;
        label[i] = y | ignored | outside;
    }
    counts->used += n + skipped;
    counts->bad -= bad;
}

/* Counts alone. */
static void count_labels(const Labels *labels, const char *src, ptrdiff_t stride, ptrdiff_t n, LabelCounts *counts)
{
    int64_t label[TILE];
    for (ptrdiff_t i = 0; i < n; i += TILE)
        read_labels(labels, src + i * stride, stride, n - i < TILE ? n - i : TILE, label, counts);
}

/* Weights where none are given. */
INLINE void fill_weights(Rows *rows, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++) rows->sample[i] = rows->weight[i] = 1;
}

/* What the mean divides by: the sample weight, times the class weight where targets are labels. */
INLINE void set_mean_weights(Rows *rows, ptrdiff_t n, const double *class_weight)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const int64_t y = rows->label[i];
        rows->weight[i] = rows->sample[i] * (class_weight ? class_weight[y < 0 ? 0 : y] : 1); /* without branches */
    }
}

/* A label whose weight is 0 has no term of its own: the heaviest class, if it has one, takes its place outside of
 * the sums. */
static void replace_weightless(Rows *rows, ptrdiff_t n, const Formula *formula)
{
    if (formula->class_weight[formula->heaviest] == 0) return;
    for (ptrdiff_t i = 0; i < n; i++)
        if (rows->label[i] >= 0 && formula->class_weight[rows->label[i]] == 0) rows->label[i] = formula->heaviest;
}

static void read_weights(Format format, int swapped, const char *src, ptrdiff_t stride, ptrdiff_t n, double *weight)
{
    if (format == FORMAT_F64) fetch_f64(src, format, swapped, stride, n, weight);
    else for (ptrdiff_t i = 0; i < n; i++) weight[i] = load_one_f32(src + i * stride, format, swapped);
}

/* Per-row losses, in the dtype of the result. */
static void put_losses(const double *loss, ptrdiff_t n, Format format, ptrdiff_t stride, char *dst)
{
    for (ptrdiff_t i = 0; i < n; i++)
        if (format == FORMAT_F64) store_one_f64(dst + i * stride, loss[i], format, 0);
        else store_one_f32(dst + i * stride, (float)loss[i], format, 0);
}
#endif
