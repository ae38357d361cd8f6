"""The house keeps its order: imports point down, scripts stand alone and tell their story, help
needs no torch, every public name is explained."""
import ast
import sys
from pathlib import Path

import pytest

from conftest import ROOT

SCRIPTS = ("train_baseline", "train_improved", "train_effnet", "ablation", "analyze")
# A room may use the foundation, itself and the rooms that stand beside its name here.
ROOMS = {
    "data": set(),
    "models": set(),
    "training": {"data", "models"},
    "analysis": {"training", "data", "models"},
    "study": {"analysis", "training", "data", "models"},
}
FOUNDATION = {"config", "errors", "files", "metrics", "plots", "toolchain", "words"}
FILES = sorted(path for path in (ROOT / "common").rglob("*.py") if path.name != "__init__.py")
PACKAGES = {"torch", "torchvision", "numpy", "matplotlib", "tqdm", "cv2", "efficientnet_pytorch"}
COME_WITH_TORCH = {"triton", "PIL"}
# What a training script does, in the order in which a run goes through it.
STORY = ("set_up", "load_splits", "build_model", "open_run", "load_start", "fit", "finish")
TWO_STAGES = (*STORY[:5], "freeze_backbone", "fit", "requires_grad_", "fit", "finish")
# Ways to an import that no import statement tells of.
HIDDEN = {"import_module", "__import__", "run_path", "run_module", "spec_from_file_location"}


def dotted(path: Path) -> str:
    """The name by which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {dotted(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, wherever it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from common.training import fit` names a module,
            # `from common.training.fit import fit` a function.
            found |= (names & set(MODULES)) or {node.module}
    return found


def room(module: str) -> str | None:
    """The room of a module of `common`, None for the foundation."""
    parts = module.split(".")
    return parts[1] if len(parts) == 3 else None


def test_the_rooms_are_the_ones_described():
    assert {room(name) for name in MODULES} == {None, *ROOMS}
    assert {name.split(".")[1] for name in MODULES if room(name) is None} == FOUNDATION


@pytest.mark.parametrize("name", MODULES)
def test_a_room_knows_nothing_of_the_rooms_above(name):
    below = {found for found in imported(MODULES[name]) if found in MODULES}
    allowed = {None, room(name), *ROOMS.get(room(name), set())}
    assert {found for found in below if room(found) not in allowed} == set()


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_imported_unseen(name):
    """So that no file of `common` reaches a script."""
    words = {getattr(node, "attr", None) or getattr(node, "id", None)
             for node in ast.walk(ast.parse(MODULES[name].read_text()))}
    assert words & HIDDEN == set() and imported(MODULES[name]) & set(SCRIPTS) == set()


def test_imports_form_no_circle():
    graph = {name: imported(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    done = set()
    while ready := {name for name, below in graph.items() if name not in done and below <= done}:
        done |= ready
    assert set(MODULES) - done == set(), "in or above a circle"


def test_package_files_are_empty():
    files = (ROOT / "common").rglob("__init__.py")
    assert [path for path in files if path.read_text().strip()] == []


def test_tests_have_the_same_rooms():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(ROOMS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_do_not_import_each_other(name):
    others = {found for found in imported(ROOT / f"{name}.py") if found in SCRIPTS}
    assert others == ({"train_effnet"} if name == "ablation" else set())


@pytest.mark.parametrize("name, story", [
    ("train_baseline", STORY), ("train_improved", STORY), ("train_effnet", TWO_STAGES)])
def test_a_training_script_tells_its_story(name, story):
    """Each step is a call of its own in `train`, none hidden in another one."""
    (train,) = (node for node in ast.parse((ROOT / f"{name}.py").read_text()).body
                if getattr(node, "name", None) == "train")
    called = []
    for statement in train.body:
        call = getattr(statement, "value", None)
        while isinstance(call, ast.Call):  # `load_splits(...).to(device)` begins inside
            function = call.func
            called.append(getattr(function, "id", None) or function.attr)
            call = getattr(function, "value", None)
    assert tuple(word for word in called if word in story) == story
    assert {word for word in called if word not in story} <= {"to"}


def test_only_the_allowed_packages():
    known = PACKAGES | COME_WITH_TORCH | set(sys.stdlib_module_names) | {"common", "train_effnet"}
    for path in [*ROOT.glob("*.py"), *FILES]:
        outside = {found.split(".")[0] for found in imported(path)} - known
        assert outside == set(), path


@pytest.mark.parametrize("name", MODULES)
def test_public_names_have_docstrings_and_hints(name):
    module = ast.parse(MODULES[name].read_text())
    assert ast.get_docstring(module)
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, f"{node.name} has no return hint"
            arguments = node.args.args + node.args.kwonlyargs
            assert all(argument.annotation for argument in arguments), node.name


def test_no_line_is_longer_than_100_columns():
    files = [*ROOT.glob("*.py"), *FILES, *(ROOT / "tests").rglob("*.py")]
    long = [f"{path.relative_to(ROOT)}:{number}" for path in files
            for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 100]
    assert long == []
