package cli

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"weft/prog/agent/config"
)

// configured returns the options for given flags and environment.
func configured(t *testing.T, environ, args []string) (f *launchFlags, log string, err error) {
	t.Helper()
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
	defer func() {
		for _, entry := range environ {
			name, _, _ := strings.Cut(entry, "=")
			os.Unsetenv(name)
		}
	}()
	var out bytes.Buffer
	a := &app{in: strings.NewReader(""), out: io.Discard, err: &out}
	f = &launchFlags{}
	cmd := &cobra.Command{Use: "agent", SilenceUsage: true, SilenceErrors: true, RunE: func(cmd *cobra.Command, targets []string) error {
		return a.configure(cmd, f, targets)
	}}
	f.add(cmd)
	cmd.SetArgs(append([]string{}, args...)) // nil would stand for the arguments of the test binary
	err = cmd.ExecuteContext(t.Context())
	return f, out.String(), err
}

func TestEnvironmentVariablesSetFlags(t *testing.T) {
	f, log, err := configured(t, []string{
		"WEFT_IPALLOC_RANGE=10.1.0.0/16", "WEFT_MTU=1300", "WEFT_PORT=7000", "WEFT_WIREGUARD_PORT=", "WEFT_POLICY_EXEMPT=none",
		"WEFT_VERBOSE=true", "WEFT_NO_DNS=true", "WEFT_DNS_FORWARD=corp=192.0.2.53,lab=192.0.2.54", "WEFT_KUBERNETES=true", "WEFT_NAMESPACE=net",
		"WEFT_PORTS=1", "WEFT_TOKEN=weft1-verysecret", "WEFT_SERVICE_HOST=10.96.0.7", "WEFT_METRICS_PORT=tcp://10.96.0.8:80", "WEFT_METRICS_PORT_80_TCP_ADDR=10.96.0.8",
	}, []string{"--port=7001"})
	if err != nil {
		t.Fatal(err)
	}
	if f.Universe.V4.String() != "10.1.0.0/16" || f.MTU != 1300 || f.GossipPort != 7001 || f.Port != config.DefaultPort || f.Exempt.OwnHost || !f.verbose ||
		!f.DNS.Off || len(f.DNS.Forward) != 2 || !f.Kubernetes.On || f.Kubernetes.Namespace != "net" {
		t.Errorf("the options are %+v, want the environment's values where no flag overrides them", f)
	}
	var warned []string
	for line := range strings.SplitSeq(log, "\n") {
		if _, name, ok := strings.Cut(line, "variable="); ok {
			warned = append(warned, name)
		}
	}
	if !slices.Equal(warned, []string{"WEFT_PORTS", "WEFT_TOKEN"}) || strings.Contains(log, "verysecret") {
		t.Errorf("the warnings are about %v, want WEFT_PORTS and WEFT_TOKEN without the token: %s", warned, log)
	}
}

// Kubernetes sets WEFT_PORT for a service that is called weft. It is not taken for a setting.
func TestKubernetesServiceVariablesAreNoSettings(t *testing.T) {
	f, log, err := configured(t, []string{"WEFT_PORT=tcp://10.96.0.7:80", "WEFT_PORT_80_TCP=tcp://10.96.0.7:80", "WEFT_SERVICE_PORT_HTTP=80"}, nil)
	if err != nil || f.GossipPort != 6783 || log != "" {
		t.Errorf("the gossip port is %d, with the warning %q and error %v; want the default and none", f.GossipPort, log, err)
	}
}

func TestErrorsAboutEnvironmentSettingsNameTheVariable(t *testing.T) {
	for _, entry := range []string{
		"WEFT_MTU=large", "WEFT_MTU=100", "WEFT_PORT=70000", "WEFT_WIREGUARD_PORT=0", "WEFT_IPALLOC_RANGE=10.0.0.1/16", "WEFT_IPALLOC_RANGE=ten",
		"WEFT_VERBOSE=perhaps", "WEFT_POLICY_EXEMPT=everything", "WEFT_ADVERTISE=here", "WEFT_IPALLOC_EXCLUDE=x", "WEFT_DNS_TTL=1ms", "WEFT_DNS_DOMAIN=a..b", "WEFT_IPALLOC_REST=-1s",
	} {
		name, _, _ := strings.Cut(entry, "=")
		_, _, err := configured(t, []string{entry}, nil)
		if err == nil || !strings.HasPrefix(err.Error(), name+" in the environment") || exitCode(err) != ExitUsage {
			t.Errorf("with %s in the environment the error is %v; want wrong usage that names the variable", entry, err)
		}
		flag := "--" + strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(entry, "WEFT_")), "_", "-")
		if _, _, err := configured(t, nil, []string{flag}); err == nil || strings.Contains(err.Error(), "environment") {
			t.Errorf("with the flag %s the error is %v; want one that does not name the environment", flag, err)
		}
	}
}

// With --kubernetes, settings that the cluster's Secret determines are refused.
func TestTokenAndTargetsAreRefusedWithKubernetes(t *testing.T) {
	for name, given := range map[string]struct{ environ, args []string }{
		"--token":        {args: []string{"--token=-"}},
		"PEER":           {args: []string{"192.0.2.1"}},
		"--ipalloc-init": {args: []string{"--ipalloc-init=consensus=3"}},
		"--cluster":      {args: []string{"--cluster=shop"}},
		"WEFT_PASSWORD":  {environ: []string{"WEFT_PASSWORD=long enough a word"}},
	} {
		_, _, err := configured(t, given.environ, append([]string{"--kubernetes"}, given.args...))
		if err == nil || !strings.HasPrefix(err.Error(), name+" ") || exitCode(err) != ExitUsage {
			t.Errorf("%s together with --kubernetes gives the error %v; want wrong usage", name, err)
		}
	}
}
