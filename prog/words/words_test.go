package words

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestErrorsDescribeValidInput(t *testing.T) {
	read := map[string]func(string) error{
		"addr":   func(s string) error { _, err := Addr(s); return err },
		"prefix": func(s string) error { _, err := Prefix(s); return err },
		"port":   func(s string) error { _, err := Port(s); return err },
	}
	for _, tt := range []struct{ what, in, says string }{
		{"addr", "192.0.2.1", ""},
		{"addr", "::ffff:192.0.2.1", ""},
		{"addr", "300.1.2.3", "want one such as"},
		{"addr", "", "want one such as"},
		{"addr", "10.32.0.5/24", "without a prefix length"},
		{"addr", "fe80::1%eth0", "without %eth0"},
		{"prefix", "10.32.0.0/12", ""},
		{"prefix", "10.32.0.0", "such as 10.32.0.0/16 for a range, or 10.32.0.0/32 for one address"},
		{"prefix", "10.32.1.2", "such as 10.32.0.0/16 for a range, or 10.32.1.2/32 for one address"},
		{"prefix", "fd00::1", "such as fd00::/64 for a range, or fd00::1/128 for one address"},
		{"prefix", "10.32.0.0/33", "ADDRESS/LENGTH"},
		{"port", "80", ""},
		{"port", "0", "1 to 65535"},
		{"port", "65536", "1 to 65535"},
		{"port", "-1", "1 to 65535"},
	} {
		err := read[tt.what](tt.in)
		if (err == nil) != (tt.says == "") || err != nil && (!strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), tt.in)) {
			t.Errorf("%s of %q returned %v; want an error with the input and %q, or none if empty", tt.what, tt.in, err, tt.says)
		}
	}
}

func TestCauseOmitsGoCallNames(t *testing.T) {
	dial := func(err error) error {
		return &url.Error{Op: "Get", URL: "http://docker/x", Err: &net.OpError{Op: "dial", Net: "unix", Err: err}}
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{dial(os.NewSyscallError("connect", syscall.ENOENT)), "no such file or directory"},
		{dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), "connection refused"},
		{dial(os.ErrDeadlineExceeded), "no answer in time"},
		{dial(os.NewSyscallError("connect", syscall.ETIMEDOUT)), "connection timed out"},
		{dial(context.Canceled), "interrupted"},
		{dial(io.ErrUnexpectedEOF), "it hung up"},
		{dial(errors.New("something\nelse")), "something else"},
	} {
		if got := Cause(fmt.Errorf("step: %w", tt.err)); got != tt.want {
			t.Errorf("the cause of %v is %q, want %q", tt.err, got, tt.want)
		}
	}
}

func TestCountAgreesWithNoun(t *testing.T) {
	for _, tt := range []struct {
		n          int
		noun, want string
	}{
		{0, "container", "0 containers"},
		{1, "container", "1 container"},
		{2, "container", "2 containers"},
		{1, "address", "1 address"},
		{3, "address", "3 addresses"},
		{2, "policy", "2 policies"},
	} {
		if got := Count(tt.n, tt.noun); got != tt.want {
			t.Errorf("Count(%d, %q) returned %q, want %q", tt.n, tt.noun, got, tt.want)
		}
	}
	if Are(1) != "is" || Are(0) != "are" {
		t.Errorf("Are(1) is %q and Are(0) is %q, want \"is\" and \"are\"", Are(1), Are(0))
	}
}

func TestTextsOfOthersCannotControlATerminal(t *testing.T) {
	for in, want := range map[string]string{"plain, ünï": "plain, ünï", "\x1b[2J\r\n": " [2J  ", "\u009b31m\u202e": " 31m ", strings.Repeat("x", 30): strings.Repeat("x", 20) + "…"} {
		if got := Printable(in, 20); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}
