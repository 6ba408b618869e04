package api

import (
	"context"
	"time"
)

// PathCheck is the path of requests for checks; Client documents it.
const PathCheck = "/v1/check"

// Check checks this host, or all hosts.
func (c *Client) Check(ctx context.Context, req CheckRequest) (r CheckReply, err error) {
	return r, c.call(ctx, PathCheck, req, &r)
}

// Areas of checks and problems.
const (
	AreaReady      = "ready"
	AreaTunnels    = "tunnels"
	AreaGossip     = "gossip"
	AreaMTU        = "mtu"
	AreaIPv4       = "ipv4"
	AreaIPv6       = "ipv6"
	AreaDNS        = "dns"
	AreaPolicies   = "policies"
	AreaFirewall   = "firewall"
	AreaSysctls    = "sysctls"
	AreaDisk       = "disk"
	AreaVersions   = "versions"
	AreaCNI        = "cni"
	AreaAddresses  = "addresses"
	AreaMembers    = "members"
	AreaEndpoints  = "endpoints"
	AreaFlows      = "flows"
	AreaKubernetes = "kubernetes"
	AreaHosts      = "hosts"      // only of all hosts: whether each answers
	AreaContainers = "containers" // only on request: test endpoints reach each other
)

// The results of a check.
const (
	CheckPass = "PASS"
	CheckWarn = "WARN" // something is wrong, and containers can communicate
	CheckFail = "FAIL"
)

// Check is the result of one check.
type Check struct {
	Area   string `json:"area"`
	Result string `json:"result"`
	What   string `json:"what"`
	Effect string `json:"effect,omitempty"`
	Fix    string `json:"fix,omitempty"`
}

// CheckRequest says what to check.
type CheckRequest struct {
	AllHosts bool `json:"allHosts,omitempty"`
	// Containers also tests whether containers of all hosts reach each other. It implies AllHosts.
	Containers bool `json:"containers,omitempty"`
}

// CheckReply has the checks of each host.
type CheckReply struct {
	Taken  time.Time   `json:"taken"`
	Result string      `json:"result"` // the worst of all
	Hosts  []HostCheck `json:"hosts"`
	// Between are checks that compare hosts; only for all hosts.
	Between []Check `json:"between,omitempty"`
}

// HostCheck has the checks of one host, made by itself.
type HostCheck struct {
	Peer     string  `json:"peer"`
	Nickname string  `json:"nickname"`
	Version  string  `json:"version,omitempty"`
	Error    string  `json:"error,omitempty"` // why there are no checks
	Checks   []Check `json:"checks"`
}
