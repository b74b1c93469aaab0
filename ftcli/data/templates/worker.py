"""A forked process that renders chat templates within limits of time and memory.

Templates come with models, which strangers made. transformers' sandbox protects the machine, but
sets no limits: here the system ends the process if a rendering takes too long, and refuses it more
memory than the limit.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe
from threading import Lock
from typing import NoReturn

from ftcli.data.example import Message
from ftcli.data.templates.render import ChatTemplate, Refused, Rendered
from ftcli.data.templates.writing import TooLargeError

# CPU time of one rendering: a conversation takes 0.02 ms, one of 10,000 turns 0.1 s.
SECONDS = 2.0
# On top of the memory of the process when it is forked; enforced on Linux only.
MEMORY_BYTES = 500_000_000
TEMPLATES_KEPT = 32

Outcome = Rendered | Refused
Request = tuple[bytes, Sequence[Sequence[Message]], bool]


class LimitError(Exception):
    """The template exceeds a limit; the message continues a sentence that begins with its name."""


def render(
    template: ChatTemplate, conversations: Sequence[Sequence[Message]], *, prompt: bool = False
) -> list[Outcome]:
    """`ChatTemplate.render` of each conversation; raises LimitError."""
    (outcomes,) = render_batches(template, [conversations], prompt=prompt)
    return outcomes


def render_batches(
    template: ChatTemplate,
    batches: Iterable[Sequence[Sequence[Message]]],
    *,
    prompt: bool = False,
) -> Iterator[list[Outcome]]:
    """As `render`, batch by batch; the next batch is rendered while this one is used."""
    pickled = pickle.dumps(template)
    ahead: _Task | None = None
    for batch in batches:
        outcomes = None if ahead is None else ahead.result()
        ahead = _Task(template.seconds, (pickled, batch, prompt))
        if outcomes is not None:
            yield outcomes
    if ahead is not None:
        yield ahead.result()


class _Task:
    """A request to the worker, which handles one at a time."""

    def __init__(self, seconds: float, request: Request) -> None:
        self._seconds = seconds
        self._answer: list[Outcome] | Exception | None = None
        with _lock:
            waiting = _Worker.running().task
            if waiting is not None:
                waiting._receive()
            self._worker = _Worker.running()
            self._worker.task = self
            self._worker.send(request)

    def result(self) -> list[Outcome]:
        """The rendered batch; raises LimitError."""
        with _lock:
            if self._answer is None:
                self._receive()
        if isinstance(self._answer, Exception):
            raise self._answer
        assert self._answer is not None
        return self._answer

    def _receive(self) -> None:
        self._answer = self._worker.receive(self._seconds)
        self._worker.task = None


class _Worker:
    """The worker process, seen from its parent."""

    current: _Worker | None = None

    def __init__(self) -> None:
        # Pipes, not sockets: a process may be forbidden to open sockets.
        requests, self._requests = Pipe(duplex=False)
        self._answers, answers = Pipe(duplex=False)
        self.task: _Task | None = None
        self._owner = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            _work(requests, answers, self._owner)
        requests.close()
        answers.close()

    @classmethod
    def running(cls) -> _Worker:
        """The worker of this process; a fork of this process gets its own."""
        if cls.current is None or cls.current._owner != os.getpid():
            cls.current = cls()
        return cls.current

    def send(self, request: Request) -> None:
        # That a worker has ended shows when its answer is read.
        with suppress(BrokenPipeError):
            self._requests.send(request)

    def receive(self, seconds: float) -> list[Outcome] | Exception:
        """The next answer, or the limit that ended the worker."""
        try:
            answer: list[Outcome] | Exception = self._answers.recv()
        except (EOFError, ConnectionResetError):
            return LimitError(self._end(seconds))
        except BaseException:  # Ctrl-C: else the next request would get this answer
            self._end(seconds)
            raise
        if isinstance(answer, Exception):
            self._end(seconds)  # it has little memory left
        return answer

    def _end(self, seconds: float) -> str:
        """End the process; returns what ended it, as a message."""
        _Worker.current = None
        self._requests.close()
        self._answers.close()
        os.kill(self._pid, signal.SIGKILL)  # no effect if it has ended by itself
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if code == -signal.SIGPROF:
            return f"runs for more than {seconds:g} s"
        name = signal.Signals(-code).name if code < 0 else code
        return f"ends the process that renders it ({name})"


_lock = Lock()


def _work(requests: Connection, answers: Connection, owner: int) -> NoReturn:
    """In the forked process: answer requests until the pipe is closed, then exit."""
    try:
        _isolate({requests.fileno(), answers.fileno()})
        if sys.platform == "linux":
            _limit_memory()
        while True:
            try:
                answer = _answer(owner, *requests.recv())
                answers.send(answer)
            except (MemoryError, SystemError):  # Python 3.11 may lose a MemoryError
                answer = None
                answers.send(LimitError(f"takes more than {MEMORY_BYTES / 1e6:.0f} MB"))
            except EOFError:
                break
            except Exception:  # noqa: BLE001 - a fault of ftcli, raised in the other process
                answers.send(RuntimeError(traceback.format_exc()))
    finally:
        os._exit(0)


def _answer(
    owner: int, pickled: bytes, conversations: Sequence[Sequence[Message]], prompt: bool
) -> list[Outcome] | Exception:
    template = _template(pickled)
    outcomes = []
    try:
        for messages in conversations:
            if os.getppid() != owner:  # the parent has ended
                os._exit(0)
            outcomes.append(template.render(messages, prompt=prompt))
    except TooLargeError as error:
        return LimitError(str(error))
    return outcomes


@lru_cache(TEMPLATES_KEPT)
def _template(pickled: bytes) -> ChatTemplate:
    """The same object each time, because it caches what it finds."""
    loaded: ChatTemplate = pickle.loads(pickled)
    return loaded


def _isolate(kept: set[int]) -> None:
    """Close the parent's files, locks and devices, and ignore the signals meant for it."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    gc.freeze()  # else a collected file object would close a reused file number
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    first = 3
    for number in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(first, number)
        first = number + 1


def _limit_memory() -> None:
    """Limit address space to what is used now plus MEMORY_BYTES."""
    import resource  # missing on Windows, where this module is imported too

    with open("/proc/self/statm", encoding="ascii") as sizes:
        pages = int(sizes.read().partition(" ")[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
