# One image for head, workers and the command line. CI has no Docker engine: this file is not built there.
#   docker build -t ladd-pipeline .
# For GPUs give the wheel index of PyTorch for your CUDA version:
#   docker build -t ladd-pipeline --build-arg TORCH_OPTIONS="--index-url URL" .
FROM python:3.11-slim

# wget asks a node of KubeRay whether it is healthy.
RUN apt-get update && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN useradd --create-home --uid 1000 ladd
WORKDIR /opt/ladd

# torch comes first and alone: it is large and changes seldom.
ARG TORCH_OPTIONS=""
COPY constraints.txt ./
RUN pip install $TORCH_OPTIONS "$(grep ^torch== constraints.txt)"

COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY pipeline pipeline
COPY stages stages
RUN pip install --constraint constraints.txt ".[t5,gcs,cluster]"

USER ladd
WORKDIR /home/ladd
ENTRYPOINT ["ladd-pipeline"]
CMD ["--help"]
