package ui

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// DefaultListen is where the page is unless --listen says otherwise.
const DefaultListen = "127.0.0.1:6786"

// Listen opens a listening socket at ADDRESS:PORT. Port 0 is any free port.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	if a, err := netip.ParseAddrPort(address); err != nil || a.Addr().Zone() != "" {
		return nil, fmt.Errorf("%q is no address to listen on: want ADDRESS:PORT, such as %s or [::1]:0", address, DefaultListen)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("another program listens on %s, perhaps another weft ui: end it, or choose another port with --listen, such as --listen 127.0.0.1:0 for any free one: %w", address, err)
	}
	return l, err
}

// Inherited returns the listening socket that this process got from its parent (LISTEN_PID and LISTEN_FDS, see
// sd_listen_fds(3)), or nil if there is none.
func Inherited() (net.Listener, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid != strconv.Itoa(os.Getpid()) || count == "" {
		return nil, nil
	}
	if count != "1" {
		return nil, fmt.Errorf("LISTEN_FDS is %q: want 1 listening socket", count)
	}
	const first = 3 // SD_LISTEN_FDS_START
	f := os.NewFile(first, "the inherited socket")
	defer f.Close() // FileListener has its own descriptor
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is no listening socket: %w", first, err)
	}
	return l, nil
}

// Site is where the page is served.
type Site struct {
	URL         string // with the token
	Hosts       []string
	Fingerprint string // SHA-256 of the certificate that was made at the start; empty: there is none
	tls         *tls.Config
}

// NewSite chooses how a listener is served. Beyond loopback it uses TLS, with the given certificate or one that it
// makes. certFile and keyFile are both empty or both given.
func NewSite(l net.Listener, token, certFile, keyFile string) (Site, error) {
	at, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		return Site{}, fmt.Errorf("the page needs a TCP socket, but this one listens on %v", l.Addr())
	}
	s := Site{Hosts: hostsOf(at.Addr())}
	shown := s.Hosts[0]
	scheme := "http"
	if !at.Addr().IsLoopback() || certFile != "" {
		scheme = "https"
		cert, err := certificate(s.Hosts, certFile, keyFile)
		if err != nil {
			return s, err
		}
		if certFile == "" {
			s.Fingerprint = fingerprint(cert.Certificate[0])
		} else if names := cert.Leaf.DNSNames; len(names) > 0 && !strings.HasPrefix(names[0], "*") {
			shown = names[0]
		}
		s.Hosts = append(s.Hosts, cert.Leaf.DNSNames...)
		s.tls = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	}
	s.URL = fmt.Sprintf("%s://%s/#token=%s", scheme, net.JoinHostPort(shown, strconv.Itoa(int(at.Port()))), token)
	return s, nil
}

// hostsOf returns the names of a server that listens on an address; the first one is for people.
func hostsOf(at netip.Addr) []string {
	at = at.Unmap()
	if at.IsLoopback() {
		names := []string{"localhost", "127.0.0.1", "::1"}
		return append([]string{at.String()}, names...)
	}
	var names []string
	if at.IsUnspecified() {
		addrs, _ := net.InterfaceAddrs() // on failure only the host's name remains
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
				names = append(names, p.Addr().String())
			}
		}
		// People elsewhere cannot use a loopback address: it comes last.
		for i := len(names); i > 0 && netip.MustParseAddr(names[0]).IsLoopback(); i-- {
			names = append(names[1:], names[0])
		}
		names = append(names, "localhost")
	} else {
		names = []string{at.String()}
	}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	return names
}

func certificate(hosts []string, certFile, keyFile string) (tls.Certificate, error) {
	if certFile != "" {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return cert, fmt.Errorf("the certificate and its key: %w", err)
		}
		return cert, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "weft ui"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// fingerprint returns the SHA-256 of a certificate as browsers show it.
func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
}

// Invitation says where the page is, and how a browser on another machine reaches it. machine is the name of
// this machine.
func Invitation(url, machine string) string {
	text := "The network's picture: " + url + "\n"
	scheme, rest, _ := strings.Cut(url, "://")
	host, _, _ := strings.Cut(rest, "/")
	if name, port, err := net.SplitHostPort(host); err == nil && scheme == "http" { // plain HTTP is only served on loopback
		to := name
		if strings.Contains(name, ":") {
			to = "[" + name + "]"
		}
		text += fmt.Sprintf("On another machine, first run: ssh -L %s:%s:%s %s\n", port, to, port, cmp.Or(machine, "HOST"))
	}
	return text
}

// Serve answers requests until ctx ends.
func (s Site) Serve(ctx context.Context, l net.Listener, c Config) error {
	server := &http.Server{
		Handler: Handler(c), TLSConfig: s.tls, MaxHeaderBytes: 16 << 10,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second,
		WriteTimeout: patience + 40*time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: log.New(silent{}, "", 0), // it only tells of broken handshakes of clients
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	var err error
	if s.tls != nil {
		err = server.ServeTLS(l, "", "")
	} else {
		err = server.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) && ctx.Err() != nil {
		return nil
	}
	return err
}

type silent struct{}

func (silent) Write(p []byte) (int, error) { return len(p), nil }
