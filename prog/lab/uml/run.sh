#!/bin/sh
# usage: run.sh KERNEL DIR      boots user-mode Linux with DIR/init as first process, see init.sh
set -eu
# The C library registers restartable sequences, which the stub processes of UML inherit. The
# machine's kernel would kill them at the first signal ("wait_stub_done : failed to wait for
# SIGTRAP").
export GLIBC_TUNABLES=glibc.pthread.rseq=0
# The guest's memory is a sparse file, in /dev/shm unless that is small, as in most containers.
mem=1024
[ "$(df --output=avail -m /dev/shm 2>/dev/null | tail -1)" -gt "$mem" ] 2>/dev/null || export TMPDIR=${TMPDIR:-/tmp}
exec timeout -k 5 "${UML_TIMEOUT:-600}" "$1" "mem=${mem}M" "umid=weft$$" "uml_dir=$2" \
	rootfstype=hostfs rootflags=/ ro "init=$2/init" "weftjob=$2" \
	con0=null,fd:1 con=null panic=-1 noreboot quiet </dev/null
