/* What the walk (problem.pxi, walk.pxi) and the row code (sweep.h, epilogue.h) hand to each other. */
#ifndef FASTCE_PROBLEM_H
#define FASTCE_PROBLEM_H

#include "vector/common.h"

enum {
    TILE = 64,              /* rows that pass through sweep, epilogue and write together */
    CHUNK = 8192,           /* longest piece of a row that is swept at once: 32 KiB of float32 */
    MAX_PIECES = 1024,      /* parts of a long row that are swept on their own */
    STAGED_BYTES = 1 << 21, /* of exps of a row in pieces, apart from its gradient */
    STREAMED_BYTES = 1 << 25, /* of a gradient that no cache would hold until it is used */
    FEW_BYTES = 512,        /* of a row that lies across vectors: 128 float32, 64 float64; longer ones lie along them, */
    APART_BYTES = 4096,     /* unless their classes are apart in memory: tiles up to that are held as a whole */
    SCRATCH = 8192,         /* doubles: a chunk, or a tile of rows of FEW_BYTES and again transposed */
    APART_SCRATCH = SCRATCH * (APART_BYTES / FEW_BYTES)
};
_Static_assert(CHUNK <= SCRATCH && 2 * TILE * FEW_BYTES <= SCRATCH * 8, "what the scratch is for must fit");
_Static_assert(3 * APART_SCRATCH * 8 <= STAGED_BYTES, "scratches of a tile across are where long rows stage");

/* Doubles of each scratch of a tile across. */
static inline ptrdiff_t scratch_across(ptrdiff_t row_bytes) { return row_bytes <= FEW_BYTES ? SCRATCH : APART_SCRATCH; }

/* Of r in Rows when it is computed in float64: keeps its digits where r is subnormal, for a weight that brings
 * them back. */
#define REST_SCALE_F64 0x1p64

/* Of sums of gaps between logits: they stay finite where their mean is. */
#define SPREAD_SCALE 0x1p-20

typedef enum { CROSS_ENTROPY, FOCAL, MARGIN, NLL, HINGE, SOFTMAX, LOG_SOFTMAX, LOG_SUM_EXP } Kind;

/* Which classes lack something to the margin: see hinge.h. */
typedef enum { ONE_VS_REST, MULTI_MARGIN, CRAMMER_SINGER } Hinge;

/* What becomes of a logit before the temperature divides it: a cosine is clipped to [-1, 1]. */
typedef enum { AS_GIVEN, SOFTCAP, COSINES } Transform;

/* What is computed of each row, z being its transformed logits:
 *
 *     loss = sum_j d_j (lse - z_j) + z_loss lse^2,    d_j = (even + share q_j) w_j,
 *
 * and d_y is label_share w_y more at a label y. A plain loss from labels has d_y alone. The others,
 * of all classes, are `terms`. */
typedef struct {
    Kind kind;
    Temperature temperature;     /* its units are derived, as all that is marked so */
    Transform transform;
    double softcap;
    Temperature half_cap;        /* derived: of the exps in its tanh */
    int has_terms;
    int by_element;              /* a transform, a Hessian or factors: more of an element is needed than its exp */
    double smoothing;
    double even, share;          /* derived: smoothing / C; 1 - smoothing for q, else 0 */
    double label_share;          /* derived: 1 - smoothing; 0 for q */
    const double *class_weight;  /* w, or NULL: ones */
    const void *term_weight;     /* the same in the precision that is computed in, where there are terms */
    int weights_positive;        /* of term_weight: all of them */
    double total_weight;         /* and their sum */
    ptrdiff_t heaviest;          /* the class of the largest */
    double z_loss;
    double gamma;                /* of FOCAL */
    double scale, margin1, margin2, margin3; /* of MARGIN */
    Hinge hinge;                 /* of HINGE, */
    int power;                   /* 1 or 2, */
    double margin;               /* and what each term lacks to */
    double normalizer;           /* divides the gradient */
} Formula;

/* Whether the largest d_j is that of the largest q_j. */
static inline int rises_with_q(const Formula *f) { return !f->term_weight && f->share >= 0; }

/* A tile: rows of one batch axis. `grad` is NULL where only the loss is wanted, `hess` where no Hessian is. */
typedef struct {
    ptrdiff_t n_rows, n_classes;
    const Formula *formula;
    const char *logits, *q;  /* q: target distributions, or the factors of the exps in LOG_SUM_EXP; or NULL */
    char *grad, *hess;
    Layout logits_layout, q_layout, grad_layout, hess_layout;
    double *scratch;         /* SCRATCH of them, or scratch_across */
    double *second, *third;  /* the same each, where something goes by element, q is given or rows lie across vectors */
    void *staging;           /* STAGED_BYTES, or NULL: for the exps of a long row that the gradient can't hold */
    int streams;             /* the gradient is written past the caches, and nothing staged in it */
} Tile;

/* What a sweep of the pieces of a row longer than CHUNK is for. */
typedef enum { FIND_MAXIMUM, SUM_EARLY, SUM_AT_MAXIMUM } Pass;

typedef struct {
    Pass pass;
    double max[MAX_PIECES];
    ptrdiff_t place[MAX_PIECES];                  /* where that stands first */
    double sum[MAX_PIECES], error[MAX_PIECES];    /* of the staged exps, but the target's */
    double mass[MAX_PIECES], spread[MAX_PIECES];  /* as in Rows */
    double below[MAX_PIECES], at_top[MAX_PIECES]; /* for a Hessian: the sum of those below the maximum's, how many equal it */
} Pieces;

/* The rows of a tile, one array per quantity: sweep fills the second group and the third,
 * the epilogue turns them into the last, write consumes that. */
typedef struct {
    int64_t label[TILE];     /* target class y, for q the one of the largest; -1: the row is ignored; n_classes: no target */
    double sample[TILE];     /* sample weight */
    int weighted;            /* weight is not 1 for all of them */
    double weight[TILE];     /* what the mean divides by: that, times w_y where targets are labels */
    double given[TILE];      /* x_y before its transform, for MARGIN, NLL and HINGE; the loss without weights (plain.h, terms.h) */

    double anchor[TILE];     /* m: x_y, or max_j x_j */
    double at_target[TILE];  /* x_y */
    double rest[TILE];       /* r = sum of exp(x_j - m) over j != y, times rest_scale (vmath.h) */
    double rest_low[TILE];   /* what that lacks */
    double target_exp[TILE]; /* exp(x_y - m), times rest_scale */
    double all[TILE];        /* sum of all exps as they are staged; of use only for a gradient */
    double all_low[TILE];    /* what that lacks */
    Pieces *pieces;          /* of a row alone in its tile */

    double own[TILE];        /* d_y */
    double mass[TILE];       /* sum of d_j over j != y */
    double spread[TILE];     /* sum of d_j (m - z_j) over j != y, times SPREAD_SCALE */
    double below[TILE];      /* for a Hessian: sum of p_j over j != y but for one maximum */

    double loss[TILE];
    double alpha[TILE];      /* gradient off the target: alpha p_j - (even + share q_j) w_j */
    double even[TILE], share[TILE];
    double beta[TILE];       /* gradient at the target */
    double curve[TILE], lead[TILE], excess[TILE]; /* Hessian: curve p_j (lead + excess p_j) */
    double log_sum[TILE];    /* of LOG_SOFTMAX: log of the sum of exp(x_j - m) */
    double edge[TILE], edge_low[TILE], floor[TILE]; /* of HINGE: see hinge.h */
    ptrdiff_t rival[TILE];   /* of a Crammer-Singer hinge: where the largest of the others stands first, -1: nowhere */
    double sign[TILE];       /* of LOG_SUM_EXP with factors: that of the sum */
    double hess_target[TILE], hess_top[TILE]; /* Hessian at the target, and at a maximum that is not it */
} Rows;

#endif
