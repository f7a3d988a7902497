"""Mutated state files of a store: each is ignored, or refused in a sentence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base import lease, markers, tables, training
from pipeline.base.checkpoint_list import _LIST, _listed, mend_checkpoint_list
from pipeline.base.claims import Claims, claims_folder, run_folder, tidy
from pipeline.base.course import Saved, Work, noted_in
from pipeline.base.lease import Lease, held, is_held
from pipeline.base.lineage import survey
from pipeline.base.markers import Folding, finished_shards
from pipeline.base.shards import ShardWriter
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.stage_task import _begin
from schemas.errors import ArtifactError, LaddError, Locked
from schemas.records import ShardStats
from stages.compare.votes import open_votes
from stages.ladd.checkpoint import CheckpointError
from stages.training.trace import TRACE, _lines_of
from tests.support.fuzzing import fuzzed, mutated
from tests.support.manifests import manifest_of
from tests.support.shards import shard_names

pytestmark = pytest.mark.slow

FOLDER, SHARD = "artifacts/synthesize/k", "shards/64x64/000000"
TRAINING, MEETING = "training/distill/k", claims_folder("synthesize", "k")
KEPT = b'{"steps": [3, 6], "best": {"a": "checkpoint_000000005", "b": "checkpoint_000000007_b"}}'
CHECKPOINTS = ["checkpoint_1", "checkpoint_2"]

ODD = [None, True, -1, 0, 10**30, 1e999, -0.5, float("nan"), "", "text", "\ud800", "é\0", [], {}]
odd_json = st.sampled_from([*ODD, [1, "a"], [[None]], {"a": {"b": 1}}])


def files(sound: bytes) -> st.SearchStrategy[bytes]:
    """What may lie in the place of a sound state file."""
    fields = json.loads(sound)
    changed = st.dictionaries(st.sampled_from(sorted(fields)), odd_json, min_size=1).map(
        lambda new: json.dumps(fields | new).encode()
    )
    other = odd_json.map(lambda value: json.dumps(value).encode())
    return mutated(sound) | changed | other | st.binary(max_size=64) | st.just(bytes(len(sound)))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: None)
    monkeypatch.setattr("pipeline.base.store._AGAIN_SECONDS", 0)
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def context(store):
    return SimpleNamespace(store=store, stage="distill", training_folder=TRAINING)


def write(store: ArtifactStore, name: str, content: bytes) -> None:
    """Without waiting for the disk."""
    path = Path(store.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def shard(store):
    """The marker's bytes and the statistics of a finished shard."""
    writer = ShardWriter(store, FOLDER, SHARD)
    writer.file(".tar", b"content")
    stats = writer.commit({"ok": 2}, {"rows": [1, 2.5, None], "file": "ä"})
    return store.read(f"{FOLDER}/{SHARD}.json"), stats


@fuzzed
@given(data=st.data())
def test_a_marker_is_intact_or_ignored(store, shard, data):
    sound, stats = shard
    write(store, f"{FOLDER}/{SHARD}.json", data.draw(files(sound)))
    found = finished_shards(store, FOLDER)
    assert found.get(SHARD) in (None, stats) or found[SHARD].seal == ""


@fuzzed
@given(data=st.data())
def test_a_segment_says_of_each_shard_what_was_written_or_nothing(store, data, monkeypatch):
    monkeypatch.setattr(markers, "SEGMENT", 3)
    folding, written = Folding(store, FOLDER, lambda: True), {}
    for shard in shard_names(3):
        if not Path(store.path(f"{FOLDER}/{shard}.tar")).exists():
            write(store, f"{FOLDER}/{shard}.tar", shard.encode())
        content = shard.encode()
        stats = ShardStats(
            shard=shard,
            counts={"ok": 1},
            files={f"{shard}.tar": hashlib.sha256(content).hexdigest()},
            sizes={f"{shard}.tar": len(content)},
            seconds=1,
        )
        written[shard] = stats.model_copy(update={"seal": stats.own_seal()})
        folding.add(written[shard])
    (segment,) = (name for name in store.list(FOLDER) if name.startswith("segments/"))
    sound = store.read(f"{FOLDER}/{segment}")
    assert finished_shards(store, FOLDER) == written
    write(store, f"{FOLDER}/{segment}", data.draw(mutated(sound) | st.binary(max_size=64)))
    for shard, stats in finished_shards(store, FOLDER).items():
        assert stats == written[shard] or stats.seal == ""
    write(store, f"{FOLDER}/{segment}", sound)


@fuzzed
@given(data=st.data())
def test_a_claim_is_respected_or_taken(store, data):
    """Of whatever lies in the places of a claim and of the lease of its run."""
    claims, other = Claims(store, MEETING, "mine"), Claims(store, MEETING, "other")
    lease = run_folder(MEETING, "other") + "/lease.json"
    for name, sound in (
        (f"{MEETING}/{SHARD}.json", Lease(store, "", "", "other").content()),
        (lease, Lease(store, "", "", "x").content()),
    ):
        write(store, name, data.draw(files(sound) | st.just(sound)))
    if not claims.take(SHARD):
        owner = claims.owner(SHARD)
        assert owner is not None
        taken = not claims.is_live(owner, watch=False) and claims.take_from(owner, SHARD)
        assert taken == claims.take(SHARD)
    tidy(store, MEETING)
    other.give_back(SHARD)


@fuzzed
@given(data=st.data())
def test_a_lease_is_taken_over_or_respected(store, data):
    name = f"{TRAINING}/lease.json"
    sound = Lease(store, name, "distill", "token").content()
    write(store, name, data.draw(files(sound)))
    is_held(store, TRAINING)
    try:
        with held(store, TRAINING, "distill") as mine:
            mine.check()
    except Locked as error:
        assert "another run is using it" in str(error)
    write(store, name, data.draw(files(sound)))
    Lease(store, name, "distill", "token").is_lost()
    store.remove(name)


@fuzzed
@given(data=st.data())
def test_a_manifest_is_read_or_named(store, data):
    sound = manifest_of("prompts", {"a.parquet": (1, "0" * 64)}).model_dump_json().encode()
    write(store, "artifacts/prompts/k/manifest.json", data.draw(files(sound)))
    try:
        found = store.find("prompts", "k")
    except ArtifactError as error:
        assert "artifacts/prompts/k/manifest.json" in str(error)
        assert survey(store, "prompts") == ([], [str(error)])
    else:
        assert (found.manifest.stage, found.manifest.key) == ("prompts", "k")


@fuzzed
@given(data=st.data())
def test_a_large_manifest_is_read_as_written_or_named(store, data, monkeypatch):
    monkeypatch.setattr(tables, "LARGE", 2)
    monkeypatch.setattr(tables, "_LONG", 2)
    where = "artifacts/prompts/k"
    rows = {f"{shard}.parquet": (1, "0" * 64) for shard in shard_names(3)}
    manifest = manifest_of("prompts", rows, details={"shards": shard_names(3)})
    store.remove(where)
    artifact = store.commit(manifest)
    contents = {name: store.read(f"{where}/{name}") for name in store.list(where)}
    spoilt = data.draw(st.sampled_from(sorted(contents)))
    how = files if spoilt == "manifest.json" else mutated
    write(store, f"{where}/{spoilt}", data.draw(how(contents[spoilt])))
    try:
        found = store.find("prompts", "k")
        listed, details = list(found.listed), found.details
    except ArtifactError as error:
        assert where in str(error)
        return
    if found.digest == artifact.digest:
        assert listed == manifest.files and details == manifest.details


@fuzzed
@given(data=st.data())
def test_what_trainings_note_down_is_read_or_ignored(store, context, data):
    mine = Lease(store, f"{TRAINING}/lease.json", "distill", "token")
    sound = b'{"device_hours": 1.5, "micro_batch": [[0, 8], [20, 4]]}'
    write(store, f"{TRAINING}/work.json", data.draw(files(sound)))
    work = Work.read(Path(store.path(TRAINING)))
    assert work is None or 0 <= work.device_hours < float("inf")
    write(store, f"{TRAINING}/kept.json", data.draw(files(KEPT)))
    assert all(isinstance(saved, Saved) for saved in noted_in(store, TRAINING))
    verdict = b'{"run": "other", "error": "{\\"kind\\": \\"ArtifactError\\", \\"text\\": \\"x\\"}"}'
    write(store, f"{TRAINING}/error.json", data.draw(files(verdict)))
    assert training._failure(context, mine) is None
    for name in CHECKPOINTS:
        write(store, f"{TRAINING}/{name}/{TRACE}", b"{}")
    listed = json.dumps(_listed(CHECKPOINTS)).encode()
    write(store, f"{TRAINING}/{_LIST}", data.draw(files(listed)))
    mend_checkpoint_list(store, TRAINING, lambda text: None)
    mend_checkpoint_list(store, TRAINING, pytest.fail)


@fuzzed
@given(data=st.data())
def test_what_an_unfinished_run_was_made_from_is_known_or_unknown(store, data):
    artifact = Artifact(store, manifest_of("prompts", {"a.parquet": (1, "0" * 64)}), "digest")
    _begin(store, "synthesize", "k", "", {"prompts": artifact}, lambda text: None)
    mark = f"{FOLDER}/inputs.json"
    write(store, mark, data.draw(files(store.read(mark))))
    _begin(store, "synthesize", "k", "", {"prompts": artifact}, lambda text: None)
    _begin(store, "synthesize", "k", "", {"prompts": artifact}, pytest.fail)


@fuzzed
@given(data=st.data())
def test_a_trace_is_read_or_its_checkpoint_is_damaged(tmp_path, data):
    sound = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'
    (tmp_path / TRACE).write_bytes(data.draw(mutated(sound) | st.binary(max_size=64)))
    try:
        lines = _lines_of(tmp_path)
    except CheckpointError:
        return
    assert all(isinstance(json.loads(line)["step"], int) for line in lines)


@pytest.fixture
def votes(tmp_path):
    path = tmp_path / "sound.sqlite"
    with open_votes(path, create=True):
        pass
    return path.read_bytes()


@fuzzed
@given(data=st.data())
def test_a_vote_file_is_read_or_refused(tmp_path, votes, data):
    path = tmp_path / "votes.sqlite"
    for left in tmp_path.glob("votes.sqlite*"):
        left.unlink()
    path.write_bytes(data.draw(mutated(votes) | st.binary(max_size=64)))
    try:
        with open_votes(path, create=True) as opened:
            opened.standing()
            opened.turns("me")
    except LaddError as error:
        assert "votes.sqlite" in str(error)
