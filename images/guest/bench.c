/*
 * Micro-benchmarks inside the guest, one figure each: nanoseconds of one operation, the best of several rounds.
 *
 *     bench [SECONDS]    prints one line of JSON; SECONDS (0.3) is how long each benchmark may take
 *
 * Linked statically: the same program runs in any guest, and on the host.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef void body(long times);

struct benchmark {
    const char *name;
    body *run;
};

/* Results go here, so that no loop can be left out. */
static volatile unsigned long sink;
static volatile double real_sink;

static void integer_loop(long times)
{
    unsigned long x = 88172645463325252ul;

    for (long n = 0; n < times * 1000; n++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    sink = x;
}

#define SIEVE_SIZE 65536

static void sieve(long times)
{
    static unsigned char composite[SIEVE_SIZE];

    for (long n = 0; n < times; n++) {
        unsigned long primes = 0;

        memset(composite, 0, sizeof(composite));
        for (unsigned i = 2; i < SIEVE_SIZE; i++) {
            if (composite[i])
                continue;
            primes++;
            for (unsigned long k = (unsigned long)i * i; k < SIEVE_SIZE; k += i)
                composite[k] = 1;
        }
        sink = primes;
    }
}

static int compare(const void *left, const void *right)
{
    unsigned a = *(const unsigned *)left, b = *(const unsigned *)right;

    return a < b ? -1 : a > b;
}

#define SORT_SIZE 8192

static void sort(long times)
{
    static unsigned values[SORT_SIZE];

    for (long n = 0; n < times; n++) {
        unsigned seed = 12345;

        for (int i = 0; i < SORT_SIZE; i++) {
            seed = seed * 1103515245 + 12345;
            values[i] = seed >> 8;
        }
        qsort(values, SORT_SIZE, sizeof(values[0]), compare);
        sink = values[SORT_SIZE / 2];
    }
}

#define COPY_SIZE (1 << 20)

static void copy(long times)
{
    static unsigned char from[COPY_SIZE], to[COPY_SIZE];

    for (long n = 0; n < times; n++) {
        from[n % COPY_SIZE] = (unsigned char)n;
        memcpy(to, from, COPY_SIZE);
        sink = to[(n * 31) % COPY_SIZE];
    }
}

static void floating_point(long times)
{
    double x = 0.5, sum = 0;

    for (long n = 0; n < times * 1000; n++) {
        x = 3.7 * x * (1.0 - x);
        sum += x / (1.0 + x * x);
    }
    real_sink = sum;
}

static void system_call(long times)
{
    for (long n = 0; n < times; n++)
        sink = (unsigned long)syscall(SYS_getppid);
}

static void fork_wait(long times)
{
    for (long n = 0; n < times; n++) {
        pid_t child = fork();
        int status;

        if (child == 0)
            _exit(0);
        if (child < 0 || waitpid(child, &status, 0) != child) {
            perror("fork");
            exit(1);
        }
    }
}

static void page_fault(long times)
{
    const size_t page = 4096, count = 256;

    for (long n = 0; n < times; n += (long)count) {
        unsigned char *area = mmap(NULL, page * count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (area == MAP_FAILED) {
            perror("mmap");
            exit(1);
        }
        for (size_t i = 0; i < count; i++)
            area[i * page] = 1;
        munmap(area, page * count);
    }
}

static void pipe_ping_pong(long times)
{
    int there[2], back[2], status;
    char byte = 'x';
    pid_t child;

    if (pipe(there) || pipe(back) || (child = fork()) < 0) {
        perror("pipe");
        exit(1);
    }
    if (child == 0) {
        close(there[1]);
        close(back[0]);
        while (read(there[0], &byte, 1) == 1)
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        _exit(0);
    }
    close(there[0]);
    close(back[1]);
    for (long n = 0; n < times; n++) {
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) {
            perror("pipe");
            exit(1);
        }
    }
    close(there[1]);
    close(back[0]);
    waitpid(child, &status, 0);
}

static const struct benchmark benchmarks[] = {
    {"integer", integer_loop}, {"sieve", sieve},           {"sort", sort},
    {"copy", copy},            {"float", floating_point},  {"syscall", system_call},
    {"fork", fork_wait},       {"page_fault", page_fault}, {"pipe", pipe_ping_pong},
};

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double timed(body *run, long times)
{
    double start = now();

    run(times);
    return now() - start;
}

/* Enough operations for a third of the time, then the best of three rounds. */
static double measure(body *run, double seconds)
{
    long times = 1;
    double taken, best = 0;

    while ((taken = timed(run, times)) < seconds / 6 && times < 1l << 40)
        times *= 2;
    for (int round = 0; round < 3; round++) {
        taken = timed(run, times) / (double)times;
        if (round == 0 || taken < best)
            best = taken;
    }
    return best * 1e9;
}

int main(int count, char **arguments)
{
    double seconds = count > 1 ? atof(arguments[1]) : 0.3;

    setvbuf(stdout, NULL, _IONBF, 0);
    printf("{");
    for (size_t i = 0; i < sizeof(benchmarks) / sizeof(benchmarks[0]); i++)
        printf("%s\"%s\": %.1f", i ? ", " : "", benchmarks[i].name, measure(benchmarks[i].run, seconds));
    printf("}\n");
    return 0;
}
