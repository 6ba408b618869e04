package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/state"
	"weft/router/link"
)

// copyState copies the state and the secret of a host to a folder.
func copyState(t *testing.T, from, to string) {
	t.Helper()
	for _, name := range []string{state.File, "secret"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// disarmed returns an error if this host's WireGuard device has a key or peers.
func disarmed([]string) error {
	client, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer client.Close()
	dev, err := client.Device(link.Device)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) { // there is no device, or no process that runs it
		return nil
	}
	if err != nil {
		return err
	}
	if dev.PrivateKey != (wgtypes.Key{}) || len(dev.Peers) > 0 {
		return fmt.Errorf("the device has a key or peers: %v, %d", dev.PublicKey, len(dev.Peers))
	}
	return nil
}

// A host h3 whose disk is a copy of h2's stops as soon as it learns that h2 has the same identity, each
// time that it is started. h3 is never ready, reports why, and receives no packet for h2, which keeps
// working. All other hosts warn.
func TestACopiedHostStops(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 4, Containers: 1, Bare: true})
	launchFounder(t, l)
	good := token(t, l)
	for _, h := range []string{"h2", "h4"} {
		if _, err := l.Exec(t.Context(), h, strings.NewReader(good), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
			t.Fatal(err)
		}
	}
	h2 := report(t, l, "h2").Router.Node[0].String()
	eventually.True(t, time.Minute, "h1 reaches h2", func() bool {
		_, err := l.Exec(t.Context(), "h1", nil, "weft", "probe", "icmp", "--count", "1", h2)
		return err == nil
	})
	pinged := make(chan string, 1)
	go func() {
		out, err := l.Exec(t.Context(), "h1", nil, "weft", "probe", "icmp", "--count", "300", "--interval", "20ms", "--timeout", "5s", h2)
		pinged <- fmt.Sprintf("%s %v", out, err)
	}()
	copyState(t, l.StateDir("h2"), l.StateDir("h3"))
	for range 3 { // start the copy again and again, as systemd does with Restart=always
		said := fails(t, l, "h3", "", "weft", "launch")
		says(t, said, "exit code 5", "its disk was copied", "192.0.2.2", "weft reset --force")
		if strings.Contains(said, "ready after") {
			t.Error("launch of the copy printed \"ready after\", want it never ready")
		}
		if err := tool(t, l, "h3", "disarmed"); err != nil {
			t.Error(err)
		}
	}
	if out := <-pinged; !strings.Contains(out, "<nil>") {
		t.Errorf("h1 lost packets to h2, want no loss: %s", out)
	}
	says(t, fails(t, l, "h3", "", "weft", "status"), "not running")
	eventually.True(t, 10*time.Second, "h2 reports which host it rejected", func() bool {
		return strings.Contains(run(t, l, "h2", "weft", "status"), "Turned away: 192.0.2.3")
	})
	for _, h := range []string{"h1", "h4"} {
		eventually.True(t, 10*time.Second, h+" warns", func() bool {
			s := run(t, l, h, "weft", "status")
			return strings.Contains(s, "192.0.2.3 has the identity of") && strings.Contains(s, "(h2)")
		})
	}
	run(t, l, "h3", "weft", "reset", "--force")
	if _, err := l.Exec(t.Context(), "h3", strings.NewReader(good), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	oneRing(t, l, 4)
}

// An agent whose state was restored from an older copy does not allocate the address of a running
// container that is missing in the state.
func TestRestoredStateKeepsAddressesOfRunningContainers(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 1, Containers: 1, Bare: true})
	launchFounder(t, l)
	if err := l.Stop(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	old := t.TempDir()
	copyState(t, l.StateDir("h1"), old)
	if err := l.Start(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	forgotten, err := l.Plug(t.Context(), "h1/c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Stop(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	copyState(t, old, l.StateDir("h1"))
	if err := l.Start(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	says(t, run(t, l, "h1", "weft", "status"), "is missing in the state", forgotten[0])
	if err := l.AddContainer(t.Context(), "h1/c2"); err != nil {
		t.Fatal(err)
	}
	fresh, err := l.Plug(t.Context(), "h1/c2")
	if err != nil {
		t.Fatal(err)
	}
	if fresh[0] == forgotten[0] {
		t.Errorf("the new container got %s, want another address than the running container's", fresh[0])
	}
	run(t, l, "h1/c2", "weft", "probe", "icmp", "--count", "1", forgotten[0])
	if err := l.Unplug(t.Context(), "h1/c1"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 10*time.Second, "the address is free again", func() bool { return !strings.Contains(run(t, l, "h1", "weft", "status"), forgotten[0]) })
}

// A host whose disk is a copy of another host's starts after a while if it reaches no other host, like
// any host. Once it learns of the original, it stops, and its WireGuard device loses the key, so that
// the original's tunnels work again.
func TestACopiedHostRemovesItsKeyFromTheDevice(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Bare: true})
	launchFounder(t, l)
	if _, err := l.Exec(t.Context(), "h2", strings.NewReader(token(t, l)), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	rules := "table inet firewall {\nchain in { type filter hook input priority 0; meta l4proto { tcp, udp } th dport 6783 drop; }\nchain out { type filter hook output priority 0; meta l4proto { tcp, udp } th dport 6783 drop; }\n}\n"
	if _, err := l.Exec(t.Context(), "h3", strings.NewReader(rules), "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	copyState(t, l.StateDir("h2"), l.StateDir("h3"))
	run(t, l, "h3", "weft", "launch", "--wait", "0")
	eventually.True(t, 10*time.Second, "the copy waits for a confirmation", func() bool {
		out, err := l.Exec(t.Context(), "h3", nil, "weft", "status")
		failed, ok := errors.AsType[*lab.CommandError](err)
		return ok && failed.Code == 4 && strings.Contains(out, "waiting for another peer to confirm")
	})
	if err := tool(t, l, "h3", "disarmed"); err != nil {
		t.Error(err)
	}
	eventually.True(t, 20*time.Second, "the copy's device has a key", func() bool { return tool(t, l, "h3", "disarmed") != nil })
	run(t, l, "h3", "nft", "delete", "table", "inet", "firewall")
	eventually.True(t, 40*time.Second, "the copy's device has no key", func() bool { return tool(t, l, "h3", "disarmed") == nil })
	says(t, fails(t, l, "h3", "", "weft", "status"), "not running")
	h2 := report(t, l, "h2").Router.Node[0].String()
	eventually.True(t, 40*time.Second, "h1 reaches h2", func() bool {
		_, err := l.Exec(t.Context(), "h1", nil, "weft", "probe", "icmp", "--count", "5", "--interval", "20ms", h2)
		return err == nil
	})
}
