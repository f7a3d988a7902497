"""Traces of runs, as a collector gets them."""

from __future__ import annotations

import pytest

from pipeline import tracing
from pipeline.base.store import ArtifactStore
from pipeline.executor import execute
from pipeline.observe import Observer
from pipeline.planning import Selection, make_plan
from schemas.errors import ConfigError, LaddError
from tests.support.s3_servers import free_ports
from tests.support.tiny_sd3 import make_tiny_config
from tests.support.trace_collector import trace_collector
from tests.support.without_ray import without_ray


def attributes(span) -> dict:
    found = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
    return {name.removeprefix("ladd."): value for name, value in found.items()}


def executed(model, store, *, until: str, **fields) -> Observer:
    config = make_tiny_config(model, store, **fields).model_copy(update={"traces": True})
    observer, artifacts = Observer(log_format="json"), ArtifactStore(config.store)
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        execute(config, artifacts, make_plan(config, artifacts, Selection(until)), observer)
    return observer


def test_a_run_its_stages_and_their_shards_are_spans(tiny_sd3, tmp_path, monkeypatch):
    with trace_collector(monkeypatch) as spans:
        observer = executed(tiny_sd3, tmp_path / "store", until="synthesize")
    (run,) = [span for span in spans if span.name == "run"]
    assert attributes(run)["run"] == observer.run and not run.parent_span_id
    stages = {span.name: span for span in spans if span.parent_span_id == run.span_id}
    assert set(stages) == {"prompts", "synthesize"}
    assert len(attributes(stages["synthesize"])["key"]) == 16
    shards = [span for span in spans if span.name == "shard"]
    assert shards and {span.parent_span_id for span in shards} == {stages["synthesize"].span_id}
    assert {span.trace_id for span in spans} == {run.trace_id}
    for span in shards:
        told = attributes(span)
        assert told["shard"].startswith("shards/") and told["samples"] > 0
        taken = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert taken == pytest.approx(told["seconds"], abs=1e-6)
    assert observer.followers == []


def test_a_failure_is_the_status_of_its_stage_and_of_the_run(tiny_sd3, tmp_path, monkeypatch):
    with trace_collector(monkeypatch) as spans, pytest.raises(LaddError) as raised:
        (tmp_path / "p.txt").write_text("a red circle\n")
        sources = {"sources": [{"kind": "file", "url": str(tmp_path / "p.txt")}]}
        monkeypatch.setattr("stages.prompts.run", _broken)
        executed(tiny_sd3, tmp_path / "store", until="prompts", prompts=sources)
    said = {span.name: span.status.message for span in spans}
    assert said["prompts"] == str(raised.value) == "prompts: broken"
    assert "broken" in said["run"]


def _broken(_: object) -> None:
    raise LaddError("prompts: broken")


def test_a_collector_that_does_not_answer_is_one_warning(tiny_sd3, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tracing, "_GIVE_UP_SECONDS", 1)
    (port,) = free_ports(1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    observer = executed(tiny_sd3, tmp_path / "store", until="prompts")
    said = [row["text"] for row in observer.events if row["event"] == "warning"]
    assert len(said) == 1 and "OTEL_EXPORTER_OTLP_ENDPOINT" in said[0]
    assert "Traceback" not in capfd.readouterr().err


def test_without_the_exporter_nothing_starts(tiny_sd3, tmp_path, monkeypatch):
    monkeypatch.setitem(
        __import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None
    )
    with pytest.raises(ConfigError, match=r"pip install 'ladd-pipeline\[traces\]'"):
        executed(tiny_sd3, tmp_path / "store", until="prompts")
    assert not list((tmp_path / "store").glob("artifacts/*/*/*"))
