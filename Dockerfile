# Two images from one file: `api` (API, migrations, sweeps; no torch) and `worker` (runs models and fits).
#   docker build --target api -t featurewatch-api .
#   docker build --target worker -t featurewatch-worker .
# For GPUs: --build-arg TORCH=cuda
# All packages are verified by requirements/*.lock, and the base image by its digest (written by `make pins`).

FROM python:3.11.15-slim-bookworm@sha256:b18992999dbe963a45a8a4da40ac2b1975be1a776d939d098c647482bcad5cba AS python

FROM scratch AS source
COPY pyproject.toml README.md LICENSE /src/
COPY service /src/service
COPY workers /src/workers
COPY migrations /src/migrations
COPY featurewatch /src/featurewatch

FROM python AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /src
COPY constraints.txt ./
COPY requirements requirements

FROM build AS build-api
RUN python requirements/install.py api -- --only-binary=:all:
COPY --from=source /src ./
RUN pip install --no-deps --no-build-isolation .

FROM build AS build-worker
# cpu or cuda (CUDA 13), verified by their locks; or `any`, unverified, with TORCH_INDEX for other releases of CUDA:
# --build-arg TORCH=any --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG TORCH=cpu
ARG TORCH_INDEX=
RUN python requirements/install.py worker --torch "${TORCH}" --torch-index "${TORCH_INDEX}" -- --only-binary=:all:
COPY --from=source /src ./
RUN pip install --no-deps --no-build-isolation .

FROM python AS base
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
CMD ["celery", "-A", "featurewatch.workers.app", "worker", "-Q", "runs,cpu,shards", "-c", "1"]

# The last stage is the one that a plain `docker build .` builds.
FROM base AS api
COPY --from=build-api /venv /venv
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=3)"]
CMD ["uvicorn", "--factory", "featurewatch.service.app:create_app", "--host", "0.0.0.0", "--port", "8000", "--no-server-header"]
