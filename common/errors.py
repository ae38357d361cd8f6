"""Exit codes, signals, the terminal, and the one-line errors that a user sees.

0 done, 1 failed run, 2 bad input or missing data, 130 / 143 / 129 interrupted by Ctrl-C / SIGTERM /
the terminal's end.
"""
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # nothing can be written there


class InputError(Exception):
    """Bad input or missing data; the message is one line that says what is wrong and how to mend
    it (exit 2)."""

    code = 2


class RunError(Exception):
    """A run that cannot go on; the message is one line that says why (exit 1)."""

    code = 1


class Interrupted(BaseException):
    """A signal that ends the program; `signum` says which (exit 128 + signum)."""

    def __init__(self, signum: int, where: str = "") -> None:
        super().__init__(f"interrupted {where}".rstrip())
        self.signum, self.code = signum, 128 + signum


def reason(error: Exception) -> str:
    """What a library's exception says, cut to its first line and 120 characters; its type where
    it says nothing."""
    first = str(error).strip().split("\n")[0]
    return first.rstrip(":")[:120] or type(error).__name__


class _Signals:
    """Whether a `deferred_signals` block holds the first signal back, and the one that it holds."""

    deferred = False
    pending: int | None = None


def _on_signal(signum: int, frame: FrameType | None) -> None:
    """Hold the first signal back inside `deferred_signals`; raise in every other case."""
    if not _Signals.deferred or _Signals.pending is not None:
        raise Interrupted(signum)
    _Signals.pending = signum
    with suppress(OSError, AttributeError):  # there may be no terminal
        # Not print: this may interrupt one.
        os.write(sys.stderr.fileno(), b"\nstopping after this step; once more to stop at once\n")


def _catch_signals() -> None:
    """Turn Ctrl-C, SIGTERM and the terminal's end into `Interrupted`."""
    hangup = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
    if signal.getsignal(hangup) != signal.SIG_IGN:  # nohup
        signal.signal(hangup, _on_signal)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _on_signal)


@contextmanager
def deferred_signals() -> Iterator[Callable[[str], None]]:
    """Yields `check(where)`, which raises `Interrupted` if a signal came since the block began.

    Inside the block the first signal waits for the next `check`, so that a training step is never
    cut in half. A second one leaves as soon as Python has control, at the end of the operator that
    runs.
    """
    def check(where: str) -> None:
        if _Signals.pending is not None:
            raise Interrupted(_Signals.pending, where)

    outer, _Signals.deferred = _Signals.deferred, True
    try:
        yield check
        check("")
    finally:
        _Signals.deferred, _Signals.pending = outer, None


def _outcome(main: Callable[[], int | None]) -> tuple[int, str]:
    """(exit code, what to say on stderr) of a script."""
    try:
        code = main() or 0
        print(end="", flush=True)  # a closed pipe may only show now
        return code, ""
    except (InputError, RunError, Interrupted) as error:
        return error.code, str(error)
    except SystemExit as stop:  # of --help or a refused flag, which has said its line
        return stop.code, ""
    except BrokenPipeError:  # whoever read the output has left, as `| head` does
        return 1, ""
    except OSError as error:
        remedy = "check the path and its permissions, or name another place"
        if error.errno in FULL:
            remedy = "free some space, or choose another place with --out"
        elif error.filename is None:
            raise  # not about a place, so a bug
        return 1, f"{error.filename or 'a file'}: {error.strerror}; {remedy}"


def run_script(main: Callable[[], int | None]) -> None:
    """Exits with what `main` returns (None is 0), each expected failure being one line on stderr
    and its exit code; no encoding of the terminal and no closed pipe makes a traceback."""
    _catch_signals()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    code, message = _outcome(main)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to save
    if message:
        line = " ".join(message.splitlines())
        with suppress(OSError):
            print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr, flush=True)
    try:
        print(end="", flush=True)
    except OSError:  # else Python's own flush at the end complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
