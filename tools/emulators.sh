#!/usr/bin/env bash
# Set up what `make test-cpus` runs: QEMU's user-mode emulators, and a Python for arm64 with onnxruntime.
#
#     bash tools/emulators.sh .work/arm64
#
# Debian or Ubuntu, as root: packages are unpacked into the folder, not installed, but for QEMU itself.
set -euo pipefail
folder=${1:?"name a folder"}
[ -e "$folder/ready" ] && exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "error: the emulators come from Debian packages; once, as root, run: bash tools/emulators.sh $folder" >&2
    exit 1
fi
if ! command -v qemu-aarch64-static > /dev/null; then
    apt-get update -q
    apt-get install -y -q qemu-user-static || { echo "error: install QEMU with: apt-get install qemu-user-static" >&2; exit 1; }
fi
dpkg --print-foreign-architectures | grep -qx arm64 || dpkg --add-architecture arm64
apt-get update -q

rm -rf "$folder"
mkdir -p "$folder/debs" "$folder/wheels" "$folder/root" "$folder/site"
packages="libc6 libpython3.11-stdlib libpython3.11-minimal python3.11-minimal python3.11 libstdc++6 libgcc-s1 zlib1g
libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1 libreadline8 libncursesw6 libtinfo6
libdb5.3 libgomp1"
# shellcheck disable=SC2086
(cd "$folder/debs" && apt-get download -q $(printf '%s:arm64 ' $packages))
for each in "$folder"/debs/*.deb; do dpkg -x "$each" "$folder/root"; done

# onnxruntime 1.31 crashes at its import in emulation; 1.23 gives the same answers.
platforms="manylinux_2_28_aarch64 manylinux_2_27_aarch64 manylinux_2_17_aarch64 manylinux2014_aarch64"
# shellcheck disable=SC2046
python -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
    $(printf -- '--platform %s ' $platforms) -d "$folder/wheels" \
    onnxruntime==1.23.2 "$(grep '^numpy==' constraints-optimum.txt)" "$(grep '^tokenizers==' constraints-optimum.txt)"
for each in "$folder"/wheels/*.whl; do python -m zipfile -e "$each" "$folder/site"; done
rm -rf "$folder/debs" "$folder/wheels"
touch "$folder/ready"
