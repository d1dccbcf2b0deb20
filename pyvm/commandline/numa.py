"""NUMA nodes of the command line: `-numa`, one description after another.

Each is a NumaOptions of the schema; whether they fit together is found out when the machine is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyvm.config import NumaConfig
from pyvm.options import Options

_TYPE = "NumaOptions"
_LISTS = ("cpus",)
"""What may be given more than once."""


def numa_options(given: Sequence[Options]) -> list[NumaConfig]:
    """Return the descriptions in their order; raises ConfigError."""
    return [_description(options) for options in given]


def _description(options: Options) -> NumaConfig:
    from pyvm.monitor.errors import QmpError
    from pyvm.monitor.schema.model import ObjectType, load
    from pyvm.monitor.schema.text_values import typed_members
    from pyvm.monitor.schema.validate import validator

    options.required("type")
    values = options.nested()
    for name in _LISTS:
        if len(options.values(name)) > 1:
            values[name] = options.values(name)
    kind = load().type(_TYPE)
    assert isinstance(kind, ObjectType)
    if not options.typed:
        values = options.checked(lambda: typed_members(kind, values))
    try:
        validator().check(_TYPE, values)
    except QmpError as error:
        message = error.description
        if message.endswith("is unexpected"):
            message = "Invalid parameter " + message.split()[1]
        raise options.error(message) from None
    return NumaConfig(values, options.origin)
