"""Settings of Python, glibc, OpenMP and oneDNN that make a CPU faster; results stay the same.

Torch is imported inside functions: the command line tunes the garbage collector before.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from ftcli.compat import run_exit_functions

if TYPE_CHECKING:
    from ftcli.memory.hardware import Hardware

# Importing torch, transformers, trl and peft makes a million objects, none of them garbage. At the
# default threshold, scanning them takes a quarter of the import time (Python 3.11); at 100,000 it
# still takes 0.2 s. Preparing 20,000 rows takes 10 MB more with this threshold.
RARE_GC_THRESHOLD = 1_000_000
DEFAULT_GC_THRESHOLD = gc.get_threshold()

# oneDNN compiles and caches code for each number of tokens: 40 MB per step if none repeats.
TOKENS_ROUNDED = 32

# malloc.h of glibc
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def start_gc_tuning() -> None:
    """Collect rarely while a command imports its libraries."""
    gc.set_threshold(RARE_GC_THRESHOLD, *DEFAULT_GC_THRESHOLD[1:])


def end_gc_tuning() -> None:
    """Collect as usual from here on, except objects made by the imports.

    Does nothing if `start_gc_tuning` was not called: a program that imports ftcli has its own
    settings.
    """
    if gc.get_threshold()[0] == RARE_GC_THRESHOLD:
        gc.freeze()
        gc.set_threshold(*DEFAULT_GC_THRESHOLD)


def end_process(code: int) -> NoReturn:
    """Exit as Python does, but without freeing all objects, which takes 0.2 to 1.5 s."""
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join()
    run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader is gone, or the stream is closed
            stream.flush()
    os._exit(code)


def tune_cpu(hardware: Hardware) -> None:
    """On a CPU: use all cores of this process, and keep freed memory. On a GPU do nothing.

    Launchers often set one thread. glibc returns large tensors to the system immediately, and every
    operation faults in new pages: 20% to 25% of a forward pass on a virtual machine.
    """
    if hardware.kind != "cpu":
        return
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(hardware.cores)
    # No mmap for large blocks, never trim the heap, grow it in large pieces.
    _set_malloc(mmap_max=0, trim_threshold=-1, top_pad=256 * 2**20)


def return_freed_memory() -> None:
    """Set malloc back to its defaults, and return freed memory to the system.

    Kept memory is fragmented: weights replaced one by one left 1.5 times their size.
    """
    _set_malloc(mmap_max=65_536, trim_threshold=128 * 2**10, top_pad=128 * 2**10)
    trim_heap()


def trim_heap() -> None:
    """Return freed memory to the system once, if the C library is glibc."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _set_malloc(*, mmap_max: int, trim_threshold: int, top_pad: int) -> None:
    """mallopt(3), if the C library is glibc."""
    if (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_MAX, mmap_max)
        libc.mallopt(M_TRIM_THRESHOLD, trim_threshold)
        libc.mallopt(M_TOP_PAD, top_pad)


def _glibc() -> Any | None:
    import ctypes

    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
