"""The engine: graph, keys, planning, execution, storage, command line. Uses Ray; knows nothing
about diffusion.
"""

from pathlib import Path

from pipeline.own_packages import finder

finder(str(Path(__file__).parents[1]))()
