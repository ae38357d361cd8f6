"""Arms × seeds as jobs: dealt over machines, and each attempted whatever became of the others."""
import re
from collections.abc import Callable
from pathlib import Path

from common.errors import InputError

Job = tuple[str, int]  # an arm and a seed


def share(jobs: list[Job], shard: str | None) -> list[Job]:
    """The jobs of shard "I/N", dealt in turn so that every shard gets every kind of arm; all of
    them without one.

    Raises:
        InputError: no I/N with I from 1 to N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    index, shards = map(int, match.groups() if match else (0, 0))
    if not 1 <= index <= shards:
        raise InputError(f"--shard {shard} must be I/N with I from 1 to N, as 2/5")
    return jobs[index - 1 :: shards]


def failure_mark(folder: Path) -> Path:
    """The file beside a run's folder that says why it failed."""
    return folder.with_name(f"{folder.name}.FAILED")


def attempt(folder: Path, work: Callable[[], None]) -> None:
    """Do a run's work; a failure is said and marked, a success takes the mark away."""
    mark = failure_mark(folder)
    try:
        work()
        mark.unlink(missing_ok=True)
    except Exception as error:  # the other runs go on; a signal is no Exception and stops them all
        print(f"FAILED {folder.name}: {error}", flush=True)
        mark.write_text(f"{type(error).__name__}: {error}\n")
