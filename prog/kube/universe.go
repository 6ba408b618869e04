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

// ProxyConfig is kube-proxy's setting of pod addresses. The zero value means that it has none.
type ProxyConfig struct {
	ClusterCIDR     string `json:"clusterCIDR"` // CIDR[,CIDR6]
	DetectLocalMode string `json:"detectLocalMode"`
}

// Proxy reads kube-proxy's configuration from kubeadm's ConfigMap. Other installers do not have it.
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

// CIDRs returns the valid ranges of clusterCIDR.
func (p ProxyConfig) CIDRs() (out []netip.Prefix) {
	for text := range strings.SplitSeq(p.ClusterCIDR, ",") {
		if cidr, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			out = append(out, cidr.Masked())
		}
	}
	return out
}

// Mismatch describes the effect if kube-proxy's pod addresses are not Weft's, and the fix. It returns
// the zero value if they match, and for families that the host lacks.
func (p ProxyConfig) Mismatch(u slot.Universe, ipv6 bool) problem.Problem {
	wrong := problem.Problem{Reason: ReasonMismatch, Effect: "it masquerades traffic from pods to services, so policies see the node instead of the pod"}
	switch p.DetectLocalMode {
	case "", "ClusterCIDR":
	case "NodeCIDR":
		wrong.What = fmt.Sprintf("kube-proxy expects pods in its Node's podCIDR (detectLocalMode: NodeCIDR), but Weft's addresses are in %v", u)
		wrong.Fix = fmt.Sprintf("set detectLocalMode to ClusterCIDR and clusterCIDR to %v in the ConfigMap kube-system/kube-proxy, and restart kube-proxy", u)
		return wrong
	default:
		return problem.Problem{} // in this mode kube-proxy identifies pods by interface
	}
	for _, cidr := range p.CIDRs() {
		own := u.V6
		if cidr.Addr().Is4() {
			own = u.V4
		} else if !ipv6 {
			continue
		}
		if cidr.Bits() > own.Bits() || !cidr.Contains(own.Addr()) {
			wrong.What = fmt.Sprintf("kube-proxy expects pods in %v, but Weft's addresses are in %v", cidr, own)
			wrong.Fix = fmt.Sprintf("set clusterCIDR to %v in the ConfigMap kube-system/kube-proxy, and restart kube-proxy (or, on a new cluster, found Weft with WEFT_IPALLOC_RANGE=%s)", u, p.ClusterCIDR)
			return wrong
		}
	}
	return problem.Problem{}
}

// Universe chooses the universe for a founder: the requested one, else kube-proxy's, else Weft's
// default. It refuses a universe that overlaps the cluster's services.
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
			case cidr.Addr().Is6() && !u.V6.IsValid(): // a universe is at most a /64: take the first one
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
			return u, &RefusedError{fmt.Errorf("the universe %v overlaps the cluster's services (%v), so pods could not reach them: give another range with WEFT_IPALLOC_RANGE (--ipalloc-range)", u, s)}
		}
	}
	return u, nil
}

// services returns the address ranges of services. Servers before 1.33 do not list them; then it is
// only the address of the API server's own service, which every pod knows.
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
