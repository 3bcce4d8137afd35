/* Comparisons of vectors as integers, a bit for each lane: for what happens in few lanes of few vectors.
 *
 * Included once per REAL_BITS, after simd.h.
 */

/* Bit i: a[i] > b[i]. NaN is not above anything, nor anything above NaN. */
INLINE unsigned FN(bits_above)(vec a, vec b)
{
#if defined(LEVEL_V4)
    return (unsigned)JOIN(OP(cmp), _mask)(a, b, _CMP_GT_OQ);
#elif defined(OP)
    return (unsigned)OP(movemask)((vec)(ivec)(a > b));
#else
    unsigned bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (unsigned)(a[i] > b[i]) << i;
    return bits;
#endif
}

/* Bit i: a[i] is NaN. */
INLINE unsigned FN(bits_of_nan)(vec a)
{
#if defined(LEVEL_V4)
    return (unsigned)JOIN(OP(cmp), _mask)(a, a, _CMP_UNORD_Q);
#elif defined(OP)
    return (unsigned)OP(movemask)((vec)(ivec)(a != a));
#else
    unsigned bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (unsigned)(a[i] != a[i]) << i;
    return bits;
#endif
}
