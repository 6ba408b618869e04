// Package privilege reports the capabilities that a process of Weft lacks. It owns nothing and changes nothing.
package privilege

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// CheckAgent reports missing privileges of an agent, which would otherwise cause errors in many
// places.
func CheckAgent() error {
	if err := CheckNetAdmin(); err != nil {
		return err
	}
	return checkCapability("NET_RAW", unix.CAP_NET_RAW, "sends probes from WireGuard's port")
}

// CheckNetAdmin reports whether this process may change links, routes and rules. That is enough to
// remove them.
func CheckNetAdmin() error {
	return checkCapability("NET_ADMIN", unix.CAP_NET_ADMIN, "makes links, routes and nftables rules")
}

func checkCapability(name string, number int, does string) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("agent: read capabilities: %w", err)
	}
	if data[0].Effective&(1<<number) == 0 {
		return fmt.Errorf("this needs root: run it with sudo. (The capability %s is missing, by which Weft %s; a container or a unit can be given that capability alone)", name, does)
	}
	return nil
}
