#!/usr/bin/env bash
# Build the wheel, install it with [cpu] alone into an empty environment of $PYTHON, and fill a mask from another folder;
# then with [serve] too, and ask a server.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null || true; rm -rf "$work"' EXIT
rm -rf build
python -m build --wheel --outdir "$work/dist" . > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"${PYTHON:-python}" -m venv "$work/venv"
wheel=$(echo "$work"/dist/*.whl)
"$work/venv/bin/pip" install -q -c constraints-optimum.txt "$wheel[cpu]"
cd "$work"
! "$work/venv/bin/mlm-serve" 2> told || { echo "mlm-serve runs without [serve]"; exit 1; }
grep -q "install it with: pip install 'mlm-infer\[serve\]'" told || { cat told; exit 1; }
! "$work/venv/bin/mlm-fill" --engine ray --input . --output out 2> told || { echo "mlm-fill --engine ray runs without [ray]"; exit 1; }
grep -q "install it with: pip install 'mlm-infer\[ray\]'" told || { cat told; exit 1; }
PATH="$work/venv/bin:$PATH" mlm-fill "This is a great [MASK]." --top-k 3
"$work/venv/bin/python" -c "from mlm_infer import MaskFiller; MaskFiller()('A [MASK] film.')"
for module in torch transformers onnx datasets; do
    ! "$work/venv/bin/python" -c "import $module" 2> /dev/null || { echo "$module is installed"; exit 1; }
done
"$work/venv/bin/pip" install -q -c "$root/constraints-optimum.txt" "$wheel[cpu,serve]"
"$work/venv/bin/mlm-serve" --port 0 --workers 2 2> told &
for _ in $(seq 100); do grep -q "answers on" told && break; sleep 0.2; done
"$work/venv/bin/python" - "$(sed 's/.* //' told)" <<'END'
import sys, urllib.request
url = sys.argv[1]
assert b"What does the model expect?" in urllib.request.urlopen(url).read()
question = urllib.request.Request(url + "/fill", b'{"text": "A [MASK] film."}', {"content-type": "application/json"})
assert b"predictions" in urllib.request.urlopen(question).read()
END
echo "wheel: $(du -h "$wheel" | cut -f1), installed without torch, fills masks from another folder, and serves ($(basename "$root"))"
