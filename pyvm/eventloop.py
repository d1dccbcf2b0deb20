"""The event loop: calls back when descriptors are ready, when times have come, and soon.

It is as much of asyncio's event loop as pyvm needs, and with asyncio's names.  To import asyncio takes a fifth of the
time in which a machine starts, and few machines ever run a coroutine.  The first one brings asyncio: its tasks and
futures then run on this loop as they would on its own.
"""

from __future__ import annotations

import heapq
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import Context

_Result = TypeVar("_Result")
ExceptionHandler = Callable[["EventLoop", dict[str, Any]], object]

_WAKE_BYTES = 4096
_FEW_TIMERS = 64


class Handle:
    """A call that is to be made; it can be cancelled."""

    __slots__ = ("_cancelled", "args", "callback", "context")

    def __init__(self, callback: Callable[..., object], args: tuple[object, ...], context: Context | None) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self._cancelled = False

    def cancel(self) -> None:
        """Let the call not be made."""
        self._cancelled = True

    def cancelled(self) -> bool:
        """Return whether :meth:`cancel` was called."""
        return self._cancelled

    def call(self) -> None:
        """Make the call, in the context of the task that asked for it."""
        if self.context is None:
            self.callback(*self.args)
        else:
            self.context.run(self.callback, *self.args)


class EventLoop:
    """An event loop that holds a lock while it runs, and not while it sleeps.

    Where nothing else is said, methods are called with the lock held, from whichever thread.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._timer_limit = _FEW_TIMERS
        self._numbers = count()
        self._readers: dict[int, Handle] = {}
        self._writers: dict[int, Handle] = {}
        self._stopping = False
        self._closed = False
        self._thread: int | None = None
        self._has_tasks = False
        self._executor: ThreadPoolExecutor | None = None
        self._signals: list[int] = []
        self._exception_handler: ExceptionHandler | None = None
        self._epoll = select.epoll()
        self._wake_input, output = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # An object, not a number: whoever wakes the loop just as it is closed must not write to another file.
        self._wake_output = io.FileIO(output, "wb")
        self.add_reader(self._wake_input, self._woken)

    # ---- Life

    def run_forever(self) -> None:
        """Run until :meth:`stop`, in the calling thread."""
        self._check_open()
        self._thread = threading.get_ident()
        if self._has_tasks:
            _lead_tasks(self)
        try:
            while True:
                self._run_once()
                if self._stopping:
                    break
        finally:
            self._stopping = False
            self._thread = None
            if self._has_tasks:
                _lead_tasks(None)

    def run_until_complete(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Run until a coroutine has ended; return what it returns."""
        task = self.create_task(coroutine)
        task.add_done_callback(lambda _: self.stop())
        self.run_forever()
        return task.result()

    def stop(self) -> None:
        """Let :meth:`run_forever` return when what is ready now has been called; in the loop's thread."""
        self._stopping = True

    def is_running(self) -> bool:
        """Return whether some thread is in :meth:`run_forever`."""
        return self._thread is not None

    def is_closed(self) -> bool:
        """Return whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """Give everything back, after :meth:`run_forever` has returned; calls that wait are never made."""
        if self._closed:
            return
        self._closed = True
        self._restore_signals()
        self._ready.clear()
        self._timers.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=False)
        self._epoll.close()
        os.close(self._wake_input)
        self._wake_output.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("Event loop is closed")

    # ---- One turn

    def _run_once(self) -> None:
        """Sleep until there is something to do, and do it."""
        for fd, mask in self._sleep():
            # As in select.poll(), who watches for one direction is told about errors in any case.
            if mask & ~select.EPOLLOUT and (reader := self._readers.get(fd)) is not None:
                self._ready.append(reader)
            if mask & ~select.EPOLLIN and (writer := self._writers.get(fd)) is not None:
                self._ready.append(writer)
        self._expire(self.time())
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                self._call(handle)

    def _sleep(self) -> list[tuple[int, int]]:
        """Return which descriptors are ready, as soon as there are any or something else is to be done."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        timeout: float | None = None
        if self._ready or self._stopping:
            timeout = 0
        elif timers:
            timeout = max(timers[0][0] - self.time(), 0)
        self._lock.release()
        try:
            return self._epoll.poll(timeout)
        finally:
            self._lock.acquire()

    def _expire(self, now: float) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now:
            self._ready.append(heapq.heappop(timers)[2])

    def _call(self, handle: Handle) -> None:
        try:
            handle.call()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever fails, the loop goes on
            self.call_exception_handler({"message": f"Exception in callback {handle.callback!r}", "exception": error})

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Tell of a call that failed."""
        if self._exception_handler is not None:
            self._exception_handler(self, context)
            return
        from traceback import print_exception

        print(context.get("message"), file=sys.stderr)
        if isinstance(error := context.get("exception"), BaseException):
            print_exception(error)

    def set_exception_handler(self, handler: ExceptionHandler | None) -> None:
        """Have calls that fail told to `handler`, and not on the standard error output."""
        self._exception_handler = handler

    # ---- Calls

    def time(self) -> float:
        """Return the time by which the loop goes, in s."""
        return time.monotonic()

    def call_soon(self, callback: Callable[..., object], *args: object, context: Context | None = None) -> Handle:
        """Call back in the next turn; in the loop's thread."""
        handle = Handle(callback, args, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> Handle:
        """Call back in the next turn; from any thread, with or without the lock."""
        self._check_open()
        handle = self.call_soon(callback, *args, context=context)
        try:
            self._wake_output.write(b"\0")  # which does nothing where so many have woken it already
        except ValueError:
            self._check_open()
        return handle

    def _woken(self) -> None:
        os.read(self._wake_input, _WAKE_BYTES)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> Handle:
        """Call back in `delay` s; in the loop's thread."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> Handle:
        """Call back at a time of :meth:`time`; in the loop's thread."""
        handle = Handle(callback, args, context)
        if len(self._timers) >= self._timer_limit:
            self._timers = [timer for timer in self._timers if not timer[2].cancelled()]
            heapq.heapify(self._timers)
            self._timer_limit = max(2 * len(self._timers), _FEW_TIMERS)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    # ---- Descriptors

    def add_reader(self, fd: int, callback: Callable[..., object], *args: object) -> None:
        """Call back whenever `fd` can be read.  Raises OSError."""
        self._watch(self._readers, fd, Handle(callback, args, None))

    def remove_reader(self, fd: int) -> bool:
        """End :meth:`add_reader`; return whether there was something to end."""
        return self._unwatch(self._readers, fd)

    def add_writer(self, fd: int, callback: Callable[..., object], *args: object) -> None:
        """Call back whenever `fd` can be written.  Raises OSError."""
        self._watch(self._writers, fd, Handle(callback, args, None))

    def remove_writer(self, fd: int) -> bool:
        """End :meth:`add_writer`; return whether there was something to end."""
        return self._unwatch(self._writers, fd)

    def _mask(self, fd: int) -> int:
        return (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)

    def _watch(self, watchers: dict[int, Handle], fd: int, handle: Handle) -> None:
        self._check_open()
        before, known = self._mask(fd), watchers.get(fd)
        watchers[fd] = handle
        try:
            if not before:
                self._epoll.register(fd, self._mask(fd))
            elif known is None:
                self._epoll.modify(fd, self._mask(fd))
        except OSError:
            del watchers[fd]
            raise
        if known is not None:
            known.cancel()

    def _unwatch(self, watchers: dict[int, Handle], fd: int) -> bool:
        handle = watchers.pop(fd, None)
        if handle is None:
            return False
        handle.cancel()
        if not self._closed:
            mask = self._mask(fd)
            with suppress(OSError):  # it may have been closed already, and the kernel has let it go then
                if mask:
                    self._epoll.modify(fd, mask)
                else:
                    self._epoll.unregister(fd)
        return True

    # ---- Signals

    def add_signal_handler(self, number: int, callback: Callable[..., object], *args: object) -> None:
        """Call back when the process gets a signal; in the main thread only, which is the loop's."""
        import signal

        # The byte that Python writes there is what ends the loop's sleep; it calls the handler in the main thread then.
        signal.set_wakeup_fd(self._wake_output.fileno(), warn_on_full_buffer=False)
        signal.signal(number, lambda *_: self.call_soon(callback, *args))
        signal.siginterrupt(number, False)
        self._signals.append(number)

    def _restore_signals(self) -> None:
        if not self._signals:
            return
        import signal

        signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    # ---- Coroutines

    def create_task(self, coroutine: Coroutine[Any, Any, _Result], **options: Any) -> asyncio.Task[_Result]:
        """Return a task of asyncio that runs a coroutine on this loop."""
        import asyncio

        self._begin_tasks()
        return asyncio.Task(coroutine, loop=self._as_asyncio(), **options)

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of asyncio for the tasks of this loop."""
        import asyncio

        return asyncio.Future(loop=self._as_asyncio())

    def run_in_executor(
        self, executor: ThreadPoolExecutor | None, function: Callable[..., _Result], *args: Any
    ) -> asyncio.Future[_Result]:
        """Return the future of a call in a thread, without the lock: one of `executor`, or of the loop's own."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        if executor is None:
            executor = self._executor = self._executor or ThreadPoolExecutor(thread_name_prefix="loop")
        return asyncio.wrap_future(executor.submit(function, *args), loop=self._as_asyncio())

    def get_debug(self) -> bool:
        """Return False; asyncio asks whether it is to look for mistakes."""
        return False

    def _begin_tasks(self) -> None:
        if not self._has_tasks:
            self._has_tasks = True
            if self.is_running():
                self.call_soon_threadsafe(_lead_tasks, self)  # before the first task runs

    def _as_asyncio(self) -> asyncio.AbstractEventLoop:
        """Return the loop itself: it has what tasks and futures call."""
        loop: Any = self
        return loop  # type: ignore[no-any-return]


def _lead_tasks(loop: Any) -> None:
    """Let `loop` be the one that asyncio.get_running_loop() returns in this thread."""
    from asyncio import _set_running_loop

    _set_running_loop(loop)
