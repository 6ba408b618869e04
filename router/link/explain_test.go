package link

import (
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExplainReplacesTheTextsOfKernelErrors(t *testing.T) {
	for errno, text := range meanings {
		err := Explain(errno)
		if !errors.Is(err, errno) || err.Error() != text || strings.Contains(text, errno.Error()) {
			t.Errorf("Explain(%d) is %v; want %q", int(errno), err, text)
		}
	}
	if err := Explain(io.EOF); !errors.Is(err, io.EOF) {
		t.Errorf("Explain(io.EOF) is %v; want it unchanged", err)
	}
	if err := Explain(unix.ENOENT); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Explain(ENOENT) is %v; want it unchanged", err)
	}
	if Explain(nil) != nil {
		t.Error("Explain(nil) is an error; want nil")
	}
}
