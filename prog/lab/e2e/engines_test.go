package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// Debian 12's containerd and Podman, which support CNI 1.0.0 at most, use Weft for a container's
// network, and leave nothing behind.
func TestDebianContainerEnginesUseWeft(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1})
	established(t, l)
	for _, tt := range []struct {
		engine, host string
		packages     [][2]string // each program with its Debian package
	}{
		{"containerd", "h1", [][2]string{{"containerd", "containerd"}, {"ctr", "containerd"}, {"runc", "runc"}}},
		{"podman", "h2", [][2]string{{"podman", "podman"}, {"crun", "crun"}}},
	} {
		t.Run(tt.engine, func(t *testing.T) {
			for _, p := range tt.packages {
				labtest.Need(t, p[0], p[1])
			}
			script, err := os.Open("testdata/" + tt.engine + ".sh")
			if err != nil {
				t.Fatal(err)
			}
			defer script.Close()
			out, err := l.Exec(t.Context(), tt.host, script, append([]string{"sh", "-s", "--"}, addrs(t, l, "h3/c1")...)...)
			if err != nil || strings.Count(out, "icmp") != 2 {
				t.Fatalf("running the container failed, want two replies to icmp: %v: %s", err, out)
			}
			eventually.True(t, 10*time.Second, "the container is detached", func() bool { return len(report(t, l, tt.host).Endpoints) == 1 })
		})
	}
}
