package e2e

import (
	"archive/tar"
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// rootfs returns the root file system of Docker's containers: busybox, as a tar file.
func rootfs(t *testing.T) string {
	t.Helper()
	labtest.Need(t, "busybox", "busybox-static")
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, dir := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "tmp/", "run/"} {
		err = w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755})
	}
	if err == nil {
		err = w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))})
	}
	if err == nil {
		_, err = w.Write(program)
	}
	for _, applet := range []string{"sh", "sleep", "ip", "nc", "cat", "echo"} {
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"})
		}
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// docker starts Debian's Docker Engine on a host.
func docker(t *testing.T, l *lab.Lab) func(args ...string) string {
	t.Helper()
	labtest.Need(t, "dockerd", "docker.io")
	image := rootfs(t)
	run(t, l, "h1", "sh", "-c", `mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir -p /run/engine/docker && mount -t cgroup2 cgroup2 /sys/fs/cgroup`)
	run(t, l, "h1", "sh", "-c", `cd / && (dockerd --data-root /run/engine/docker --exec-root /run/engine/exec --storage-driver vfs --exec-opt native.cgroupdriver=cgroupfs -p /run/engine/docker.pid -H unix:///run/docker.sock >/run/engine/docker.log 2>&1 </dev/null &)`)
	cli := func(args ...string) []string {
		return append([]string{"env", "DOCKER_HOST=unix:///run/docker.sock", "docker"}, args...)
	}
	var last error
	defer func() {
		if t.Failed() {
			out, _ := l.Exec(t.Context(), "h1", nil, "tail", "-30", "/run/engine/docker.log")
			t.Log(out)
		}
	}()
	eventually.True(t, 30*time.Second, "Docker answers", func() bool {
		_, last = l.Exec(t.Context(), "h1", nil, cli("version")...)
		return last == nil
	})
	if _, err := l.Exec(t.Context(), "h1", strings.NewReader(image), cli("import", "-", "box")...); err != nil {
		t.Fatal(err)
	}
	return func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(run(t, l, "h1", cli(args...)...))
	}
}

// With Debian's Docker Engine: a container attached with --default uses the network for all its
// connections, its published ports still answer other hosts, and detach restores its routes.
func TestDockerPublishedPortsAnswerAfterAttach(t *testing.T) {
	labtest.Need(t, "dockerd", "docker.io")
	l := labtest.New(t, lab.Options{Hosts: 2})
	dock := docker(t, l)
	dock("run", "-d", "--name", "web", "-p", "8080:80", "box", "/bin/sh", "-c", "while :; do echo hello | nc -l -p 80; done")
	way := func() string { return dock("exec", "web", "/bin/ip", "route", "get", "198.51.100.9") }
	published := func(when string) {
		t.Helper()
		eventually.True(t, 10*time.Second, when+": the published port answers", func() bool {
			out, err := l.Exec(t.Context(), "h2", nil, "busybox", "nc", "-w", "2", "192.0.2.1", "8080")
			return err == nil && strings.Contains(out, "hello")
		})
	}
	before := way()
	published("before")
	run(t, l, "h1", "weft", "attach", "--default", "web")
	if got := way(); !strings.Contains(got, "dev ethwe") {
		t.Errorf("after attach --default the route of the container is %s, want it through ethwe", got)
	}
	published("attached")
	run(t, l, "h1", "weft", "detach", "web")
	if got := way(); got != before {
		t.Errorf("after detach the route is %s, want %s as before", got, before)
	}
	published("detached")
	for _, then := range []string{"attach", "detach"} { // both commands clear the warning
		run(t, l, "h1", "weft", "attach", "web")
		dock("restart", "-t", "0", "web")
		eventually.True(t, 30*time.Second, "the status names a container that lost its attachment", func() bool {
			return strings.Contains(strings.Join(report(t, l, "h1").Warnings, "\n"), "(web) runs and is not attached any more")
		})
		if ps := run(t, l, "h1", "weft", "ps"); !strings.Contains(ps, "none: the container was restarted") {
			t.Errorf("weft ps prints the following, want that the container was restarted:\n%s", ps)
		}
		run(t, l, "h1", "weft", then, "web")
		if r := report(t, l, "h1"); len(r.Unattached) != 0 || strings.Contains(strings.Join(r.Warnings, "\n"), "any more") {
			t.Errorf("after %s the status has the unattached containers %+v and the warnings %q, want none", then, r.Unattached, r.Warnings)
		}
		_, _ = l.Exec(t.Context(), "h1", nil, "weft", "detach", "web")
	}
	dock("rm", "-f", "web")
}
