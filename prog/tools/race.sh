#!/usr/bin/env bash
# Tests with the race detector: `race.sh units` all packages except the lab's, `race.sh labs` the lab's packages.
#
# The detector makes simulations of many hosts ten times as slow. Before Go 1.27 it crashes when two processors run the
# timers of one synctest bubble (golang/go#78156): packages whose tests have virtual time get one processor each.
set -euo pipefail
cd "$(dirname "$0")/../.."
go=${GO:-go}

bubble='{{$p := .}}{{range .Deps}}{{if eq . "testing/synctest"}}{{$p.ImportPath}}{{end}}{{end}}'
bubbles=$("$go" list -test -f "$bubble" ./... | sed -n 's/\.test$//p')
case $1 in
units) packages=$("$go" list ./... | grep -v '^weft/prog/lab') ;;
labs) packages=$("$go" list ./... | grep '^weft/prog/lab') ;;
*) echo "race.sh: want units or labs" >&2 && exit 2 ;;
esac
virtual=$(grep -Fx "$bubbles" <<<"$packages")
real=$(grep -Fxv "$bubbles" <<<"$packages")

# shellcheck disable=SC2086 # the lists must be split into one word for each package
case $1 in
units)
	"$go" test -race -short -timeout=20m -cpu 1 $virtual
	"$go" test -race -short -timeout=20m $real
	;;
labs) # These tests count every packet: packages run one after the other, and cached results are not used.
	"$go" test -race -count=1 -cpu 1 $virtual
	"$go" test -race -count=1 -p 1 -timeout=40m $real
	;;
esac
