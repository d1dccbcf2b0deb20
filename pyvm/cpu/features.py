"""Names of CPUID feature bits, and which of them the translator can do.

Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.  Names are those of QEMU's `-cpu` option.  What
Unicorn translates was read off Unicorn 2.1.4.
"""

from __future__ import annotations

from pyvm.records import record


@record(frozen=True)
class FeatureWord:
    """One register of one CPUID leaf that holds feature bits."""

    leaf: int
    subleaf: int
    register: int
    """0 EAX, 1 EBX, 2 ECX, 3 EDX."""
    engine_word: int
    """Number of the word by which the translator knows these features."""
    bits: str
    """Names from bit 0 up; `-` where a bit has none."""


WORDS = (
    FeatureWord(
        1, 0, 3, 0,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov "
        "pat pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    FeatureWord(
        1, 0, 2, 1,
        "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm "
        "- pcid dca sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand hypervisor",
    ),
    FeatureWord(
        7, 0, 1, 2,
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx - "
        "avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd "
        "sha-ni avx512bw avx512vl",
    ),
    FeatureWord(
        7, 0, 2, 3,
        "- avx512vbmi umip pku - waitpkg avx512vbmi2 - gfni vaes vpclmulqdq avx512vnni avx512bitalg - "
        "avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b - sgxlc pks",
    ),
    FeatureWord(
        7, 0, 3, 4,
        "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - "
        "tsx-ldtrk - - arch-lbr - - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp - arch-capabilities "
        "core-capability ssbd",
    ),
    FeatureWord(7, 1, 0, 5, "- - - - avx-vnni avx512-bf16"),
    FeatureWord(
        0x80000001, 0, 3, 6,
        "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    FeatureWord(
        0x80000001, 0, 2, 7,
        "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp "
        "fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb",
    ),
    FeatureWord(0x80000007, 0, 3, 8, "- - - - - - - - invtsc"),
    FeatureWord(
        0x80000008, 0, 1, 9,
        "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp - - - - - - - - amd-ssbd "
        "virt-ssbd amd-no-ssb",
    ),
    FeatureWord(
        0x8000000A, 0, 3, 18,
        "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists - - pause-filter - pfthreshold "
        "avic - v-vmsave-vmload vgif - - - - - - - - - - - svme-addr-chk",
    ),
    FeatureWord(0xD, 1, 0, 19, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    FeatureWord(6, 0, 0, 20, "- - arat"),
)  # fmt: skip

ALIASES = {
    "sse4-1": "sse4.1",
    "sse4-2": "sse4.2",
    "sse3": "pni",
    "xd": "nx",
    "i64": "lm",
    "ffxsr": "fxsr-opt",
    "pclmuldq": "pclmulqdq",
    "lzcnt": "abm",
}
"""Other names for the same bits; underscores stand for hyphens or dots everywhere."""

TRANSLATED = frozenset(
    (
        "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush acpi mmx fxsr sse sse2 ss "
        "pni pclmulqdq monitor ssse3 cx16 sse4.1 sse4.2 movbe popcnt aes xsave rdrand hypervisor "
        "fsgsbase bmi1 smep bmi2 erms adx smap clflushopt clwb pku la57 "
        "syscall nx mmxext pdpe1gb rdtscp lm 3dnowext 3dnow lahf-lm cr8legacy abm sse4a "
        "xsaveopt xgetbv1 arat"
    ).split()
)
"""What Unicorn's translator implements, less what is not fit for use: the nested page walks of SVM, which a hostile
guest could abuse, and MPX, whose instructions swallow a part of the next one."""

PROVIDED = frozenset(("tsc-deadline", "x2apic", "ht", "cmp-legacy", "invtsc"))
"""What the rest of the machine implements, or what only describes the topology."""


def _locations() -> dict[str, tuple[int, int]]:
    return {
        name: (index, bit)
        for index, word in enumerate(WORDS)
        for bit, name in enumerate(word.bits.split())
        if name != "-"
    }


FEATURES = _locations()
"""Feature name -> (index in :data:`WORDS`, bit)."""


def canonical(name: str) -> str:
    """Return the name that :data:`FEATURES` uses for any spelling of a feature."""
    plain = name.replace("_", "-")
    return ALIASES.get(plain, plain)
