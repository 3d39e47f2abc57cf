# Two images from one file: `api` (API, migrations, sweeps; no torch) and `worker` (runs models and fits).
#   docker build --target api -t featurewatch-api .
#   docker build --target worker -t featurewatch-worker .
# For GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service service
COPY workers workers
COPY migrations migrations
COPY featurewatch featurewatch

FROM build AS build-api
RUN pip install -c constraints.txt ".[otel,parquet,s3]"

FROM build AS build-worker
# torch first and from its own index: PyPI's build for Linux brings gigabytes of CUDA along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN grep '^torch==' constraints.txt > /tmp/torch.txt \
    && pip install --index-url "${TORCH_INDEX}" -r /tmp/torch.txt \
    && pip install -c constraints.txt ".[worker,s3,otel]"

FROM python:3.11-slim-bookworm AS base
RUN useradd --system --uid 10001 --create-home --home-dir /home/featurewatch featurewatch \
    && install --directory --owner=featurewatch /data
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    FEATUREWATCH_DATA_DIR=/data
USER 10001
WORKDIR /home/featurewatch
VOLUME /data

FROM base AS worker
COPY --from=build-worker /venv /venv
CMD ["celery", "-A", "workers.app", "worker", "-Q", "runs,cpu,shards", "-c", "1"]

# The last stage is what a plain `docker build .` makes.
FROM base AS api
COPY --from=build-api /venv /venv
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=3)"]
CMD ["uvicorn", "--factory", "service.app:create_app", "--host", "0.0.0.0", "--port", "8000", "--no-server-header"]
