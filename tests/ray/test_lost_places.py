"""What a lost controller held for its workers is given back, even if they never began."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from pipeline.base.training import free_lost_places
from pipeline.cluster import ray_cluster
from pipeline.commands.opening import open_config

pytestmark = pytest.mark.slow


def until_free(cpus: int, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Wait until so many CPUs are free. Ray learns of deaths and removals by and by."""
    import ray

    deadline = time.monotonic() + 60
    while (free := ray.available_resources().get("CPU", 0)) != cpus:
        assert time.monotonic() < deadline, f"{free} CPUs are free, not {cpus}"
        meanwhile()
        time.sleep(0.1)


def test_only_places_of_lost_controllers_are_freed():
    """Bug: a controller was killed before its worker could note the group that it held, and the
    next start of the training waited for ever.
    """
    with ray_cluster(
        open_config(preset="shapes-smoke", settings=["ray.num_cpus=4"], environment={})
    ):
        import ray
        from ray.util.placement_group import placement_group

        class Controller:
            def hold(self) -> None:
                # The second one waits, as that of a start behind a lost one does.
                self.groups = [placement_group([{"CPU": cpus}]) for cpus in (1, 4)]
                ray.get(self.groups[0].ready())

        actor = ray.remote(num_cpus=0)(Controller)
        lost, living = actor.remote(), actor.remote()
        ray.get([lost.hold.remote(), living.hold.remote()])
        of_driver = placement_group([{"CPU": 1}])
        ray.get(of_driver.ready())
        until_free(1)
        ray.kill(lost)
        until_free(2, free_lost_places)
        for _ in range(5):
            free_lost_places()
            time.sleep(0.1)
        until_free(2)
