package agent

import (
	"context"
	"time"

	"weft/prog/kube"
)

// setWaiting says what the agent waits for before it has started, on the Node too once that
// takes long.
func (a *Agent) setWaiting(ctx context.Context, why string) {
	a.mu.Lock()
	a.notReady = why
	a.mu.Unlock()
	if time.Since(a.started) < notReadyFor {
		return
	}
	if err := a.cluster.report.WarnNow(ctx, kube.ReasonNotReady, why); err != nil && ctx.Err() == nil {
		a.log.Debug("cannot write an event of this Node", "err", err)
	}
}

// lastWord says on the Node why the agent ends.
func (a *Agent) lastWord(ctx context.Context, reason string, why error) {
	if err := a.cluster.report.WarnNow(ctx, reason, "Weft does not start: "+why.Error()); err != nil {
		a.log.Warn("cannot write an event of this Node", "err", err)
	}
}

// WarnInvalid says on this host's Node that the agent does not start with settings like
// these. It tries its best, and not for long.
func WarnInvalid(ctx context.Context, opts Options, why error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	report, err := reporter(opts)
	if err != nil {
		return err
	}
	return report.WarnNow(ctx, kube.ReasonInvalidSetting, "Weft does not start: "+why.Error())
}

// reporter speaks for this host's Node where no agent does.
func reporter(opts Options) (*kube.Reporter, error) {
	config, err := kube.Connect(opts.Kubernetes.Config)
	if err != nil {
		return nil, err
	}
	client, err := kube.NewClient(config)
	if err != nil {
		return nil, err
	}
	return kube.NewReporter(client, nodeName(opts.Kubernetes.Node), opts.Log), nil
}

// sayAvailable clears the Node's condition NetworkUnavailable once this host is ready, and
// again where somebody sets it. That it is Weft's word shows others that there is a network.
func (a *Agent) sayAvailable(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			st, own := a.kube.State(), a.ownNode()
			if now.Before(next) || st == nil || !st.Live || own.Up || a.Ready(ctx) != nil {
				continue
			}
			next = now.Add(30 * time.Second) // the watch tells of it long before
			if own.Unavailable == "False" {
				next = now.Add(10 * time.Minute) // somebody else says the same, and may say it again
			}
			if err := a.cluster.report.SetAvailable(ctx); err != nil && ctx.Err() == nil {
				a.log.Warn("cannot clear the condition NetworkUnavailable of this Node", "err", err)
			}
		}
	}
}
