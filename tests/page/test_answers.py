"What the page shows: the model, the answers, where it looked; and that everyone can use it."
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from tools.files import noise
from tools.webpage import (
    LOOK,
    button,
    cards,
    check_answer,
    drop,
    fits,
    other_card,
    png,
    settings,
    visit,
    width_of,
)

from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.threshold import Measured, OperatingPoint


def test_it_says_what_it_knows(tab):
    expect(tab.locator("#model")).to_contain_text("airplane")
    expect(tab.locator("#model")).to_contain_text("test accuracy")
    expect(tab.get_by_label("API key")).to_be_hidden()


def test_where_it_looked(tab):
    drop(tab, one=png(), two=png())
    look = button(cards(tab).nth(1), LOOK)
    expect(look).to_have_attribute("aria-expanded", "false")
    look.press("Enter")
    overlay = cards(tab).nth(1).get_by_alt_text("regions in red")
    expect(overlay).to_be_visible(timeout=60_000)
    assert width_of(overlay) == 256 and fits(tab)
    expect(look).to_have_attribute("aria-expanded", "true")
    expect(cards(tab).nth(0).locator(".where")).to_be_hidden()
    look.press("Enter")
    expect(overlay).to_be_hidden()
    expect(look).to_have_attribute("aria-expanded", "false")
    tab.route("**/explain", lambda route: route.abort())
    look.press("Enter")
    expect(overlay).to_be_visible()  # it is not asked for a second time


def test_where_it_looked_can_be_asked_again(tab):
    drop(tab, one=png())
    tab.route("**/explain", lambda route: route.abort())
    button(cards(tab), LOOK).click()
    expect(cards(tab).locator(".problem")).to_contain_text("the server did not answer")
    tab.unroute("**/explain")
    button(cards(tab), LOOK).click()
    expect(cards(tab).locator(".overlay")).to_be_visible()
    expect(cards(tab).locator(".problem")).to_be_empty()


def test_an_unknown_thing(browser):
    app = create_app(settings(), other_card(confidence_threshold=1.0, familiarity=None))
    with served(app) as url, visit(browser, url) as tab:
        drop(tab, shape=noise(60))
        check_answer(cards(tab), 60)
        expect(cards(tab).locator(".unknown")).to_contain_text("unlike those that the model knows")


def test_a_known_thing(browser):
    app = create_app(settings(), other_card(confidence_threshold=0.0, familiarity=None))
    with served(app) as url, visit(browser, url) as tab:
        drop(tab, shape=png())
        check_answer(cards(tab))
        expect(cards(tab).locator(".unknown")).to_be_hidden()


def test_a_decision_is_next_to_the_most_probable_class(browser):
    share = Measured.of(9, 10)
    point = OperatingPoint(class_name="ship", threshold=0.0, goal="", recall=share, false_alarms=share)
    app = create_app(settings(), other_card(operating_point=point))
    with served(app) as url, visit(browser, url) as tab:
        drop(tab, shape=png())
        check_answer(cards(tab))
        decision = cards(tab).locator(".decision")
        expect(decision).to_have_text("Decision: ship. This model says “ship” from a probability of 0% on.")
        assert not cards(tab).locator(".answer").inner_text().startswith("ship")
        assert fits(tab)


def test_a_model_without_an_operating_point_shows_no_decision(tab):
    drop(tab, shape=png())
    check_answer(cards(tab))
    expect(cards(tab).locator(".decision")).to_be_hidden()


def test_a_set_of_several_classes_is_one_sentence(browser):
    thresholds = (0.5,) * 40 + (0.0,) * 10  # from a coverage of 0.9 on, all classes
    known = other_card(set_thresholds=thresholds, confidence_threshold=0.0, familiarity=None)
    app = create_app(settings(), known)
    with served(app) as url, visit(browser, url) as tab:
        expect(tab.locator("#model")).to_contain_text("airplane")
        drop(tab, shape=png())
        check_answer(cards(tab))
        ranked = cards(tab).locator(".bars th").all_inner_texts()
        said = f"With 90% confidence it is one of: {', '.join(ranked)}."
        expect(cards(tab).locator(".could-be")).to_have_text(said)
        assert fits(tab)
        check_accessible(tab)


@pytest.mark.parametrize("threshold, familiar", [(0.9, True), (0.0, False)])
def test_a_set_of_one_class_or_of_an_unknown_thing_is_not_shown(browser, threshold, familiar):
    card = dict(set_thresholds=(threshold,) * 50, confidence_threshold=1.0 - familiar, familiarity=None)
    with served(create_app(settings(), other_card(**card))) as url, visit(browser, url) as tab:
        expect(tab.locator("#model")).to_contain_text("airplane")
        drop(tab, shape=png())
        check_answer(cards(tab))
        expect(cards(tab).locator(".could-be")).to_be_hidden()
        expect(cards(tab).locator(".unknown")).to_be_visible(visible=not familiar)


def test_a_hundred_classes(tab):
    names = [f"class_{i}" for i in range(99)] + ["a_name_that_is_much_too_long_for_the_column_it_is_in"]
    shares = dict.fromkeys(names, 0.5 / 99) | {names[99]: 0.5}
    answer = dict(class_name=names[99], confidence=0.5, probabilities=shares, in_distribution=None,
                  inference_ms=1.0, view=None)
    tab.route("**/predict/**", lambda route: route.fulfill(json=[answer]))
    drop(tab, shape=png())
    expect(cards(tab).locator(".bars tr")).to_have_count(10)
    expect(cards(tab).locator(".rest tr").first).to_be_hidden()
    cards(tab).get_by_text("the other 90 classes").click()
    expect(cards(tab).locator(".rest tr").last).to_be_visible()
    expect(cards(tab).locator(".rest tr")).to_have_count(90)
    assert fits(tab)


def test_under_a_prefix(browser, url):
    def cut_prefix(route): route.fulfill(response=route.fetch(url=route.request.url.replace("/images/", "/")))
    with visit(browser, url) as tab:
        tab.route("**/images/**", cut_prefix)
        tab.goto(f"{url}/images/")
        drop(tab, shape=png())
        check_answer(cards(tab))
        button(cards(tab), LOOK).click()
        expect(cards(tab).locator(".overlay")).to_be_visible(timeout=60_000)


def check_accessible(tab):
    found = Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser, scheme):
    app = create_app(settings(api_key="open sesame!"), other_card(confidence_threshold=1.0, familiarity=None))
    with served(app) as url, visit(browser, url, color_scheme=scheme) as tab:
        expect(tab.get_by_label("API key")).to_be_visible()
        check_accessible(tab)
        tab.get_by_label("API key").fill("open sesame!")
        button(tab, "use this key").click()
        expect(tab.locator("#model")).to_contain_text("airplane")
        drop(tab, one=png(), two=b"not an image", three=png())
        check_answer(cards(tab).nth(2))
        button(cards(tab).nth(0), LOOK).click()
        expect(cards(tab).nth(0).locator(".overlay")).to_be_visible(timeout=60_000)
        button(tab, "use the camera").click()
        expect(tab.locator("#camera")).to_be_visible()
        check_accessible(tab)
        app.state.engine.slot.predictor = None
        drop(tab, one=png())
        expect(button(tab, "try again")).to_be_visible()
        check_accessible(tab)


def test_the_documentation_page_draws_itself_offline(tab):
    tab.goto(tab.url + "docs")
    tab.wait_for_selector("text=/predict_base64")
    tab.locator("#operations-default-predict_predict_post button.opblock-summary-control").click()
    tab.locator("button.try-out__btn").click()
    file = dict(name="1.png", mimeType="image/png", buffer=png())
    tab.locator("input[type=file]").first.set_input_files(file)
    tab.locator("button.execute").click()
    answer = tab.locator(".live-responses-table")
    expect(answer.locator(".response-col_status").nth(1)).to_contain_text("200")
    expect(answer.locator(".response-col_description").nth(1)).to_contain_text("class_name")


def test_a_page_that_came_before_its_model_notices_when_it_is_there(browser):
    app = create_app(settings(), predictor := Predictor.load("cifar10"))
    with served(app) as url:
        app.state.engine.slot.predictor = None
        with visit(browser, url) as tab:
            expect(tab.locator("#model")).to_have_text("The service has no model yet.")
            app.state.engine.slot.predictor = predictor
            expect(tab.locator("#model")).to_contain_text("The model knows 10 classes")
