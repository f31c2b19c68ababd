"Several model files become one: the right probabilities wherever they are asked for, and no doubtful file."
import io
import json

import httpx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tools.files import PNG

from cifar_nb.core import ModelError
from cifar_nb.datasets import image_keys
from cifar_nb.explain import hires_cam
from cifar_nb.export import same_answers, with_backend
from cifar_nb.images import channel_stats, normalize, synthetic
from cifar_nb.modelfile import (
    _seal,
    find_model,
    load_model,
    read_card,
    read_model,
    read_trained_keys,
    replace_card,
    save_model,
)
from cifar_nb.models import create_model
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings
from cifar_nb.threshold import Measured, OperatingPoint

SHAPES = synthetic("test")
STATS = channel_stats(SHAPES.pixels)
WIDE = dict(n_classes=10, size=32, widths=[8, 8])


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    "Writes a small model, with the statistics of the shapes unless told otherwise."
    folder = tmp_path_factory.mktemp("members")
    base = load_model("simple")[1]
    def make(name, seed, *, known=100, architecture="speed_net", arguments=WIDE, steps=0, **fields):
        torch.manual_seed(seed)
        net = create_model(architecture, **arguments)
        opt = torch.optim.Adam(net.parameters(), .01)
        for _ in range(steps):  # so that its scores say something
            some = torch.randint(len(SHAPES), (50,))
            loss = F.cross_entropy(net(normalize(SHAPES.pixels[some], STATS)), SHAPES.labels[some])
            opt.zero_grad()
            loss.backward()
            opt.step()
        fields = dict(
            STATS._asdict(), temperature=1 + seed/2, seed=seed, epochs=3, recipe={"lr": .1, "start": "base"},
            set_thresholds=(.1,)*50, calibrated_on=dict(images=1), architecture=architecture,
            arguments=arguments, dataset="synthetic", classes=SHAPES.classes,
            validation_accuracy=.5, test_accuracy=.5, trained_on=None, operating_point=None) | fields
        keys = None if known is None else image_keys(SHAPES[:known])
        path = folder/f"{name}.safetensors"
        return save_model(net, base.model_copy(update=fields), path, trained_keys=keys)
    return make


@pytest.fixture(scope="module")
def members(make):
    simple = dict(n_classes=10, size=32, widths=[8, 8], hidden=16)
    return [make("a", 0, steps=15), make("b", 1, known=150, steps=15),
            make("c", 2, architecture="simple_cnn", arguments=simple, steps=15)]


@pytest.fixture
def joined(command, members, tmp_path):
    out = tmp_path/"all.safetensors"
    done = command("ensemble", *members, "--out", out)
    assert done.returncode == 0 and f"saved {out}: 3 networks" in done.stdout, done.stderr
    return out


def probabilities(path, images=SHAPES[:40]):
    answers = Predictor.load(str(path)).answers(images.pixels, [1]*len(images))
    return np.array([list(answer.probabilities.values()) for answer in answers])


def test_the_probabilities_are_the_mean_of_the_members(members, joined):
    each = np.stack([probabilities(path) for path in members])
    assert np.abs(each[0] - each[2]).max() > .05
    assert np.abs(probabilities(joined) - each.mean(0)).max() < 1e-5


def test_logits_give_the_geometric_mean(command, members, tmp_path):
    out = tmp_path/"logits.safetensors"
    assert command("ensemble", *members, "--logits", "--out", out).returncode == 0
    product = np.exp(np.log(np.stack([probabilities(path) for path in members])).mean(0))
    assert np.abs(probabilities(out) - product/product.sum(1, keepdims=True)).max() < 1e-5


def test_a_card_says_what_is_known_and_no_more(command, make, members, joined):
    card = read_card(joined)
    assert (card.architecture, card.temperature, card.epochs) == ("ensemble", 1, 9)
    assert card.arguments["temperatures"] == [1, 1.5, 2]
    assert card.validation_accuracy is None and card.test_accuracy is None
    assert card.set_thresholds is None and card.calibrated_on is None
    assert card.recipe["lr"] == .1
    assert [m["file"] for m in card.recipe["members"]] == [path.name for path in members]
    assert torch.equal(read_trained_keys(joined), image_keys(SHAPES[:150]).unique())
    silent,out = make("silent", 9, known=None), joined.with_name("silent.safetensors")
    assert command("ensemble", members[0], silent, "--out", out).returncode == 0
    assert read_trained_keys(out) is None
    said = command("info", joined).stdout
    assert "made of              a.safetensors, b.safetensors, c.safetensors" in said
    done = command("train", "--from-card", joined)
    assert done.returncode == 2 and "this model was made of others" in done.stderr


def test_evaluate_and_predict_take_it(command, joined, caplog):
    done = command("evaluate", joined, "--json")
    assert done.returncode == 0 and "learned from 150 of these 1,000 images" in caplog.text
    right = probabilities(joined, SHAPES).argmax(1) == SHAPES.labels.numpy()
    assert json.loads(done.stdout)["top1"] == pytest.approx(right.mean(), abs=1e-6)
    image = joined.with_name("x.png")
    Image.fromarray(SHAPES.pixels[7].permute(1, 2, 0).numpy()).save(image)
    found = json.loads(command("predict", image, "--model", joined, "--json").stdout)["probabilities"]
    assert list(found.values()) == pytest.approx(probabilities(joined)[7].tolist(), abs=1e-5)


def test_an_ensemble_can_be_calibrated(command, joined):
    out = joined.with_name("calibrated.safetensors")
    before = probabilities(joined)
    done = command("calibrate", joined, "--out", out)
    assert done.returncode == 0 and f"saved {out}" in done.stdout, done.stderr
    losses = [float(line.rpartition("loss ")[2]) for line in done.stdout.splitlines()[:2]]
    card = read_card(out)
    assert losses[1] <= losses[0] and card.temperature != 1 and card.confidence_threshold > .1
    assert read_card(joined).set_thresholds is None and len(card.set_thresholds) == 50
    powers = before**(1/card.temperature)
    assert np.abs(probabilities(out) - powers/powers.sum(1, keepdims=True)).max() < 1e-4
    some = Measured.of(9, 10)
    point = OperatingPoint(class_name="circle", threshold=.3, goal="a test", recall=some, false_alarms=some)
    replace_card(out, card.model_copy(update={"operating_point": point}))
    done = command("calibrate", out)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "has an operating point" in done.stderr


@pytest.mark.parametrize("backend", ["bfloat16", "onnx", "openvino"])
def test_backends_give_the_same(joined, backend):
    if backend != "bfloat16": pytest.importorskip({"onnx": "onnxscript"}.get(backend, backend))
    predictor = Predictor.load(str(joined))
    assert same_answers(with_backend(predictor, backend), predictor)


def test_the_service_answers_and_explains(joined):
    predictor = Predictor.load(str(joined))
    with served(create_app(ServiceSettings(backend="eager"), predictor)) as url:
        said = httpx.post(f"{url}/predict", files={"file": PNG}).json()
        shown = httpx.post(f"{url}/explain", files={"file": PNG})
        assert httpx.get(f"{url}/model").json()["architecture"] == "ensemble"
    assert said["model"] == "all" and sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert shown.status_code == 200, shown.text
    if shown.headers["content-type"] == "image/png": assert Image.open(io.BytesIO(shown.content)).size
    x = normalize(SHAPES.pixels[:2], STATS)
    each = torch.stack([hires_cam(net, x, torch.tensor([3, 4])) for net in predictor.model.members]).mean(0)
    expected = each/each.amax((1, 2), keepdim=True)
    assert torch.allclose(hires_cam(predictor.model, x, torch.tensor([3, 4])), expected, atol=1e-5)


def test_a_soup_is_one_network_with_the_mean_of_the_weights(command, make, members, caplog):
    out = members[0].with_name("soup.safetensors")
    assert command("ensemble", *members[:2], "--soup", "--out", out).returncode == 0
    assert "one start" not in caplog.text
    soup, card = read_model(out)
    first, second = (read_model(path)[0].state_dict() for path in members[:2])
    for name, tensor in soup.state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, (first[name] + second[name])/2, atol=1e-6), name
    assert (card.architecture, card.arguments) == ("speed_net", WIDE) and card.test_accuracy is None
    done = command("ensemble", members[0], members[2], "--soup", "--out", out)
    assert done.returncode == 4 and "c.safetensors is another network than" in done.stderr
    for start in ("", "other"):
        caplog.clear()
        other = make("other", 5, recipe={"start": start})
        assert command("ensemble", members[0], other, "--soup", "--out", out).returncode == 0
        assert "do not say that they come from one start" in caplog.text


DIFFERENT = {
    "classes": (dict(classes=tuple("abcdefghij")), "differ in the classes (a, b, c, d, e and circle"),
    "order": (dict(classes=SHAPES.classes[::-1]), "differ in the order of the classes"),
    "size": (dict(input_size=48), "differ in the size of the images (48 and 32)"),
    "fit": (dict(fit="pad"), "(fit) (pad and crop)"),
    "mean": (dict(mean=(.1, .2, .3)), "differ in the mean of the pixels (0.1, 0.2, 0.3 and "),
    "std": (dict(std=(.1, .2, .3)), "differ in the standard deviation of the pixels"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_members_that_do_not_belong_together(command, make, members, what):
    fields, says = DIFFERENT[what]
    out = members[0].with_name("out.safetensors")
    other = make("other", 5, **fields)
    done = command("ensemble", members[0], other, "--out", out)
    assert done.returncode == 4 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"cifar-nb: {other} and {members[0]} differ in ") and says in done.stderr
    assert not out.exists()


def test_files_that_cannot_be_members(command, members, joined, tmp_path):
    copy, broken, out = (tmp_path/f"{name}.safetensors" for name in ("copy", "broken", "out"))
    copy.write_bytes(members[0].read_bytes())
    broken.write_bytes(members[1].read_bytes()[:-8])
    words = {
        (members[0],): (2, "and this one has 1"),
        (members[0], members[0]): (2, f"{members[0]} is named twice"),
        (members[0], copy): (4, f"{copy} has the same weights as {members[0]}"),
        (members[0], broken): (4, f"{broken} cannot be used as a model: it is damaged"),
        (members[0], joined): (4, f"{joined} is an ensemble itself"),
        (members[0], tmp_path/"none.safetensors"): (4, "there is no model"),
        (*members[:2], "--soup", "--logits"): (2, "give one of them")}
    for args, (code, says) in words.items():
        done = command("ensemble", *args, "--out", out)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1) and says in done.stderr, done.stderr
    before = members[1].read_bytes()
    places = {tmp_path/"out.pt": "must end in .safetensors", members[1]: "is one of the members",
              copy/"out.safetensors": "cannot be written"}
    for place, says in places.items():
        done = command("ensemble", *members[:2], "--out", place)
        assert done.returncode == 2 and says in done.stderr and members[1].read_bytes() == before
    assert not out.exists()


ONE = {"architecture": "speed_net", "arguments": {"widths": [8, 8]}}
HOSTILE = {
    "many": (dict(members=[ONE]*21), "this one has 21"),
    "very many": (dict(members=[ONE]*20_000), "this one has 20,000"),
    "one": (dict(members=[ONE]), "this one has 1"),
    "none": (dict(members=None), "this one has 0"),
    "nested": (dict(members=[ONE, {"architecture": "ensemble", "arguments": {"members": [ONE, ONE]}}]),
               "member 2: 'ensemble' cannot be in an ensemble"),
    "own": (dict(members=[ONE, {"architecture": "evil.py:Evil"}]), "member 2: 'evil.py:Evil' cannot be"),
    "large": (dict(members=[ONE, {"architecture": "speed_net", "arguments": {"widths": [10**9]}}]),
              "member 2: widths = 1000000000 makes too large a network"),
    "classes": (dict(members=[ONE, {"architecture": "speed_net", "arguments": {"n_classes": 7}}]),
                "member 2: it has 7 classes, the ensemble 10"),
    "shapes": (dict(members=[ONE, ONE, {"architecture": "speed_net", "arguments": {"widths": [8, 9]}}]),
               "its weights do not fit its architecture"),
    "fewer": (dict(members=[ONE, ONE], temperatures=None), "its weights do not fit its architecture"),
    "temperature": (dict(members=[ONE]*3, temperatures=[1, 1, 0]), "temperature 0 of a member"),
    "combine": (dict(members=[ONE]*3, combine="__class__"), "cannot average '__class__'"),
    "text": (dict(members="ab"), "members = 'ab': input should be a valid array"),
    "keys": (dict(members=[dict(ONE, code="x"), ONE]), "member 1: give its architecture and its arguments"),
}


@pytest.fixture(scope="module")
def three(make, tmp_path_factory):
    "Weights and card of an ensemble of three equal networks."
    from cifar_nb.compare import make_ensemble
    out = tmp_path_factory.mktemp("three")/"three.safetensors"
    model, card = read_model(make_ensemble([make(f"m{i}", i) for i in range(3)], out))
    return model.state_dict(), card


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_gets_one_line(three, command, tmp_path, what):
    weights, card = three
    arguments, says = HOSTILE[what]
    path = tmp_path/"hostile.safetensors"
    forged = card.model_copy(update=dict(arguments=card.arguments | dict(temperatures=None) | arguments))
    path.write_bytes(_seal(weights, forged))
    with pytest.raises(ModelError) as caught: read_model(path)
    assert says in str(caught.value) and len(str(caught.value)) < 1200
    (tmp_path/"x.png").write_bytes(PNG)
    done = command("predict", tmp_path/"x.png", "--model", path)
    assert done.returncode == 4 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"cifar-nb: {path} cannot be used")
    info = command("info", path)  # reads the card alone
    assert info.returncode == 0 and len(info.stdout) < 5000


def test_the_bundled_models_of_one_data_set_can_be_joined(command, tmp_path):
    out = tmp_path/"both.safetensors"
    assert command("ensemble", "cifar10", "simple", "--half", "--out", out).returncode == 0
    sizes = [find_model(name).stat().st_size for name in ("cifar10", "simple")]
    assert out.stat().st_size < 1.05*sum(sizes)
