#!/usr/bin/env bash
# Builds the programs for each platform, and their image: build.sh FLAG-OF-GO-BUILD... --
# FLAG-OF-IMAGE... (`go run ./prog/image -h`). `make image` runs it.
set -euo pipefail
cd "$(dirname "$0")/../.."
flags=()
while [ "$1" != -- ]; do flags+=("$1") && shift; done
shift

for arch in amd64 arm64; do
	echo "build for linux/$arch"
	# Give all settings by name, so that a machine's `go env -w` or GOFLAGS do not change the image.
	GOFLAGS='' GOEXPERIMENT='' GOFIPS140=off GOAMD64=v1 GOARM64=v8.0 CGO_ENABLED=0 GOOS=linux GOARCH=$arch \
		"${GO:-go}" build "${flags[@]}" -buildvcs=false -o "bin/linux-$arch/" ./cmd/weft ./cmd/weft-cni
done
"${GO:-go}" run ./prog/image -o bin/weft-image.tar "$@" bin/linux-amd64 bin/linux-arm64
