#!/usr/bin/env bash
# Install the Chromium that the tests of pages drive; without it they are skipped.
set -euo pipefail
for name in chromium chromium-browser google-chrome google-chrome-stable; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "browser: no Chromium here; the tests of pages will be skipped (sudo apt-get install chromium)" >&2
  exit 0
fi
echo "browser: installing chromium"
apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null \
  || echo "browser: it could not be installed; the tests of pages will be skipped" >&2
