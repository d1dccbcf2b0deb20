"""Commands about migrations of the machine, their settings, and its snapshots."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.errors import ConfigError
from pyvm.migration.transport import UnknownProtocolError
from pyvm.monitor.commands.block_common import block_errors, storage_of
from pyvm.monitor.errors import DEVICE_NOT_ACTIVE, QmpError, unsupported
from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvm.machine.saved.migrations import Migrations
    from pyvm.migration.settings import MigrationSettings

COMMANDS = CommandTable()

_UINT64 = (1 << 64) - 1
_MILLISECONDS = 1000
_NO_INCOMING = "'-incoming' was not specified on the command line"


@runtime_checkable
class MigrationOwner(Protocol):
    """A machine whose migration has settings."""

    migration: MigrationSettings


@runtime_checkable
class Migrating(Protocol):
    """A machine that can move."""

    migrations: Migrations


def migrations_of(context: Context) -> Migrations:
    """Return the machine's migrations."""
    machine = context.machine
    if not isinstance(machine, Migrating):
        raise unsupported()
    return machine.migrations


def _busy(context: Context) -> bool:
    """Return whether a migration to somewhere else is under way."""
    known = _known(context)
    return known is not None and not known.idle


def _known(context: Context) -> Migrations | None:
    """Return the machine's migrations where there ever was one."""
    known: Migrations | None = vars(context.machine).get("migrations")
    return known


def settings_of(context: Context) -> MigrationSettings:
    """Return the settings of the machine's migrations."""
    machine = context.machine
    if not isinstance(machine, MigrationOwner):
        raise unsupported()
    return machine.migration


@contextmanager
def _settings_errors() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise QmpError(str(error)) from None


# ---- Settings


@COMMANDS.command("query-migrate-capabilities")
def query_migrate_capabilities(context: Context) -> list[dict[str, Any]]:
    """Return which capabilities are switched on."""
    return [{"capability": name, "state": state} for name, state in settings_of(context).capabilities.items()]


@COMMANDS.command("migrate-set-capabilities")
def migrate_set_capabilities(context: Context, capabilities: list[Record]) -> None:
    """Switch capabilities on or off."""
    if _busy(context):
        raise QmpError("There's a migration process in progress")
    with _settings_errors():
        states = [(item.capability, item.state) for item in capabilities]
        settings_of(context).enable(states, lambda name: _check_host(context, name))


def _check_host(context: Context, capability: str) -> None:
    """Raise ConfigError where the host does not allow the machine what is to be switched on."""
    machine = context.machine
    if isinstance(machine, Migrating):
        machine.migrations.check_host(capability)


@COMMANDS.command("query-migrate-parameters")
def query_migrate_parameters(context: Context) -> dict[str, Any]:
    """Return the parameters."""
    return settings_of(context).shown()


@COMMANDS.command("migrate-set-parameters")
def migrate_set_parameters(context: Context, arguments: dict[str, Any]) -> None:
    """Set parameters; null is the empty text, and a negative number a large one."""
    values = {name: "" if value is None else value for name, value in arguments.items()}
    values.update({name: value & _UINT64 for name, value in values.items() if type(value) is int})
    with _settings_errors():
        settings_of(context).set(values)
    known = _known(context)
    if known is not None and known.outgoing is not None:
        known.outgoing.retune()


@COMMANDS.command("migrate_set_downtime")
def migrate_set_downtime(context: Context, value: float) -> None:
    """Set the downtime limit, in seconds."""
    if not 0 <= value <= 2000:
        raise QmpError("Parameter 'downtime_limit' expects an integer in the range of 0 to 2000 seconds")
    migrate_set_parameters(context, {"downtime-limit": int(value * _MILLISECONDS)})


@COMMANDS.command("migrate_set_speed")
def migrate_set_speed(context: Context, value: int) -> None:
    """Set the greatest bandwidth, in bytes a second."""
    migrate_set_parameters(context, {"max-bandwidth": value})


@COMMANDS.command("migrate-set-cache-size")
def migrate_set_cache_size(context: Context, value: int) -> None:
    """Set the size of the cache for XBZRLE, rounded down to a power of two."""
    size = 1 << (value.bit_length() - 1) if value > 0 else value
    migrate_set_parameters(context, {"xbzrle-cache-size": size})


@COMMANDS.command("query-migrate-cache-size")
def query_migrate_cache_size(context: Context) -> int:
    """Return the size of the cache for XBZRLE."""
    size: int = settings_of(context).parameters["xbzrle-cache-size"]
    return size


# ---- Migrations


@COMMANDS.command("query-migrate")
def query_migrate(context: Context) -> dict[str, Any]:
    """Return how the migration goes."""
    known = _known(context)
    return {} if known is None else known.info()


def _taker(context: Context) -> Callable[[str], int]:
    """Return what gives away descriptors: by the names that a client gave them, or by their numbers."""

    def take(name: str) -> int:
        if not name[:1].isdecimal():
            return context.session.named_fds.require(name)
        try:
            os.fstat(int(name))
        except (ValueError, OverflowError, OSError):
            raise QmpError(f"Invalid parameter 'fd:{name}'") from None
        return int(name)

    return take


@COMMANDS.command("migrate")
def migrate(
    context: Context, uri: str, blk: bool | None, inc: bool | None, detach: bool | None, resume: bool | None
) -> None:
    """Begin to move the machine."""
    del detach  # it is always so: only the human monitor waits
    if resume:
        with _settings_errors():
            migrations_of(context).resume(uri, _taker(context))
        return
    settings = settings_of(context)
    if blk or inc:
        if settings.capabilities["block"] or settings.parameters["block-incremental"]:
            raise QmpError("Command options are incompatible with current migration capabilities")
        raise QmpError("Block migration is not supported by pyvm: copy disks with drive-mirror or blockdev-mirror")
    if settings.parameters["tls-creds"]:
        raise QmpError("TLS for migrations is not supported by pyvm")
    with _settings_errors():
        migrations_of(context).migrate(uri, _taker(context))


@COMMANDS.command("migrate_cancel")
def migrate_cancel(context: Context) -> None:
    """Give the migration up."""
    if _busy(context):
        moving = migrations_of(context).outgoing
        assert moving is not None
        with _settings_errors():
            moving.cancel()


@COMMANDS.command("migrate-continue")
def migrate_continue(context: Context, state: str) -> None:
    """Go on with a migration that waits before its switch-over."""
    known = _known(context)
    status = "none" if known is None else known.status
    if state != status:
        raise QmpError(f"Migration not in expected state: {status}")
    if known is not None and known.outgoing is not None and status == "pre-switchover":
        known.outgoing.go_on()


@COMMANDS.command("migrate-start-postcopy")
def migrate_start_postcopy(context: Context) -> None:
    """Switch over, and let memory and bitmaps follow."""
    capabilities = settings_of(context).capabilities
    if not capabilities["postcopy-ram"] and not capabilities["dirty-bitmaps"]:
        raise QmpError("Enable postcopy with migrate_set_capability before the start of migration")
    known = _known(context)
    if known is None or known.status == "none":
        raise QmpError("Postcopy must be started after migration has been started")
    # One that is over already is no error: who asks could not know.
    if known.outgoing is not None:
        known.outgoing.start_postcopy()


@COMMANDS.command("migrate-incoming")
def migrate_incoming(context: Context, uri: str) -> None:
    """Let a migration come in."""
    if context.machine.run_state is not RunState.INMIGRATE:
        raise QmpError(_NO_INCOMING)
    migrations = migrations_of(context)
    if migrations.incoming is not None:
        raise QmpError("The incoming migration has already been started")
    try:
        migrations.listen(uri, _taker(context))
    except UnknownProtocolError:
        raise QmpError(f"unknown migration protocol: {uri}") from None
    except (OSError, ConfigError) as error:
        raise QmpError(str(error)) from None


@COMMANDS.command("migrate-recover")
def migrate_recover(context: Context, uri: str) -> None:
    """Let a migration whose connection has broken come in from elsewhere."""
    known = _known(context)
    if known is None:
        raise QmpError("Migrate recover can only be run when postcopy is paused.")
    try:
        known.recover(uri, _taker(context))
    except UnknownProtocolError:
        raise QmpError(f"unknown migration protocol: {uri}") from None
    except (OSError, ConfigError) as error:
        raise QmpError(str(error)) from None


@COMMANDS.command("migrate-pause")
def migrate_pause(context: Context) -> None:
    """Break the connection of a migration whose memory comes late."""
    known = _known(context)
    if known is None:
        raise QmpError("migrate-pause is currently only supported during postcopy-active state")
    with _settings_errors():
        known.pause()


@COMMANDS.command("client_migrate_info")
def client_migrate_info(
    context: Context, protocol: str, hostname: str, port: int | None, tls_port: int | None, cert_subject: str | None
) -> None:
    """Refuse to tell the clients of a remote display where the machine goes: only SPICE has that."""
    if protocol != "spice":
        raise QmpError("Parameter 'protocol' expects 'spice'")
    raise QmpError("SPICE is not in use", DEVICE_NOT_ACTIVE)


# ---- Machines that follow each other, and states of devices alone


@COMMANDS.command("query-colo-status")
def query_colo_status(context: Context) -> dict[str, Any]:
    """Return that no other machine follows this one."""
    return {"mode": "none", "last-mode": "none", "reason": "none"}


@COMMANDS.command("x-colo-lost-heartbeat")
def x_colo_lost_heartbeat(context: Context) -> None:
    """Refuse: no other machine follows this one."""
    raise QmpError("The feature 'colo' is not enabled")


def _not_opened(filename: str, error: OSError | ValueError) -> QmpError:
    """Return what to say of a file that cannot be opened, or whose name can be none."""
    return QmpError(f"Unable to open {filename}: {error.strerror if isinstance(error, OSError) else error}")


@COMMANDS.command("xen-save-devices-state")
def xen_save_devices_state(context: Context, filename: str, live: bool | None) -> None:
    """Save the state of the machine without that of RAM, in pyvm's own format."""
    del live  # matters where another process takes over the disks at once
    try:
        context.machine.save_devices(filename)
    except (OSError, ValueError) as error:
        raise _not_opened(filename, error) from None


@COMMANDS.command("xen-load-devices-state")
def xen_load_devices_state(context: Context, filename: str) -> None:
    """Load the state of the machine without that of RAM."""
    if context.machine.run_state is RunState.RUNNING:
        raise QmpError("Cannot update device state while vm is running")
    try:
        open(filename, "rb").close()
    except (OSError, ValueError) as error:
        raise _not_opened(filename, error) from None
    try:
        context.machine.load_devices(filename)
    except ConfigError as error:
        raise QmpError(str(error)) from None


# ---- Snapshots of the whole machine


def _saved_by(context: Context) -> Any:
    """Return the machine, which must be one with disks."""
    storage_of(context.machine)
    return context.machine


@COMMANDS.command("snapshot-save")
def snapshot_save(context: Context, job_id: str, tag: str, vmstate: str, devices: list[str]) -> None:
    """Save the machine in its disks."""
    from pyvm.machine.saved.snapshot_jobs import SnapshotSaveJob

    with block_errors():
        SnapshotSaveJob(_saved_by(context), job_id, tag, devices, vmstate).start()


@COMMANDS.command("snapshot-load")
def snapshot_load(context: Context, job_id: str, tag: str, vmstate: str, devices: list[str]) -> None:
    """Load the machine from its disks."""
    from pyvm.machine.saved.snapshot_jobs import SnapshotLoadJob

    with block_errors():
        SnapshotLoadJob(_saved_by(context), job_id, tag, devices, vmstate).start()


@COMMANDS.command("snapshot-delete")
def snapshot_delete(context: Context, job_id: str, tag: str, devices: list[str]) -> None:
    """Delete a saved machine from its disks."""
    from pyvm.machine.saved.snapshot_jobs import SnapshotDeleteJob

    with block_errors():
        SnapshotDeleteJob(_saved_by(context), job_id, tag, devices).start()
