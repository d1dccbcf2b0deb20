"""What only some processors have: memory encryption and enclaves."""

TEXT = """
enum SevState
  uninit launch-update launch-secret running send-update receive-update

struct SevInfo
  enabled: bool
  api-major: uint8
  api-minor: uint8
  build-id: uint8
  policy: uint32
  state: SevState
  handle: uint32

command query-sev -> SevInfo

struct SevLaunchMeasureInfo
  data: str

command query-sev-launch-measure -> SevLaunchMeasureInfo

struct SevCapability
  pdh: str
  cert-chain: str
  cpu0-id: str
  cbitpos: int
  reduced-phys-bits: int

command query-sev-capabilities -> SevCapability

command sev-inject-launch-secret
  packet-header: str
  secret: str
  gpa?: uint64

struct SevAttestationReport
  data: str

command query-sev-attestation-report -> SevAttestationReport
  mnonce: str

struct SGXEPCSection
  node: int
  size: uint64

struct SGXInfo
  sgx: bool
  sgx1: bool
  sgx2: bool
  flc: bool
  section-size: uint64 !deprecated
  sections: [SGXEPCSection]

command query-sgx -> SGXInfo

command query-sgx-capabilities -> SGXInfo
"""
