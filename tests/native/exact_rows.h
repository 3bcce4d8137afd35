/* What the losses of a row are, in long double: the formulas of docs/explained.md, one row at a time. */
#ifndef FASTCE_EXACT_ROWS_H
#define FASTCE_EXACT_ROWS_H

#include "check.h"

enum { MOST_CLASSES = 2 * 8192 + 100 /* three pieces */ };

typedef struct {
    const char *name;
    Kind kind;
    double smoothing, z_loss, temperature, softcap, gamma, scale, margin2, margin3;
    Hinge hinge;
    int power;
    double margin;
    int has_q, has_weight, has_hess;
    double factor;    /* of the bounds for plain losses, where more is rounded */
} Case;

/* A row and what comes with it. */
typedef struct {
    ptrdiff_t n;
    const double *x, *q, *w; /* w: ones where the case has no weights */
    ptrdiff_t y;             /* -1: ignored */
    double sample;
    int format;
} Given;

/* Results, and beside each the number whose ULP its error is counted in: the result, or the largest of its terms. */
typedef struct {
    Wide loss, loss_scale, sign;
    Wide grad[MOST_CLASSES], grad_scale[MOST_CLASSES], hess[MOST_CLASSES], hess_scale[MOST_CLASSES];
} Exact;

/* m, exp(x_j - m), and sums of these: s of all, `others` without one maximum's, `rest` without the target's. */
typedef struct { Wide m, e[MOST_CLASSES], s, others, rest, log_s; } Sums_of_exps;

/* With what each addition lost in `error`: many equal terms are all rounded the same way. */
typedef struct { Wide sum, error; } Sum_of_wides;

static void add_wide(Sum_of_wides *a, Wide term)
{
    const Wide sum = a->sum + term, part = sum - a->sum;
    a->error += (a->sum - (sum - part)) + (term - part);
    a->sum = sum;
}

static void sum_exps(const Wide *z, ptrdiff_t n, ptrdiff_t y, Wide divisor, Sums_of_exps *a)
{
    ptrdiff_t top = 0;
    for (ptrdiff_t j = 1; j < n; j++) top = z[j] > z[top] ? j : top;
    Sum_of_wides others = {0, 0}, rest = {0, 0};
    a->m = z[top];
    for (ptrdiff_t j = 0; j < n; j++) {
        a->e[j] = z[j] == a->m ? 1 : expl((z[j] - a->m) / divisor);
        if (j != top) add_wide(&others, a->e[j]);
        if (j != y) add_wide(&rest, a->e[j]);
    }
    a->others = others.sum + others.error;
    a->rest = rest.sum + rest.error;
    a->s = 1 + a->others;
    a->log_s = log1pl(a->others);
}

static Wide largest3(Wide a, Wide b, Wide c) { return fmaxl(fabsl(a), fmaxl(fabsl(b), fabsl(c))); }

static void exact_cross_entropy(const Case *c, const Given *row, const Wide *z, const Sums_of_exps *a, Exact *out)
{
    const ptrdiff_t n = row->n, y = row->y;
    const Wide t = c->temperature, sample = row->sample, even = (Wide)c->smoothing / n, share = 1 - (Wide)c->smoothing;
    static Wide d[MOST_CLASSES];
    Wide all = 0, mass = 0, spread = 0, size = 0;
    for (ptrdiff_t j = 0; j < n; j++) {
        d[j] = (even + (c->has_q ? share * row->q[j] : j == y ? share : 0)) * row->w[j];
        all += d[j];
        if (j != y) mass += d[j];
        if (d[j] != 0) spread += d[j] * ((a->m - z[j]) / t);
        if (isfinite(z[j])) size = fmaxl(size, fabsl(z[j] / t));
    }
    const int is_sum = c->has_q || c->smoothing != 0 || c->z_loss != 0;
    const Wide lse = a->m / t + a->log_s, lambda = c->z_loss;
    out->loss = sample * (all * a->log_s + spread + lambda * lse * lse);
    out->loss_scale = fabsl(out->loss);
    if (c->z_loss != 0) out->loss_scale += sample * lambda * (a->m / t * (a->m / t) + a->log_s * a->log_s);
    if (c->softcap != 0) out->loss_scale += sample * all * size; /* a capped logit is rounded itself */
    for (ptrdiff_t j = 0; j < n; j++) {
        const Wide p = a->e[j] / a->s, u = c->softcap != 0 ? row->x[j] / (Wide)c->softcap : 0;
        const Wide rise = c->softcap != 0 ? 1 / (coshl(u) * coshl(u)) : 1; /* of the softcap */
        const int from_rest = j == y && fabsl(mass) < fmaxl(all * p, d[j]); /* the terms that cancel less */
        const Wide by_z = 2 * lambda * lse * p + (from_rest ? mass - all * (a->rest / a->s) : all * p - d[j]);
        const Wide terms = is_sum ? largest3(all * p, d[j], 2 * lambda * lse * p) : fabsl(by_z);
        const Wide rest_j = z[j] == a->m ? a->others / a->s : 1 - p;
        const Wide by_zz = (all + 2 * lambda * lse) * p * rest_j + 2 * lambda * p * p;
        out->grad[j] = sample / t * by_z * rise;
        out->grad_scale[j] = sample / t * fmaxl(terms, fabsl(by_z)) * rise * (c->softcap != 0 ? 1 + size : 1);
        if (!c->has_hess) continue;
        out->hess[j] = sample / (t * t) * by_zz * rise * rise;
        out->hess_scale[j] = is_sum ? fmaxl(fabsl(out->hess[j]), out->grad_scale[j] / t) : fabsl(out->hess[j]);
        if (c->softcap == 0) continue;
        out->hess[j] += sample / t * by_z * (-2 * tanhl(u) * rise / c->softcap);
        out->hess_scale[j] = fmaxl(out->hess_scale[j] * (1 + size), 2 / (Wide)c->softcap * out->grad_scale[j]);
    }
}

/* u^gamma (-log p_y) with u = 1 - p_y. */
static void exact_focal(const Case *c, const Given *row, const Wide *z, const Sums_of_exps *a, Exact *out)
{
    const ptrdiff_t y = row->y;
    const Wide w = row->sample * row->w[y], u = a->rest / a->s, p_y = a->e[y] / a->s, entropy = a->m - z[y] + a->log_s;
    const Wide power = powl(u, c->gamma), slope = p_y == 0 ? 0 : u == 0 ? 1 : p_y * entropy / u;
    const Wide kappa = power * (1 + c->gamma * slope);
    out->loss = out->loss_scale = u == 0 && entropy == 0 ? 0 : w * power * entropy;
    for (ptrdiff_t j = 0; j < row->n; j++)
        out->grad[j] = out->grad_scale[j] = w * kappa * (j == y ? -u : a->e[j] / a->s);
}

/* The target's cosine becomes cos(t + margin2) - margin3; the gradient of clipped ones is 0. */
static void exact_margin(const Case *c, const Given *row, const Wide *z, Exact *out)
{
    static Sums_of_exps a;
    static Wide moved[MOST_CLASSES];
    const ptrdiff_t y = row->y;
    const Wide m2 = c->margin2, sine = sqrtl((1 - z[y]) * (1 + z[y])), unit = row->format == FORMAT_F64 ? 1 : 0x1p-29L;
    const Wide least = sqrtl(ldexpl(1, -FORMATS[row->format].mantissa_bits)), divisor = fmaxl(sine, least);
    const int beyond = m2 > acosl(-z[y]); /* pi - t, with its digits near pi */
    const Wide slope = beyond ? 1 : cosl(m2) + z[y] / divisor * sinl(m2);
    memcpy(moved, z, (size_t)row->n * sizeof *z);
    moved[y] = (beyond ? z[y] - m2 * sinl(m2) : z[y] * cosl(m2) - sine * sinl(m2)) - c->margin3;
    sum_exps(moved, row->n, y, 1 / (Wide)c->scale, &a);
    const Wide w = row->sample * row->w[y], rest = a.rest / a.s;
    const Wide size = unit * c->scale * (1 + fabsl(m2) + c->margin3);
    const Wide slopes = fabsl(cosl(m2)) + fabsl(z[y] * sinl(m2)) / divisor;
    out->loss = w * (c->scale * (a.m - moved[y]) + a.log_s);
    out->loss_scale = fmaxl(out->loss, w * rest * size);
    for (ptrdiff_t j = 0; j < row->n; j++) {
        const Wide by_z = w * c->scale * (j == y ? -rest * slope : a.e[j] / a.s);
        out->grad[j] = fabsl(row->x[j]) <= 1 ? by_z : 0;
        out->grad_scale[j] = fabsl(out->grad[j]) * fmaxl(1, size);
        if (j == y && fabsl(row->x[j]) <= 1)
            out->grad_scale[j] = fmaxl(out->grad_scale[j], unit * w * c->scale * rest * slopes * fmaxl(1, size));
    }
}

/* log |sum of b exp(x)| */
static void exact_log_sum(const Case *c, const Given *row, const Sums_of_exps *a, Exact *out)
{
    Wide sum = 0, size = 0;
    out->sign = 1;
    if (!c->has_q) {
        out->loss = a->m + a->log_s;
        out->loss_scale = largest3(out->loss, a->m, a->log_s);
        return;
    }
    for (ptrdiff_t j = 0; j < row->n; j++) {
        sum += row->q[j] * a->e[j];
        size += fabsl(row->q[j] * a->e[j]);
    }
    out->sign = sum > 0 ? 1 : sum < 0 ? -1 : 0;
    out->loss = a->m + logl(fabsl(sum));
    out->loss_scale = largest3(out->loss, a->m, size / fabsl(sum));
}

/* max(0, margin - x_y + x_j), with what the two sums lose. */
static Wide lacking(Wide margin, Wide x_y, Wide x_j)
{
    if (x_j == -INFINITY) return 0;
    const Wide a = margin - x_y, part = a - margin, a_low = (margin - (a - part)) - (x_y + part);
    const Wide sum = x_j + a, back = sum - x_j, low = (x_j - (sum - back)) + (a - back);
    const Wide h = isfinite(sum) ? sum + (low + a_low) : sum;
    return h <= 0 ? 0 : h;
}

static void exact_hinge(const Case *c, const Given *row, Exact *out)
{
    static Wide h[MOST_CLASSES];
    const ptrdiff_t y = row->y;
    const int is_relative = c->hinge != ONE_VS_REST;
    const Wide w = (Wide)row->sample * row->w[y] / (c->hinge == MULTI_MARGIN ? row->n : 1), x_y = row->x[y];
    ptrdiff_t rival = -1;
    int unknown = 0, some = 0;
    Sum_of_wides loss = {0, 0}, slopes = {0, 0};
    for (ptrdiff_t j = 0; j < row->n; j++) {
        unknown |= isnan(row->x[j]);
        some |= row->x[j] > -INFINITY;
        if (j != y && row->x[j] > -INFINITY && (rival < 0 || row->x[j] > row->x[rival])) rival = j;
    }
    for (ptrdiff_t j = 0; j < row->n; j++) {
        h[j] = j != y ? lacking(c->margin, is_relative ? x_y : 0, row->x[j]) : is_relative ? 0 : lacking(c->margin, x_y, 0);
        if (c->hinge == CRAMMER_SINGER && j != rival) h[j] = 0;
        add_wide(&loss, c->power == 1 ? h[j] : h[j] * h[j]);
        out->grad[j] = c->power == 2 ? 2 * w * h[j] : h[j] > 0 ? w : 0;
        add_wide(&slopes, out->grad[j]);
    }
    out->loss = w * (isinf(loss.sum) ? loss.sum : loss.sum + loss.error);
    out->grad[y] = is_relative ? -(slopes.sum + slopes.error) : -out->grad[y];
    if (unknown || (is_relative && !some)) out->loss = NAN;
    out->loss_scale = out->loss;
    for (ptrdiff_t j = 0; j < row->n; j++) {
        if (isnan(out->loss)) out->grad[j] = NAN;
        out->grad_scale[j] = out->grad[j];
    }
}

static void exact_row(const Case *c, const Given *row, Exact *out)
{
    static Wide z[MOST_CLASSES];
    static Sums_of_exps a;
    int unknown = 0;
    Wide top = -INFINITY;
    for (ptrdiff_t j = 0; j < row->n; j++) {
        z[j] = c->softcap != 0 ? c->softcap * tanhl(row->x[j] / (Wide)c->softcap) : row->x[j];
        if (c->kind == MARGIN) z[j] = fmaxl(-1, fminl(1, z[j]));
        unknown |= isnan(z[j]) || z[j] == INFINITY;
        top = fmaxl(top, z[j]);
    }
    memset(out, 0, sizeof *out);
    if (row->y < 0) return;
    if (c->kind == HINGE) exact_hinge(c, row, out);
    if (c->kind == HINGE) return;
    if (unknown || top == -INFINITY) {
        out->loss = NAN;
        for (ptrdiff_t j = 0; j < row->n; j++) out->grad[j] = out->hess[j] = NAN;
        return;
    }
    if (c->kind == MARGIN) exact_margin(c, row, z, out);
    if (c->kind == MARGIN) return;
    sum_exps(z, row->n, row->y, c->temperature, &a);
    switch (c->kind) {
    case CROSS_ENTROPY: exact_cross_entropy(c, row, z, &a, out); break;
    case FOCAL: exact_focal(c, row, z, &a, out); break;
    case NLL: out->loss = out->loss_scale = -(Wide)row->sample * row->w[row->y] * row->x[row->y]; break;
    case LOG_SUM_EXP: exact_log_sum(c, row, &a, out); break;
    default:
        for (ptrdiff_t j = 0; j < row->n; j++)
            out->grad[j] = out->grad_scale[j] = c->kind == SOFTMAX ? a.e[j] / a.s : (z[j] - a.m) - a.log_s;
    }
}

#endif
