"""The command line, one file for each group of commands: the only part of the engine that imports
stages. Heavy imports happen inside the commands, so that `--help` and `plan` stay fast.
"""
