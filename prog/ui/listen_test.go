package ui

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/prog/api"
)

// run serves a page at an address until the test ends.
func run(t *testing.T, address, certFile, keyFile string) (Site, net.Listener) {
	t.Helper()
	l, err := Listen(t.Context(), address)
	if err != nil {
		t.Skipf("this machine cannot listen on %s: %v", address, err)
	}
	s, err := NewSite(l, token, certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.Serve(ctx, l, Config{Agent: &agent{}, Token: token, Hosts: s.Hosts, Words: func(api.Explanation) string { return "" }})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v, want nil", err)
		}
	})
	return s, l
}

func get(client *http.Client, url string) (int, string, error) {
	r, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	return r.StatusCode, string(data), err
}

func TestLoopbackIsServedWithoutTLS(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		s, l := run(t, address, "", "")
		if want := "http://" + l.Addr().String() + "/#token=" + token; s.URL != want || s.Fingerprint != "" {
			t.Errorf("the address is %s (%s), want %s", s.URL, s.Fingerprint, want)
		}
		code, text, err := get(http.DefaultClient, s.URL)
		if code != 200 || !strings.Contains(text, "<!doctype html>") || strings.Contains(text, token) {
			t.Errorf("the page: status %d, error %v, want the page without the token", code, err)
		}
	}
}

// Beyond loopback, a page has a certificate that the printed fingerprint proves.
func TestOtherAddressesAreServedWithTLS(t *testing.T) {
	s, l := run(t, "0.0.0.0:0", "", "")
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if !strings.HasPrefix(s.URL, "https://") || !slices.Contains(s.Hosts, "127.0.0.1") {
		t.Errorf("the address is %s for %v, want HTTPS and all addresses of this machine", s.URL, s.Hosts)
	}
	pinned := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // the fingerprint is compared instead
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if have := fmt.Sprintf("%X", sha256.Sum256(raw[0])); have != strings.ReplaceAll(s.Fingerprint, ":", "") {
				return fmt.Errorf("fingerprint %s, want %s", have, s.Fingerprint)
			}
			leaf, err := x509.ParseCertificate(raw[0])
			return errors.Join(err, leaf.VerifyHostname("127.0.0.1"))
		},
	}}}
	if code, _, err := get(pinned, "https://127.0.0.1:"+port+"/"); code != 200 {
		t.Errorf("status %d, error %v, want 200", code, err)
	}
	if code, _, _ := get(http.DefaultClient, "http://127.0.0.1:"+port+"/"); code == 200 {
		t.Error("the page is served without TLS too, want TLS only")
	}
	if strings.Contains(Invitation(s.URL, "h1"), "ssh -L") {
		t.Error("a page beyond loopback mentions ssh -L, want only its address")
	}
}

func TestAGivenCertificateIsUsed(t *testing.T) {
	cert, err := certificate([]string{"weft.example"}, "", "")
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	err = errors.Join(os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	s, _ := run(t, "127.0.0.1:0", certFile, keyFile)
	if !strings.HasPrefix(s.URL, "https://weft.example:") || s.Fingerprint != "" || !slices.Contains(s.Hosts, "weft.example") {
		t.Errorf("the address is %s for %v, want HTTPS with the certificate's name", s.URL, s.Hosts)
	}
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := NewSite(l, token, certFile, "/none"); err == nil || !strings.Contains(err.Error(), "the certificate and its key") {
		t.Errorf("with a missing key: %v, want an error that names the files", err)
	}
}

func TestListenSaysWhatToDo(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for address, want := range map[string]string{
		l.Addr().String(): "--listen 127.0.0.1:0 for any free one", "localhost:80": "want ADDRESS:PORT", "6786": "want ADDRESS:PORT", "[fe80::1%lo]:1": "want ADDRESS:PORT",
	} {
		if _, err := Listen(t.Context(), address); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("listening on %s: %v, want %q", address, err, want)
		}
	}
}

func TestInvitationHasTheTunnel(t *testing.T) {
	for url, want := range map[string]string{
		"http://127.0.0.1:6786/#token=x": "ssh -L 6786:127.0.0.1:6786 h1\n",
		"http://[::1]:7000/#token=x":     "ssh -L 7000:[::1]:7000 h1\n",
	} {
		if text := Invitation(url, "h1"); !strings.Contains(text, url) || !strings.HasSuffix(text, want) {
			t.Errorf("the invitation is %q, want the address and %q", text, want)
		}
	}
}
