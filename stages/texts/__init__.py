"""Prompts: where they come from, how they are cleaned and named, and which are held out."""
