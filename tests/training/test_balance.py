"Recipes for rare classes: what is suggested, trained, recorded, resumed and refused."
import pytest
import torch
from tools.command import run
from tools.parts import parts_folder

from cifar_nb.core import CifarNbError, Settings
from cifar_nb.experiment import run_recipe
from cifar_nb.folders import load_dataset
from cifar_nb.imbalance import WeightedLoss
from cifar_nb.modelfile import read_card
from cifar_nb.parts import build_parts
from cifar_nb.recipes import from_toml
from cifar_nb.records import Recipe, SpeedRecipe

SMALL = ["--set", "architecture=speed_net", "--set", "model.widths=[8,8]", "--batch-size", 16, "--epochs", 1,
         "--held-out", .2, "--precision", "float32", "--device", "cpu"]
KINDS = {
    "standard": dict(architecture="speed_net", model=dict(widths=[8, 8]), batch_size=16, epochs=3),
    "tiles": dict(architecture="speed_net", model=dict(widths=[8, 8]), batch_size=16, epochs=2, fit="tiles"),
    "mixed": dict(architecture="speed_net", model=dict(widths=[8, 8]), batch_size=16, epochs=2, mix="cutmix"),
    "speed": dict(kind="speed", widths=(8, 8), batch_size=16, accumulate=2, epochs=3)}
WAYS = "weights", "sampling"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Ten good parts for each defect."
    return parts_folder(tmp_path_factory.mktemp("data"), ok=200, defect=20, plain=True, size=(48, 40))


def make(kind, folder, **more):
    choices = dict(KINDS[kind], data=str(folder), held_out=.2, precision="float32", **more)
    return (SpeedRecipe if kind == "speed" else Recipe)(**{k: v for k, v in choices.items() if k != "kind"})


def test_the_data_check_suggests_it(folder, tmp_path):
    code, said, _ = run("data", folder)
    assert code == 0 and "times as many training images as defect" in said
    assert "--set balance=weights (or sampling)" in said
    even = parts_folder(tmp_path, ok=30, defect=25, plain=True, size=(32, 32))
    assert "balance" not in run("data", even)[1]


def test_a_class_of_three_images_needs_more_of_them(tmp_path):
    "And each class is in the training part, or there would be nothing to learn from."
    few = parts_folder(tmp_path / "train", ok=40, defect=3, plain=True, size=(32, 32)).parent
    parts_folder(few / "test", ok=4, defect=2, plain=True, size=(32, 32), seed=1)
    said = run("data", few)[1]
    assert "OK has 13 times as many training images as defect (40 and 3)" in said
    assert "more images of defect would help more" in said
    for way in WAYS:
        out = tmp_path / f"{way}.safetensors"
        code, _, error = run("train", "--data", few, "--out", out, *SMALL, "--set", f"balance={way}")
        assert code == 0, error


def test_from_the_command_line_to_the_card(folder, tmp_path):
    out, again = tmp_path / "plain.safetensors", tmp_path / "again.safetensors"
    code, _, said = run("train", "--data", folder, "--out", out, *SMALL)
    assert code == 0 and "--set balance=weights (or sampling)" in said
    assert "equally frequent" not in run("info", out)[1]

    weighted = ["--set", "balance=weights", "--replace"]
    code, _, said = run("train", "--data", folder, "--out", out, *SMALL, *weighted)
    assert code == 0 and "balance = weights, but the epoch is kept by its validation accuracy" in said
    assert "(or sampling)" not in said
    assert read_card(out).recipe["balance"] == "weights"
    assert "trained as if all classes were equally frequent (balance = weights)" in run("info", out)[1]
    recipe = from_toml((tmp_path / "runs" / "plain-0002" / "recipe.toml").read_text(encoding="utf-8"))
    assert recipe.balance == "weights"

    by = ["--from-card", out, "--data", folder, "--set", "monitor=balanced_accuracy"]
    code, _, said = run("train", *by, "--out", again, "--device", "cpu")
    assert code == 0 and "but the epoch is kept" not in said
    card = read_card(again)
    assert (card.recipe["balance"], card.kept_by) == ("weights", "highest validation balanced accuracy")


def test_in_a_file(folder, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('balance = "sampling"\n[stopping]\nmonitor = "macro_f1"\n')
    out = tmp_path / "own.safetensors"
    code, _, said = run("train", "--recipe", own, "--data", folder, "--out", out, *SMALL)
    assert code == 0 and "--set balance" not in said and "balance =" not in said
    assert read_card(out).recipe["balance"] == "sampling"


@pytest.mark.parametrize("recipe, change, said", [
    ("simple", "balance=weight", "balance = 'weight': did you mean 'weights'?"),
    ("simple", "balance=true", "balance = 'true': use one of none, weights, sampling"),
    ("simple", "balance=", "balance = '': use one of none, weights, sampling"),
    ("simple", "balance.weights=1", "balance is a section"),
    ("simple", "balanced=weights", "a recipe has no 'balanced': did you mean 'balance'?"),
])
def test_what_makes_no_sense_is_refused(recipe, change, said, *, folder, tmp_path):
    code, _, error = run("train", "--recipe", recipe, "--data", folder, "--set", change,
                         "--out", tmp_path / "no.safetensors")
    assert code == 2 and said in error and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_do_what_the_recipe_says(folder, kind):
    data = load_dataset(str(folder), 32, fit=KINDS[kind].get("fit", "crop"))
    n_rare = int((data.train.labels == data.train.classes.index("defect")).sum())

    def seen(balance):
        parts = build_parts(make(kind, folder, balance=balance), data.train, data.stats)
        rare = data.train.classes.index("defect")
        labels = [y if y.ndim == 1 else y.argmax(1) for _, y in parts.loader(0)]
        return parts.loss_fn, int((torch.cat(labels) == rare).sum()), len(torch.cat(labels))

    (plain, few, n), (weighted, same, _), (unweighted, many, n_again) = map(seen, ("none", *WAYS))
    assert isinstance(weighted, WeightedLoss) and type(plain) is type(unweighted) is torch.nn.CrossEntropyLoss
    assert n == n_again
    assert weighted.weights.max() / weighted.weights.min() == pytest.approx((len(data.train)-n_rare) / n_rare)
    assert max(few, same) < .3*n < .4*n < many < .6*n


class Killed(Exception): pass


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["standard", "speed"])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(folder, tmp_path, kind, way):
    recipe, settings = make(kind, folder, balance=way), Settings(device="cpu")

    def kill(history):
        if len(history) == 2: raise Killed

    calm, out = tmp_path / "calm.safetensors", tmp_path / "killed.safetensors"
    run_recipe(recipe, calm, settings)
    with pytest.raises(Killed): run_recipe(recipe, out, settings, on_epoch=kill)
    other = recipe.model_copy(update=dict(balance="none"))
    with pytest.raises(CifarNbError, match=f"balance was '{way}', is now 'none'"):
        run_recipe(other, out, settings)
    run_recipe(recipe, out, settings)
    assert calm.read_bytes() == out.read_bytes()
