/* Records of a migration stream as native threads read and write them; pyvm/migration/stream.py describes the format. */
#ifndef PYVM_RECORDS_H
#define PYVM_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { RECORD_KIND_SIZE = 4 };
enum { PAGES_PLAIN, PAGES_ZERO };

typedef struct {
    char kind[RECORD_KIND_SIZE];
    uint32_t flags, length, checksum;
} RecordHead;

/* How the body of a record of pages begins; the runs follow. */
typedef struct {
    uint8_t encoding, unused;
    uint16_t block;
    uint32_t runs;
} PagesHead;

typedef struct {
    uint32_t first, count;
} PageRun;

/* The body of a record that asks for pages. */
typedef struct {
    uint32_t block, first, count;
} PageRequest;

uint32_t crc32_of(uint32_t crc, const void *data, size_t length);
void record_seal(RecordHead *head, const char *kind, const struct iovec *body, int parts);
bool record_is(const RecordHead *head, const char *kind);
bool record_intact(const RecordHead *head, const void *body);

#endif
