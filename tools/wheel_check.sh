#!/usr/bin/env bash
# Build the wheel, install it with [cpu] alone into an empty environment of $PYTHON, and fill a mask from another folder.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf build
python -m build --wheel --outdir "$work/dist" . > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"${PYTHON:-python}" -m venv "$work/venv"
wheel=$(echo "$work"/dist/*.whl)
"$work/venv/bin/pip" install -q -c constraints-optimum.txt "$wheel[cpu]"
cd "$work"
PATH="$work/venv/bin:$PATH" mlm-fill "This is a great [MASK]." --top-k 3
"$work/venv/bin/python" -c "from mlm_infer import MaskFiller; MaskFiller()('A [MASK] film.')"
for module in torch transformers onnx datasets; do
    ! "$work/venv/bin/python" -c "import $module" 2> /dev/null || { echo "$module is installed"; exit 1; }
done
echo "wheel: $(du -h "$wheel" | cut -f1), installed without torch, fills masks from another folder ($(basename "$root"))"
