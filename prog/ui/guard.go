package ui

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// policy is the page's Content-Security-Policy: only scripts, styles and answers of this server.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// guard refuses requests that another page made, and requests below /api without the token. Every answer gets the
// headers that keep the page apart from others.
func guard(c Config, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte("Bearer " + c.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
		h.Set("Cache-Control", "no-store")
		inside := strings.HasPrefix(r.URL.Path, "/api/")
		have := sha256.Sum256([]byte(r.Header.Get("Authorization"))) // equal lengths: the comparison takes the same time
		switch {
		case !addressed(r.Host, c.Hosts):
			refuse(w, http.StatusMisdirectedRequest, "this server has another name: open the address that weft ui printed")
		case !sameOrigin(r) || !sameSite(r, inside):
			refuse(w, http.StatusForbidden, "another page sent this request: open the address that weft ui printed")
		case inside && subtle.ConstantTimeCompare(have[:], want[:]) != 1:
			refuse(w, http.StatusUnauthorized, "the token is missing or wrong: open the address that weft ui printed, with all that follows #")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// addressed reports whether a Host header names this server. Its port may be another one: a tunnel (ssh -L, kubectl
// port-forward) has its own.
func addressed(host string, hosts []string) bool {
	name := bare(host)
	return name != "" && slices.ContainsFunc(hosts, func(h string) bool { return bare(h) == name })
}

// bare returns a host without port, brackets and differences of spelling; empty if it is no host.
func bare(host string) string {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	} else if strings.Trim(port, "0123456789") != "" {
		return ""
	}
	if a, err := netip.ParseAddr(name); err == nil {
		return a.Unmap().String()
	}
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// sameOrigin reports whether the request's Origin, if it has one, is this server.
func sameOrigin(r *http.Request) bool {
	origins := r.Header.Values("Origin")
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	return len(origins) == 0 || len(origins) == 1 && strings.EqualFold(origins[0], scheme+r.Host)
}

// sameSite reports whether the browser says that the page itself made the request. A link may lead to the page.
func sameSite(r *http.Request, inside bool) bool {
	switch site := r.Header.Get("Sec-Fetch-Site"); {
	case site == "" || site == "same-origin":
		return true
	case inside:
		return false
	default:
		return site == "none" || r.Header.Get("Sec-Fetch-Mode") == "navigate"
	}
}
