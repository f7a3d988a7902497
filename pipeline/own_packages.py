"""Our packages have common names: Python must find them before a user's folder of the same name."""

from __future__ import annotations

from collections.abc import Callable


def finder(root: str) -> Callable[[], None]:
    """Return a function that makes a process import our packages from the folder `root`, or if it
    has none there, from the first folder of its path that holds the whole of our engine.

    Ray sends that function to its workers by value, before which they can import nothing of ours:
    so it imports and defines all that it needs.
    """

    def find_ours_first() -> None:
        import os
        import sys
        from importlib.machinery import ModuleSpec, PathFinder
        from typing import Any

        class OurPackages:
            """Looks for our packages alone, and leaves all others to the finders behind it."""

            folder = root

            @classmethod
            def find_spec(
                cls, name: str, path: Any = None, target: Any = None
            ) -> ModuleSpec | None:
                if path is not None or name not in ("pipeline", "schemas", "stages"):
                    return None
                for place in (cls.folder, *sys.path):
                    if os.path.isfile(os.path.join(place, "pipeline", "own_packages.py")):
                        return PathFinder.find_spec(name, [place])
                return None

        if getattr(sys.meta_path[0], "folder", None) != root:
            finder: Any = OurPackages
            sys.meta_path.insert(0, finder)

    return find_ours_first
