"""Pydantic models of configurations, records and manifests. Imports neither torch nor ray."""
