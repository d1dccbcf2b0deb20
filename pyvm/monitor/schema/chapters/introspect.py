"""Introspection: the schema as clients see it, and the options of the command line."""

TEXT = """
command query-qmp-schema -> [SchemaInfo] preconfig

enum SchemaMetaType
  builtin enum array object alternate command event

union SchemaInfo by meta-type
  name: str
  meta-type: SchemaMetaType
  features?: [str]
  case builtin: SchemaInfoBuiltin
  case enum: SchemaInfoEnum
  case array: SchemaInfoArray
  case object: SchemaInfoObject
  case alternate: SchemaInfoAlternate
  case command: SchemaInfoCommand
  case event: SchemaInfoEvent

struct SchemaInfoBuiltin
  json-type: JSONType

enum JSONType
  string number int boolean null object array value

struct SchemaInfoEnum
  members: [SchemaInfoEnumMember]
  values: [str] !deprecated

struct SchemaInfoEnumMember
  name: str
  features?: [str]

struct SchemaInfoArray
  element-type: str

struct SchemaInfoObject
  members: [SchemaInfoObjectMember]
  tag?: str
  variants?: [SchemaInfoObjectVariant]

struct SchemaInfoObjectMember
  name: str
  type: str
  default?: any
  features?: [str]

struct SchemaInfoObjectVariant
  case: str
  type: str

struct SchemaInfoAlternate
  members: [SchemaInfoAlternateMember]

struct SchemaInfoAlternateMember
  type: str

struct SchemaInfoCommand
  arg-type: str
  ret-type: str
  allow-oob?: bool

struct SchemaInfoEvent
  arg-type: str

enum CommandLineParameterType
  string boolean number size

struct CommandLineParameterInfo
  name: str
  type: CommandLineParameterType
  help?: str
  default?: str

struct CommandLineOptionInfo
  option: str
  parameters: [CommandLineParameterInfo]

command query-command-line-options -> [CommandLineOptionInfo] preconfig
  option?: str
"""
