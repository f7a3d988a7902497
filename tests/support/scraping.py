"""Scrapes the metrics of a Ray cluster as Prometheus does: it finds the nodes in the file that Ray
writes for it, and asks them over HTTP.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families


@contextlib.contextmanager
def scraping(cluster: Any, every: float = 1.0) -> Iterator[dict[str, dict[str, list[float]]]]:
    """What is found until the block ends: the values of each series, one after another, without
    repetitions, by the sample's name and its tags.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(every):
            for address in _targets(cluster):
                with contextlib.suppress(requests.RequestException):  # a node that is gone
                    _take(requests.get(f"http://{address}/metrics", timeout=5).text, found)

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _targets(cluster: Any) -> list[str]:
    file = Path(cluster.head_node.get_temp_dir_path()) / "prom_metrics_service_discovery.json"
    with contextlib.suppress(OSError, ValueError):
        return [target for group in json.loads(file.read_text()) for target in group["targets"]]
    return []


def _take(text: str, found: dict[str, dict[str, list[float]]]) -> None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_ladd_"):
                tags = {n: v for n, v in sample.labels.items() if n in ("stage", "unit", "figure")}
                values = found[sample.name][json.dumps(tags, sort_keys=True)]
                if values[-1:] != [sample.value]:
                    values.append(sample.value)
