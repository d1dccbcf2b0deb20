"""What people want to know of a machine when they look for an error: texts, not data."""

TEXT = """
struct HumanReadableText
  human-readable-text: str

command x-query-irq -> HumanReadableText !unstable

command x-query-jit -> HumanReadableText !unstable

command x-query-numa -> HumanReadableText !unstable

command x-query-opcount -> HumanReadableText !unstable

command x-query-profile -> HumanReadableText !unstable

command x-query-ramblock -> HumanReadableText !unstable

command x-query-rdma -> HumanReadableText !unstable

command x-query-roms -> HumanReadableText !unstable

command x-query-usb -> HumanReadableText !unstable
"""
