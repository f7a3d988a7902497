"""The voting page and the few requests that it makes. Identifies raters by a name in a cookie, and
tells them nothing about systems, samples or results.

The page is the same for everybody and contains no data: its inline styles and scripts are allowed
by their hashes, and everything that users wrote arrives as JSON and is shown as text.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import unicodedata
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

import uvicorn
from fastapi import Cookie, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from schemas.errors import ConfigError, LaddError
from stages.compare.study import QUESTIONS, Ballot, Card, Pictures, Study
from stages.compare.votes import TIE, OutOfTurn, Votes
from stages.report.templates import template_environment

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")
_NAME_LENGTH = 40
_COOKIE = "rater"
_YEAR = 365 * 24 * 3600

Rater = Annotated[str | None, Cookie(alias=_COOKIE)]


class Name(BaseModel):
    """Who is voting."""

    name: str


class Turn(BaseModel):
    """The next event of a question, as announced by `/state`."""

    token: str
    question: str
    turn: int = Field(ge=0)


class Answer(Turn):
    """The rater's choice."""

    answer: Literal["left", "right", "tie"]


def create_app(
    study: Study, pictures: Pictures, votes: Votes, hosts: tuple[str, ...] = LOCAL_HOSTS
) -> FastAPI:
    """Create the application; it only answers requests whose Host header is one of `hosts`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = template_environment().get_template("compare.html.j2").render()
    headers = _security_headers(page)

    @app.middleware("http")
    async def secure(
        request: Request, proceed: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await proceed(request)
        response.headers.update({"Cache-Control": "no-store", **headers, **response.headers})
        return response

    @app.exception_handler(OutOfTurn)
    def refuse(_: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, 409)

    @app.exception_handler(LaddError)
    def explain(_: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, 503)

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.get("/")
    def show_page(rater: str | None = None) -> Response:
        if rater is None:
            return HTMLResponse(page)
        return _remembered(RedirectResponse("/", 303), rater)

    @app.post("/rater")
    def sign_in(name: Name) -> Response:
        return _remembered(JSONResponse({}), name.name)

    @app.delete("/rater")
    def sign_out() -> Response:
        response = JSONResponse({})
        response.delete_cookie(_COOKIE)
        return response

    voting = _Voting(study, pictures, votes)
    app.get("/state")(voting.state)
    app.post("/votes")(voting.vote)
    app.post("/undo")(voting.undo)
    app.get("/pictures/{token}/{side}.png")(voting.picture)
    return app


class _Voting:
    """The requests of a rater who has given a name; each sees only its own ballot."""

    def __init__(self, study: Study, pictures: Pictures, votes: Votes) -> None:
        self._study, self._pictures, self._votes = study, pictures, votes
        self._ballot = lru_cache(maxsize=256)(partial(Ballot, study, votes.secret))

    def state(self, rater: Rater = None) -> dict[str, Any]:
        return _state(self._ballot_of(rater), self._votes)

    def vote(self, answer: Answer, rater: Rater = None) -> dict[str, Any]:
        mine = self._ballot_of(rater)
        card = self._card_of(mine, answer.token, answer.question)
        winner = {"left": card.left, "right": card.right, "tie": TIE}[answer.answer]
        question = self._study.question(card.matchup, answer.question)
        self._votes.cast(mine.rater, question, answer.turn, winner, card.left)
        return _state(mine, self._votes)

    def undo(self, turn: Turn, rater: Rater = None) -> dict[str, Any]:
        mine = self._ballot_of(rater)
        card = self._card_of(mine, turn.token, turn.question)
        question = self._study.question(card.matchup, turn.question)
        self._votes.take_back(mine.rater, question, turn.turn, card.left)
        return _state(mine, self._votes)

    def picture(self, token: str, side: Literal["left", "right"], rater: Rater = None) -> Response:
        card = self._card_of(self._ballot_of(rater), token)
        system = card.left if side == "left" else card.right
        return Response(
            self._pictures.shown(system, card.matchup.sample),
            media_type="image/png",
            headers={"Cache-Control": "private, max-age=3600"},
        )

    def _ballot_of(self, cookie: str | None) -> Ballot:
        rater = _name(unquote(cookie or ""))
        if rater is None:
            raise HTTPException(401, "you have not given a name; load the page again")
        return self._ballot(rater)

    def _card_of(self, mine: Ballot, token: str, question: str | None = None) -> Card:
        if token not in mine.by_token or question not in (None, *self._study.kinds):
            raise HTTPException(404, "this question is not yours; load the page again")
        return mine.by_token[token]


def _state(ballot: Ballot, votes: Votes) -> dict[str, Any]:
    """What the page shows: the first open question, the next pictures, the progress, and the answer
    that an undo would remove.
    """
    study = ballot.study
    asked = [(card, kind) for card in ballot.cards for kind in study.kinds]
    standing = {vote.question: vote for vote in votes.standing(ballot.rater)}
    open_questions = [
        (card, kind) for card, kind in asked if study.question(card.matchup, kind) not in standing
    ]
    state: dict[str, Any] = {
        "rater": ballot.rater,
        "done": len(asked) - len(open_questions),
        "total": len(asked),
        "current": None,
        "next": None,
        "undo": None,
    }
    if open_questions:
        card, kind = open_questions[0]
        sample = study.samples[card.matchup.sample]
        state["current"] = {
            "token": card.token,
            "question": kind,
            "turn": votes.turns(ballot.rater).get(study.question(card.matchup, kind), 0),
            "text": QUESTIONS[kind],
            "place": study.kinds.index(kind) + 1,
            "of": len(study.kinds),
            "prompt": sample.prompt,
            "width": sample.width,
            "height": sample.height,
            "pictures": _addresses(card),
        }
        state["next"] = next((_addresses(c) for c, _ in open_questions if c is not card), None)
    cards = {study.question(card.matchup, kind): (card, kind) for card, kind in asked}
    latest = next((vote for vote in reversed(standing.values()) if vote.question in cards), None)
    if latest is not None:
        card, kind = cards[latest.question]
        state["undo"] = {"token": card.token, "question": kind, "turn": latest.turn + 1}
    return state


def _addresses(card: Card) -> list[str]:
    return [f"/pictures/{card.token}/{side}.png" for side in ("left", "right")]


def _name(text: str) -> str | None:
    """A rater's name as it is stored; None if `text` is not a valid name."""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    return name if 0 < len(name) <= _NAME_LENGTH and name.isprintable() else None


def _remembered(response: Response, text: str) -> Response:
    name = _name(text)
    if name is None:
        raise HTTPException(422, f"a name has 1 to {_NAME_LENGTH} characters")
    response.set_cookie(_COOKIE, quote(name), max_age=_YEAR, httponly=True, samesite="strict")
    return response


def _security_headers(page: str) -> dict[str, str]:
    """Headers that allow nothing from other origins and only the page's own inline code."""
    allowed = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
            for part in re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        )
        for tag in ("style", "script")
    }
    policy = {
        "default-src": "'none'",
        "style-src": allowed["style"],
        "script-src": allowed["script"],
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def serve(
    study: Study,
    pictures: Pictures,
    votes: Votes,
    host: str,
    port: int,
    tell: Callable[[str], None],
) -> None:
    """Serve until a signal; `tell` receives the address. Port 0 picks any free port.

    Raises ConfigError if the address is not available.
    """
    is_local = host in LOCAL_HOSTS
    app = create_app(study, pictures, votes, LOCAL_HOSTS if is_local else ("*",))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"compare: cannot listen on {host}, port {port} ({error}); choose others with --host "
            "and --port"
        ) from error
    with listener:
        shown = f"[{host}]" if ":" in host else host
        tell(f"judge at http://{shown}:{listener.getsockname()[1]}/ (Ctrl-C ends; votes are kept)")
        if not is_local:
            tell("anyone who reaches this address can vote, under any name")
        settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        uvicorn.Server(settings).run(sockets=[listener])
