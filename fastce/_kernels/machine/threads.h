/* The threads of this process: the default, the forks, and what concurrent calls share. Included once, by threads.pyx. */
#ifndef FASTCE_THREADS_H
#define FASTCE_THREADS_H

#ifdef _OPENMP
#include <omp.h>
static const int openmp_version = _OPENMP;
#else
static const int openmp_version = 0;
static int omp_get_max_threads(void) { return 1; }
static double omp_get_wtime(void) { return 0; }
#endif
#include <stddef.h>
#include <stdint.h>

enum {
    WORTH_WAKING = 4, /* times the work that is worth a thread which is awake */
    MOST_THREADS = 1 << 16
};

#if defined(_OPENMP) && defined(__GNUC__) && !defined(__clang__)
static const int has_gnu_runtime = 1;
#else
static const int has_gnu_runtime = 0;
#endif

/* Any thread may read and write these at any time, with the GIL or without. */
static int chosen;           /* the default, as it was found at import or set since */
static int openmp_at_import; /* what OpenMP would have taken then */
static int busy;             /* threads of all calls under way */
static int forked;
static int64_t awake_for = INT64_MAX; /* microseconds that threads wait before they sleep */
static int64_t last_end = INT64_MIN / 2; /* of a call with work for several */

#define LOAD(what) __atomic_load_n(&(what), __ATOMIC_RELAXED)
#define STORE(what, value) __atomic_store_n(&(what), (value), __ATOMIC_RELAXED)

#ifndef _WIN32
#include <pthread.h>
static void note_fork(void) { STORE(forked, 1); }
static int watch_forks(void) { return pthread_atfork(NULL, NULL, note_fork); }
#else
static int watch_forks(void) { return 0; }
#endif

static void set_default(int n) { STORE(chosen, n); }
static void set_awake_for(int64_t n) { STORE(awake_for, n); }

/* Whoever lowers OpenMP's number after the import, as threadpoolctl does, means fastce too. */
static int default_threads(void)
{
    const int now = omp_get_max_threads(), n = LOAD(chosen);
    if (LOAD(forked)) return 1;
    return now < LOAD(openmp_at_import) && now < n ? now : n;
}

static int64_t microseconds(void) { return (int64_t)(omp_get_wtime() * 1e6); }

/* How many threads a call gets that has work for `useful` ones and wants n, or as many as there are to spare if n is 0:
 * at least the one it is on. None is taken where the work is less than is worth a thread that is awake, and no other
 * where it is less than WORTH_WAKING times that and they sleep. */
static int take_threads(int n, ptrdiff_t useful, ptrdiff_t work, ptrdiff_t worth)
{
    if (work < worth) return 0;
    if (LOAD(forked)) return 1;
    if (work < WORTH_WAKING * worth && microseconds() - LOAD(last_end) > LOAD(awake_for)) useful = 1;
    if (useful > MOST_THREADS) useful = MOST_THREADS;
    if (n > 0) {
        if (n > useful) n = (int)useful;
        __atomic_fetch_add(&busy, n, __ATOMIC_RELAXED);
        return n;
    }
    const int most = default_threads();
    int taken = LOAD(busy);
    do {
        n = most - taken < useful ? most - taken : (int)useful;
        if (n < 1) n = 1;
    } while (!__atomic_compare_exchange_n(&busy, &taken, taken + n, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return n;
}

static void give_back_threads(int n)
{
    if (n == 0 || LOAD(forked)) return;
    __atomic_fetch_sub(&busy, n, __ATOMIC_RELAXED);
    STORE(last_end, microseconds());
}

static int threads_at_work(void) { return LOAD(busy); }

#undef LOAD
#undef STORE
#endif
