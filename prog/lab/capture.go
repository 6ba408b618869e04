package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/prog/lab/probe"
)

// Capture watches the whole underlay until it is stopped.
type Capture struct {
	process *process
}

// Capture starts to count every frame that a host sends to the underlay, each once, and those among them that
// contain marker. When it returns, the capture runs.
func (l *Lab) Capture(ctx context.Context, marker string) (*Capture, error) {
	args := []string{"weft", "probe", "capture", "--incoming", "--json", "--duration", "0", "--marker", marker}
	p, err := l.startProcess(ctx, UnderlayName, nil, append(args, l.Hosts()...)...)
	if err != nil {
		return nil, err
	}
	for !strings.Contains(p.stderr.String(), probe.CaptureReady) {
		select {
		case err := <-p.done:
			p.done <- err // for wait
			_, err = p.wait()
			return nil, fmt.Errorf("lab: capture did not start: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return &Capture{p}, nil
}

// Stop ends the capture and returns what it saw.
func (c *Capture) Stop() (probe.CaptureSummary, error) {
	var sum probe.CaptureSummary
	c.process.signals <- unix.SIGINT
	out, err := c.process.wait()
	if err != nil {
		return sum, fmt.Errorf("lab: capture: %w", err)
	}
	return sum, json.Unmarshal([]byte(out), &sum)
}
