/* What a unit of the namespace holds; the layout is documented in towline's crates/tenant/src/block.rs. */
#include "guest.h"

#define BLOCK_MAGIC 0x4b434f4c424c5754ull /* "TWLBLOCK" */
#define WORDS (UNIT_BYTES / 8)

/* CRC32C of all but the last four bytes. */
static uint32_t checksum(const uint64_t *block) {
    uint64_t crc = 0xffffffff;
    for (unsigned n = 0; n < WORDS - 1; n++) crc = crc32q(crc, block[n]);
    return ~crc32l((uint32_t)crc, (uint32_t)block[WORDS - 1]);
}

void block_fill(uint64_t *block, uint64_t unit, uint64_t seq, uint32_t epoch) {
    const uint64_t seed = PARAMETERS->seed;
    const uint64_t key = ((unit << 32 | unit >> 32) ^ seq ^ seed) * 0x9e3779b97f4a7c15ull;
    for (unsigned n = 5; n < WORDS; n++) block[n] = (key + n) * 0xbf58476d1ce4e5b9ull;
    block[0] = BLOCK_MAGIC;
    block[1] = unit;
    block[2] = seq;
    block[3] = epoch;
    block[4] = seed;
    const uint64_t last = block[WORDS - 1] & 0xffffffff;
    block[WORDS - 1] = last | (uint64_t)checksum(block) << 32;
}

enum found block_inspect(const uint64_t *block, uint64_t unit, uint64_t *seq, uint32_t *epoch) {
    *seq = 0;
    *epoch = 0;
    if (block[0] == 0) {
        for (unsigned n = 1; n < WORDS; n++)
            if (block[n] != 0) return FOUND_INVALID;
        return FOUND_BLANK;
    }
    if (block[0] != BLOCK_MAGIC || block[1] != unit || block[2] == 0 || block[4] != PARAMETERS->seed ||
        (uint32_t)(block[WORDS - 1] >> 32) != checksum(block))
        return FOUND_INVALID;
    *seq = block[2];
    *epoch = (uint32_t)block[3];
    return FOUND_VERSION;
}
