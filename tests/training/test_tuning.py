"A study of trainings: killed, shared by processes, refused, and never reading a test image."
import csv
import os
import re
import signal
import subprocess
import sys

import pytest
from filelock import FileLock
from tools.command import ended, run, start
from tools.files import two_classes
from tools.server import until

from cifar_nb.core import ConfigError, Settings
from cifar_nb.folders import Dataset
from cifar_nb.recipes import RECIPE_NAMES, find_recipe
from cifar_nb.search import best_first, import_optuna, open_study, study_rows
from cifar_nb.tune import make_plan, open_trial_data, own_values, run_trial

SPACE = """
batch_size = [20, 40]

[optimizer]
lr = {low = 1e-4, high = 1e-2, log = true}
name = ["adam", "sgd"]

[model]
widths = [[4, 4], [8, 8]]
"""
RECIPE = """
epochs = 1
precision = "float32"
model.widths = [4, 4]
batch_size = 20
"""


@pytest.fixture(scope="session")
def leaves(tmp_path_factory): return two_classes(tmp_path_factory.mktemp("data") / "leaves")


@pytest.fixture
def place(tmp_path, leaves, monkeypatch):
    "A folder with a recipe and a space, where models are kept as well."
    monkeypatch.setenv("CIFAR_NB_MODELS_DIR", str(tmp_path))
    (tmp_path / "tiny.toml").write_text(f'data = "{leaves}"\n{RECIPE}')
    (tmp_path / "space.toml").write_text(SPACE)
    return tmp_path


def words(place, trials, *more):
    return ["tune", "--recipe", place / "tiny.toml", "--space", place / "space.toml", "--trials", trials,
            "--device", "cpu", *more]


def begin(place, trials, *more, log="log"):
    "A study in a process of its own."
    return start(*words(place, trials, *more), log=place / log, OMP_NUM_THREADS="1")


def rows_of(place, name="tiny"):
    study = import_optuna().load_study(study_name=name, storage=journal(place / "studies" / name))
    return study_rows(study)


def journal(folder):
    storages = import_optuna().storages
    return storages.JournalStorage(storages.journal.JournalFileBackend(str(folder / "journal.log")))


def counts(rows):
    states = [row["state"] for row in rows]
    return {state: states.count(state) for state in states}


def test_a_study_finds_a_recipe_that_trains(place):
    code, printed, error = run(*words(place, 5))
    assert (code, error) == (0, "")
    assert len(re.findall(r"^\d/5  trial \d: ", printed, re.M)) == 5
    folder = place / "studies" / "tiny"
    names = {"best.toml", "start.toml", "trials.csv", "history.png", "journal.log"}
    assert names <= {path.name for path in folder.iterdir()}
    rows = rows_of(place)
    best = best_first(rows, maximize=True)[0]
    recipe = find_recipe(str(folder / "best.toml"))
    assert recipe.optimizer.lr == best["values"]["optimizer.lr"]
    assert [*recipe.model["widths"]] in ([4, 4], [8, 8]) and recipe.batch_size in (20, 40)
    assert best["score"] == max(row["score"] for row in rows if row["score"] is not None)
    with open(folder / "trials.csv", encoding="utf-8") as file: table = list(csv.DictReader(file))
    assert [row["trial"] for row in table] == list("01234")
    assert table[best["trial"]]["optimizer.lr"] == str(recipe.optimizer.lr)
    # The recipe itself was the first trial, so the winner is at least as good
    assert rows[0]["values"] == dict(zip(
        ["batch_size", "optimizer.lr", "optimizer.name", "model.widths"], ["20", .001, "adam", "[4, 4]"]))
    code, printed, error = run("train", "--recipe", folder / "best.toml", "--seed", 1000, "--device", "cpu",
                               "--out", place / "winner.safetensors")
    assert code == 0 and "saved" in printed, error


def test_the_same_command_goes_on(place):
    run(*words(place, 2))
    before = rows_of(place)
    code, printed, _ = run(*words(place, 3))
    assert code == 0 and printed.count("trial 2:") == 1
    assert rows_of(place)[:2] == before and len(rows_of(place)) == 3
    assert run(*words(place, 3))[0] == 0 and len(rows_of(place)) == 3


def test_two_studies_with_one_seed_are_the_same(place):
    for name in ("one", "two"): run(*words(place, 3, "--study", name))
    def found(name): return [(row["values"], row["scores"]) for row in rows_of(place, name)]
    first, second = found("one"), found("two")
    assert first == second
    assert len({row[0]["optimizer.lr"] for row in first}) == 3


def test_test_images_are_never_read(place, monkeypatch):
    def refuse(self): raise AssertionError("the test images were read")
    monkeypatch.setattr(Dataset, "test", property(refuse))
    read = []
    before = Dataset.train.func

    def train(self):
        read.append("train")
        return before(self)

    monkeypatch.setattr(Dataset, "train", property(train))
    assert run(*words(place, 2, "--seeds", 2))[0] == 0
    assert read and all(len(row["scores"]) == 2 for row in rows_of(place))
    # The guard itself works: a training does read them
    with pytest.raises(AssertionError):
        run("train", "--recipe", place / "tiny.toml", "--out", place / "x.safetensors")


def test_a_killed_trial_does_not_count(place):
    process = begin(place, 4, "--epochs", 40)
    until((place / "studies" / "tiny" / "journal.log").exists)

    def in_the_second():  # stopped, so that it cannot end before it is killed
        os.kill(process.pid, signal.SIGSTOP)
        rows = rows_of(place)
        if len(rows) > 1 and rows[-1]["state"] == "running": return True
        os.kill(process.pid, signal.SIGCONT)

    until(in_the_second)
    process.kill()
    process.join()
    assert counts(rows_of(place)).get("running") == 1
    code, printed, error = run(*words(place, 4, "--epochs", 40))
    assert code == 0, error
    found = counts(rows_of(place))
    assert found.pop("fail") == 1 and sum(found.values()) == 4 and "running" not in found
    assert "4/4" in printed


def test_the_recipe_itself_is_tried_again_after_a_kill(place):
    process = begin(place, 1, "--epochs", 40)
    until((place / "studies" / "tiny" / ".trial-0.lock").exists)
    process.kill()
    process.join()
    run(*words(place, 1, "--epochs", 40))
    first, second = rows_of(place)
    assert (first["state"], second["state"]) == ("fail", "complete")
    assert second["values"]["optimizer.lr"] == .001


def test_two_processes_share_a_study(place):
    logs = [place / "first", place / "second"]
    both = [begin(place, 4, "--epochs", 20, log=log) for log in logs]
    assert ended(*both) == [0, 0], [log.read_text() for log in logs]
    rows = rows_of(place)
    assert len(rows) == 4 and sum(counts(rows).get(state, 0) for state in ("complete", "pruned")) == 4
    told = [re.findall(r"trial (\d+):", log.read_text()) for log in logs]
    assert sorted(told[0] + told[1]) == list("0123")
    assert told[0] and told[1]
    assert [row["values"] for row in rows].count(rows[0]["values"]) == 1


def test_no_trial_begins_in_the_turn_of_another_process(place):
    folder = place / "studies" / "tiny"
    study = open_study(folder, {}, maximize=True)
    with FileLock(folder / ".study.lock"):
        process = begin(place, 1)
        until(lambda: (place / "log").exists() and (place / "log").read_text())  # its first line
        process.join(3)
        assert study.trials == []
    assert ended(process) == [0] and len(study.trials) == 1


def test_a_database_may_hold_the_study(place):
    url = f"sqlite:///{place}/study.db"
    assert run(*words(place, 2, "--storage", url))[0] == 0
    assert not (place / "studies" / "tiny" / "journal.log").exists()
    code, printed, _ = run(*words(place, 3, "--storage", url))
    assert code == 0 and "3/3" in printed


@pytest.mark.parametrize("text, said", [
    ("optimizer.lrr = {low = 1e-4, high = 1e-2}", "did you mean 'optimizer.lr'"),
    ("optimizer.lr = {low = 0.1, high = 0.01}", "from 0.1 to 0.01 is empty"),
    ("optimizer.lr = {low = nan, high = 0.01}", "is empty"),
    ("optimizer.lr = {low = 0.1, high = 1000.0}", "optimizer.lr = 1000.0: input should be less"),
    ("optimizer.lr = {low = 0.0, high = 1.0, log = true}", "starts above 0"),
    ("optimizer.lr = {min = 0.0, max = 1.0}", "optimizer.lr: write a list"),
    ("optimizer.lr = [0.1]", "at least two values"),
    ("optimizer.lr = [0.1, 0.1]", "none of them twice"),
    ("optimizer.lr = 0.1", "write a list"),
    ('optimizer.name = ["adam", "admw"]', "did you mean 'adamw'"),
    ("batch_size = {low = 1, high = 64}", "batch_size = 1"),
    ("batch_size = {low = 16.5, high = 64}", "valid integer"),
    ("seed = [0, 1]", "the same in all trials"),
    ('data = ["cifar10", "cifar100"]', "the same in all trials"),
    ("", "nothing to search"),
    ("optimizer.lr = ", "not TOML")])
def test_a_bad_space_is_refused_before_data_is_read(text, said, *, place, monkeypatch):
    monkeypatch.setattr("cifar_nb.folders.load_dataset", None)
    (place / "space.toml").write_text(text)
    code, _, error = run(*words(place, 2))
    assert code == 2 and said in error
    assert not (place / "studies").exists()


@pytest.mark.parametrize("more, said", [
    (["--epochs", 2], "another recipe (epochs = 1)"), (["--loss"], "another objective (accuracy)"),
    (["--seeds", 2], "another seeds (1)"), (["--study", "../x"], "the name of a folder"),
    (["--space", "missing.toml"], "missing.toml cannot be read"), (["--space", "x.txt"], "must end in .toml"),
    (["--storage", "nonsense"], "is not the URL of a database")])
def test_another_study_is_refused_before_data_is_read(more, said, *, place, monkeypatch):
    open_study(place / "studies" / "tiny", tiny_plan(place).facts, maximize=True)
    monkeypatch.setattr("cifar_nb.folders.load_dataset", None)
    code, _, error = run(*words(place, 2, *more))
    assert code == 2 and said in error


def tiny_plan(place, text=SPACE, **options):
    return make_plan(find_recipe(str(place / "tiny.toml")), text, **options)


def test_other_images_are_refused(place):
    from cifar_nb.tune import search
    plan, settings = tiny_plan(place), Settings.read(device="cpu")
    data = open_trial_data(plan.recipe, settings)
    folder = place / "studies" / "tiny"
    search(plan, folder, settings, 1, data=data._replace(train=data.train[:40]))
    with pytest.raises(ConfigError, match="another digest of the images"):
        search(plan, folder, settings, 2, data=data)


def test_a_study_needs_validation_images(place):
    recipe = find_recipe(str(place / "tiny.toml"), held_out=0.)
    with pytest.raises(ConfigError, match="held_out above 0"): open_trial_data(recipe, Settings.read())


def test_values_that_do_not_train_are_bad_values(place):
    optuna, settings = import_optuna(), Settings.read(device="cpu")
    plan = tiny_plan(place, "accumulate = [1, 5000]")
    data = open_trial_data(plan.recipe, settings)
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({"accumulate": "5000"})
    study.optimize(lambda trial: run_trial(trial, plan, data, settings), n_trials=1)
    row, = study_rows(study)
    assert row["state"] == "pruned" and "accumulate = 5000" in row["note"]
    with pytest.raises(ConfigError, match="completed: accumulate = 5000"): best_first([row], True)


def test_bad_trials_are_stopped_early(place):
    optuna, settings = import_optuna(), Settings.read(device="cpu")
    plan = make_plan(find_recipe(str(place / "tiny.toml"), epochs=3), "optimizer.lr = [0.001, 100.0]")
    data = open_trial_data(plan.recipe, settings)
    pruner = optuna.pruners.ThresholdPruner(lower=2.)  # which no accuracy reaches
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for lr in ("100.0", "0.001"): study.enqueue_trial({"optimizer.lr": lr})
    study.optimize(lambda trial: run_trial(trial, plan, data, settings), n_trials=2)
    bad, start = study_rows(study)
    assert bad["state"] == "pruned" and len(bad["curve"]) < 3
    assert start["state"] == "complete" and len(start["curve"]) == 3, "the recipe itself is never stopped"


@pytest.mark.parametrize("name", [name for name in RECIPE_NAMES if name != "finetune"])
def test_each_recipe_has_a_space_around_it(name):
    recipe = find_recipe(name)
    if recipe.model_dump().get("start") == "imagenet": recipe = find_recipe(name, start="")
    plan = make_plan(recipe)
    assert plan.start and plan.start.keys() == plan.space.keys()
    own = own_values(recipe)
    assert all(str(value) == str(own[key]) for key, value in plan.start.items() if isinstance(value, float))


def test_a_fast_recipe_can_be_searched(place):
    code, printed, error = run(
        "tune", "synthetic", "--recipe", "speed94", "--epochs", 1, "--trials", 1, "--device", "cpu",
        "--space", write(place / "fast.toml", 'widths = [[8, 8], [4, 4]]\nlr = {low = 0.1, high = 0.5}\n'))
    assert code == 0 and "1/1" in printed, error
    assert rows_of(place, "speed94")[0]["curve"]


def write(path, text):
    path.write_text(text)
    return path


def test_nothing_of_optuna_is_imported_unless_it_is_used():
    code = "import sys, cifar_nb.cli, cifar_nb.tune, cifar_nb.search; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"optuna", "sqlalchemy", "torch"} & {*loaded}


def test_without_optuna_the_error_names_the_extra(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, error = run(*words(place, 1))
    assert code == 2 and 'pip install "cifar_nb[mlops]"' in error
    assert not (place / "studies").exists()
