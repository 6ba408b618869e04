# Runs weft probe icmp to $@ in a container of Podman, on the network weft of /etc/cni/net.d.
set -eu
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for dir in bin etc dev proc sys tmp run; do mkdir -p /run/rootfs/$dir; done
cp "$(command -v weft)" /run/rootfs/bin/weft
mkdir -p /etc/containers
cat >/etc/containers/containers.conf <<CONFIG
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
[containers]
cgroups = "disabled"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
CONFIG
podman --storage-driver vfs --root /run/podman/root --runroot /run/podman/run \
	run --rm --cap-add NET_RAW --network weft --rootfs /run/rootfs /bin/weft probe icmp --count 3 "$@"
