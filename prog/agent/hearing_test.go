package agent

import (
	"testing"
	"time"

	"weft/router/wg"
)

// What came through a tunnel is proof of life for a while; that its keys are in use is one when it is first seen only.
func TestHearing(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	key := [32]byte{1}
	for _, tt := range []struct {
		name     string
		received []int64 // every 5 s, since the start
		keys     time.Duration
		alive    bool
	}{
		{"a tunnel that brings data", []int64{10, 20, 30}, time.Minute, true},
		{"one that is idle, between two keepalives", []int64{10, 42, 42, 42, 42, 42}, time.Minute, true},
		{"one of a host that was powered off, though its keys look fresh", []int64{10, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42}, time.Minute, false},
		{"one that this agent has just come to see", []int64{42}, time.Minute, true},
		{"one whose keys are too old", []int64{42}, time.Hour, false},
		{"one that never worked", []int64{0, 0, 0}, 24 * time.Hour, false},
		{"one that was made anew, and counts from zero", []int64{100, 0, 0, 0, 0, 0, 0, 0, 0, 0}, time.Minute, false},
		{"none", nil, time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h hearing
			now := start
			for i, n := range tt.received {
				now = start.Add(time.Duration(i) * portsEvery)
				h.look(now, wg.Observed{Peers: map[[32]byte]wg.Peer{key: {Received: n, Handshake: start.Add(-tt.keys)}}})
			}
			if ago, alive := h.ago(key, now); alive != tt.alive {
				t.Errorf("heard of %v ago, alive: %v", ago, alive)
			}
		})
	}
	var h hearing
	h.look(start, wg.Observed{Peers: map[[32]byte]wg.Peer{key: {Received: 1, Handshake: start}}})
	h.look(start.Add(time.Second), wg.Observed{})
	if _, alive := h.ago(key, start.Add(time.Second)); alive {
		t.Error("a tunnel that is gone is proof")
	}
}
