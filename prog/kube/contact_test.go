package kube

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A refusal is reported at once, and an unreachable server only after a while. A watch that receives
// nothing is reported after the time for which servers keep a watch.
func TestRefusalsAreReportedAtOnceAndOutagesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		var c contact
		says := func(when, want string) {
			t.Helper()
			err := c.trouble()
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", when, err, want)
			}
		}
		says("before the first request", "")
		c.listed(ctx, nil)
		c.watched(ctx, nil)
		says("requests succeed", "")
		c.watched(ctx, errors.New("connection refused"))
		says("the server restarts", "")
		time.Sleep(patienceWith + time.Second)
		says("the server is away", "connection refused")
		c.watched(ctx, nil)
		says("it is back", "")
		c.listed(ctx, apierrors.NewForbidden(schema.GroupResource{Resource: "networkpolicies"}, "", errors.New("no rule")))
		says("forbidden", "no rule")
		c.watched(ctx, nil)
		says("forbidden, while the watch continues", "no rule")
		c.listed(ctx, nil)
		says("granted again", "")
		time.Sleep(silent - time.Second)
		c.heard()
		time.Sleep(silent - time.Second)
		says("bookmarks come", "")
		time.Sleep(2 * time.Second)
		says("a silent watch", "sent nothing")
		ended, stop := context.WithCancel(ctx)
		stop()
		c.heard()
		c.listed(ended, errors.New("canceled"))
		time.Sleep(patienceWith + time.Second)
		says("the agent ends", "")
	})
}

// Troubles lists each refusal, and an unreachable server once.
func TestTroublesListsRefusalsFirst(t *testing.T) {
	f := newFollowing(func() {})
	refusal := &apierrors.StatusError{ErrStatus: apierrors.NewUnauthorized("no token").ErrStatus}
	f.pods.listed(t.Context(), explained("https://server", "list the pods", refusal))
	f.nodes.listed(t.Context(), errors.New("away"))
	f.policies.listed(t.Context(), errors.New("away"))
	f.nodes.failing, f.policies.failing = time.Now().Add(-time.Hour), time.Now().Add(-time.Hour)
	got := f.troubles()
	if len(got) != 2 || !got[0].Refused || !strings.Contains(got[0].Err.Error(), "credentials") || got[1].Refused {
		t.Errorf("the troubles are %+v; want the refusal, then the unreachable server", got)
	}
}
