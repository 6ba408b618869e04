#!/usr/bin/env bash
# Runs this package's test with the kernel's WireGuard in user-mode Linux, an ordinary process that
# boots in a second and needs no privileges. It takes two minutes once the guest kernel is built.
#
#   UML_LINUX       the guest kernel; default: the kernel that build.sh builds and keeps
#   UML_TIMEOUT     seconds for the guest, default 600
#   UML_RUN         a -test.run pattern: also run these tests of prog/lab/e2e
#   UML_BENCH       names of benchmarks of prog/lab/bench: run these instead of the tests, and print their tables
#   UML_LONG        1: also run what takes minutes
#   UML_VERBOSE     1: show the output of tests that pass
#   WEFT_SKIP_UML   1: skip the test, with a message and exit code 0
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../../.."

if [ "${WEFT_SKIP_UML:-}" = 1 ]; then
	echo "test-kernel: SKIPPED by WEFT_SKIP_UML=1: the kernel's WireGuard is untested"
	exit 0
fi
kernel=${UML_LINUX:-$("$here/build.sh")}
job=$(mktemp -d)
guest=
trap '[ -z "$guest" ] || kill "$guest" 2>/dev/null || true; rm -rf "$job"' EXIT
start=$SECONDS

mkdir "$job/bin"
export CGO_ENABLED=0
"${GO:-go}" build -o "$job/bin/" ./cmd/weft ./cmd/weft-cni
"${GO:-go}" test -c -o "$job/" ./prog/lab/uml ${UML_RUN:+./prog/lab/e2e}
[ -z "${UML_BENCH:-}" ] || "${GO:-go}" build -o "$job/" ./prog/lab/bench
cp "$here/init.sh" "$job/init"
# The guest sees the machine's file system, but not its environment, so the tests need these
# variables.
cat >"$job/job" <<JOB
set -e
export GOMAXPROCS=1 WEFT_BIN=/mnt/bin WEFT_TEST_DATAPATH=kernel WEFT_TEST_LONG=${UML_LONG:-}
cd /mnt
${UML_BENCH:+./bench -only '$UML_BENCH'
exit}
./uml.test -test.v
${UML_RUN:+./e2e.test -test.v -test.run '$UML_RUN'}
JOB

"$here/run.sh" "$kernel" "$job" >"$job/console" 2>&1 &
guest=$!
wait "$guest" || true
guest=
if [ "$(cat "$job/rc" 2>/dev/null)" = 0 ]; then
	[ -z "${UML_VERBOSE:-}${UML_BENCH:-}" ] || cat "$job/log"
	[ -z "${UML_BENCH:-}" ] || exit 0
	passed=$(grep -c '^--- PASS' "$job/log")
	echo "ok	the kernel's WireGuard ($("$kernel" --version)): $passed test(s) in $((SECONDS - start)) s"
	exit 0
fi
[ -s "$job/rc" ] || { echo "test-kernel: the guest ended early or took too long; the end of its console:"; tail -40 "$job/console"; }
cat "$job/log" 2>/dev/null
echo "test-kernel: summary:"
grep -E '^ *--- FAIL|_test\.go:[0-9]+: .*(lost|disturbed|exit code|want|not|still|ended)' "$job/log" 2>/dev/null | cut -c1-300 || true
echo "FAIL	the kernel's WireGuard"
exit 1
