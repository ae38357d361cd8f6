"""How a program ends: exit codes, one line for each failure, signals, pipes and encodings."""
import errno
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import out_of_memory, reason
from conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]
HEAD = """
import os, signal, sys
from common.errors import *
"""


@pytest.fixture
def end(run_script: Run) -> Run:
    """A function that runs the body of a `main` under `run_script`."""
    def run(body: str, **variables: str) -> subprocess.CompletedProcess[str]:
        lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
        # These tests may themselves run under nohup or in the background, which a program inherits.
        start = ("import signal\nfor ignored in (signal.SIGHUP, signal.SIGINT):\n"
                 "    signal.signal(ignored, signal.SIG_DFL)\n")
        return run_script("-c", f"{start}{HEAD}def main():\n{lines}run_script(main)", **variables)
    return run


@pytest.mark.parametrize("body, code, said", [
    ("return None", 0, ""),
    ("return 3", 3, ""),
    ("raise InputError('bad: mend it')", 2, "-c: bad: mend it\n"),
    ("raise RunError('failed')", 1, "-c: failed\n"),
    ("raise InputError('a\\nname')", 2, "-c: a name\n"),
    ("raise SystemExit(2)", 2, ""),
    ("os.kill(os.getpid(), signal.SIGINT)", 130, "-c: interrupted\n"),
    ("os.kill(os.getpid(), signal.SIGTERM)", 143, "-c: interrupted\n"),
    ("os.kill(os.getpid(), signal.SIGHUP)", 129, "-c: interrupted\n"),
    ("raise OSError(28, 'No space', 'f')", 1,
     "-c: [Errno 28] No space: 'f'; check the place, its permissions and its free space\n"),
    ("raise MemoryError", 1, "-c: out of memory: close other programs"),
    ("raise InputError(reason(RuntimeError('CUDA out of memory')))", 1, "-c: out of memory"),
    ("open('/nowhere/at/all')", 1, "-c: [Errno 2] No such file or directory: '/nowhere/at/all';"),
])
def test_exit_codes_and_one_line(end: Run, body: str, code: int, said: str) -> None:
    done = end(body)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said) and done.stderr.count("\n") == bool(said)


@pytest.mark.parametrize("error, memory", [
    (MemoryError(), True), (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
    (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't "
                  "allocate memory: you tried to allocate 9 bytes. Error code 12"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
    (Exception("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to"), True),
    (RuntimeError("std::bad_alloc"), True), (RuntimeError("wrong memory format"), False),
    (OSError(errno.ENOSPC, "No space left on device"), False), (KeyError("memory"), False)])
def test_every_librarys_want_of_memory_is_known(error: Exception, memory: bool) -> None:
    assert out_of_memory(error) == memory
    if memory:
        with pytest.raises(type(error)):
            reason(error)


def test_libraries_say_nothing_of_themselves(end: Run) -> None:
    """Such as matplotlib's of a font without bold letters; errors are said, and -W asks."""
    body = ("import logging, warnings\nwarnings.warn('odd')\n"
            "logging.getLogger('matplotlib.font_manager').warning('findfont: no bold')\n"
            "logging.getLogger('x').error('worse')")
    assert end(body).stderr == "worse\n"
    assert "odd" in end(body, PYTHONWARNINGS="always").stderr


@pytest.mark.parametrize("body, code, shown", [
    ("print(os.environ['TMPDIR'])", 0, "/dev/shm\n"),
    ("tempfile.gettempdir()", 1, "-c: [Errno 2] No usable temporary directory; check the place")])
def test_without_a_temporary_folder(run_script: Run, body: str, code: int, shown: str) -> None:
    """As where the whole disk can only be read."""
    done = run_script("-c", f"{HEAD}import tempfile\n"
                      "def none(): raise FileNotFoundError(2, 'No usable temporary directory')\n"
                      f"tempfile.gettempdir = none\nrun_script(lambda: {body})")
    assert done.returncode == code and (done.stdout + done.stderr).startswith(shown)


def test_a_bug_keeps_its_traceback(end: Run) -> None:
    assert "Traceback" in end("raise KeyError('bug')").stderr


LOOP = """
seen = []
try:
    with deferred_signals() as check:
        {}
        seen.append("after the operator")
        check("in step 2")
        seen.append("never")
finally:
    print(*seen)
"""


@pytest.mark.parametrize("body, printed, said", [
    ("os.kill(os.getpid(), signal.SIGINT)", "after the operator\n",
     "stopping after this step; once more to stop at once\n-c: interrupted in step 2\n"),
    ("os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT)", "\n",
     "-c: interrupted\n")])
def test_a_signal_waits_for_the_step_and_a_second_one_for_the_operator(
        end: Run, body: str, printed: str, said: str) -> None:
    done = end(LOOP.format(body))
    assert (done.returncode, done.stdout) == (130, printed)
    assert done.stderr.endswith(said)


def test_a_signal_in_the_last_step_is_not_lost(end: Run) -> None:
    block = "with deferred_signals() as check:\n    os.kill(os.getpid(), signal.SIGINT)"
    done = end(f"{block}\nprint('never')")
    assert (done.returncode, done.stdout) == (130, "")


def test_a_program_started_with_nohup_outlives_its_terminal(run_script: Run) -> None:
    code = (f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{HEAD}"
            "def main():\n    os.kill(os.getpid(), signal.SIGHUP)\n    print('alive')\n"
            "run_script(main)")
    assert run_script("-c", code).stdout == "alive\n"


@pytest.mark.parametrize("encoding, shown", [
    ("ascii", "32 ? 1?1, ?2, 5?6, ? ?"), ("cp1252", "32 ? 1×1, ±2, 5–6, … ?"),
    ("utf-8", "32 → 1×1, ±2, 5–6, … 猫")])
def test_any_encoding_can_be_written(tmp_path: Path, encoding: str, shown: str) -> None:
    code = ("from common.errors import run_script\n"
            "run_script(lambda: print('32 → 1×1, ±2, 5–6, … 猫'))")
    environment = {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding).strip() == shown


@pytest.mark.parametrize("body", [
    "print('line\\n' * 100_000, flush=True)", "print('short')", "import sys; sys.exit(print('x'))"])
def test_a_closed_pipe_ends_quietly(body: str) -> None:
    code = f"from common.errors import run_script\ndef main():\n    {body}\nrun_script(main)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, stdin=subprocess.PIPE)
    process.stdout.close()  # before it prints: Python takes longer to start
    assert process.stderr.read() == b""
    assert process.wait() in (0, 1)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_output_does_not_stop_the_work(closed: str, tmp_path: Path) -> None:
    code = (f"{HEAD}def main():\n    print('unheard')\n    print('too', file=sys.stderr)\n"
            "    with open('done', 'w') as file:\n        os.write(2, b'not into the file')\n"
            "run_script(main)")
    command = f"{shlex.join([sys.executable, '-c', code])} {closed}"
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, env=environment)
    assert (tmp_path / "done").read_text() == "" and b"Traceback" not in done.stderr
    assert done.returncode == 0
