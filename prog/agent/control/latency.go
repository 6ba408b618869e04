package control

import (
	"context"
	"time"

	"weft/prog/agent/metric"
	"weft/prog/api"
)

// newDurations makes the histogram of the CNI plugin's requests. A pod waits for them.
func newDurations() metric.Durations {
	return metric.NewDurations("cni_request_duration_seconds", "How long the agent took for a request of the CNI plugin: attach, plug or detach.", "request")
}

// Metrics exports how long requests took.
func (s *Server) Metrics(out metric.Out) { out.Durations(s.durations) }

// took notes how long a request took that began at a time.
func (s *Server) took(request string, began time.Time) { s.durations.Note(time.Since(began), request) }

// Attach measures the request of the same name.
func (s *Server) Attach(ctx context.Context, req api.AttachRequest) (api.AttachReply, error) {
	defer s.took("attach", time.Now())
	return s.Attachments.Attach(ctx, req)
}

// Plug measures the request of the same name.
func (s *Server) Plug(ctx context.Context, ref api.EndpointRef) error {
	defer s.took("plug", time.Now())
	return s.Attachments.Plug(ctx, ref)
}

// Detach measures the request of the same name.
func (s *Server) Detach(ctx context.Context, ref api.EndpointRef) error {
	defer s.took("detach", time.Now())
	return s.Attachments.Detach(ctx, ref)
}
