// Package words parses what users type and formats what they read. Its errors say what is wanted,
// without the names of Go's functions. It only imports the standard library, so that every package
// up to the CNI plugin can use it. It holds no state, does no I/O, and is safe for concurrent use.
package words

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"unicode"
)

// Misuse is an error in a user's input. It ends a command with exit code 2.
type Misuse struct{ error }

func (m Misuse) Unwrap() error { return m.error }

// Misused marks an error as caused by a user's input.
func Misused(err error) error { return Misuse{err} }

// Addr parses an IP address without a zone. It returns an IPv4-mapped IPv6 address as IPv4.
func Addr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil && strings.Contains(s, "/"):
		return a, fmt.Errorf("%q is no IP address: want one without a prefix length, such as 192.0.2.1 or 2001:db8::1", s)
	case err != nil:
		return a, fmt.Errorf("%q is no IP address: want one such as 192.0.2.1 or 2001:db8::1", s)
	case a.Zone() != "":
		return a, fmt.Errorf("%q has a zone, which is only valid on one host: want the address without %%%s", s, a.Zone())
	}
	return a.Unmap(), nil
}

// Prefix parses a CIDR.
func Prefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil {
		return p, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		bits := 16 // the prefix length in the example of the error text
		if a.Is6() {
			bits = 64
		}
		return p, fmt.Errorf("%q has no prefix length: want a CIDR, such as %v for a range, or %v/%d for one address", s, netip.PrefixFrom(a, bits).Masked(), a, a.BitLen())
	}
	return p, fmt.Errorf("%q is no CIDR: want ADDRESS/LENGTH, such as 10.32.0.0/12 or fd00::/64", s)
}

// Cause returns why a system or network call failed: the kernel's error, or that there was no answer.
// It omits the names of the calls that Go adds.
func Cause(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if wait, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); ok && wait.Timeout() {
		return "no answer in time"
	}
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it hung up"
	}
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// Port parses a port number.
func Port(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port: want a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// Count returns a number with its noun: 1 container, 2 containers, 1 address, 2 addresses.
func Count[N ~int | ~uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	end := "s"
	for _, hiss := range []string{"s", "x", "ch", "sh"} {
		if strings.HasSuffix(noun, hiss) {
			end = "es"
		}
	}
	if stem, ok := strings.CutSuffix(noun, "y"); ok {
		noun, end = stem, "ies"
	}
	return fmt.Sprintf("%d %s%s", n, noun, end)
}

// Are returns the verb for a number: is or are.
func Are[N ~int | ~uint64](n N) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// Printable returns at most the given number of characters of a text that another host wrote. Characters that
// control a terminal become spaces.
func Printable(s string, most int) string {
	if len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s // most texts are: nothing is copied
	}
	var out strings.Builder
	for _, r := range s {
		if most--; most < 0 {
			out.WriteString("…")
			break
		}
		if !unicode.IsPrint(r) {
			r = ' '
		}
		out.WriteRune(r)
	}
	return out.String()
}
