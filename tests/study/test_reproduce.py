"""The study's one command: every row of the table becomes runs, finished ones are skipped,
failures do not stop the rest."""
import subprocess
import sys
from dataclasses import asdict

import pytest

import train_baseline
import train_effnet
import train_improved
from common.config import Runtime, parse
from common.errors import InputError, Interrupted
from common.study import reproduce
from common.study.rows import PRETRAINED, ROWS, row_of

MODULES = {
    "train_baseline.py": (train_baseline,),
    "train_improved.py": (train_improved, train_improved.FLAGS, train_improved.pick),
    "train_effnet.py": (train_effnet, train_effnet.FLAGS, train_effnet.pick),
}


def commands(weights=None, runtime=Runtime(), seeds=(0, 1)) -> list[str]:
    options = reproduce.Options(weights=weights)
    return [" ".join(words) for words in reproduce.plan(options, runtime, seeds)]


@pytest.mark.parametrize(
    "weights, kind", [(None, "imagenet"), ("lite2", "lite2"), ("own/best.pt", "own")]
)
def test_every_row_is_run_with_every_seed_and_counted_by_that_row(weights, kind):
    found = commands(weights, seeds=(0, 1))
    trained = [words for words in found if words.startswith("train_")]
    for row in ROWS:
        mine = [words for words in trained if row_trained(words) is row]
        pretrained = row.starts[0] != "random"
        assert len(mine) == (2 if not pretrained or kind in row.starts else 0), row.key
        assert all(("--weights" in words) == bool(weights and pretrained) for words in mine)
    assert found[0] == "-m common.study.bench --parts rates profile --json runs/bench.json"
    given = f" --weights {weights}" if weights else ""
    assert found[-3:] == [
        f"ablation.py --all --seeds 0 1{given} --name study-{kind}",
        "analyze.py --ckpt best.pt",
        "-m common.study.results runs docs/results",
    ]


def row_trained(words: str):
    """The row that counts what a command trains."""
    script, *flags = words.split()
    module, *more = MODULES[script]
    recipe, runtime = parse("", module.RECIPES, module.SMOKE, *more, argv=flags)
    assert runtime.run_name.endswith(f"-seed{recipe.seed}")
    row = row_of(asdict(recipe))
    assert row.changes(asdict(recipe)) == {}
    return row


def test_names_of_runs_from_other_weights_differ():
    names = [
        {words.partition("--name ")[2].split(" ")[0] for words in commands(weights)}
        for weights in (None, "lite2")
    ]
    pretrained = [row for row in ROWS if row.starts == PRETRAINED]
    # B2 at 64 px, the sizes, the ablation.
    assert len(names[0] - names[1]) == 2 * (1 + len(pretrained)) + 1


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Commands that `main` ran in an empty folder, as if each ended at once with the exit
    code in `codes` (default 0)."""
    monkeypatch.chdir(tmp_path)
    done: list[str] = []
    codes: dict[str, int] = {}

    def run(words) -> int:
        done.append(" ".join(words))
        return next((code for part, code in codes.items() if part in done[-1]), 0)

    monkeypatch.setattr(reproduce, "run", run)
    monkeypatch.setattr(sys, "argv", ["reproduce", "--seeds", "0"])
    return done, codes


def test_every_run_goes_on_where_it_stopped(ran):
    done, _ = ran
    assert reproduce.main() == 0
    trained = [words for words in done if words.startswith("train_")]
    assert trained and all("--resume" in words for words in trained)


def test_the_list_runs_nothing(ran, monkeypatch, capsys):
    done, _ = ran
    monkeypatch.setattr(sys, "argv", ["reproduce", "--list"])
    assert reproduce.main() == 0 and not done
    assert "python analyze.py --ckpt best.pt\n" in capsys.readouterr().out


def test_a_failed_step_leaves_the_others_and_a_signal_stops_all(ran, capsys):
    done, codes = ran
    codes["--name improved-seed0"] = 1
    assert reproduce.main() == 1 and done[-1].startswith("-m common.study.results")
    expected = "failed:\nexit 1: python train_improved.py --seed 0 --name improved-seed0 --resume"
    assert expected in capsys.readouterr().out
    count = len(done)
    codes["--name se-cifar-seed0"] = 130
    with pytest.raises(Interrupted):
        reproduce.main()
    assert "se-cifar" in done[-1] and len(done) < 2 * count


def test_a_smoke_study_goes_beside_the_real_one(ran, monkeypatch):
    done, _ = ran
    monkeypatch.setattr(sys, "argv", ["reproduce", "--smoke"])
    assert reproduce.main() == 0
    assert (
        done[-1]
        == "-m common.study.results runs/reproduce-smoke runs/reproduce-smoke-published"
    )
    trained = [words for words in done if words.startswith(("train_", "ablation"))]
    assert all(
        "--smoke" in words and "--out runs/reproduce-smoke" in words for words in trained
    )
    assert not any("seed1" in words for words in trained)


@pytest.mark.parametrize("module", ("bench", "results", "reproduce"))
def test_help_and_wrong_flags_need_no_torch(module, run_script):
    code = (
        f"import sys; sys.argv = [{module!r}, *sys.argv[1:]]\n"
        f"from common.study import {module}\n"
        f"try: {module}.main()\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    assert run_script("-c", code, "--help").stdout.endswith("0 False\n")
    assert run_script("-c", code, "--wrong").stdout == "2 False\n"


@pytest.mark.parametrize("flag", ["--data-dir", "--target"])
def test_a_smoke_study_takes_no_place_of_the_users(flag, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce", "--smoke", flag, "photos"])
    with pytest.raises(InputError, match=f"{flag} has no effect"):
        reproduce.main()


def test_sigterm_reaches_the_step():
    """The parent passes the signal on and ends with 143 after its child."""
    child = (
        "import signal, sys, time; "
        "signal.signal(15, lambda *_: (print('told', flush=True), sys.exit(143))); "
        "print('up', flush=True); time.sleep(30)"
    )
    parent = (
        "from common import errors; from common.study import reproduce; "
        f"errors.run_script(lambda: reproduce.run(['-c', {child!r}]))"
    )
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", parent], **pipes) as process:
        assert process.stdout.readline() == "up\n"
        process.terminate()
        out, _ = process.communicate(timeout=30)
    assert out == "told\n" and process.returncode == 143
