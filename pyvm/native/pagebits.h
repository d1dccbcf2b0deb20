/* Sets of pages: a bit for each, the lowest first. */
#ifndef PYVM_PAGEBITS_H
#define PYVM_PAGEBITS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline uint64_t *bits_new(uint64_t pages) {
    return calloc((pages + 63) / 64 + 1, sizeof(uint64_t));
}

static inline bool bits_have(const uint64_t *bits, uint64_t page) { return bits[page / 64] >> (page % 64) & 1; }

static inline void bits_set(uint64_t *bits, uint64_t page) { bits[page / 64] |= UINT64_C(1) << (page % 64); }

static inline void bits_clear(uint64_t *bits, uint64_t page) { bits[page / 64] &= ~(UINT64_C(1) << (page % 64)); }

static inline uint64_t bits_bytes(uint64_t pages) { return (pages + 7) / 8; }

static inline uint64_t bits_count(const uint64_t *bits, uint64_t pages) {
    uint64_t found = 0;
    for (uint64_t i = 0; i < (pages + 63) / 64; i++) found += (uint64_t)__builtin_popcountll(bits[i]);
    return found;
}

/* Take a set over from bytes, of which there must be enough; bits behind the last page are dropped. */
static inline void bits_load(uint64_t *bits, const void *bytes, uint64_t pages) {
    memset(bits, 0, ((pages + 63) / 64 + 1) * sizeof *bits);
    memcpy(bits, bytes, bits_bytes(pages));
    if (pages % 64) bits[pages / 64] &= (UINT64_C(1) << (pages % 64)) - 1;
}

/* The first page of the set from `page` on; `pages` where there is none. */
static inline uint64_t bits_next(const uint64_t *bits, uint64_t page, uint64_t pages) {
    while (page < pages) {
        uint64_t word = bits[page / 64] >> (page % 64);
        if (word) {
            page += (uint64_t)__builtin_ctzll(word);
            return page < pages ? page : pages;
        }
        page = (page | 63) + 1;
    }
    return pages;
}

#endif
