"""Fuzzing of what reads outside data: `make test` runs each test on a few examples, `make fuzz` on
two thousand.
"""
