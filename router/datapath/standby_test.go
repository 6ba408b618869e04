package datapath

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// An agent has started a datapath process, and a supervisor starts a second one. The second process
// waits without an error, and serves the device within seconds after the first process has ended.
func TestStandbyWaitsUntilTheDeviceIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, broken := time.Now(), errors.New("broken")
		err := onceFree(t.Context(), slog.New(slog.DiscardHandler), func() error {
			if time.Since(began) < 5*time.Second {
				return errBusy
			}
			return broken
		})
		if took := time.Since(began); !errors.Is(err, broken) || took > 6*time.Second {
			t.Errorf("onceFree returned %[2]v after %[1]v; want the error of run within a second after the device is free", took, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		if err := onceFree(ctx, slog.New(slog.DiscardHandler), func() error { return errBusy }); err != nil {
			t.Errorf("onceFree returned %v after its context ended; want no error", err)
		}
	})
}
