/* Which of Flower's 2^28 pair-mask seeds fits what the server saw?
 *
 * flwr folds the 32-byte text seed to 32 bits by XOR and seeds MT19937 with it; the text is base64, whose
 * bytes are below 128, so 28 bits are left. The first outputs of MT19937 need only states 0..5 and
 * 397..402 of its seeding (Matsumoto and Nishimura 1998), which is a chain of some 400 multiplications;
 * 32 seeds go side by side.
 *
 * Arguments: first and last value (exclusive) of the top byte, sign (+1: the victim added the mask, -1), the known first
 * word of the mask, then five masked words whose plaintext is below 2^22.
 * Prints the seeds that fit and how many were tried.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef uint32_t lanes __attribute__((vector_size(32)));
enum { GROUPS = 4, EACH = 8, WORDS = 5 };

static uint32_t tempered(uint32_t low, uint32_t high, uint32_t far) {
    uint32_t y = (low & 0x80000000u) | (high & 0x7fffffffu);
    uint32_t v = far ^ (y >> 1) ^ ((y & 1) ? 0x9908b0dfu : 0);
    v ^= v >> 11; v ^= (v << 7) & 0x9d2c5680u; v ^= (v << 15) & 0xefc60000u;
    return v ^ (v >> 18);
}

static int fits(uint32_t seed, int sign, const uint32_t *masked) {
    uint32_t s[397 + WORDS + 2] = {seed};
    for (uint32_t i = 1; i < 397 + WORDS + 2; i++) s[i] = 1812433253u * (s[i - 1] ^ (s[i - 1] >> 30)) + i;
    for (int w = 1; w <= WORDS; w++) {
        uint32_t mask = tempered(s[w], s[w + 1], s[w + 397]);
        uint32_t plain = sign > 0 ? masked[w - 1] - mask : masked[w - 1] + mask;
        if (plain >> 22) return 0;
    }
    return 1;
}

int main(int count, char **values) {
    if (count != 5 + WORDS) return 2;
    uint32_t from = atoi(values[1]), to = atoi(values[2]), known = strtoul(values[4], 0, 10), masked[WORDS];
    int sign = atoi(values[3]);
    for (int w = 0; w < WORDS; w++) masked[w] = strtoul(values[5 + w], 0, 10);
    uint64_t tried = 0;
    for (uint32_t b3 = from; b3 < to; b3++) for (uint32_t b2 = 0; b2 < 128; b2++) for (uint32_t b1 = 0; b1 < 128; b1++)
        for (uint32_t b0 = 0; b0 < 128; b0 += GROUPS * EACH) {
            uint32_t base = b0 | b1 << 8 | b2 << 16 | b3 << 24;
            lanes x[GROUPS], first[GROUPS], second[GROUPS];
            for (int g = 0; g < GROUPS; g++) {
                for (int e = 0; e < EACH; e++) x[g][e] = base + g * EACH + e;
                first[g] = x[g];
            }
            for (uint32_t i = 1; i <= 397; i++) {
                for (int g = 0; g < GROUPS; g++) x[g] = 1812433253u * (x[g] ^ (x[g] >> 30)) + i;
                if (i == 1) for (int g = 0; g < GROUPS; g++) second[g] = x[g];
            }
            for (int g = 0; g < GROUPS; g++) for (int e = 0; e < EACH; e++)
                if (tempered(first[g][e], second[g][e], x[g][e]) == known && fits(first[g][e], sign, masked))
                    printf("%u\n", first[g][e]);
            tried += GROUPS * EACH;
        }
    printf("tried %llu\n", (unsigned long long)tried);
    return 0;
}
