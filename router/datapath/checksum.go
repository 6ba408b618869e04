package datapath

import (
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// checked is a TUN device whose packets all have a checksum that receivers accept.
//
// The kernel leaves checksums to the program that reads the device, and wireguard-go computes them.
// One checksum in 65,536 is zero. UDP over IPv6 requires 0xffff instead (RFC 8200, 8.1), which
// wireguard-go does not send: the receiver would drop the packet.
type checked struct{ tun.Device }

func (c checked) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	n, err = c.Device.Read(bufs, sizes, offset)
	for i := range n {
		fixChecksum(bufs[i][offset : offset+sizes[i]])
	}
	return n, err
}

const (
	header6     = 40
	udpChecksum = header6 + 6
)

// fixChecksum replaces a checksum of zero in a UDP packet over IPv6 by 0xffff.
func fixChecksum(packet []byte) {
	if len(packet) >= udpChecksum+2 && packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_UDP &&
		packet[udpChecksum] == 0 && packet[udpChecksum+1] == 0 {
		packet[udpChecksum], packet[udpChecksum+1] = 0xff, 0xff
	}
}
