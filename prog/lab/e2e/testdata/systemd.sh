# Runs a real systemd as process 1 of namespaces of its own, on an overlay of this machine's files,
# with the units of site/deploy/systemd. $1: a folder for the outcome, $2: the programs, $3: the units.
set -e
R=$1/scratch; mkdir -p $R; mount -t tmpfs none $R; mkdir -p $R/up $R/work $R/root
mount -t overlay overlay -o lowerdir=/,upperdir=$R/up,workdir=$R/work $R/root
N=$R/root
mount -t proc proc $N/proc; mount -t sysfs sysfs $N/sys; mount -t cgroup2 none $N/sys/fs/cgroup
mount -t tmpfs none $N/run; mount -t tmpfs none $N/tmp; mount --rbind /dev $N/dev
mkdir -p $N/usr/local/bin $N/out; mount --bind $1 $N/out
cp $2/weft $2/weft-cni $N/usr/local/bin/; cp $3/*.service $N/etc/systemd/system/
rm -rf $N/var/lib/weft $N/etc/weft $N/etc/cni
ip link set lo up; ip link add eth0 type veth peer name x0; ip addr add 192.0.2.1/24 dev eth0
ip link set eth0 up; ip link set x0 up; ip route add default via 192.0.2.2
cat >$N/etc/systemd/system/story.target <<'X'
[Unit]
Requires=basic.target
Wants=story.service
X
cat >$N/etc/systemd/system/story.service <<'X'
[Unit]
After=basic.target
[Service]
Type=oneshot
TimeoutStartSec=60
ExecStart=/bin/bash /out/story.sh
ExecStopPost=/usr/bin/systemctl --force --force poweroff
X
cat >$1/story.sh <<'X'
exec >/out/said 2>&1
PATH=/usr/local/bin:$PATH
state() { # prints the unit's state once the unit is not stopping
	until s=$(systemctl show -p ActiveState --value weft); [ $s != deactivating ]; do :; done; echo $1: $s
}
systemctl start weft; state started
weft status | grep 'Not ready'
weft launch --mtu 1300; state launched
weft report -f 'ready: {{.ready}} {{.router.mtu}}'; first=$(weft report -f '{{.router.cluster}}')
weft stop; state stopped
weft launch; state "launched again"
weft report -f 'again: {{.ready}} {{.router.mtu}}'
pid=$(systemctl show -p MainPID --value weft); kill -9 $pid
until weft report -f '{{.ready}}' 2>/dev/null | grep -q true; do :; done
kill -QUIT $(systemctl show -p MainPID --value weft) # SIGQUIT ends the agent with the exit code of a panic
until weft report -f '{{.ready}}' 2>/dev/null | grep -q true; do :; done; state "after a panic"
systemctl restart weft; state upgraded
until weft report -f '{{.ready}}' 2>/dev/null | grep -q true; do :; done
[ "$(weft report -f '{{.router.cluster}}')" = "$first" ] && echo one network all the time
weft reset; state reset
systemctl start weft; state "started after reset"
weft status | grep 'Not ready'; echo state: $(ls -A /var/lib/weft)
weft launch --status-addr 198.51.100.1:1 || echo launch refused
until weft status 2>/dev/null | grep -q 'belongs to no network'; do :; done; echo waits again with: $(ls -A /var/lib/weft /etc/weft 2>/dev/null)
WEFT_MTU=1300 weft launch; echo variable: $?
echo the end
X
cd $N; mkdir -p old; pivot_root . old
exec env -i container=lxc PATH=/usr/bin:/bin:/usr/sbin:/sbin $(command -v /usr/lib/systemd/systemd || echo /lib/systemd/systemd) --system --unit=story.target --log-target=console --show-status=0 </dev/null
