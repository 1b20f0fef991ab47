#!/bin/sh
# The two embedded models from nothing: data, baselines, training, evaluation. On 2 CPU cores, without a network.
#
#     sh examples/change3d_buildings/run.sh [FOLDER]     (outputs/change3d_buildings; PYTHON=... chooses the interpreter)
#
# FOLDER/pipeline and FOLDER/captions are what lies in model_cards/change3d-buildings and change3d-buildings-captions,
# with the checkpoints of the runs and other cards.
set -eu
example=$(dirname "$0")
folder=${1:-outputs/change3d_buildings}
python=${PYTHON:-python}

"$python" "$example/draw_pairs.py" --output_dir "$folder/data"
"$python" "$example/difference.py" --data "$folder/data" --output_dir "$folder/baseline"
"$python" "$example/../../training_scripts/train_change3d.py" --config "$example/recipes/change3d.yaml" \
    data="$folder/data" output_dir="$folder/pipeline"
"$python" -m diffusers_lightningdit.evaluate change --model "$folder/pipeline" --data "$folder/data" \
    --output_dir "$folder/evaluation"
"$python" "$example/figures.py" --pipeline "$folder/pipeline" --data "$folder/data" --evaluation "$folder/evaluation" \
    --baseline "$folder/baseline" --output_dir "$folder/pipeline"

# Captions: of more pairs, in which less has changed; the encoder begins with the one that has learnt to find changes.
"$python" "$example/draw_pairs.py" --num_train 8000 --change_probability 0.2 --output_dir "$folder/captions_data"
"$python" "$example/../../training_scripts/train_change3d.py" --config "$example/recipes/change3d_captions.yaml" \
    data="$folder/captions_data" pretrained_encoder="$folder/pipeline" output_dir="$folder/captions"
"$python" -m diffusers_lightningdit.evaluate change --model "$folder/captions" --data "$folder/captions_data" \
    --output_dir "$folder/captions_evaluation"
"$python" "$example/caption_figures.py" --pipeline "$folder/captions" --data "$folder/captions_data" \
    --evaluation "$folder/captions_evaluation" --output_dir "$folder/captions"
