package kubetest

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Start serves s until the test ends, and returns a kubeconfig file for it. Clients that a test
// starts later must end before.
func Start(t testing.TB, s *Server) (kubeconfig string) {
	t.Helper()
	web := httptest.NewServer(s)
	t.Cleanup(func() {
		s.Refuse(nil)
		s.HangUp()
		web.CloseClientConnections()
		web.Close()
	})
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"" + web.URL + "\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// Eventually waits until the server's data have arrived.
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain, want: %s", what)
		}
	}
}
