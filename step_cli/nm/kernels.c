/* The loops that a file of gigabytes waits for: counting the non-zeros of groups,
   pruning them by magnitude, and summing up what is written. `kernels.py` decides when
   they run, and what runs elsewhere. `hatch_build.py` compiles this for each set of
   instructions, with -DVECTOR: the bytes of a vector, 64 for AVX-512, 32 for AVX2 and 16
   for NEON.

   Weights are raw bits. A piece has X rows of groups of M, B groups side by side:
   member k of group (x, b) lies at (x * M + k) * stride + b. A vector holds one member
   of many groups or, where groups lie in one piece (B and stride are 1) and M divides
   its lanes, whole groups. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum {
    MOST = 64,   /* the largest M */
    SUMMED = 64, /* vectors that are summed in small lanes before wide ones */
};

typedef float Floats __attribute__((vector_size(VECTOR)));
typedef double Doubles __attribute__((vector_size(2 * VECTOR)));
typedef uint32_t Words __attribute__((vector_size(VECTOR)));
typedef uint64_t Longs __attribute__((vector_size(VECTOR)));

typedef struct {
    int64_t nonzeros, over, under, nonfinite; /* over: a group has more than N */
} Counted;

typedef struct {
    int64_t nonzeros, changed, nonfinite;
    double before, after; /* sums of magnitudes */
} Pruned;

/* Of the arguments; 0 if the processor lacks the instructions. */
#if VECTOR == 16
int step_kernels_version(void) /* every processor of the kind has them */
{
    return 1;
}
#else
__attribute__((target("arch=x86-64"))) int step_kernels_version(void)
{
    __builtin_cpu_init();
#if VECTOR == 64
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw")
        || !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return 0;
#else
    if (!__builtin_cpu_supports("avx2"))
        return 0;
#endif
    return 1;
}
#endif

/* Fletcher's checksum of words of 32 bits, with 64 for a sum, as ZFS has it; each place
   in a vector has its own. Up to 2 MiB no sum wraps around. */
uint64_t step_checksum(const unsigned char *data, ptrdiff_t size)
{
    Longs low = {0}, low_sums = {0}, high = {0}, high_sums = {0};
    for (ptrdiff_t at = 0; at < size; at += VECTOR) {
        Longs words = {0};
        if (size - at >= VECTOR)
            memcpy(&words, data + at, VECTOR);
        else
            memcpy(&words, data + at, size - at);
        low += words & UINT32_MAX;
        low_sums += low;
        high += words >> 32;
        high_sums += high;
    }
    uint64_t all = 0;
    for (int i = 0; i < VECTOR / 8; i++) {
        uint64_t sums[] = {low[i], low_sums[i], high[i], high_sums[i]};
        for (int j = 0; j < 4; j++)
            all = (all ^ sums[j]) * 0x9E3779B97F4A7C15 ^ all >> 29;
    }
    return all;
}

/* The lanes i ^ d: with d from 1 to M - 1, the others of the group of i. */
#define LANES8(i, d) LANES4(i, d), LANES4(i + 4, d)
#define LANES4(i, d) (i) ^ (d), ((i) + 1) ^ (d), ((i) + 2) ^ (d), ((i) + 3) ^ (d)
#define LANES16(i, d) \
    LANES4(i, d), LANES4(i + 4, d), LANES4(i + 8, d), LANES4(i + 12, d)
#define LANES32(i, d) LANES16(i, d), LANES16(i + 16, d)
#define LANES64(i, d) LANES32(i, d), LANES32(i + 32, d)

#define BITS 8
#include "kernels_by_width.h"
#undef BITS

#define BITS 16
#include "kernels_by_width.h"
#undef BITS

#define BITS 32
#include "kernels_by_width.h"
