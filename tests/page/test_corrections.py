"The page says what is really in an image, where the service keeps that."
from playwright.sync_api import expect
from tools.webpage import button, cards, drop, fits, png, settings, visit

from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served

SAVE = "save the image"


def test_without_a_folder_nothing_is_offered(tab):
    drop(tab, one=png())
    expect(cards(tab).locator(".bars tr")).to_have_count(10)
    expect(button(tab, SAVE)).to_be_hidden()
    expect(tab.locator("#kept")).to_have_text("They are classified and not kept.")


def test_a_wrong_answer_is_corrected(browser, tmp_path):
    app = create_app(settings(corrections=tmp_path, max_corrections=1), Predictor.load("cifar10"))
    with served(app) as url, visit(browser, url) as tab:
        expect(tab.locator("#kept")).to_contain_text("kept only if you save one")
        drop(tab, one=png(), two=png((80, 50)))
        first, second = cards(tab).nth(0), cards(tab).nth(1)
        right = first.get_by_label("This is wrong, it is")
        expect(right.locator("option")).to_have_count(10)  # when the answer is there
        said = first.locator(".answer").inner_text().split(", ")[0]
        names = right.locator("option").all_inner_texts()
        assert len(names) == 10 and names[0] == "choose …" and said not in names
        button(first, SAVE).click()  # nothing is chosen
        assert not list(tmp_path.glob("*/*"))
        right.select_option(names[3])
        button(first, SAVE).click()
        expect(first.locator(".corrected")).to_have_text(f"Saved as “{names[3]}”. Thank you.")
        assert [path.read_bytes() for path in tmp_path.glob(f"{names[3]}/*.png")] == [png()]
        second.get_by_label("This is wrong, it is").select_option(index=1)
        button(second, SAVE).click()
        expect(second.locator(".corrected")).to_contain_text("It was not saved: the folder")
        assert fits(tab)
