package node

import (
	"cmp"
	"context"
	"strings"
	"time"

	"weft/prog/api"
	"weft/prog/kube"
)

// podTimeout bounds how long an attachment waits for the API server to tell of its pod.
const podTimeout = 8 * time.Second

// Complete makes the request of a pod say what the API server says of it: its labels, and no
// others, since policies are written for those. Any other request stays as it is.
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

// Current returns the labels and ports that a pod has now; false if they are not known.
func (n *Node) Current(namespace, name, uid string) (map[string]string, []api.Port, bool) {
	state := n.Source.State()
	if state == nil || uid == "" {
		return nil, nil, false
	}
	pod, ok := state.Pod(namespace, name, uid)
	return pod.Labels, ports(pod), ok
}

// Ended reports whether the API server told of a pod, and has no such pod any more.
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
