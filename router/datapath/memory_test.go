package datapath

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMemoryLimitGrowsWithThePeersUpToTheAllowedMemory(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, tt := range []struct {
		peers   int
		allowed uint64
		want    int64
	}{
		{0, 8 * gib, 512 * mib},
		{1000, 8 * gib, 512 * mib},
		{5000, 8 * gib, 256*mib + 5000*144<<10},
		{5000, 900 * mib, 900 * mib},
		{100, 200 * mib, 200 * mib},
	} {
		if got := memoryLimit(tt.peers, tt.allowed); got != tt.want {
			t.Errorf("the limit for %d peers and %d MiB allowed is %d MiB; want %d MiB", tt.peers, tt.allowed/mib, got/mib, tt.want/mib)
		}
	}
}

func TestAllowedMemoryIsBelowTheSmallestControlGroupLimit(t *testing.T) {
	const machine = 1 << 33
	for name, tt := range map[string]struct {
		groups string
		files  map[string]string
		want   uint64
	}{
		"no control groups":                   {"", nil, machine / 2},
		"no limit":                            {"0::/a\n", map[string]string{"a/memory.max": "max\n"}, machine / 2},
		"a limit of its own group":            {"0::/a/b\n", map[string]string{"a/b/memory.max": "1000\n", "a/memory.max": "2000\n"}, 900},
		"a limit of the parent group":         {"0::/a/b\n", map[string]string{"a/b/memory.max": "max\n", "a/memory.max": "2000\n"}, 1800},
		"a limit of the root, in a container": {"0::/kubepods/x\n", map[string]string{"memory.max": "3000\n"}, 2700},
		"a limit of cgroup v1":                {"5:cpu:/a\n4:memory:/a\n0::/\n", map[string]string{"memory/a/memory.limit_in_bytes": "1000\n"}, 900},
		"invalid lines and numbers":           {"x\n0::\n\n::::\n0::/../..\n", map[string]string{"memory.max": "-1\n"}, machine / 2},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			groups := filepath.Join(t.TempDir(), "cgroup")
			write := func(path, text string) {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write(groups, tt.groups)
			for path, text := range tt.files {
				write(filepath.Join(root, path), text)
			}
			if got := allowedMemory(groups, root, machine); got != tt.want {
				t.Errorf("allowed memory is %d; want %d", got, tt.want)
			}
		})
	}
}
