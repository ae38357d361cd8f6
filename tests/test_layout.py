"""The house keeps its order: imports point downward, scripts stand alone, help needs no torch, every public name is explained."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("train_baseline", "train_improved", "train_effnet", "ablation", "analyze")
MODULES = sorted(path.stem for path in (ROOT / "common").glob("*.py") if path.stem != "__init__")
ALLOWED_PACKAGES = {"torch", "torchvision", "numpy", "matplotlib", "tqdm", "cv2", "efficientnet_pytorch", "pytest"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, wherever it does so."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "common" else {node.module}
    return found


def edges(name: str) -> set[str]:
    """Modules of `common` that a module of `common` imports."""
    return {found.split(".")[1] for found in imports(ROOT / "common" / f"{name}.py") if found.startswith("common.")} & set(MODULES)


def test_imports_form_no_circle():
    graph, done = {name: edges(name) for name in MODULES}, set()
    while ready := {name for name, below in graph.items() if name not in done and below <= done}:
        done |= ready
    assert done == set(MODULES), f"in or above a circle: {sorted(set(MODULES) - done)}"


@pytest.mark.parametrize("name", ["config", "errors", "synthetic", "metrics", "plots", "diagnose", "gradcam", "cost", "toolchain"])
def test_leaves_import_nothing_of_the_house_but_errors(name):
    assert edges(name) <= {"errors"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_do_not_import_each_other(name):
    others = {found for found in imports(ROOT / f"{name}.py") if found in SCRIPTS}
    assert others == ({"train_effnet"} if name == "ablation" else set())


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_read_the_command_line_before_torch(name):
    top = [node for node in tree(ROOT / f"{name}.py").body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names} | {n.module for n in top if isinstance(n, ast.ImportFrom)}
    assert not names & {"torch", "numpy", "cv2", "matplotlib"}
    assert {n for n in names if n.startswith("common")} <= {"common.config", "common.errors"}


def test_only_the_allowed_packages():
    import sys
    for path in [*ROOT.glob("*.py"), *(ROOT / "common").glob("*.py")]:
        outside = {found.split(".")[0] for found in imports(path)} - set(sys.stdlib_module_names) - {"common", "train_effnet"}
        assert outside <= ALLOWED_PACKAGES | {"triton", "PIL"}, path  # the last two come with torch and torchvision


@pytest.mark.parametrize("name", MODULES)
def test_public_names_have_docstrings_and_hints(name):
    module = tree(ROOT / "common" / f"{name}.py")
    assert ast.get_docstring(module)
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name}"
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, f"{name}.{node.name} has no return hint"
            assert all(a.annotation for a in node.args.args + node.args.kwonlyargs), f"{name}.{node.name}"
