"""The vCPU: register state, CPUID models, the run loop, and the glue to the emulation engine."""
