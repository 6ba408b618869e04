package kube

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
)

// Node holds the parts of a Node object that matter for the network.
type Node struct {
	Name  string
	UID   string       // differs from that of another Node with the same name
	Addrs []netip.Addr `json:",omitempty"` // the InternalIPs in the Node's order
	Ready bool
	// Unavailable is the status of the condition NetworkUnavailable: True, False, Unknown, or empty
	// if it is not set.
	Unavailable string `json:",omitempty"`
	// Up reports whether Weft has set that condition to False: an agent there has or had a ring.
	Up bool `json:",omitempty"`
}

func nodeOf(n *core.Node) Node {
	out := Node{Name: n.Name, UID: string(n.UID)}
	for _, a := range n.Status.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		if a.Type != core.NodeInternalIP || err != nil || !usable(addr) {
			continue
		}
		if addr = addr.Unmap(); !slices.Contains(out.Addrs, addr) {
			out.Addrs = append(out.Addrs, addr)
		}
	}
	for _, c := range n.Status.Conditions {
		switch c.Type {
		case core.NodeReady:
			out.Ready = c.Status == core.ConditionTrue
		case core.NodeNetworkUnavailable:
			out.Unavailable = string(c.Status)
			out.Up = c.Status == core.ConditionFalse && c.Reason == ReasonUp
		}
	}
	return out
}

// usable reports whether other hosts could reach an address.
func usable(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && a.Zone() == ""
}

func sameNode(a, b Node) bool {
	return a.UID == b.UID && a.Ready == b.Ready && a.Unavailable == b.Unavailable && a.Up == b.Up && slices.Equal(a.Addrs, b.Addrs)
}

// Node reads one Node. If it does not exist, the error satisfies apierrors.IsNotFound.
func (c *Client) Node(ctx context.Context, name string) (Node, error) {
	var n core.Node
	err := c.do(ctx, "read the Node "+name, c.core.Get().Resource("nodes").Name(name), &n)
	return nodeOf(&n), err
}

// Nodes reads all current Nodes, from no cache of this host or the server.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var list core.NodeList
	if err := c.do(ctx, "list the Nodes", c.core.Get().Resource("nodes"), &list); err != nil {
		return nil, err
	}
	out := make([]Node, 0, len(list.Items))
	for i := range list.Items {
		out = append(out, nodeOf(&list.Items[i]))
	}
	slices.SortFunc(out, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
