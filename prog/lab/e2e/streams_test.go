package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
)

// streams opens COUNT connections to ADDRESS repeatedly for SECONDS, without proving an identity. A third
// announces 20 MiB of an older version's gossip and sends up to 19 MiB of it, a third sends garbage behind the
// head of a TLS record, and a third sends nothing.
func streams(args []string) error {
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	heads := [][]byte{binary.BigEndian.AppendUint32([]byte{10}, 20<<20), {22, 3, 1, 0x3f, 0xff}, nil}
	end := time.Now().Add(d)
	var group sync.WaitGroup
	for i := range count {
		head := heads[i%len(heads)]
		group.Go(func() {
			for time.Now().Before(end) {
				c, err := net.DialTimeout("tcp", args[0], 3*time.Second)
				if err != nil {
					continue
				}
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				_, err = c.Write(head)
				for n := 0; err == nil && head != nil && n < 19<<20; n += 64 << 10 {
					_, err = c.Write(make([]byte, 64<<10))
				}
				_, _ = c.Read(make([]byte, 10))
				c.Close()
				time.Sleep(time.Millisecond)
			}
		})
	}
	group.Wait()
	return nil
}

// Connections that announce much data without the secret do not make an agent's memory grow, and the
// mesh keeps working: meanwhile a third host joins.
func TestUnauthenticatedStreamsUseLittleMemory(t *testing.T) {
	l := bare(t, 3)
	launchFounder(t, l)
	good := token(t, l)
	join := func(host string) {
		t.Helper()
		if _, err := l.Exec(t.Context(), host, strings.NewReader(good), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
			t.Fatal(err)
		}
	}
	join("h2")
	flooded := make(chan error, 1)
	go func() { flooded <- tool(t, l, "h2", "streams", "192.0.2.1:6783", "5000", "6s") }()
	eventually.True(t, 5*time.Second, "the first host rejects them", func() bool {
		return strings.Contains(run(t, l, "h1", "weft", "status"), "Turned away: 192.0.2.2")
	})
	join("h3")
	if err := <-flooded; err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 10*time.Second, "all three are one mesh", func() bool {
		for _, h := range l.Hosts() {
			if r := report(t, l, h); !r.Ready || len(r.Router.Peers) != 3 {
				return false
			}
		}
		return true
	})
	var most int // peak memory in KiB, see proc(5)
	_, peak, _ := strings.Cut(run(t, l, "h1", "cat", fmt.Sprintf("/proc/%d/status", report(t, l, "h1").Router.PID)), "VmHWM:")
	if _, err := fmt.Sscanf(peak, " %d kB", &most); err != nil || most > 100<<10 {
		t.Errorf("the agent had up to %d MiB in memory, want at most 100; error %v", most>>10, err)
	}
	t.Logf("the agent had up to %d MiB in memory", most>>10)
}
