"""A run's folder, `<out>/<script>/<name>/`, one process's alone; and the copy of its best.pt."""
import filecmp
import itertools
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from common.config import Recipe, Runtime, difference
from common.data.splits import Splits
from common.errors import InputError
from common.files import Json, atomic, read_json, write_json

try:
    import fcntl
except ImportError:  # Windows has none, and no lock then
    fcntl = None

# What a run that died before the end of its first epoch leaves behind.
LEFTOVERS = {"recipe.json", "last.pt", "cifar10_sample_images.png", "sample_images.png",
             "augmented_batch.png"}
_locked: set[Path] = set()  # folders that are this process's


def claim_folder(script: str, recipe: Recipe, runtime: Runtime, splits: Splits,
                 versions: Json) -> Path:
    """The run's folder, which is this process's alone until its end.

    A new folder gets its recipe.json, with --resume too; one that holds a run needs --resume.

    Raises:
        InputError: a run without --resume, one of another recipe or data, or in another process.
    """
    first = folder = Path(runtime.out, script, runtime.run_name or recipe.model)
    if not runtime.name_given and _is_of_a_namesake(folder, runtime, splits):
        folder = first.with_name(f"{first.name}.{splits.identity[:4]}")
    # A trial run never stands in the way of the next one.
    numbers = itertools.count(2)
    while runtime.smoke and not (runtime.name_given or runtime.resume) and _holds_run(folder):
        folder = first.with_name(f"{first.name}-{next(numbers)}")
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    data = {"split_hash": splits.split_hash, "identity": splits.identity}
    if runtime.resume and (folder / "recipe.json").is_file():
        _check_same(folder, asdict(recipe), data)
        return folder
    if _holds_run(folder):
        raise InputError(f"{folder} holds a run already: add --resume, or choose a new --name")
    if runtime.resume:
        print("nothing to resume: the run begins")
    kept = asdict(runtime)
    del kept["started"]  # says nothing to another process
    write_json(folder / "recipe.json", {"script": script, "recipe": asdict(recipe),
                                        "runtime": kept, **data, "versions": versions})
    # Of a run that ended before its first epoch did.
    (folder / "last.pt").unlink(missing_ok=True)
    return folder


def _holds_run(folder: Path) -> bool:
    """Whether there is more than what a run leaves that ends within its first epoch."""
    # A process that is killed while it writes leaves its temporary file.
    return any(file.name not in LEFTOVERS and file.suffix != ".tmp" for file in folder.glob("*"))


def _is_of_a_namesake(folder: Path, runtime: Runtime, splits: Splits) -> bool:
    """Whether a folder holds a run on other images, from another place of the same name."""
    with suppress(InputError):  # no run, or one that will be looked at closely
        stored = read_json(folder / "recipe.json", ("runtime", "identity"))
        if isinstance(stored["runtime"], dict):
            there, here = str(stored["runtime"].get("data_dir")), str(runtime.data_dir)
            moved = os.path.realpath(there) != os.path.realpath(here)
            return moved and stored["identity"] != splits.identity
    return False


def _lock(folder: Path) -> None:
    """Keep other processes out of a run's folder until this one ends, however it ends."""
    # Of the folder itself, not of a file in it, which a kill would leave behind.
    place = folder.resolve()
    if fcntl is None or place in _locked:
        return
    handle = os.open(place, os.O_RDONLY)  # closed with the process
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{folder} is being trained by another process: wait for it, or choose a "
                         "new --name") from None
    except OSError:  # a file system without locks
        pass
    _locked.add(place)


def _check_same(folder: Path, recipe: Json, data: dict[str, str]) -> None:
    """Raise InputError if the run in `folder` has another recipe or other data."""
    file = folder / "recipe.json"
    stored = read_json(file, ("recipe", "split_hash"))
    if not isinstance(stored["recipe"], dict):
        raise InputError(f"{file} holds no recipe: restore it, or choose a new --name")
    # Fields that are younger than the run are as they were by default.
    changes = difference(asdict(Recipe()) | stored["recipe"], recipe)
    if any(stored.get(key, value) != value for key, value in data.items()):
        changes.append("the images are not those it was trained on")
    if changes:
        raise InputError(f"--resume: the recipe or the data differs from that of {folder} "
                         f"({'; '.join(changes)}): restore it, or choose a new --name")


def publish(best: Path, runs: Path, target: Path = Path("best.pt")) -> Path:
    """Copy a run's best.pt to `target`, say so in one line, and return where it can be named.

    A file that is there already, and of which no run has a copy, takes another name. Where nothing
    can be written, the line says that, and `best` is returned.

    Args:
        runs: the folder of all run folders.
    """
    note = ""
    try:
        with atomic(target) as file:
            file.write(best.read_bytes())
            file.flush()  # a full disk shows here, before anything of the user's is moved
            same = (filecmp.cmp(target, copy, shallow=False) for copy in runs.rglob("best.pt"))
            if target.exists() and not any(same):
                aside, numbers = target, itertools.count(1)
                while aside.exists():
                    aside = target.with_suffix(f".{next(numbers)}.pt")
                os.replace(target, aside)
                note = f" (the file that was there is now {aside})"
    except OSError as error:
        print(f"{best} is not copied to {target} ({error.strerror}): name it by its own path")
        return best
    print(f"{best} -> {target}{note}")
    return target
