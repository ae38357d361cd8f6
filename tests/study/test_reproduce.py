"""The study's one command: every row of the table becomes runs, finished ones are skipped, failures do not stop the rest."""
import subprocess
import sys
from dataclasses import asdict

import pytest
from test_results import write_run

import train_baseline
import train_effnet
import train_improved
from common.study import reproduce
from common.study import results
from common.config import Runtime, parse
from common.errors import InputError, Interrupted


def commands(options: reproduce.Options = reproduce.Options(), runtime: Runtime = Runtime(), seeds=(0, 1)) -> list[str]:
    return [" ".join(step.command) for step in reproduce.plan(options, runtime, seeds)]


def test_every_row_is_run_with_every_seed():
    found = commands()
    for row in results.ROWS:
        expected = 0 if row in (results.PRETRAINING, results.OWN) else 2
        assert sum(f"--name {row.key}-seed" in words for words in found) == expected, row.title
    assert found[0] == "-m common.study.bench --parts rates trajectory profile --json runs/bench.json" and found[-1] == "ablation.py --all --seeds 0 1 --name study"


@pytest.mark.parametrize("options", [{}, {"weights": "/w/efficientnet-b2-8bb594d6.pth"}, {"pretraining": "SET"}, {"pretraining": "SET", "start_from": "own"}])
def test_what_a_row_runs_is_what_the_row_counts(options, make_tree):
    modules = {"train_baseline": (train_baseline,), "train_improved": (train_improved, train_improved.FLAGS, train_improved.pick),
               "train_effnet": (train_effnet, train_effnet.FLAGS, train_effnet.pick)}
    options = {key: str(make_tree()) if value == "SET" else value for key, value in options.items()}
    steps = [step for step in reproduce.plan(reproduce.Options(**options), Runtime(), [3]) if step.command[0].startswith("train_")]
    assert len(steps) >= 9
    for step in steps:
        module, *more = modules[step.command[0].removesuffix(".py")]
        recipe, runtime = parse("", module.RECIPES, module.SMOKE, *more, argv=step.command[1:])
        fitting = [row for row in results.ROWS if row.script == module.__name__ and row.fits(asdict(recipe)) and not results.changes(row, asdict(recipe))]
        if runtime.run_name == "pretraining":
            assert results.PRETRAINING in fitting
        else:
            (row,) = [row for row in fitting if row is not results.PRETRAINING]
            assert runtime.run_name.replace("-own-seed", "-seed") == f"{row.key}-seed3" or (row is results.OWN and runtime.run_name == "b2-own-seed3")
            assert recipe.seed == 3


def test_pretraining_comes_first_and_its_weights_are_handed_on(make_tree):
    tree = make_tree(size=64)
    found = commands(reproduce.Options(pretraining=str(tree)))
    (pretraining,) = [i for i, words in enumerate(found) if "--name pretraining" in words]
    own = [i for i, words in enumerate(found) if "runs/train_effnet/pretraining/best.pt" in words]
    assert found[pretraining] == f"train_effnet.py --resize 1 --no-pretrained --data-dir {tree} --name pretraining"  # 64 px already
    assert len(own) == 2 and pretraining < min(own)
    found = commands(reproduce.Options(pretraining=str(tree), start_from="own"))
    assert sum("pretraining/best.pt" in words for words in found) == 2 + 6 + 1 and not any("--name b2-seed" in words for words in found)
    assert any("--name b2-32px-own-seed0" in words for words in found) and found[-1].endswith("--name study-own")
    assert "train_effnet.py --resize 2 --no-pretrained" in commands(reproduce.Options(pretraining=str(make_tree(name="small"))))[pretraining]


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(InputError, match="needs --pretraining"):
        commands(reproduce.Options(start_from="own"))
    with pytest.raises(InputError, match="holds no train/<class>/<image>"):
        commands(reproduce.Options(pretraining=str(tmp_path)))


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Commands that `main` ran in an empty folder, as if each ended at once with the exit code in `codes` (default 0)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(f"{results.MARK}\n{results.END}\n")
    done: list[str] = []
    codes: dict[str, int] = {}

    def run(words) -> int:
        done.append(" ".join(words))
        return next((code for part, code in codes.items() if part in done[-1]), 0)

    monkeypatch.setattr(reproduce, "run", run)
    monkeypatch.setattr(sys, "argv", ["reproduce", "--seeds", "0"])
    return done, codes


def test_finished_steps_are_skipped_and_begun_ones_resumed(ran, tmp_path):
    done, _ = ran
    write_run(tmp_path / "runs", "train_baseline", train_baseline.DEFAULT, 0.73, "baseline-seed0")
    begun = tmp_path / "runs/train_improved/improved-seed0"
    begun.mkdir(parents=True)
    (begun / "recipe.json").write_text("{}")
    assert reproduce.main() == 0
    assert not any("train_baseline.py" in words for words in done)
    assert [words.endswith("--resume") for words in done if "--name improved-seed0" in words] == [True]
    assert sum(words.endswith("--resume") for words in done) == 1
    assert done[-1] == "analyze.py --ckpt runs/train_baseline/baseline-seed0/best.pt"
    assert "73.00 (n = 1, seed 0)" in (tmp_path / "README.md").read_text()


def test_a_failed_step_leaves_the_others_and_a_signal_stops_all(ran, capsys):
    done, codes = ran
    codes["--name improved-seed0"] = 1
    assert reproduce.main() == 1 and done[-1].startswith("ablation.py")
    assert "failed:\nexit 1: python train_improved.py --seed 0 --name improved-seed0" in capsys.readouterr().out
    count = len(done)
    codes["--name se-cifar-seed0"] = 130
    with pytest.raises(Interrupted):
        reproduce.main()
    assert "se-cifar" in done[-1] and len(done) < 2 * count


def test_own_weights_wait_for_the_end_of_pretraining(ran, tmp_path, make_tree, monkeypatch, capsys):
    done, codes = ran
    codes["--name pretraining"] = 1
    monkeypatch.setattr(sys, "argv", ["reproduce", "--seeds", "0", "--pretraining", str(make_tree())])
    half = tmp_path / "runs/train_effnet/pretraining"
    half.mkdir(parents=True)
    (half / "best.pt").write_text("half trained")
    assert reproduce.main() == 1
    assert not any("b2-own" in words for words in done) and any("--name b2-seed0" in words for words in done)
    assert "not begun, since runs/train_effnet/pretraining/result.json is missing" in capsys.readouterr().out


def test_the_best_checkpoint_is_chosen_by_val_among_the_studys_own_runs(tmp_path):
    steps = []
    for name, test, val in (("a", 0.9, 0.70), ("b", 0.1, 0.80), ("pretraining", 0.1, 0.95), ("stranger", 0.99, 0.99)):
        write_run(tmp_path, "train_effnet", train_effnet.DEFAULT, test, name, val_top1=val)
        steps += [reproduce.Step([], tmp_path / "train_effnet" / name / "result.json")] * (name != "stranger")
    assert reproduce.best_checkpoint(steps) == tmp_path / "train_effnet" / "b" / "best.pt"
    assert reproduce.best_checkpoint([reproduce.Step([], tmp_path / "bench.json")]) is None


def test_help_and_wrong_flags_need_no_torch(run_script):
    code = ("import sys; sys.argv = ['reproduce', *sys.argv[1:]]\nfrom common import reproduce\ntry: reproduce.main()\n"
            "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)")
    assert run_script("-c", code, "--help").stdout.endswith("0 False\n") and run_script("-c", code, "--wrong").stdout == "2 False\n"


def test_sigterm_reaches_the_step(tmp_path):
    """The parent passes the signal on and ends with 143 after its child."""
    child = "import signal, sys, time; signal.signal(15, lambda *_: (print('told', flush=True), sys.exit(143))); print('up', flush=True); time.sleep(30)"
    parent = f"from common import errors, reproduce; errors.run_script(lambda: reproduce.run(['-c', {child!r}]))"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.terminate()
        out, _ = process.communicate(timeout=30)
    assert out == "told\n" and process.returncode == 143
