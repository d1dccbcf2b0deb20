"""The processor's registers as a BIOS service sees them, and how a service says what its caller gets back.

A service is entered by `int`, so the flags that its caller will see lie on the stack, in the FLAGS image that `iret`
takes back.  Services do not touch that image: they set :attr:`Registers.carry` and :attr:`Registers.zero`, and the
dispatcher stores them.
"""

from __future__ import annotations

from typing import Self, overload

from pyvm.records import record

MASK8 = 0xFF
MASK16 = 0xFFFF
MASK32 = 0xFFFFFFFF

FLAG_CARRY = 1 << 0
FLAG_FIXED = 1 << 1
FLAG_ZERO = 1 << 6
FLAG_INTERRUPTS = 1 << 9


class _Part:
    """Some bits of a 32-bit register under a name of their own: AX, AL and AH are parts of EAX."""

    def __init__(self, whole: str, shift: int, mask: int) -> None:
        self._whole = whole
        self._shift = shift
        self._mask = mask

    @overload
    def __get__(self, instance: None, owner: type[Registers]) -> Self: ...

    @overload
    def __get__(self, instance: Registers, owner: type[Registers]) -> int: ...

    def __get__(self, instance: Registers | None, owner: type[Registers]) -> int | Self:
        if instance is None:
            return self
        return (int(getattr(instance, self._whole)) >> self._shift) & self._mask

    def __set__(self, instance: Registers, value: int) -> None:
        kept = getattr(instance, self._whole) & ~(self._mask << self._shift)
        setattr(instance, self._whole, kept | (value & self._mask) << self._shift)


def linear(segment: int, offset: int) -> int:
    """Return the address of segment:offset."""
    return ((segment & MASK16) << 4) + (offset & MASK16)


@record
class Registers:
    """The registers that services use; general registers and EIP, EFLAGS as 32-bit values, segments as selectors."""

    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0
    esi: int = 0
    edi: int = 0
    ebp: int = 0
    esp: int = 0
    eip: int = 0
    eflags: int = FLAG_FIXED
    cs: int = 0
    ds: int = 0
    es: int = 0
    ss: int = 0
    carry: bool | None = None
    """What becomes of the caller's carry flag; None leaves it alone."""
    zero: bool | None = None
    """What becomes of the caller's zero flag; None leaves it alone."""
    goto: str | None = None
    """The place in the ROM, by name, where the processor goes on; None: behind the trap."""

    ax = _Part("eax", 0, MASK16)
    bx = _Part("ebx", 0, MASK16)
    cx = _Part("ecx", 0, MASK16)
    dx = _Part("edx", 0, MASK16)
    si = _Part("esi", 0, MASK16)
    di = _Part("edi", 0, MASK16)
    bp = _Part("ebp", 0, MASK16)
    sp = _Part("esp", 0, MASK16)
    ip = _Part("eip", 0, MASK16)
    al = _Part("eax", 0, MASK8)
    bl = _Part("ebx", 0, MASK8)
    cl = _Part("ecx", 0, MASK8)
    dl = _Part("edx", 0, MASK8)
    ah = _Part("eax", 8, MASK8)
    bh = _Part("ebx", 8, MASK8)
    ch = _Part("ecx", 8, MASK8)
    dh = _Part("edx", 8, MASK8)

    def begin(self) -> None:
        """Forget what an earlier service said of flags and of where to go on."""
        self.carry = self.zero = self.goto = None

    def fail(self, status: int) -> None:
        """Return an error in the usual way: its number in AH, and carry."""
        self.ah = status
        self.carry = True

    def succeed(self, status: int = 0) -> None:
        """Return success in the usual way: AH and no carry."""
        self.ah = status
        self.carry = False
