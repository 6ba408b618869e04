package datapath

import (
	"fmt"
	"net"
	"reflect"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// letFragment lets routers fragment a bind's IPv4 packets, as they may fragment those of the kernel's WireGuard.
// IPv6 inside the tunnel needs packets that some paths cannot carry whole. Linux would tell routers not to
// fragment them, and if the routers' ICMP errors are lost, so would be all large packets. IPv6 routers never
// fragment.
func letFragment(b *conn.StdNetBind) error {
	socket, ok := reflect.TypeAssert[*net.UDPConn](unlocked(reflect.ValueOf(b).Elem().FieldByName("ipv4")))
	if !ok || socket == nil {
		return nil // this kernel has no IPv4
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("datapath: letting routers fragment packets: %w", err)
	}
	return nil
}
