#!/bin/sh
# The embedded model from nothing: data, baseline, training, evaluation. On 2 CPU cores, without a network.
#
#     sh examples/change3d_buildings/run.sh [FOLDER]     (outputs/change3d_buildings; PYTHON=... chooses the interpreter)
#
# FOLDER/pipeline is what lies in model_cards/change3d-buildings, with the run's checkpoints and another card.
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
