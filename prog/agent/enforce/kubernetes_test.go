package enforce

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"

	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/prog/agent/agenttest"
	"weft/prog/kube"
	"weft/prog/kube/kubetest"
)

// follow follows an API server until the test ends.
func follow(t *testing.T, server *kubetest.Server) *kube.Source {
	t.Helper()
	config, err := kube.Connect(kubetest.Start(t, server))
	if err != nil {
		t.Fatal(err)
	}
	source, err := kube.New(kube.Config{API: config, Node: "n1", Log: slog.New(slog.DiscardHandler), Save: func([]byte) error { return nil }, Changed: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	if err := NewKubernetes(source, false).Unknown(); err == nil || !strings.Contains(err.Error(), source.Server()) {
		t.Errorf("before the API server has answered: Unknown is %v, want an error that names the server", err)
	}
	agenttest.Run(t, source.Run)
	return source
}

func TestPoliciesOfTheAPIServerAreEnforced(t *testing.T) {
	server := kubetest.New()
	np := &networking.NetworkPolicy{
		ObjectMeta: meta.ObjectMeta{Namespace: "default", Name: "closed"},
		Spec:       networking.NetworkPolicySpec{PodSelector: meta.LabelSelector{MatchLabels: map[string]string{"app": "db"}}},
	}
	server.Set(np)
	f, source := newFixture(), NewKubernetes(follow(t, server), false)
	f.Enforcer.cfg.Source = source
	f.attach("db", 10)
	kubetest.Eventually(t, "known", func() bool { return source.Unknown() == nil })
	if s := source.Title(); !strings.HasPrefix(s, "the Kubernetes API server http://") {
		t.Error(s)
	}
	isolated := func() int {
		if err := f.Ensure(); err != nil {
			t.Fatal(err)
		}
		return len(f.kernel.Program.Isolated)
	}
	kubetest.Eventually(t, "isolated", func() bool { return isolated() == 1 })
	server.Delete(np)
	kubetest.Eventually(t, "open again", func() bool { return isolated() == 0 })
}

// New pods would have no policies, or old ones.
func TestPoliciesAreNotKnownWhileTheAPIServerRefuses(t *testing.T) {
	server := kubetest.New()
	server.Refuse(func(_, asked string) int {
		if asked == "networkpolicies" {
			return http.StatusForbidden
		}
		return kubetest.Serve
	})
	api := follow(t, server)
	source := NewKubernetes(api, false)
	kubetest.Eventually(t, "refused", func() bool { return len(api.Troubles()) > 0 })
	err := source.Unknown()
	if err == nil || !strings.Contains(err.Error(), "forbids this host to") || !strings.Contains(err.Error(), " the networkpolicies") || !strings.Contains(err.Error(), "apply Weft's manifest") {
		t.Error(err)
	}
	server.Refuse(nil)
	kubetest.Eventually(t, "known", func() bool { return source.Unknown() == nil })
}
