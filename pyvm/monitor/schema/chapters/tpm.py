"""Trusted platform modules."""

TEXT = """
enum TpmModel
  tpm-tis tpm-crb tpm-spapr

command query-tpm-models -> [TpmModel]

enum TpmType
  passthrough emulator

command query-tpm-types -> [TpmType]

struct TPMInfo
  id: str
  model: TpmModel
  options: TpmTypeOptions

union TpmTypeOptions by type
  type: TpmType
  case passthrough: TPMPassthroughOptionsWrapper
  case emulator: TPMEmulatorOptionsWrapper

struct TPMPassthroughOptionsWrapper
  data: TPMPassthroughOptions

struct TPMPassthroughOptions
  path?: str
  cancel-path?: str

struct TPMEmulatorOptionsWrapper
  data: TPMEmulatorOptions

struct TPMEmulatorOptions
  chardev: str

command query-tpm -> [TPMInfo]
"""
