package labtest

import (
	"crypto/ecdh"
	"crypto/rand"
	"runtime"
	"sync"
	"testing"
	"time"
)

// keysPerHost is how many X25519 keys per second a machine must make for each host that starts in a crowd. A machine that
// makes 36,000 carried 12 hosts, half of them behind NAT, in 4 of 4 runs of TestHalfOfManyHostsAreBehindNAT, all settled 4
// to 13 s after the last launch, but 16 hosts only in 3 of 6: its processors were never idle. With 49,000, 16 hosts took 35 s.
const keysPerHost = 4000

// Crowd returns the first of some numbers of hosts that this machine carries, or else the last one. All hosts of a lab
// share its processors: with too many of them, a test finds that handshakes time out, as in no network of real hosts.
func Crowd(t testing.TB, sizes ...int) int {
	t.Helper()
	const span = 300 * time.Millisecond
	counts := make([]int, runtime.GOMAXPROCS(0))
	var all sync.WaitGroup
	for i := range counts {
		all.Go(func() {
			for end := time.Now().Add(span); time.Now().Before(end); counts[i]++ {
				if _, err := ecdh.X25519().GenerateKey(rand.Reader); err != nil {
					panic(err) // the kernel's random numbers never end
				}
			}
		})
	}
	all.Wait()
	made := 0
	for _, n := range counts {
		made += n
	}
	perSecond := int(float64(made) / span.Seconds())
	carried := sizes[len(sizes)-1]
	for _, n := range sizes {
		if perSecond >= n*keysPerHost {
			carried = n
			break
		}
	}
	t.Logf("keys per second on this machine: %d; hosts: %d", perSecond, carried)
	return carried
}
