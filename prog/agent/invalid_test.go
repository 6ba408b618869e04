package agent

import (
	"io"
	"log/slog"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"

	"weft/prog/agent/config"
	"weft/prog/kube"
	"weft/prog/kube/kubetest"
)

func TestInvalidSettingsAreReportedOnTheNode(t *testing.T) {
	server := kubetest.New()
	server.Set(kubetest.Node("n3", "uid-3", "192.0.2.3"))
	opts := config.Options{Log: slog.New(slog.DiscardHandler), Kubernetes: config.Kubernetes{On: true, Config: kubetest.Start(t, server), Node: "n3"}}
	if err := WarnInvalid(t.Context(), opts, io.ErrUnexpectedEOF); err != nil {
		t.Fatal(err)
	}
	events := server.All("events")
	if len(events) != 1 {
		t.Fatalf("events %+v, want one", events)
	}
	if e := events[0].(*core.Event); e.Reason != kube.ReasonInvalidSetting || e.InvolvedObject.UID != "uid-3" || !strings.Contains(e.Message, io.ErrUnexpectedEOF.Error()) {
		t.Errorf("event %+v; want the invalid setting, on uid-3, with the error", e)
	}
}
