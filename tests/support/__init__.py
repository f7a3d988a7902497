"""What several test modules build from: tiny models, configurations, artifacts, processes."""
