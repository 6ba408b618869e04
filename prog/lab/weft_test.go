package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"weft/prog/lab"
)

// These tests check how the lab calls weft and weft-cni, with fakes that record their arguments.

const fakeRecord = "/var/lib/weft/launched"

// fakeLaunch founds a mesh with its own token, or joins with the token on stdin. Then it installs the plugin and
// its configuration, like a ready agent.
func fakeLaunch() *cobra.Command {
	return &cobra.Command{
		Use: "launch", DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if slices.Contains(args, "--nonsense") {
				_ = os.WriteFile("/var/lib/weft/agent.log", []byte("the agent ended\n"), 0o600)
				return errors.New("unknown flag: --nonsense")
			}
			token := "founders-token"
			if slices.Contains(args, "--token") {
				data, err := io.ReadAll(os.Stdin)
				if err != nil {
					return err
				}
				token = string(data)
			}
			record, err := os.OpenFile(fakeRecord, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			fmt.Fprintln(record, strings.Join(args, " "))
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			const conflist = `{"cniVersion": "1.0.0", "name": "weft", "plugins": [{"type": "weft-cni"}]}`
			return errors.Join(
				record.Close(),
				os.WriteFile("/var/lib/weft/secret", []byte(token+"\n"), 0o600),
				os.MkdirAll("/opt/cni/bin", 0o755),
				os.Symlink(exe, "/opt/cni/bin/weft-cni"),
				os.MkdirAll("/etc/cni/net.d", 0o755),
				os.WriteFile("/etc/cni/net.d/10-weft.conflist", []byte(conflist), 0o600),
			)
		},
	}
}

func fakeToken() *cobra.Command {
	return &cobra.Command{
		Use: "token", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { fmt.Println("made-beforehand"); return nil },
	}
}

func fakeCNI() int {
	if _, err := os.Stat(os.Getenv("CNI_NETNS")); err != nil {
		fmt.Printf(`{"cniVersion": "1.0.0", "code": 4, "msg": "no namespace", "details": %q}`, err)
		return 1
	}
	if os.Getenv("CNI_COMMAND") == "ADD" {
		fmt.Printf(`{"cniVersion": "1.0.0", "ips": [{"address": "10.32.0.7/32"}]}`)
	}
	return 0
}

func launchedLab(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	o.Name, o.Bin = labName(t), bin
	l, err := lab.Up(t.Context(), o)
	if l != nil {
		t.Cleanup(func() {
			if err := l.Down(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil && strings.Contains(err.Error(), "/dev/net/tun") {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func launched(t *testing.T, l *lab.Lab, host string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(l.StateDir(host), "launched"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func TestHostsAreLaunchedOneAfterTheOther(t *testing.T) {
	l := launchedLab(t, lab.Options{Hosts: 3, Containers: 1, Launch: []string{"--mtu", "1400"}})
	for host, want := range map[string]string{
		"h1": "--mtu 1400", "h2": "--mtu 1400 --token - 192.0.2.1", "h3": "--mtu 1400 --token - 192.0.2.1",
	} {
		if got := launched(t, l, host); got != want {
			t.Errorf("%s was launched with %q, want %q", host, got, want)
		}
		if token, err := os.ReadFile(filepath.Join(l.StateDir(host), "secret")); err != nil || string(token) != "founders-token\n" {
			t.Errorf("%s has the token %q, error %v, want the founder's token", host, token, err)
		}
	}
	if err := l.AddContainer(t.Context(), "h2/c9"); err != nil {
		t.Fatal(err)
	}
	if addrs, err := l.Plug(t.Context(), "h2/c9"); err != nil || len(addrs) != 1 || addrs[0] != "10.32.0.7" {
		t.Errorf("Plug: got %v, error %v; want 10.32.0.7", addrs, err)
	}
	if err := l.Unplug(t.Context(), "h2/c9"); err != nil {
		t.Error(err)
	}
	if err := l.Reboot(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	if got := launched(t, l, "h2"); !strings.HasSuffix(got, "\n--mtu 1400") {
		t.Errorf("after a reboot, h2 was launched with %q, want the settings without a token", got)
	}
}

func TestHostsAreLaunchedTogether(t *testing.T) {
	l := launchedLab(t, lab.Options{Hosts: 3, Together: true, Underlay: "6"})
	if got, want := launched(t, l, "h2"), "--token - 2001:db8::1 2001:db8::3"; got != want {
		t.Errorf("h2 was launched with %q, want %q", got, want)
	}
	if token, err := l.Token(); err != nil || token != "made-beforehand" {
		t.Errorf("got the token %q, error %v, want the new token", token, err)
	}
}
