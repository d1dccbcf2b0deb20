/* SSE arithmetic on ordinary numbers by the host's own.
 *
 * Unicorn computes in software, with a short cut through the host's arithmetic that is several calls deep.  Here the
 * helpers of add, subtract, multiply, divide and square root try the host first.  That is right where operands and
 * result are normal numbers, the rounding is to nearest, denormals are kept, and the inexact flag is set already, so
 * that no flag can change; everything else goes to the original.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "engine.h"

#pragma GCC optimize("no-math-errno", "fp-contract=off")

/* Unicorn's float_status. */
enum { STATUS_ROUNDING = 1, STATUS_FLAGS = 2, STATUS_FLUSH_TO_ZERO = 4, STATUS_FLUSH_INPUTS = 5 };
enum { NEAREST_EVEN = 0, FLAG_INEXACT = 32 };

static bool host_may(const void *env) {
    const uint8_t *status = (const uint8_t *)env + ENV_SSE_STATUS;
    return status[STATUS_FLAGS] & FLAG_INEXACT && status[STATUS_ROUNDING] == NEAREST_EVEN && !status[STATUS_FLUSH_TO_ZERO] &&
           !status[STATUS_FLUSH_INPUTS];
}

static bool normal_double(double x) {
    return fabs(x) >= DBL_MIN && fabs(x) <= DBL_MAX;
}

static bool normal_float(float x) {
    return fabsf(x) >= FLT_MIN && fabsf(x) <= FLT_MAX;
}

typedef void Helper(Env *, void *, void *);

/* The replacement of one helper for a register of `count` numbers of one type; `expression` computes r from a and b. */
#define REPLACE(name, type, count, usable, normal, expression)                                \
    EXPORT void helper_##name##_x86_64(Env *env, void *to, void *from) {                      \
        type result[count], left[count], right[count];                                        \
        memcpy(left, to, sizeof left);                                                        \
        memcpy(right, from, sizeof right);                                                    \
        bool done = host_may(env);                                                            \
        for (int i = 0; done && i < (count); i++) {                                           \
            type a = left[i], b = right[i], r = (expression);                                 \
            (void)a;                                                                          \
            result[i] = r;                                                                    \
            done = (usable) && normal(r);                                                     \
        }                                                                                     \
        if (done)                                                                             \
            memcpy(to, result, sizeof result);                                                \
        else                                                                                  \
            ((Helper *)unicorn.sse_##name)(env, to, from);                                    \
    }

#define REPLACE_ALL(operation, two_double, one_float, expression, root)                       \
    REPLACE(operation##sd, double, 1, two_double, normal_double, expression)                  \
    REPLACE(operation##pd, double, 2, two_double, normal_double, expression)                  \
    REPLACE(operation##ss, float, 1, one_float, normal_float, root)                           \
    REPLACE(operation##ps, float, 4, one_float, normal_float, root)

#define BOTH_DOUBLE (normal_double(a) && normal_double(b))
#define BOTH_FLOAT (normal_float(a) && normal_float(b))

REPLACE_ALL(add, BOTH_DOUBLE, BOTH_FLOAT, a + b, a + b)
REPLACE_ALL(sub, BOTH_DOUBLE, BOTH_FLOAT, a - b, a - b)
REPLACE_ALL(mul, BOTH_DOUBLE, BOTH_FLOAT, a *b, a *b)
REPLACE_ALL(div, BOTH_DOUBLE, BOTH_FLOAT, a / b, a / b)
REPLACE_ALL(sqrt, normal_double(b) && b > 0, normal_float(b) && b > 0, sqrt(b), sqrtf(b))
