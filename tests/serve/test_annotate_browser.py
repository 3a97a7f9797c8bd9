"""The annotation app in a real browser; HIVE_RAY_SCREENSHOTS names a folder for pictures to look at."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from annotation_site import app, make_candidates, make_evaluation, served
from playwright.sync_api import expect, sync_playwright

from hive_ray.annotation.exports import read_answers

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
LANDSCAPE, PORTRAIT = {"width": 1280, "height": 800}, {"width": 820, "height": 1180}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def site(tmp_path, url):
    make_candidates(str(tmp_path / "run"), 12, side=64)
    with served(app(str(tmp_path / "run"), url, people_per_task=1)) as site:
        yield site


@pytest.fixture
def small(tmp_path):
    """As `site`, on SQLite alone."""
    make_candidates(str(tmp_path / "run"), 6, side=64)
    with served(app(str(tmp_path / "run"), f"sqlite:///{tmp_path / 'annotation.sqlite'}", people_per_task=1)) as site:
        yield site


def opened(context, address: str):
    """A page that fails the test for any error of its scripts, or of its policy."""
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: page.problems.append(said.text) if "Content Security Policy" in said.text else None)
    page.goto(address)
    return page


def task_of(page, done: int) -> str:
    """The instruction on the screen, once `done` tasks are stored."""
    expect(page.locator("#done")).to_have_text(re.compile(f"^{done} done"))
    page.wait_for_selector("#task:not([hidden]):not([aria-busy=true]) .edit")
    return page.inner_text("#instruction")


def photograph(page, name: str) -> None:
    if folder := os.environ.get("HIVE_RAY_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=name.startswith("overview"))


def test_a_person_ranks_ten_tasks_by_keyboard_closes_the_browser_in_the_middle_and_comes_back(site, browser, tmp_path):
    context = browser.new_context(viewport=LANDSCAPE)
    page = opened(context, site.link("Ada"))
    seen = []
    for done in range(5):
        seen.append(task_of(page, done))
        for key in ("3", "1", "Shift+Digit4"):
            page.keyboard.press(key)
        page.keyboard.press("Enter")  # the one that is left is last
    interrupted = task_of(page, 5)
    assert "#" not in page.url  # the token is not left in the address
    page.keyboard.press("2")
    kept = context.storage_state()
    context.close()

    context = browser.new_context(viewport=LANDSCAPE, storage_state=kept)
    page = opened(context, site.address)  # no link: the browser is still signed in
    assert task_of(page, 5) == interrupted
    for done in range(5, 10):
        seen.append(task_of(page, done))
        for key in ("4", "3", "2", "1", "Enter"):
            page.keyboard.press(key)
    task_of(page, 10)
    assert page.problems == []
    context.close()

    found = read_answers(site.database)
    assert len(found) == len({one.prompt_id for one in found}) == 10
    assert {f"“{one.instruction}”" for one in found} == set(seen)
    in_time = sorted(found, key=lambda one: one.at)
    in_shown_order = [tuple(one.verdict["ranks"][place] for place in one.shown) for one in in_time]
    assert in_shown_order == [(2, 3, 1, 2)] * 5 + [(4, 3, 2, 1)] * 5
    assert all(0 < one.seconds < 10 for one in found)


def test_ties_none_all_the_same_skip_undo_and_start_over_by_mouse_and_key(small, browser):
    page = opened(browser.new_context(viewport=LANDSCAPE), small.link("Ada"))
    task_of(page, 0)
    edits = page.locator(".edit")
    edits.nth(1).click()
    page.click("#tie")
    edits.nth(3).click()
    edits.nth(0).click()
    labels = [edits.nth(place).get_attribute("aria-label") for place in range(4)]
    assert labels == ["Edit 1, place 2", "Edit 2, place 1, tied", "Edit 3, not ranked", "Edit 4, place 1, tied"]
    edits.nth(3).click()  # taken out again
    assert edits.nth(3).get_attribute("aria-pressed") == "false"
    page.keyboard.press("Escape")
    assert page.get_attribute("#store", "aria-disabled") == "true"
    page.keyboard.press("n")
    photograph(page, "none")
    page.click("#store")
    task_of(page, 1)
    page.keyboard.press("s")
    page.keyboard.press("Enter")
    task_of(page, 2)
    page.keyboard.press("x")
    photograph(page, "skip")
    page.keyboard.press("2")
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(page.locator("#instruction")).not_to_have_text("“make it number 2”")
    fourth = task_of(page, 2)
    page.keyboard.press("u")
    expect(page.locator("#status")).to_have_text(re.compile("^You skipped"))
    page.keyboard.press("u")
    expect(page.locator("#status")).to_have_text(re.compile("^This is what you said"))
    assert [edits.nth(place).locator(".place").inner_text() for place in range(4)] == ["1. ="] * 4
    page.keyboard.press("Escape")
    for key in ("1", "2", "3", "4", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#instruction")).to_have_text(fourth)
    assert page.problems == []
    verdicts = {one.prompt_id: one.verdict for one in read_answers(small.database)}
    assert verdicts["p0"] == {"ranks": [1, 1, 1, 1], "none_acceptable": True}
    assert sorted(verdicts["p1"]["ranks"]) == [1, 2, 3, 4]
    assert verdicts["p2"] == {"skipped": "I cannot tell"}


def test_all_pictures_are_zoomed_at_the_same_place(small, browser):
    page = opened(browser.new_context(viewport=LANDSCAPE), small.link("Ada"))
    task_of(page, 0)
    page.keyboard.press("z")
    box = page.locator(".edit .frame").nth(2).bounding_box()
    side = min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    page.mouse.move(left + 0.25 * side, top + 0.75 * side)
    photograph(page, "zoom")
    places = page.evaluate(
        """[...document.querySelectorAll('.frame img')].map((image) => {
            const [x, y] = image.style.transformOrigin.split(' ').map(parseFloat);
            const side = Math.min(image.clientWidth, image.clientHeight);
            const [left, top] = [(image.clientWidth - side) / 2, (image.clientHeight - side) / 2];
            return [(x - left) / side, (y - top) / side, image.style.transform];
        })"""
    )
    assert len(places) == 5
    for x, y, transform in places:
        assert (x, y) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.75, abs=0.01))
        assert transform == "scale(3)"
    page.keyboard.press("z")
    assert page.locator(".frame img").first.evaluate("(image) => image.style.transform") == ""


def test_an_answer_waits_in_the_browser_while_the_database_is_gone_and_is_stored_once(small, browser, tmp_path):
    context = browser.new_context(viewport=LANDSCAPE)
    page = opened(context, small.link("Ada"))
    first = task_of(page, 0)
    small.database.file.rename(tmp_path / "aside")
    for key in ("1", "2", "3", "4", "Enter"):
        page.keyboard.press(key)
    # the first to miss the database may be the next task, which is asked for ahead
    expect(page.locator("#away")).to_contain_text("is kept in this browser")
    assert page.inner_text("#instruction") == first  # it does not move on before the answer is stored
    photograph(page, "away")
    page.reload()  # even now nothing is lost
    page.wait_for_selector("#away:not([hidden])")
    (tmp_path / "aside").rename(small.database.file)
    task_of(page, 1)
    assert page.locator("#away").is_hidden()
    [found] = read_answers(small.database)
    assert [found.verdict["ranks"][place] for place in found.shown] == [1, 2, 3, 4]
    context.close()


def test_a_double_click_stores_one_ranking(small, browser):
    page = opened(browser.new_context(viewport=LANDSCAPE), small.link("Ada"))
    task_of(page, 0)
    page.keyboard.press("s")
    page.dblclick("#store")
    task_of(page, 1)
    page.wait_for_timeout(300)
    assert len(read_answers(small.database)) == 1
    assert page.problems == []


@pytest.mark.parametrize("viewport", [LANDSCAPE, PORTRAIT], ids=["landscape", "portrait"])
@pytest.mark.parametrize("num_edits", [2, 3, 5, 9])
def test_all_edits_fit_on_the_screen(tmp_path, browser, num_edits, viewport):
    run = str(tmp_path / "run")
    make_candidates(run, 1, num_edits=num_edits, side=64)
    with served(app(run, f"sqlite:///{tmp_path / 'a.sqlite'}")) as site:
        context = browser.new_context(viewport=viewport, has_touch=True)
        page = opened(context, site.link("Ada"))
        task_of(page, 0)
        photograph(page, f"edits-{num_edits}-{viewport['width']}")
        assert page.evaluate("document.documentElement.scrollHeight") <= viewport["height"]
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        boxes = [frame.bounding_box() for frame in page.locator(".frame").all()]
        assert min(min(box["width"], box["height"]) for box in boxes) >= 110
        page.locator(".edit").last.tap()
        assert page.locator(".edit").last.get_attribute("aria-pressed") == "true"
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_and_the_focus_can_be_seen(small, browser, scheme):
    """WCAG 2.2: 4.5 to 1 for text (1.4.3), 3 to 1 for what shows controls and the focus (1.4.11)."""
    context = browser.new_context(viewport=LANDSCAPE, color_scheme=scheme)
    page = opened(context, small.link("Ada"))
    task_of(page, 0)
    page.keyboard.press("1")
    pairs = page.evaluate(
        """[...document.querySelectorAll('button, #instruction, #done, #status, figcaption, .label span, kbd')]
            .filter((one) => one.offsetParent && one.innerText)
            .map((one) => {
                let ground = one;
                while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
                return [one.innerText, getComputedStyle(one).color, getComputedStyle(ground).backgroundColor];
            })"""
    )
    assert len(pairs) > 15
    for words, ink, ground in pairs:
        assert contrast(ink, ground) >= 4.5, (words, ink, ground)
    page.keyboard.press("Tab")
    outline, ground = page.evaluate(
        "[getComputedStyle(document.activeElement).outlineColor, getComputedStyle(document.body).backgroundColor]"
    )
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    assert contrast(outline, ground) >= 3
    border = page.evaluate("getComputedStyle(document.querySelector('#skip')).borderTopColor")
    assert contrast(border, ground) >= 3
    photograph(page, f"ranking-{scheme}")
    context.close()


def contrast(one: str, other: str) -> float:
    """The contrast of two CSS colours by WCAG's relative luminance."""

    def luminance(colour: str) -> float:
        values = [float(number) / 255 for number in re.findall(r"[\d.]+", colour)[:3]]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_everything_on_the_page_has_a_name_for_a_screen_reader(small, browser):
    page = opened(browser.new_context(viewport=LANDSCAPE), small.link("Ada"))
    task_of(page, 0)
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, dialog, img')].filter((one) =>
            !(one.innerText?.trim() || one.getAttribute('aria-label') || one.getAttribute('aria-labelledby')
              || one.labels?.length || one.alt || one.closest('button[aria-label]'))).map((one) => one.outerHTML)"""
    )
    assert nameless == []


def test_a_study_is_answered_by_keyboard(tmp_path, browser):
    run = str(tmp_path / "run")
    for editor in ("sft", "finetuned"):
        make_evaluation(run, editor, 3)
    with served(app(run, f"sqlite:///{tmp_path / 'a.sqlite'}", mode="study", people_per_task=1)) as site:
        page = opened(browser.new_context(viewport=LANDSCAPE), site.link("Ada"))
        task_of(page, 0)
        assert page.get_attribute("#store", "aria-disabled") == "true"
        page.keyboard.press("1")
        photograph(page, "study")
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        task_of(page, 1)
        [found] = read_answers(site.database)
        assert found.verdict == {"follows": found.shown[0], "preserves": None}
        assert page.problems == []


def test_an_administrator_invites_pauses_and_sees_the_charts(small, browser):
    ada = opened(browser.new_context(viewport=LANDSCAPE), small.link("Ada"))
    for done in range(3):
        task_of(ada, done)
        for key in ("1", "2", "3", "Enter"):
            ada.keyboard.press(key)
    task_of(ada, 3)
    boss = opened(browser.new_context(viewport=LANDSCAPE, accept_downloads=True), small.link("Boss", "administrator"))
    boss.wait_for_selector("#people tr")
    boss.fill("#name", "Bea")
    boss.click("#invite button")
    boss.wait_for_selector("#link:not([hidden])")
    bea = opened(browser.new_context(), boss.inner_text("#link"))
    task_of(bea, 0)
    boss.click("button[aria-label='Pause: Bea']")
    boss.wait_for_selector("button[aria-label='Let go on: Bea']")
    photograph(boss, "admin")
    for key in ("1", "2", "3", "Enter"):
        bea.keyboard.press(key)
    expect(bea.locator("#message-title")).to_have_text("Your work is paused")
    with boss.expect_download() as download:
        boss.click("text=rankings.jsonl")
    assert len(Path(download.value.path()).read_text().splitlines()) == 3
    boss.click("text=Overview with charts")
    boss.wait_for_selector("svg")
    photograph(boss, "overview")
    assert boss.problems == ada.problems == bea.problems == []


def test_an_administrator_sees_what_of_a_label_studio_file_is_left_out(small, browser, tmp_path):
    boss = opened(browser.new_context(viewport=LANDSCAPE, accept_downloads=True), small.link("Boss", "administrator"))
    boss.wait_for_selector("#content:not([hidden])")
    with boss.expect_download() as download:
        boss.click("text=label-studio.json")
    rows = json.loads(Path(download.value.path()).read_text())
    ranker = {f"rank_{rank}": [edit["id"]] for rank, edit in enumerate(rows[0]["data"]["edits"], 1)}
    good = {"completed_by": 1, "result": [{"type": "ranker", "value": {"ranker": ranker}}]}
    rows[0]["annotations"] = [good, good | {"completed_by": 2, "lead_time": -1}]
    file = tmp_path / "results.json"
    for content, words in (
        (
            "\ufeff" + json.dumps(rows),
            "1 answers taken in, 0 were here already. 1 are left out, such as: task 0 (p0), ann",
        ),
        (json.dumps([row | {"data": {}} for row in rows]), "7 of 7 answers and tasks cannot be used, and nothing is"),
        ("[", "This file is not JSON."),
    ):
        file.write_text(content)
        boss.set_input_files("#file", file)
        expect(boss.locator("#imported")).to_contain_text(words)
    photograph(boss, "label-studio")
    assert boss.problems == []
