#!/usr/bin/env bash
# Everything that is claimed of one accelerator, in one table: GPT-2 124M, DiT-B/4, EDM's U-Net, and
# decoding. Random data, no network, no questions; under 9 minutes on a GPU of the H100's class.
#
#     bash benchmarks/gpu.sh            # needs aigc-jax[cuda] installed, or PYTHONPATH set to it
#
# Exits with 1 if any of them could not be measured; the table then has a row for the others.
#
# PYTHON        the interpreter (python3)
# OUT           folder for figures and logs (a temporary one)
# SECONDS_EACH  how long to take steps of each (10)
# LIMIT         seconds after which one that hangs is given up (150)
# SIZES=tiny    toy sizes, to try the script on a CPU: those figures mean nothing
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-$(mktemp -d)}
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}

lm=(--synthetic=text)
dit=(--synthetic=latents:32x32x4:1000 --config.model.width=768 --config.model.depth=12
    --config.model.heads=12 --config.model.remat=none --config.data.batch_size=1024
    --config.eval.batch_size=1024 --config.train.accumulate=2)
unet=(--synthetic=32x32x3:10 --config.train.accumulate=2)
if [[ ${SIZES:-full} == tiny ]]; then
    lm+=(--config.model.layers=2 --config.model.width=32 --config.model.heads=2
        --config.model.vocab_size=512 --config.model.context=32 --config.data.seq_len=32
        --config.data.batch_size=4 --config.train.accumulate=2 --config.sample.max_new_tokens=8)
    dit=(--synthetic=latents:8x8x4:10 --config.model.width=32 --config.model.depth=2
        --config.model.heads=2 --config.model.remat=none --config.data.batch_size=4
        --config.train.accumulate=1)
    unet=(--synthetic=8x8x3:10 --config.model.channels="(8,)" --config.model.blocks=1
        --config.model.attention_levels="()" --config.model.embedding=16
        --config.model.frequencies=8 --config.data.batch_size=4)
fi
# What a row's gradients keep (at most 33 GiB of the DiT's 512 images at once) must leave room beside it.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.9}

failed=0
bench() { # name, config, overrides: what fails leaves the others alone
    local name=$1 config=$2
    shift 2
    rm -f "$OUT/$name.json"
    echo "$name …" >&2
    timeout --signal=KILL "${LIMIT:-150}" "$PYTHON" -m aigc_jax.main bench --config="$config" "$@" \
        --seconds="${SECONDS_EACH:-10}" --profile="$OUT/$name.trace" --json="$OUT/$name.json" \
        >"$OUT/$name.log" 2>&1 ||
        { failed=1; echo "$name failed:" >&2; tail -n 5 "$OUT/$name.log" >&2; }
}

bench gpt2_124m configs/lm/gpt2_124m.py "${lm[@]}"
bench dit_b_4 configs/diffusion/imagenet64.py:dit "${dit[@]}"
bench edm_unet configs/diffusion/cifar10.py "${unet[@]}"
[[ ${SIZES:-full} == tiny ]] && echo "toy sizes: these figures mean nothing"
"$PYTHON" benchmarks/gpu_table.py "$OUT"/{gpt2_124m,dit_b_4,edm_unet}.json || failed=1
exit $failed
