package datapath

import (
	"bytes"
	"slices"
	"testing"
)

func TestFixChecksumReplacesZeroInUDPOverIPv6(t *testing.T) {
	udp6 := make([]byte, 48)
	udp6[0], udp6[6] = 0x60, 17
	set := func(p []byte, at int, values ...byte) []byte {
		return slices.Replace(slices.Clone(p), at, at+len(values), values...)
	}
	for name, c := range map[string]struct{ packet, want []byte }{
		"a checksum of zero":         {udp6, set(udp6, 46, 0xff, 0xff)},
		"another checksum":           {set(udp6, 46, 0, 1), set(udp6, 46, 0, 1)},
		"TCP":                        {set(udp6, 6, 6), set(udp6, 6, 6)},
		"UDP over IPv4":              {set(udp6, 0, 0x45), set(udp6, 0, 0x45)},
		"a packet too short for UDP": {udp6[:47], udp6[:47]},
		"an empty packet":            {nil, nil},
	} {
		got := bytes.Clone(c.packet)
		if fixChecksum(got); !bytes.Equal(got, c.want) {
			t.Errorf("%s: got %x; want %x", name, got, c.want)
		}
	}
}
