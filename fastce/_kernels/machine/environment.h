/* The floating-point environment that kernels compute in: round to nearest, keep subnormals, trap nothing.
 *
 * A host may have set another one: libraries built with -ffast-math and torch.set_flush_denormal flush subnormals to
 * zero, interval arithmetic rounds up or down, a debugger traps NaN. Kernels that went along would lose the digits they
 * promise, on some threads and not on others: each thread has an environment of its own, which it inherits from the one
 * that started it. So each call, when it has its arguments, and each thread's part of one begin with enter_environment
 * and end with leave_environment, which puts back the host's settings and its exception flags.
 *
 * The compiler knows nothing of the dependence of arithmetic on the environment. What keeps the two apart is that
 * neither reads nor writes of memory move across them: operands must come from memory, and results go there.
 */
#ifndef FASTCE_ENVIRONMENT_H
#define FASTCE_ENVIRONMENT_H

#define FENCE() __asm__ volatile("" ::: "memory")

#if defined(__SSE2__)

typedef unsigned Environment; /* MXCSR: flags in bits 0 to 5, settings above */

static inline Environment enter_environment(void)
{
    const unsigned flags = 0x3f, usual = 0x1f80;
    const Environment host = __builtin_ia32_stmxcsr();
    if ((host & ~flags) != usual) __builtin_ia32_ldmxcsr(usual);
    FENCE();
    return host;
}

static inline void leave_environment(Environment host)
{
    FENCE();
    if (__builtin_ia32_stmxcsr() != host) __builtin_ia32_ldmxcsr(host);
}

#elif defined(__aarch64__)

#include <stdint.h>

typedef struct { uint64_t settings, flags; } Environment; /* FPCR, whose usual value is 0, and FPSR */

static inline Environment enter_environment(void)
{
    Environment host;
    __asm__ volatile("mrs %0, fpcr" : "=r"(host.settings));
    __asm__ volatile("mrs %0, fpsr" : "=r"(host.flags));
    if (host.settings != 0) __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
    FENCE();
    return host;
}

static inline void leave_environment(Environment host)
{
    FENCE();
    if (host.settings != 0) __asm__ volatile("msr fpcr, %0" ::"r"(host.settings));
    __asm__ volatile("msr fpsr, %0" ::"r"(host.flags));
}

#else

#include <fenv.h>

typedef fenv_t Environment;

static inline Environment enter_environment(void)
{
    Environment host;
    fegetenv(&host);
    fesetenv(FE_DFL_ENV);
    FENCE();
    return host;
}

static inline void leave_environment(Environment host)
{
    FENCE();
    fesetenv(&host);
}

#endif
#undef FENCE
#endif
