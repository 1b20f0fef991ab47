#!/bin/sh
# The embedded checkpoint from nothing: data, foundation model, autoencoder, latents, transformer, metrics. On 2 CPU cores,
# without a network.
#
#     sh examples/digits/run.sh [FOLDER]        (outputs/digits; PYTHON=... chooses the interpreter)
#
# FOLDER/pipeline is what lies in model_cards/lightningdit-digits, without the card and with the run's checkpoints.
set -eu
example=$(dirname "$0")
scripts=$example/../../training_scripts
folder=${1:-outputs/digits}
python=${PYTHON:-python}

"$python" "$example/prepare.py" --output_dir "$folder/data"
"$python" "$example/prepare.py" --output_dir "$folder/data_moved" --max_shift 1
"$python" "$example/train_encoder.py" data="$folder/data" output_dir="$folder/encoder"
"$python" "$scripts/train_vavae.py" --config "$example/recipes/vavae.yaml" \
    data="$folder/data" foundation_model="$folder/encoder" output_dir="$folder/vae"
"$python" "$scripts/cache_latents.py" --data "$folder/data_moved" --vae "$folder/vae" \
    --output_dir "$folder/latents" --resolution 32 --dtype float32
"$python" "$scripts/train_lightningdit.py" --config "$example/recipes/lightningdit.yaml" \
    data="$folder/latents" vae="$folder/latents/vae" output_dir="$folder/pipeline"
"$python" "$example/judge.py" --pipeline "$folder/pipeline" --data "$folder/data" \
    --metrics "$folder/pipeline/metrics.json" --picture "$folder/pipeline/digits.png"
