/* exp and log1p against long double: the native twin of tests/vector/test_vmath.py. */
#include "rows/rows.h"

#include "check.h"

/* The figures beside the functions in vmath.h. */
#if defined(LEVEL_V4)
static const double EXP_ULP[] = {0.81, 0.76}, LOG1P_ULP = 1.61, LOG1P_ULP_F32 = 1.0;
#elif defined(LEVEL_V3)
static const double EXP_ULP[] = {0.87, 0.60}, LOG1P_ULP = 0.92, LOG1P_ULP_F32 = 1.0;
#else
static const double EXP_ULP[] = {0.88, 0.90}, LOG1P_ULP = 0.92, LOG1P_ULP_F32 = 1.1;
#endif
static const Wide LN2_HIGH = 0x1.62e42fefap-1L, LN2_LOW = 1.646594958289708128098443e-12L; /* their sum is ln 2 */

enum { N = 20000, AT_THE_END = 2 };

/* Exps below m of x <= m, in the precision of the format. */
static void check_exps(int format, double m)
{
    const double lowest = format == FORMAT_F64 ? -752 : -153, largest = largest_of(format);
    static double x[N], got[N];
    static float narrow[N], narrow_got[N];
    double worst = 0, base, n;
    m = rounded(format, m);
    for (int i = 0; i < N; i++) {
        const double tiny = exp(uniform(-80, 0)), usual = -20 * log(1 - uniform(0, 1)), any = uniform(0, -lowest);
        const double gap = i % 3 == 0 ? tiny : i % 3 == 1 ? usual : any;
        x[i] = rounded(format, m - gap);
    }
    x[0] = -INFINITY;
    x[1] = -largest;
    x[2] = NAN;
    for (int i = 0; i < N; i++) narrow[i] = (float)x[i];
    if (format == FORMAT_F64) exp_array_f64(x, N, m, got, &base, &n);
    else {
        exp_array_f32(narrow, N, (float)m, narrow_got, &base, &n);
        for (int i = 0; i < N; i++) got[i] = narrow_got[i];
    }
    snprintf(context, sizeof context, "exp of %s below %g", FORMATS[format].name, m);
    expect(isnan(got[2]), "NaN stays NaN");
    for (int i = 0; i < N; i++) {
        if (i < AT_THE_END || x[i] < m + lowest) expect(got[i] == 0 && !signbit(got[i]), "beyond the lowest exp is +0");
        if (i <= AT_THE_END || x[i] <= m + lowest) continue;
        const Wide steps = format == FORMAT_F64 ? exp_steps_f64 : exp_steps_f32, shift = n / steps;
        const Wide scale = format == FORMAT_F64 ? exp_scale_f64 : exp_scale_f32;
        const Wide d = (Wide)x[i] - base, power = rintl(d / LN2_HIGH - shift);
        const Wide reduced = (d - (power + shift) * LN2_HIGH) - (power + shift) * LN2_LOW;
        const Wide exact = ldexpl(expl(reduced), (int)power) * scale;
        check("exp", 0, i, format, got[i], exact, exact, EXP_ULP[format], &worst);
    }
}

static void check_log1p_f32(void)
{
    static float t[N], got[N];
    double worst = 0;
    for (int i = 0; i < N; i++) t[i] = (float)(i % 2 ? exp(uniform(-100, 88)) : uniform(0, 3));
    t[0] = 0;
    t[2] = 0x1p-149f;
    t[4] = NAN;
    log1p_array_f32(t, N, got);
    snprintf(context, sizeof context, "log1p of float32");
    for (int i = 0; i < N; i++) {
        const Wide exact = log1pl(t[i]);
        check("log1p", 0, i, FORMAT_F32, got[i], exact, exact, LOG1P_ULP_F32, &worst);
    }
}

static void check_log1p(void)
{
    static double t[N], got[N];
    double worst = 0;
    for (int i = 0; i < N; i++) t[i] = i % 2 ? exp(uniform(-740, 40)) : uniform(0, 3);
    t[0] = 0;
    t[2] = 0x1p-1074;
    t[4] = NAN;
    log1p_array_f64(t, N, got);
    snprintf(context, sizeof context, "log1p");
    for (int i = 0; i < N; i++) {
        const Wide exact = log1pl(t[i]);
        check("log1p", 0, i, FORMAT_F64, got[i], exact, exact, LOG1P_ULP, &worst);
    }
}

int main(void)
{
    static const double MAXIMA[] = {0, 0.1, -3.7, 60.3, 305.9, 306, -306, 1503.9, 1504, 1e4, -1e6};
    for (int format = FORMAT_F64; format <= FORMAT_F32; format++)
        for (size_t i = 0; i < sizeof MAXIMA / sizeof *MAXIMA; i++) check_exps(format, MAXIMA[i]);
    check_log1p();
    check_log1p_f32();
    return report("test_vmath");
}
