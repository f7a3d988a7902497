# One image for the head, the workers and the command line. CI has no Docker engine and does not build this file.
#   docker build -t ladd-pipeline .
# For GPUs, pass PyTorch's wheel index for your CUDA version:
#   docker build -t ladd-pipeline --build-arg TORCH_OPTIONS="--index-url URL" .
FROM python:3.11-slim

# KubeRay's health checks call wget on each node.
RUN apt-get update && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN useradd --create-home --uid 1000 ladd
WORKDIR /opt/ladd

# Install torch first, in a separate layer: it is large and rarely changes.
ARG TORCH_OPTIONS=""
COPY constraints.txt ./
RUN pip install $TORCH_OPTIONS "$(grep ^torch== constraints.txt)"

COPY pyproject.toml README.md LICENSE ladd_pipeline.py ./
COPY schemas schemas
COPY pipeline pipeline
COPY stages stages
RUN pip install --constraint constraints.txt ".[t5,gcs,cluster]"

USER ladd
WORKDIR /home/ladd
ENTRYPOINT ["ladd-pipeline"]
CMD ["--help"]
