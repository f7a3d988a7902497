"""Manifests that cannot be read are named."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from pipeline import cli
from pipeline.base.store import ArtifactStore
from schemas.manifest import ManifestError, read_manifest
from tests.support.tiny_sd3 import make_tiny_config


def test_manifest_of_a_newer_schema(refused, tiny_sd3, tmp_path):
    from pipeline.planning import Selection, make_plan

    config = make_tiny_config(tiny_sd3, tmp_path / "store")
    planned = make_plan(config, ArtifactStore(config.store), Selection())[0]
    folder = tmp_path / "store" / "artifacts" / "prompts" / planned.key
    folder.mkdir(parents=True)
    path = folder / "manifest.json"
    path.write_text(json.dumps({"schema_version": 99}))
    config_file = tmp_path / "again.yaml"
    config_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    sys.argv = ["ladd-pipeline", "plan", "-c", str(config_file)]
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no readable schema_version"),
        ('{"schema_version": 9}', "this ladd-pipeline reads up to"),
        ('{"schema_version": 1}', "field stage"),
    ],
)
def test_unusable_manifests_are_named(text, message):
    with pytest.raises(ManifestError, match=message) as error:
        read_manifest(text, "s3://b/m.json")
    assert "s3://b/m.json" in str(error.value)
