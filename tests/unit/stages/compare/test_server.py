"""What raters see and send, and what the server refuses."""

from __future__ import annotations

import io
import re

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from schemas.errors import ConfigError
from stages.compare.server import create_app, serve
from tests.support.evaluation import COLOURS, system_of
from tests.support.study import BOTH, PROMPTS


@pytest.fixture
def client(study, pictures, votes):
    app = create_app(study, pictures, votes)
    with TestClient(app, base_url="http://127.0.0.1:8765") as client:
        yield client


def sign_in(client, name="Ana"):
    assert client.post("/rater", json={"name": name}).status_code == 200
    return client.get("/state").json()


def answer(client, state, choice="left"):
    current = state["current"]
    body = {k: current[k] for k in ("token", "question", "turn")} | {"answer": choice}
    return client.post("/votes", json=body)


def seen(client, address):
    response = client.get(address)
    image = Image.open(io.BytesIO(response.content))
    return system_of(image.getpixel((0, 0))), response


def test_a_vote_names_the_system_whose_picture_was_seen(client, votes):
    state = sign_in(client)
    expected, on_left = [], []
    for choice in ("left", "right", "tie") * 6:
        systems = [seen(client, address)[0] for address in state["current"]["pictures"]]
        expected.append({"left": systems[0], "right": systems[1], "tie": "tie"}[choice])
        on_left.append(systems[0])
        state = answer(client, state, choice).json()
    assert [v.winner for v in votes.standing("Ana")] == expected
    assert state["done"] == 18 and len({v.question for v in votes.standing()}) == 18
    assert [v.on_left for v in votes.standing("Ana")] == on_left


def test_both_questions_are_asked_of_a_pair_before_the_next(client):
    state = sign_in(client)
    first = state["current"]
    state = answer(client, state).json()
    assert (first["question"], state["current"]["question"]) == BOTH
    assert state["current"]["token"] == first["token"]
    assert state["next"] != first["pictures"]
    state = answer(client, state).json()
    assert state["current"]["token"] != first["token"]


def test_nothing_that_a_rater_receives_tells_system_or_sample(client, study):
    page = client.get("/").text
    state = sign_in(client)
    assert client.get("/").text == page  # the same for everybody, before and after
    received = [client.get("/state").text]
    for _ in range(8):
        headers = []
        for address in state["current"]["pictures"]:
            _, response = seen(client, address)
            headers.append({k: v for k, v in response.headers.items() if k != "date"})
        assert headers[0] == headers[1]
        received.append(str(headers[0]))
        response = answer(client, state)
        received.append(response.text + str(response.headers))
        state = response.json()
    for text in received:
        for secret in [*COLOURS, "student", "teacher", "tuned", study.evaluation, *study.samples]:
            assert secret not in text


def test_state_is_the_same_for_both_orders_of_the_sides(client, study):
    """The fields of a card hold nothing that varies with the side: tokens are random to readers."""
    state = sign_in(client)
    current = state["current"]
    left, right = current["pictures"]
    assert left.replace("left", "right") == right
    assert set(current) == {
        *("token", "question", "turn", "text", "place", "of"),
        *("prompt", "width", "height", "pictures"),
    }


def test_undo_asks_the_same_question_again_on_the_same_sides(client, votes):
    state = sign_in(client)
    asked = [state["current"]]
    for _ in range(3):
        state = answer(client, state).json()
        asked.append(state["current"])
    for back in (2, 1, 0):
        state = client.post("/undo", json=state["undo"]).json()
        again = dict(asked[back], turn=state["current"]["turn"])
        assert state["current"] == again and state["done"] == back
    assert state["undo"] is None and votes.standing() == []
    state = answer(client, state, "right").json()
    assert state["done"] == 1 and len(votes.standing()) == 1


def test_resent_requests_change_nothing(client, votes):
    state = sign_in(client)
    after = [answer(client, state).json() for _ in range(3)]
    assert after[0] == after[1] == after[2] and after[0]["done"] == 1
    undone = [client.post("/undo", json=after[0]["undo"]).json() for _ in range(3)]
    assert undone[0] == undone[1] == undone[2] and undone[0]["done"] == 0
    assert len(votes.standing()) == 0


def test_after_the_last_answer_there_is_nothing_left_but_undo(client, study):
    state = sign_in(client)
    assert state["total"] == 2 * 3 * len(PROMPTS)
    for _ in range(state["total"]):
        state = answer(client, state, "tie").json()
    assert state["current"] is None and state["next"] is None
    assert state["done"] == state["total"] and state["undo"]


def test_wrong_requests_are_refused(client):
    assert client.get("/state").status_code == 401
    assert client.get("/pictures/x/left.png").status_code == 401
    for name in ("", "  ", "x" * 41, "a\x00b"):
        assert client.post("/rater", json={"name": name}).status_code == 422
    state = sign_in(client)
    current = {k: state["current"][k] for k in ("token", "question", "turn")}
    for change, status in [
        ({"token": "x"}, 404),
        ({"question": "taste"}, 404),
        ({"turn": 1}, 409),
        ({"turn": 2}, 409),
        ({"turn": -1}, 422),
        ({"answer": "both"}, 422),
    ]:
        body = {**current, "answer": "left", **change}
        assert client.post("/votes", json=body).status_code == status, change
    assert client.post("/undo", json=current).status_code == 409
    assert client.get(state["current"]["pictures"][0].replace("left", "top")).status_code == 422
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    token = state["current"]["pictures"][0]
    sign_in(client, "Ben")
    assert client.get(token).status_code == 404
    assert client.get("/state").json()["done"] == 0


def test_a_rater_is_known_by_link_and_form_also_beyond_latin(client):
    response = client.get("/?rater=Zoë%20Ω", follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (303, "/")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert client.get("/state").json()["rater"] == "Zoë Ω"
    client.delete("/rater")
    assert client.get("/state").status_code == 401


def test_the_page_allows_nothing_inline_but_its_own_and_nothing_from_elsewhere(client):
    response = client.get("/")
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'" and "unsafe" not in str(policy)
    scripts = re.findall(r"<script[^>]*>", response.text)
    assert len(scripts) == policy["script-src"].count("'sha256-") > 0
    assert not re.findall(r"(?:src|href)=\"(?!#|data:,)", response.text)
    assert " style=" not in response.text and " onclick=" not in response.text
    assert response.headers["x-frame-options"] == "DENY"


def test_a_taken_port_is_named(study, pictures, votes):
    import socket

    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="choose others with --host and --port"),
    ):
        serve(study, pictures, votes, "127.0.0.1", taken.getsockname()[1], print)


def test_a_vote_file_that_fails_is_a_sentence_on_the_page(client, votes, monkeypatch):
    state = sign_in(client)

    def fails(*_):
        raise ConfigError("--votes v.sqlite cannot be read or written (disk I/O error)")

    monkeypatch.setattr(votes, "cast", fails)
    response = answer(client, state)
    assert response.status_code == 503 and "disk I/O error" in response.json()["detail"]
