package node

import (
	"cmp"
	"context"
	"strings"
	"time"

	"weft/prog/api"
	"weft/prog/kube"
)

// podTimeout limits how long an attachment waits until the API server reports its pod.
const podTimeout = 8 * time.Second

// Complete replaces the labels and ports of a pod's request by those that the API server has, since
// policies are written for those. It does not change other requests.
func (n *Node) Complete(ctx context.Context, req *api.AttachRequest) error {
	if req.Source != api.SourceCNI || req.Name == "" || req.Namespace == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	pod, err := n.Source.Pod(ctx, req.Namespace, req.Name, req.PodUID)
	if err != nil {
		return &api.Error{Code: api.CodeNotReady, Message: err.Error()}
	}
	req.PodUID, req.Labels, req.Ports = cmp.Or(req.PodUID, pod.UID), pod.Labels, ports(pod)
	return nil
}

// Current returns the current labels and ports of a pod; false if they are not known.
func (n *Node) Current(namespace, name, uid string) (map[string]string, []api.Port, bool) {
	state := n.Source.State()
	if state == nil || uid == "" {
		return nil, nil, false
	}
	pod, ok := state.Pod(namespace, name, uid)
	return pod.Labels, ports(pod), ok
}

// Ended reports whether the API server no longer has a pod.
func (n *Node) Ended(namespace, name, uid string) bool {
	state := n.Source.State()
	if uid == "" || state == nil || !state.Live {
		return false
	}
	_, there := state.Pod(namespace, name, uid)
	return !there
}

func ports(pod kube.Pod) (out []api.Port) {
	for _, p := range pod.Ports {
		out = append(out, api.Port{Name: p.Name, Protocol: strings.ToLower(p.Protocol.String()), Number: p.Number})
	}
	return out
}
