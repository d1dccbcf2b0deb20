/* The vectors of a local APIC, and how the vCPU thread uses them. */
#ifndef PYVM_LAPIC_H
#define PYVM_LAPIC_H

#include "engine.h"

enum { VECTOR_WORDS = 256 / 64 };

typedef struct LapicVectors {
    PyObject_HEAD
    pthread_mutex_t lock;
    uint64_t irr[VECTOR_WORDS], isr[VECTOR_WORDS], tmr[VECTOR_WORDS];
    uint8_t tpr, ppr;
    bool extint;
    int eoi; /* EOI_NOWHERE ... */
    bool pending;
    Engine *engine; /* which has vCPU `index`; NULL where on_change is told instead */
    int index;
    PyObject *on_change;
} LapicVectors;

extern PyTypeObject lapic_vectors_type;

/* Take a vCPU's vectors from it: the engine is going away. */
void lapic_vectors_part(Vcpu *vcpu);

#endif
