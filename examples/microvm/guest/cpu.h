/* Instructions that C has no words for. */
#ifndef MICROVM_CPU_H
#define MICROVM_CPU_H

#include <stdint.h>

static inline uint64_t rdtsc(void) {
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static inline uint64_t crc32q(uint64_t crc, uint64_t word) {
    __asm__("crc32q %1, %0" : "+r"(crc) : "r"(word));
    return crc;
}

static inline uint32_t crc32l(uint32_t crc, uint32_t word) {
    __asm__("crc32l %1, %0" : "+r"(crc) : "r"(word));
    return crc;
}

/* Device memory: one access of this size, neither merged nor left out. */
static inline uint32_t mmio_read32(uint64_t address) {
    uint32_t value;
    __asm__ volatile("movl (%1), %0" : "=a"(value) : "r"(address) : "memory");
    return value;
}

static inline void mmio_write32(uint64_t address, uint32_t value) {
    __asm__ volatile("movl %0, (%1)" : : "a"(value), "r"(address) : "memory");
}

#endif
