package probe

import (
	"net/netip"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A conversation ends when nothing can be sent any more. A message that is larger than the path MTU
// is lost, but the next one is sent, since the kernel has learned the path MTU.
func TestConversationEndsWhenSendingFails(t *testing.T) {
	for failed, wantSent := range map[unix.Errno]uint32{unix.EPIPE: 1, unix.EMSGSIZE: 3} {
		synctest.Test(t, func(t *testing.T) {
			late := make(chan struct{})
			end, sent := sync.OnceFunc(func() { close(late) }), uint32(0)
			cfg := Config{Count: 3, Interval: time.Millisecond, Timeout: time.Second}
			_, err := converse(t.Context(), newTally("udp", netip.IPv4Unspecified()), cfg, conversation{
				send:    func(uint32) error { sent++; return failed },
				receive: func([]byte) ([]byte, error) { <-late; return nil, os.ErrDeadlineExceeded },
				deadline: func(at time.Time) error {
					time.AfterFunc(time.Until(at), end)
					return nil
				},
				close: func() error { return nil },
			})
			if err != nil || sent != wantSent {
				t.Errorf("if sending fails with %v, %d messages were sent, want %d; error %v", failed, sent, wantSent, err)
			}
		})
	}
}
