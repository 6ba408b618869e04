package datapath

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// A datapath of its own unit does not fail beside one that an agent started: it takes over when
// that ends, within seconds.
func TestStandbyWaitsForTheDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, broken := time.Now(), errors.New("broken")
		err := onceFree(t.Context(), slog.New(slog.DiscardHandler), func() error {
			if time.Since(began) < 5*time.Second {
				return errBusy
			}
			return broken
		})
		if took := time.Since(began); !errors.Is(err, broken) || took > 6*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		if err := onceFree(ctx, slog.New(slog.DiscardHandler), func() error { return errBusy }); err != nil {
			t.Error(err)
		}
	})
}
