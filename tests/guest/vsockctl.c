/*
 * vsockctl echo PORT          serve PORT of the guest: what comes goes back, until the program on the host ends its output
 * vsockctl count PORT         serve PORT once: print how many bytes came, and their sum
 * vsockctl send PORT BYTES    connect to PORT of the host, and send so many bytes
 * vsockctl fetch PORT         connect to PORT of the host: print how many bytes came, and their sum
 *
 * What no program of the guest does with virtio sockets.
 */
#include <linux/vm_sockets.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

static unsigned char buffer[256 << 10];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void send_all(int fd, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t count = write(fd, buffer + done, length - done);

        if (count <= 0)
            fail("write");
        done += (size_t)count;
    }
}

static void report(int fd)
{
    uint64_t count = 0, sum = 0;
    ssize_t got;

    while ((got = read(fd, buffer, sizeof(buffer))) > 0) {
        for (ssize_t i = 0; i < got; i++)
            sum += buffer[i];
        count += (uint64_t)got;
    }
    if (got < 0)
        fail("read");
    printf("%llu %llu\n", (unsigned long long)count, (unsigned long long)sum);
}

static int serve(struct sockaddr_vm *address)
{
    int listening = socket(AF_VSOCK, SOCK_STREAM, 0), fd;

    address->svm_cid = VMADDR_CID_ANY;
    if (listening < 0 || bind(listening, (struct sockaddr *)address, sizeof(*address)) || listen(listening, 16))
        fail("listen");
    if ((fd = accept(listening, NULL, NULL)) < 0)
        fail("accept");
    return fd;
}

static int call(struct sockaddr_vm *address)
{
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

    address->svm_cid = VMADDR_CID_HOST;
    if (fd < 0 || connect(fd, (struct sockaddr *)address, sizeof(*address)))
        fail("connect");
    return fd;
}

int main(int argc, char **argv)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK};
    ssize_t got;
    int fd;

    if (argc < 3)
        return 2;
    address.svm_port = (unsigned)strtoul(argv[2], NULL, 0);
    if (strcmp(argv[1], "echo") == 0) {
        fd = serve(&address);
        while ((got = read(fd, buffer, sizeof(buffer))) > 0)
            send_all(fd, (size_t)got);
    } else if (strcmp(argv[1], "count") == 0) {
        report(serve(&address));
    } else if (strcmp(argv[1], "fetch") == 0) {
        report(call(&address));
    } else if (strcmp(argv[1], "send") == 0 && argc == 4) {
        fd = call(&address);
        memset(buffer, 'v', sizeof(buffer));
        for (uint64_t left = strtoull(argv[3], NULL, 0); left;) {
            size_t length = left < sizeof(buffer) ? (size_t)left : sizeof(buffer);

            send_all(fd, length);
            left -= length;
        }
    } else {
        return 2;
    }
    return 0;
}
