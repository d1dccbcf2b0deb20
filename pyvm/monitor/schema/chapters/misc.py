"""What belongs to no other chapter."""

TEXT = """
command add_client
  protocol: str
  fdname: str
  skipauth?: bool
  tls?: bool

struct NameInfo
  name?: str

command query-name -> NameInfo preconfig

struct IOThreadInfo
  id: str
  thread-id: int
  poll-max-ns: int
  poll-grow: int
  poll-shrink: int
  aio-max-batch: int

command query-iothreads -> [IOThreadInfo] preconfig

command stop

command cont

command human-monitor-command -> str !savevm-monitor-nodes
  command-line: str
  cpu-index?: int

command getfd
  fdname: str

command closefd
  fdname: str

struct AddfdInfo
  fdset-id: int
  fd: int

command add-fd -> AddfdInfo
  fdset-id?: int
  opaque?: str

command remove-fd
  fdset-id: int
  fd?: int

struct FdsetFdInfo
  fd: int
  opaque?: str

struct FdsetInfo
  fdset-id: int
  fds: [FdsetFdInfo]

command query-fdsets -> [FdsetInfo]

event RTC_CHANGE
  offset: int
  qom-path: str

event VFU_CLIENT_HANGUP
  vfu-id: str
  vfu-qom-path: str
  dev-id: str
  dev-qom-path: str

command rtc-reset-reinjection
"""
