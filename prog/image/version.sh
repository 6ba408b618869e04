#!/bin/sh
# Prints the version of this tree: its tag, or else the next release and the commit. Without git it
# prints the release alone.
cd "$(dirname "$0")/../.." || exit
git describe --tags --match 'v[0-9]*' --exact-match --dirty 2>/dev/null && exit
release=$(sed -n 's/^appVersion: //p' site/deploy/chart/Chart.yaml)
echo "$release$(git describe --always --dirty --exclude '*' 2>/dev/null | sed 's/^/-/')"
