package session

import (
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// An echo shows that packets arrive at an address, and that the answer comes back. Question and answer are
// sealed like packets, so they cannot be forged or repeated. Each names the address that the question was sent
// to, so nothing must be kept until the answer comes. An agent that does not know echoes drops them: then the
// address stays.
const (
	echoType = 0x58 // the type byte of a packet with an echo

	question = 1
	answer   = 2
	// maxEcho bounds an echo: its first byte, and the longest address with a port.
	maxEcho = 1 + len("[0000:0000:0000:0000:0000:ffff:255.255.255.255]:65535")
)

// ask sends questions for echoes.
func (t *Transport) ask(k *keys, addrs []string) {
	for _, addr := range addrs {
		if p, err := k.seal(echoType, append([]byte{question}, addr...)); err == nil {
			_, _ = t.cfg.Network.WriteTo(p, addr) // a lost packet is what this is about
		}
	}
}

// receiveEcho handles an echo's question or answer.
func (t *Transport) receiveEcho(k *keys, p *memberlist.Packet, content []byte) {
	if len(content) < 2 || len(content) > maxEcho {
		return
	}
	addr := string(content[1:])
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return
	}
	switch content[0] {
	case question:
		from := addrOf(p.From)
		if !from.IsValid() {
			return
		}
		if back, err := k.seal(echoType, append([]byte{answer}, addr...)); err == nil {
			_, _ = t.cfg.Network.WriteTo(back, from.String()) // the other end asks again
		}
		t.ask(k, t.routes.questioned(k.run, from.String(), time.Now()))
	case answer:
		if t.routes.answered(k.run, addr, time.Now()) {
			t.cfg.Moved(k.run)
		}
	}
}
