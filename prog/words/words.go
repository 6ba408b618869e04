// Package words reads what people type, and words what they read: errors that say what was
// wanted instead of which function of Go refused it, and numbers with their noun. It needs
// the standard library only and holds no state, so everything from mesh's edges to the CNI
// plugin can use it.
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
)

// Misuse is an error in what somebody typed, which ends a command with exit code 2.
type Misuse struct{ error }

func (m Misuse) Unwrap() error { return m.error }

// Misused makes an error one in what somebody typed.
func Misused(err error) error { return Misuse{err} }

// Addr reads an IP address without a zone; one of IPv4 in IPv6's form is an IPv4 address.
func Addr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil && strings.Contains(s, "/"):
		return a, fmt.Errorf("%q is no IP address: want one without a prefix length, such as 192.0.2.1 or 2001:db8::1", s)
	case err != nil:
		return a, fmt.Errorf("%q is no IP address: want one such as 192.0.2.1 or 2001:db8::1", s)
	case a.Zone() != "":
		return a, fmt.Errorf("%q has a zone, which says something on one host only: want an address without %%%s", s, a.Zone())
	}
	return a.Unmap(), nil
}

// Prefix reads a CIDR.
func Prefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil {
		return p, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		bits := 16 // of a range that can be a network's
		if a.Is6() {
			bits = 64
		}
		return p, fmt.Errorf("%q has no prefix length: want a CIDR, such as %v for a range, or %v/%d for one address", s, netip.PrefixFrom(a, bits).Masked(), a, a.BitLen())
	}
	return p, fmt.Errorf("%q is no CIDR: want ADDRESS/LENGTH, such as 10.32.0.0/12 or fd00::/64", s)
}

// Cause is why a call to a network or a file failed, without the names that Go gives to the steps
// on the way there: what the kernel said, or that there was no answer.
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

// Port reads the number of a port.
func Port(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port: want a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// Count is a number with its noun: 1 container, 2 containers, 1 address, 2 addresses.
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

// Are is the verb that goes with a number.
func Are[N ~int | ~uint64](n N) string {
	if n == 1 {
		return "is"
	}
	return "are"
}
