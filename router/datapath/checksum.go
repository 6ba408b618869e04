package datapath

import (
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// checked is a TUN device whose packets all have a checksum that their receivers take.
//
// The kernel leaves checksums to whoever reads from the device, and WireGuard's library
// computes them. One in 65,536 is zero. Over IPv6 that is to be sent as 0xffff (RFC 8200, 8.1),
// which the library does not do: the receiver drops such a UDP packet.
type checked struct{ tun.Device }

func (c checked) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	n, err = c.Device.Read(bufs, sizes, offset)
	for i := range n {
		mend(bufs[i][offset : offset+sizes[i]])
	}
	return n, err
}

const (
	header6     = 40
	udpChecksum = header6 + 6
)

// mend replaces a checksum of zero in a UDP packet over IPv6.
func mend(packet []byte) {
	if len(packet) >= udpChecksum+2 && packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_UDP &&
		packet[udpChecksum] == 0 && packet[udpChecksum+1] == 0 {
		packet[udpChecksum], packet[udpChecksum+1] = 0xff, 0xff
	}
}
