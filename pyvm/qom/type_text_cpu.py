"""Types of CPUs, in the notation of :mod:`pyvm.qom.type_text`; all models have the same properties."""

TEXT = """
cpu : device abstract
  memory : link<memory-region>
  start-powered-off : bool

x86_64-cpu : cpu abstract
  3dnow 3dnowext 3dnowprefetch abm ace2 ace2-en acpi adx aes amd-no-ssb amd-ssbd amd-stibp amx-bf16 amx-int8 : bool
  amx-tile apic arat arch-capabilities arch-lbr avic avx avx-vnni avx2 avx512-4fmaps avx512-4vnniw avx512-bf16 : bool
  avx512-fp16 avx512-vp2intersect avx512-vpopcntdq avx512bitalg avx512bw avx512cd avx512dq avx512er avx512f : bool
  avx512ifma avx512pf avx512vbmi avx512vbmi2 avx512vl avx512vnni bmi1 bmi2 bus-lock-detect cid cldemote : bool
  clflush clflushopt clwb clzero cmov cmp-legacy core-capability cr8legacy cx16 cx8 dca de decodeassists ds : bool
  ds-cpl dtes64 erms est extapic f16c flushbyasid fma fma4 fpu fsgsbase fsrm full-width-write fxsr fxsr-opt : bool
  gfni hle ht hypervisor ia64 ibpb ibrs ibrs-all ibs intel-pt intel-pt-lip invpcid invtsc kvm-asyncpf : bool
  kvm-asyncpf-int kvm-hint-dedicated kvm-mmu kvm-msi-ext-dest-id kvm-nopiodelay kvm-poll-control kvm-pv-eoi : bool
  kvm-pv-ipi kvm-pv-sched-yield kvm-pv-tlb-flush kvm-pv-unhalt kvm-steal-time kvmclock kvmclock-stable-bit : bool
  la57 lahf-lm legacy-cache lbrv lm lwp mca mce md-clear mds-no misalignsse mmx mmxext monitor movbe : bool
  movdir64b movdiri mpx : bool
  msr mtrr nodeid-msr npt nrip-save nx osvw pae pat pause-filter pbe pcid pclmulqdq pcommit pdcm pdpe1gb : bool
  perfctr-core perfctr-nb pfthreshold pge phe phe-en pks pku pmm pmm-en pn pni popcnt pschange-mc-no pse pse36 : bool
  rdctl-no rdpid rdrand rdseed rdtscp rsba rtm sep serialize sgx sgx-debug sgx-exinfo sgx-kss sgx-mode64 : bool
  sgx-provisionkey sgx-tokenkey sgx1 sgx2 sgxlc sha-ni skinit skip-l1dfl-vmentry smap smep smx spec-ctrl : bool
  split-lock-detect ss ssb-no ssbd sse sse2 sse4.1 sse4.2 sse4a ssse3 stibp svm svm-lock svme-addr-chk syscall : bool
  taa-no tbm tce tm tm2 topoext tsc tsc-adjust tsc-deadline tsc-scale tsx-ctrl tsx-ldtrk umip v-vmsave-vmload : bool
  vaes vgif virt-ssbd vmcb-clean vme vmx vmx-activity-hlt vmx-activity-shutdown vmx-activity-wait-sipi : bool
  vmx-apicv-register vmx-apicv-vid vmx-apicv-x2apic vmx-apicv-xapic vmx-cr3-load-noexit vmx-cr3-store-noexit : bool
  vmx-cr8-load-exit vmx-cr8-store-exit vmx-desc-exit vmx-encls-exit vmx-entry-ia32e-mode : bool
  vmx-entry-load-bndcfgs vmx-entry-load-efer vmx-entry-load-pat vmx-entry-load-perf-global-ctrl : bool
  vmx-entry-load-pkrs vmx-entry-load-rtit-ctl vmx-entry-noload-debugctl vmx-ept vmx-ept-1gb vmx-ept-2mb : bool
  vmx-ept-advanced-exitinfo vmx-ept-execonly vmx-eptad vmx-eptp-switching vmx-exit-ack-intr : bool
  vmx-exit-clear-bndcfgs vmx-exit-clear-rtit-ctl vmx-exit-load-efer vmx-exit-load-pat : bool
  vmx-exit-load-perf-global-ctrl vmx-exit-load-pkrs vmx-exit-nosave-debugctl vmx-exit-save-efer : bool
  vmx-exit-save-pat vmx-exit-save-preemption-timer vmx-flexpriority vmx-hlt-exit vmx-ins-outs vmx-intr-exit : bool
  vmx-invept vmx-invept-all-context vmx-invept-single-context vmx-invept-single-context-noglobals : bool
  vmx-invlpg-exit vmx-invpcid-exit vmx-invvpid vmx-invvpid-all-context vmx-invvpid-single-addr vmx-io-bitmap : bool
  vmx-io-exit vmx-monitor-exit vmx-movdr-exit vmx-msr-bitmap vmx-mtf vmx-mwait-exit vmx-nmi-exit : bool
  vmx-page-walk-4 vmx-page-walk-5 vmx-pause-exit vmx-ple vmx-pml vmx-posted-intr vmx-preemption-timer : bool
  vmx-rdpmc-exit vmx-rdrand-exit vmx-rdseed-exit vmx-rdtsc-exit vmx-rdtscp-exit vmx-secondary-ctls : bool
  vmx-shadow-vmcs vmx-store-lma vmx-true-ctls vmx-tsc-offset vmx-tsc-scaling vmx-unrestricted-guest : bool
  vmx-vintr-pending vmx-vmfunc vmx-vmwrite-vmexit-fields vmx-vnmi vmx-vnmi-pending vmx-vpid vmx-wbinvd-exit : bool
  vmx-xsaves vmx-zero-len-inject vpclmulqdq waitpkg wbnoinvd wdt x2apic xcrypt xcrypt-en xfd xgetbv1 xop xsave : bool
  xsavec xsaveerptr xsaveopt xsaves xstore xstore-en xtpr : bool
  hv-version-id-snumber hv-version-id-spack min-level min-xlevel min-xlevel2 phys-bits : uint32 =0
  family model stepping tsc-frequency : int
  hv-avic hv-crash hv-emsr-bitmap hv-evmcs hv-frequencies hv-ipi hv-reenlightenment hv-relaxed : bool =false | on/off
  hv-reset hv-runtime hv-stimer hv-stimer-direct hv-syndbg hv-synic hv-time hv-tlbflush : bool =false | on/off
  hv-tlbflush-direct hv-tlbflush-ext hv-vapic hv-vpindex hv-xmm-input : bool =false | on/off
  check cpuid-0xb fill-mtrr-mask full-cpuid-auto-level kvm l3-cache tcg-cpuid vmware-cpuid-freq : bool =true
  x-intel-pt-auto-level x-migrate-smi-count x-vendor-cpuid-only : bool =true
  apic-id hv-spinlocks level level-func7 xlevel xlevel2 : uint32 =4294967295
  host-phys-bits-limit hv-version-id-sbranch : uint8 =0
  enforce host-phys-bits hv-enforce-cpuid hv-passthrough kvm-no-smi-migration kvm-pv-enforce-cpuid lmce : bool =false
  pmu x-force-features x-hv-synic-kvm-only : bool =false
  model-id vendor : string
  ucode-rev : uint64 =0
  core-id die-id node-id socket-id thread-id x-hv-max-vps : int32 =-1
  hv-version-id-build : uint32 =14393
  hv-version-id-minor : uint16 =0
  crash-information : GuestPanicInformation
  hv-version-id-major : uint16 =10
  lbr-fmt : uint64
  hv-vendor-id : str
  unavailable-features : strList
  hv-no-nonarch-coresharing : OnOffAuto ="off" | on/off/auto

model-x86_64-cpu : x86_64-cpu
  cmp_legacy ds_cpl ffxsr fxsr_opt i64 kvm_asyncpf kvm_asyncpf_int kvm_mmu kvm_nopiodelay kvm_poll_control : bool
  kvm_pv_eoi kvm_pv_unhalt kvm_steal_time lahf_lm nodeid_msr nrip_save pause_filter pclmuldq perfctr_core : bool
  perfctr_nb sse3 sse4-1 sse4-2 sse4_1 sse4_2 svm_lock tsc_adjust tsc_scale vmcb_clean xd : bool
  lbr_fmt : uint64
  feature-words filtered-features : X86CPUFeatureWordInfo
  hv-apicv : bool =false | on/off
"""
