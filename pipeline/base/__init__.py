"""What stages build on: artifacts, shards, leases, and the wiring of Ray Data and Ray Train."""
