/* The kernels for weights of BITS bits; `kernels.c` includes this for each width. */

#define JOIN(name, bits) name##bits
#define JOINED(name, bits) JOIN(name, bits)
#define NAME(name) JOINED(name, BITS)
#define LANES (VECTOR * 8 / BITS)
#define HIGH ((T)1 << (BITS - 1))
#define LEAST(a, b) ((a) < (b) ? (a) : (b))

#if VECTOR * 8 / BITS == 64
#define NUMBERS(d) LANES64(0, d)
#elif VECTOR * 8 / BITS == 32
#define NUMBERS(d) LANES32(0, d)
#elif VECTOR * 8 / BITS == 16
#define NUMBERS(d) LANES16(0, d)
#elif VECTOR * 8 / BITS == 8
#define NUMBERS(d) LANES8(0, d)
#else
#define NUMBERS(d) LANES4(0, d)
#endif
#define LANE(d) ((V){NUMBERS(d)})

/* From each lane the one d lanes away. clang has no __builtin_shuffle, and refuses lanes
   that there are not even where they are never used; gcc before 12 has only that. */
#ifdef __clang__
#define FROM(v, d) __builtin_shufflevector(v, v, NUMBERS(((d) % LANES)))
#else
#define FROM(v, d) __builtin_shuffle(v, LANE(d))
#endif

#if BITS == 8
#define T uint8_t
#define S int8_t
#elif BITS == 16
#define T uint16_t
#define S int16_t
#else
#define T uint32_t
#define S int32_t
#endif

#define V NAME(Vector)
#define I NAME(SignedVector)
#define W NAME(Weight)
typedef T W __attribute__((aligned(1))); /* as files have them, at any address */
typedef T V __attribute__((vector_size(VECTOR)));
typedef S I __attribute__((vector_size(VECTOR)));

/* `lanes` weights that lie `apart` from each other; 0 in the lanes behind them. */
INLINE V NAME(load)(const W *p, ptrdiff_t apart, ptrdiff_t lanes)
{
    V v = {0};
    if (apart != 1)
        for (ptrdiff_t i = 0; i < lanes; i++)
            v[i] = p[i * apart];
    else if (lanes == LANES)
        memcpy(&v, p, VECTOR);
    else
        memcpy(&v, p, lanes * sizeof(T));
    return v;
}

INLINE void NAME(store)(W *p, V v, ptrdiff_t apart, ptrdiff_t lanes)
{
    if (apart != 1)
        for (ptrdiff_t i = 0; i < lanes; i++)
            p[i * apart] = v[i];
    else if (lanes == LANES)
        memcpy(p, &v, VECTOR);
    else
        memcpy(p, &v, lanes * sizeof(T));
}

INLINE int NAME(any_high)(V v)
{
    T all = 0;
    for (int i = 0; i < LANES; i++)
        all |= v[i];
    return (all & HIGH) != 0;
}

/* -- counting -- */

typedef struct {
    V sum, over, under, nonfinite; /* three of them tell by a lane's highest bit */
    int room;                      /* for what a lane of `sum` can still take */
    int64_t nonzeros;
} NAME(Counts);

INLINE void NAME(flush_counts)(NAME(Counts) *all)
{
    for (int i = 0; i < LANES; i++)
        all->nonzeros += all->sum[i];
    all->sum = (V){0};
    all->room = UINT8_MAX;
}

/* Take in `found`, at most `most` a lane, and what each lane's group has. */
INLINE void NAME(take_counts)(NAME(Counts) *all, V found, int most, V counts, T n,
                              ptrdiff_t lanes)
{
    if (all->room < most)
        NAME(flush_counts)(all);
    all->room -= most;
    all->sum += found;
    all->over |= counts + (T)(HIGH - 1 - n);
    all->under |= ((T)(HIGH - 1 + n) - counts) & (V)(LANE(0) < (T)lanes);
}

/* `lanes` groups whose first members lie `apart`, the others `stride` behind them. */
INLINE void NAME(count_lanes)(NAME(Counts) *all, const W *p, ptrdiff_t stride,
                              ptrdiff_t apart, ptrdiff_t lanes, ptrdiff_t m, T n,
                              T mask, T limit)
{
    V counts = {0};
    for (ptrdiff_t k = 0; k < m; k++) {
        V magnitude = NAME(load)(p + k * stride, apart, lanes) & mask;
        counts += (V)(magnitude != 0) & 1;
        all->nonfinite |= magnitude + (T)(HIGH - limit);
    }
    NAME(take_counts)(all, counts, (int)m, counts, n, lanes);
}

/* Groups in one piece, M of them 2, 4, 8 or 16, and no more than lanes. */
INLINE void NAME(count_whole)(NAME(Counts) *all, const W *p, ptrdiff_t weights,
                              ptrdiff_t m, T n, T mask, T limit)
{
    for (ptrdiff_t at = 0; at < weights; at += LANES) {
        ptrdiff_t lanes = LEAST(weights - at, LANES);
        V magnitude = NAME(load)(p + at, 1, lanes) & mask;
        V found = (V)(magnitude != 0) & 1, counts = found;
        all->nonfinite |= magnitude + (T)(HIGH - limit);
        counts += FROM(counts, 1);
        if (m > 2)
            counts += FROM(counts, 2);
        if (m > 4)
            counts += FROM(counts, 4);
        if (m > 8)
            counts += FROM(counts, 8);
        NAME(take_counts)(all, found, 1, counts, n, lanes);
    }
}

/* `limit`: the lowest magnitude that is not finite, below the highest bit; or 0. */
void NAME(step_count_)(const W *p, ptrdiff_t x, ptrdiff_t m, ptrdiff_t b,
                              ptrdiff_t stride, int n, T mask, T limit, Counted *out)
{
    NAME(Counts) all = {.room = UINT8_MAX};
    if (stride == 1 && m == 2)
        NAME(count_whole)(&all, p, x * m, 2, n, mask, limit);
    else if (stride == 1 && m == 4)
        NAME(count_whole)(&all, p, x * m, 4, n, mask, limit);
    else if (stride == 1 && m == 8 && m <= LANES)
        NAME(count_whole)(&all, p, x * m, 8, n, mask, limit);
    else if (stride == 1 && m == 16 && m <= LANES)
        NAME(count_whole)(&all, p, x * m, 16, n, mask, limit);
    else if (b < LANES) /* a row does not fill a vector: take one from each row */
        for (ptrdiff_t j = 0; j < b; j++)
            for (ptrdiff_t i = 0; i < x; i += LANES)
                NAME(count_lanes)(&all, p + i * m * stride + j, stride, m * stride,
                                  LEAST(x - i, LANES), m, n, mask, limit);
    else
        for (ptrdiff_t i = 0; i < x; i++)
            for (ptrdiff_t j = 0; j < b; j += LANES)
                NAME(count_lanes)(&all, p + i * m * stride + j, stride, 1,
                                  LEAST(b - j, LANES), m, n, mask, limit);
    NAME(flush_counts)(&all);
    out->nonzeros = all.nonzeros;
    out->over = NAME(any_high)(all.over);
    out->under = NAME(any_high)(all.under);
    out->nonfinite = limit && NAME(any_high)(all.nonfinite);
}

/* -- pruning -- */

#if BITS != 8

#if BITS == 16
typedef Floats NAME(Values);
#else
typedef Doubles NAME(Values);
#endif

typedef struct {
    V nonzeros, changed, nonfinite;
    NAME(Values) before, after;
    int room;
    Pruned *total;
} NAME(Sums);

INLINE void NAME(flush_sums)(NAME(Sums) *all)
{
    for (int i = 0; i < LANES; i++) {
        all->total->nonzeros += all->nonzeros[i];
        all->total->changed += all->changed[i];
    }
    for (int i = 0; i < VECTOR / 4; i++) {
        all->total->before += (double)all->before[i];
        all->total->after += (double)all->after[i];
    }
    all->nonzeros = all->changed = (V){0};
    all->before = all->after = (NAME(Values)){0};
    all->room = SUMMED;
}

/* Magnitudes, shifted to where a float has its exponent: times a power of 2. */
INLINE NAME(Values) NAME(values)(V magnitude, int shift)
{
    Words words = (Words)magnitude;
#if BITS == 16
    return (Floats)((words & 0xFFFF) << shift) + (Floats)((words >> 16) << shift);
#else
    return __builtin_convertvector((Floats)(words << shift), Doubles);
#endif
}

/* Write what is kept of a vector, and count. A zero is kept, so -0.0 keeps its sign. */
INLINE void NAME(settle)(NAME(Sums) *all, W *out, V code, V magnitude, V keep, T limit,
                         int shift, ptrdiff_t apart, ptrdiff_t lanes)
{
    V nonzero = (V)(magnitude != 0), changed = nonzero & ~keep;
    NAME(store)(out, code & ~changed, apart, lanes);
    if (all->room-- == 0)
        NAME(flush_sums)(all);
    all->nonzeros -= nonzero & keep;
    all->changed -= changed;
    all->nonfinite |= magnitude + (T)(HIGH - limit);
    all->before += NAME(values)(magnitude, shift);
    all->after += NAME(values)(magnitude & keep, shift);
}

/* As `count_lanes`; kept are those which fewer than N of their group beat. */
INLINE void NAME(prune_lanes)(NAME(Sums) *all, const W *p, W *out, ptrdiff_t stride,
                              ptrdiff_t apart, ptrdiff_t lanes, ptrdiff_t m, S n,
                              T limit, int shift)
{
    V code[MOST], magnitude[MOST], beaten[MOST];
    for (ptrdiff_t k = 0; k < m; k++) {
        code[k] = NAME(load)(p + k * stride, apart, lanes);
        magnitude[k] = code[k] & (T)(HIGH - 1);
        beaten[k] = (V){0} + (T)(m - 1 - k); /* by all behind it, until it beats them */
    }
    for (ptrdiff_t i = 0; i < m; i++)
        for (ptrdiff_t j = i + 1; j < m; j++) {
            V wins = (V)((I)magnitude[i] >= (I)magnitude[j]); /* of equals the first */
            beaten[i] += wins;
            beaten[j] -= wins;
        }
    for (ptrdiff_t k = 0; k < m; k++)
        NAME(settle)(all, out + k * stride, code[k], magnitude[k],
                     (V)((I)beaten[k] < n), limit, shift, apart, lanes);
}

/* Which weights are beaten by the one d lanes away: by an equal one, if it is lower. */
INLINE V NAME(beaten_by)(V magnitude, V rival, V lower)
{
    return (V)((I)(rival + (lower & 1)) > (I)magnitude);
}
#define BEATEN_BY(d) \
    NAME(beaten_by)(magnitude, FROM(magnitude, d), \
                    (V)(LANE(d) < LANE(0)))

/* Groups in one piece, M of them 2, 4 or 8. */
INLINE void NAME(prune_whole)(NAME(Sums) *all, const W *p, W *out, ptrdiff_t weights,
                              ptrdiff_t m, S n, T limit, int shift)
{
    for (ptrdiff_t at = 0; at < weights; at += LANES) {
        ptrdiff_t lanes = LEAST(weights - at, LANES);
        V code = NAME(load)(p + at, 1, lanes), magnitude = code & (T)(HIGH - 1);
        V kept = (V){0} + (T)n - 1; /* below 0 when N or more beat it */
        kept += BEATEN_BY(1);
        if (m > 2)
            kept += BEATEN_BY(2) + BEATEN_BY(3);
        if (m > 4)
            kept += BEATEN_BY(4) + BEATEN_BY(5) + BEATEN_BY(6) + BEATEN_BY(7);
        NAME(settle)(all, out + at, code, magnitude, (V)((I)kept >= 0), limit, shift, 1,
                     lanes);
    }
}

/* Floats: `limit` as above, `shift` to where a float32 has its exponent. Magnitudes
   beyond `limit` make the result useless, as sums that overflow do. */
void NAME(step_prune_)(const W *p, W *out, ptrdiff_t x, ptrdiff_t m, ptrdiff_t b,
                              ptrdiff_t stride, int n, T limit, int shift,
                              Pruned *total)
{
    NAME(Sums) all = {.room = SUMMED, .total = total};
    *total = (Pruned){0};
    if (stride == 1 && m == 2)
        NAME(prune_whole)(&all, p, out, x * m, 2, n, limit, shift);
    else if (stride == 1 && m == 4)
        NAME(prune_whole)(&all, p, out, x * m, 4, n, limit, shift);
    else if (stride == 1 && m == 8 && m <= LANES)
        NAME(prune_whole)(&all, p, out, x * m, 8, n, limit, shift);
    else if (b < LANES)
        for (ptrdiff_t j = 0; j < b; j++)
            for (ptrdiff_t i = 0; i < x; i += LANES) {
                ptrdiff_t at = i * m * stride + j;
                NAME(prune_lanes)(&all, p + at, out + at, stride, m * stride,
                                  LEAST(x - i, LANES), m, n, limit, shift);
            }
    else
        for (ptrdiff_t i = 0; i < x; i++)
            for (ptrdiff_t j = 0; j < b; j += LANES) {
                ptrdiff_t at = i * m * stride + j;
                NAME(prune_lanes)(&all, p + at, out + at, stride, 1,
                                  LEAST(b - j, LANES), m, n, limit, shift);
            }
    NAME(flush_sums)(&all);
    total->nonfinite = NAME(any_high)(all.nonfinite);
}

#undef BEATEN_BY
#endif

#undef JOIN
#undef JOINED
#undef NAME
#undef LANES
#undef LANE
#undef NUMBERS
#undef FROM
#undef HIGH
#undef LEAST
#undef T
#undef S
#undef V
#undef W
#undef I
