"""The engine: graph, keys, planning, execution, storage, command line. Uses Ray; knows nothing
about diffusion.
"""
