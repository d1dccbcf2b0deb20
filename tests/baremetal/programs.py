"""Builds and runs the bare-metal programs of this directory.

A program is one C file with the kit beside it, linked as a multiboot image.  It prints to the debug console at port
0xe9 and ends by the exit device at port 0xf4.  Lines of its first comment say what it needs: `BITS` (32 or 64),
`OPTIONS` (more command line), `STATUS` (the emulator's exit status; 33 where nothing is said, which means that no
check failed).  What a program prints under QEMU is kept in expected/; no address or time is in it, so that it does
not depend on the compiler or the host.

    python -m tests.baremetal.programs            list the programs
    python -m tests.baremetal.programs NAME...    build these and print the images' paths
    python -m tests.baremetal.programs --record   run all under QEMU and write expected/ anew
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
KIT = HERE / "kit"
PASSED = 33
COMPILE = (
    "-std=gnu11 -O1 -g0 -Wall -Wextra -Werror -ffreestanding -fno-pic -no-pie -fno-stack-protector -mno-red-zone "
    "-mgeneral-regs-only -fno-asynchronous-unwind-tables -fcf-protection=none -fno-strict-aliasing"
).split()
LINK = (
    "-nostdlib -static -Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments"
).split()


@dataclass(frozen=True)
class Program:
    """One program: its source and what the source says of how to run it."""

    name: str
    source: Path
    bits: int
    options: tuple[str, ...]
    status: int

    @property
    def expected(self) -> Path:
        """The file with what QEMU prints for it."""
        return HERE / "expected" / f"{self.name}.txt"


@dataclass(frozen=True)
class Outcome:
    """How a run of a program ended."""

    status: int
    output: str
    messages: str


def _header(text: str, key: str, default: str) -> str:
    found = re.search(rf"^ \* {key}: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else default


def load(source: Path) -> Program:
    """Read what the program's first comment says."""
    text = source.read_text()
    return Program(
        name=source.stem,
        source=source,
        bits=int(_header(text, "BITS", "64")),
        options=tuple(_header(text, "OPTIONS", "").split()),
        status=int(_header(text, "STATUS", str(PASSED))),
    )


def all_programs() -> list[Program]:
    """Return every program of this directory, by name."""
    return [load(source) for source in sorted(HERE.glob("*.c"))]


def compiler() -> str | None:
    """Return a C compiler that makes x86 code, or None."""
    names = ["x86_64-linux-gnu-gcc"]
    if platform.machine() == "x86_64":
        names.append("gcc")
    return next((found for name in names if (found := shutil.which(name))), None)


@cache
def _kit_digest(gcc: str) -> bytes:
    digest = hashlib.sha256(subprocess.run([gcc, "--version"], capture_output=True, check=True).stdout)
    for path in sorted(KIT.iterdir()):
        digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.digest()


def _cache_directory() -> Path:
    base = os.environ.get("PYVM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvm"
    return Path(base) / "baremetal"


def build(program: Program) -> Path:
    """Return the program's multiboot image, building it unless the cache has it."""
    gcc = compiler()
    if gcc is None:
        raise FileNotFoundError("no C compiler for x86-64 (gcc, or x86_64-linux-gnu-gcc on other machines)")
    digest = hashlib.sha256(_kit_digest(gcc) + program.source.read_bytes()).hexdigest()[:16]
    image = _cache_directory() / f"{program.name}-{digest}.elf"
    if image.exists():
        return image
    image.parent.mkdir(parents=True, exist_ok=True)
    work = image.with_suffix(f".{os.getpid()}")
    sources = [str(KIT / f"boot{program.bits}.S"), str(KIT / "kit.c"), str(program.source)]
    command = [gcc, f"-m{program.bits}", *COMPILE, f"-I{HERE}", *LINK, f"-Wl,-T,{KIT / 'link.ld'}", *sources]
    subprocess.run([*command, "-o", str(work)], check=True)
    if program.bits == 64:
        # Multiboot knows 32-bit ELF only; the code in it may be what it likes.
        objcopy = gcc.removesuffix("gcc") + "objcopy"
        subprocess.run([objcopy, "-O", "elf32-i386", str(work)], check=True)
    work.rename(image)
    return image


def run(emulator: list[str], program: Program, directory: Path, seconds: float = 60) -> Outcome:
    """Run `program` under `emulator` (a command line's beginning) until it ends.

    The program's output is collected in `directory`.  TimeoutExpired is raised if it does not end in time; the
    emulator is killed then.
    """
    output = directory / f"{program.name}.out"
    output.unlink(missing_ok=True)
    command = [
        *emulator,
        *("-m", "64", "-nodefaults", "-display", "none", "-kernel", str(build(program))),
        *("-chardev", f"file,path={output},id=out", "-device", "isa-debugcon,iobase=0xe9,chardev=out"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4", *program.options),
    ]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    text = output.read_text(errors="replace") if output.exists() else ""
    return Outcome(done.returncode, text, done.stdout.decode(errors="replace"))


def qemu() -> list[str] | None:
    """Return the beginning of a QEMU command line for comparison, or None where QEMU is not installed."""
    found = shutil.which("qemu-system-x86_64")
    return [found, "-accel", "tcg,thread=single"] if found else None


def _record() -> int:
    import tempfile

    emulator = qemu()
    if emulator is None:
        print("qemu-system-x86_64 is not installed", file=sys.stderr)
        return 1
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        for program in all_programs():
            outcome = run(emulator, program, Path(directory))
            if outcome.status == program.status:
                program.expected.parent.mkdir(exist_ok=True)
                program.expected.write_text(outcome.output)
            else:
                failed += 1
            print(f"{program.name}: {len(outcome.output.splitlines())} lines, status {outcome.status}")
    return int(failed != 0)


def main(arguments: list[str]) -> int:
    """List, build or record, as the module's docstring says."""
    programs = {program.name: program for program in all_programs()}
    if arguments == ["--record"]:
        return _record()
    unknown = [name for name in arguments if name not in programs]
    if unknown:
        print(f"no program of that name: {unknown[0]}", file=sys.stderr)
        return 1
    for name in arguments:
        print(build(programs[name]))
    if not arguments:
        print("\n".join(programs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
