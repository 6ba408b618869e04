package link

import (
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTheKernelsCodesAreExplained(t *testing.T) {
	for errno, text := range meanings {
		err := Explain(errno)
		if !errors.Is(err, errno) || err.Error() != text || strings.Contains(text, errno.Error()) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	if err := Explain(io.EOF); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if err := Explain(unix.ENOENT); !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
	if Explain(nil) != nil {
		t.Error("no error was explained")
	}
}
