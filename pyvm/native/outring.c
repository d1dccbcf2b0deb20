/* Moving what a driver gives a device straight to a socket: the available chains of a split virtqueue.
 *
 * A guest that writes a long answer notifies its device for each few KiB of it.  Here a chain is read, sent and given back
 * without an object of the interpreter for it.  Whatever is not an ordinary chain of readable buffers stays where it is, for
 * pyvm.devices.virtio to look at; so does the chain that the socket does not take, or not all of it.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/socket.h>

#include "outring.h"
#include "vector.h"

enum { DESC_F_NEXT = 1, DESC_F_WRITE = 2, DESC_F_INDIRECT = 4 };
enum { AVAIL_IDX = 1, AVAIL_RING = 2, USED_RING_OFFSET = 4, MAX_PIECES = 16 };

typedef struct {
    uint64_t gpa;
    uint32_t length;
    uint16_t flags, next;
} Descriptor;

typedef struct {
    uint32_t id, length;
} Used;

typedef struct {
    Py_buffer ram, table, avail, used;
    PyObject *blocks;
    uint16_t size, next_avail, next_used;
} Ring;

/* ---- Reading; the guest may change everything meanwhile */

static uint16_t avail_item(const Ring *ring, unsigned index) {
    return __atomic_load_n((const uint16_t *)ring->avail.buf + index, __ATOMIC_ACQUIRE);
}

/* The head of the next chain; false where there is none, or none that it may have. */
static bool next_head(const Ring *ring, uint16_t *head) {
    uint16_t pending = (uint16_t)(avail_item(ring, AVAIL_IDX) - ring->next_avail);
    uint16_t in_use = (uint16_t)(ring->next_avail - ring->next_used);
    if (!pending || pending > ring->size || in_use >= ring->size) return false;
    *head = avail_item(ring, AVAIL_RING + ring->next_avail % ring->size);
    return *head < ring->size;
}

/* The pieces of a chain, and how many they are; 0 where it is not an ordinary one. */
static int read_chain(const Ring *ring, uint16_t index, struct iovec *pieces, size_t *bytes) {
    *bytes = 0;
    for (int count = 0; count < MAX_PIECES; count++) {
        Descriptor found;
        memcpy(&found, (const char *)ring->table.buf + index * sizeof found, sizeof found);
        Piece piece = {.gpa = found.gpa, .length = found.length};
        if (!found.length || found.flags & (DESC_F_WRITE | DESC_F_INDIRECT) || !vector_place(ring->blocks, &piece)) return 0;
        if (!vector_fits(&ring->ram, &piece)) return 0;
        pieces[count] = (struct iovec){(char *)ring->ram.buf + piece.offset, piece.length};
        *bytes += piece.length;
        if (!(found.flags & DESC_F_NEXT)) return count + 1;
        if (found.next >= ring->size) return 0;
        index = found.next;
    }
    return 0;
}

/* ---- Moving */

/* Send as much as the socket takes at once; negative where that is nothing. */
static ssize_t send_pieces(int fd, struct iovec *pieces, int count) {
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)count};
    ssize_t sent;
    Py_BEGIN_ALLOW_THREADS; /* the RAM may have to be fetched first */
    sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    Py_END_ALLOW_THREADS;
    return sent;
}

static void give_back(Ring *ring, uint16_t head) {
    Used used = {.id = head};
    size_t place = USED_RING_OFFSET + ring->next_used % ring->size * sizeof used;
    memcpy((char *)ring->used.buf + place, &used, sizeof used);
    ring->next_used++;
    ring->next_avail++;
}

/* Send chain after chain; returns how many were sent whole, and how many bytes of one more. */
static unsigned send_chains(Ring *ring, int fd, size_t *rest) {
    unsigned done = 0;
    uint16_t head;
    *rest = 0;
    while (done < ring->size && next_head(ring, &head)) {
        struct iovec pieces[MAX_PIECES];
        size_t bytes;
        int count = read_chain(ring, head, pieces, &bytes);
        if (!count) break;
        ssize_t sent = send_pieces(fd, pieces, count);
        if (sent < 0) break;
        if ((size_t)sent < bytes) {
            *rest = (size_t)sent;
            break;
        }
        give_back(ring, head);
        done++;
    }
    return done;
}

static bool is_ring(Ring *ring) {
    size_t size = (size_t)ring->table.len / sizeof(Descriptor);
    if (!size || size > UINT16_MAX || (uintptr_t)ring->avail.buf % sizeof(uint16_t)) return false;
    if ((size_t)ring->avail.len < sizeof(uint16_t) * (AVAIL_RING + size)) return false;
    if ((size_t)ring->used.len < USED_RING_OFFSET + sizeof(Used) * size) return false;
    ring->size = (uint16_t)size;
    return true;
}

PyObject *outring_send(PyObject *module, PyObject *args) {
    Ring ring;
    unsigned next_avail, next_used;
    int fd;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*O!y*y*w*(II)i:send_chains", &ring.ram, &PyTuple_Type, &ring.blocks, &ring.table,
                          &ring.avail, &ring.used, &next_avail, &next_used, &fd))
        return NULL;
    PyObject *result = NULL;
    ring.next_avail = (uint16_t)next_avail;
    ring.next_used = (uint16_t)next_used;
    if (!is_ring(&ring)) {
        PyErr_SetString(PyExc_ValueError, "send_chains: the parts of the ring do not fit together");
    } else {
        size_t rest;
        unsigned done = send_chains(&ring, fd, &rest);
        if (!PyErr_Occurred()) result = Py_BuildValue("In", done, (Py_ssize_t)rest);
    }
    PyBuffer_Release(&ring.ram);
    PyBuffer_Release(&ring.table);
    PyBuffer_Release(&ring.avail);
    PyBuffer_Release(&ring.used);
    return result;
}
