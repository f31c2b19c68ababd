"A photo becomes squares in one way, which the card names: training, evaluation, commands and service agree."
import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from cifar_nb.check import check_data
from cifar_nb.cli import app
from cifar_nb.core import ConfigError, DatasetError, ImageError, Settings
from cifar_nb.datasets import content_key
from cifar_nb.evaluate import evaluate
from cifar_nb.experiment import measure, run_recipe
from cifar_nb.folders import load_dataset
from cifar_nb.modelfile import ModelCard, load_model, read_card, read_model
from cifar_nb.photos import FITS, MAX_TILES, image_pixels, tile_boxes
from cifar_nb.predict import Predictor
from cifar_nb.recipes import find_recipe
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings
from cifar_nb.tiles import OverTiles

CLI = Path(sys.executable).with_name("cifar-nb")
SETTINGS = Settings(device="cpu")
SERVICE = ServiceSettings(device="cpu", backend="eager", max_wait=60)
every_fit = pytest.mark.parametrize("fit", FITS)


def part(rng, dent=None, width=96, height=32):
    "A noisy part, with a dark dent at `dent` pixels from its left end."
    noise = 150 + 12 * rng.standard_normal((height, width, 3))
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    if dent is not None: ImageDraw.Draw(image).ellipse((dent - 5, 8, dent + 5, 18), fill=(25, 25, 30))
    return image


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Good parts, and parts with a dent in the left or in the right third: none in the centred square."
    root, rng = tmp_path_factory.mktemp("wide"), np.random.default_rng(0)
    for name, n in (("train", 40), ("test", 20)):
        for kind in ("good", "defect"):
            place = root / name / kind
            place.mkdir(parents=True)
            for i in range(n):
                left = rng.uniform(6, 26) + 64 * (i % 2)
                part(rng, left if kind == "defect" else None).save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    "Each way, trained: path of the model, and the report on the test images."
    made = {}
    for fit in FITS:
        recipe = find_recipe(
            "simple", data=str(folder), fit=fit, epochs=14, batch_size=8, precision="float32",
            model__widths=[8, 16], optimizer__lr=.005, stopping__monitor="loss")
        out = tmp_path_factory.mktemp(fit) / f"{fit}.safetensors"
        made[fit] = out, run_recipe(recipe, out, SETTINGS)[1]
    return made


@pytest.fixture(scope="module")
def predictors(trained):
    return {fit: Predictor.load(str(path), SETTINGS) for fit, (path, _) in trained.items()}


def test_a_defect_near_the_end_of_a_wide_photo_is_found_unless_it_is_cut_away(trained):
    accuracy = {fit: report.accuracy for fit, (_, report) in trained.items()}
    assert accuracy["crop"] < .7
    for fit in ("pad", "squeeze", "tiles"): assert accuracy[fit] >= .9, accuracy


@every_fit
def test_the_card_names_the_way(trained, fit):
    card = read_card(trained[fit][0])
    assert (card.fit, card.recipe["fit"]) == (fit, fit)


@pytest.mark.parametrize(("dent", "tile"), [(10, 1), (48, 2), (88, 3)])
def test_the_answer_says_which_tile_decided(predictors, dent, tile):
    answer = predictors["tiles"](part(np.random.default_rng(7), dent))
    assert (answer.class_name, answer.tile, answer.tiles) == ("defect", tile, 3)
    upright = part(np.random.default_rng(7), dent).transpose(Image.Transpose.ROTATE_270)
    answer = predictors["tiles"](upright)
    assert (answer.class_name, answer.tile, answer.tiles) == ("defect", tile, 3)


@pytest.mark.parametrize("fit", FITS[:3])
def test_other_models_say_nothing_about_tiles(predictors, fit):
    answer = predictors[fit](part(np.random.default_rng(7)))
    assert answer.tile is answer.tiles is None


def shapes(rng):
    "Files of many shapes, so that photos in one batch have one to five tiles."
    sizes = (96, 32), (40, 40), (32, 170), (400, 33), (70, 50), (50, 110)
    return {f"{w}x{h}.png": png(part(rng, 20, w, h)) for w, h in sizes}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    "A folder of photos of many shapes, and those photos."
    root, photos = tmp_path_factory.mktemp("mixed"), shapes(np.random.default_rng(3))
    for place in ("train/good", "train/defect", "test/good", "test/defect"):
        (root / place).mkdir(parents=True)
        for name, data in photos.items(): (root / place / name).write_bytes(data)
    return root, photos


@pytest.fixture(scope="module")
def expected(predictors, mixed):
    "What `evaluate` finds for each photo, by way and key of the file."
    found = {}
    for fit, predictor in predictors.items():
        card = predictor.card
        images = load_dataset(str(mixed[0]), card.input_size, SETTINGS, fit=fit).test
        report = measure(predictor.model, images, card.stats, device="cpu")
        rows = (report.logits / card.temperature).softmax(1)
        found[fit] = dict(zip(images.file_keys.tolist(), rows.tolist(), strict=True))
    return found


def close(probabilities, expected, data):
    assert list(probabilities.values()) == pytest.approx(expected[content_key(data)], rel=0, abs=1e-5)


@every_fit
def test_python_and_commands_say_what_evaluation_found(predictors, trained, mixed, expected, *, fit):
    root, photos = mixed
    for answer, data in zip(predictors[fit].predict_batch([*photos.values()]), photos.values(), strict=True):
        close(answer.probabilities, expected[fit], data)
    files = sorted((root / "test" / "good").iterdir())
    command = [CLI, "predict", "--json", "--model", trained[fit][0], "--device", "cpu", *files]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for path, line in zip(files, lines, strict=True):
        close(json.loads(line)["probabilities"], expected[fit], path.read_bytes())


@every_fit
def test_the_service_says_what_evaluation_found_and_shows_what_it_saw(predictors, mixed, expected, *, fit):
    card, photos = predictors[fit].card, mixed[1]
    with served(create_app(SERVICE, predictors[fit])) as url:
        assert httpx.get(f"{url}/model").json()["fit"] == fit
        several = [("files", item) for item in photos.items()]
        answers = httpx.post(f"{url}/predict/batch?view=true", files=several, timeout=60).json()
    for answer, data in zip(answers, photos.values(), strict=True):
        close(answer["probabilities"], expected[fit], data)
        seen = image_pixels(data, card.input_size, fit)
        assert answer["tiles"] == (len(seen) if fit == "tiles" else None)
        if fit == "tiles": seen = torch.cat([*seen], 2)
        view = Image.open(io.BytesIO(base64.b64decode(answer["view"].partition(",")[2])))
        assert torch.equal(torch.from_numpy(np.array(view)).permute(2, 0, 1), seen)


def test_evaluation_of_tiles_is_the_same_in_any_company(predictors):
    "Photos with fewer tiles than others repeat them, which changes no score."
    predictor = predictors["tiles"]
    data = [*shapes(np.random.default_rng(3)).values()]
    together = predictor.predict_batch(data)
    for answer, one in zip(together, data, strict=True):
        alone = predictor(one)
        assert alone.tile == answer.tile
        rows = [list(found.probabilities.values()) for found in (alone, answer)]
        assert rows[0] == pytest.approx(rows[1], abs=1e-5)


def reds(image): # How much redder than green each column is
    pixels = np.asarray(image).astype(int)
    return (pixels[:, :, 0] - pixels[:, :, 1]).clip(min=0).mean(0)


@pytest.mark.parametrize("fit", ["pad", "tiles"])
def test_the_map_is_drawn_on_what_decided(predictors, fit):
    data = png(part(np.random.default_rng(7), 82))
    with served(create_app(SERVICE, predictors[fit])) as url:
        answer = httpx.post(f"{url}/explain", files={"file": data}, timeout=60).json()
    overlay = Image.open(io.BytesIO(base64.b64decode(answer["overlay"].partition(",")[2])))
    assert answer["class_name"] == "defect" and overlay.size == (256, 256)
    # In the third tile the dent is at 18 of 32 pixels, and in the padded photo at 82 of 96
    expected = 256 * (18 / 32 if fit == "tiles" else 82 / 96)
    assert abs(reds(overlay).argmax() - expected) < 60
    assert np.asarray(overlay)[:, :, 1].min() < 60  # the dent is there


def test_a_service_takes_a_model_that_sees_in_another_way(predictors):
    "Images in the queue are decoded again for the new model."
    from cifar_nb.engine import Job, run_batch
    seen = image_pixels(part(np.random.default_rng(1)), 32).permute(1, 2, 0).numpy()
    for fit in FITS[1:]:
        (_, outcome), = run_batch([Job(seen, 1, None)], predictors[fit])
        assert type(outcome).__name__ == "_ModelChanged"
    (_, outcome), = run_batch([Job(seen, 1, None)], predictors["crop"])
    assert outcome.class_name in ("good", "defect")


def test_a_panorama_costs_five_images_at_most(predictors):
    network, sizes = predictors["tiles"].model, []
    hook = network.register_forward_pre_hook(lambda layer, args: sizes.append(len(args[0])))
    try: answer = predictors["tiles"](part(np.random.default_rng(1), 20, 4000, 32))
    finally: hook.remove()
    assert (sum(sizes), answer.tiles) == (MAX_TILES, MAX_TILES)
    sizes.clear()
    hook = network.register_forward_pre_hook(lambda layer, args: sizes.append(len(args[0])))
    try: predictors["tiles"].predict_batch([part(np.random.default_rng(1), 20, 4000, 32)] * 12)
    finally: hook.remove()
    assert (sum(sizes), max(sizes)) == (12 * MAX_TILES, 12)
    assert all(len(tile_boxes(10**k, 1)) <= MAX_TILES for k in range(7))


@pytest.mark.parametrize("size", [(31, 60), (90, 12)])
@pytest.mark.parametrize("way", ["python", "service", "command"])
def test_an_image_smaller_than_a_tile_is_refused_with_a_sentence(predictors, trained, tmp_path, *, way, size):
    image = Image.new("RGB", size)
    said = f"the image has {size[0]} x {size[1]} pixels, and a tile has 32 x 32: use a larger image"
    if way == "python":
        with pytest.raises(ImageError, match=said): predictors["tiles"](image)
    elif way == "service":
        with served(create_app(SERVICE, predictors["tiles"])) as url:
            answer = httpx.post(f"{url}/predict", files={"file": png(image)}, timeout=60)
        assert answer.status_code == 422 and said in answer.json()["detail"]
    else:
        image.save(tmp_path / "small.png")
        command = [CLI, "predict", "--model", trained["tiles"][0], tmp_path / "small.png"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode and said in done.stderr and "Traceback" not in done.stderr


def refused(*args):
    "The one line that a command ends with."
    done = subprocess.run([CLI, *map(str, args)], capture_output=True, text=True)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode and line.startswith("cifar-nb: ") and "Traceback" not in done.stderr
    return line


def test_commands_refuse_in_one_line_that_says_what_to_do(folder, tmp_path):
    train = "train", "--recipe", "simple", "--data", folder, "--out", tmp_path / "x.safetensors"
    assert "did you mean 'tiles'?" in refused(*train, "--fit", "tile")
    line = refused(*train, "--set", "fit=tiles", "--size", 64)
    assert "the image has 96 x 32 pixels, and a tile has 64 x 64" in line and "a smaller size" in line
    assert "use one of crop, pad" in refused("data", folder, "--fit", "zebra")
    assert not (tmp_path / "x.safetensors").exists()


def test_recipes_that_cannot_see_tiles_are_refused():
    with pytest.raises(ConfigError, match="use mix = none"): find_recipe("simple", fit="tiles", mix="mixup")
    with pytest.raises(ConfigError, match="is for standard recipes"): find_recipe("speed94", fit="tiles")
    assert find_recipe("speed94", fit="pad").fit == "pad"


def test_an_unknown_way_is_refused_in_python():
    with pytest.raises(ConfigError, match="did you mean 'squeeze'"):
        image_pixels(Image.new("RGB", (40, 40)), 32, "squeze")
    with pytest.raises(ConfigError, match="fit = .zebra.: use one of crop"):
        find_recipe("simple", fit="zebra")
    with pytest.raises(DatasetError, match="squares of 32 pixels.* leave it out"):
        load_dataset("synthetic", fit="pad")


def test_the_check_of_a_folder_says_what_is_cut_away_and_which_flag_cures_it(folder, tmp_path):
    report = check_data(str(folder))
    assert report.cut_away == pytest.approx(2 / 3)
    assert "cut away 67% of the area: --fit pad" in str(report) and "--fit tiles" in str(report)
    for fit in FITS[1:]: assert "cut away" not in str(check_data(str(folder), fit=fit))
    # Training says it as well
    for fit in FITS[:2]:
        out = tmp_path / f"{fit}.safetensors"
        words = ["train", "--recipe", "simple", "--data", folder, "--epochs", 1, "--batch-size", 8,
                 "--fit", fit, "--out", out]
        done = CliRunner().invoke(app, list(map(str, words)))
        assert done.exit_code == 0 and ("cut away 67% of the area" in done.stderr) == (fit == "crop")
    # A fifth is the limit
    for width, said in ((39, False), (40, True)):
        root = tmp_path / str(width)
        for kind in ("a", "b"):
            (root / kind).mkdir(parents=True)
            for i in range(10):
                part(np.random.default_rng(i), None, width, 32).save(root / kind / f"{kind}{i}.png")
        assert ("cut away 20%" in str(check_data(str(root)))) == said


@every_fit
def test_statistics_of_the_check_are_those_of_training(folder, fit):
    assert check_data(str(folder), fit=fit).stats == load_dataset(str(folder), fit=fit).stats


def test_cards_of_older_files_mean_crop():
    values = load_model("cifar10")[1].model_dump(mode="json")
    values.pop("fit", None)
    values["recipe"].pop("fit", None)
    assert ModelCard.model_validate(values).fit == "crop"


def test_crop_is_what_it_was():
    "The centred square, resampled by Pillow; written once more."
    image = part(np.random.default_rng(5), 40, 131, 90)
    square = image.resize((32, 32), Image.Resampling.BICUBIC, box=(20.5, 0, 110.5, 90))
    for seen in (image_pixels(image, 32), image_pixels(png(image), 32, "crop")):
        assert np.array_equal(np.asarray(square), seen.permute(1, 2, 0))


def test_a_model_with_tiles_is_saved_as_the_plain_network(trained):
    "Nothing of the wrapper is in the file, so it can be exported, and started from, like any other."
    model, card = read_model(trained["tiles"][0])
    assert not isinstance(model, OverTiles)
    assert not any(name.startswith("model.") for name in model.state_dict())
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_evaluate_takes_tiles(predictors, trained, folder):
    card = predictors["tiles"].card
    images = load_dataset(str(folder), card.input_size, SETTINGS, fit="tiles").test
    assert images.pixels.shape == (40, 3, 3, 32, 32)
    command = [CLI, "evaluate", "--json", "--model", trained["tiles"][0], "--data", folder]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert said["images"] == 40 and said["top1"] == pytest.approx(trained["tiles"][1].accuracy)
    x = (torch.zeros(2, 3, 3, 32, 32), torch.tensor([0, 1]))
    assert len(evaluate(predictors["tiles"].model, [x], card.classes)) == 2


@pytest.mark.parametrize("processes", [0, 1])
def test_decoders_give_all_tiles_in_both_sizes(processes):
    import asyncio

    from cifar_nb.decoder import Decoder

    async def decoded():
        decoder = Decoder(processes)
        await decoder.open()
        try: return [await decoder(png(part(np.random.default_rng(1), 20, *size)), 32, 64, fit=fit)
                     for size in ((96, 32), (400, 33)) for fit in FITS]
        finally: await decoder.close()

    found = asyncio.run(decoded())
    for i, size in enumerate(((96, 32), (400, 33))):
        data = png(part(np.random.default_rng(1), 20, *size))
        for fit, seen in zip(FITS, found[4 * i:4 * i + 4], strict=True):
            for side, array in zip((32, 64), seen.arrays, strict=True):
                if fit == "tiles" and side > 32: assert array.shape == (len(seen.arrays[0]), 64, 64, 3)
                else: assert np.array_equal(array, image_pixels(data, side, fit).movedim(-3, -1).numpy())
