# syntax=docker/dockerfile:1
# One image for the head, the workers and the command line. No weights of a hub and no secrets are in it.
#   docker build --target cpu  -t ladd-pipeline:0.1.0-cpu .
#   docker build --target cuda -t ladd-pipeline:0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .
# PyPI's torch for Linux brings CUDA along. For another build, name its index:
#   --build-arg TORCH_CPU_OPTIONS="--index-url URL", --build-arg TORCH_CUDA_OPTIONS="--index-url URL"
# To pin the base by its digest: --build-arg BASE=python@sha256:…
ARG BASE=python:3.11.14-slim-bookworm

# What is installed is installed into a virtual environment, which the last stages copy.
FROM ${BASE} AS builder
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt ./

# torch first, in a layer of its own: it is large and rarely changes.
FROM builder AS builder-cpu
ARG TORCH_CPU_OPTIONS=""
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_CPU_OPTIONS} --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ladd_pipeline.py ./
COPY schemas schemas
COPY pipeline pipeline
COPY stages stages
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt ".[t5,gcs,cluster,traces]"

FROM builder AS builder-cuda
ARG TORCH_CUDA_OPTIONS=""
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_CUDA_OPTIONS} --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ladd_pipeline.py ./
COPY schemas schemas
COPY pipeline pipeline
COPY stages stages
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt ".[t5,gcs,cluster,traces]"

FROM ${BASE} AS runtime
ARG REVISION=""
LABEL org.opencontainers.image.title="ladd-pipeline" \
      org.opencontainers.image.description="Distils Stable Diffusion 3 into a few-step student by LADD" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 1000 ladd && useradd --create-home --uid 1000 --gid 1000 ladd
# Manifests name the commit, and there is no git here.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LADD_REVISION=${REVISION}
WORKDIR /home/ladd
ENTRYPOINT ["ladd-pipeline"]
CMD ["--help"]

FROM runtime AS cuda
# Triton builds a stub with it when a compiled block first runs. Of the version that the base's release has: Debian's
# mirrors keep no others.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=builder-cuda /opt/venv /opt/venv
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# By number: Kubernetes must see that it is not root.
USER 1000:1000
RUN ["ladd-pipeline", "version"]

FROM runtime AS cpu
COPY --from=builder-cpu /opt/venv /opt/venv
USER 1000:1000
RUN ["ladd-pipeline", "version"]
