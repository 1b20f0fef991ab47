#!/bin/sh
# The embedded checkpoint from nothing: data, foundation model, autoencoder, latents, transformer, metrics. On 2 CPU cores,
# without a network.
#
#     sh training_scripts/digits.sh [FOLDER]        (outputs/digits; PYTHON=... chooses the interpreter)
#
# FOLDER/pipeline is what lies in model_cards/lightningdit-digits, without the card and with the run's checkpoints.
set -eu
scripts=$(dirname "$0")
folder=${1:-outputs/digits}
python=${PYTHON:-python}

"$python" "$scripts/prepare_digits.py" --output_dir "$folder/data"
"$python" "$scripts/prepare_digits.py" --output_dir "$folder/data_moved" --max_shift 1
"$python" "$scripts/train_digits_encoder.py" data="$folder/data" output_dir="$folder/encoder"
"$python" "$scripts/train_vavae.py" --config "$scripts/recipes/digits_vavae.yaml" \
    data="$folder/data" foundation_model="$folder/encoder" output_dir="$folder/vae"
"$python" "$scripts/cache_latents.py" --data "$folder/data_moved" --vae "$folder/vae" \
    --output_dir "$folder/latents" --resolution 32 --dtype float32
"$python" "$scripts/train_lightningdit.py" --config "$scripts/recipes/digits_lightningdit.yaml" \
    data="$folder/latents" vae="$folder/latents/vae" output_dir="$folder/pipeline"
"$python" "$scripts/judge_digits.py" --pipeline "$folder/pipeline" --data "$folder/data" \
    --metrics "$folder/pipeline/metrics.json" --picture "$folder/pipeline/digits.png"
