package attach

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"weft/prog/api"
)

// Detach waits until another operation on the endpoint is done. It gives up in time for the plugin to
// report an error.
func TestDetachWaitsForOtherOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keys{taken: map[string]chan struct{}{}}
		first, err := k.begin("c1/eth0")
		if err != nil {
			t.Fatal(err)
		}
		begun, order := time.Now(), make(chan string, 2)
		go func() {
			done, err := k.wait(t.Context(), "c1/eth0")
			if err != nil || time.Since(begun) != 2*time.Second {
				t.Errorf("the second operation got the key after %v, error %v; want 2s, and no error", time.Since(begun), err)
				return
			}
			order <- "second"
			time.Sleep(time.Hour)
			done()
		}()
		time.Sleep(2 * time.Second)
		order <- "first"
		first()
		synctest.Wait()
		if a, b := <-order, <-order; a != "first" || b != "second" {
			t.Errorf("operation %q came before %q, want first before second", a, b)
		}
		begun = time.Now()
		_, err = k.wait(t.Context(), "c1/eth0")
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNotReady || time.Since(begun) > 8*time.Second {
			t.Errorf("the third operation: after %v, error %v; want a not-ready error within 8s", time.Since(begun), err)
		}
		if _, err := k.wait(t.Context(), "c2/eth0"); err != nil {
			t.Errorf("the key of another endpoint: error %v, want none", err)
		}
		time.Sleep(time.Hour)
	})
}
