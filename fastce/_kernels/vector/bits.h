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

/* Bit i: a[i] > b[i], or one of them is NaN. */
INLINE unsigned FN(bits_beyond)(vec a, vec b)
{
#if defined(LEVEL_V4)
    return (unsigned)JOIN(OP(cmp), _mask)(a, b, _CMP_NLE_UQ);
#elif defined(OP)
    return (unsigned)OP(movemask)((vec)~(ivec)(a <= b));
#else
    unsigned bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (unsigned)!(a[i] <= b[i]) << i;
    return bits;
#endif
}

/* Whether that is so anywhere in four vectors. */
INLINE int FN(beyond_any)(vec a0, vec a1, vec a2, vec a3, vec b)
{
#if defined(OP) && !defined(LEVEL_V4)
    return OP(movemask)((vec)((ivec)(a0 <= b) & (ivec)(a1 <= b) & (ivec)(a2 <= b) & (ivec)(a3 <= b))) != (1 << LANES) - 1;
#else
    return (FN(bits_beyond)(a0, b) | FN(bits_beyond)(a1, b) | FN(bits_beyond)(a2, b) | FN(bits_beyond)(a3, b)) != 0;
#endif
}
