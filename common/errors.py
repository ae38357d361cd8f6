"""Exit codes, signals, the terminal, and the one-line errors that a user sees.

0 done, 1 failed run, 2 bad input or missing data, 130 Ctrl-C, 143 SIGTERM, 129 the terminal's end.
"""
import logging
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# The words of Python, the system, torch on either device, CUDA's libraries, OpenCV and C++.
NO_MEMORY = re.compile("MemoryError|allocate memory|out of memory|not enough memory|tried to "
                       "allocate|alloc_failed|insufficient memory|bad_alloc", re.IGNORECASE)


class InputError(Exception):
    """Bad input or missing data; one line says what is wrong and how to mend it (exit 2)."""

    code = 2


class RunError(Exception):
    """A run that cannot go on; one line says why (exit 1)."""

    code = 1


class Interrupted(BaseException):
    """A signal that ends the program (exit 128 + its number); says in which step it came."""

    def __init__(self, signum: int, where: str = "") -> None:
        super().__init__(f"interrupted {where}".rstrip())
        self.code = 128 + signum


def reason(error: Exception) -> str:
    """First line of what a library's exception says, at most 120 characters; or else its type.

    Raises:
        Exception: `error` itself where it is a want of memory, which is no fault of what was read.
    """
    if out_of_memory(error):
        raise error
    first = str(error).strip().split("\n")[0]
    return first.rstrip(":")[:120] or type(error).__name__


def out_of_memory(error: Exception) -> bool:
    """Whether an exception is a want of memory, whoever raised it."""
    return bool(NO_MEMORY.search(repr(error)))


class _Signals:
    """The signal that `deferred_signals` holds back, if any; None outside of its block."""

    held: list[int] | None = None


def _on_signal(signum: int, frame: FrameType | None) -> None:
    """Hold the first signal back inside `deferred_signals`; raise in every other case."""
    if _Signals.held != []:
        raise Interrupted(signum)
    _Signals.held.append(signum)
    with suppress(OSError, AttributeError):  # there may be no terminal
        # Not print: this may interrupt one.
        os.write(sys.stderr.fileno(), b"\nstopping after this step; once more to stop at once\n")


@contextmanager
def deferred_signals() -> Iterator[Callable[[str], None]]:
    """Yields `check(where)`, which raises `Interrupted` if a signal came since the block began.

    Inside the block the first signal waits for the next `check`, so that a training step is never
    cut in half. A second one leaves as soon as Python has control, after the operator that runs.
    """
    def check(where: str) -> None:
        if _Signals.held:
            raise Interrupted(_Signals.held[0], where)

    _Signals.held = []
    try:
        yield check
        check("")
    finally:
        _Signals.held = None


def _prepare() -> None:
    """Make this process one that ends well: signals are answered, every stream can be written to,
    libraries keep off the terminal what they say of themselves, temporary files have a place."""
    hangup = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
    if signal.getsignal(hangup) != signal.SIG_IGN:  # nohup
        signal.signal(hangup, _on_signal)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _on_signal)

    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed when the program began
            # Takes the lowest free number, the stream's own, which no file of ours must get.
            setattr(sys, name, open(os.devnull, "r+"))
        with suppress(AttributeError):  # a stream may be any object
            getattr(sys, name).reconfigure(errors="replace")  # whatever the terminal's encoding is

    logging.disable(logging.WARNING)
    if not sys.warnoptions:  # python -W asks for them
        warnings.simplefilter("ignore")
    for name in ("TORCH_CPP_LOG_LEVEL", "OPENCV_LOG_LEVEL"):
        os.environ.setdefault(name, "ERROR")

    try:
        tempfile.gettempdir()
    except OSError:  # torch and matplotlib do not load without
        os.environ["TMPDIR"] = "/dev/shm"  # of Linux, writable where the disk is not


def run_script(main: Callable[[], int | None],
               eases: str = "close other programs, or use a larger machine") -> None:
    """Exits with what `main` returns (None is 0), each expected failure being one line on stderr
    and its exit code; no encoding of the terminal and no closed stream makes a traceback.

    Args:
        eases: what the script's user can do about a want of memory.
    """
    _prepare()
    code, message = 1, ""
    try:
        code = main() or 0
        print(end="", flush=True)  # a closed pipe may only show now
    except (InputError, RunError, Interrupted) as error:
        code, message = error.code, str(error)
    except SystemExit as stop:  # of --help or a refused flag, which has said its line
        code = stop.code
    except BrokenPipeError:  # whoever read the output has left, as `| head` does
        pass
    except Exception as error:
        if out_of_memory(error):
            message = f"out of memory: {eases}"
        elif isinstance(error, OSError):  # of the machine; anything else is a bug
            message = f"{error}; check the place, its permissions and its free space"
        else:
            raise
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to save
    if message:
        line = " ".join(message.splitlines())
        with suppress(OSError):
            print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)
    try:
        print(end="", flush=True)
    except OSError:  # else Python's own flush at the end complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
