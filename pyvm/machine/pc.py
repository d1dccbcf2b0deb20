"""One PC: board, devices, back ends, monitors and firmware, made from a configuration and ready to run."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyvm.block.draining import drained_once
from pyvm.chardev.base import ChardevError
from pyvm.chardev.registry import ChardevHost, ChardevSet
from pyvm.cpu.cpuid import CpuModel, CpuModelError, Topology, build_model
from pyvm.cpu.engine import EngineError
from pyvm.cpu.vcpu import CpuEvents, VcpuSet
from pyvm.devices.acpi.pm import SleepKind, WakeReason
from pyvm.errors import ConfigError
from pyvm.input import InputRouter, KeyboardInput, MouseInput
from pyvm.machine.accelerators import make_clock, vcpu_class
from pyvm.machine.backend_paths import name_backends
from pyvm.machine.board import Board, BoardEvents
from pyvm.machine.boot import Boot, describe
from pyvm.machine.lifecycle import Lifecycle
from pyvm.machine.limits import refuse_unsupported
from pyvm.machine.model import STORED, MachineModel
from pyvm.machine.network import Network
from pyvm.machine.plug.plugging import PlugEvents, Plugger
from pyvm.machine.reset_log import log_reset
from pyvm.machine.rtc_base import RtcBase
from pyvm.machine.saved.persistence import Persistence
from pyvm.machine.screen import screen_size
from pyvm.machine.shadow import read_firmware
from pyvm.machine.storage import Storage, StorageEvents
from pyvm.mainloop import MainLoop
from pyvm.memory import IoSpace
from pyvm.migration.settings import MigrationSettings
from pyvm.monitor.descriptors import FdSets
from pyvm.monitor.events import EventBus
from pyvm.monitor.trace import TraceEvents, start_traces, trace_life
from pyvm.records import replace
from pyvm.runstate import RunState, ShutdownCause

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend
    from pyvm.config import ChardevConfig, MachineConfig
    from pyvm.devices.display.vga import Vga
    from pyvm.firmware.tables import Tables
    from pyvm.machine.sleep import Sleep
    from pyvm.monitor.machine import Balloon
    from pyvm.vnc.displays import VncDisplays

_NO_UUID = "00000000-0000-0000-0000-000000000000"
_GIL_SWITCH_SECONDS = 0.0005


class Pc(Persistence):
    """A machine, made and reset but not running yet; it is what monitors see as MachineControl.

    Raises :class:`ConfigError` for whatever the configuration asks for that cannot be had.
    """

    def __init__(self, config: MachineConfig) -> None:
        self.config = config
        self.clock = make_clock(config)
        self.mainloop = MainLoop(self.clock)
        self.lock = self.mainloop.lock
        self.events = EventBus(self.mainloop)
        self.autostart = True
        self._rtc_base = RtcBase(config.rtc, self.clock)
        self._thread: threading.Thread | None = None
        self._temporary = ExitStack()
        """What is given back as soon as all images are open."""
        self._resources = ExitStack()
        """What :meth:`close` gives back, the newest first."""
        self._resources.callback(self.mainloop.close)
        self.traces = TraceEvents(lambda: self.dispatcher.schema.command_names)
        self._resources.callback(self.traces.close)
        self.input = InputRouter(self.clock, self._listens_to_input, trace=self.traces.emit)
        self.fdsets = FdSets()
        for passed in config.passed_fds:
            self.fdsets.add(passed.fd, passed.set_id, passed.opaque)
        self._resources.callback(self.fdsets.close)
        self.chardev_set = ChardevSet(
            self.mainloop,
            escape=config.escape_character,
            on_quit=lambda: self.quit(ShutdownCause.HOST_UI),
            daemonized=config.daemonize,
            host=ChardevHost(
                self.input, self.request_exit, lambda: screen_size(self.displays()), open_file=self.fdsets.open
            ),
        )
        self._give_back(self.chardev_set.close_all)
        self._complete = False
        self.disk_names: dict[BlockBackend, str] = {}
        """What the command line calls disks that have no name as drives."""
        self.vnc: VncDisplays | None = None
        self.migration = MigrationSettings()
        self.model = MachineModel(self)
        self._give_back(self.model.close)
        try:
            with self.lock:
                self._build()
        except BaseException:
            self.close()
            raise

    def _give_back(self, action: Callable[[], None]) -> None:
        """Have `action` called, with the lock held, when the machine is closed."""

        def locked() -> None:
            with self.lock:
                action()

        self._resources.callback(locked)

    # ---- Making it

    def _build(self) -> None:
        config = self.config
        refuse_unsupported(config)
        self._find_origin()
        start_traces(self.traces, config.traces)
        for chardev in config.chardevs:
            self._open_chardev(chardev)
        self.network = Network(self)
        self._give_back(self.network.close)
        self.network.create(config)
        self.model.create_objects(STORED, wanted=False)
        self.model.describe_nodes(config.numa)
        self.memory = self.model.make_memory()
        self._give_back(self.memory.close)
        self.ports = IoSpace("I/O")
        self.mmio = IoSpace("memory")
        self.cpus = self._make_vcpus()
        device_memory = self._resources.enter_context(ExitStack())  # which the processors map
        self._resources.callback(self.cpus.release)
        if config.single_instructions:
            self.cpus.single_instructions = True
        self.traces.on_items = self._log_guest
        if self.traces.items:
            self._log_guest()
        self._add_monitors()  # before the serial ports: the last one on a multiplexer gets the input first
        self.board = self._make_board()
        device_memory.enter_context(self.board.device_memory)
        self._give_back(self.board.reset)  # drops the views that devices have of guest memory
        if config.board.type != "none":
            self.input.register(KeyboardInput(self.board.keyboard, self._woken_by_input))
            self.input.register(MouseInput(self.board.mouse, self._woken_by_input))
        self.lifecycle = Lifecycle(self.mainloop, self.clock, self.cpus, self, config.actions, self.events.emit)
        trace_life(self.traces, self.events, self.lifecycle.states)
        with self._temporary:
            self.storage = self._open_storage()
        self.model.create_objects(STORED, wanted=True)
        if not config.preconfig:
            self.complete()
        if config.vnc:
            self._open_vnc()
        if config.qtest is not None:
            self._open_qtest(config.qtest)

    def complete(self) -> None:
        """Plug devices in and run the firmware: from now on the machine exists.  Raises ConfigError."""
        config = self.config
        self.model.settle_memory()
        self._plugger = self._plug()
        self.model.hotplug.machine_made()
        from pyvm.firmware.tables import Tables

        plugged = self._plugger.plugged
        affinity = self.model.numa.affinity(self.cpus.apic_ids, self.memory.blocks)
        info = describe(self.board, config, vga=plugged.display is not None, affinity=affinity)
        info = replace(info, panic_port=plugged.panic_port, generation_id=plugged.generation_id is not None)
        tables = Tables(self.model.hotplug.describe(info))
        self._boot = Boot(self.board, config, tables, self._plugger, display=plugged.display)
        self._boot.generation_id = plugged.generation_id
        self._boot.describe_to_guest()
        self._complete = True
        name_backends(self)
        self._first_state()
        if config.gdb is not None:
            self._open_gdb(config.gdb)

    def _open_vnc(self) -> None:
        from pyvm.vnc.displays import VncDisplays

        self.vnc = VncDisplays(self)
        self._give_back(self.vnc.close)
        for options in self.config.vnc:
            self.vnc.open(options)

    def _open_gdb(self, chardev: str) -> None:
        try:
            self.gdb.open(chardev)
        except ChardevError as error:
            raise ConfigError(f"-gdb: {error}") from None

    def _open_qtest(self, chardev: str) -> None:
        from pyvm.machine.qtest import Qtest

        self._give_back(Qtest(self, self._port(chardev), self.config.qtest_log).close)

    def _open_chardev(self, config: ChardevConfig) -> None:
        try:
            self.chardev_set.add(config.options)
        except ChardevError as error:
            raise ConfigError(f"{config.origin}: {error}" if config.origin else str(error)) from None

    def _make_vcpus(self) -> VcpuSet:
        smp = self.config.smp
        topology = Topology(smp.sockets, smp.cores, smp.threads)
        try:
            return vcpu_class(self.config)(
                smp.cpus,
                self._cpu_model(topology),
                topology,
                lock=self.lock,
                memory=self.memory,
                mmio=self.mmio,
                ports=self.ports,
                events=CpuEvents(
                    triple_fault=self._guest_resets,
                    failed=self._cpu_failed,
                    firmware_call=lambda vcpu: self._boot.firmware_call(vcpu),
                    debug=lambda stop: self.debugger.stopped(stop),
                ),
                places=smp.max_cpus,
            )
        except EngineError as error:
            raise ConfigError(str(error)) from None

    def _cpu_model(self, topology: Topology) -> CpuModel:
        cpu = self.config.cpu
        try:
            model = build_model(cpu.option, topology)
        except CpuModelError as error:
            raise ConfigError(f"{cpu.origin}: {error}" if cpu.origin else str(error)) from None
        if cpu.origin:
            # SVM is part of the default model, and never there: worth a word only to who asked for it.
            for name in (name for name in model.missing if name != "svm" or "svm" in cpu.option):
                print(f"pyvm: warning: TCG doesn't support requested feature: {name}", file=sys.stderr)
        return model

    def _make_board(self) -> Board:
        config = self.config
        events = BoardEvents(reset=self._guest_resets, sleep=self._guest_sleeps, rtc_change=self._rtc_changed)
        board = Board(
            self.clock,
            self.memory,
            self.mmio,
            self.ports,
            self.cpus,
            events,
            rtc_base=self._rtc_base,
            hpet=config.board.hpet,
            firmware=None if config.boot.bios is None else read_firmware(config.boot.bios),
            rtc_make_up=config.rtc.driftfix == "slew",
        )
        for number, name in enumerate(config.serials):
            if name is not None:
                board.add_serial(number, self._port(name))
        return board

    def _port(self, name: str) -> Any:
        chardev = self.chardev_set.find(name)
        if chardev is None:
            raise ConfigError(f'chardev "{name}" not found')
        return chardev.port()

    def _log_guest(self) -> None:
        from pyvm.machine.guest_log import follow

        follow(self)

    def _open_storage(self) -> Storage:
        events = StorageEvents(
            emit=self.events.emit, stop=self.lifecycle.request_io_error, call_soon=self.mainloop.call_soon
        )
        events.call_later = self.mainloop.call_later
        storage = Storage(
            self.config,
            self.lock,
            self.clock,
            events,
            open_file=self.fdsets.open,
            find_object=self.model.objects.find,
        )
        self._give_back(storage.close)
        return storage

    def _plug(self) -> Plugger:
        events = PlugEvents(
            guest_opened_port=self._port_opened,
            balloon_changed=lambda actual: self.events.emit("BALLOON_CHANGE", {"actual": actual}),
            debug_exit=self.request_exit,
            watchdog_expired=self.lifecycle.watchdog_expired,
            guest_panicked=self.lifecycle.guest_panicked,
            crash_kernel_started=self.lifecycle.crash_kernel_started,
        )
        plugger = Plugger(
            self.board, self.config, self.chardev_set, self.storage, events, self.model.objects, self.network
        )
        self._give_back(plugger.close)
        plugger.sockets = self.model.sockets
        plugger.plug_all()
        self.network.warn()
        if self.config.debugcon is not None:
            plugger.add_debug_console(self._port(self.config.debugcon), 0xE9)
        return plugger

    def _add_monitors(self) -> None:
        for monitor in self.config.monitors:
            from pyvm.machine.monitors import make_monitor

            self._give_back(make_monitor(self, monitor, self._port(monitor.chardev)).close)

    # ---- Hardware, as the life cycle sees it

    def reset_hardware(self) -> None:
        """Reset everything and run the firmware."""
        self.model.before_reset()
        log_reset(self)
        with self.board.shadow.deferred(), drained_once(self.storage.graph):
            self.board.reset()
            self.cpus.reset()
            self._boot.run()

    def devices_changed(self) -> None:
        """Reset everything, as other devices are plugged in than firmware knows."""
        self._boot.devices_changed()
        self.reset_hardware()

    @cached_property
    def _sleep(self) -> Sleep:
        from pyvm.machine.sleep import Sleep

        return Sleep(self.mainloop, self.clock, self.board, self.lifecycle.wakeup)

    def fall_asleep(self) -> None:
        """The guest sleeps in RAM, or was loaded so."""
        self._sleep.begin()

    def resume_from_ram(self, reason: WakeReason) -> None:
        """Wake from suspend-to-RAM: everything but RAM is reset, and the guest may ask for the reason."""
        self._sleep.end()
        self.model.before_reset()
        with self.board.shadow.deferred():
            self._boot.before_resume()
            self.board.reset()
            self.cpus.reset()
            self._boot.resume()
        self.board.acpi.wake(reason)

    def press_power_button(self) -> None:
        """Press the power button."""
        self.board.acpi.press_power_button()

    def pause(self) -> None:
        """The guest has stopped: devices leave its memory alone, and what they hold back is passed on."""
        self._rtc_base.stopped()
        self.board.flush()
        self.storage.pause()
        if self._complete:
            self._plugger.pause()

    def stand_still(self) -> None:
        """Have everything that works on disks beside the guest stand still for a moment: it was stopped."""
        self.storage.drain()

    def resume(self) -> None:
        """The guest is about to run: devices go on with what waits."""
        self._rtc_base.about_to_run()
        self.model.before_run()
        self._plugger.resume()
        self.storage.resume()

    # ---- What the guest does

    def _cpu_failed(self, error: BaseException) -> None:
        from traceback import format_exception

        print("pyvm: the machine stops: " + "".join(format_exception(error)), file=sys.stderr, end="")
        self.lifecycle.request_internal_error()

    def _guest_resets(self) -> None:
        self.lifecycle.request_reset(ShutdownCause.GUEST_RESET)

    def _guest_sleeps(self, kind: SleepKind) -> None:
        if kind is SleepKind.SUSPEND_TO_RAM:
            self.lifecycle.request_suspend()
        elif kind is SleepKind.SUSPEND_TO_DISK:
            self.lifecycle.request_suspend_to_disk()
        else:
            self.lifecycle.request_shutdown(ShutdownCause.GUEST_SHUTDOWN)

    def _rtc_changed(self, offset: int) -> None:
        self.events.emit("RTC_CHANGE", {"offset": offset, "qom-path": self.model.qom.chip_path("rtc")})

    def _port_opened(self, identifier: str, opened: bool) -> None:
        self.events.emit("VSERPORT_CHANGE", {"open": opened, "id": identifier})

    def request_exit(self, status: int) -> None:
        """The guest ends the process with an exit status."""
        self.lifecycle.request_exit(status)

    # ---- MachineControl

    @property
    def name(self) -> str | None:
        """The name that the user gave the machine."""
        return self.config.name

    @property
    def uuid(self) -> str:
        """The machine's UUID in lower case."""
        return (self.config.uuid or _NO_UUID).lower()

    @property
    def initialized(self) -> bool:
        """Whether the machine exists; not while `-preconfig` waits for `x-exit-preconfig`."""
        return self._complete

    @property
    def plugger(self) -> Plugger:
        """What plugs devices in."""
        return self._plugger

    @property
    def tables(self) -> Tables:
        """What firmware tells the guest of the machine."""
        return self._boot.tables

    @property
    def run_state(self) -> RunState:
        """The present run state."""
        return self.lifecycle.states.state

    @property
    def single_step(self) -> bool:
        """Whether each vCPU runs one instruction at a time."""
        return self.cpus.single_instructions

    @property
    def needs_reset(self) -> bool:
        """Whether the guest can go on only after a reset."""
        return self.lifecycle.states.needs_reset

    def vm_stop(self, state: RunState) -> None:
        """Stop the guest and enter `state`."""
        self.lifecycle.vm_stop(state)

    def vm_start(self) -> None:
        """Let the guest run."""
        if "migrations" in vars(self):
            self.migrations.before_start()
        self.lifecycle.vm_start()

    def reset(self, cause: ShutdownCause = ShutdownCause.NONE) -> None:
        """Reset the machine."""
        self.lifecycle.reset(cause)

    def powerdown(self) -> None:
        """Press the power button; POWERDOWN is sent."""
        self.lifecycle.powerdown()

    def quit(self, cause: ShutdownCause) -> None:
        """End the machine."""
        self.lifecycle.quit(cause)
        self.storage.end_exports()
        self.storage.end_jobs()

    @property
    def wakeup_supported(self) -> bool:
        """Whether the machine can be woken from suspend-to-RAM."""
        return self.config.board.type != "none"

    def wakeup(self) -> None:
        """Wake the guest from suspend-to-RAM."""
        self.lifecycle.wakeup()

    def inject_nmi(self) -> None:
        """Press the NMI button."""
        self.board.nmi()

    def set_actions(self, **actions: str) -> None:
        """Set what follows `reboot`, `shutdown`, `panic` and `watchdog`, as `-action` does."""
        for name, action in actions.items():
            setattr(self.config.actions, name, action)

    def set_boot_order(self, letters: str) -> None:
        """Boot from these drives, as `-boot order=` names them, from the next reset on."""
        self._boot.set_order(letters)

    def _listens_to_input(self) -> bool:
        return self.run_state in (RunState.RUNNING, RunState.SUSPENDED)

    def _woken_by_input(self) -> None:
        if self.run_state is RunState.SUSPENDED:
            self.wakeup()

    @property
    def balloon(self) -> Balloon | None:
        """The memory balloon, or None."""
        return self._plugger.plugged.balloon if self._complete else None

    def displays(self) -> Sequence[Vga]:
        """Return the display adapters, the primary one first."""
        display = self._plugger.plugged.display if self._complete else None
        return [] if display is None else [display.vga]

    def set_vnc_password(self, display: str | None, password: str) -> bool:
        """Set the password of a VNC display, by default the first; return whether there is one to set."""
        return self.vnc is not None and self.vnc.set_password(display, password)

    def expire_vnc_password(self, display: str | None, when: int) -> bool:
        """Let the password end at `when`, in seconds since the epoch; return whether there is such a display."""
        return self.vnc is not None and self.vnc.expire_password(display, when)

    def add_vnc_client(self, fd: int, skip_authentication: bool) -> None:
        """Serve the viewer on `fd`, which is closed where there is no VNC display."""
        if self.vnc is None:
            os.close(fd)
        else:
            self.vnc.add_client(fd, trusted=skip_authentication)

    def find_device(self, name: str) -> object | None:
        """Return the device that the user gave the ID `name`, None where there is none."""
        return self._plugger.plugged.identifiers.get(name) if self._complete else None

    # ---- Running

    def start(self) -> None:
        """Run the main loop in a thread of its own; returns at once."""
        self._thread = threading.Thread(target=self.run, name="main-loop", daemon=True)
        self._thread.start()

    def run(self) -> int:
        """Run the main loop in this thread until the machine ends; return the exit status."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_GIL_SWITCH_SECONDS)
        try:
            self.mainloop.call_soon(self.begin)
            self.mainloop.run()
        finally:
            sys.setswitchinterval(interval)
            self.close()
        return self.lifecycle.exit_status

    def begin(self) -> None:
        """Let the guest run, unless it is to wait."""
        waits = self.config.start_paused or self.config.incoming is not None
        if self._complete and not waits and self.autostart:
            self.vm_start()
            if self.snapshot is not None:
                from pyvm.machine.saved.arrival import announce

                announce(self)

    def stop(self) -> None:
        """End the machine and wait until it has ended; from any thread but its own."""
        with suppress(RuntimeError):  # the loop is closed where the machine has ended already
            self.mainloop.call_soon(self.quit, ShutdownCause.HOST_QMP_QUIT)
        self.wait(None)

    def wait(self, timeout: float | None) -> bool:
        """Wait until the machine that :meth:`start` started has ended; say whether it has within `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
            return not self._thread.is_alive()
        return self.lifecycle.ended

    def close(self) -> None:
        """Give back all host resources; the machine must not be running."""
        self._resources.close()

    def handle_signals(self) -> None:
        """Let SIGINT, SIGTERM and SIGHUP end the machine; in the main thread only."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.mainloop.loop.add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: int) -> None:
        self.quit(ShutdownCause.HOST_SIGNAL)
        with suppress(OSError):  # the terminal may be what has gone
            print(f"pyvm: terminating on signal {number}", file=sys.stderr)


def run(config: MachineConfig) -> int:
    """Make the machine, run it to its end in this thread, and return the exit status; raises ConfigError."""
    pc = Pc(config)
    pc.handle_signals()
    config.ready()
    gc.freeze()  # what is there by now stays: it need not be looked at again and again
    gc.enable()
    return pc.run()
