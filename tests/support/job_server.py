"""A server on loopback that answers as Ray's job server does, without a Ray."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
import zipfile
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSCloseCode, web


@dataclass
class FakeJobs:
    """What the server has been asked, and what its jobs do."""

    versions: dict[str, Any]
    """What `ladd-pipeline version --json` says there; empty if there is no such command."""
    parts: list[str] = field(default_factory=lambda: ["prompts 1/2\n", "prompts 2/2\n"])
    """What a run says, part by part."""
    drops: int = 0
    """How often the connection to a log is lost after its first part."""
    exit_code: int | None = 0
    """Of a run; None runs until it is stopped."""
    ignores_stop: bool = False
    token: str = ""
    refusals: int = 0
    """How often a job is refused before one is taken."""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    """Of the environment in which the last job was to run."""
    packages: dict[str, bytes] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    address: str = ""

    def files(self) -> dict[str, bytes]:
        """The files of the one package that came."""
        (package,) = self.packages.values()
        with zipfile.ZipFile(io.BytesIO(package)) as archive:
            return {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}

    def start(self, entrypoint: str, job: str, metadata: dict[str, str]) -> None:
        is_probe = "version" in entrypoint
        now = int(time.time() * 1000) + len(self.jobs)
        failed = not self.versions if is_probe else self.exit_code
        state = "RUNNING" if not is_probe and self.exit_code is None else "SUCCEEDED"
        self.jobs[job] = {
            "type": "SUBMISSION",
            "submission_id": job,
            "status": "FAILED" if failed else state,
            "entrypoint": entrypoint,
            "start_time": now,
            "end_time": None if state == "RUNNING" else now + 2000,
            "metadata": metadata,
            "driver_exit_code": None
            if state == "RUNNING"
            else (127 if is_probe else self.exit_code)
            if failed
            else 0,
        }

    def log(self, job: str) -> str:
        if "version" not in self.jobs[job]["entrypoint"]:
            return "".join(self.parts)
        said = json.dumps(self.versions) if self.versions else "sh: 1: ladd-pipeline: not found"
        return f"Running entrypoint for job {job}\n{said}\n"


def serve(fake: FakeJobs) -> None:
    """Serve in a daemon thread."""
    ready = threading.Event()

    async def run() -> None:
        runner = web.AppRunner(_application(fake), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    assert ready.wait(20)


def _application(fake: FakeJobs) -> web.Application:
    @web.middleware
    async def authorized(request: web.Request, handler: Any) -> web.StreamResponse:
        if fake.token and request.headers.get("Authorization") != f"Bearer {fake.token}":
            return web.Response(status=401, text="Unauthorized")
        return await handler(request)

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})

    async def has_package(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in fake.packages else 404)

    async def put_package(request: web.Request) -> web.Response:
        fake.packages[request.match_info["name"]] = await request.read()
        return web.Response(status=200)

    async def submit(request: web.Request) -> web.Response:
        if fake.refusals:
            fake.refusals -= 1
            return web.Response(status=500, text="No available agent to submit job, try later")
        asked = await request.json()
        job = asked.get("submission_id") or f"raysubmit_{len(fake.jobs)}"
        fake.variables = asked["runtime_env"].get("env_vars", {}) if asked["runtime_env"] else {}
        fake.start(asked["entrypoint"], job, asked.get("metadata") or {})
        return web.json_response({"job_id": job, "submission_id": job})

    async def jobs(_: web.Request) -> web.Response:
        return web.json_response([*fake.jobs.values()])

    async def info(request: web.Request) -> web.Response:
        return web.json_response(fake.jobs[request.match_info["job"]])

    async def delete(request: web.Request) -> web.Response:
        del fake.jobs[request.match_info["job"]]
        return web.json_response({"deleted": True})

    async def stop(request: web.Request) -> web.Response:
        job = request.match_info["job"]
        fake.stopped.append(job)
        if not fake.ignores_stop:
            fake.jobs[job] |= {"status": "STOPPED", "end_time": int(time.time() * 1000)}
        return web.json_response({"stopped": True})

    async def logs(request: web.Request) -> web.Response:
        return web.json_response({"logs": fake.log(request.match_info["job"])})

    async def tail(request: web.Request) -> web.StreamResponse:
        job, socket = request.match_info["job"], web.WebSocketResponse()
        await socket.prepare(request)
        for part in fake.parts:
            await socket.send_str(part)
            if fake.drops:
                fake.drops -= 1
                await socket.close(code=WSCloseCode.ABNORMAL_CLOSURE)
                return socket
        while fake.jobs[job]["status"] == "RUNNING":
            await asyncio.sleep(0.05)
        await socket.close()
        return socket

    made = web.Application(middlewares=[authorized], client_max_size=1 << 30)
    made.add_routes(
        [
            web.get("/api/version", version),
            web.get("/api/packages/gcs/{name}", has_package),
            web.put("/api/packages/gcs/{name}", put_package),
            web.post("/api/jobs/", submit),
            web.get("/api/jobs/", jobs),
            web.get("/api/jobs/{job}", info),
            web.delete("/api/jobs/{job}", delete),
            web.post("/api/jobs/{job}/stop", stop),
            web.get("/api/jobs/{job}/logs", logs),
            web.get("/api/jobs/{job}/logs/tail", tail),
        ]
    )
    return made
