# The offline jobs: python -m training JOB --config FILE, as a user without rights.
# From the repository root: docker build -f docker/training.Dockerfile -t laplora-training .
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
ENV PIP_FIND_LINKS=/wheels PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The dependencies first, with an empty package: this layer stays as it is until one of these two files changes. What
# the empty package leaves behind goes, since setuptools would prefer its newer files to the real ones.
COPY constraints.txt pyproject.toml ./
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/venv \
    && mkdir laplora && touch README.md laplora/__init__.py \
    && /opt/venv/bin/python -m pip install -c constraints.txt '.[training]' \
    && rm -r build laplora *.egg-info
COPY laplora laplora
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/venv/bin/python -m pip install --no-deps --force-reinstall . \
    && diff -r --exclude=__pycache__ laplora /opt/venv/lib/python3*/site-packages/laplora \
    && mkdir -p /state/cache /out

FROM python
COPY --from=build /opt/venv /opt/venv
COPY training /app/training
# Before VOLUME, so that new named volumes have the right owner.
COPY --from=build --chown=10001:10001 /state /var/lib/laplora
COPY --from=build --chown=10001:10001 /out /app/runs
COPY --from=build --chown=10001:10001 /out /app/artifacts
# The NVIDIA runtime reads the last one; without a GPU it has no effect.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/laplora \
    LAPLORA_CACHE=/var/lib/laplora/cache \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER 10001:10001
VOLUME ["/var/lib/laplora", "/app/runs", "/app/artifacts"]
# A job has no handler for SIGTERM, which process 1 of a container would ignore; at SIGINT it stops between two
# steps, and the same command continues.
STOPSIGNAL SIGINT
# A job is watched by its exit status.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
