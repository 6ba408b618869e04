package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"

	"weft/ipam/slot"
	"weft/mesh/secret"
	"weft/prog/words"
	"weft/router/problem"
)

// ProxyConfig is what kube-proxy was told of where pods are. The zero one was told nothing.
type ProxyConfig struct {
	ClusterCIDR     string `json:"clusterCIDR"` // CIDR[,CIDR6]
	DetectLocalMode string `json:"detectLocalMode"`
}

// Proxy reads kube-proxy's configuration where kubeadm writes it; other installers have none there.
func (c *Client) Proxy(ctx context.Context) (p ProxyConfig, err error) {
	var m core.ConfigMap
	err = c.do(ctx, "read the ConfigMap kube-system/kube-proxy", c.core.Get().Namespace("kube-system").Resource("configmaps").Name("kube-proxy"), &m)
	if apierrors.IsNotFound(err) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	if err := yaml.Unmarshal([]byte(m.Data["config.conf"]), &p); err != nil {
		return ProxyConfig{}, fmt.Errorf("the ConfigMap kube-system/kube-proxy: config.conf: %w", err)
	}
	return p, nil
}

// CIDRs are the ranges of clusterCIDR, those that can be read.
func (p ProxyConfig) CIDRs() (out []netip.Prefix) {
	for text := range strings.SplitSeq(p.ClusterCIDR, ",") {
		if cidr, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			out = append(out, cidr.Masked())
		}
	}
	return out
}

// Mismatch says what kube-proxy does with pods whose addresses lie outside of what it was
// told, and how that ends; zero if all is well, as it is for a family that the host lacks.
func (p ProxyConfig) Mismatch(u slot.Universe, ipv6 bool) problem.Problem {
	wrong := problem.Problem{Reason: ReasonMismatch, Effect: "it masquerades what pods send to services, and policies see the node in place of the pod"}
	switch p.DetectLocalMode {
	case "", "ClusterCIDR":
	case "NodeCIDR":
		wrong.What = fmt.Sprintf("kube-proxy takes for pods what lies in its Node's podCIDR (detectLocalMode: NodeCIDR), and Weft's addresses (%v) do not", u)
		wrong.Fix = fmt.Sprintf("set detectLocalMode to ClusterCIDR and clusterCIDR to %v in the ConfigMap kube-system/kube-proxy, and restart kube-proxy", u)
		return wrong
	default:
		return problem.Problem{} // it looks at interfaces
	}
	for _, cidr := range p.CIDRs() {
		own := u.V6
		if cidr.Addr().Is4() {
			own = u.V4
		} else if !ipv6 {
			continue
		}
		if cidr.Bits() > own.Bits() || !cidr.Contains(own.Addr()) {
			wrong.What = fmt.Sprintf("kube-proxy takes for pods what lies in %v, and Weft's addresses (%v) do not", cidr, own)
			wrong.Fix = fmt.Sprintf("set clusterCIDR to %v in the ConfigMap kube-system/kube-proxy, and restart kube-proxy (or, on a new cluster, found Weft with WEFT_IPALLOC_RANGE=%s)", u, p.ClusterCIDR)
			return wrong
		}
	}
	return problem.Problem{}
}

// Universe is what a founder takes for the cluster's: what is asked for, else what
// kube-proxy was told, else Weft's own. One that has addresses of services is refused.
func (c *Client) Universe(ctx context.Context, asked slot.Universe, cluster secret.ClusterID) (slot.Universe, error) {
	u := asked
	if !u.V4.IsValid() || !u.V6.IsValid() {
		p, err := c.Proxy(ctx)
		if err != nil {
			return u, err
		}
		for _, cidr := range p.CIDRs() {
			switch {
			case cidr.Addr().Is4() && !u.V4.IsValid():
				u.V4 = cidr
			case cidr.Addr().Is6() && !u.V6.IsValid(): // a universe is a /64 at most: the first one
				u.V6 = netip.PrefixFrom(cidr.Addr(), max(cidr.Bits(), 64))
			}
		}
	}
	if !u.V4.IsValid() {
		u.V4 = slot.DefaultV4
	}
	if !u.V6.IsValid() {
		u.V6 = cluster.V6()
	}
	if err := u.Validate(); err != nil {
		return u, &RefusedError{fmt.Errorf("%w. Give another range with WEFT_IPALLOC_RANGE (--ipalloc-range)", err)}
	}
	services, err := c.services(ctx)
	if err != nil {
		return u, err
	}
	for _, s := range services {
		if s.Overlaps(u.V4) || s.Overlaps(u.V6) {
			return u, &RefusedError{fmt.Errorf("the universe %v has addresses of the cluster's services (%v), which pods could not reach any more: give another range with WEFT_IPALLOC_RANGE (--ipalloc-range)", u, s)}
		}
	}
	return u, nil
}

// services are the ranges that services have their addresses from; of a server that does not
// tell (before 1.33), the one service that every pod knows of.
func (c *Client) services(ctx context.Context) (out []netip.Prefix, err error) {
	var list networking.ServiceCIDRList
	err = c.do(ctx, "list the ServiceCIDRs", c.networking.Get().Resource("servicecidrs"), &list)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	for _, s := range list.Items {
		for _, text := range s.Spec.CIDRs {
			cidr, e := words.Prefix(text)
			if e != nil {
				err = errors.Join(err, fmt.Errorf("the ServiceCIDR %s: %w", s.Name, e))
				continue
			}
			out = append(out, cidr.Masked())
		}
	}
	if addr, e := netip.ParseAddr(os.Getenv("KUBERNETES_SERVICE_HOST")); e == nil {
		out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
	}
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return out, err
}
