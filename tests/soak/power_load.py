"""What the guest does meanwhile: it computes, writes files, and compares what it reads with what it wrote."""

from __future__ import annotations

from benchmarks.agent_machine import PATIENCE, Session

FOLDER = "/root/soak"
SCRIPT = f"""\
cd {FOLDER}
n=0
while [ ! -e stop ]; do
    dd if=/dev/urandom of=data.$1 bs=64k count=32 conv=fsync status=none || exit 1
    sum=$(md5sum < data.$1)
    gzip -1 -c data.$1 > packed.$1
    [ "$(gunzip -c packed.$1 | md5sum)" = "$sum" ] || echo "worker $1: round $n: other data" >> wrong
    n=$((n + 1))
    echo $n > new.$1 && mv new.$1 rounds.$1
done
"""
WORKERS = (1, 2)


class Load:
    """Two processes that never rest, until they are stopped."""

    def __init__(self, machine: Session) -> None:
        self._machine = machine
        machine.shell(f"mkdir -p {FOLDER}")
        machine.agent.write_file(f"{FOLDER}/work.sh", SCRIPT.encode())
        for worker in WORKERS:
            machine.agent.exec("/bin/sh", [f"{FOLDER}/work.sh", str(worker)])
        self.check()

    def rounds(self) -> list[int]:
        """Return how far each process has come."""
        return [int(self._machine.shell(f"cat {FOLDER}/rounds.{worker} 2>/dev/null || echo 0")) for worker in WORKERS]

    def done(self) -> int:
        """Return how often the guest compared something."""
        return sum(self.rounds())

    def check(self) -> None:
        """Wait until each process has done some work; raises AssertionError where one does not, or found wrong data."""
        before = self.rounds()

        def moved() -> bool:
            return all(now > then for now, then in zip(self.rounds(), before, strict=True))

        assert self._machine.until(moved, PATIENCE), f"the guest works no more: {self.rounds()} after {before}"
        wrong = self._machine.shell(f"cat {FOLDER}/wrong 2>/dev/null || true")
        assert not wrong, wrong

    def stop(self) -> None:
        """Let the processes end, and check their work once more."""
        self.check()
        self._machine.shell(f"touch {FOLDER}/stop; while pgrep -f '[w]ork.sh' > /dev/null; do sleep 0.2; done")
