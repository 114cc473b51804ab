"""Standard input, output and error of a command: closed ones, full disks, readers that are gone."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from contextlib import suppress
from typing import NoReturn, TextIO

_STANDARD = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_closed_streams() -> None:
    """Occupy closed standard descriptors, so that no other file gets their numbers.

    Writing to a closed standard output then fails as the disk's being full does; a closed standard error is silent.
    """
    for descriptor, (name, mode) in enumerate(_STANDARD):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is given, and lower ones are open by now.
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def output_error() -> OSError | None:
    """Flush standard output; return the error with which that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    except ValueError:  # closed by a library
        return None
    return None


def is_reader_gone() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    if not hasattr(select, "poll"):
        return isinstance(output_error(), BrokenPipeError)
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, io.UnsupportedOperation):
        return False


def discard_output() -> None:
    """Drop what could not be written, so that the interpreter does not try it again at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _fails(stream):
            with suppress(OSError, ValueError):
                os.dup2(null, stream.fileno())
    os.close(null)


def end_by_broken_pipe() -> NoReturn:
    """End as other programs do whose output nobody reads: by the signal SIGPIPE, status 141 in a shell."""
    discard_output()
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    sys.exit(1)


def _fails(stream: TextIO) -> bool:
    try:
        stream.flush()
    except OSError:
        return True
    except ValueError:
        return False
    return False
