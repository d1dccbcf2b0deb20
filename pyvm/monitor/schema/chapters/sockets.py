"""Addresses of sockets, as several chapters have them."""

TEXT = """
struct InetSocketAddressBase
  host: str
  port: str

struct InetSocketAddress : InetSocketAddressBase
  numeric?: bool
  to?: uint16
  ipv4?: bool
  ipv6?: bool
  keep-alive?: bool
  mptcp?: bool if=linux

struct UnixSocketAddress
  path: str
  abstract?: bool if=linux
  tight?: bool if=linux

struct VsockSocketAddress
  cid: str
  port: str

struct String
  str: str

struct InetSocketAddressWrapper
  data: InetSocketAddress

struct UnixSocketAddressWrapper
  data: UnixSocketAddress

struct VsockSocketAddressWrapper
  data: VsockSocketAddress

struct StringWrapper
  data: String

enum SocketAddressType
  inet unix vsock fd

union SocketAddressLegacy by type
  type: SocketAddressType
  case inet: InetSocketAddressWrapper
  case unix: UnixSocketAddressWrapper
  case vsock: VsockSocketAddressWrapper
  case fd: StringWrapper

union SocketAddress by type
  type: SocketAddressType
  case inet: InetSocketAddress
  case unix: UnixSocketAddress
  case vsock: VsockSocketAddress
  case fd: String
"""
