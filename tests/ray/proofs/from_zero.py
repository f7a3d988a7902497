"""A cluster that begins with its head alone: a stage's demand starts the node that it asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ray.util import get_node_ip_address

from tests.support.command import ROOT
from tests.support.s3_servers import free_ports

# In a namespace of its own: all of its processes end with it.
SCRIPT = """
set -e
mount -t tmpfs none /tmp
export PATH={bin}:$PATH HOME=/tmp RAY_TMPDIR=/tmp RAY_USAGE_STATS_ENABLED=0
export RAY_FAKE_CLUSTER=1 AUTOSCALER_UPDATE_INTERVAL_S=1 RAY_enable_autoscaler_v2=1
export RAY_CLOUD_INSTANCE_ID={head} RAY_OVERRIDE_NODE_ID_FOR_TESTING={head}
export RAY_AUTH_MODE=disabled
ray start --head --num-cpus=0 --num-gpus=0 --port={port} --dashboard-port={board} \
  --dashboard-agent-listen-port={agent} \
  --autoscaling-config={config} >/tmp/start.log 2>&1 || {{ cat /tmp/start.log; exit 9; }}
unset RAY_OVERRIDE_NODE_ID_FOR_TESTING RAY_CLOUD_INSTANCE_ID
ladd-pipeline -C /tmp run --preset shapes-smoke --until synthesize --set ray.address=auto \
  --set store=/tmp/store --set prompts.count=24 \
  --set 'synthesize.pool={{workers: 1, gpus_per_worker: 1, placement: {{accelerator: L4}}}}' \
  > /tmp/run.log 2>&1 &
run=$!
for second in $(seq 600); do
  ray status -v > /tmp/status.log 2>&1 || true
  if grep -q "'GPU': 1.0.*pending" /tmp/status.log && [ ! -s {out}/demand ]; then
    cp /tmp/status.log {out}/demand
  fi
  kill -0 $run 2>/dev/null || break
  sleep 1
done
code=0; wait $run || code=$?
cp /tmp/run.log {out}/run; ray status -v > {out}/after 2>&1 || true
cp -r /tmp/ray/session_latest/logs/monitor* {out}/ || true
exit $code
"""
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"


def test_the_demand_for_a_gpu_is_expressed_and_placed_when_its_node_arrives(tmp_path):
    port, board, agent = free_ports(3)
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 8}, "labels": {}, "max_workers": 1},
        "l4": {
            "resources": {"CPU": 2, "GPU": 1},
            "labels": {"ray.io/accelerator-type": "L4"},
            "max_workers": 1,
        },
    }
    for kind in kinds.values():
        kind.update({"node_config": {}, "min_workers": 0})
    config = {
        "cluster_name": "from-zero",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1000,
        "provider": {
            # By its class: Ray's wheel lacks the defaults of its own name, `fake_multinode`.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "gcs_address": f"{get_node_ip_address()}:{port}",
            "head_node_id": HEAD,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
        },
        "auth": {},
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "cluster_synced_files": [],
    }
    config |= {
        f"{who}{what}_commands": []
        for who in ("", "head_", "worker_")
        for what in ("setup", "start_ray", "initialization")
        if (who, what) != ("", "start_ray") and (not who or what != "initialization")
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    script = SCRIPT.format(
        bin=Path(sys.executable).parent,
        head=HEAD,
        config="/mnt/config.json",
        out="/mnt",
        **{"port": port, "board": board, "agent": agent},
    )
    outer = f"mount --bind {tmp_path} /mnt; {script}"
    ended = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", outer],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    said = (tmp_path / "run").read_text() if (tmp_path / "run").exists() else ""
    assert ended.returncode == 0, ended.stdout + ended.stderr + said
    assert "no node has room for a worker with a GPU, with accelerator-type L4 yet" in said
    assert "done  synthesize" in said
    demand, after = (tmp_path / "demand").read_text(), (tmp_path / "after").read_text()
    print(demand, after, said)
    assert "'GPU': 1.0" in demand.partition("Pending Demands")[2]
    nodes = after.partition("Active")[2].partition("Recent failures")[0]
    assert "1 l4" in nodes and "1 cpu" not in nodes
