"""CPU models as data: what each of QEMU's named x86 models calls itself and which features it asks for.

The feature lists are those that QEMU 7.2 reports for its models; what the translator cannot do is dropped when a model
is built (:mod:`pyvm.cpu.cpuid`).
"""

from __future__ import annotations

from pyvm.records import record


@record(frozen=True)
class Family:
    """A named model with its versions."""

    vendor: str
    signature: tuple[int, int, int]
    """CPU family, model and stepping."""
    name: str
    """The brand string of version 1."""
    level: int
    xlevel: int
    features: str
    versions: tuple[tuple[str, str], ...] = ()
    """For version 2 and up: the brand string, and the features gained and lost since the version before."""


FAMILIES = {
    "486": Family(
        vendor="GenuineIntel",
        signature=(4, 8, 0),
        name="",
        level=0x1,
        xlevel=0x0,
        features=("fpu hypervisor pse"),
    ),
    "athlon": Family(
        vendor="AuthenticAMD",
        signature=(6, 2, 3),
        name="QEMU Virtual CPU version 2.5+",
        level=0x2,
        xlevel=0x80000008,
        features=(
            "3dnow 3dnowext apic cmov cx8 de fpu fxsr hypervisor mca mce mmx mmxext msr mtrr pae pat pge pse "
            "pse36 sep sse sse2 tsc"
        ),
    ),
    "Broadwell": Family(
        vendor="GenuineIntel",
        signature=(6, 61, 2),
        name="Intel Core Processor (Broadwell)",
        level=0xD,
        xlevel=0x80000008,
        features=(
            "3dnowprefetch abm adx aes apic arat avx avx2 bmi1 bmi2 clflush cmov cx16 cx8 de erms f16c fma fpu "
            "fsgsbase fxsr hle hypervisor invpcid lahf-lm lm mca mce mmx movbe msr mtrr nx pae pat pcid pclmulqdq "
            "pge pni popcnt pse pse36 rdrand rdseed rdtscp rtm sep smap smep sse sse2 sse4.1 sse4.2 ssse3 syscall "
            "tsc tsc-deadline x2apic xsave xsaveopt"
        ),
        versions=(
            ("Intel Core Processor (Broadwell, no TSX)", "-hle -rtm"),
            ("Intel Core Processor (Broadwell, IBRS)", "+hle +rtm +spec-ctrl"),
            ("Intel Core Processor (Broadwell, no TSX, IBRS)", "-hle -rtm"),
        ),
    ),
    "Cascadelake-Server": Family(
        vendor="GenuineIntel",
        signature=(6, 85, 6),
        name="Intel Xeon Processor (Cascadelake)",
        level=0xD,
        xlevel=0x80000008,
        features=(
            "3dnowprefetch abm adx aes apic arat avx avx2 avx512bw avx512cd avx512dq avx512f avx512vl avx512vnni "
            "bmi1 bmi2 clflush clflushopt clwb cmov cx16 cx8 de erms f16c fma fpu fsgsbase fxsr hle hypervisor "
            "invpcid lahf-lm lm mca mce mmx movbe msr mtrr nx pae pat pcid pclmulqdq pdpe1gb pge pku pni popcnt "
            "pse pse36 rdrand rdseed rdtscp rtm sep smap smep spec-ctrl ssbd sse sse2 sse4.1 sse4.2 ssse3 syscall "
            "tsc tsc-deadline x2apic xgetbv1 xsave xsavec xsaveopt"
        ),
        versions=(
            ("Intel Xeon Processor (Cascadelake)", "+arch-capabilities"),
            ("Intel Xeon Processor (Cascadelake)", "-hle -rtm"),
            ("Intel Xeon Processor (Cascadelake)", ""),
            ("Intel Xeon Processor (Cascadelake)", "+xsaves"),
        ),
    ),
    "Conroe": Family(
        vendor="GenuineIntel",
        signature=(6, 15, 3),
        name="Intel Celeron_4x0 (Conroe/Merom Class Core 2)",
        level=0xA,
        xlevel=0x80000008,
        features=(
            "apic clflush cmov cx8 de fpu fxsr hypervisor lahf-lm lm mca mce mmx msr mtrr nx pae pat pge pni pse "
            "pse36 sep sse sse2 ssse3 syscall tsc"
        ),
    ),
    "Cooperlake": Family(
        vendor="GenuineIntel",
        signature=(6, 85, 10),
        name="Intel Xeon Processor (Cooperlake)",
        level=0xD,
        xlevel=0x80000008,
        features=(
            "3dnowprefetch abm adx aes apic arat arch-capabilities avx avx2 avx512-bf16 avx512bw avx512cd "
            "avx512dq avx512f avx512vl avx512vnni bmi1 bmi2 clflush clflushopt clwb cmov cx16 cx8 de erms f16c "
            "fma fpu fsgsbase fxsr hle hypervisor invpcid lahf-lm lm mca mce mmx movbe msr mtrr nx pae pat pcid "
            "pclmulqdq pdpe1gb pge pku pni popcnt pse pse36 rdrand rdseed rdtscp rtm sep smap smep spec-ctrl ssbd "
            "sse sse2 sse4.1 sse4.2 ssse3 stibp syscall tsc tsc-deadline x2apic xgetbv1 xsave xsavec xsaveopt"
        ),
        versions=(("Intel Xeon Processor (Cooperlake)", "+xsaves"),),
    ),
    "core2duo": Family(
        vendor="GenuineIntel",
        signature=(6, 15, 11),
        name="Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz",
        level=0xA,
        xlevel=0x80000008,
        features=(
            "acpi apic clflush cmov cx16 cx8 de fpu fxsr hypervisor lahf-lm lm mca mce mmx monitor msr mtrr nx "
            "pae pat pge pni pse pse36 sep ss sse sse2 ssse3 syscall tsc"
        ),
    ),
    "coreduo": Family(
        vendor="GenuineIntel",
        signature=(6, 14, 8),
        name="Genuine Intel(R) CPU           T2600  @ 2.16GHz",
        level=0xA,
        xlevel=0x80000008,
        features=(
            "acpi apic clflush cmov cx8 de fpu fxsr hypervisor mca mce mmx monitor msr mtrr nx pae pat pge pni "
            "pse sep ss sse sse2 tsc"
        ),
    ),
    "Denverton": Family(
        vendor="GenuineIntel",
        signature=(6, 95, 1),
        name="Intel Atom Processor (Denverton)",
        level=0x15,
        xlevel=0x80000008,
        features=(
            "3dnowprefetch aes apic arat arch-capabilities clflush clflushopt cmov cx16 cx8 de erms fpu fsgsbase "
            "fxsr hypervisor lahf-lm lm mca mce mmx monitor movbe mpx msr mtrr nx pae pat pclmulqdq pdpe1gb pge "
            "pni popcnt pse pse36 rdrand rdseed rdtscp sep sha-ni smap smep spec-ctrl ssbd sse sse2 sse4.1 sse4.2 "
            "ssse3 syscall tsc tsc-deadline x2apic xgetbv1 xsave xsavec xsaveopt"
        ),
        versions=(
            ("Intel Atom Processor (Denverton)", "-monitor -mpx"),
            ("Intel Atom Processor (Denverton)", "+xsaves"),
        ),
    ),
    "Dhyana": Family(
        vendor="HygonGenuine",
        signature=(24, 0, 1),
        name="Hygon Dhyana Processor",
        level=0xD,
        xlevel=0x8000001E,
        features=(
            "3dnowprefetch abm adx apic arat avx avx2 bmi1 bmi2 clflush clflushopt cmov cr8legacy cx16 cx8 de "
            "f16c fma fpu fsgsbase fxsr fxsr-opt hypervisor ibpb lahf-lm lm mca mce misalignsse mmx mmxext "
            "monitor movbe msr mtrr npt nrip-save nx osvw pae pat pdpe1gb pge pni popcnt pse pse36 rdrand rdseed "
            "rdtscp sep smap smep sse sse2 sse4.1 sse4.2 sse4a ssse3 svm syscall topoext tsc xgetbv1 xsave xsavec "
            "xsaveopt"
        ),
        versions=(("Hygon Dhyana Processor", "+xsaves"),),
    ),
    "EPYC": Family(
        vendor="AuthenticAMD",
        signature=(23, 1, 2),
        name="AMD EPYC Processor",
        level=0xD,
        xlevel=0x8000001E,
        features=(
            "3dnowprefetch abm adx aes apic arat avx avx2 bmi1 bmi2 clflush clflushopt cmov cr8legacy cx16 cx8 de "
            "f16c fma fpu fsgsbase fxsr fxsr-opt hypervisor lahf-lm lm mca mce misalignsse mmx mmxext monitor "
            "movbe msr mtrr npt nrip-save nx osvw pae pat pclmulqdq pdpe1gb pge pni popcnt pse pse36 rdrand "
            "rdseed rdtscp sep sha-ni smap smep sse sse2 sse4.1 sse4.2 sse4a ssse3 svm syscall topoext tsc "
            "xgetbv1 xsave xsavec xsaveopt"
        ),
        versions=(
            ("AMD EPYC Processor (with IBPB)", "+ibpb"),
            ("AMD EPYC Processor", "+clzero +perfctr-core +xsaveerptr +xsaves"),
        ),
    ),
    "EPYC-Milan": Family(
        vendor="AuthenticAMD",
        signature=(25, 1, 1),
        name="AMD EPYC-Milan Processor",
        level=0xD,
        xlevel=0x8000001E,
        features=(
            "3dnowprefetch abm adx aes amd-ssbd amd-stibp apic arat avx avx2 bmi1 bmi2 clflush clflushopt clwb "
            "clzero cmov cr8legacy cx16 cx8 de erms f16c fma fpu fsgsbase fsrm fxsr fxsr-opt hypervisor ibpb ibrs "
            "invpcid lahf-lm lm mca mce misalignsse mmx mmxext monitor movbe msr mtrr npt nrip-save nx osvw pae "
            "pat pcid pclmulqdq pdpe1gb perfctr-core pge pku pni popcnt pse pse36 rdpid rdrand rdseed rdtscp sep "
            "sha-ni smap smep sse sse2 sse4.1 sse4.2 sse4a ssse3 svm svme-addr-chk syscall topoext tsc umip "
            "wbnoinvd xgetbv1 xsave xsavec xsaveerptr xsaveopt xsaves"
        ),
    ),
    "EPYC-Rome": Family(
        vendor="AuthenticAMD",
        signature=(23, 49, 0),
        name="AMD EPYC-Rome Processor",
        level=0xD,
        xlevel=0x8000001E,
        features=(
            "3dnowprefetch abm adx aes amd-stibp apic arat avx avx2 bmi1 bmi2 clflush clflushopt clwb clzero cmov "
            "cr8legacy cx16 cx8 de f16c fma fpu fsgsbase fxsr fxsr-opt hypervisor ibpb lahf-lm lm mca mce "
            "misalignsse mmx mmxext monitor movbe msr mtrr npt nrip-save nx osvw pae pat pclmulqdq pdpe1gb "
            "perfctr-core pge pni popcnt pse pse36 rdpid rdrand rdseed rdtscp sep sha-ni smap smep sse sse2 "
            "sse4.1 sse4.2 sse4a ssse3 svm syscall topoext tsc umip wbnoinvd xgetbv1 xsave xsavec xsaveerptr "
            "xsaveopt xsaves"
        ),
        versions=(("AMD EPYC-Rome Processor", "+amd-ssbd +ibrs"),),
    ),
    "Haswell": Family(
        vendor="GenuineIntel",
        signature=(6, 60, 4),
        name="Intel Core Processor (Haswell)",
        level=0xD,
        xlevel=0x80000008,
        features=(
            "abm aes apic arat avx avx2 bmi1 bmi2 clflush cmov cx16 cx8 de erms f16c fma fpu fsgsbase fxsr hle "
            "hypervisor invpcid lahf-lm lm mca mce mmx movbe msr mtrr nx pae pat pcid pclmulqdq pge pni popcnt "
            "pse pse36 rdrand rdtscp rtm sep smep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline x2apic "
            "xsave xsaveopt"
        ),
        versions=(
            ("Intel Core Processor (Haswell, no TSX)", "-hle -rtm"),
            ("Intel Core Processor (Haswell, IBRS)", "+hle +rtm +spec-ctrl"),
            ("Intel Core Processor (Haswell, no TSX, IBRS)", "-hle -rtm"),
        ),
    ),
    "Icelake-Server": Family(
        vendor="GenuineIntel",
        signature=(6, 134, 0),
        name="Intel Xeon Processor (Icelake)",
        level=0xD,
        xlevel=0x80000008,
        features=(
            "3dnowprefetch abm adx aes apic arat avx avx2 avx512-vpopcntdq avx512bitalg avx512bw avx512cd "
            "avx512dq avx512f avx512vbmi avx512vbmi2 avx512vl avx512vnni bmi1 bmi2 clflush clflushopt clwb cmov "
            "cx16 cx8 de erms f16c fma fpu fsgsbase fxsr gfni hle hypervisor invpcid la57 lahf-lm lm mca mce mmx "
            "movbe msr mtrr nx pae pat pcid pclmulqdq pdpe1gb pge pku pni popcnt pse pse36 rdrand rdseed rdtscp "
            "rtm sep smap smep spec-ctrl ssbd sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline umip vaes "
            "vpclmulqdq wbnoinvd x2apic xgetbv1 xsave xsavec xsaveopt"
        ),
        versions=(
            ("Intel Xeon Processor (Icelake)", "-hle -rtm"),
            ("Intel Xeon Processor (Icelake)", "+arch-capabilities"),
            ("Intel Xeon Processor (Icelake)", "+avx512ifma +fsrm +rdpid +sha-ni"),
            ("Intel Xeon Processor (Icelake)", "+xsaves"),
            ("Intel Xeon Processor (Icelake)", ""),
        ),
    ),
    "IvyBridge": Family(
        vendor="GenuineIntel",
        signature=(6, 58, 9),
        name="Intel Xeon E3-12xx v2 (Ivy Bridge)",
        level=0xD,
        xlevel=0x80000008,
        features=(
            "aes apic arat avx clflush cmov cx16 cx8 de erms f16c fpu fsgsbase fxsr hypervisor lahf-lm lm mca mce "
            "mmx msr mtrr nx pae pat pclmulqdq pge pni popcnt pse pse36 rdrand rdtscp sep smep sse sse2 sse4.1 "
            "sse4.2 ssse3 syscall tsc tsc-deadline x2apic xsave xsaveopt"
        ),
        versions=(("Intel Xeon E3-12xx v2 (Ivy Bridge, IBRS)", "+spec-ctrl"),),
    ),
    "KnightsMill": Family(
        vendor="GenuineIntel",
        signature=(6, 133, 0),
        name="Intel Xeon Phi Processor (Knights Mill)",
        level=0xD,
        xlevel=0x80000008,
        features=(
            "3dnowprefetch abm adx aes apic arat avx avx2 avx512-4fmaps avx512-4vnniw avx512-vpopcntdq avx512cd "
            "avx512er avx512f avx512pf bmi1 bmi2 clflush cmov cx16 cx8 de erms f16c fma fpu fsgsbase fxsr "
            "hypervisor lahf-lm lm mca mce mmx movbe msr mtrr nx pae pat pclmulqdq pdpe1gb pge pni popcnt pse "
            "pse36 rdrand rdseed rdtscp sep smep ss sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline x2apic "
            "xsave xsaveopt"
        ),
    ),
    "kvm32": Family(
        vendor="GenuineIntel",
        signature=(15, 6, 1),
        name="Common 32-bit KVM processor",
        level=0x5,
        xlevel=0x80000008,
        features=(
            "apic clflush cmov cx8 de fpu fxsr hypervisor mca mce mmx msr mtrr pae pat pge pni pse pse36 sep sse "
            "sse2 tsc"
        ),
    ),
    "kvm64": Family(
        vendor="GenuineIntel",
        signature=(15, 6, 1),
        name="Common KVM processor",
        level=0xD,
        xlevel=0x80000008,
        features=(
            "apic clflush cmov cx16 cx8 de fpu fxsr hypervisor lm mca mce mmx msr mtrr nx pae pat pge pni pse "
            "pse36 sep sse sse2 syscall tsc"
        ),
    ),
    "n270": Family(
        vendor="GenuineIntel",
        signature=(6, 28, 2),
        name="Intel(R) Atom(TM) CPU N270   @ 1.60GHz",
        level=0xA,
        xlevel=0x80000008,
        features=(
            "acpi apic clflush cmov cx8 de fpu fxsr hypervisor lahf-lm mca mce mmx monitor movbe msr mtrr nx pae "
            "pat pge pni pse sep ss sse sse2 ssse3 tsc"
        ),
    ),
    "Nehalem": Family(
        vendor="GenuineIntel",
        signature=(6, 26, 3),
        name="Intel Core i7 9xx (Nehalem Class Core i7)",
        level=0xB,
        xlevel=0x80000008,
        features=(
            "apic clflush cmov cx16 cx8 de fpu fxsr hypervisor lahf-lm lm mca mce mmx msr mtrr nx pae pat pge pni "
            "popcnt pse pse36 sep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc"
        ),
        versions=(("Intel Core i7 9xx (Nehalem Core i7, IBRS update)", "+spec-ctrl"),),
    ),
    "Opteron_G1": Family(
        vendor="AuthenticAMD",
        signature=(15, 6, 1),
        name="AMD Opteron 240 (Gen 1 Class Opteron)",
        level=0x5,
        xlevel=0x80000008,
        features=(
            "apic clflush cmov cx8 de fpu fxsr hypervisor lm mca mce mmx msr mtrr nx pae pat pge pni pse pse36 "
            "sep sse sse2 syscall tsc"
        ),
    ),
    "Opteron_G2": Family(
        vendor="AuthenticAMD",
        signature=(15, 6, 1),
        name="AMD Opteron 22xx (Gen 2 Class Opteron)",
        level=0x5,
        xlevel=0x8000000A,
        features=(
            "apic clflush cmov cx16 cx8 de fpu fxsr hypervisor lahf-lm lm mca mce mmx msr mtrr nx pae pat pge pni "
            "pse pse36 sep sse sse2 svm syscall tsc"
        ),
    ),
    "Opteron_G3": Family(
        vendor="AuthenticAMD",
        signature=(16, 2, 3),
        name="AMD Opteron 23xx (Gen 3 Class Opteron)",
        level=0x5,
        xlevel=0x8000000A,
        features=(
            "abm apic clflush cmov cx16 cx8 de fpu fxsr hypervisor lahf-lm lm mca mce misalignsse mmx monitor msr "
            "mtrr nx pae pat pge pni popcnt pse pse36 rdtscp sep sse sse2 sse4a svm syscall tsc"
        ),
    ),
    "Opteron_G4": Family(
        vendor="AuthenticAMD",
        signature=(21, 1, 2),
        name="AMD Opteron 62xx class CPU",
        level=0xD,
        xlevel=0x8000001A,
        features=(
            "3dnowprefetch abm aes apic avx clflush cmov cx16 cx8 de fma4 fpu fxsr hypervisor lahf-lm lm mca mce "
            "misalignsse mmx msr mtrr npt nrip-save nx pae pat pclmulqdq pdpe1gb pge pni popcnt pse pse36 rdtscp "
            "sep sse sse2 sse4.1 sse4.2 sse4a ssse3 svm syscall tsc xop xsave"
        ),
    ),
    "Opteron_G5": Family(
        vendor="AuthenticAMD",
        signature=(21, 2, 0),
        name="AMD Opteron 63xx class CPU",
        level=0xD,
        xlevel=0x8000001A,
        features=(
            "3dnowprefetch abm aes apic avx clflush cmov cx16 cx8 de f16c fma fma4 fpu fxsr hypervisor lahf-lm lm "
            "mca mce misalignsse mmx msr mtrr npt nrip-save nx pae pat pclmulqdq pdpe1gb pge pni popcnt pse pse36 "
            "rdtscp sep sse sse2 sse4.1 sse4.2 sse4a ssse3 svm syscall tbm tsc xop xsave"
        ),
    ),
    "Penryn": Family(
        vendor="GenuineIntel",
        signature=(6, 23, 3),
        name="Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
        level=0xA,
        xlevel=0x80000008,
        features=(
            "apic clflush cmov cx16 cx8 de fpu fxsr hypervisor lahf-lm lm mca mce mmx msr mtrr nx pae pat pge pni "
            "pse pse36 sep sse sse2 sse4.1 ssse3 syscall tsc"
        ),
    ),
    "pentium": Family(
        vendor="GenuineIntel",
        signature=(5, 4, 3),
        name="",
        level=0x1,
        xlevel=0x0,
        features=("apic cx8 de fpu hypervisor mce mmx msr pse tsc"),
    ),
    "pentium2": Family(
        vendor="GenuineIntel",
        signature=(6, 5, 2),
        name="",
        level=0x2,
        xlevel=0x0,
        features=("apic cmov cx8 de fpu fxsr hypervisor mca mce mmx msr mtrr pae pat pge pse pse36 sep tsc"),
    ),
    "pentium3": Family(
        vendor="GenuineIntel",
        signature=(6, 7, 3),
        name="",
        level=0x3,
        xlevel=0x0,
        features=("apic cmov cx8 de fpu fxsr hypervisor mca mce mmx msr mtrr pae pat pge pse pse36 sep sse tsc"),
    ),
    "phenom": Family(
        vendor="AuthenticAMD",
        signature=(16, 2, 3),
        name="AMD Phenom(tm) 9550 Quad-Core Processor",
        level=0x5,
        xlevel=0x8000001A,
        features=(
            "3dnow 3dnowext abm apic clflush cmov cx16 cx8 de fpu fxsr fxsr-opt hypervisor lahf-lm lm mca mce mmx "
            "mmxext monitor msr mtrr npt nx pae pat pdpe1gb pge pni popcnt pse pse36 rdtscp sep sse sse2 sse4a "
            "svm syscall tsc"
        ),
    ),
    "qemu32": Family(
        vendor="GenuineIntel",
        signature=(6, 6, 3),
        name="QEMU Virtual CPU version 2.5+",
        level=0x4,
        xlevel=0x80000004,
        features=("apic cmov cx8 de fpu fxsr hypervisor mce mmx msr pae pat pge pni pse sep sse sse2 tsc"),
    ),
    "qemu64": Family(
        vendor="AuthenticAMD",
        signature=(15, 107, 1),
        name="QEMU Virtual CPU version 2.5+",
        level=0xD,
        xlevel=0x8000000A,
        features=(
            "apic clflush cmov cx16 cx8 de fpu fxsr hypervisor lahf-lm lm mca mce mmx msr mtrr nx pae pat pge pni "
            "pse pse36 sep sse sse2 svm syscall tsc"
        ),
    ),
    "SandyBridge": Family(
        vendor="GenuineIntel",
        signature=(6, 42, 1),
        name="Intel Xeon E312xx (Sandy Bridge)",
        level=0xD,
        xlevel=0x80000008,
        features=(
            "aes apic arat avx clflush cmov cx16 cx8 de fpu fxsr hypervisor lahf-lm lm mca mce mmx msr mtrr nx "
            "pae pat pclmulqdq pge pni popcnt pse pse36 rdtscp sep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc "
            "tsc-deadline x2apic xsave xsaveopt"
        ),
        versions=(("Intel Xeon E312xx (Sandy Bridge, IBRS update)", "+spec-ctrl"),),
    ),
    "Skylake-Client": Family(
        vendor="GenuineIntel",
        signature=(6, 94, 3),
        name="Intel Core Processor (Skylake)",
        level=0xD,
        xlevel=0x80000008,
        features=(
            "3dnowprefetch abm adx aes apic arat avx avx2 bmi1 bmi2 clflush cmov cx16 cx8 de erms f16c fma fpu "
            "fsgsbase fxsr hle hypervisor invpcid lahf-lm lm mca mce mmx movbe msr mtrr nx pae pat pcid pclmulqdq "
            "pge pni popcnt pse pse36 rdrand rdseed rdtscp rtm sep smap smep sse sse2 sse4.1 sse4.2 ssse3 syscall "
            "tsc tsc-deadline x2apic xgetbv1 xsave xsavec xsaveopt"
        ),
        versions=(
            ("Intel Core Processor (Skylake, IBRS)", "+spec-ctrl"),
            ("Intel Core Processor (Skylake, IBRS, no TSX)", "-hle -rtm"),
            ("Intel Core Processor (Skylake, IBRS, no TSX)", "+xsaves"),
        ),
    ),
    "Skylake-Server": Family(
        vendor="GenuineIntel",
        signature=(6, 85, 4),
        name="Intel Xeon Processor (Skylake)",
        level=0xD,
        xlevel=0x80000008,
        features=(
            "3dnowprefetch abm adx aes apic arat avx avx2 avx512bw avx512cd avx512dq avx512f avx512vl bmi1 bmi2 "
            "clflush clflushopt clwb cmov cx16 cx8 de erms f16c fma fpu fsgsbase fxsr hle hypervisor invpcid "
            "lahf-lm lm mca mce mmx movbe msr mtrr nx pae pat pcid pclmulqdq pdpe1gb pge pku pni popcnt pse pse36 "
            "rdrand rdseed rdtscp rtm sep smap smep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline x2apic "
            "xgetbv1 xsave xsavec xsaveopt"
        ),
        versions=(
            ("Intel Xeon Processor (Skylake, IBRS)", "+spec-ctrl -clflushopt"),
            ("Intel Xeon Processor (Skylake, IBRS, no TSX)", "-hle -rtm"),
            ("Intel Xeon Processor (Skylake, IBRS, no TSX)", ""),
            ("Intel Xeon Processor (Skylake, IBRS, no TSX)", "+xsaves"),
        ),
    ),
    "Snowridge": Family(
        vendor="GenuineIntel",
        signature=(6, 134, 1),
        name="Intel Atom Processor (SnowRidge)",
        level=0x1B,
        xlevel=0x80000008,
        features=(
            "3dnowprefetch aes apic arat arch-capabilities cldemote clflush clflushopt clwb cmov core-capability "
            "cx16 cx8 de erms fpu fsgsbase fxsr gfni hypervisor lahf-lm lm mca mce mmx monitor movbe movdir64b "
            "movdiri mpx msr mtrr nx pae pat pclmulqdq pdpe1gb pge pni popcnt pse pse36 rdrand rdseed rdtscp sep "
            "sha-ni smap smep spec-ctrl ssbd sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline umip x2apic "
            "xgetbv1 xsave xsavec xsaveopt"
        ),
        versions=(
            ("Intel Atom Processor (Snowridge, no MPX)", "-mpx"),
            ("Intel Atom Processor (Snowridge, no MPX)", "+xsaves"),
            ("Intel Atom Processor (Snowridge, no MPX)", "-core-capability"),
        ),
    ),
    "Westmere": Family(
        vendor="GenuineIntel",
        signature=(6, 44, 1),
        name="Westmere E56xx/L56xx/X56xx (Nehalem-C)",
        level=0xB,
        xlevel=0x80000008,
        features=(
            "aes apic arat clflush cmov cx16 cx8 de fpu fxsr hypervisor lahf-lm lm mca mce mmx msr mtrr nx pae "
            "pat pclmulqdq pge pni popcnt pse pse36 sep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc"
        ),
        versions=(("Westmere E56xx/L56xx/X56xx (IBRS update)", "+spec-ctrl"),),
    ),
}

VERSION_NAMES = {
    "Broadwell-IBRS": "Broadwell-v3",
    "Broadwell-noTSX": "Broadwell-v2",
    "Broadwell-noTSX-IBRS": "Broadwell-v4",
    "Cascadelake-Server-noTSX": "Cascadelake-Server-v3",
    "EPYC-IBPB": "EPYC-v2",
    "Haswell-IBRS": "Haswell-v3",
    "Haswell-noTSX": "Haswell-v2",
    "Haswell-noTSX-IBRS": "Haswell-v4",
    "Icelake-Server-noTSX": "Icelake-Server-v2",
    "IvyBridge-IBRS": "IvyBridge-v2",
    "Nehalem-IBRS": "Nehalem-v2",
    "SandyBridge-IBRS": "SandyBridge-v2",
    "Skylake-Client-IBRS": "Skylake-Client-v2",
    "Skylake-Client-noTSX-IBRS": "Skylake-Client-v3",
    "Skylake-Server-IBRS": "Skylake-Server-v2",
    "Skylake-Server-noTSX-IBRS": "Skylake-Server-v3",
    "Westmere-IBRS": "Westmere-v2",
}
"""Names of old for later versions of a model."""
