"""The voting page in real browsers: two raters at once, a server that dies, and hostile prompts."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.base.store import ArtifactStore
from stages.compare.votes import open_votes
from tests.support.command import COMMAND, ROOT
from tests.support.evaluation import COLOURS, make_evaluation, options_for, system_of

pytestmark = pytest.mark.slow

HOSTILE = (
    "<script>window.hacked = true</script><img src=x onerror=\"window.hacked = true\"> & 'more'"
)
# What the rater sees: the first pixel of each picture tells the test which system made it.
CARD = """
const vote = document.getElementById("vote");
if (vote.hidden || vote.getAttribute("aria-busy") !== "false") return null;
const pixel = (side) => {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  context.drawImage(document.querySelector(`#${side} img`), 0, 0);
  return [...context.getImageData(0, 0, 1, 1).data];
};
return {turn: vote.dataset.turn, question: vote.dataset.question,
        left: pixel("left"), right: pixel("right")};
"""

FETCH_SOURCE = "return fetch('/').then((answer) => answer.text());"
FETCH_CARD = """
return (async () => {
  const state = await (await fetch("/state")).json();
  const pictures = await Promise.all(state.current.pictures.map((address) => fetch(address)));
  return [state, await Promise.all(pictures.map(async (picture) => [
    (await picture.arrayBuffer()).byteLength,
    [...picture.headers].filter(([name]) => name !== "date"),
  ]))];
})();
"""


class Server:
    """`ladd-pipeline compare` in a process of its own, always at the same address."""

    def __init__(self, folder: Path, store: ArtifactStore) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.votes = folder / "votes.sqlite"
        where = ["--votes", str(self.votes), "--port", str(self.port)]
        self._command = [*COMMAND, "compare", *where, *options_for(store)]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, cwd=ROOT, stderr=subprocess.DEVNULL)
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url, timeout=5):
                return
            assert self.process.poll() is None
            time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path):
    prompts = [HOSTILE, *(f"a quiet prompt, number {i}" for i in range(9))]
    store = ArtifactStore(str(tmp_path / "store"))
    make_evaluation(store, prompts)
    server = Server(tmp_path, store)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def raters(start_browser):
    """Two people, each with a browser of their own."""
    return start_browser(), start_browser()


def wait(driver, condition, seconds=180):
    return WebDriverWait(driver, seconds, poll_frequency=0.05).until(lambda _: condition())


def press(driver, key):
    driver.find_element(By.TAG_NAME, "body").send_keys(key)


def card(driver, after=None):
    """The next question, once it can be answered."""

    def asked():
        found = driver.execute_script(CARD)
        return found if found and found["turn"] != after else None

    found = wait(driver, asked)
    return found | {side: system_of(found[side]) for side in ("left", "right")}


def judge(driver, keys):
    """Answer with each key; returns who should have won."""
    expected, turn = [], None
    for key in keys:
        seen = card(driver, after=turn)
        turn = seen["turn"]
        press(driver, key)
        left, right = seen["left"], seen["right"]
        winner = {Keys.ARROW_LEFT: left, "a": left, Keys.ARROW_RIGHT: right, "B": right}
        expected.append((seen["question"], *sorted((left, right)), winner.get(key, "tie")))
    wait(driver, lambda: (driver.execute_script(CARD) or {}).get("turn") not in (None, turn))
    return expected


def stored(server):
    with open_votes(server.votes, create=False) as votes:
        standing = votes.standing()
        (events,) = votes._connection.execute("SELECT count(*) FROM event").fetchone()
    return events, {
        rater: [
            (v.question.kind, *v.question.matchup[1:], v.winner)
            for v in standing
            if v.rater == rater
        ]
        for rater in ("Ana", "Ben")
    }


def errors(driver):
    """What the console says, but for the outages that a test made."""
    return [
        entry
        for entry in driver.get_log("browser")
        if "net::ERR_" not in entry["message"] and "favicon" not in entry["message"]
    ]


def test_twenty_votes_by_two_raters_survive_a_killed_server(server, raters):
    keys = [Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, "a", "B"] * 2
    expected, failures = {}, []
    asked = threading.Barrier(2)  # a page that has not loaded cannot survive the server

    def vote_as(name, driver):
        try:
            driver.get(f"{server.url}?rater={name}")
            card(driver)
            asked.wait()
            expected[name] = judge(driver, keys)
        except Exception as error:
            failures.append(error)
            asked.abort()
            raise

    threads = [
        threading.Thread(target=vote_as, args=pair)
        for pair in zip(("Ana", "Ben"), raters, strict=True)
    ]
    for thread in threads:
        thread.start()
    for votes_until_death in (5, 12):
        while stored(server)[0] < votes_until_death and not failures:
            time.sleep(0.02)
        server.kill()
        time.sleep(1.5)  # both raters press a key in vain
        server.start()
    for thread in threads:
        thread.join()
    assert not failures
    events, votes = stored(server)
    assert events == 20
    assert votes == expected and len(votes["Ana"]) == len(votes["Ben"]) == 10
    for driver in raters:
        assert driver.find_element(By.ID, "count").text == "10 of 60"
        assert driver.find_element(By.ID, "progress").get_attribute("aria-valuenow") == "10"
        assert driver.find_element(By.ID, "trouble").text == ""
        assert errors(driver) == []


def test_an_answer_given_while_the_server_is_away_is_said_kept_and_sent(server, browser):
    browser.get(f"{server.url}?rater=Ana")
    seen = card(browser)
    server.kill()
    press(browser, Keys.ARROW_LEFT)
    trouble = browser.find_element(By.ID, "trouble")
    wait(browser, lambda: "Not stored yet" in trouble.text)
    press(browser, Keys.ARROW_RIGHT)  # must not become a second answer
    server.start()
    card(browser, after=seen["turn"])
    assert trouble.text == ""
    events, votes = stored(server)
    assert events == 1 and [v[-1] for v in votes["Ana"]] == [seen["left"]]


def test_undo_by_key_and_by_mouse_takes_back_one_answer_each(server, browser):
    browser.get(f"{server.url}?rater=Ana")
    judge(browser, [Keys.ARROW_LEFT] * 3)
    before = card(browser)
    press(browser, "u")
    again = card(browser, after=before["turn"])
    browser.find_element(By.CSS_SELECTOR, "#vote .undo").click()
    card(browser, after=again["turn"])
    assert stored(server)[0] == 5 and len(stored(server)[1]["Ana"]) == 1
    browser.find_element(By.CSS_SELECTOR, ".answer[data-answer=right]").click()
    wait(browser, lambda: len(stored(server)[1]["Ana"]) == 2)
    assert stored(server)[1]["Ana"][-1][-1] in COLOURS


def test_a_name_is_asked_once_and_the_last_answer_is_thanked_for(server, browser):
    browser.get(server.url)
    browser.delete_all_cookies()
    browser.get(server.url)
    name = browser.find_element(By.ID, "name")
    wait(browser, name.is_displayed)
    assert browser.switch_to.active_element == name
    name.send_keys("Ana" + Keys.ENTER)
    seen = card(browser)
    assert stored(server)[0] == 0  # the letters of a name are no answers
    state = browser.execute_async_script(
        "const done = arguments[0]; (async () => { let state;"
        "do { state = await (await fetch('/state')).json();"
        "  if (state.done === state.total - 1) break;"
        "  const { token, question, turn } = state.current;"
        "  await fetch('/votes', { method: 'POST', headers: {'Content-Type': 'application/json'},"
        "    body: JSON.stringify({ token, question, turn, answer: 'tie' }) });"
        "} while (true); done(state); })()"
    )
    browser.get(server.url)
    card(browser, after=seen["turn"])
    press(browser, Keys.ARROW_RIGHT)
    thanks = browser.find_element(By.ID, "thanks")
    wait(browser, thanks.is_displayed)
    assert "Thank you, Ana" in thanks.text and f"All {state['total']} answers" in thanks.text
    press(browser, Keys.BACKSPACE)
    card(browser)
    assert len(stored(server)[1]["Ana"]) == state["total"] - 1


def test_a_hostile_prompt_is_text(server, browser):
    browser.get(f"{server.url}?rater=Ana")
    prompt = browser.find_element(By.ID, "prompt")
    turn, shown = None, []
    while HOSTILE not in shown:
        turn = card(browser, after=turn)["turn"]
        shown.append(prompt.text)
        press(browser, Keys.ARROW_DOWN)
    assert browser.execute_script("return window.hacked") is None
    assert browser.find_elements(By.CSS_SELECTOR, "#prompt *") == []
    assert errors(browser) == []


def test_the_page_and_all_it_fetches_hide_the_side(server, browser):
    """The source is one and the same text for raters who see different systems on the left; what
    it fetches names none, and the two pictures differ in nothing but their pixels.
    """
    sources, on_left = set(), set()
    for number in range(40):  # sides follow from a secret that is new at every start of this test
        browser.get(f"{server.url}?rater=Rater{number}")
        on_left.add(card(browser)["left"])
        sources.add(browser.execute_script(FETCH_SOURCE))
        live = browser.find_element(By.TAG_NAME, "main").get_attribute("outerHTML")
        state, (left, right) = browser.execute_script(FETCH_CARD)
        assert left == right
        for content in (live, json.dumps(state)):
            assert not re.search(r"teacher|student|tuned|\d{4}-000|e{16}", content)
        if number >= 3 and len(on_left) > 1:
            break
    assert len(on_left) > 1 and len(sources) == 1


@pytest.mark.parametrize(("width", "height"), [(390, 844), (844, 390), (820, 1180), (1440, 900)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_in_reach_at_every_width(server, browser, width, height, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get(f"{server.url}?rater=Ana")
    card(browser)
    inside, boxes = browser.execute_script(
        "const box = (e) => { const r = e.getBoundingClientRect();"
        "  return [r.left, r.top, r.right, r.bottom, r.width, r.height]; };"
        "return [document.documentElement.scrollWidth <= innerWidth,"
        "  [...document.querySelectorAll('.frame, .answer')].map(box)]"
    )
    assert inside
    for left, _, right, _, wide, high in boxes:
        assert left >= 0 and right <= width and wide >= 44 and high >= 44
    first, second = boxes[:2]
    stacked = width <= 640 and "48x80" not in _bucket(browser)
    if stacked:
        assert second[1] >= first[3] and second[0] == pytest.approx(first[0], abs=1)
    else:
        assert second[0] >= first[2] and second[1] == pytest.approx(first[1], abs=1)
    if height >= 800:
        assert boxes[-1][3] <= height  # the answers are on the screen without scrolling
    colours = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    )
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (ink < paper) == (scheme == "light")


def _bucket(browser):
    return browser.execute_script(
        "const { naturalWidth: w, naturalHeight: h } = document.querySelector('#left img');"
        "return `${w}x${h}`"
    )
