#!/usr/bin/env bash
# Runs one training on all hosts of a Cloud TPU slice, through gcloud:
#
#     launch/tpu_pod.sh --name=pod --zone=us-east5-a [--project=P] [options] -- \
#         --config=lm/quickstart --workdir=/mnt/aigc/lm [--config.key=value ...]
#
#     --dry_run              print the commands, run none
#     --create=v5litepod-16  create the slice first (--version=... is its image: v2-alpha-tpuv5-lite)
#     --spot                 ... as a preemptible (spot) slice
#     --bucket=B             mount gs://B at /mnt/aigc on every host, for workdir and data
#     --no_install           the hosts have the code and its packages already
#     --delete               delete the slice at the end, after errors too
#
# It copies this repository to every host, installs it with JAX for TPUs, and starts `aigc train`
# there. Each process finds the others in the metadata of the slice. The workdir must be on storage
# that all hosts share: the bucket. The same command resumes from the newest checkpoint.
set -euo pipefail

name="" zone="" project="" create="" version="v2-alpha-tpuv5-lite" bucket=""
dry_run="" spot="" install=yes delete=""
while [ $# -gt 0 ]; do
    case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --create=*) create=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --dry_run) dry_run=yes ;;
    --spot) spot=yes ;;
    --no_install) install="" ;;
    --delete) delete=yes ;;
    --) shift && break ;;
    *) echo "tpu_pod.sh: there is no option $1: see the head of this file" >&2 && exit 2 ;;
    esac
    shift
done
if [ -z "$name" ] || [ -z "$zone" ] || [ $# -eq 0 ]; then
    echo "tpu_pod.sh: write --name=... --zone=... -- --config=... --workdir=..." >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")

do_it() { # prints a command, and runs it unless this is a dry run
    printf '%q ' "$@" && echo
    [ -n "$dry_run" ] || "$@"
}
on_all() { # runs a shell command on every host of the slice
    do_it gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

if [ -n "$delete" ]; then
    trap 'do_it gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet' EXIT
fi
if [ -n "$create" ]; then
    kind=(--accelerator-type="$create" --version="$version")
    [ -z "$spot" ] || kind+=(--spot)
    do_it gcloud compute tpus tpu-vm create "$name" "${where[@]}" "${kind[@]}"
fi
if [ -n "$install" ]; then
    packed=$(mktemp -u --suffix=.tar.gz)
    do_it git -C "$root" archive --format=tar.gz --output="$packed" HEAD
    do_it gcloud compute tpus tpu-vm scp "$packed" "$name:aigc.tar.gz" "${where[@]}" --worker=all
    do_it rm -f "$packed"
    on_all 'set -e; mkdir -p aigc; tar -xzf aigc.tar.gz -C aigc; cd aigc; command -v uv >/dev/null || python3 -m pip install --user -q uv; python3 -m uv venv -q --python=3.11 --allow-existing .venv; python3 -m uv pip install -q -p .venv -e ".[tpu]"'
fi
if [ -n "$bucket" ]; then
    on_all "set -e; mountpoint -q /mnt/aigc || { sudo mkdir -p /mnt/aigc; sudo chown \$USER /mnt/aigc; gcsfuse --implicit-dirs --rename-dir-limit=100000 $(printf %q "$bucket") /mnt/aigc; }"
fi
# A broken connection must not end the run: SIGHUP is ignored, and the log is followed.
words=$(printf '%q ' "$@")
on_all "set -e; cd aigc; nohup .venv/bin/aigc train $words > ~/aigc.log 2>&1 & tail -n +1 -F --pid=\$! ~/aigc.log & wait %1"
