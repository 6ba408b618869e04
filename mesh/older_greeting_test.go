package mesh

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// merging refuses to merge, and passes on whom.
type merging chan *memberlist.Node

func (m merging) NotifyMerge(nodes []*memberlist.Node) error {
	m <- nodes[0]
	return io.ErrUnexpectedEOF
}

// An agent of the version before sessions understands the greeting by which it is told that it is refused.
func TestOlderAgentsUnderstandTheGreeting(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	conf := memberlist.DefaultLANConfig()
	conf.Name, conf.BindAddr, conf.BindPort, conf.SecretKey, conf.EnableCompression = "older", "127.0.0.1", 0, key, false
	conf.LogOutput = io.Discard
	asked := make(merging, 1)
	conf.Merge = asked
	l, err := memberlist.Create(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Shutdown() })
	c, err := net.DialTimeout("tcp", l.LocalNode().Address(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at := netip.MustParseAddrPort("[2001:db8::1]:6783")
	if _, err := c.Write(sealMessage(key, joinMessage("run", at, encode(helloWire{Version: Version})))); err != nil {
		t.Fatal(err)
	}
	select {
	case n := <-asked:
		var h helloWire
		if err := decoding.Unmarshal(n.Meta, &h); err != nil || h.Version != Version || n.Name != "run" || addressOf(n) != at {
			t.Errorf("the older agent read %+v of %v, error %v; want the run at %v with this version", h, n, err, at)
		}
	case <-time.After(5 * time.Second):
		t.Error("the older agent did not understand the greeting within 5 s, want it read")
	}
}
