/* Records of a migration stream: their heads, and the CRC-32 (IEEE 802.3) that each has. */
#include "records.h"

#include <pthread.h>
#include <string.h>

enum { POLYNOMIAL = (int)0xedb88320, BYTES_AT_ONCE = 8 };

static uint32_t tables[BYTES_AT_ONCE][256];
static pthread_once_t made = PTHREAD_ONCE_INIT;

static void make_tables(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? (uint32_t)POLYNOMIAL : 0);
        tables[0][i] = value;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < BYTES_AT_ONCE; k++)
            tables[k][i] = tables[k - 1][i] >> 8 ^ tables[0][tables[k - 1][i] & 0xff];
}

/* The checksum of `data` behind what has the checksum `crc`; 0 at the start. */
uint32_t crc32_of(uint32_t crc, const void *data, size_t length) {
    const uint8_t *bytes = data;
    pthread_once(&made, make_tables);
    crc = ~crc;
    for (; length >= BYTES_AT_ONCE; bytes += BYTES_AT_ONCE, length -= BYTES_AT_ONCE) {
        uint32_t low, high;
        memcpy(&low, bytes, sizeof low);
        memcpy(&high, bytes + sizeof low, sizeof high);
        low ^= crc;
        crc = tables[7][low & 0xff] ^ tables[6][low >> 8 & 0xff] ^ tables[5][low >> 16 & 0xff] ^ tables[4][low >> 24] ^
              tables[3][high & 0xff] ^ tables[2][high >> 8 & 0xff] ^ tables[1][high >> 16 & 0xff] ^ tables[0][high >> 24];
    }
    for (; length; length--) crc = crc >> 8 ^ tables[0][(crc ^ *bytes++) & 0xff];
    return ~crc;
}

static uint32_t head_checksum(const RecordHead *head) {
    return crc32_of(0, head, offsetof(RecordHead, checksum));
}

/* Fill in the head of a record whose body is all `parts`, one behind the other. */
void record_seal(RecordHead *head, const char *kind, const struct iovec *body, int parts) {
    memcpy(head->kind, kind, RECORD_KIND_SIZE);
    head->flags = head->length = 0;
    for (int i = 0; i < parts; i++) head->length += (uint32_t)body[i].iov_len;
    head->checksum = head_checksum(head);
    for (int i = 0; i < parts; i++) head->checksum = crc32_of(head->checksum, body[i].iov_base, body[i].iov_len);
}

bool record_is(const RecordHead *head, const char *kind) {
    return !memcmp(head->kind, kind, RECORD_KIND_SIZE);
}

bool record_intact(const RecordHead *head, const void *body) {
    return crc32_of(head_checksum(head), body, head->length) == head->checksum;
}
