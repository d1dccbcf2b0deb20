"""Types of CPUs, in the notation of :mod:`pyvm.qom.type_text`; all models have the same properties."""

TEXT = """
cpu : device abstract
  memory : link<memory-region>
  start-powered-off : bool

x86_64-cpu : cpu abstract
  vmx-invept-single-context core-capability popcnt sgx-debug dtes64 vmx-invvpid-single-addr xstore : bool
  min-xlevel2 : uint32 =0
  stepping : int
  vmx-vmfunc : bool
  hv-emsr-bitmap : bool =false | on/off
  pse36 avx512-4vnniw : bool
  x-intel-pt-auto-level : bool =true
  fma4 avx512-vp2intersect avx2 kvm-poll-control sgxlc amd-stibp : bool
  family : int
  vmware-cpuid-freq : bool =true
  vmx-store-lma : bool
  hv-spinlocks : uint32 =4294967295
  erms vaes sgx-tokenkey vmx-activity-wait-sipi vmx-flexpriority : bool
  hv-reset : bool =false | on/off
  rdrand vmx-ept-advanced-exitinfo vmx-pause-exit vmx-shadow-vmcs avx512-vpopcntdq : bool
  model : int
  xcrypt tbm vmx-eptad vmx-monitor-exit kvm-pv-eoi lm : bool
  hv-version-id-spack : uint32 =0
  x-vendor-cpuid-only : bool =true
  vmx-unrestricted-guest : bool
  host-phys-bits-limit : uint8 =0
  pae : bool
  hv-runtime : bool =false | on/off
  ssse3 phe movdiri : bool
  host-phys-bits : bool =false
  taa-no full-width-write arat avx512vbmi2 arch-lbr vmx-vnmi-pending x2apic npt vmx-invpcid-exit avx512ifma : bool
  model-id : string
  ucode-rev : uint64 =0
  hv-evmcs : bool =false | on/off
  pmm-en vmx-io-exit tsc : bool
  x-force-features : bool =false
  vmx-ins-outs dca vmx-apicv-x2apic ia64 : bool
  hv-stimer-direct : bool =false | on/off
  perfctr-core vmx-cr3-load-noexit : bool
  pmu : bool =false
  kvmclock vmx-entry-noload-debugctl md-clear invtsc pn avx512cd cmp-legacy cx16 avx512dq abm : bool
  vmx-activity-shutdown kvm-pv-ipi vmx-apicv-register fxsr-opt skip-l1dfl-vmentry : bool
  fill-mtrr-mask x-migrate-smi-count : bool =true
  pcid rdpid wbnoinvd syscall pse xsaves vmx-entry-load-pat vgif mce xfd : bool
  node-id : int32 =-1
  ibpb vmx-apicv-xapic cldemote lwp rtm : bool
  hv-tlbflush : bool =false | on/off
  kvm-steal-time : bool
  cpuid-0xb : bool =true
  vmx-hlt-exit vmx-desc-exit vmx-eptp-switching sgx-provisionkey vmx-entry-load-efer : bool
  level-func7 : uint32 =4294967295
  vmx-invlpg-exit vmx-exit-save-efer : bool
  die-id : int32 =-1
  vme kvm-pv-unhalt : bool
  kvm-no-smi-migration : bool =false
  svm vmx-invvpid kvm-hint-dedicated mca vmx-tsc-scaling mtrr cid pfthreshold pmm lahf-lm : bool
  hv-version-id-build : uint32 =14393
  tcg-cpuid : bool =true
  vmx-entry-load-pkrs vmx-entry-ia32e-mode : bool
  x-hv-max-vps : int32 =-1
  tm pbe amx-int8 sgx1 vmx-rdpmc-exit split-lock-detect : bool
  apic-id : uint32 =4294967295
  fpu skinit : bool
  l3-cache : bool =true
  sep intel-pt-lip : bool
  hv-tlbflush-direct : bool =false | on/off
  avx512-bf16 vmx-invept-single-context-noglobals vmx-rdtscp-exit nx vmx-invvpid-all-context sgx-kss : bool
  pause-filter ds-cpl fsrm vmx-exit-load-efer vmx-vmwrite-vmexit-fields vmx-ept nodeid-msr vmx-ept-execonly : bool
  smap vmx-io-bitmap vmx-preemption-timer vmx-invept-all-context vmx-intr-exit vmx-exit-clear-bndcfgs cr8legacy : bool
  xlevel : uint32 =4294967295
  vmx-vpid vmx-zero-len-inject pschange-mc-no virt-ssbd umip avx512er vmx-vintr-pending xstore-en avx512vl ibrs : bool
  rsba cmov vmx-posted-intr xcrypt-en tm2 lbrv tsc-scale vmx-secondary-ctls xsaveerptr fsgsbase : bool
  x-hv-synic-kvm-only : bool =false
  avx512bw : bool
  hv-version-id-minor : uint16 =0
  sse4a : bool
  tsc-frequency : int
  smx hle monitor avx512-fp16 tce vpclmulqdq : bool
  hv-frequencies : bool =false | on/off
  kvm-pv-tlb-flush vmx-rdtsc-exit vmx-activity-hlt vmx-cr8-load-exit mds-no svme-addr-chk amd-no-ssb adx : bool
  vmx-exit-load-pkrs : bool
  hv-version-id-sbranch : uint8 =0
  crash-information : GuestPanicInformation
  min-level : uint32 =0
  full-cpuid-auto-level : bool =true
  vmx-entry-load-bndcfgs vmx-vnmi pclmulqdq xop msr : bool
  kvm-pv-enforce-cpuid : bool =false
  ssb-no clflush : bool
  xlevel2 : uint32 =4294967295
  mpx extapic vmx-mtf : bool
  hv-enforce-cpuid : bool =false
  hv-stimer : bool =false | on/off
  sgx2 vmx-rdseed-exit smep xsavec vmx-mwait-exit : bool
  hv-synic : bool =false | on/off
  cx8 pku : bool
  kvm : bool =true
  vmx-exit-load-pat : bool
  hv-passthrough : bool =false
  vmcb-clean tsx-ldtrk : bool
  hv-tlbflush-ext : bool =false | on/off
  stibp vmx-cr3-store-noexit tsx-ctrl svm-lock : bool
  hv-reenlightenment : bool =false | on/off
  sgx-exinfo avic ds legacy-cache sse clzero : bool
  hv-vpindex : bool =false | on/off
  osvw pks vmx-ept-2mb vmx-true-ctls movdir64b vmx-invept acpi vmx-encls-exit vmx-cr8-store-exit : bool
  vmx-rdrand-exit nrip-save gfni kvm-mmu kvm-msi-ext-dest-id serialize avx512bitalg rdseed sha-ni ace2 : bool
  lmce : bool =false
  waitpkg topoext f16c 3dnowprefetch avx512-4fmaps vmx-ept-1gb avx sse2 rdctl-no mmx : bool
  hv-version-id-major : uint16 =10
  level : uint32 =4294967295
  avx512vnni pni movbe vmx-ple mmxext : bool
  lbr-fmt : uint64
  bus-lock-detect vmx-apicv-vid vmx-page-walk-5 flushbyasid rdtscp clwb kvm-pv-sched-yield kvm-asyncpf : bool
  decodeassists vmx-wbinvd-exit pat vmx-exit-clear-rtit-ctl invpcid pdpe1gb vmx-exit-save-pat : bool
  hv-vendor-id : str
  tsc-adjust vmx-entry-load-rtit-ctl ht amx-tile xtpr : bool
  hv-xmm-input : bool =false | on/off
  vmx-tsc-offset ssbd 3dnowext clflushopt sgx : bool
  unavailable-features : strList
  xsave pdcm : bool
  hv-crash : bool =false | on/off
  est : bool
  vendor : string
  pge pcommit ibs tsc-deadline kvmclock-stable-bit misalignsse vmx-msr-bitmap : bool
  check : bool =true
  hv-time hv-avic : bool =false | on/off
  perfctr-nb : bool
  phys-bits : uint32 =0
  apic vmx-exit-save-preemption-timer vmx-exit-ack-intr sgx-mode64 avx512vbmi : bool
  thread-id : int32 =-1
  min-xlevel : uint32 =0
  socket-id : int32 =-1
  vmx-exit-nosave-debugctl avx512f vmx-xsaves arch-capabilities bmi2 vmx-exit-load-perf-global-ctrl vmx-pml : bool
  vmx-page-walk-4 vmx-nmi-exit intel-pt wdt kvm-nopiodelay ace2-en v-vmsave-vmload avx512pf bmi1 : bool
  enforce : bool =false
  sse4.2 : bool
  hv-syndbg : bool =false | on/off
  ibrs-all xgetbv1 spec-ctrl 3dnow kvm-asyncpf-int vmx la57 : bool
  hv-no-nonarch-coresharing : OnOffAuto ="off" | on/off/auto
  amx-bf16 sse4.1 xsaveopt : bool
  hv-relaxed : bool =false | on/off
  hv-version-id-snumber : uint32 =0
  vmx-entry-load-perf-global-ctrl avx-vnni fxsr phe-en : bool
  hv-vapic hv-ipi : bool =false | on/off
  hypervisor aes amd-ssbd : bool
  core-id : int32 =-1
  de ss vmx-movdr-exit fma : bool

model-x86_64-cpu : x86_64-cpu
  cmp_legacy ds_cpl ffxsr fxsr_opt i64 kvm_asyncpf kvm_asyncpf_int kvm_mmu kvm_nopiodelay kvm_poll_control : bool
  kvm_pv_eoi kvm_pv_unhalt kvm_steal_time lahf_lm nodeid_msr nrip_save pause_filter pclmuldq perfctr_core : bool
  perfctr_nb sse3 sse4-1 sse4-2 sse4_1 sse4_2 svm_lock tsc_adjust tsc_scale vmcb_clean xd : bool
  lbr_fmt : uint64
  feature-words filtered-features : X86CPUFeatureWordInfo
  hv-apicv : bool =false | on/off
"""
