#!/bin/sh
# The first process of the guest, whose root is the machine's / (hostfs, read-only). The kernel's
# command line has weftjob=DIR, a writable folder of the machine that is mounted on /mnt. This script
# runs its script `job`, and writes the output to `log` and the exit code to `rc`.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH HOME=/root TMPDIR=/tmp
mount -t hostfs -o "$weftjob" none /mnt
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
sh /mnt/job >/mnt/log 2>&1 </dev/null
echo $? >/mnt/rc
sync
echo o >/proc/sysrq-trigger # power off
while :; do sleep 1; done
