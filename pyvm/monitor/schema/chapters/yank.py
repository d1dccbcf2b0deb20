"""Recovery from peers that hang: connections are torn down out of band."""

TEXT = """
enum YankInstanceType
  block-node chardev migration

struct YankInstanceBlockNode
  node-name: str

struct YankInstanceChardev
  id: str

union YankInstance by type
  type: YankInstanceType
  case block-node: YankInstanceBlockNode
  case chardev: YankInstanceChardev

command yank oob
  instances: [YankInstance]

command query-yank -> [YankInstance] oob
"""
