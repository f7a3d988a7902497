"""`ladd-pipeline doctor`: tries the configured store, and says what is then not promised."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from pipeline.commands.options import AsJson, ConfigFile, Preset, Settings, new_group
from schemas.errors import ArtifactError

app = new_group()


@app.command()
def doctor(
    config: ConfigFile = None, preset: Preset = None, set_: Settings = None, as_json: AsJson = False
) -> None:
    """Try on the configured store every operation that the pipeline relies on."""
    from pipeline.base.trials import needed_switches, try_store
    from pipeline.commands.opening import open_store
    from pipeline.commands.tables import print_table

    store = open_store(config, preset, set_)
    if not as_json:
        print(f"trying store {store.url}", file=sys.stderr)
    trials = list(try_store(store))
    wrong = [trial for trial in trials if trial.outcome in ("no", "failed")]
    switch = needed_switches(store) if trials[0].outcome == "failed" else None
    if as_json:
        rows = [asdict(trial) for trial in trials]
        print(json.dumps({"store": store.url, "trials": rows, "needs": switch}, indent=2))
    else:
        print_table(["tried", "works", "seen"], [[t.name, t.outcome, t.text] for t in trials])
        for trial in wrong:
            print(f"not promised, for lack of `{trial.name}`: {trial.then}")
    lacking = [trial for trial in wrong if trial.essential]
    if switch is not None:
        raise ArtifactError(
            f"store {store.url} works with other settings only; set in the environment of every "
            f"node: {switch}"
        )
    if lacking:
        raise ArtifactError(f"store {store.url} cannot be used: {lacking[0].text}")
    if not as_json:
        print("this store can be used" if wrong else "this store keeps every promise")
