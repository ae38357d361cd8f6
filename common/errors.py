"""Exit codes, signals and the one-line errors that a user sees.

0 done, 1 failed run, 2 bad input or missing data, 130 / 143 interrupted by Ctrl-C / SIGTERM.
"""
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType


PLACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


class InputError(Exception):
    """Bad input or missing data; the message is one line that says what is wrong and how to mend it (exit 2)."""


class RunError(Exception):
    """A run that cannot go on; the message is one line that says why (exit 1)."""


class Interrupted(BaseException):
    """A signal that ends the program; `signum` is SIGINT or SIGTERM (exit 128 + signum)."""

    def __init__(self, signum: int, where: str = "") -> None:
        super().__init__(where)
        self.signum = signum


def reason(error: Exception) -> str:
    """What a library's exception says, cut to its first line and 120 characters; its type where it says nothing."""
    return str(error).strip().split("\n")[0].rstrip(":")[:120] or type(error).__name__


class _Signals:
    """The one signal a `deferred_signals` block holds back."""

    deferred = False
    pending: int | None = None


def _on_signal(signum: int, frame: FrameType | None) -> None:
    """Hold the first signal back inside `deferred_signals`; raise in every other case."""
    if _Signals.deferred and _Signals.pending is None:
        _Signals.pending = signum
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)
        return
    raise Interrupted(signum)


@contextlib.contextmanager
def deferred_signals() -> Iterator[Callable[[str], None]]:
    """Yields `check(where)`, which raises `Interrupted` if Ctrl-C or SIGTERM came since the block began.

    Inside the block the first signal waits for the next `check`, so that a training step is never cut in half;
    a second signal stops at once.
    """
    def check(where: str) -> None:
        if _Signals.pending is not None:
            raise Interrupted(_Signals.pending, where)

    outer, _Signals.deferred = _Signals.deferred, True
    try:
        yield check
    finally:
        _Signals.deferred, _Signals.pending = outer, None


def run_script(main: Callable[[], int | None]) -> None:
    """Exits with what `main` returns (None is 0), each expected failure being one line on stderr and its exit code."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _on_signal)
    name = os.path.basename(sys.argv[0])
    try:
        code = main() or 0
    except InputError as error:
        code, message = 2, str(error)
    except RunError as error:
        code, message = 1, str(error)
    except Interrupted as stop:
        code, message = 128 + stop.signum, f"interrupted {stop}".rstrip()
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        code, message = 1, f"{error.filename or 'a file'}: {error.strerror}; free some space or choose another place with --out"
    else:
        message = ""
    if message:
        print(f"{name}: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
