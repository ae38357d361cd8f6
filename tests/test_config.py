"""The command line: which value wins, what is refused, and that neither help nor a refusal waits for torch or reads data."""
import json
import runpy
import subprocess
from collections.abc import Callable
from dataclasses import asdict, fields, make_dataclass, replace
from pathlib import Path

import pytest

from common.config import COMMON_FLAGS, Parser, Recipe, Runtime, add_flags, difference, option, parse

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
TRAINING = [name for name in SCRIPTS if name.startswith("train_")]
Run = Callable[..., subprocess.CompletedProcess[str]]

DEFAULT = Recipe(epochs=50, batch_size=125, lr=0.5, flip=True, pretrained=True)
REPORT = replace(DEFAULT, batch_size=64, lr=0.25)
RECIPES = {"default": DEFAULT, "report": REPORT}
SMOKE = dict(epochs=2, lr=0.125, synthetic=True)
FLAGS = ("resize", "label_smoothing", "patience", "weights", "pretrained", "model", "flip")

# Answers every command line in one interpreter, as the script's own process would, and tells what was loaded and opened.
DRIVER = """
import contextlib, io, json, runpy, sys
script, lines = sys.argv[1], json.loads(sys.argv[2])
opened, answers = [], []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in ("open", "os.listdir", "os.scandir", "socket.connect") else None)
for line in lines:
    sys.argv, out, err, code = [script, *line], io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    answers.append([code, out.getvalue(), err.getvalue()])
heavy = sorted({"torch", "torchvision", "numpy", "cv2", "matplotlib"} & {name.split(".")[0] for name in sys.modules})
print(json.dumps({"answers": answers, "heavy": heavy, "opened": opened}))
"""
BAD = {
    "--resize 0": "at least 1", "--resize 17": "at most 16", "--resize 1.5": "not a whole number",
    "--epochs -1": "at least 1", "--epochs 0": "at least 1", "--epochs 1e3": "not a whole number", "--epochs": "expected one argument",
    "--batch-size 0": "at least 1", "--batch-size -64": "at least 1",
    "--val-size 60000": "at most 49999", "--val-size 0": "at least 1", "--train-limit 0": "at least 1",
    "--lr nan": "at least 0", "--lr -0.1": "at least 0", "--lr inf": "at most 100", "--lr abc": "not a number", "--lr 1e-3x": "not a number",
    "--weight-decay nan": "at least 0", "--weight-decay -1": "at least 0", "--seed -1": "at least 0", "--seed 4294967296": "at most",
    "--label-smoothing 2": "at most 0.99", "--label-smoothing nan": "at least 0", "--random-erasing 1.1": "at most 1",
    "--patience -1": "at least 0", "--head-epochs -1": "at least 0", "--head-lr nan": "at least 0",
    "--device tpu": "invalid choice", "--amp fp8": "invalid choice", "--compile maybe": "invalid choice", "--recipe best": "invalid choice",
    "--no-such-flag": "unrecognized arguments", "--no-such-flag 3": "unrecognized arguments", "stray": "unrecognized arguments",
}  # fmt: skip
EFFNET_ONLY = ("--resize", "--label-smoothing", "--random-erasing", "--patience", "--head-epochs", "--head-lr")


def ask(argv: str = "") -> tuple[Recipe, Runtime]:
    """What `parse` makes of a command line."""
    return parse("doc", RECIPES, {recipe.model: SMOKE for recipe in RECIPES.values()}, FLAGS, argv=argv.split())


def answers(run_script: Run, script: str, lines: list[str]) -> dict:
    """The script's exit code, stdout and stderr for each command line, and what its process loaded and opened."""
    done = run_script("-c", DRIVER, ROOT / script, json.dumps([line.split() for line in lines]))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_flags_the_default_recipe_stands() -> None:
    assert ask() == (DEFAULT, Runtime())


def test_explicit_flags_beat_smoke_which_beats_report_which_beats_default() -> None:
    assert ask("--recipe report")[0] == REPORT
    assert ask("--smoke")[0] == replace(DEFAULT, **SMOKE)
    assert ask("--smoke --recipe report")[0] == replace(REPORT, **SMOKE)
    recipe, runtime = ask("--lr 0.0625 --recipe report --smoke --batch-size 7")
    assert recipe == replace(REPORT, **{**SMOKE, "lr": 0.0625, "batch_size": 7})
    assert runtime.smoke and recipe.epochs == 2 and recipe.flip


def test_a_flag_equal_to_the_default_still_beats_smoke() -> None:
    assert ask("--smoke --epochs 50 --lr 0.5")[0] == replace(DEFAULT, synthetic=True)


def test_every_flag_reaches_its_field() -> None:
    recipe, runtime = ask("--synthetic --train-limit 300 --val-size 20 --epochs 3 --batch-size 8 --lr 1e-2 --weight-decay 5e-4 --seed 9 --resize 2 "
                          "--label-smoothing 0.2 --patience 4 --weights w.pth --no-pretrained --model se_resnet18 "
                          "--data-dir d --offline --device cpu --amp off --compile on --deterministic --out o --name n --resume")
    assert recipe == replace(DEFAULT, synthetic=True, train_limit=300, val_size=20, epochs=3, batch_size=8, lr=1e-2, weight_decay=5e-4, seed=9,
                             resize=2, label_smoothing=0.2, patience=4, weights="w.pth", pretrained=False, model="se_resnet18")
    assert runtime == Runtime(data_dir="d", offline=True, device="cpu", amp="off", compile="on", deterministic=True, out="o", run_name="n", resume=True)
    assert type(recipe.epochs) is type(recipe.train_limit) is int and type(recipe.lr) is float


def test_a_switch_that_is_on_can_be_turned_off() -> None:
    assert ask("--no-flip")[0] == replace(DEFAULT, flip=False)
    assert ask("--pretrained")[0].pretrained and not ask("--no-pretrained")[0].pretrained


def test_the_bounds_themselves_are_allowed() -> None:
    recipe, _ = ask("--resize 16 --lr 0 --label-smoothing 0.99 --val-size 49999 --patience 0 --seed 2147483647")
    assert (recipe.resize, recipe.lr, recipe.label_smoothing, recipe.val_size, recipe.seed) == (16, 0, 0.99, 49_999, 2_147_483_647)


def test_the_reports_runs_have_a_folder_of_their_own() -> None:
    assert ask("--recipe report --resize 2")[1].run_name == "report-simple_cnn-x2-pretrained-seed0"
    assert ask("--recipe report --name mine")[1].run_name == "mine"
    assert ask("--recipe default")[1].run_name is None


@pytest.mark.parametrize("bounds", [{"low": 0}, {"high": 1}, {"low": 0, "high": 1}])
def test_nan_is_beyond_every_bound(bounds: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    fields_of = make_dataclass("One", [("share", float, option(0.5, "a share", "group", **bounds))])
    parser = Parser()
    add_flags(parser, fields_of())
    assert parser.parse_args(["--share", "1"]).share == 1
    with pytest.raises(SystemExit):
        parser.parse_args(["--share", "nan"])
    assert "argument --share: nan must be at" in capsys.readouterr().err


def test_pick_sees_what_was_given() -> None:
    recipes = {**RECIPES, "big default": replace(DEFAULT, model="se_resnet18", epochs=9)}
    pick = lambda given, name: f"big {name}" if getattr(given, "model", "") == "se_resnet18" else name  # noqa: E731
    recipe, _ = parse("doc", recipes, {recipe.model: SMOKE for recipe in recipes.values()}, FLAGS, pick, ["--model", "se_resnet18", "--lr", "1"])
    assert recipe == replace(DEFAULT, model="se_resnet18", epochs=9, lr=1)


@pytest.mark.parametrize("line", [bad for bad in BAD if not bad.startswith(("--head", "--random"))])
def test_a_bad_value_is_one_line_and_exit_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        ask(line)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.endswith("; see --help\n") and BAD[line] in err
    assert line.split()[0] in err, "the line does not name the flag"


@pytest.mark.parametrize("script", TRAINING)
def test_scripts_refuse_before_torch_is_loaded_or_anything_read(script: str, run_script: Run) -> None:
    lines = [bad for bad in BAD if script == "train_effnet.py" or bad.split()[0] not in EFFNET_ONLY]
    told = answers(run_script, script, lines)
    for line, (code, out, err) in zip(lines, told["answers"], strict=True):
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"{script}: ") and BAD[line] in err, (line, code, err)
    assert told["heavy"] == [] and any("config" in path for path in told["opened"])
    assert [path for path in told["opened"] if not path.endswith((".py", ".pyc")) and Path(path).suffix] == []
    assert not [path for path in told["opened"] if "data" in Path(path).parts]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_torch(script: str, run_script: Run) -> None:
    told = answers(run_script, script, ["--help"])
    [[code, out, err]] = told["answers"]
    assert (code, err, told["heavy"]) == (0, "", [])
    docstring = runpy.run_path(str(ROOT / script))["__doc__"]
    assert docstring.strip() in out and f"python {script}" in out and "==SUPPRESS==" not in out


@pytest.mark.parametrize("script", TRAINING)
def test_help_shows_groups_flags_and_the_scripts_own_defaults(script: str, run_script: Run) -> None:
    [[_, out, _]] = answers(run_script, script, ["--help"])["answers"]
    module = runpy.run_path(str(ROOT / script))
    text = " ".join(out.split())
    for title in ("data:", "optimisation:", "runtime:"):
        assert f"\n{title}\n" in out
    names = [*COMMON_FLAGS, *module.get("FLAGS", ()), *(item.name for item in fields(Runtime))]
    default = module["RECIPES"]["default"]
    for name in names:
        flag = "--name" if name == "run_name" else "--" + name.replace("_", "-")
        assert f"{flag} " in text
        value = getattr(default, name, getattr(Runtime(), name, None))
        if value is not None and not isinstance(value, bool):
            assert f"(default: {value})" in text, f"{flag} does not show {value}"
    assert "--no-pretrained" in text or "pretrained" not in names


def test_the_command_itself_refuses_with_exit_2(run_script: Run) -> None:
    done = run_script("train_effnet.py", "--resize", 0, timeout=30)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "train_effnet.py: argument --resize: 0 must be at least 1; see --help\n"


@pytest.mark.parametrize("script", TRAINING)
def test_the_scripts_recipes_keep_their_own_bounds(script: str) -> None:
    """A default that its own flag would refuse, or a smoke value of the wrong type, would only show when used."""
    module = runpy.run_path(str(ROOT / script))
    recipes = [*module["RECIPES"].values(), *(replace(module["RECIPES"]["default"], **smoke) for smoke in module["SMOKE"].values())]
    for recipe in recipes:
        for item in fields(Recipe):
            value, meta = getattr(recipe, item.name), item.metadata
            assert meta["choices"] is None or value in meta["choices"], item.name
            assert value is None or meta["low"] is None or value >= meta["low"], item.name
            assert value is None or meta["high"] is None or value <= meta["high"], item.name
            assert type(value) in (type(item.default), int if isinstance(item.default, float) else type(item.default)) or item.default is None


def test_recipes_are_frozen_plain_and_named() -> None:
    with pytest.raises(AttributeError):
        DEFAULT.lr = 1  # type: ignore[misc]
    assert json.loads(json.dumps(asdict(DEFAULT))) == asdict(DEFAULT)
    assert Recipe(**asdict(REPORT)) == REPORT
    assert Recipe(model="se_resnet18", stem="imagenet", synthetic=True, train_limit=100, seed=3).name() == "se_resnet18-imagenet-synthetic-limit100-seed3"
    assert Recipe(model="efficientnet_b2", resize=2, pretrained=True).name() == "efficientnet_b2-x2-pretrained-seed0"


def test_difference_names_each_changed_or_missing_key() -> None:
    assert difference(asdict(DEFAULT), asdict(REPORT)) == ["batch_size: 125 -> 64", "lr: 0.5 -> 0.25"]
    assert difference({"a": 1, "b": 2}, {"b": 2, "c": 3}) == ["a: 1 -> None", "c: None -> 3"]
    assert difference(asdict(DEFAULT), asdict(DEFAULT)) == []
