package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// preflight checks for what the machine lacks before anything is made. It tries namespaces, since
// their availability cannot be predicted.
func preflight(o Options) error {
	programs := []string{"weft", "weft-cni"}
	if o.Bare {
		programs = programs[:1] // a bare lab only runs `weft lab node`
	}
	for _, program := range programs {
		if _, err := os.Stat(filepath.Join(o.Bin, program)); err != nil {
			return fmt.Errorf("lab: %w: build both programs with make build", err)
		}
	}
	if _, err := os.Stat("/sys/module/wireguard"); err == nil || o.Bare {
		return nil
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case err == nil:
		return tun.Close()
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("lab: %w: the kernel has no WireGuard loaded, and the userspace one needs this device: "+
			"run as root, or: sudo chmod 666 /dev/net/tun, or: sudo modprobe wireguard", err)
	}
	return fmt.Errorf("lab: %w: the kernel has no WireGuard loaded, and the userspace one needs this device: "+
		"sudo modprobe tun (or sudo modprobe wireguard); in a container, add --device /dev/net/tun", err)
}
