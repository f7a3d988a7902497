"""A Ray cluster on Kubernetes, made by KubeRay from a pipeline's own configuration."""
