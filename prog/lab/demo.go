package lab

import (
	"context"
	"io"
)

// Demo shows three hosts.
func Demo(ctx context.Context, w io.Writer, keep bool) error { return nil }
