"""Run folders that lose nothing, and the copy of best.pt that the next command finds."""
import json
from dataclasses import replace

import pytest
from drawn import PLAIN, drawn_splits

from common.config import Runtime
from common.errors import InputError
from common.training.folder import claim_folder, publish


def claim(out, recipe=PLAIN, splits=None, **runtime):
    """The folder of a run of `recipe` below `out`."""
    return claim_folder("script", recipe, Runtime(out=str(out), **runtime),
                        splits or drawn_splits(), {})


def test_a_used_folder_is_refused(tmp_path):
    folder = claim(tmp_path)
    assert folder == tmp_path / "script" / PLAIN.model and (folder / "recipe.json").is_file()
    (folder / "notes.txt").write_text("someone else's")
    with pytest.raises(InputError, match="--resume, or choose a new --name"):
        claim(tmp_path)
    assert claim(tmp_path, run_name="other").name == "other"
    assert claim(tmp_path, resume=True) == folder


def test_a_run_that_died_before_its_first_epoch_stands_in_no_ones_way(tmp_path):
    folder = claim(tmp_path)
    (folder / "last.pt").write_text("of no epoch")
    (folder / ".last.pt.123.tmp").write_text("half of it")
    assert claim(tmp_path) == folder and not (folder / "last.pt").exists()


def test_resume_begins_where_there_is_nothing(tmp_path, capsys):
    folder = claim(tmp_path, resume=True)
    assert (folder / "recipe.json").is_file()
    assert capsys.readouterr().out == "nothing to resume: the run begins\n"
    assert claim(tmp_path, resume=True) == folder and capsys.readouterr().out == ""


def test_resume_names_what_changed(tmp_path):
    claim(tmp_path, run_name="a")
    with pytest.raises(InputError, match=r"differs .*lr: 0.01 -> 0.5"):
        claim(tmp_path, replace(PLAIN, lr=0.5), resume=True, run_name="a")
    for key in ("split_hash", "identity"):
        with pytest.raises(InputError, match="images are not those it was trained on"):
            claim(tmp_path, splits=replace(drawn_splits(), **{key: "other"}), resume=True,
                  run_name="a")


def test_two_data_folders_of_one_name_are_two_runs(tmp_path):
    """Other images at the same place are no other run: they are refused as changed data."""
    name = "simple_cnn-photos-seed0"
    here, there = (str(tmp_path / place / "photos") for place in ("here", "there"))
    first = claim(tmp_path, run_name=name, data_dir=here)
    (first / "history.csv").write_text("")
    others = replace(drawn_splits(), identity="beefcafe")
    second = claim(tmp_path, splits=others, run_name=name, data_dir=there)
    assert second.name == f"{name}.beef"
    assert claim(tmp_path, splits=others, run_name=name, data_dir=there, resume=True) == second
    assert claim(tmp_path, run_name=name, data_dir=there, resume=True) == first, "it has moved"
    with pytest.raises(InputError, match="images are not those it was trained on"):
        claim(tmp_path, splits=others, run_name=name, data_dir=here, resume=True)


@pytest.mark.parametrize("key, value", [("epochs", 9), ("head_epochs", 3), ("epochs", 1)])
def test_resume_with_another_length_is_refused(key, value, tmp_path):
    claim(tmp_path, run_name="a")
    with pytest.raises(InputError, match=rf"a \({key}: {getattr(PLAIN, key)} -> {value}\)"):
        claim(tmp_path, replace(PLAIN, **{key: value}), resume=True, run_name="a")


def test_runs_older_than_a_field_are_resumed_and_foreign_ones_are_one_line(tmp_path):
    folder = claim(tmp_path)
    stored = json.loads((folder / "recipe.json").read_text())
    del stored["identity"], stored["recipe"]["fit"], stored["recipe"]["image_size"]
    (folder / "recipe.json").write_text(json.dumps(stored))
    assert claim(tmp_path, resume=True) == folder
    for content in ("[]", '{"recipe": 1}', '{"recipe": 1, "split_hash": ""}'):
        (folder / "recipe.json").write_text(content)
        with pytest.raises(InputError, match="recipe.json"):
            claim(tmp_path, resume=True)


def test_smoke_runs_never_stand_in_the_way(tmp_path):
    for name in ("smoke-x", "smoke-x-2", "smoke-x-3"):
        folder = claim(tmp_path, smoke=True, run_name="smoke-x")
        (folder / "history.csv").write_text("")
        assert folder.name == name


@pytest.fixture
def two_runs(tmp_path):
    """The best.pt of two runs, each of which holds its run's name, and the folder of both."""
    runs = tmp_path / "runs"
    for name in "ab":
        (runs / name).mkdir(parents=True)
        (runs / name / "best.pt").write_text(name)
    return runs / "a" / "best.pt", runs / "b" / "best.pt", runs


def test_publish_keeps_a_file_that_exists_nowhere_else(two_runs, tmp_path, capsys):
    (a, b, runs), target = two_runs, tmp_path / "best.pt"
    target.write_text("mine")
    assert publish(a, runs, target) == target
    assert "best.1.pt" in capsys.readouterr().out
    assert (tmp_path / "best.1.pt").read_text() == "mine" and target.read_text() == "a"
    publish(b, runs, target)
    assert "best.2.pt" not in capsys.readouterr().out
    assert target.read_text() == "b"
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["best.1.pt", "best.pt"]
    with open(target, "w") as file:  # as `cp` does
        file.write("another run's")
    assert b.read_text() == "b", "two names are two files"


def test_a_place_that_cannot_be_written_blocks_nothing(two_runs, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    a, _, runs = two_runs
    assert publish(a, runs, tmp_path / "file" / "best.pt") == a
    said = capsys.readouterr().out
    assert "is not copied to" in said and "name it by its own path" in said
