"""Subjects of `info`."""

from __future__ import annotations

from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

INFORMATION = CommandTable()


@INFORMATION.command("version", description="show the version of QEMU", preconfig=True)
def version(shell: Shell) -> str:
    """Show the version of QEMU that this is like, and pyvm's own."""
    info = shell.qmp("query-version")
    numbers = info["qemu"]
    return f"{numbers['major']}.{numbers['minor']}.{numbers['micro']} ({info['package']})\n"


@INFORMATION.command("status", description="show the current VM status (running|paused)", preconfig=True)
def status(shell: Shell) -> str:
    """Show the run state."""
    info = shell.qmp("query-status")
    text = "running" if info["running"] else "paused"
    if info["singlestep"]:
        text += " (single step mode)"
    if not info["running"] and info["status"] != "paused":
        text += f" ({info['status']})"
    return f"VM status: {text}\n"


@INFORMATION.command("name", description="show the current VM name", preconfig=True)
def name(shell: Shell) -> str:
    """Show the machine's name, where it has one."""
    info = shell.qmp("query-name")
    return f"{info['name']}\n" if "name" in info else ""


@INFORMATION.command("uuid", description="show the current VM UUID", preconfig=True)
def uuid(shell: Shell) -> str:
    """Show the machine's UUID."""
    return f"{shell.qmp('query-uuid')['UUID']}\n"


@INFORMATION.command("kvm", description="show KVM information")
def kvm(shell: Shell) -> str:
    """Show whether KVM runs the guest."""
    info = shell.qmp("query-kvm")
    text = "not compiled" if not info["present"] else "enabled" if info["enabled"] else "disabled"
    return f"kvm support: {text}\n"


@INFORMATION.command("cpus", description="show infos for each CPU")
def cpus(shell: Shell) -> str:
    """Show the vCPUs, with a mark at the one that commands are about."""
    return "".join(
        f"{'*' if vcpu['cpu-index'] == shell.state.cpu else ' '} "
        f"CPU #{vcpu['cpu-index']}: thread_id={vcpu['thread-id']}\n"
        for vcpu in shell.qmp("query-cpus-fast")
    )


@INFORMATION.command("chardev", description="show the character devices", preconfig=True)
def chardev(shell: Shell) -> str:
    """Show the character devices."""
    return "".join(f"{info['label']}: filename={info['filename']}\n" for info in shell.qmp("query-chardev"))


@INFORMATION.command("balloon", description="show balloon information")
def balloon(shell: Shell) -> str:
    """Show how much memory the guest has, in MiB."""
    return f"balloon: actual={shell.qmp('query-balloon')['actual'] >> 20}\n"


@INFORMATION.command("history", description="show the command line history", preconfig=True)
def history(shell: Shell) -> str:
    """Show the lines that were entered in this monitor."""
    return "".join(f"{number}: '{line}'\n" for number, line in enumerate(shell.state.history))


# ---- The hardware, which QMP does not show


@INFORMATION.command(
    "registers",
    "-a vcpu:uint32?",
    parameters="[-a|vcpu]",
    description="show the cpu registers (-a: show register info for all cpus; vcpu: specific vCPU to query; show the "
    "current CPU's registers if no argument is specified)",
)
def registers(shell: Shell, a: bool, vcpu: int | None) -> str:
    """Show the registers of one vCPU or of all."""
    from pyvm.monitor.hmp.hardware import cpu_states
    from pyvm.monitor.hmp.registers import show

    if a:
        return "".join(f"\nCPU#{index}\n{show(state)}" for index, state in cpu_states(shell.machine).items())
    index = shell.state.cpu if vcpu is None else vcpu
    state = cpu_states(shell.machine, index).get(index)
    if state is None:
        return "No CPU available\n" if vcpu is None else f"CPU#{index} not available\n"
    return f"\nCPU#{index}\n{show(state)}"


@INFORMATION.command(
    "lapic",
    "apic_id:uint32?",
    parameters="[apic-id]",
    description="show local apic state (apic-id: local apic to read, default is which of current CPU)",
)
def lapic(shell: Shell, apic_id: int | None) -> str:
    """Show a local APIC."""
    from pyvm.monitor.hmp.hardware import inspect
    from pyvm.monitor.hmp.interrupts import show_lapic

    chips = inspect(shell.machine).board.lapics
    if apic_id is None:
        index: int | None = shell.state.cpu
    else:
        index = next((place for place, chip in chips.items() if chip.apic_id == apic_id), None)
    if index is None or index not in chips:
        return "No CPU available\n"
    return show_lapic(index, chips[index])


@INFORMATION.command("pic", description="show PIC state")
def pic(shell: Shell) -> str:
    """Show the I/O APIC and the pair of PICs."""
    from pyvm.monitor.hmp.hardware import inspect
    from pyvm.monitor.hmp.interrupts import show_ioapic, show_pics

    board = inspect(shell.machine).board
    return show_ioapic(board.ioapic.save()) + show_pics(board.pic.save())


@INFORMATION.command(
    "mtree",
    "-f -D",
    parameters="[-f][-D]",
    description="show memory tree (-f: what is in the end at each address; -D: disabled regions, too: there are none)",
)
def mtree(shell: Shell, f: bool, D: bool) -> str:  # noqa: N803 - the name of the option
    """Show what is where in the memory and port spaces."""
    from pyvm.monitor.hmp.hardware import inspect, show_flat, show_spaces

    board = inspect(shell.machine).board
    return show_flat(board) if f else show_spaces(board)
