#!/usr/bin/env bash
# The first process of a node in its namespaces. It sets up the file system, then runs containerd, the
# kubelet and kube-proxy. cluster.sh passes its name, addresses, images and settings in the
# environment.
set -euo pipefail
. "$(dirname "$0")/env.sh"
disk=$run/$NAME/disk # this folder survives a restart
hostname "$NAME"

# Mount the sysfs of this network namespace, and the cgroup hierarchies anew: in a new cgroup
# namespace, the root of each is this node's own.
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
awk 'NR > 1 && $2 != 0 {print $1}' /proc/cgroups | while read -r c; do
	mkdir "/sys/fs/cgroup/$c"
	mount -t cgroup -o "$c" cgroup "/sys/fs/cgroup/$c"
done
mkdir /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd

# The node's own state. The overlays only provide mount points that the machine may lack. The folders
# themselves are no overlays, since containerd could not mount its own on them.
for d in /etc /opt /var/lib /var/log; do
	mkdir -p "$disk/overlay$d" "$disk/overlay/work$d"
	mount -t overlay -o "lowerdir=$d,upperdir=$disk/overlay$d,workdir=$disk/overlay/work$d" overlay "$d"
done
for d in /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/lib/weft /var/log/pods /var/log/containers /etc/cni /opt/cni; do
	mkdir -p "$disk$d" "$d"
	mount --bind "$disk$d" "$d"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns /run/kubernetes /etc/cni/net.d /opt/cni/bin
cp -u /usr/lib/cni/* /opt/cni/bin/
cp "$run/pki"/{ca.crt,"$NAME.kubeconfig",kube-proxy.kubeconfig,"kubelet-$NAME.crt","kubelet-$NAME.key"} /run/kubernetes/

# The kubelet would set these sysctls of the whole machine unless they have the expected values, so
# show it these.
for kv in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
	kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
	shown=/run/kubernetes/${kv%=*}
	mkdir -p "$(dirname "$shown")"
	echo "${kv#*=}" >"$shown"
	mount --bind "$shown" "/proc/sys/${kv%=*}"
done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
echo 1 >/proc/sys/net/bridge/bridge-nf-call-ip6tables

mount --make-rshared / # propagate later mounts to pods, as on a systemd host

# restrict_oom_score_adj: without CAP_SYS_RESOURCE, as in most containers, a lower score than this
# process's own is refused.
cat >/run/kubernetes/containerd.toml <<TOML
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$(cat "$IMAGES/sandbox")"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
TOML

# The nodes' resolver does not exist: the lab has no connection to other networks.
echo "nameserver ${fabric4}1" >/run/kubernetes/resolv.conf
cat >/run/kubernetes/kubelet.yaml <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
resolvConf: /run/kubernetes/resolv.conf
clusterDomain: cluster.local
clusterDNS: [$dns_ip]
tlsCertFile: /run/kubernetes/kubelet-$NAME.crt
tlsPrivateKeyFile: /run/kubernetes/kubelet-$NAME.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /run/kubernetes/ca.crt}}
authorization: {mode: Webhook}
imageGCHighThresholdPercent: 100 # never remove images: nodes cannot pull them again
evictionHard: {memory.available: 50Mi, nodefs.available: "1%", imagefs.available: "1%"}
nodeStatusUpdateFrequency: 5s
YAML
# The maximum number of connections is a setting of the machine; the timeouts are per network
# namespace.
cat >/run/kubernetes/kube-proxy.yaml <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $PROXY_MODE
clientConnection: {kubeconfig: /run/kubernetes/kube-proxy.kubeconfig}
clusterCIDR: $CLUSTER_CIDR
hostnameOverride: $NAME
conntrack: {maxPerCore: 0}
YAML

keep() { # LOG PROGRAM…: restarts the program when it ends, like systemd
	local log=$run/log/$NAME-$1.log
	shift
	while :; do
		"$@" >>"$log" 2>&1 </dev/null || true
		sleep 1
	done
}
keep containerd containerd --config /run/kubernetes/containerd.toml &
until ctr version >/dev/null 2>&1; do sleep 0.2; done
# A restarted node has these images already; importing them again changes nothing.
for image in "$IMAGES"/*.tar "$checkout/bin/weft-image.tar"; do
	[ ! -f "$image" ] || ctr -n k8s.io images import "$image"
done
keep kubelet kubelet --config=/run/kubernetes/kubelet.yaml --kubeconfig="/run/kubernetes/$NAME.kubeconfig" \
	--hostname-override="$NAME" --node-ip="$IPS" &
keep kube-proxy kube-proxy --config=/run/kubernetes/kube-proxy.yaml &
wait
