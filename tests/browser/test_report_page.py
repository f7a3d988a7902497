"""report.html in a real Chromium: three widths, light and dark, by keyboard, without a network."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from stages.report.page import render_report
from tests.support.browser import WIDTHS, show
from tests.support.example_report import SCRIPT, example_pictures, example_report

pytestmark = pytest.mark.slow

ROWS, COLUMNS, MORE_COLUMNS = 6, 5, 3


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    report = example_report()
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(report, example_pictures(report)), encoding="utf-8")
    return path.as_uri()


def brightness(browser, script: str) -> float:
    """Mean of the red, green and blue of a computed colour, 0 to 255."""
    colour = browser.execute_script(f"return {script}")
    parts = colour[colour.index("(") + 1 : -1].split(",")[:3]
    return sum(float(part) for part in parts) / 3


def press(browser, *keys: str) -> None:
    browser.switch_to.active_element.send_keys(*keys)


def focused(browser, script: str):
    return browser.execute_script(f"return document.activeElement{script}")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_whole_at_every_width(browser, address, width):
    show(browser, address, width)
    assert browser.get_log("browser") == []
    page_width = browser.execute_script("return document.documentElement.scrollWidth")
    assert page_width <= width
    verdict = browser.find_element(By.CSS_SELECTOR, ".verdict")
    assert verdict.is_displayed()
    assert "1 of 3 gates missed" in verdict.text
    assert verdict.rect["y"] < 400
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('.wall img')].filter(i => i.offsetParent)"
        ".map(i => [i.naturalWidth, i.width, "
        "Math.abs(i.naturalWidth / i.naturalHeight - i.width / i.height)])"
    )
    assert len(sizes) == ROWS * COLUMNS
    for natural, shown, bent in sizes:
        assert natural > 0
        assert 40 <= shown <= 160
        assert bent < 0.05
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('[data-chart]')].map(c => "
        "[c.dataset.chart, c.querySelector('svg.main-svg')?.getBoundingClientRect().right])"
    )
    assert len(drawn) > 10
    for name, right in drawn:
        assert right is not None, name
        assert right <= width, name


def test_the_teacher_at_few_steps_is_shown_on_demand(browser, address):
    show(browser, address, 1440)
    few = browser.find_elements(By.CSS_SELECTOR, ".wall .few img")
    assert len(few) == ROWS * MORE_COLUMNS
    assert not any(picture.is_displayed() for picture in few)
    browser.execute_script("document.getElementById('few-steps').focus()")
    press(browser, Keys.SPACE)
    assert all(picture.is_displayed() for picture in few)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 1440


def test_a_script_in_a_prompt_is_text(browser, address):
    show(browser, address, 820)
    prompts = browser.execute_script(
        "return [...document.querySelectorAll('.prompt')].map(p => p.textContent)"
    )
    assert SCRIPT in prompts


def test_the_page_asks_for_nothing_from_a_network(browser, address):
    show(browser, address, 820)
    asked = browser.execute_script(
        "return performance.getEntriesByType('resource').map(r => r.name)"
    )
    assert [name for name in asked if not name.startswith("data:")] == []


def test_a_script_that_got_in_would_not_run(browser, address):
    show(browser, address, 820)
    browser.execute_script(
        "const s = document.createElement('div'); s.innerHTML = "
        '\'<img src="data:,x" onerror="window.ran = 1">\'; document.body.append(s);'
    )
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    assert browser.execute_script("return window.ran") is None
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_light_and_dark_follow_the_system_and_the_button(browser, address):
    ink = "getComputedStyle(document.querySelector('.xtick text')).fill"
    paper = "getComputedStyle(document.body).backgroundColor"
    show(browser, address, 1440, "dark")
    assert brightness(browser, paper) < 50
    assert brightness(browser, ink) > 120
    browser.find_element(By.ID, "theme").click()
    assert brightness(browser, paper) > 200
    assert brightness(browser, ink) < 120
    # The choice outlives the visit; later tests must find the system's theme again.
    browser.refresh()
    assert brightness(browser, paper) > 200
    browser.execute_script("localStorage.clear()")


def test_the_wall_works_by_keyboard_alone(browser, address):
    show(browser, address, 1440)
    browser.execute_script("document.getElementById('wall').scrollIntoView()")
    for _ in range(80):
        press(browser, Keys.TAB)
        if focused(browser, ".classList.contains('picture')"):
            break
    assert focused(browser, ".dataset.title") == "teacher, 28 steps"
    assert focused(browser, ".querySelector('img').naturalWidth") > 0
    press(browser, Keys.ENTER)
    viewer = browser.find_element(By.ID, "viewer")
    assert viewer.is_displayed()
    picture = viewer.find_element(By.TAG_NAME, "img")
    assert picture.size["width"] >= 256
    press(browser, Keys.ARROW_RIGHT)
    assert browser.find_element(By.ID, "viewer-title").text == "student, 1 step"
    press(browser, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert browser.find_element(By.ID, "viewer-prompt").text == SCRIPT
    press(browser, Keys.ESCAPE)
    assert not viewer.is_displayed()
    assert focused(browser, ".dataset.prompt") == SCRIPT  # where the reader left off
    assert browser.get_log("browser") == []


def test_no_part_of_the_page_holds_the_keyboard(browser, address):
    show(browser, address, 390)
    focusable = "a[href], button, summary, input, [tabindex='0']"
    stops = len(browser.find_elements(By.CSS_SELECTOR, focusable))
    seen = set()
    for _ in range(stops + 5):
        press(browser, Keys.TAB)
        seen.add(browser.execute_script("return document.activeElement.closest('footer') !== null"))
        if True in seen:
            break
    assert True in seen
    assert not focused(browser, ".closest('.plot')")


def test_a_score_can_be_chosen_in_the_breakdown(browser, address):
    show(browser, address, 820)
    group = browser.find_element(By.CSS_SELECTOR, ".breakdown")

    def captions() -> list[str]:
        return [t.text for t in group.find_elements(By.TAG_NAME, "caption") if t.is_displayed()]

    assert captions() == ["all attributes right, higher is better"]
    browser.execute_script("document.querySelector('.breakdown input').focus()")
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert captions() == ["Fréchet distance, lower is better"]
