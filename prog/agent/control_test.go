package agent

import (
	"errors"
	"strings"
	"testing"

	"weft/mesh"
	"weft/prog/api"
)

func TestOnlyTargetsAreForgotten(t *testing.T) {
	targets := []mesh.Target{{Host: "h1"}, {Host: "192.0.2.2:6783"}}
	if err := knownTargets(targets, []string{"192.0.2.2:6783", "h1"}); err != nil {
		t.Error(err)
	}
	err := knownTargets(targets, []string{"h1", "nosuch"})
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNotFound || !strings.Contains(e.Message, "nosuch is no target") {
		t.Error(err)
	}
}
