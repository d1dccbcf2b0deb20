"""``pyvm-nbd -L``: the exports of another server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pyvm.block.drivers.nbd_protocol import TransmissionFlag
from pyvm.printable import printable
from pyvm.tools.img.errors import ImgError

if TYPE_CHECKING:
    from pyvm.block.drivers.nbd_handshake import Wrap
    from pyvm.block.drivers.nbd_listing import ListedExport
    from pyvm.block.drivers.nbd_stream import ServerAddress
    from pyvm.tools.nbd.options import NbdSettings

_FLAG_NAMES = {
    TransmissionFlag.READ_ONLY: "readonly",
    TransmissionFlag.SEND_FLUSH: "flush",
    TransmissionFlag.SEND_FUA: "fua",
    TransmissionFlag.ROTATIONAL: "rotational",
    TransmissionFlag.SEND_TRIM: "trim",
    TransmissionFlag.SEND_WRITE_ZEROES: "zeroes",
    TransmissionFlag.SEND_DF: "df",
    TransmissionFlag.CAN_MULTI_CONN: "multi",
    TransmissionFlag.SEND_RESIZE: "resize",
    TransmissionFlag.SEND_CACHE: "cache",
    TransmissionFlag.SEND_FAST_ZERO: "fast-zero",
}


def show(settings: NbdSettings) -> int:
    """Print what a server has, and return the exit status.  Raises BlockError, ImgError and ConfigError."""
    from pyvm.block.drivers.nbd_listing import list_exports

    address = _address(settings)
    exports = list_exports(address, _encryption(settings, address))
    lines = [f"exports available: {len(exports)}"]
    for export in exports:
        lines += _lines(export)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _address(settings: NbdSettings) -> ServerAddress:
    from pyvm.block.drivers.nbd_stream import ServerAddress
    from pyvm.tools.nbd.options import DEFAULT_PORT

    if settings.socket is not None:
        return ServerAddress(path=settings.socket)
    return ServerAddress(settings.bind or "localhost", settings.port or DEFAULT_PORT)


def _encryption(settings: NbdSettings, address: ServerAddress) -> Wrap | None:
    if settings.tls_creds is None:
        return None
    from pyvm.block.drivers.nbd_tls import client_wrap
    from pyvm.machine.user_objects import ObjectHost, UserObjects
    from pyvm.monitor.errors import QmpError

    objects = UserObjects(ObjectHost())
    try:
        for item in settings.objects:
            objects.add(item.type, item.id, dict(item.properties))
    except QmpError as error:
        raise ImgError(error.description) from None
    hostname = settings.tls_hostname or address.host or None
    return client_wrap(objects.find(settings.tls_creds), settings.tls_creds, objects.host.secrets, hostname)


def _lines(export: ListedExport) -> list[str]:
    lines = [f" export: '{printable(export.name)}'"]
    if export.description:
        lines.append(f"  description: {printable(export.description)}")
    info = export.info
    if info is not None and TransmissionFlag.HAS_FLAGS in info.flags:
        names = "".join(f" {name}" for flag, name in _FLAG_NAMES.items() if flag in info.flags)
        lines += [f"  size:  {info.size}", f"  flags: {int(info.flags):#x} ({names} )"]
    if export.block_sizes is not None:
        least, preferred, most = export.block_sizes
        lines += [f"  min block: {least}", f"  opt block: {preferred}", f"  max block: {most}"]
    if export.contexts:
        lines.append(f"  available meta contexts: {len(export.contexts)}")
        lines += [f"   {printable(name)}" for name in export.contexts]
    return lines
