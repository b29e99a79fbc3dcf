# The server: python -m service on the default artifact, as a user without rights, port 8000.
# From the repository root: docker build -f docker/service.Dockerfile -t laplora-service .
# Any Debian base will do; one without python3 gets Debian's own.
ARG BASE_IMAGE=python:3.11-slim-trixie

# Wheels that pip prefers to its index; --build-context wheels=FOLDER puts a folder in the place of this empty stage.
FROM scratch AS wheels

FROM ${BASE_IMAGE} AS python
RUN if ! command -v python3 >/dev/null; then \
        apt-get update \
        && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && groupadd --gid 10001 laplora \
    && useradd --uid 10001 --gid laplora --home-dir /var/lib/laplora --no-create-home --shell /usr/sbin/nologin laplora

FROM python AS build
# Not set, each of these leaves pip as the base has it configured. An index with a password is no build argument
# (those stay in the image's history): give a whole pip.conf as --secret id=pip,src=pip.conf
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_INDEX
# Packages beside the server's own, with spaces between: those of the extra telemetry, for --otlp-endpoint.
ARG EXTRA_PACKAGES=
ENV PIP_FIND_LINKS=/wheels PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The dependencies first, with an empty package: this layer stays as it is until one of these two files changes. What
# the empty package leaves behind goes, since setuptools would prefer its newer files to the real ones.
COPY constraints.txt pyproject.toml ./
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/venv \
    && mkdir laplora && touch README.md laplora/__init__.py \
    && /opt/venv/bin/python -m pip install -c constraints.txt '.[service]' ${EXTRA_PACKAGES} \
    && rm -r build laplora *.egg-info
COPY laplora laplora
# BAKE_MODEL=smollm2-135m-instruct: the base model of the default artifact is in the image, so that nothing is
# fetched at the first start.
ARG BAKE_MODEL=
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/venv/bin/python -m pip install --no-deps --force-reinstall . \
    && diff -r --exclude=__pycache__ laplora /opt/venv/lib/python3*/site-packages/laplora \
    && mkdir -p /state/cache \
    && if [ -n "${BAKE_MODEL}" ]; then \
        LAPLORA_CACHE=/state/cache HOME=/tmp \
        /opt/venv/bin/python -c 'import sys; from laplora.offline import ensure_model; ensure_model(sys.argv[1])' "${BAKE_MODEL}"; \
    fi

FROM python
COPY --from=build /opt/venv /opt/venv
# Before VOLUME, so that a new named volume starts with it and with its owner.
COPY --from=build --chown=10001:10001 /state /var/lib/laplora
COPY artifacts/sst2-smollm2 /artifacts/sst2-smollm2
COPY service /app/service
# The NVIDIA runtime reads the last one; without a GPU it has no effect.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/laplora \
    LAPLORA_CACHE=/var/lib/laplora/cache \
    LAPLORA_JOBS_DIR=/var/lib/laplora/jobs \
    LAPLORA_ARTIFACTS_ROOT=/artifacts \
    LAPLORA_HOST=0.0.0.0 \
    LAPLORA_KEYS=/var/lib/laplora/keys.json \
    LAPLORA_PORT=8000 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER 10001:10001
VOLUME /var/lib/laplora
EXPOSE 8000
STOPSIGNAL SIGTERM
# Liveness: whether the process answers. Whether the model is loaded is /health/ready (see compose.yaml). The empty
# ProxyHandler keeps a proxy set for the container out of a call to itself.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:%s/health/live' % os.environ['LAPLORA_PORT'], timeout=4)"]
ENTRYPOINT ["python", "-m", "service"]
