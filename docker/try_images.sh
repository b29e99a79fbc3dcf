#!/usr/bin/env bash
# Builds both images with buildah, without a daemon, and tries them: the jobs start, and the server, without a network,
# gets ready, answers with an API key and leaves with status 0 at SIGTERM. As root on Debian; "apt install buildah
# debootstrap iproute2 curl" has all it needs, and a CPU image takes some 12 GB of disk. Arguments are for both builds:
#   docker/try_images.sh --build-arg CUDA=cpu --build-context wheels=wheels --secret id=pip,src=pip.conf
# BASE_IMAGE is the base, if it is set; else a bare Debian that debootstrap makes, which trusts whom this machine trusts. Its
# Python is Debian's, or a copy of the one in the folder PYTHON_PREFIX, for wheels that are for that one. Where this
# cannot run, it says what is missing and leaves with status 77.
# STORAGE_DRIVER=overlay, where overlays can be mounted, takes a third of the disk and needs no copies.
set -euo pipefail
cd "$(dirname "$0")/.."
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}

missing=$(for name in buildah debootstrap ip curl; do command -v $name >/dev/null || echo "$name"; done)
[ "$(id -u)" = 0 ] || missing+=" root"
[ -z "$missing" ] || { echo "images are not tried without" $missing; exit 77; }

limit() { case $1 in unlimited) echo -1 ;; *) echo "$1" ;; esac; }

build() { # NAME ARGUMENT...
    local name=$1 began=$SECONDS
    shift
    # docker's format has a place for the HEALTHCHECK; --layers=false spares vfs a full copy for each layer.
    buildah bud --quiet --network host --layers=false --format docker --build-arg BASE_IMAGE="$BASE_IMAGE" \
        --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null)" "$@" \
        --tag "localhost/laplora-$name" --file "docker/$name.Dockerfile" .
    container=$(buildah from "localhost/laplora-$name")
    buildah run "$container" -- grep -q '^torch,' /usr/share/doc/laplora/licences.csv
    echo "laplora-$name: $(buildah images --format '{{.Size}}' "localhost/laplora-$name") in $((SECONDS - began)) s, of these MiB"
    buildah run --user root "$container" -- \
        find /opt/venv /opt/models /app /artifacts -maxdepth 0 -exec du -xsm {} ';' 2>/dev/null || true
    buildah rm "$container" >/dev/null
}

innermost() { # of a chain of processes: buildah stops at SIGTERM without a word to what it runs
    local pid=$1 child
    while child=$(cat /proc/"$pid"/task/*/children) && [ -n "$child" ]; do pid=${child%% *}; done
    echo "$pid"
}

serve() { # in a network of its own, where only the loopback interface is
    local token buildah status=0 url=http://127.0.0.1:8000
    ip link set lo up
    container=$(buildah from localhost/laplora-service)
    trap 'buildah rm "$container" >/dev/null' EXIT
    buildah run --env PIP_NO_INDEX=1 "$container" -- \
        python -c "from laplora.models.offline import ensure_encoder; print(ensure_encoder('all-minilm-l6-v2'), 'is baked in')"
    token=$(buildah run "$container" -- python -m service.keys create --file /var/lib/laplora/keys.json \
        --id me --scopes predict)
    buildah run --env LAPLORA_HOST=127.0.0.1 "$container" -- python -m service &
    buildah=$! SECONDS=0
    until curl -sf "$url/health/ready"; do kill -0 $buildah; sleep 1; done
    echo && echo "ready after $SECONDS s"
    curl -sf "$url/predict" -H "authorization: Bearer $token" -H 'content-type: application/json' \
        -d '{"inputs": [{"text": "Which nerve moves the tongue?"}]}' | grep -o '"label":"medicine"'
    kill -TERM "$(innermost $buildah)"
    wait $buildah || status=$?
    echo "left with status $status"
    return $status
}

settings=$(mktemp -d)
trap 'rm -rf "$settings"' EXIT
# buildah's own limits are higher than those of some machines, which then refuse them.
printf '[containers]\ndefault_ulimits = ["nofile=%s:%s", "nproc=%s:%s"]\n' \
    "$(limit "$(ulimit -Hn)")"{,} "$(limit "$(ulimit -Hu)")"{,} >"$settings/containers.conf"
export CONTAINERS_CONF=$settings/containers.conf

if [ -z "${BASE_IMAGE:-}" ]; then
    BASE_IMAGE=localhost/laplora-base
    base=$settings/base
    debootstrap --variant=minbase ${PYTHON_PREFIX:+--include=ca-certificates,libexpat1,libffi8,libsqlite3-0,libssl3t64} \
        trixie "$base" >/dev/null
    cp -r /usr/local/share/ca-certificates "$base/usr/local/share/" # which the package ca-certificates takes in
    if [ -n "${PYTHON_PREFIX:-}" ]; then
        (cd "$PYTHON_PREFIX" && tar -c --exclude site-packages bin/python3* lib/python3* lib/libpython3*) |
            tar -x --no-same-owner -C "$base/usr/local"
        printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$base/etc/pip.conf"
        chroot "$base" sh -c 'update-ca-certificates && ldconfig' >/dev/null
    fi
    scratch=$(buildah from scratch)
    buildah add --quiet "$scratch" "$base" / >/dev/null
    buildah commit --quiet --rm "$scratch" "$BASE_IMAGE" >/dev/null
fi
build training "$@"
jobs=$(buildah from localhost/laplora-training)
buildah run "$jobs" -- python -m training run --config training/configs/fields-smollm2.yaml --help >/dev/null
buildah rm "$jobs" >/dev/null
build service --build-arg BAKE_MODEL="smollm2-135m-instruct all-minilm-l6-v2" "$@"
export -f serve innermost
unshare --net bash -euo pipefail -c serve
