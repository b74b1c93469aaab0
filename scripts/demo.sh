#!/bin/sh
# The demo: what a newcomer would type, in order. Needs BIN (a virtual environment) and MODEL.
set -eu
PATH="$(cd "$BIN" && pwd):$PATH"
recipe=recipes/ecommerce-lora.yaml
run=runs/ecommerce-lora
prompt='Product: Gale Hand Fan
Category: travel
Material: bamboo and silk
Colour: teal
Size: 23 cm
Details: folds flat; brass rivet; gift box
Price: 19 EUR'

step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

model=$(python scripts/small_model.py "$MODEL")
if [ -d "$model" ]; then
    model=$(cd "$model" && pwd)
fi

if grep -qs '"state": "finished"' "$run/run.json"; then
    step ftcli train "$recipe" --set "model.id=$model"
    step ftcli eval "$run"
else
    step ftcli prepare "$recipe" --preview 1 --set "model.id=$model"
    step ftcli estimate-vram "$recipe" --set "model.id=$model"
    step ftcli train "$recipe" --set "model.id=$model"
    step ftcli eval "$run"
    step ftcli generate "$run" "$prompt"
fi

cat <<END

Try next (with $BIN/ in front, or after: . $BIN/activate):
  ftcli merge $run
  ftcli train $recipe --dry-run --set model.id=$model
  ftcli estimate-vram recipes/ecommerce-qlora.yaml --gpu 4090
END
