#!/usr/bin/env bash
# Install Chromium for the tests of the page of mlm-serve and for its pictures, where there is none and it can be done:
# on Debian, as root. Elsewhere say so in a line, and let the tests that need it be skipped.
#
#     bash tools/browser.sh
set -uo pipefail
export DEBIAN_FRONTEND=noninteractive
for name in chromium google-chrome; do
    command -v "$name" > /dev/null && exit 0
done

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    reason="it takes root and apt-get"
elif (apt-get update && apt-get install -y --no-install-recommends chromium) > "$log" 2>&1 < /dev/null; then
    exit 0
else
    reason=$(grep '^E:' "$log" | head -n 1)
fi
echo "no Chromium: the tests of the page are skipped; as root: apt-get install chromium ($reason)" >&2
