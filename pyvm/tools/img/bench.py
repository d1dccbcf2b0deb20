"""``pyvm-img bench``: say how long a number of requests to an image takes."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from pyvm.records import record
from pyvm.sizes import INT64_MAX
from pyvm.tools.img.arguments import scan
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.opening import ImageChoice
from pyvm.tools.img.sizes import parse_integer, parse_size

if TYPE_CHECKING:
    from pyvm.block.node import Node, Pending

_LONG = {
    "object": "object=",
    "image-opts": "image-opts",
    "force-share": "U",
    "flush-interval": "flush-interval=",
    "pattern": "pattern=",
    "no-drain": "no-drain",
}
_INT_MAX = (1 << 31) - 1


@record(frozen=True)
class _Run:
    """What is sent."""

    count: int
    size: int
    step: int
    offset: int
    flush_interval: int
    write: bool
    write_through: bool
    pattern: int


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "hc:d:f:ni:o:qs:S:t:wU", _LONG)
    count = parse_integer(arguments.get("c") or "75000", "Invalid request count specified")
    depth = parse_integer(arguments.get("d") or "64", "Invalid queue depth specified", 1)
    aio = arguments.get("i")
    if aio not in (None, "threads", "native", "io_uring"):
        raise ImgError(f"Invalid aio option: {aio}")
    offset = parse_size("offset", arguments.get("o") or "0")
    size = parse_size("buffer size", arguments.get("s") or "4096", 0, _INT_MAX)
    step = parse_size("step_size", arguments.get("S") or "0", 0, _INT_MAX) or size
    flush_interval = parse_integer(arguments.get("flush-interval") or "0", "Invalid flush interval specified")
    pattern = parse_integer(arguments.get("pattern") or "0", "Invalid pattern byte specified", 0, 255)
    write = "w" in arguments
    cache = arguments.cache("t", "writeback", "Invalid cache mode")
    filename = arguments.operand()
    if not write and flush_interval:
        raise ImgError("--flush-interval is only available in write tests")
    if flush_interval and flush_interval < depth:
        raise ImgError("Flush interval can't be smaller than depth")
    if "n" in arguments and aio is None:
        aio = "native"
    arguments.add_objects()
    node = ImageChoice.of(arguments).open(filename, writable=write, cache=cache, quiet="q" in arguments, aio=aio)
    plan = _Run(count, size, step, offset, flush_interval, write, not cache.writeback, pattern)
    try:
        if node.size < 1:
            raise ImgError("Image is empty")
        _announce(plan, depth)
        began = time.monotonic()
        _send(node, plan, depth)
        print(f"Run completed in {time.monotonic() - began:3.3f} seconds.")
    finally:
        node.release()
    return 0


def _announce(plan: _Run, depth: int) -> None:
    kind = "write" if plan.write else "read"
    print(
        f"Sending {plan.count} {kind} requests, {plan.size} bytes each, {depth} in parallel (starting at offset"
        f" {plan.offset}, step size {plan.step})"
    )
    if plan.flush_interval:
        print(f"Sending flush every {plan.flush_interval} requests")


def _send(node: Node, plan: _Run, depth: int) -> None:
    """Send the requests: one after the other, or up to `depth` at a time where others do the work."""
    buffer = memoryview(bytearray([plan.pattern]) * plan.size)
    send, start = (node.writev, node.start_writev) if plan.write else (node.readv, node.start_readv)
    on_the_way: deque[Pending] = deque()

    def wait(most: int) -> None:
        while len(on_the_way) > most:
            on_the_way.popleft().wait()

    offset, end = plan.offset, node.size
    try:
        for number in range(1, plan.count + 1):
            wait(depth - 1)
            begun = start(offset, (buffer,))
            if begun is None:
                send(offset, (buffer,))
            else:
                on_the_way.append(begun)
            if plan.write and (plan.write_through or (plan.flush_interval and number % plan.flush_interval == 0)):
                wait(0)
                node.flush()
            offset += plan.step
            if end <= offset < INT64_MAX:
                offset %= end
        wait(0)
    except OSError as error:
        raise ImgError(f"Failed request: {error.strerror}") from None
