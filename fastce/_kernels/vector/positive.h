/* Sums of numbers that are not negative, nor -0: of float32 as float64, widened by moving their bits.
 *
 * Included once per REAL_BITS, after simd.h. The bits of a float, 29 places up, are those of a double that is 2^896
 * times smaller: two instructions for a vector where a conversion takes five. Those of a NaN or an infinity are a number
 * then, and one that is larger than any sum of what is below 2^96: so a NaN comes back with the total.
 */
#if REAL_BITS == 64
INLINE void FN(add_positive)(sum_vec *acc, vec a) { FN(add)(acc, a); }

INLINE double FN(total_of_positive)(sum_vec acc, double *error) { return FN(total_and_error)(acc, error); }
#else
INLINE void FN(add_positive)(sum_vec *acc, vec a)
{
    const uvec_f64 pairs = (uvec_f64)a;
#if defined(LEVEL_V4)
    acc->low += (vec_f64)_mm512_mul_epu32((__m512i)pairs, _mm512_set1_epi64(1 << 29));
#elif defined(LEVEL_V3)
    acc->low += (vec_f64)_mm256_mul_epu32((__m256i)pairs, _mm256_set1_epi64x(1 << 29));
#elif defined(__SSE2__)
    acc->low += (vec_f64)_mm_mul_epu32((__m128i)pairs, _mm_set1_epi64x(1 << 29));
#else
    acc->low += (vec_f64)((pairs << 32) >> 3);
#endif
    acc->high += (vec_f64)((pairs & ~(uint64_t)0 << 32) >> 3);
}

/* The total, and what it has lost: nothing to speak of. */
INLINE double FN(total_of_positive)(sum_vec acc, double *error)
{
    const double sum = FN(total)(acc);
    *error = 0;
    return sum < 0x1p-768 ? sum * 0x1p896 : NAN;
}
#endif
