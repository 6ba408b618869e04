# Settings and functions shared by the scripts of this folder; each sources it.
kube=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$kube/../../.." && pwd)

required() { awk -v m="$2" '{ for (i = 1; i < NF; i++) if ($i == m && $(i + 1) ~ /^v/) print $(i + 1) }' "$kube/$1" | tail -1; }
k8s_version=$(required go.mod k8s.io/kubernetes)
etcd_version=$(required etcd/go.mod go.etcd.io/etcd/server/v3)
multus_version=$(required multus/go.mod gopkg.in/k8snetworkplumbingwg/multus-cni.v4)
helm_version=$(required chart/go.mod helm.sh/helm/v3)
coredns_version=v1.15.0 # the version in prog/lab/bench, so that it is built once

# These folders keep built programs, by version.
weft_cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/weft
cache=$weft_cache/kube-$k8s_version
etcd_dir=$weft_cache/etcd-$etcd_version
coredns_dir=$weft_cache/coredns-$coredns_version
multus_dir=$weft_cache/multus-$multus_version
helm_dir=$weft_cache/helm-$helm_version
PATH=$cache/bin:$etcd_dir:$coredns_dir:$multus_dir:$helm_dir:$PATH

# The folder of the running cluster has a short path, since it contains sockets. The cluster's
# namespaces and cgroups are named $lab.
lab=weft-kube
run=/var/tmp/$lab

# A node's addresses end in its index plus ten, in the same digits in both families: the first node has
# 10.200.0.11 and fd00:10:200::11.
fabric4=10.200.0. fabric6=fd00:10:200::
service_cidr=10.96.0.0/16,fd00:10:96::/112
service_ips=10.96.0.1,fd00:10:96::1 # addresses of the API server's Service
dns_ip=10.96.0.10
CLUSTER_CIDR=${CLUSTER_CIDR:-10.32.0.0/12,fd00:32::/64}

# The registry does not exist: images come from this machine's files, never from a registry.
registry=weft.lab/e2e

say() { echo "kube: $*" >&2; }
fail() {
	say "$*"
	exit 1
}
