#!/usr/bin/env bash
# Fuzzes every decoder of untrusted bytes, 20 s each: all tests of the main module whose names begin with Fuzz.
set -euo pipefail
cd "$(dirname "$0")/../.."
"${GO:-go}" list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | while read -r pkg; do
	for f in $("${GO:-go}" test -list '^Fuzz' "$pkg" </dev/null | sed -n '/^Fuzz/p'); do
		echo "$pkg $f"
		"${GO:-go}" test -run '^$' -fuzz "^$f\$" -fuzztime 20s -fuzzminimizetime 50x "$pkg" </dev/null
	done
done
