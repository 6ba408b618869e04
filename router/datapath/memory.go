package datapath

import (
	"bytes"
	"context"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
)

// The memory limit has these parts. For each peer, wireguard-go needs two goroutines and queues of
// pointers. During a handshake it also needs a buffer of 64 KiB, which counts in full although the
// process touches only one page.
const (
	minMemory  = 512 << 20
	baseMemory = 256 << 20 // holds batches of buffers under load, and garbage
	peerMemory = 144 << 10
)

// memoryEvery is the interval between two counts of the peers.
const memoryEvery = 10 * time.Second

// memoryLimit returns Go's memory limit for a number of peers, at most allowed bytes. A limit below
// the live heap means garbage collection without end. A limit above the available memory means that
// the kernel kills the process.
func memoryLimit(peers int, allowed uint64) int64 {
	want := max(minMemory, baseMemory+uint64(peers)*peerMemory)
	return int64(min(want, allowed, math.MaxInt64))
}

// followMemory adapts the memory limit to the number of peers until ctx ends.
func followMemory(ctx context.Context, dev *device.Device) {
	allowed := allowedMemory("/proc/self/cgroup", "/sys/fs/cgroup", machineMemory())
	last := int64(0)
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	for {
		if limit := memoryLimit(countPeers(dev), allowed); limit != last {
			debug.SetMemoryLimit(limit)
			last = limit
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// countPeers reads the device as wgctrl does. It stores nothing of the device's answer, which contains
// keys.
func countPeers(dev *device.Device) int {
	var n lineCounter
	_ = dev.IpcGetOperation(&n)
	return int(n)
}

// lineCounter counts the peers in the device's answer, which the device writes in one call.
type lineCounter int

func (n *lineCounter) Write(b []byte) (int, error) {
	*n += lineCounter(bytes.Count(b, []byte("public_key=")))
	return len(b), nil
}

func machineMemory() uint64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return math.MaxUint64
	}
	return uint64(info.Totalram) * uint64(info.Unit) //nolint:unconvert // 32 bits on other platforms
}

// allowedMemory returns nine tenths of the smallest limit of the process's control groups (v1 or
// v2, mounted at root). It is at most half of the machine's memory, which other processes need too.
func allowedMemory(groups, root string, machine uint64) uint64 {
	allowed := machine / 2
	text, _ := os.ReadFile(groups)
	for line := range strings.Lines(string(text)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		kind, group, _ := strings.Cut(rest, ":")
		dir, file := root, "memory.max"
		switch kind {
		case "":
		case "memory":
			dir, file = filepath.Join(root, "memory"), "memory.limit_in_bytes"
		default:
			continue
		}
		// In a container, the process's own group may be mounted at root, whatever path the line has.
		for group = filepath.Clean("/" + group); ; group = filepath.Dir(group) {
			b, err := os.ReadFile(filepath.Join(dir, group, file))
			if limit, bad := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil && bad == nil {
				allowed = min(allowed, limit/10*9) // "max" is no number, and means that there is no limit
			}
			if group == "/" {
				break
			}
		}
	}
	return allowed
}
