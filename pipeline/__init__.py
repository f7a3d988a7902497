"""The engine: graph, keys, planning, execution, storage, command line. Knows Ray; knows nothing of
diffusion.
"""
