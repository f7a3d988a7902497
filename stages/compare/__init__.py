"""Blind comparison by people: `ladd-pipeline compare`."""
