# Runs weft probe icmp to $@ in a container of containerd, whose network is that of /etc/cni/net.d.
set -eu
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/rootfs/bin
cp "$(command -v weft)" /run/rootfs/bin/weft
cat >/run/containerd.toml <<CONFIG
version = 2
root = "/run/containerd/root"
state = "/run/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/containerd.sock"
CONFIG
containerd -c /run/containerd.toml >/run/containerd.log 2>&1 &
tries=0
until ctr -a /run/containerd.sock version >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ $tries -lt 200 ] || { cat /run/containerd.log >&2; exit 1; }
	sleep 0.1
done
args=$(printf '"%s",' "$@")
cat >/run/spec.json <<SPEC
{"ociVersion": "1.0.2",
 "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/weft", "probe", "icmp", "--count", "3", ${args%,}],
  "capabilities": {"bounding": ["CAP_NET_RAW"], "effective": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"]}},
 "root": {"path": "/run/rootfs"},
 "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}],
 "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]}}
SPEC
ctr -a /run/containerd.sock run --rm --cni --config /run/spec.json probing
