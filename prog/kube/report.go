package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Reasons of events, by which users filter them.
const (
	ReasonInvalidSetting = "InvalidSetting"      // the agent does not start
	ReasonUniverseFixed  = "UniverseIsFixed"     // the requested range differs from the founded one
	ReasonMismatch       = "ClusterCIDRMismatch" // the universe differs from kube-proxy's range
	ReasonReclaimed      = "AddressesReclaimed"  // the addresses of a deleted Node were taken over
	ReasonStillAnswers   = "DeletedNodeAnswers"  // the agent of a deleted Node still answers, and keeps its addresses
	ReasonSecret         = "SecretMismatch"      // the cluster's Secret is not this network's
	ReasonSecretRestored = "SecretRestored"      // the Secret was missing or incomplete
	ReasonAPIServer      = "APIServer"           // the API server refuses requests, or is unreachable
	ReasonNotReady       = "NotReady"            // pods cannot be attached on this node
	ReasonUp             = "WeftIsUp"            // the reason in the condition NetworkUnavailable
)

// Reporter writes events on the Node for its operator. Events that cannot be written are logged. It
// is safe for concurrent use.
type Reporter struct {
	client *Client
	node   string
	log    *slog.Logger
	queue  chan event

	mu   sync.Mutex
	said map[event]time.Time
}

type event struct{ kind, reason, message string }

// quiet is how long the same event is not repeated, so that a loop does not flood the API server.
const quiet = 10 * time.Minute

// NewReporter returns a Reporter for one Node; Run writes its events.
func NewReporter(client *Client, node string, log *slog.Logger) *Reporter {
	return &Reporter{client: client, node: node, log: log, queue: make(chan event, 32), said: map[event]time.Time{}}
}

// Warn queues a Warning event. It does not block.
func (r *Reporter) Warn(reason, message string) { r.say(event{core.EventTypeWarning, reason, message}) }

// Tell queues a Normal event. It does not block.
func (r *Reporter) Tell(reason, message string) { r.say(event{core.EventTypeNormal, reason, message}) }

func (r *Reporter) say(e event) {
	if r.fresh(e, time.Now()) {
		select {
		case r.queue <- e:
		default: // the API server is down; the log has the problem
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.said, e)
		}
	}
}

// fresh reports whether an event was not written recently.
func (r *Reporter) fresh(e event, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for old, at := range r.said {
		if now.Sub(at) >= quiet {
			delete(r.said, old)
		}
	}
	if _, known := r.said[e]; known {
		return false
	}
	r.said[e] = now
	return true
}

// Run writes queued events until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-r.queue:
			if err := r.write(ctx, e); err != nil && ctx.Err() == nil {
				r.log.Warn("cannot write an event of this Node", "reason", e.reason, "message", e.message, "err", err)
			}
		}
	}
}

// WarnNow writes a Warning event at once, for an agent that is about to end.
func (r *Reporter) WarnNow(ctx context.Context, reason, message string) error {
	return r.write(ctx, event{core.EventTypeWarning, reason, message})
}

// maxMessage is the API server's limit of an event's message.
const maxMessage = 1024

func (r *Reporter) write(ctx context.Context, e event) error {
	n, err := r.client.Node(ctx, r.node)
	if err != nil {
		return err
	}
	now := meta.Now()
	if len(e.message) > maxMessage {
		e.message = strings.ToValidUTF8(e.message[:maxMessage-len("…")], "") + "…"
	}
	body := &core.Event{
		// The API server requires this namespace for events of objects without namespace.
		ObjectMeta:     meta.ObjectMeta{Namespace: meta.NamespaceDefault, Name: fmt.Sprintf("%s.%x", r.node, now.UnixNano())},
		InvolvedObject: core.ObjectReference{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: types.UID(n.UID)},
		Type:           e.kind, Reason: e.reason, Message: e.message, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: core.EventSource{Component: "weft", Host: r.node}, ReportingController: "weft", ReportingInstance: r.node,
	}
	return r.client.do(ctx, "create an Event", r.client.core.Post().Namespace(meta.NamespaceDefault).Resource("events").Body(body), nil)
}

// SetAvailable sets the condition NetworkUnavailable to False for the scheduler. Some clouds' Nodes
// start with True, and no other component resets it.
func (r *Reporter) SetAvailable(ctx context.Context) error {
	now := meta.Now()
	return r.client.patchCondition(ctx, r.node, core.NodeCondition{
		Type: core.NodeNetworkUnavailable, Status: core.ConditionFalse, Reason: ReasonUp, Message: "Weft is up on this node",
		LastHeartbeatTime: now, LastTransitionTime: now,
	})
}

// TakeBack removes the condition that SetAvailable set, from a Node that no longer runs Weft. It
// would prevent the founding of a new network.
func (r *Reporter) TakeBack(ctx context.Context) error {
	n, err := r.client.Node(ctx, r.node)
	if apierrors.IsNotFound(err) || err == nil && !n.Up {
		return nil
	}
	if err != nil {
		return err
	}
	return r.client.takeBack(ctx, r.node)
}

// takenBack is the patch of a Node's status that removes the condition. `kubectl patch` accepts it
// too.
const takenBack = `{"status":{"conditions":[{"type":"NetworkUnavailable","$patch":"delete"}]}}`

func (c *Client) takeBack(ctx context.Context, node string) error {
	return c.patchStatus(ctx, node, []byte(takenBack))
}

func (c *Client) patchCondition(ctx context.Context, node string, condition core.NodeCondition) error {
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []any{condition}}})
	if err != nil {
		return err
	}
	return c.patchStatus(ctx, node, patch)
}

// patchStatus sends a strategic merge patch, which merges conditions by type.
func (c *Client) patchStatus(ctx context.Context, node string, patch []byte) error {
	return c.do(ctx, "patch the status of the Node "+node,
		c.core.Patch(types.StrategicMergePatchType).Resource("nodes").Name(node).SubResource("status").Body(patch), nil)
}
