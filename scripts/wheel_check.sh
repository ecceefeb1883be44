#!/usr/bin/env bash
# Build the wheel, install it into an empty environment, and segment one FLAIR file with the network off.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$venv/bin/python" -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir "$place" .
wheel=$(ls "$place"/*.whl)
echo "built $(basename "$wheel"), $(du -k "$wheel" | cut -f1) kB"
WHEEL=$wheel VENV=$place/venv scripts/setup.sh

"$venv/bin/mindgap" phantom "$place/phantoms" --cases 1 --seed 7 --spacing-mm 1 >/dev/null
flair=$(find "$place/phantoms" -name '*flair.nii.gz' | head -n 1)
cp "$flair" "$place/alone.nii.gz"

offline=()
if unshare --net true 2>/dev/null; then offline=(unshare --net); else echo "no network namespace here: not cut off" >&2; fi
cd "$place" # nothing of the source tree can be found from here
export HOME=$place/home
mkdir "$HOME"
for round in first second; do
  began=$(date +%s.%N)
  "${offline[@]}" venv/bin/mindgap segment --flair alone.nii.gz -o seg.nii.gz --device cpu >"$round.txt"
  python3 -c "import time; print(f'$round call, one FLAIR file in a process of its own: {time.time() - $began:.1f} s')"
done
cat second.txt
"${offline[@]}" venv/bin/mindgap models
venv/bin/python - <<'CHECK'
import nibabel, numpy
mask = numpy.asarray(nibabel.load("seg.nii.gz").dataobj)
image = nibabel.load("alone.nii.gz")
assert mask.shape == image.shape, (mask.shape, image.shape)
assert numpy.allclose(nibabel.load("seg.nii.gz").affine, image.affine)
assert set(numpy.unique(mask)) <= {0, 1, 2, 4} and (mask > 0).any(), numpy.unique(mask)
print("the wheel alone made a mask")
CHECK
