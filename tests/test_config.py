"""The command line: which value wins, what is refused, how runs are named, and that neither help
nor a refusal waits for torch or reads data."""
import argparse
import json
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from unittest.mock import patch

import pytest

from common.config import COMMON_FLAGS, Recipe, Runtime, difference, flag_of, parse
from common.errors import InputError
from conftest import ROOT

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
TRAINING = [name for name in SCRIPTS if name.startswith("train_")]
Run = Callable[..., subprocess.CompletedProcess[str]]

DEFAULT = Recipe(epochs=50, batch_size=125, lr=0.5, flip=True, pretrained=True)
REPORT = replace(DEFAULT, batch_size=64, lr=0.25)
RECIPES = {"default": DEFAULT, "report": REPORT}
SMOKE = dict(epochs=2, lr=0.125, synthetic=True)
FLAGS = ("resize", "label_smoothing", "patience", "weights", "pretrained", "model", "flip", "stem",
         "dropout", "head_lr")

# Answers every command line in one interpreter, as the script's own process would, and tells what
# was loaded and opened.
DRIVER = """
import contextlib, io, json, runpy, sys
script, lines = sys.argv[1], json.loads(sys.argv[2])
opened, answers = [], []
def note(event, args):
    if event in ("open", "os.listdir", "os.scandir", "socket.connect"):
        opened.append(str(args[0]))
sys.addaudithook(note)
for line in lines:
    sys.argv, out, err, code = [script, *line], io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    answers.append([code, out.getvalue(), err.getvalue()])
packages = {"torch", "torchvision", "numpy", "cv2", "matplotlib"}
heavy = sorted(packages & {name.split(".")[0] for name in sys.modules})
print(json.dumps({"answers": answers, "heavy": heavy, "opened": opened}))
"""
BAD = {
    "--resize 0": "a whole number from 1 to 16", "--resize 17": "from 1 to 16",
    "--resize 1.5": "a whole number", "--epochs 0": "from 1 to 100000",
    "--epochs 1e3": "a whole number", "--epochs": "expected one argument",
    "--batch-size 1": "from 2 to 65536", "--val-size 60000": "from 1 to 49999",
    "--train-limit 0": "from 1 to 100000000", "--image-size 7": "from 8 to 1024",
    "--lr nan": "a number from 0 to 100", "--lr inf": "from 0 to 100", "--lr 1e-3x": "a number",
    "--weight-decay -1": "from 0 to 10", "--seed -1": "from 0 to 2147483647",
    "--seed 4294967296": "from 0 to", "--label-smoothing 2": "from 0 to 0.99",
    "--random-erasing 1.1": "from 0 to 1", "--patience -1": "from 0 to",
    "--head-epochs -1": "from 0 to", "--head-lr nan": "from 0 to",
    "--device tpu": "invalid choice", "--amp fp8": "invalid choice",
    "--compile maybe": "invalid choice", "--recipe best": "invalid choice",
    "--name ../up": "no name of a folder", "--name ..": "no name of a folder",
    "--data-dir=": "name a path", "--out=": "name a path",
    "--no-such-flag 3": "unrecognized arguments", "stray": "unrecognized arguments",
}
EFFNET_ONLY = ("--resize", "--label-smoothing", "--random-erasing", "--patience", "--head-epochs",
               "--head-lr")


def ask(line: str = "", recipes: dict = RECIPES, *pick: Callable) -> tuple[Recipe, Runtime]:
    """What `parse` makes of a command line."""
    with patch.object(sys, "argv", ["test", *shlex.split(line)]):
        return parse("doc", recipes, {DEFAULT.model: SMOKE}, FLAGS, *pick)


def answers(run_script: Run, script: str, lines: list[str]) -> dict:
    """The script's exit code, stdout and stderr for each command line, and what its process loaded
    and opened."""
    done = run_script("-c", DRIVER, ROOT / script, json.dumps([line.split() for line in lines]))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_flags_the_default_recipe_stands() -> None:
    recipe, runtime = ask()
    assert recipe == DEFAULT
    assert runtime == Runtime(run_name="simple_cnn-pretrained-seed0")


def test_explicit_flags_beat_smoke_which_beats_report_which_beats_default() -> None:
    assert ask("--recipe report")[0] == REPORT
    assert ask("--smoke")[0] == replace(DEFAULT, **SMOKE)
    recipe, runtime = ask("--lr 0.0625 --recipe report --smoke --batch-size 7")
    assert recipe == replace(REPORT, **{**SMOKE, "lr": 0.0625, "batch_size": 7})
    assert runtime.smoke
    assert ask("--smoke --epochs 50 --lr 0.5")[0] == replace(DEFAULT, synthetic=True)


def test_every_flag_reaches_its_field() -> None:
    recipe, runtime = ask(
        "--train-limit 300 --val-size 20 --epochs 3 --batch-size 8 --lr 1e-2 --weight-decay 5e-4 "
        "--seed 9 --resize 2 --label-smoothing 0.2 --patience 4 --weights w.pth --fit crop "
        "--image-size 48 --class-weights --model se_resnet18 --data-dir d --offline --device cpu "
        "--amp off --compile on --deterministic --out o --name n --resume")
    assert recipe == replace(
        DEFAULT, train_limit=300, val_size=20, epochs=3, batch_size=8, lr=1e-2, weight_decay=5e-4,
        seed=9, resize=2, label_smoothing=0.2, patience=4, weights="w.pth", fit="crop",
        image_size=48, class_weights=True, model="se_resnet18")
    assert runtime == Runtime(
        data_dir="d", offline=True, device="cpu", amp="off", compile="on", deterministic=True,
        out="o", run_name="n", resume=True, name_given=True)
    assert type(recipe.epochs) is type(recipe.train_limit) is int and type(recipe.lr) is float


def test_a_switch_that_is_on_can_be_turned_off() -> None:
    assert ask("--no-flip")[0] == replace(DEFAULT, flip=False)
    assert ask("--pretrained")[0].pretrained and not ask("--no-pretrained")[0].pretrained


def test_the_bounds_themselves_are_allowed() -> None:
    recipe, _ = ask("--resize 16 --lr 0 --label-smoothing 0.99 --val-size 49999 --patience 0 "
                    "--seed 2147483647")
    assert (recipe.resize, recipe.lr, recipe.label_smoothing) == (16, 0, 0.99)
    assert (recipe.val_size, recipe.patience, recipe.seed) == (49_999, 0, 2_147_483_647)


@pytest.mark.parametrize("line, name", [
    ("", "simple_cnn-pretrained-seed0"),
    ("--recipe report --resize 2", "report-simple_cnn-x2-pretrained-seed0"),
    ("--smoke", "smoke-simple_cnn-pretrained-synthetic-seed0"),
    ("--no-pretrained --synthetic", "simple_cnn-synthetic-seed0"),
    ("--lr 0.001 --epochs 9 --seed 3", "simple_cnn-pretrained-epochs9-lr0.001-seed3"),
    ("--lr 0.5 --epochs 50", "simple_cnn-pretrained-seed0"),
    ("--weights lite2 --train-limit 300", "simple_cnn-lite2-limit300-seed0"),
    ("--weights x/net-20251124.pth", "simple_cnn-net-20251124-seed0"),
    ("--weights runs/a-seed1/best.pt", "simple_cnn-a-seed1-seed0"),
    ("--model se_resnet18 --stem imagenet", "se_resnet18-imagenet-pretrained-seed0"),
    ("--data-dir photos/ --image-size 48", "simple_cnn-pretrained-photos-image_size48-seed0"),
    ("--data-dir /tmp/$5_^%", "simple_cnn-pretrained-_5__-seed0"),
    ("--data-dir /tmp/数据", "simple_cnn-pretrained-数据-seed0"),
    ("--amp off --device cpu", "simple_cnn-pretrained-seed0"),
])
def test_a_run_is_named_after_what_may_change_its_result(line: str, name: str) -> None:
    _, runtime = ask(line)
    assert (runtime.run_name, runtime.name_given) == (name, False)


def test_a_given_name_is_kept() -> None:
    for line in ("--name mine", "--recipe report --name mine", "--smoke --name mine"):
        assert (ask(line)[1].run_name, ask(line)[1].name_given) == ("mine", True)
    name = "99 % of $5_^ 数据\udcff"
    assert ask(f"--name '{name}'")[1].run_name == name


def test_every_path_has_its_home_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    recipe, runtime = ask("--data-dir ~/data --out ~/runs --weights ~/w.pth")
    assert (runtime.data_dir, runtime.out) == ("/home/me/data", "/home/me/runs")
    assert recipe.weights == "/home/me/w.pth"
    _, runtime = ask("--data-dir ../data --out ~nobody-of-this-name/runs")
    assert (runtime.data_dir, runtime.out) == ("../data", "~nobody-of-this-name/runs")


@pytest.mark.parametrize("line, why", [
    ("--data-dir d --synthetic", "--data-dir has no effect, as --synthetic and --smoke draw"),
    ("--data-dir d --smoke", "--data-dir has no effect, as --synthetic and --smoke draw"),
    ("--fit crop --synthetic", "--fit has no effect"),
    ("--fit pad --smoke", "--fit has no effect"),
    ("--weights w.pth --no-pretrained", "--weights has no effect, as --no-pretrained"),
    ("--stem cifar", "--stem has no effect, as simple_cnn has one stem"),
    ("--dropout 0.1", "--dropout has no effect, as simple_cnn has no dropout"),
    ("--head-lr 0.1", "--head-lr has no effect, as no epochs train the head alone"),
])
def test_a_flag_without_effect_is_refused(line: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        ask(line)


def test_what_the_recipe_itself_holds_is_never_refused() -> None:
    """Only what the user gave can lack an effect."""
    recipe = replace(DEFAULT, synthetic=True, fit="crop", stem="imagenet", pretrained=False)
    assert ask("", {"default": recipe})[0] == recipe
    drawn, runtime = ask("--offline --synthetic")
    assert drawn.synthetic and runtime.offline
    assert ask("--train-limit 30 --smoke")[0].train_limit == 30
    assert ask("--weights w.pth --smoke")[0].weights == "w.pth"


def test_pick_sees_what_was_given() -> None:
    recipes = {**RECIPES, "big default": replace(DEFAULT, model="se_resnet18", epochs=9)}

    def pick(given: argparse.Namespace, name: str) -> str:
        return f"big {name}" if "model" in given else name

    recipe, _ = ask("--model se_resnet18 --lr 1", recipes, pick)
    assert recipe == replace(DEFAULT, model="se_resnet18", epochs=9, lr=1)


@pytest.mark.parametrize("line", [
    bad for bad in BAD if not bad.startswith(("--head-epochs", "--random"))])
def test_a_bad_value_is_one_line_and_exit_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        ask(line)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.endswith("; see --help\n") and BAD[line] in err
    assert line.split()[0].rstrip("=") in err, "the line does not name the flag"


@pytest.mark.parametrize("script", TRAINING)
def test_scripts_refuse_before_torch_is_loaded_or_anything_read(script: str,
                                                                run_script: Run) -> None:
    lines = [bad for bad in BAD if script == "train_effnet.py" or not bad.startswith(EFFNET_ONLY)]
    lines += ["--smoke --data-dir d"]
    told = answers(run_script, script, lines)
    for line, (code, out, err) in zip(lines, told["answers"], strict=True):
        assert (code, out, err.count("\n")) == (2, "", 1), (line, code, err)
        assert err.startswith(f"{script}: ") and BAD.get(line, "has no effect") in err
    opened = [Path(path) for path in told["opened"]]
    assert told["heavy"] == [] and any("config" in path.name for path in opened)
    assert {path.suffix for path in opened} <= {".py", ".pyc", ""}
    assert not [path for path in opened if "data" in path.parts]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_torch(script: str, run_script: Run) -> None:
    told = answers(run_script, script, ["--help"])
    [[code, out, err]] = told["answers"]
    assert (code, err, told["heavy"]) == (0, "", [])
    docstring = runpy.run_path(str(ROOT / script))["__doc__"]
    assert docstring.strip() in out and f"python {script}" in out and "==SUPPRESS==" not in out


@pytest.mark.parametrize("script", TRAINING)
def test_help_shows_groups_flags_and_the_scripts_own_defaults(
        script: str, call: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(script, "--help")
    out, module = capsys.readouterr().out, runpy.run_path(str(ROOT / script))
    text = " ".join(out.split())
    for title in ("data:", "optimisation:", "runtime:"):
        assert f"\n{title}\n" in out
    own = [item.name for item in fields(Runtime) if item.metadata]
    names = [*COMMON_FLAGS, *module["FLAGS"], *own]
    default = module["RECIPES"]["default"]
    for name in names:
        flag = flag_of(name)
        assert f"{flag} " in text
        value = getattr(default, name, getattr(Runtime(), name, None))
        if value is not None and not isinstance(value, bool):
            assert f"(default: {value})" in text, f"{flag} does not show {value}"
    assert "--no-pretrained" in text or "pretrained" not in names


@pytest.mark.parametrize("script", TRAINING)
def test_the_scripts_recipes_keep_their_own_bounds(script: str) -> None:
    """A default that its own flag would refuse, or a smoke value of the wrong type, would only show
    when used."""
    module = runpy.run_path(str(ROOT / script))
    default = module["RECIPES"]["default"]
    smoke = [replace(default, **values) for values in module["SMOKE"].values()]
    for recipe in [*module["RECIPES"].values(), *smoke]:
        for item in fields(Recipe):
            value = getattr(recipe, item.name)
            if not item.metadata or value is None:
                continue
            allowed = item.metadata["allowed"]
            if isinstance(value, str):
                assert not allowed or value in allowed, item.name
            elif allowed:
                assert allowed[0] <= value <= allowed[-1], item.name
            kinds = (int, float) if isinstance(item.default, float) else (type(item.default),)
            assert item.default is None or type(value) in kinds, item.name


def test_difference_names_each_changed_or_missing_key() -> None:
    changes = difference(asdict(DEFAULT), asdict(REPORT))
    assert changes == ["batch_size: 125 -> 64", "lr: 0.5 -> 0.25"]
    assert difference({"a": 1, "b": 2}, {"b": 2, "c": 3}) == ["a: 1 -> None", "c: None -> 3"]
    assert difference(asdict(DEFAULT), asdict(DEFAULT)) == []
