"""What this CPU and its operating system can run, and what built us. Baseline code: safe to import anywhere."""

cdef extern from *:
    """
    #if defined(__x86_64__) && defined(__GNUC__)
    #include <cpuid.h>
    static int cpu_has(int feature)
    {
        unsigned a, b, c, d;
        __builtin_cpu_init(); /* asks the operating system too: a register it does not save is no feature */
        switch (feature) {
        case 0: return __builtin_cpu_supports("avx2");
        case 1: return __builtin_cpu_supports("fma");
        case 2: /* not known to every compiler's builtin; needs no more from the system than avx2 */
            return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
        case 3: return __builtin_cpu_supports("bmi2");
        case 4: return __builtin_cpu_supports("avx512f");
        case 5: return __builtin_cpu_supports("avx512bw");
        case 6: return __builtin_cpu_supports("avx512dq");
        case 7: return __builtin_cpu_supports("avx512vl");
        default: return 0;
        }
    }
    #else
    static int cpu_has(int feature) { return (void)feature, 0; }
    #endif

    #if defined(__clang__)
    static const char built_by[] = "clang " __clang_version__;
    #elif defined(__GNUC__)
    static const char built_by[] = "gcc " __VERSION__;
    #else
    static const char built_by[] = "unknown";
    #endif
    """
    bint cpu_has(int feature)
    const char built_by[]

FEATURES = ("avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl")


def features():
    """Names of the instruction sets, out of those fastce has a use for, that can run here."""
    return frozenset(name for number, name in enumerate(FEATURES) if cpu_has(number))


def compiler():
    """Name and version of the compiler that built the extensions."""
    return " ".join(built_by.decode().split()[:2])
