"""The floor that stages stand on: artifacts, shards, leases, and Ray's two ways of working."""
