/* The k best of many numbers: the largest, and of equal ones those with the lower index.
 *
 * Numbers pass by in the order of their indices, and only those above a threshold are looked at: of a long row all but
 * a few vectors are passed over with one comparison. They go on a list with room for more than k; when it is full its
 * k best stay, and the least of them is the threshold: whatever the order of the numbers, n of them cost
 * O(n + k log k). A heap has the threshold that is right at any time, and costs more than the few that this spares; a
 * list that is kept in order has it too, and costs less where k is small.
 */
#ifndef FASTCE_BEST_H
#define FASTCE_BEST_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

enum { FEW = 32 }; /* best ones that are kept in order */

typedef struct {
    double x;
    double mass; /* exp(x - m) where that is of use (sample.h) */
    int64_t index;
} Candidate;

typedef struct {
    Candidate *list;
    ptrdiff_t n, k, room; /* how many there are, how many are wanted, how many the list can hold */
    double threshold;     /* who is not above it is not among the k best */
} Best;

/* Without a branch, which half of the time would go the wrong way. */
static inline int is_before(Candidate a, Candidate b)
{
    return (a.x > b.x) | ((a.x == b.x) & (a.index < b.index));
}

static inline void swap_candidates(Candidate *list, ptrdiff_t i, ptrdiff_t j)
{
    const Candidate a = list[i];
    list[i] = list[j];
    list[j] = a;
}

/* Puts one of n candidates where it belongs, those before it to its left, and returns its place. Which one is
 * scattered: no order that a row may have makes it a bad one again and again. All differ, in their index if not else:
 * of n equal ones, each would be split off alone. */
static ptrdiff_t split_candidates(Candidate *list, ptrdiff_t n)
{
    swap_candidates(list, (ptrdiff_t)(((uint64_t)n * 0x9e3779b97f4a7c15u >> 20) % (uint64_t)n), n - 1);
    const Candidate pivot = list[n - 1];
    ptrdiff_t place = 0;
    for (ptrdiff_t i = 0; i < n - 1; i++) {
        const Candidate a = list[i];
        list[i] = list[place];
        list[place] = a;
        place += is_before(a, pivot);
    }
    swap_candidates(list, place, n - 1);
    return place;
}

/* Brings the k best of n to the front, in any order. */
static void select_best(Candidate *list, ptrdiff_t n, ptrdiff_t k)
{
    while (k > 0 && k < n) {
        const ptrdiff_t place = split_candidates(list, n);
        if (k <= place) n = place;
        else {
            list += place + 1;
            n -= place + 1;
            k -= place + 1;
        }
    }
}

static void sort_candidates(Candidate *list, ptrdiff_t n)
{
    while (n > 16) {
        const ptrdiff_t place = split_candidates(list, n);
        if (place < n - place) { /* the smaller part first: few calls within calls */
            sort_candidates(list, place);
            list += place + 1;
            n -= place + 1;
        } else {
            sort_candidates(list + place + 1, n - place - 1);
            n = place;
        }
    }
    for (ptrdiff_t i = 1; i < n; i++) {
        const Candidate a = list[i];
        ptrdiff_t j = i;
        for (; j > 0 && is_before(a, list[j - 1]); j--) list[j] = list[j - 1];
        list[j] = a;
    }
}

/* How many candidates a list must have room for. */
static inline ptrdiff_t room_for_best(ptrdiff_t k) { return 2 * k; }

static inline void begin_best(Best *best, Candidate *list, ptrdiff_t k)
{
    best->list = list;
    best->n = 0;
    best->k = k;
    best->room = room_for_best(k);
    best->threshold = k == 0 ? INFINITY : -INFINITY;
}

/* Brings the k best of n to the front and returns the least of them. */
static double least_of_best(Candidate *list, ptrdiff_t n, ptrdiff_t k)
{
    double least = INFINITY;
    select_best(list, n, k);
    for (ptrdiff_t i = 0; i < k; i++) least = list[i].x < least ? list[i].x : least;
    return least;
}

/* Leaves the k best. */
static void settle_best(Best *best)
{
    if (best->n < best->k) return;
    best->threshold = least_of_best(best->list, best->n, best->k);
    best->n = best->k;
}

static inline void add_to_best(Best *best, double x, int64_t index)
{
    ptrdiff_t j = best->n;
    if (best->k > FEW) {
        best->list[best->n++] = (Candidate){x, 0, index};
        if (best->n == best->room) settle_best(best);
        return;
    }
    if (j < best->k) best->n++;
    else j--;
    for (; j > 0 && best->list[j - 1].x < x; j--) best->list[j] = best->list[j - 1];
    best->list[j] = (Candidate){x, 0, index};
    if (best->n == best->k) best->threshold = best->list[best->k - 1].x;
}

/* The k best of two lists, in the first; the other's have higher indices, in order if they are few. Else a threshold
 * that rises on the way would keep out what is equal and comes later with a lower index. */
static void merge_best(Best *best, const Best *other)
{
    const double threshold = best->threshold;
    for (ptrdiff_t i = 0; i < other->n; i++)
        if (other->list[i].x > (best->k > FEW ? threshold : best->threshold))
            add_to_best(best, other->list[i].x, other->list[i].index);
}
#endif
