#!/bin/sh
# The embedded few-step checkpoint from the embedded one: data, latents, distillation, metrics. On 2 CPU cores, without a
# network.
#
#     sh examples/digits/few_step.sh [FOLDER]        (outputs/digits_few_step; PYTHON=... chooses the interpreter)
#
# FOLDER/pipeline is what lies in model_cards/lightningdit-digits-few-step, without the card and with the run's checkpoints.
set -eu
example=$(dirname "$0")
scripts=$example/../../training_scripts
teacher=$example/../../model_cards/lightningdit-digits
folder=${1:-outputs/digits_few_step}
python=${PYTHON:-python}

"$python" "$example/prepare.py" --output_dir "$folder/data"
"$python" "$example/prepare.py" --output_dir "$folder/data_moved" --max_shift 1
"$python" "$scripts/cache_latents.py" --data "$folder/data_moved" --vae "$teacher/vae" \
    --output_dir "$folder/latents" --resolution 32 --dtype float32
"$python" "$scripts/train_lightningdit_few_step.py" --config "$example/recipes/few_step.yaml" \
    pipeline="$teacher" data="$folder/latents" output_dir="$folder/pipeline"
"$python" "$example/judge.py" --pipeline "$folder/pipeline" --data "$folder/data" \
    --metrics "$folder/pipeline/metrics.json" --picture "$folder/pipeline/digits.png"
