"""What a Xen tool stack asks of a device model.

The two commands that save and load the state of devices belong to migration.
"""

TEXT = """
command xen-set-global-dirty-log
  enable: bool

command xen-set-replication
  enable: bool
  primary: bool
  failover?: bool

struct ReplicationStatus
  error: bool
  desc?: str

command query-xen-replication-status -> ReplicationStatus

command xen-colo-do-checkpoint
"""
